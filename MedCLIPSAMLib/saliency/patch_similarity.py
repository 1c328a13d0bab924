"""Patch-text similarity: saliency for models that were trained with region captions.

The saliency of a patch is the cosine between its vector and the text's, as in dense CLIP inference (Zhou et al.,
"Extract Free Dense Labels from CLIP", ECCV 2022). It says nothing for a model whose patches never met a text.
"""

from __future__ import annotations

import numpy as np

from MedCLIPSAMLib.clip.base import VisionLanguageModel
from MedCLIPSAMLib.saliency.normalise import to_image


def patch_similarity(
    model: VisionLanguageModel, image: np.ndarray, text_embedding: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Return the similarity of every patch of ``image`` to ``text_embedding``, scaled to [0, 1].

    Args:
        model: A model that offers ``patch_embeddings``.
        image: (H, W) or (H, W, 3) uint8.
        text_embedding: (D,) unit vector.
        seed: Not used; the method draws nothing.

    Returns:
        (H, W) float32 in [0, 1], 0 everywhere if the map is constant.

    Raises:
        InputError: The model was not trained with region captions.
    """
    patches, frame = model.patch_embeddings(image)
    return to_image(patches @ text_embedding, frame)
