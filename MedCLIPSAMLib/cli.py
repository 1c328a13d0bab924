"""The command line: reads the options, reports progress and errors, and leaves the work to the library."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from MedCLIPSAMLib.cli_ablate import ablate
from MedCLIPSAMLib.cli_benchmark import benchmark
from MedCLIPSAMLib.cli_cohort import segment_cohort
from MedCLIPSAMLib.cli_compare import compare, figure
from MedCLIPSAMLib.cli_lists import add_lists
from MedCLIPSAMLib.cli_options import (
    AxisOption,
    DeviceOption,
    EngineOption,
    NoGateOption,
    PresetOption,
    SeedOption,
    SetOption,
    SlicesOption,
    VerboseOption,
    chosen_input,
    parse_axis,
    parse_changes,
    parse_slices,
    parse_window,
    progress_bar,
    reported,
)
from MedCLIPSAMLib.cli_prompts import prompts_app
from MedCLIPSAMLib.cli_retrieve import retrieve
from MedCLIPSAMLib.cli_slicer import slicer_run
from MedCLIPSAMLib.cli_training import add_training
from MedCLIPSAMLib.cli_weak import weak_predict
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.reporting import RESEARCH_NOTE, VERSION, summary_table

# The library's errors are messages for the user; a traceback would print the values of local variables.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"MedCLIPSAM: medical image segmentation from a text prompt. {RESEARCH_NOTE}",
)


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 2 an error that the message explains, 130 interrupted, 143 terminated."""
    signal.signal(signal.SIGTERM, _terminate)  # so that `timeout` and batch systems leave nothing half-written either
    app(prog_name="medclipsam")
    raise SystemExit(0)


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(143)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"medclipsam {VERSION}")
        raise typer.Exit()


@app.command()
def segment(
    source: Annotated[
        Path | None, typer.Argument(metavar="IMAGE_OR_VOLUME", help="PNG, JPEG, TIFF, DICOM, NRRD, NIfTI or MetaImage.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to segment, or set:NAME, see `medclipsam prompts`; may be given several times."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    sample: Annotated[str | None, typer.Option(help="A sample instead of a file; see `medclipsam samples`.")] = None,
    engine: EngineOption = "lite",
    preset: PresetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    axis: AxisOption = None,
    slices: SlicesOption = None,
    window: Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="Intensities shown black and white.")] = None,
    no_gate: NoGateOption = False,
    changes: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Segment one image or volume from a text prompt; writes masks, maps, an overview and result.json into a folder."""
    from MedCLIPSAMLib import segment_job
    from MedCLIPSAMLib.segment_request import make_request

    with reported(verbose):
        if output is None:
            raise InputError("there is no output folder; pass --output DIR.")
        given, prompts, loaded = chosen_input(source, sample, prompt, "an image or volume")
        request = make_request(
            given,
            prompts,
            output,
            axis=parse_axis(axis),
            slice_range=parse_slices(slices),
            window=parse_window(window),
            engine=engine,
            preset=preset,
            device=device,
            seed=seed,
            gate=not no_gate,
            changes=parse_changes(changes),
            truth=loaded.truth if loaded else None,
            notice=loaded.notice if loaded else None,
        )
        with progress_bar("slice" if request.image.is_volume else "prompt") as progress:
            progress.stage("loading")
            reports = segment_job.run(request, progress=progress, stage=progress.stage)
    typer.echo(summary_table(reports))
    if loaded:
        typer.echo(f"Note: {loaded.notice.split(chr(10))[0]} (the whole notice is in result.json)", err=True)
    for warning in dict.fromkeys(text for report in reports for text in report["warnings"]):
        typer.echo(f"Note: {warning}", err=True)
    typer.echo(f"Look at: {request.output / segment_job.OVERVIEW_FILE}")
    typer.echo(RESEARCH_NOTE)


@app.command()
def evaluate(
    data_dir: Annotated[Path, typer.Argument(help="Folder with images/ and masks/, or SPLIT/images and SPLIT/masks.")],
    output: Annotated[Path, typer.Option(help="The report to write, JSON.")],
    prompt: Annotated[str | None, typer.Option(help="What to segment.")] = None,
    split: Annotated[str | None, typer.Option(help="test, val, ...; none for a folder without splits.")] = None,
    engine: EngineOption = "lite",
    preset: PresetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    limit: Annotated[int | None, typer.Option(help="At most this many images, spread over the folder.")] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Judge the masks of this folder, by any program; none is made and no engine is loaded."),
    ] = None,
    label: Annotated[
        int | None, typer.Option(help="With --predictions: the target's value in masks of several classes.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for every image's mask, probability and entropy.")] = None,
    diagram: Annotated[Path | None, typer.Option(help="Also draw a reliability diagram, PNG.")] = None,
    no_gate: NoGateOption = False,
    changes: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Segment a folder of images and compare with the reference masks: DSC, NSD, presence, uncertainty, calibration."""
    from MedCLIPSAMLib import evaluation_job
    from MedCLIPSAMLib.evaluation_report import report_table

    with reported(verbose):
        request = evaluation_job.EvaluationRequest(
            data_dir,
            output,
            prompt,
            split=split,
            engine=engine,
            preset=preset,
            seed=seed,
            device=device,
            limit=limit,
            changes={**parse_changes(changes), **({"gate": False} if no_gate else {})},
            predictions=predictions,
            label=label,
            keep=keep,
            diagram=diagram,
        )
        with progress_bar("image") as progress:
            report = evaluation_job.run(request, progress)
    typer.echo(report_table(report))
    typer.echo(f"Report: {output}")


app.command()(compare)
app.command()(figure)
app.command()(ablate)
app.command("segment-cohort")(segment_cohort)
app.command("weak-predict")(weak_predict)
app.command()(benchmark)
app.command()(retrieve)
app.command("slicer-run")(slicer_run)
app.add_typer(prompts_app, name="prompts")
add_training(app)
add_lists(app)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def test() -> None:
    """The tests are run by the script at the root of a checkout."""
    typer.echo("The tests are run from a checkout: ./medclipsam test", err=True)
    raise typer.Exit(2)
