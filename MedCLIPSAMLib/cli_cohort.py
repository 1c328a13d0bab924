"""The command `segment-cohort`: a folder of inputs, a table of results and a page to leaf through."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    parse_axis,
    parse_changes,
    parse_slices,
    parse_window,
    progress_bar,
    reported,
)
from MedCLIPSAMLib.errors import CancelledError
from MedCLIPSAMLib.reporting import RESEARCH_NOTE


def segment_cohort(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Folder of images, volumes and DICOM studies, or a list .csv.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the cohort; one that is there goes on where it was.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to segment, or set:NAME, see `medclipsam prompts`; may be given several times."),
    ] = None,
    engine: EngineOption = "lite",
    preset: PresetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Processes, each with its own models; by default as cores and memory allow.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A running Dask scheduler, whose workers are taken instead.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many inputs, spread over the folder.")] = None,
    axis: AxisOption = None,
    slices: SlicesOption = None,
    window: Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="Intensities shown black and white.")] = None,
    overview: Annotated[bool, typer.Option("--overview", help="Also draw overview.png of every case.")] = False,
    no_gate: NoGateOption = False,
    changes: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Segment thousands of inputs on several processes; writes results, cohort.csv and a page to leaf through."""
    from MedCLIPSAMLib.cohort import run_cohort
    from MedCLIPSAMLib.cohort_rows import DONE, FAILED
    from MedCLIPSAMLib.cohort_sheet import SHEET_FILE

    with reported(verbose):
        try:
            with progress_bar("input") as progress:
                progress.stage("loading")

                def show(done: int, total: int) -> None:
                    progress.stage("segmenting")
                    progress(done, total)

                cohort = run_cohort(
                    source,
                    prompt or (),
                    output,
                    engine=engine,
                    preset=preset,
                    seed=seed,
                    device=device,
                    workers=workers,
                    scheduler=scheduler,
                    limit=limit,
                    axis=parse_axis(axis),
                    slice_range=parse_slices(slices),
                    window=parse_window(window),
                    overview=overview,
                    gate=not no_gate,
                    changes=parse_changes(changes),
                    progress=show,
                )
        except (KeyboardInterrupt, CancelledError) as error:
            typer.echo("Interrupted; what is done is kept. The same command goes on with the rest.", err=True)
            raise typer.Exit(130) from error
    states = [case.results[0].status for case in cohort.cases]
    failed = [case for case in cohort.cases if case.results[0].status == FAILED]
    pending = len(states) - states.count(DONE) - len(failed)
    typer.echo(f"{states.count(DONE)} done, {len(failed)} failed" + (f", {pending} not yet begun" if pending else ""))
    for case in failed[:5]:
        typer.echo(f"Failed: {case.name}: {case.results[0].reason}", err=True)
    if len(failed) > 5:
        typer.echo(f"... and {len(failed) - 5} more, see cohort.csv", err=True)
    typer.echo(f"Look at: {output / SHEET_FILE}")
    typer.echo(RESEARCH_NOTE)
    if failed and not states.count(DONE):
        raise typer.Exit(2)
