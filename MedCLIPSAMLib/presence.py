"""Is the prompt's target in this image at all? A calibrated score; an engine without calibration gates nothing.

A saliency map scaled to [0, 1] always peaks somewhere, so it cannot tell. The score is a logistic regression, fitted on
a validation split, on how well the prompt fits the image compared with how well it fits an image without the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.results import Presence

FEATURES = ("patch", "image", "absent")
_TOP_SHARE = 0.01  # of the image's patches: a small lesion covers about one in a hundred


class RegionTrainedModel(Protocol):
    """What a model must offer for the score: unit vectors of patches, of the image, and of "none of the learnt"."""

    def patch_embeddings(self, image: np.ndarray) -> tuple[np.ndarray, Frame]: ...

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray: ...

    def absent_vector(self) -> np.ndarray: ...


def presence_features(model: RegionTrainedModel, image: np.ndarray, text_embedding: np.ndarray) -> np.ndarray:
    """Return what the score is made of, (3,) float64 cosines in [-1, 1].

    "patch" is the mean similarity of the best hundredth of the patches to the text, "image" that of the whole image,
    and "absent" that of the text to the vector to which texts naming nothing learnt are drawn.

    Args:
        model: See :class:`RegionTrainedModel`.
        image: (H, W) or (H, W, 3) uint8.
        text_embedding: (D,) unit vector.
    """
    patches, frame = model.patch_embeddings(image)
    rows, columns = (
        max(1, round(cells * inner / frame.size)) for cells, inner in zip(patches.shape, frame.inner, strict=False)
    )
    similarity = np.sort((patches[:rows, :columns] @ text_embedding).ravel())
    best = similarity[-max(1, round(_TOP_SHARE * similarity.size)) :].mean()
    whole = model.encode_images([image])[0] @ text_embedding
    return np.array([best, whole, model.absent_vector() @ text_embedding], np.float64)


@dataclass(frozen=True)
class PresenceCalibration:
    """The fitted score: sigmoid(weights . features + bias), accepted from ``threshold`` on.

    Attributes:
        weights: One per entry of ``FEATURES``.
        bias: Of the logistic regression.
        threshold: Score in [0, 1] from which on the target of a single image counts as present.
        slice_threshold: The same where all slices of a volume are asked, most of which do not show the target; None
            for ``threshold``.
    """

    weights: tuple[float, ...]
    bias: float
    threshold: float
    slice_threshold: float | None = None

    def score(self, features: np.ndarray) -> float:
        """Return the probability in [0, 1] that the target is there."""
        return float(1 / (1 + np.exp(-(np.dot(self.weights, features) + self.bias))))

    def presence(self, score: float, whole_volume: bool = False) -> Presence:
        """Return the decision for a score, which for a slice of a volume may have been smoothed over its neighbours."""
        threshold = self.slice_threshold if whole_volume and self.slice_threshold is not None else self.threshold
        return Presence(score, threshold, score >= threshold)


UNCALIBRATED = Presence(None, None, True)
