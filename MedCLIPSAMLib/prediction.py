"""What is judged of one image: a mask, and as far as they are known its probability, entropy and coarse mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import write_json, write_map_nrrd, write_mask_png
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.reporting import report_image
from MedCLIPSAMLib.result_folder import DESCRIPTION, collected
from MedCLIPSAMLib.results import PromptResult
from MedCLIPSAMLib.uncertainty import binary_entropy

if TYPE_CHECKING:
    from MedCLIPSAMLib.engine_interface import Engine

MASK, COARSE, PROBABILITY, ENTROPY = "mask.png", "coarse.png", "probability.nrrd", "entropy.nrrd"


@dataclass(frozen=True)
class Prediction:
    """One image's segmentation by any program; what is not known is None.

    Attributes:
        mask: (H, W) bool.
        probability: (H, W) in [0, 1], of the target.
        entropy: (H, W) in nats, at least 0.
        coarse: (H, W) bool, the mask before the segmenter.
        presence: Score in [0, 1] that the target is there.
        skipped: A presence gate left the image out; the mask is then empty and the maps say nothing.
        seconds: How long it took.
    """

    mask: np.ndarray
    probability: np.ndarray | None = None
    entropy: np.ndarray | None = None
    coarse: np.ndarray | None = None
    presence: float | None = None
    skipped: bool = False
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("probability", "entropy", "coarse"):
            array = getattr(self, name)
            if array is not None and array.shape != self.mask.shape:
                raise InputError(f"{name} has shape {array.shape}, the mask {self.mask.shape}; both must agree.")
        if self.entropy is None and self.probability is not None:
            object.__setattr__(self, "entropy", binary_entropy(self.probability))

    @classmethod
    def of(cls, result: PromptResult, engine: Engine, seconds: float | None = None) -> Prediction:
        """Return what is judged of an engine's result."""
        return cls(
            mask=result.mask,
            probability=result.probability,
            entropy=result.entropy,
            coarse=result.coarse.mask if has_stages(engine) else None,
            presence=result.presence.score,
            skipped=bool(result.skipped),
            seconds=seconds,
        )


def has_stages(engine: Engine) -> bool:
    """Return whether an engine goes from a coarse mask by visual prompts to its mask, or straight there."""
    return getattr(engine, "segmenter", None) is not None


def write_prediction(
    folder: Path, result: PromptResult, engine: Engine, image: MedicalImage, facts: dict[str, Any]
) -> None:
    """Write mask, coarse mask, probability, entropy and ``result.json``, as `segment` names them; all or none.

    Args:
        folder: Made where it does not exist; an earlier result in it is replaced.
        result: Of a 2D image; what the gate skipped is not written as a coarse finding.
        engine: Which made it.
        image: The image.
        facts: Added to ``result.json``.

    Raises:
        OutputError: Not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [MASK, PROBABILITY, ENTROPY]
    with collected(folder) as partial:
        write_mask_png(partial / MASK, result.mask)
        write_map_nrrd(partial / PROBABILITY, result.probability, image.ijk_to_ras)
        write_map_nrrd(partial / ENTROPY, result.entropy, image.ijk_to_ras)
        if has_stages(engine):
            write_mask_png(partial / COARSE, result.coarse.mask & (not result.skipped))
            files.append(COARSE)
        said = report_image(result, image) | {"engine": engine.recipe.name} | facts
        write_json(partial / DESCRIPTION, said | {"files": [*files, DESCRIPTION]})
