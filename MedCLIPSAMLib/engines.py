"""Engines by name: which models, which recipe. Weights are verified before they are loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.pipeline import TextSegmenter
from MedCLIPSAMLib.presence import PresenceCalibration
from MedCLIPSAMLib.recipe import Recipe, load_recipe
from MedCLIPSAMLib.weights import verified


def engine_names() -> list[str]:
    """Return the names that :func:`load_engine` knows."""
    return sorted(_ENGINES)


def load_engine(name: str = "lite", preset: str | None = None, device: str = "auto") -> TextSegmenter:
    """Load an engine's models and recipe.

    Args:
        name: See :func:`engine_names`.
        preset: Settings for a task; None for the engine's own.
        device: "auto" (a CUDA GPU if there is one, else the CPU), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        InputError: Unknown engine, preset or device; the message names the known ones.
        MissingWeightsError, ChecksumError: A weight file is absent or not the registered one.
    """
    recipe = check_choice(name, preset, device)
    return _ENGINES[name](recipe, choose_device(device))


def check_choice(name: str, preset: str | None, device: str) -> Recipe:
    """Return the recipe of an engine and preset; loads nothing, so it can be asked before anything long begins.

    Whether the machine has the device is not asked here, see :func:`choose_device`.

    Raises:
        InputError: Unknown engine, preset or device; the message names the known ones.
    """
    if name not in _ENGINES:
        raise InputError(f"engine {name!r} is unknown; known: {', '.join(engine_names())}.")
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", device):
        raise InputError(f"device {device!r} is unknown; pass auto, cpu, cuda, cuda:1 or mps.")
    return load_recipe(name).with_preset(preset)


def choose_device(device: str) -> str:
    """Return the torch device for ``device``, resolving "auto".

    Raises:
        InputError: torch does not know it, or the machine does not have it.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch appends pages of advice; the first line says what is wrong
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {device!r} cannot be used ({reason}); pass auto, cpu, cuda or mps.") from error
    return device


def _lite(recipe: Recipe, device: str) -> TextSegmenter:
    return load_lite(recipe, device, verified("lite-alignment"))


def load_lite(recipe: Recipe, device: str, alignment: Path) -> TextSegmenter:
    """Load the lite engine with the alignment in ``alignment`` (safetensors)."""
    import torch

    from MedCLIPSAMLib.clip.lite import LiteClip, load_tower, read_card
    from MedCLIPSAMLib.clip.minilm import MiniLM
    from MedCLIPSAMLib.sam.lite_medsam import LiteMedSAM

    segmenter = LiteMedSAM(verified("lite-medsam"), torch.device(device))
    text = MiniLM(verified("minilm-l6-v2"), verified("minilm-l6-v2-tokenizer"))
    clip = LiteClip(segmenter.encoder, text, load_tower(alignment))
    fitted = read_card(alignment).get("presence")
    calibration = PresenceCalibration(**fitted) if fitted else None
    return TextSegmenter(clip, segmenter, recipe, calibration, device)


_ENGINES: dict[str, Callable[[Recipe, str], TextSegmenter]] = {"lite": _lite}
