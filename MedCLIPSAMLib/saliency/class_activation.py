"""What the class-activation methods share: channel weights in, saliency map out.

Their maps are sum_c w_c A_c, where A_c is channel c of the activations late in the tower and w_c says how much the
similarity of image and text hangs on it.

Which activations: those that the last attention reads, that is, the patch tokens after the first normalisation of the
last block. The program of MedCLIP-SAM (arXiv 2403.20253) names the second normalisation of that block. Behind the last
attention, however, no patch reaches the CLS token any more, so every gradient there is exactly zero: its GradCAM is an
empty map, and its gScoreCAM takes 300 channels that no gradient has chosen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from MedCLIPSAMLib.clip.base import TargetActivations, VisionLanguageModel
from MedCLIPSAMLib.saliency.normalise import to_image


def target_activations(model: VisionLanguageModel, image: np.ndarray, text_embedding: np.ndarray) -> TargetActivations:
    """Return the model's activations and gradients for ``image`` and the unit vector ``text_embedding`` (D,).

    Raises:
        InputError: The model has no token-based image tower.
    """
    return model.activations(image, torch.from_numpy(text_embedding))


def channel_importance(target: TargetActivations) -> Tensor:
    """Return the gradient of each channel (C,), averaged over the patches."""
    return target.gradients.float().mean(dim=0)


def class_activation_map(target: TargetActivations, weights: Tensor) -> np.ndarray:
    """Return ReLU(sum_c w_c A_c) over the image, (H, W) float32 scaled to [0, 1], for channel weights (C,)."""
    values = target.values.float()
    plane = torch.relu(values @ weights.to(values)).reshape(target.grid)
    return to_image(plane.cpu().numpy(), target.frame)
