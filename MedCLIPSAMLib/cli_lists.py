"""Commands that list what there is: samples, engines."""

from __future__ import annotations

import typer

from MedCLIPSAMLib.cli_options import reported
from MedCLIPSAMLib.cli_weights import add_weights


def add_lists(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (samples, engines):
        app.command()(command)
    add_weights(app)


def samples() -> None:
    """List the samples that come with the installation."""
    with reported(False):
        from MedCLIPSAMLib.samples import sample_names

        for name in sample_names():
            typer.echo(name)


def engines() -> None:
    """List the engines, their presets and the segmenters, with a sentence on each, and what they download."""
    with reported(False):
        from MedCLIPSAMLib.engines import engine_names, engine_weights, segmenter_names
        from MedCLIPSAMLib.recipe import load_recipe
        from MedCLIPSAMLib.sam.registry import SEGMENTER_WEIGHTS

        for name in engine_names():
            recipe = load_recipe(name)
            typer.echo(f"{name}  {recipe.about}".rstrip())
            typer.echo(f"    {_weights_text(engine_weights(name))}")
            presets = recipe.presets or {}
            width = max(map(len, presets), default=0)
            for preset, changes in presets.items():
                typer.echo(f"    --preset {preset:<{width}}  {changes.get('about', '')}".rstrip())
        typer.echo("finetuned:FOLDER  A CLIP that was fine-tuned by `finetune`, in the published one's place.")
        typer.echo("weak:FOLDER  The checkpoint ensemble of an nnU-Net that was trained by `weak-train`.")
        typer.echo("\nENGINE+SEGMENTER takes another segmenter than the engine's own, for example biomedclip+medsam:")
        for name in segmenter_names():
            typer.echo(f"    {name:<12}  {_weights_text(SEGMENTER_WEIGHTS[name])}")


def _weights_text(names: tuple[str, ...]) -> str:
    """Return in words what weights there are to be had, and how much of them is missing."""
    from MedCLIPSAMLib import weights
    from MedCLIPSAMLib.errors import MissingWeightsError

    registry, missing = weights.registry(), []
    for name in names:
        try:
            weights.locate(name)
        except MissingWeightsError:
            missing.append(name)
    licences = ", ".join(dict.fromkeys(registry[name].licence for name in names))
    if not missing:
        return f"installed; weights: {licences}"
    size = sum(registry[name].bytes or registry[name].about_bytes or 0 for name in missing)
    about = "" if all(registry[name].bytes for name in missing) else "about "
    size_text = f"{about}{size / 1e6:.0f} MB" if size else "size unknown"
    return f"to download: {size_text} ({', '.join(missing)}); weights: {licences}"
