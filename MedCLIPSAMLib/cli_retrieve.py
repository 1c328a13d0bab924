"""The command `retrieve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedCLIPSAMLib.cli_options import DeviceOption, SeedOption, VerboseOption, progress_bar, reported


def retrieve(
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="CSV, TSV or JSONL with the columns file, caption.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; vectors are kept there for the next time.")],
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="lite (default), biomedclip, clip-vit-b-16, pmc-clip or finetuned:FOLDER; several are compared."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="How many candidates there are to choose from.")] = 50,
    runs: Annotated[int, typer.Option(help="How often the pairs are shuffled into batches.")] = 5,
    split: Annotated[str | None, typer.Option(help="Only the rows with this value in the column split.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the images; without it, that of PAIRS.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    verbose: VerboseOption = False,
) -> None:
    """Find captions for images and images for captions: top-1 and top-2 of one or several CLIPs, with paired tests."""
    with reported(verbose):
        from MedCLIPSAMLib import retrieval

        found = retrieval.read_pairs(pairs, root=root, split=split)
        with progress_bar("image") as progress:
            retrieval.run(
                found,
                engine or ["lite"],
                output,
                batch=batch,
                runs=runs,
                seed=seed,
                device=device,
                progress=progress,
            )
        text = (output / retrieval.TABLE_FILE).read_text(encoding="utf-8")
    typer.echo(text)
    typer.echo(f"Results: {output}")
