"""M2IB in its plain form: the whole image tower at every step, for every copy, with gradients through all of it.

Wang, Rudner and Wilson, NeurIPS 2023; Eq. 16 of Koleilat et al., arXiv 2409.19483. Nothing is cached, the attention is
written out, and the information term is the textbook one in double precision. For tests and benchmarks.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from MedCLIPSAMLib.clip.lite import LiteClip
from MedCLIPSAMLib.clip.lite_tower import COARSE
from MedCLIPSAMLib.saliency.m2ib import M2IBSettings
from MedCLIPSAMLib.sam.lite_encoder import model_input


class PlainTower(nn.Module):
    """The lite image tower with a place for the bottleneck: a copy of the model's weights, all of them trainable."""

    def __init__(self, clip: LiteClip):
        super().__init__()
        self.encoder = copy.deepcopy(clip.encoder.encoder).requires_grad_(True)
        self.tower = copy.deepcopy(clip.tower).requires_grad_(True)

    @torch.no_grad()
    def encode(self, image: np.ndarray) -> Tensor:
        """(H, W) or (H, W, 3) uint8 -> (1, 1024, 736), once and for all."""
        placed, _ = model_input(image)
        return self.features(torch.from_numpy(placed).permute(2, 0, 1)[None])

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, 256, 256) -> (B, 1024, 736)."""
        scales = torch.cat(self.encoder.multi_scale(images), dim=1)
        batch, channels, height, width = scales.shape
        blocks = scales.reshape(batch, channels, height // 2, 2, width // 2, 2).mean(dim=(3, 5))
        return blocks.flatten(2).transpose(1, 2)

    def before(self, features: Tensor, layer: int) -> Tensor:
        """Tokens that the bottleneck of ``layer`` disturbs."""
        tower = self.tower
        standard = (features - tower.feature_mean) * tower.feature_scale
        cells = standard.reshape(len(features), COARSE, 2, COARSE, 2, -1).mean(dim=(2, 4)).flatten(1, 2)
        tokens = cells @ tower.embed.weight.T + tower.embed.bias
        centred = tokens - tokens.mean(-1, keepdim=True)
        tokens = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        if layer:
            tokens = self.positioned(tokens)
            for block in tower.blocks[:layer]:
                tokens = plain_block(block, tokens)
        return tokens

    def after(self, tokens: Tensor, layer: int) -> Tensor:
        """Unit vectors of the disturbed tokens."""
        if layer == 0:
            tokens = self.positioned(tokens)
        for block in self.tower.blocks[layer:]:
            tokens = plain_block(block, tokens)
        vectors = self.tower.image_head(tokens[:, 0])
        return vectors / vectors.norm(dim=-1, keepdim=True)

    def positioned(self, tokens: Tensor) -> Tensor:
        position = (self.tower.row + self.tower.column).reshape(COARSE * COARSE, -1)
        return torch.cat([self.tower.cls.expand(len(tokens), 1, -1), tokens + position], dim=1)


def plain_block(block: nn.TransformerEncoderLayer, tokens: Tensor) -> Tensor:
    """A pre-norm transformer block (Xiong et al., ICML 2020) from its weights."""
    attention = block.self_attn
    batch, count, width = tokens.shape
    heads = attention.num_heads
    projected = functional.linear(block.norm1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.reshape(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(width // heads), dim=-1)
    tokens = tokens + attention.out_proj((weights @ value).transpose(1, 2).reshape(batch, count, width))
    return tokens + block.linear2(functional.gelu(block.linear1(block.norm2(tokens))))


def full_forward_m2ib(
    model: PlainTower,
    image: np.ndarray,
    text_embedding: np.ndarray,
    settings: M2IBSettings,
    seed: int = 0,
    *,
    features: Tensor | None = None,
) -> np.ndarray:
    """Return what :func:`MedCLIPSAMLib.saliency.m2ib.m2ib` should: (H, W) float32 in [0, 1].

    Args:
        model: See :class:`PlainTower`.
        image: (H, W) or (H, W, 3) uint8.
        text_embedding: (D,) unit vector.
        settings: As for ``m2ib``.
        seed: Of the noise, drawn once a step for all copies.
        features: Of :meth:`PlainTower.encode`, where the frozen encoder below the tower is not to run at every step,
            which saves most of the time.
    """
    placed, frame = model_input(image)
    text = torch.from_numpy(text_embedding)
    images = torch.from_numpy(placed).permute(2, 0, 1).expand(settings.copies, -1, -1, -1).contiguous()
    if features is not None:
        features = features.expand(settings.copies, -1, -1)
    alpha, optimiser = None, None
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.steps):
        tokens = model.before(model.features(images) if features is None else features, settings.layer)
        if alpha is None:
            alpha = nn.Parameter(torch.full((1, *tokens.shape[1:]), 5.0))
            optimiser = torch.optim.Adam([alpha], lr=settings.learning_rate)
        noise = torch.randn(tokens.shape, generator=generator)
        keep = torch.sigmoid(alpha)
        vectors = model.after(keep * tokens + (1 - keep) * noise, settings.layer)
        information = _information(tokens.double(), alpha.double())
        loss = settings.beta * information.mean() - (vectors @ text).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    plane = information.detach().mean(dim=0).nansum(dim=-1)[-COARSE * COARSE :].reshape(COARSE, COARSE)
    return _onto_image(plane.numpy(), image.shape[:2], frame.inner, frame.size)


def _information(tokens: Tensor, alpha: Tensor) -> Tensor:
    keep = 1 / (1 + torch.exp(-alpha))
    variance = (1 - keep) ** 2
    return 0.5 * (keep**2 * tokens**2 + variance - 1 - torch.log(variance))


def _onto_image(plane: np.ndarray, shape: tuple[int, int], inner: tuple[int, int], size: int) -> np.ndarray:
    """Look up every pixel's centre in the cells that the image touches, bilinearly, and scale to [0, 1]."""
    cells = len(plane)
    touched = plane[tuple(slice(0, -(-part * cells // size)) for part in inner)]
    centres = [
        (np.arange(pixels) + 0.5) / pixels * part * cells / size - 0.5
        for pixels, part in zip(shape, inner, strict=True)
    ]
    grid = np.meshgrid(*centres, indexing="ij")
    full = ndimage.map_coordinates(touched, grid, order=1, mode="nearest")
    return ((full - full.min()) / (full.max() - full.min())).astype(np.float32)
