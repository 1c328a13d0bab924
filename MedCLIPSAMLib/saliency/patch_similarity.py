"""Patch-text similarity: saliency for models that were trained with region captions.

The saliency of a patch is the cosine between its vector and the text's, as in dense CLIP inference (Zhou et al.,
"Extract Free Dense Labels from CLIP", ECCV 2022). It says nothing for a model whose patches never met a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from MedCLIPSAMLib.clip.base import VisionLanguageModel
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.saliency.normalise import minimum_maximum


def patch_similarity(
    model: VisionLanguageModel,
    image: np.ndarray,
    text_embedding: np.ndarray,
    *,
    scales: Sequence[float] = (1.0,),
    seed: int = 0,
) -> np.ndarray:
    """Return the similarity of every patch of ``image`` to ``text_embedding``, scaled to [0, 1].

    Args:
        model: A model that offers ``patch_embeddings``.
        image: (H, W) or (H, W, 3) uint8.
        text_embedding: (D,) unit vector.
        scales: Sizes at which the image is looked at, each in (0, 1]; below 1 it is seen smaller, within a black
            margin. The maps are averaged. A second scale costs a second run of the image tower.
        seed: Not used; the method draws nothing.

    Returns:
        (H, W) float32 in [0, 1], 0 everywhere if the map is constant.

    Raises:
        InputError: The model was not trained with region captions, or a scale lies outside (0, 1].
    """
    maps = []
    for scale in scales:
        if not 0 < scale <= 1:
            raise InputError(f"scale {scale}: it must lie above 0 and at most at 1.")
        view, rows, columns = _with_margin(image, scale)
        patches, frame = model.patch_embeddings(view)
        maps.append(frame.restore(patches @ text_embedding)[rows, columns])
    return minimum_maximum(np.mean(maps, axis=0, dtype=np.float32))


def _with_margin(image: np.ndarray, scale: float) -> tuple[np.ndarray, slice, slice]:
    """Centre ``image`` in a larger black one, of which it takes up ``scale`` of each side; return where it lies."""
    height, width = image.shape[:2]
    view = np.zeros((int(height / scale), int(width / scale), *image.shape[2:]), image.dtype)
    top, left = (view.shape[0] - height) // 2, (view.shape[1] - width) // 2
    rows, columns = slice(top, top + height), slice(left, left + width)
    view[rows, columns] = image
    return view, rows, columns
