"""The vision-language models by name, the weight files that each needs, and their loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from MedCLIPSAMLib.clip.base import VisionLanguageModel
from MedCLIPSAMLib.clip.tensor_names import tensor_names
from MedCLIPSAMLib.errors import InputError

TOKENIZER = "biomedclip-tokenizer"
CLIP_WEIGHTS: dict[str, tuple[str, ...]] = {
    "biomedclip": ("biomedclip", TOKENIZER),
    "clip-vit-b-16": ("clip-vit-b-16",),
    "pmc-clip": ("pmc-clip-image", "pmc-clip-text", "pmc-clip-projection", TOKENIZER),
}
"""The names in ``weights.registry()`` of the files that each model is made of."""
FINETUNED_NAMES = (
    "pytorch_model.bin",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_model.safetensors",
)
"""Of a fine-tuned CLIP's checkpoint in a folder, the first that is there."""
_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".safetensors")


def load_clip(name: str, files: Mapping[str, Path], device: str, precision: str) -> VisionLanguageModel:
    """Load a model from files alone; nothing is asked of the network.

    Args:
        name: One of ``CLIP_WEIGHTS``.
        files: Where its files lie, by the names of ``CLIP_WEIGHTS``; verified by the caller.
        device: torch's name of it.
        precision: Of the image tower: "float32", "bfloat16" or "float16".

    Raises:
        InputError: Unknown name or precision, a file is not what its name says, or a package is not installed.
    """
    if name not in _LOADERS:
        raise InputError(f"CLIP model {name!r} is unknown; known: {', '.join(_LOADERS)}.")
    return _LOADERS[name](files, device, precision)


def load_finetuned(folder: Path, files: Mapping[str, Path], device: str, precision: str) -> VisionLanguageModel:
    """Load a fine-tuned BiomedCLIP in one of three layouts, or a fine-tuned CLIP ViT-B/16, told by its weights' names.

    Args:
        folder: Holds the checkpoint, or is the checkpoint; BiomedCLIP's own tokenizer.json or vocab.txt is used where
            there is one.
        files: Those of :func:`finetuned_weights`, as for :func:`load_clip`.
        device, precision: As for :func:`load_clip`.

    Raises:
        InputError: There is no checkpoint, there are several, or it is of neither model.
    """
    weights = find_checkpoint(folder)
    if finetuned_kind(folder) == "clip-vit-b-16":
        from MedCLIPSAMLib.clip.openai_clip import NAME, load_openai_clip

        return load_openai_clip(weights, device, precision, f"{NAME} fine-tuned ({weights.parent.name})")
    from MedCLIPSAMLib.clip.biomedclip import load_biomedclip

    own = own_tokenizer(weights)
    tokenizer = own if own else files[TOKENIZER]
    return load_biomedclip(weights, tokenizer, device, precision, f"BiomedCLIP fine-tuned ({weights.parent.name})")


def finetuned_kind(folder: Path) -> str:
    """Return which of ``CLIP_WEIGHTS`` a fine-tuned CLIP was made of, by its weights' names; quick, without torch.

    Args:
        folder: As for :func:`load_finetuned`.

    Returns:
        "clip-vit-b-16" or "biomedclip"; the latter also where nothing can be told, for its loader says what is wrong.
    """
    try:
        names = tensor_names(find_checkpoint(folder))
    except InputError:
        return "biomedclip"
    return "clip-vit-b-16" if any(name.endswith("visual.class_embedding") for name in names) else "biomedclip"


def finetuned_weights(folder: Path) -> tuple[str, ...]:
    """Return the names in ``weights.registry()`` of what a fine-tuned CLIP needs beside its own files."""
    if finetuned_kind(folder) != "biomedclip":
        return ()
    try:
        own = own_tokenizer(find_checkpoint(folder))
    except InputError:
        own = None
    return () if own else (TOKENIZER,)


def own_tokenizer(checkpoint: Path) -> Path | None:
    """Return BiomedCLIP's tokenizer beside a checkpoint, None if there is none."""
    places = (checkpoint.parent / name for name in ("tokenizer.json", "vocab.txt"))
    return next((place for place in places if place.is_file()), None)


def find_checkpoint(folder: Path) -> Path:
    """Return the checkpoint in a folder, or ``folder`` itself if it is a file.

    Raises:
        InputError: There is none, or several of which none has a usual name.
    """
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; pass the folder of a fine-tuned CLIP, or its checkpoint.")
    found = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    usual = [path for name in FINETUNED_NAMES for path in found if path.name == name]
    if usual:
        return usual[0]
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise InputError(
            f"{folder} should hold one checkpoint ({', '.join(_SUFFIXES)}); found: {names}. Name the file itself."
        )
    return found[0]


def _biomedclip(files: Mapping[str, Path], device: str, precision: str) -> VisionLanguageModel:
    from MedCLIPSAMLib.clip.biomedclip import load_biomedclip

    return load_biomedclip(files["biomedclip"], files[TOKENIZER], device, precision)


def _clip_vit_b_16(files: Mapping[str, Path], device: str, precision: str) -> VisionLanguageModel:
    from MedCLIPSAMLib.clip.openai_clip import load_openai_clip

    return load_openai_clip(files["clip-vit-b-16"], device, precision)


def _pmc_clip(files: Mapping[str, Path], device: str, precision: str) -> VisionLanguageModel:
    from MedCLIPSAMLib.clip.pmc_clip import load_pmc_clip

    image, text, projection, tokenizer = (files[name] for name in CLIP_WEIGHTS["pmc-clip"])
    return load_pmc_clip(image, text, projection, tokenizer, device, precision)


_LOADERS: dict[str, Callable[[Mapping[str, Path], str, str], VisionLanguageModel]] = {
    "biomedclip": _biomedclip,
    "clip-vit-b-16": _clip_vit_b_16,
    "pmc-clip": _pmc_clip,
}
