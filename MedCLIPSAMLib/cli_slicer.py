"""`slicer-run`: the job of the Slicer panel, in a scene outside Slicer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from MedCLIPSAMLib.cli_options import (
    AxisOption,
    DeviceOption,
    EngineOption,
    NoGateOption,
    PresetOption,
    SeedOption,
    SlicesOption,
    VerboseOption,
    chosen_input,
    parse_axis,
    parse_slices,
    progress_bar,
    reported,
)
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.reporting import RESEARCH_NOTE


def slicer_run(
    source: Annotated[Path | None, typer.Option("--input", help="Image or volume, or a DICOM folder.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to segment; may be given several times.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    sample: Annotated[str | None, typer.Option(help="A sample instead of a file; see `medclipsam samples`.")] = None,
    engine: EngineOption = "lite",
    preset: PresetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    axis: AxisOption = None,
    slices: SlicesOption = None,
    no_gate: NoGateOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Do what the Slicer panel does, without Slicer: writes scene.mrb, segmentation.seg.nrrd and pictures of views."""
    from MedCLIPSAMLib.engines import check_choice
    from MedCLIPSAMLib.slicer_run import SCENE_FILE, SlicerRunSettings
    from MedCLIPSAMLib.slicer_run import slicer_run as run

    with reported(verbose):
        if output is None:
            raise InputError("there is no output folder; pass --output DIR.")
        check_choice(engine, preset, device)
        settings = SlicerRunSettings(
            engine=engine,
            preset=preset,
            device=device,
            seed=seed,
            gate=not no_gate,
            axis=parse_axis(axis),
            slice_range=parse_slices(slices),
        )
        given, prompts, _ = chosen_input(source, sample, prompt, "--input FILE")
        with progress_bar("slice") as progress:
            report = run(given, prompts, output, settings, progress=progress)
    for row in report["prompts"]:
        typer.echo(_line(row))
    for warning in dict.fromkeys(
        [*report["warnings"], *(text for row in report["prompts"] for text in row["warnings"])]
    ):
        typer.echo(f"Note: {warning}", err=True)
    typer.echo(f"Open in Slicer: {output / SCENE_FILE}")
    typer.echo(RESEARCH_NOTE)


def _line(row: dict[str, Any]) -> str:
    presence = "" if row["presence"] is None else f", presence {row['presence']:.2f}"
    return f"{row['prompt']}: {row['scope']}, {row['size']:.1f} {row['unit']}{presence}, {row['seconds']:.1f} s"
