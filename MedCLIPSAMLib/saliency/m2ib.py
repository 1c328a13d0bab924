"""Multi-modal information bottleneck saliency (M2IB), Eq. 16 of the paper.

Wang, Rudner and Wilson, "Visual Explanations of Image-Text Representations via Multi-Modal Information Bottleneck
Attribution", NeurIPS 2023; Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483.

After one layer of the image tower the tokens x are disturbed to t = lambda x + (1 - lambda) e with e ~ N(0, 1). The
bottleneck lambda = sigmoid(a) is found by maximising cos(finish(t), text) - beta * C, where C is the information, in
nats, that t holds about x. Where the text needs an element, C stays high; summed over the channels it is the saliency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from MedCLIPSAMLib.clip.base import ImageState, VisionLanguageModel
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.saliency.normalise import to_image

INITIAL_ALPHA = 5.0  # lambda = 0.993: almost everything passes at first
MapKind = Literal["capacity", "lambda"]


@dataclass(frozen=True)
class M2IBSettings:
    """Settings of the optimisation; the defaults are the authors'.

    Attributes:
        layer: 0-based layer of the image tower after which the bottleneck sits.
        beta: Weight of the information term (gamma of Eq. 16).
        steps: Adam steps; the map is read before the update of the last one.
        copies: Noise samples per step.
        learning_rate: Of Adam.
        map: "capacity", the information C in nats summed over the channels, as in the authors' program; or "lambda",
            the bottleneck itself, averaged over the channels, as the paper's text has it.
    """

    layer: int
    beta: float
    steps: int = 10
    copies: int = 10
    learning_rate: float = 1.0
    map: MapKind = "capacity"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.copies < 1:
            raise InputError(f"M2IB needs at least one step and one copy, got {self.steps} and {self.copies}.")
        if self.map not in get_args(MapKind):
            raise InputError(f"M2IB has no map {self.map!r}; choose 'capacity' or 'lambda'.")
        if self.map == "lambda" and self.steps < 2:
            raise InputError("M2IB's lambda is the same everywhere before the first update; take at least two steps.")


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
    return to_image(*m2ib_plane(model, image, text_embedding, settings=settings, seed=seed))


def m2ib_plane(
    model: VisionLanguageModel,
    image: np.ndarray,
    text_embedding: np.ndarray,
    *,
    settings: M2IBSettings,
    seed: int = 0,
) -> tuple[np.ndarray, Frame]:
    """Return the map of :func:`m2ib` as it is found: one value per patch, (rows, columns) float32, and its frame."""
    text = torch.from_numpy(text_embedding)

    def in_batches_of(batch: int) -> tuple[np.ndarray, Frame]:
        state = model.image_state(image, settings.layer)
        tokens = state.tokens[0].detach().clone().float()
        alpha = bottleneck(model, tokens, text, settings, seed, batch=batch)
        if settings.map == "lambda":
            values = torch.sigmoid(alpha).mean(dim=-1)
        else:
            values = information_nats(tokens, alpha).sum(dim=-1)
        return _patches(values, state), state.frame

    return model.memory.run(in_batches_of, settings.copies, "m2ib")


def bottleneck(
    model: VisionLanguageModel,
    tokens: Tensor,
    text: Tensor,
    settings: M2IBSettings,
    seed: int,
    *,
    batch: int | None = None,
) -> Tensor:
    """Optimise the bottleneck and return its alpha per token and channel, (N, C), lambda = sigmoid(alpha).

    Args:
        model: See :func:`m2ib`.
        tokens: (N, C) float32 without gradient, after ``settings.layer``.
        text: (D,) unit vector.
        settings: See :class:`M2IBSettings`.
        seed: Of the noise.
        batch: Copies that run through the tower at a time; the same noise and, to rounding, the same result for any.
    """
    text = text.to(tokens)
    alpha = torch.full_like(tokens, INITIAL_ALPHA).requires_grad_(True)
    optimiser = torch.optim.Adam([alpha], lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    # The map is read before the last update, which therefore need not be computed.
    for _ in range(settings.steps - 1):
        noise = torch.randn((settings.copies, *tokens.shape), generator=generator)
        # Only the bottleneck is differentiated; the frozen weights get no gradient.
        (gradient,) = torch.autograd.grad(settings.beta * information_nats(tokens, alpha).mean(), [alpha])
        for part in noise.split(batch or settings.copies):
            keep = torch.sigmoid(alpha)
            disturbed = keep * tokens + (1 - keep) * part.to(tokens.device)
            similarity = (model.finish(disturbed, settings.layer) @ text).sum() / settings.copies
            gradient -= torch.autograd.grad(similarity, [alpha])[0]
        alpha.grad = gradient
        optimiser.step()
    return alpha.detach()


def information_nats(tokens: Tensor, alpha: Tensor) -> Tensor:
    """KL(N(lambda x, (1 - lambda)^2) || N(0, 1)) per element, lambda = sigmoid(alpha).

    ``log((1 - lambda)^2)`` is taken as ``2 logsigmoid(-alpha)``, which stays exact where 1 - lambda rounds to 0.
    """
    keep = torch.sigmoid(alpha)
    variance = torch.sigmoid(-alpha).square()
    return 0.5 * (keep.square() * tokens.square() + variance - 1 - 2 * functional.logsigmoid(-alpha))


def _patches(values: Tensor, state: ImageState) -> np.ndarray:
    """Return the values of the patch tokens, which come last among the (N,), on their grid."""
    rows, columns = state.grid
    return values[-rows * columns :].reshape(rows, columns).cpu().numpy()
