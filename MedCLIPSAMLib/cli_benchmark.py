"""The command `benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedCLIPSAMLib.cli_options import DeviceOption, EngineOption, PresetOption, VerboseOption, progress_bar, reported
from MedCLIPSAMLib.errors import InputError

_PROMPTS = ("brain tumor", "a bright mass with a dark centre")
_SAMPLE = "breast-ultrasound"  # made by this program itself, so it needs no further package


def benchmark(
    source: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="A 2D image; without one, a simulated ultrasound image.")
    ] = None,
    engine: EngineOption = "lite",
    preset: PresetOption = None,
    device: DeviceOption = "auto",
    repeats: Annotated[int, typer.Option(help="Runs that count, after one that warms up.")] = 3,
    verbose: VerboseOption = False,
) -> None:
    """Time every stage, count its operations, and compare with what the machine can do."""
    with reported(verbose):
        from MedCLIPSAMLib.benchmark import benchmark as measure
        from MedCLIPSAMLib.benchmark import benchmark_table
        from MedCLIPSAMLib.engines import check_choice, load_engine
        from MedCLIPSAMLib.file_io import read_image
        from MedCLIPSAMLib.images import check_image, to_uint8
        from MedCLIPSAMLib.samples import load_sample
        from MedCLIPSAMLib.weak_recipe import WEAK

        if engine.startswith(WEAK):
            raise InputError(f"{engine} has no stages to time; it is one network. Choose a CLIP[+SEGMENTER].")
        check_choice(engine, preset, device)
        if repeats < 1:
            raise InputError(f"--repeats {repeats}: it must be 1 or more.")
        image = load_sample(_SAMPLE).image if source is None else read_image(source)
        if image.is_volume:
            raise InputError(f"{image.path.name} is a volume; the benchmark takes a 2D image.")
        shown = to_uint8(check_image(image.array, image.path.name), image.window)
        with progress_bar("run") as progress:
            found = measure(load_engine(engine, preset, device), shown, _PROMPTS, repeats=repeats, progress=progress)
    typer.echo(benchmark_table(found, engine if preset is None else f"{engine}, preset {preset}"))
