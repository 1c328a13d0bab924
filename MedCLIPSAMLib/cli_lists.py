"""Commands that list what there is: samples, engines, prompt sets."""

from __future__ import annotations

import typer

from MedCLIPSAMLib.cli_options import reported
from MedCLIPSAMLib.cli_weights import add_weights


def add_lists(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (samples, engines, prompts):
        app.command()(command)
    add_weights(app)


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
