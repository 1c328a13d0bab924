"""The segmenters by the name that engines and the command line use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from MedCLIPSAMLib.errors import InputError

if TYPE_CHECKING:
    from MedCLIPSAMLib.sam.base import PromptableSegmenter

SEGMENTER_WEIGHTS: dict[str, tuple[str, ...]] = {
    name: (name,) for name in ("lite-medsam", "sam-vit-h", "sam-vit-l", "sam-vit-b", "medsam", "sam-med2d")
}
"""For each segmenter the weights, by their names in ``weights.registry()``, that it needs."""


def load_segmenter(name: str, files: Mapping[str, Path], device: str, precision: str) -> PromptableSegmenter:
    """Load a segmenter.

    Args:
        name: One of :data:`SEGMENTER_WEIGHTS`.
        files: Where its weights lie, by their names; they were verified before.
        device: For example "cpu" or "cuda".
        precision: "float32", "bfloat16" or "float16"; LiteMedSAM always runs in float32.

    Raises:
        InputError: Unknown name or precision, a weight that is not among ``files``, or a file of another model.
    """
    if name not in SEGMENTER_WEIGHTS:
        raise InputError(f"segmenter {name!r} is unknown; known: {', '.join(SEGMENTER_WEIGHTS)}.")
    if name not in files:
        raise InputError(f"segmenter {name!r} was given no weights; it needs {name!r}.")
    path = files[name]
    if name == "lite-medsam":
        from MedCLIPSAMLib.sam.lite_medsam import LiteMedSAM

        return LiteMedSAM(path, device)
    from MedCLIPSAMLib.sam.checkpoint import file_identity, read_checkpoint
    from MedCLIPSAMLib.sam.medsam import MedSAM
    from MedCLIPSAMLib.sam.sam_med2d import IN_THE_FILE, SamMed2D
    from MedCLIPSAMLib.sam.segment_anything_model import SegmentAnything

    state = read_checkpoint(path, IN_THE_FILE if name == "sam-med2d" else ())
    settings = {"identity": f"{name} {file_identity(path)}", "device": device, "precision": precision}
    if name == "medsam":
        return MedSAM(state, **settings)
    if name == "sam-med2d":
        return SamMed2D(state, **settings)
    return SegmentAnything(name, state, **settings)
