"""Multi-modal information bottleneck saliency (M2IB), Eq. 16 of the paper.

Wang, Rudner and Wilson, "Visual Explanations of Image-Text Representations via Multi-Modal Information Bottleneck
Attribution", NeurIPS 2023; Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483.

After one layer of the image tower the tokens x are disturbed to t = lambda x + (1 - lambda) e with e ~ N(0, 1). The
bottleneck lambda = sigmoid(a) is found by maximising cos(finish(t), text) - beta * C, where C is the information, in
nats, that t holds about x. Where the text needs an element, C stays high; summed over the channels it is the saliency.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from MedCLIPSAMLib.clip.base import ImageState, VisionLanguageModel
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.saliency.normalise import to_image

logger = logging.getLogger(__name__)

INITIAL_ALPHA = 5.0  # lambda = 0.993: almost everything passes at first


@dataclass(frozen=True)
class M2IBSettings:
    """Settings of the optimisation; the defaults are the authors'.

    Attributes:
        layer: 0-based layer of the image tower after which the bottleneck sits.
        beta: Weight of the information term (gamma of Eq. 16).
        steps: Adam steps; the map is read at the last forward pass, before its update.
        copies: Noise samples per step.
        learning_rate: Of Adam.
    """

    layer: int
    beta: float
    steps: int = 10
    copies: int = 10
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.copies < 1:
            raise InputError(f"M2IB needs at least one step and one copy, got {self.steps} and {self.copies}.")


def m2ib(
    model: VisionLanguageModel,
    image: np.ndarray,
    text_embedding: np.ndarray,
    *,
    settings: M2IBSettings,
    seed: int = 0,
) -> np.ndarray:
    """Return the M2IB saliency of ``text_embedding`` in ``image``.

    The tower's layers up to the bottleneck run once and without gradients (they do not depend on it), the weights
    get no gradient, and the noise is drawn on the CPU, so that every device sees the same.

    Args:
        model: A model with token-based image tower.
        image: (H, W) or (H, W, 3) uint8.
        text_embedding: (D,) unit vector.
        settings: See :class:`M2IBSettings`.
        seed: Of the noise.

    Returns:
        (H, W) float32 in [0, 1], 0 everywhere if the map is constant.

    Raises:
        InputError: The model has no such layer, or no token-based image tower.
    """
    state = model.image_state(image, settings.layer)
    information = bottleneck_information(model, state, torch.from_numpy(text_embedding), settings, seed)
    rows, columns = state.grid
    plane = information.sum(dim=-1)[-rows * columns :].reshape(rows, columns)
    return to_image(plane.cpu().numpy(), state.frame)


def bottleneck_information(
    model: VisionLanguageModel, state: ImageState, text: Tensor, settings: M2IBSettings, seed: int
) -> Tensor:
    """Optimise the bottleneck and return the information per token and channel, (N, C) in nats."""
    tokens = state.tokens[0].detach().clone().float()
    text = text.to(tokens)
    alpha = torch.full_like(tokens, INITIAL_ALPHA).requires_grad_(True)
    optimiser = torch.optim.Adam([alpha], lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.steps):
        noise = torch.randn((settings.copies, *tokens.shape), generator=generator).to(tokens.device)
        keep = torch.sigmoid(alpha)
        disturbed = keep * tokens + (1 - keep) * noise
        information = information_nats(tokens, alpha)
        similarity = model.finish(disturbed, settings.layer) @ text
        loss = settings.beta * information.mean() - similarity.mean()
        # Only the bottleneck is differentiated; the frozen weights get no gradient.
        (alpha.grad,) = torch.autograd.grad(loss, [alpha])
        optimiser.step()
    return information.detach()


def information_nats(tokens: Tensor, alpha: Tensor) -> Tensor:
    """KL(N(lambda x, (1 - lambda)^2) || N(0, 1)) per element, lambda = sigmoid(alpha).

    ``log((1 - lambda)^2)`` is taken as ``2 logsigmoid(-alpha)``, which stays exact where 1 - lambda rounds to 0.
    """
    keep = torch.sigmoid(alpha)
    variance = torch.sigmoid(-alpha).square()
    return 0.5 * (keep.square() * tokens.square() + variance - 1 - 2 * functional.logsigmoid(-alpha))
