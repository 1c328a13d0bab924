"""gScoreCAM: the channels that the gradient names are shown to the model one by one.

Chen et al., "gScoreCAM: What Objects Is CLIP Looking At?", ACCV 2022; the saliency of MedCLIP-SAM (Koleilat et al.,
arXiv 2403.20253) and a comparison in Table 5 of MedCLIP-SAMv2 (arXiv 2409.19483).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from MedCLIPSAMLib.clip.base import TargetActivations, VisionLanguageModel
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.saliency.class_activation import channel_importance, class_activation_map, target_activations

FLAT = 1e-6
"""Added to the span of a channel, so that one without any hides the image instead of dividing by zero."""


def gscorecam(
    model: VisionLanguageModel,
    image: np.ndarray,
    text_embedding: np.ndarray,
    *,
    channels: int = 300,
    batch: int = 16,
    seed: int = 0,
) -> np.ndarray:
    """Return the gScoreCAM of ``text_embedding`` in ``image``.

    Of the activations A (see :mod:`MedCLIPSAMLib.saliency.class_activation`) the ``channels`` with the largest mean
    gradient are kept. Each, interpolated to the model's input and scaled to [0, 1], multiplies the normalised input;
    the score of the channel is ``logit_scale * cos`` of the image that is left and the text. The weights are the
    softmax of the scores, over all channels, with score 0 for those that were not kept; the map is ReLU(sum_c w_c A_c).

    A channel is interpolated with the centres of its patches where they lie in the image. The original program puts
    the outermost centres on the image's border instead, which shifts them by up to half a patch.

    Args:
        model: A model with token-based image tower.
        image: (H, W) or (H, W, 3) uint8.
        text_embedding: (D,) unit vector.
        channels: How many channels are kept, each for a run of the image tower; a tower with fewer gives all.
        batch: How many of those run at a time.
        seed: Not used; the method draws nothing.

    Returns:
        (H, W) float32 in [0, 1], 0 everywhere if the map is constant.

    Raises:
        InputError: The model has no token-based image tower, or a number below 1.
    """
    if channels < 1 or batch < 1:
        raise InputError(f"gScoreCAM needs at least one channel and one image a batch, got {channels} and {batch}.")
    target = target_activations(model, image, text_embedding)
    importance = channel_importance(target)
    kept = importance.topk(min(channels, len(importance))).indices
    text = torch.from_numpy(text_embedding)
    scores = torch.zeros(len(importance))
    scores[kept.cpu()] = model.memory.run(
        lambda size: _scores(model, image, text, target, kept, size), batch, "gscorecam"
    )
    return class_activation_map(target, torch.softmax(scores, dim=0))


@torch.no_grad()
def _scores(
    model: VisionLanguageModel, image: np.ndarray, text: Tensor, target: TargetActivations, kept: Tensor, batch: int
) -> Tensor:
    """Return ``logit_scale * cos`` with the text (D,) of the input under the mask of each kept channel, on the CPU."""
    pixels, _ = model.model_input(image)
    planes = target.values.float().T[kept].reshape(-1, 1, *target.grid).to(pixels)
    scores = []
    for part in planes.split(batch):
        masks = functional.interpolate(part, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
        vectors = model.encode_input(pixels * ((masks - low) / (high - low + FLAT)))
        scores.append((vectors @ text.to(vectors)).cpu())
    return model.logit_scale * torch.cat(scores)
