"""The command `ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedCLIPSAMLib.cli_options import DeviceOption, SeedOption, VerboseOption, progress_bar, reported
from MedCLIPSAMLib.errors import InputError


def ablate(
    data_dir: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder with images/ and masks/, or SPLIT/images and SPLIT/masks.")
    ],
    task: Annotated[str, typer.Option(help="breast-ultrasound, brain-mri, chest-xray or chest-ct.")],
    output: Annotated[Path, typer.Option(help="Folder for the tables; what was measured is kept there.")],
    table: Annotated[list[str] | None, typer.Option(help="1, 3, 4, 5, 6 or all (default); repeatable.")] = None,
    split: Annotated[str | None, typer.Option(help="test, val, ...; none for a folder without splits.")] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="See `medclipsam engines`; repeatable; default: lite and biomedclip.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="For all tables but 3; default: the task's class name.")] = None,
    weak: Annotated[Path | None, typer.Option(metavar="MODEL", help="Of weak-train, for tables 1 and 4.")] = None,
    supervised: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Of weak-train --masks, for table 1.")
    ] = None,
    report: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A row of table 1 from another report of evaluate; repeatable."),
    ] = None,
    few_shot: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="The same, of a method that saw some true masks.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many images, spread over the folder.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    verbose: VerboseOption = False,
) -> None:
    """Make the paper's tables on your data, in one Markdown and one CSV file; the same command again goes on."""
    with reported(verbose):
        from MedCLIPSAMLib import ablation

        tables = list(dict.fromkeys(table or ["all"]))
        models = ablation.Models(
            engines=tuple(dict.fromkeys(engine or ablation.DEFAULT_ENGINES)),
            weak=weak,
            supervised=supervised,
            reports=_named_files("--report", report),
            few_shot=_named_files("--few-shot", few_shot),
        )
        try:
            with progress_bar("image") as progress:
                file = ablation.ablate(
                    data_dir,
                    task,
                    output,
                    tables=tuple(ablation.TABLES) if "all" in tables else tables,
                    split=split,
                    models=models,
                    prompt=prompt,
                    seed=seed,
                    limit=limit,
                    device=device,
                    progress=progress,
                )
        except KeyboardInterrupt as error:
            typer.echo(f"Interrupted; what was measured is kept in {output}. The same command goes on.", err=True)
            raise typer.Exit(130) from error
    typer.echo(file.read_text(encoding="utf-8"))
    typer.echo(f"Tables: {file} and {file.with_suffix('.csv').name}")


def _named_files(option: str, texts: list[str] | None) -> dict[str, Path]:
    """Return the files of NAME=FILE by name.

    Raises:
        InputError: Another text, or a name given twice.
    """
    found: dict[str, Path] = {}
    for text in texts or ():
        name, equals, path = text.partition("=")
        if not equals or not name.strip() or not path or name.strip() in found:
            raise InputError(f"{option} {text!r}: pass NAME=FILE, each name once.")
        found[name.strip()] = Path(path)
    return found
