"""What the table of a cohort says of a case, noted while the engine segments it, and its small picture.

The result files do not keep the probability, on which the mean entropy depends; so the engine is listened to. One that
takes a volume at once is not asked slice by slice; of it, the files are read again: its saliency is the probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.images import to_uint8
from MedCLIPSAMLib.results import PromptResult

if TYPE_CHECKING:
    from MedCLIPSAMLib.medical_image import MedicalImage
    from MedCLIPSAMLib.pipeline import TextSegmenter

POSSIBLE = 0.05
"""Probability above which a pixel counts for the mean entropy, as in ``evaluation.py``."""
THUMBNAIL = 224
"""Longest side in pixels of each of the two panels of a small picture."""
_CONTOUR = (60, 255, 110)


@dataclass
class Notes:
    """On one prompt, over all slices of a case.

    Attributes:
        entropy: Sum in nats over the pixels where the probability exceeds 0.05.
        possible: How many these are.
        confidences: Largest of each slice that has components; of a volume, of each slice that has a mask too.
        shown: (image (H, W) or (H, W, 3) uint8, mask (H, W) bool, entropy (H, W)) of the slice with the largest mask.
        heard: Whether the engine was heard; see :func:`notes_of_files` for one that was not.
    """

    entropy: float = 0.0
    possible: int = 0
    confidences: list[float] = field(default_factory=list)
    shown: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    heard: bool = False
    _rank: tuple[int, float] = (-1, -1.0)

    def add(self, result: PromptResult, image: np.ndarray, is_volume: bool) -> None:
        """Take note of one slice, ``image`` as displayed."""
        self.heard = True
        possible = result.probability > POSSIBLE
        self.entropy += float(np.asarray(result.entropy)[possible].sum(dtype=float))
        self.possible += int(np.count_nonzero(possible))
        area = int(np.count_nonzero(result.mask))
        if not result.skipped and result.coarse.components and (area or not is_volume):
            self.confidences.append(max(one.confidence for one in result.coarse.components))
        rank = (area, float(np.asarray(result.entropy).sum(dtype=float)))
        if rank > self._rank:
            self._rank = rank
            self.shown = image, result.mask, np.asarray(result.entropy)

    @property
    def mean_entropy(self) -> float:
        """Mean in nats where the probability exceeds 0.05; 0 if nowhere."""
        return self.entropy / self.possible if self.possible else 0.0


def notes_of_files(saliency: Path, entropy: Path, mask: np.ndarray, image: MedicalImage, window: Any) -> Notes:
    """Return the notes on a volume that the engine took at once.

    Args:
        saliency, entropy: Map files (K, J, I), the first one a probability.
        mask: (K, J, I) bool.
        image: The input.
        window: Intensities shown as black and white.
    """
    from MedCLIPSAMLib.file_io import read_image

    probability, uncertainty = read_image(saliency).array, read_image(entropy).array
    possible = probability > POSSIBLE
    notes = Notes(float(uncertainty[possible].sum(dtype=float)), int(np.count_nonzero(possible)))
    ranks = [(int(np.count_nonzero(plane)), float(uncertainty[index].sum())) for index, plane in enumerate(mask)]
    best = max(range(len(ranks)), key=ranks.__getitem__)
    notes.shown = to_uint8(image.array[best], window), mask[best], uncertainty[best]
    return notes


class ListenedTo:
    """An engine that does what the given one does, and takes notes of each prompt's results.

    Attributes:
        notes: By prompt.
    """

    def __init__(self, segmenter: TextSegmenter, is_volume: bool):
        """Listen to an engine while it segments one case."""
        self._segmenter = segmenter
        self._is_volume = is_volume
        self._image: np.ndarray | None = None
        self.notes: dict[str, Notes] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segmenter, name)

    def set_image(self, image: np.ndarray, window: tuple[float, float] | None = None) -> None:
        """See ``TextSegmenter``."""
        self._segmenter.set_image(image, window)
        self._image = to_uint8(np.asarray(image), window)

    def segment(self, prompt: str, *arguments: Any, **options: Any) -> PromptResult:
        """See ``TextSegmenter``."""
        result = self._segmenter.segment(prompt, *arguments, **options)
        self.notes.setdefault(prompt, Notes()).add(result, self._image, self._is_volume)
        return result


def measures(report: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    """Return the table's numbers for one prompt, by column.

    Args:
        report: What ``result.json`` says.
        notes: Of the same prompt.
    """
    slices = report.get("slices")
    if slices is None:
        skipped = bool(report["skipped_by_gate"])
        covered, size = report["area"]["mask"]["pixels"], math.prod(report["input"]["shape"][:2])
    else:
        seen = [one["status"] for one in slices if one["status"] in ("segmented", "skipped by the gate")]
        skipped = bool(seen) and all(status != "segmented" for status in seen)
        covered, size = report["volume"]["mask"]["voxels"], math.prod(report["input"]["shape"][:3])
    confidences = notes.confidences or [
        max(component["confidence"] for component in one["components"])
        for one in slices or ()
        if one["status"] == "segmented" and one["components"] and not notes.heard
    ]
    return {
        "presence": report["presence"]["score"],
        "skipped": skipped,
        "confidence": float(np.mean(confidences)) if confidences else None,
        "entropy": notes.mean_entropy,
        "mask_share": covered / size,
    }


def write_thumbnail(path: Path, notes: Notes) -> None:
    """Write a small JPEG: the image with the outline of the mask, and beside it the entropy, black to white.

    Raises:
        OutputError: Not writable.
    """
    from PIL import Image
    from scipy.ndimage import binary_erosion

    if notes.shown is None:  # nothing to be seen in any slice
        image = np.zeros((16, 16), np.uint8)
        mask, entropy = image > 0, image.astype(float)
    else:
        image, mask, entropy = notes.shown
    scale = THUMBNAIL / max(mask.shape)
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    picture = np.array(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BILINEAR))
    inside = np.array(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127
    picture[inside & ~binary_erosion(inside)] = _CONTOUR
    share = np.clip(np.asarray(entropy, np.float32) / np.log(2), 0, 1)
    level = np.array(Image.fromarray((share * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)) / 255
    # black, violet, orange, white: brighter is less certain, also in grey
    heat = np.stack([np.interp(level, (0, 0.33, 0.67, 1), stops) for stops in _HEAT], axis=-1)
    both = np.concatenate([picture, heat.astype(np.uint8)], axis=1)
    with replacing(path) as file:
        Image.fromarray(both).save(file, format="JPEG", quality=80)


_HEAT = ((0, 110, 245, 255), (0, 25, 130, 255), (0, 110, 30, 235))
