"""GradCAM: each channel counts by its mean gradient.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017; with
the similarity of image and text in the place of a class score. Table 5 of Koleilat et al., arXiv 2409.19483, compares
with it.
"""

from __future__ import annotations

import numpy as np

from MedCLIPSAMLib.clip.base import VisionLanguageModel
from MedCLIPSAMLib.saliency.class_activation import channel_importance, class_activation_map, target_activations


def gradcam(model: VisionLanguageModel, image: np.ndarray, text_embedding: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return the GradCAM of ``text_embedding`` in ``image``: ReLU(sum_c w_c A_c), w_c = mean over patches of dy/dA_c.

    y is ``logit_scale * cos(image, text)``; which activations A are meant, and why, says
    :mod:`MedCLIPSAMLib.saliency.class_activation`.

    Args:
        model: A model with token-based image tower.
        image: (H, W) or (H, W, 3) uint8.
        text_embedding: (D,) unit vector.
        seed: Not used; the method draws nothing.

    Returns:
        (H, W) float32 in [0, 1], 0 everywhere if the map is constant, as where no patch speaks for the text.

    Raises:
        InputError: The model has no token-based image tower.
    """
    target = target_activations(model, image, text_embedding)
    return class_activation_map(target, channel_importance(target))
