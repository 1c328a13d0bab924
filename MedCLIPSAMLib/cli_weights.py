"""`weights`: list, check, download and delete the models' weight files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from MedCLIPSAMLib.cli_options import reported
from MedCLIPSAMLib.errors import InputError, MissingWeightsError
from MedCLIPSAMLib.weight_entry import OWN_VARIABLE, Weight, size_text

weights_app = typer.Typer(
    no_args_is_help=True, help="The models' weight files: which there are, whether they are whole, and how to get them."
)
_UNPUBLISHED = "none published: that of the downloaded file is recorded and compared from then on"


def add_weights(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(weights_app, name="weights")


@weights_app.command("list")
def list_weights() -> None:
    """List the known weight files: size, licence, what needs them, the file's name, where it is."""
    with reported(False):
        from MedCLIPSAMLib import weights

        for name, weight in weights.registry().items():
            try:
                place = _found_text(weight, weights.locate(name))
            except MissingWeightsError:
                fetch = f"medclipsam weights fetch {name}" if weight.fetchable else None
                by_hand = f"{weight.by_hand} {weight.source}" if weight.by_hand else None
                place = "; ".join(filter(None, ("not installed", fetch or weight.install or by_hand)))
            typer.echo(f"{name}  ({weight.size_text}, {weight.licence}; for {', '.join(weight.used_by)})")
            typer.echo(f"    file {weight.file}\n    {place}")
        typer.echo(
            f"\nIn a folder named in {weights.OFFLINE_VARIABLE} (offline) or {weights.OWN_VARIABLE} (your own "
            'checkpoints) the files must have these names. "medclipsam weights verify" reads them; this does not.'
        )


def _found_text(weight: Weight, path: Path) -> str:
    """Return what can be said of a file without reading it."""
    from MedCLIPSAMLib.weight_places import is_own

    if is_own(weight, path):
        return f"your own file ({OWN_VARIABLE}): {path}"
    size = path.stat().st_size
    if weight.bytes is not None and size != weight.bytes:
        return f"wrong size, not used ({size} bytes and not {weight.bytes}): {path}; see medclipsam weights verify"
    return f"installed: {path}"


@weights_app.command()
def verify(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="Only this folder; else all places.")] = None,
) -> None:
    """Read every weight file and compare its SHA-256; exit status 2 if one is damaged."""
    with reported(False):
        from MedCLIPSAMLib import weights

        found = weights.verify(folder)
    for one in found:
        typer.echo(f"{one.status:<12}  {one.name}  {one.path or ''}".rstrip())
        if one.message:
            typer.echo(f"    {one.message}")
    if any(one.status in ("wrong size", "wrong hash") for one in found):
        raise typer.Exit(2)


@weights_app.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="See `medclipsam weights list`.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="All that this engine lacks; see `medclipsam engines`.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; for scripts.")] = False,
) -> None:
    """Download weight files into your data folder and check them; what broke off goes on where it was."""
    with reported(False):
        from MedCLIPSAMLib import weights
        from MedCLIPSAMLib.download import check_fetchable

        if not names and engine is None:
            raise InputError("there is nothing to fetch; pass names of weights, or --engine NAME.")
        lacking = [] if engine is None else _lacking(engine)
        wanted = [check_fetchable(name) for name in dict.fromkeys([*(names or ()), *lacking])]
        if not wanted:
            typer.echo(f"{engine} has all its weights.")
            return
        for weight in wanted:
            _describe(weight)
        if not yes:
            typer.confirm(f"Download to {weights.user_folder()}?", abort=True, err=True)
        for weight in wanted:
            _fetch(weight)


@weights_app.command()
def remove(name: Annotated[str, typer.Argument(help="See `medclipsam weights list`.")]) -> None:
    """Delete a weight file, or what a broken download left of it, from your data folder; other places are left alone.

    For a file of which no SHA-256 is published the recorded one is forgotten too.
    """
    with reported(False):
        from MedCLIPSAMLib import weights

        typer.echo(f"Deleted: {weights.remove(name)}")


def _lacking(engine: str) -> list[str]:
    """Return the names of the weights that an engine needs and that are not there."""
    from MedCLIPSAMLib import weights
    from MedCLIPSAMLib.engines import check_choice, engine_weights

    check_choice(engine, None, "auto")
    missing = []
    for name in engine_weights(engine):
        try:
            weights.locate(name)
        except MissingWeightsError:
            missing.append(name)
    return missing


def _describe(weight: Weight) -> None:
    from MedCLIPSAMLib.download import address

    rows = {
        "from": address(weight),
        "size": f"{weight.bytes} bytes ({size_text(weight.bytes)})" if weight.bytes else weight.size_text,
        "SHA-256": weight.sha256 or _UNPUBLISHED,
        "licence": weight.licence,
        "citation": weight.citation,
    }
    lines = [weight.name, *(f"  {key:<9} {value}" for key, value in rows.items())]
    typer.echo("\n".join(lines), err=True)


def _fetch(weight: Weight) -> None:
    from tqdm import tqdm

    from MedCLIPSAMLib.download import fetch as download

    settings = {"unit": "B", "unit_scale": True, "disable": None, "leave": False, "file": sys.stderr}
    with tqdm(desc=weight.name, total=weight.bytes, **settings) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            path = download(weight.name, progress=show)
        except KeyboardInterrupt:
            bar.close()
            typer.echo("Interrupted; what has come is kept, and the same command goes on with it.", err=True)
            raise typer.Exit(130) from None
    typer.echo(f"{weight.name}: {path}")
