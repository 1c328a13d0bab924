"""What the commands share: options, texts into values, errors into one line, a progress bar."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MedCLIPSAMLib.errors import CancelledError, InputError, MedCLIPSAMError

if TYPE_CHECKING:
    from tqdm import tqdm

    from MedCLIPSAMLib.medical_image import MedicalImage
    from MedCLIPSAMLib.samples import Sample

EngineOption = Annotated[str, typer.Option(help="Which CLIP, which SAM; see `medclipsam engines`.")]
PresetOption = Annotated[str | None, typer.Option(help="Settings for a task; see `medclipsam engines`.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Replace a setting of the engine, such as visual_prompt=points; repeatable."
    ),
]
SeedOption = Annotated[int, typer.Option(help="0 or more; the same seed gives the same result.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
NoGateOption = Annotated[bool, typer.Option("--no-gate", help="Segment also where the target seems to be absent.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show log messages, and the traceback of errors.")]
AxisOption = Annotated[str | None, typer.Option(help="Volumes: axial, coronal, sagittal, or array axis 0, 1, 2.")]
SlicesOption = Annotated[str | None, typer.Option(metavar="FIRST:LAST", help="Volumes: only these; the first is 0.")]


@contextmanager
def reported(verbose: bool) -> Iterator[None]:
    """Turn the library's errors into one line on stderr and an exit status."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr
    )
    try:
        yield
    except (KeyboardInterrupt, CancelledError) as error:
        typer.echo("Interrupted; nothing was written.", err=True)
        raise typer.Exit(130) from error
    except MedCLIPSAMError as error:
        if verbose:
            logging.getLogger(__name__).exception("The run failed.")
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error


class ProgressBar:
    """A bar on stderr, where that is a terminal: call it with (done, in all)."""

    def __init__(self, bar: tqdm):
        """Show progress in ``bar``."""
        self._bar = bar

    def __call__(self, done: int, total: int) -> None:
        """Show how much is done."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def stage(self, name: str) -> None:
        """Show what is being done."""
        self._bar.set_description(name)


@contextmanager
def progress_bar(unit: str) -> Iterator[ProgressBar]:
    """Yield a bar that is taken away at the end."""
    from tqdm import tqdm

    with tqdm(unit=unit, file=sys.stderr, disable=None, leave=False) as bar:
        yield ProgressBar(bar)


def parse_axis(text: str | None) -> int | str | None:
    """Return "axial", "coronal", "sagittal" or an array axis from the option's text; others are checked later."""
    return int(text) if text is not None and text in ("0", "1", "2") else text


def parse_slices(text: str | None) -> tuple[int, int] | None:
    """Return (first, last) from "FIRST:LAST".

    Raises:
        InputError: Another text.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    if not match:
        raise InputError(f"--slices {text!r}: pass FIRST:LAST, for example 40:80; counted from 0, both included.")
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise InputError(f"--slices {text}: the first lies after the last; did you mean {last}:{first}?")
    return first, last


def parse_changes(texts: list[str] | None) -> dict[str, str]:
    """Return the settings of ``--set NAME=VALUE`` by name.

    Raises:
        InputError: Another text.
    """
    changes = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set {text!r}: pass NAME=VALUE, for example --set visual_prompt=points.")
        changes[name.strip()] = value.strip()
    return changes


def parse_window(text: str | None) -> tuple[float, float] | None:
    """Return (lower, upper) from "LOW,HIGH".

    Raises:
        InputError: Another text, or numbers that are not finite.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"--window {text!r}: pass LOW,HIGH, for example --window=-1000,400.")
    return low, high


def chosen_input(
    source: Path | None, sample: str | None, prompts: list[str] | None, pass_input: str
) -> tuple[Path | MedicalImage, list[str], Sample | None]:
    """Return what is to be segmented, with what prompts, and the sample if it is one.

    Args:
        source: A file or folder, or None.
        sample: The name of a sample, whose own prompt is taken where none is given; or None.
        prompts: As given.
        pass_input: How the command takes a file, for the message.

    Raises:
        InputError: Both or neither are given, or there is no such sample.
    """
    if (source is None) == (sample is None):
        raise InputError(f"pass either {pass_input}, or --sample NAME.")
    if source is not None:
        return source, list(prompts or ()), None
    from MedCLIPSAMLib.samples import load_sample

    loaded = load_sample(sample)
    return loaded.image, list(prompts or [loaded.prompt]), loaded
