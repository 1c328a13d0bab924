"""The saliency methods in their plain form on open_clip's own model: the whole tower each time, nothing remembered.

Equations and sources are in MedCLIPSAMLib/saliency. Activations are caught by hooks on timm's modules, the maps are
made with scipy. For tests and benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from MedCLIPSAMLib.saliency.m2ib import M2IBSettings

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def official_pixels(image: np.ndarray, size: int = 224) -> Tensor:
    """(H, W) or (H, W, 3) uint8 -> (1, 3, size, size), squashed; open_clip's preprocessing in mode "squash"."""
    picture = Image.fromarray(image).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    scaled = (np.asarray(picture, np.float64) / 255 - MEAN) / DEVIATION
    return torch.from_numpy(scaled.transpose(2, 0, 1)[None]).float()


@lru_cache(maxsize=1)
def official_model() -> nn.Module:
    """open_clip's own BiomedCLIP with the random weights of ``full_models``; shared, so leave it as it is."""
    from full_models import biomedclip_files, official_biomedclip

    return official_biomedclip(torch.load(biomedclip_files()["biomedclip"], weights_only=True))


def plain_m2ib(
    model: nn.Module, pixels: Tensor, text: Tensor, settings: M2IBSettings, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the (14, 14) maps of M2IB by the names of ``M2IBSettings.map``.

    Every step runs the image tower on all copies, and the text tower as well where ``text`` are tokens; what carries
    weights with ``requires_grad`` gets their gradients, as in the authors' program.

    Args:
        model: open_clip's model with timm's image tower, in eval mode.
        pixels: (1, 3, 224, 224).
        text: A unit vector (D,), or tokens (1, L) of whole numbers.
        settings, seed: As for ``m2ib``.
    """
    alpha: nn.Parameter | None = None
    seen: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def disturb(_module: nn.Module, _inputs: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        nonlocal alpha
        if alpha is None:
            alpha = nn.Parameter(torch.full((1, *tokens.shape[1:]), 5.0))
        noise = torch.randn(tokens.shape, generator=generator)
        keep = torch.sigmoid(alpha)
        exact = torch.sigmoid(alpha.double())  # in single precision 1 - lambda has few digits left
        variance = (1 - exact) ** 2
        seen["keep"] = exact.detach()
        seen["information"] = 0.5 * ((exact * tokens) ** 2 + variance - 1 - torch.log(variance))
        return keep * tokens + (1 - keep) * noise

    optimiser = None
    with _hook(model.visual.trunk.blocks[settings.layer], disturb):
        for _ in range(settings.steps):
            vectors = nn.functional.normalize(model.encode_image(pixels.expand(settings.copies, -1, -1, -1)), dim=-1)
            if text.is_floating_point():
                similarity = vectors @ text
            else:
                texts = nn.functional.normalize(model.encode_text(text.expand(settings.copies, -1)), dim=-1)
                similarity = (vectors * texts).sum(dim=-1)
            loss = settings.beta * seen["information"].mean() - similarity.mean()
            optimiser = optimiser or torch.optim.Adam([alpha], lr=settings.learning_rate)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    values = {
        "capacity": seen["information"].detach().mean(dim=0).nansum(dim=-1),
        "lambda": seen["keep"][0].mean(dim=-1),
    }
    return {name: value[1:].reshape(14, 14).numpy() for name, value in values.items()}


def tokens_and_gradients(model: nn.Module, module: nn.Module, pixels: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``module`` gives for one image, (N, C), and the gradient of logit_scale * cos(image, text) (N, C)."""
    caught: list[Tensor] = []

    def catch(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_(True))
        return caught[0]

    with _hook(module, catch):
        similarity = nn.functional.cosine_similarity(model.encode_image(pixels), text[None])[0]
    (gradient,) = torch.autograd.grad(model.logit_scale.exp() * similarity, caught)
    return caught[0][0].detach(), gradient[0]


def plain_gradcam(model: nn.Module, pixels: Tensor, text: Tensor) -> np.ndarray:
    """Return GradCAM's (14, 14) map at the input of the last attention."""
    values, gradients = tokens_and_gradients(model, model.visual.trunk.blocks[-1].norm1, pixels, text)
    channels = values[1:].double().numpy()
    weights = gradients[1:].double().numpy().mean(axis=0)
    return np.maximum((channels * weights).sum(axis=1), 0).reshape(14, 14)


@torch.no_grad()
def mask_scores(model: nn.Module, pixels: Tensor, text: Tensor, masks: Tensor) -> np.ndarray:
    """Return gScoreCAM's score under each mask (K, height, width): one run of the tower for each.

    Where ``text`` are tokens (1, L) the text tower runs each time too, as in the original program.
    """
    scores = []
    for mask in masks:
        vector = nn.functional.normalize(model.encode_image(pixels * mask), dim=-1)[0]
        target = text if text.is_floating_point() else nn.functional.normalize(model.encode_text(text), dim=-1)[0]
        scores.append(float(model.logit_scale.exp() * (vector @ target)))
    return np.array(scores)


def channel_masks(planes: np.ndarray, height: int, width: int) -> Tensor:
    """Enlarge each plane of (K, rows, columns) and scale it to [0, 1]."""
    masks = np.stack([enlarged(plane, height, width) for plane in planes])
    low, high = masks.min(axis=(1, 2), keepdims=True), masks.max(axis=(1, 2), keepdims=True)
    return torch.from_numpy((masks - low) / (high - low + 1e-6)).float()


def plain_gscorecam(model: nn.Module, pixels: Tensor, text: Tensor, channels: int) -> np.ndarray:
    """Return gScoreCAM's (14, 14) map at the input of the last attention."""
    values, gradients = tokens_and_gradients(model, model.visual.trunk.blocks[-1].norm1, pixels, text)
    planes = values[1:].T.reshape(-1, 14, 14).double().numpy()
    kept = np.argsort(-gradients[1:].double().numpy().mean(axis=0), kind="stable")[:channels]
    scores = np.zeros(len(planes))
    scores[kept] = mask_scores(model, pixels, text, channel_masks(planes[kept], *pixels.shape[-2:]))
    weights = np.exp(scores - scores.max())
    return np.maximum(np.tensordot(weights / weights.sum(), planes, axes=1), 0)


def enlarged(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate bilinearly between the centres of the cells, which fill the picture."""
    centres = [
        (np.arange(size) + 0.5) * cells / size - 0.5 for size, cells in zip((height, width), plane.shape, strict=True)
    ]
    coordinates = np.meshgrid(*centres, indexing="ij")
    return ndimage.map_coordinates(plane.astype(np.float64), coordinates, order=1, mode="nearest")


def onto_image(plane: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bring a map over a squashed image to the image, (H, W), scaled to [0, 1]."""
    full = enlarged(plane, *shape[:2])
    return ((full - full.min()) / (full.max() - full.min())).astype(np.float32)


@contextmanager
def _hook(module: nn.Module, function) -> Iterator[None]:
    handle = module.register_forward_hook(function)
    try:
        yield
    finally:
        handle.remove()
