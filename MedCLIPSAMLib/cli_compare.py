"""The commands `compare` and `figure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedCLIPSAMLib.cli_options import (
    DeviceOption,
    PresetOption,
    SeedOption,
    VerboseOption,
    progress_bar,
    reported,
)
from MedCLIPSAMLib.errors import InputError

SplitOption = Annotated[str | None, typer.Option(help="test, val, ...; none for a folder without splits.")]
ResultPromptOption = Annotated[
    str | None, typer.Option(help="What to segment; for a folder with several prompts, whose results to take.")
]


def compare(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]REPORT ...", help="Reports of `evaluate`, or folders of predictions (--data)."),
    ],
    output: Annotated[Path, typer.Option(help="Folder for comparison.md, comparison.csv and reliability.png.")],
    data: Annotated[
        Path | None, typer.Option(help="Images and reference masks, for sources that are folders of predictions.")
    ] = None,
    split: SplitOption = None,
    prompt: ResultPromptOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Compare evaluations of the same images: paired t and Wilcoxon tests for every measure and data set."""
    from MedCLIPSAMLib.cases import find_cases
    from MedCLIPSAMLib.comparison_output import write_comparison
    from MedCLIPSAMLib.comparison_sources import read_reports
    from MedCLIPSAMLib.file_output import check_output_folder

    with reported(verbose):
        if len(sources) < 2:
            raise InputError(f"{len(sources)} evaluation given; a comparison needs at least two.")
        cases = None if data is None else find_cases(data, split)
        check_output_folder(output)
        with progress_bar("image") as progress:
            reports = read_reports(sources, cases, prompt, progress)
        files = write_comparison(reports, output)
        text = files[0].read_text(encoding="utf-8")
    typer.echo(text)
    typer.echo(f"Results: {', '.join(str(file) for file in files)}")


def figure(
    data_dir: Annotated[Path, typer.Argument(help="Folder with images/ and masks/, or SPLIT/images and SPLIT/masks.")],
    show: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]SOURCE",
            help="A column: a folder of predictions, a report of `evaluate --keep`, or an engine; repeatable.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The picture to write, PNG.")],
    split: SplitOption = None,
    prompt: ResultPromptOption = None,
    case: Annotated[list[str] | None, typer.Option(help="File name of an image to show; repeatable.")] = None,
    rows: Annotated[int, typer.Option(help="How many images, spread over those with a target.")] = 4,
    preset: PresetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    verbose: VerboseOption = False,
) -> None:
    """Draw segmentations of the same images side by side: image, coarse mask, every source, reference, entropy."""
    from MedCLIPSAMLib.cases import find_cases
    from MedCLIPSAMLib.comparison_figure import write_comparison_figure
    from MedCLIPSAMLib.comparison_sources import figure_rows, shown_cases
    from MedCLIPSAMLib.file_output import check_output_folder

    with reported(verbose):
        chosen = shown_cases(find_cases(data_dir, split), case or (), rows)
        check_output_folder(output.parent)
        settings = {"preset": preset, "seed": seed, "device": device}
        with progress_bar("source") as progress:
            drawn = figure_rows(show, chosen, prompt, settings, progress)
        write_comparison_figure(output, drawn, title=prompt or "")
    typer.echo(f"Look at: {output}")
