"""Engines by name: which CLIP, which segmenter, which recipe. Weights are verified before they are loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedCLIPSAMLib.clip.registry import CLIP_WEIGHTS, find_checkpoint, finetuned_weights, load_clip, load_finetuned
from MedCLIPSAMLib.errors import DeviceMemoryError, InputError, MedCLIPSAMError
from MedCLIPSAMLib.memory import free_device_memory, is_out_of_memory
from MedCLIPSAMLib.model_checks import FINE_TUNED, check_models
from MedCLIPSAMLib.pipeline import TextSegmenter
from MedCLIPSAMLib.presence import PresenceCalibration
from MedCLIPSAMLib.recipe import LITE_ALIGNMENT, Recipe, load_recipe, split_engine
from MedCLIPSAMLib.sam.registry import SEGMENTER_WEIGHTS, load_segmenter
from MedCLIPSAMLib.weak_recipe import WEAK, WeakRecipe, load_weak_recipe
from MedCLIPSAMLib.weights import Resolved, resolve

if TYPE_CHECKING:
    from MedCLIPSAMLib.clip.lite import LiteClip
    from MedCLIPSAMLib.engine_interface import Engine
    from MedCLIPSAMLib.sam.base import PromptableSegmenter

_CLIPS = ("lite", "biomedclip", "clip-vit-b-16")  # PMC-CLIP has no token-based tower: it serves retrieval alone
_LITE_WEIGHTS = ("lite-medsam", "minilm-l6-v2", "minilm-l6-v2-tokenizer")
_FINETUNED = "finetuned:"


def engine_names() -> list[str]:
    """Return the CLIPs that :func:`load_engine` knows by name; own models are named by their folder."""
    return list(_CLIPS)


def segmenter_names() -> list[str]:
    """Return the segmenters that :func:`load_engine` knows."""
    return list(SEGMENTER_WEIGHTS)


def load_engine(
    name: str = "lite", preset: str | None = None, device: str = "auto", changes: Mapping[str, Any] | None = None
) -> Engine:
    """Load an engine's models and recipe.

    Args:
        name: CLIP or CLIP+SEGMENTER, for example "lite", "biomedclip", "biomedclip+medsam" or
            "finetuned:/home/me/model+sam-vit-b"; see :func:`engine_names` and :func:`segmenter_names`. Without a
            segmenter the recipe's own is taken. "weak:/home/me/model" is a trained nnU-Net, which needs neither.
        preset: Settings for a task; None for the engine's own.
        device: "auto" (a CUDA GPU if there is one, else the CPU), "cpu", "cuda", "cuda:1", "mps".
        changes: Settings to replace, for example {"visual_prompt": "points"}; see :meth:`Recipe.with_settings`.

    Raises:
        InputError: Unknown engine, preset, device or setting, or a model that cannot do what the recipe wants of it.
        MissingWeightsError, ChecksumError: Weight files are absent (the message lists all), or not the registered ones.
        DeviceMemoryError: There is no room for the models.
    """
    recipe = check_choice(name, preset, device).with_settings(changes or {})
    free_device_memory()  # an engine that was let go of is in cycles with its memory guards
    try:
        return _load(name, recipe, device)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MedCLIPSAMError) or not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"there is not enough memory on {device} to load {name}; close other programs, choose a smaller segmenter, "
            "or pass --device cpu."
        ) from error


def _load(name: str, recipe: Recipe | WeakRecipe, device: str) -> Engine:
    if isinstance(recipe, WeakRecipe):
        from MedCLIPSAMLib.weak_engine import EnsembleSegmenter

        return EnsembleSegmenter(recipe, choose_device(device))
    files = resolve(engine_weights(name))
    clip_name, _ = split_engine(name)
    used = (*files.values(), *_own_checkpoint(clip_name))
    device = choose_device(device)
    segmenter = load_segmenter(recipe.segmenter, paths(files.values()), device, choose_precision(device))
    if _is_lite(clip_name):
        alignment = files["lite-alignment"].path if clip_name == "lite" else _folder(clip_name) / LITE_ALIGNMENT
        return _join_lite(recipe, device, alignment, segmenter, used)
    if clip_name.startswith(_FINETUNED):
        clip = load_finetuned(_folder(clip_name), paths(files.values()), device, choose_precision(device))
    else:
        clip = load_clip(clip_name, paths(files.values()), device, choose_precision(device))
    check_models(recipe, clip, segmenter)
    return TextSegmenter(clip, segmenter, recipe, None, device, used, choose_precision(device))


def check_choice(name: str, preset: str | None, device: str) -> Recipe | WeakRecipe:
    """Return the recipe of an engine and preset; loads nothing, so it can be asked before anything long begins.

    Whether the machine has the device is not asked here, see :func:`choose_device`.

    Raises:
        InputError: Unknown engine, preset or device; the message names the known ones.
    """
    clip, segmenter = split_engine(name)
    if name.startswith(WEAK):
        _check_device(device)
        return load_weak_recipe(name).with_preset(preset)
    if clip.startswith(_FINETUNED):
        if clip == _FINETUNED or not _folder(clip).exists():
            where = f"{_folder(clip)} does not exist" if clip != _FINETUNED else "no folder is named"
            raise InputError(f"{where}; pass finetuned:FOLDER with the folder of a fine-tuned CLIP.")
        if not _is_lite(clip):
            find_checkpoint(_folder(clip))
    elif clip in CLIP_WEIGHTS and clip not in _CLIPS:
        raise InputError(f"{clip} has no token-based image tower: it serves `medclipsam retrieve`, not segmentation.")
    elif clip not in _CLIPS:
        known = ", ".join([*_CLIPS, "finetuned:FOLDER"])
        raise InputError(
            f"engine {name!r} is unknown; known: {known}, each also as ENGINE+SEGMENTER, and {WEAK}FOLDER."
        )
    if segmenter is not None and segmenter not in SEGMENTER_WEIGHTS:
        raise InputError(f"segmenter {segmenter!r} is unknown; known: {', '.join(SEGMENTER_WEIGHTS)}.")
    _check_device(device)
    return load_recipe(name).with_preset(preset)


def _check_device(device: str) -> None:
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", device):
        raise InputError(f"device {device!r} is unknown; pass auto, cpu, cuda, cuda:1 or mps.")


def engine_weights(name: str) -> tuple[str, ...]:
    """Return the names in the registry of all weight files that an engine needs; ``name`` has been checked.

    A trained nnU-Net needs none: it brings its own.
    """
    if name.startswith(WEAK):
        return ()
    clip, _ = split_engine(name)
    if _is_lite(clip):
        own = (*_LITE_WEIGHTS, *(("lite-alignment",) if clip == "lite" else ()))
    elif clip.startswith(_FINETUNED):
        own = finetuned_weights(_folder(clip))
    else:
        own = CLIP_WEIGHTS[clip]
    return tuple(dict.fromkeys([*own, *SEGMENTER_WEIGHTS[load_recipe(name).segmenter]]))


def choose_device(device: str) -> str:
    """Return the torch device for ``device``, resolving "auto".

    Raises:
        InputError: torch does not know it, or the machine does not have it.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch appends pages of advice; the first line says what is wrong
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {device!r} cannot be used ({reason}); pass auto, cpu, cuda or mps.") from error
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # torch answers questions about a GPU for the current one
    return device


def choose_precision(device: str) -> str:
    """Return the number format of the large models on a device: half of float32 where the hardware is made for it."""
    import torch

    if not device.startswith("cuda"):
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def load_lite(recipe: Recipe, device: str, alignment: Path) -> TextSegmenter:
    """Load the lite engine with the alignment in ``alignment`` (safetensors)."""
    files = resolve(_LITE_WEIGHTS)
    segmenter = load_segmenter("lite-medsam", paths(files.values()), device, "float32")
    return _join_lite(recipe, device, alignment, segmenter, tuple(files.values()))


def paths(weights: Iterable[Resolved]) -> dict[str, Path]:
    """Return where each weight file lies, by name."""
    return {one.name: one.path for one in weights}


def _join_lite(
    recipe: Recipe, device: str, alignment: Path, segmenter: PromptableSegmenter, weights: tuple[Resolved, ...]
) -> TextSegmenter:
    """Return the lite engine; an image is encoded once for both of its parts where the segmenter is LiteMedSAM."""
    from MedCLIPSAMLib.clip.lite import LiteClip, load_tower, read_card
    from MedCLIPSAMLib.clip.minilm import MiniLM
    from MedCLIPSAMLib.sam.lite_medsam import LiteMedSAM

    files = paths(weights)
    owner = segmenter if isinstance(segmenter, LiteMedSAM) else LiteMedSAM(files["lite-medsam"], device)
    text = MiniLM(files["minilm-l6-v2"], files["minilm-l6-v2-tokenizer"])
    clip: LiteClip = LiteClip(owner.encoder, text, load_tower(alignment))
    fitted = read_card(alignment).get("presence")
    calibration = PresenceCalibration(**fitted) if fitted else None
    check_models(recipe, clip, segmenter)
    precision = "float32" if segmenter is owner else choose_precision(device)
    return TextSegmenter(clip, segmenter, recipe, calibration, device, weights, precision)


def _own_checkpoint(clip: str) -> tuple[Resolved, ...]:
    """Return the checkpoint of a fine-tuned CLIP, so that a result can say which one it was."""
    if not clip.startswith(_FINETUNED):
        return ()
    path = _folder(clip) / LITE_ALIGNMENT if _is_lite(clip) else find_checkpoint(_folder(clip))
    with path.open("rb") as stream:
        return (Resolved(FINE_TUNED, path, hashlib.file_digest(stream, "sha256").hexdigest(), "unverified"),)


def _folder(clip: str) -> Path:
    return Path(clip.removeprefix(_FINETUNED)).expanduser()


def _is_lite(clip: str) -> bool:
    return clip == "lite" or (clip.startswith(_FINETUNED) and (_folder(clip) / LITE_ALIGNMENT).is_file())
