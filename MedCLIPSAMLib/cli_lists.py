"""Commands that list what there is: samples, engines, prompt sets, weight files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedCLIPSAMLib.cli_options import reported
from MedCLIPSAMLib.errors import MedCLIPSAMError

weights_app = typer.Typer(
    no_args_is_help=True, help="The engines' weight files: which there are, and whether they are whole."
)


def add_lists(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (samples, engines, prompts):
        app.command()(command)
    weights_app.command("list")(weights_list)
    weights_app.command("verify")(weights_verify)
    app.add_typer(weights_app, name="weights")


def samples() -> None:
    """List the samples that come with the installation."""
    with reported(False):
        from MedCLIPSAMLib.samples import sample_names

        for name in sample_names():
            typer.echo(name)


def engines() -> None:
    """List the engines and their presets, with a sentence on each."""
    with reported(False):
        from MedCLIPSAMLib.engines import engine_names
        from MedCLIPSAMLib.recipe import load_recipe

        for name in engine_names():
            recipe = load_recipe(name)
            typer.echo(f"{name}  {recipe.about}".rstrip())
            for preset, changes in (recipe.presets or {}).items():
                typer.echo(f"    --preset {preset:<14}  {changes.get('about', '')}".rstrip())


def prompts() -> None:
    """List the prompt sets by task; --prompt set:NAME takes one."""
    with reported(False):
        from MedCLIPSAMLib.prompts import load_prompt_set, prompt_sets

        tasks: dict[str, list[str]] = {}
        for name in prompt_sets():
            tasks.setdefault(load_prompt_set(name).task or "other", []).append(name)
        for task, names in tasks.items():
            typer.echo(task)
            for name in names:
                typer.echo(f"    set:{name}")


def weights_list() -> None:
    """List the known weight files: size, licence, where they are."""
    with reported(False):
        from MedCLIPSAMLib import weights

        for name, weight in weights.registry().items():
            try:
                place = str(weights.locate(name))
            except MedCLIPSAMError:
                place = "not installed"
            size = f"{weight.bytes / 1e6:.1f} MB" if weight.bytes else "size unknown"
            typer.echo(f"{name}  ({size}, {weight.licence}; for {', '.join(weight.used_by)})\n    {place}")


def weights_verify(
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
