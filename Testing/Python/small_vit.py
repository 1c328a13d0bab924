"""A small vision transformer with random weights behind the interface of the CLIP models; written out plainly."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from MedCLIPSAMLib.clip.base import ImageState, TargetActivations
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.memory import MemoryGuard

SIZE, PATCH, WIDTH, HEADS, DEPTH, DIMENSION = 48, 8, 40, 4, 4, 24
GRID = SIZE // PATCH


class SmallVit:
    """Implements ``VisionLanguageModel`` but for the texts: use any unit vector (24,).

    Attributes:
        memory_for: Larger batches fail as for want of memory, and every batch on a device other than the CPU does if
            it is 0; None for no limit.
        batches: Size of every batch that :meth:`finish` and :meth:`encode_input` were given.
    """

    name = "small"
    saliency_methods = frozenset({"m2ib", "gscorecam", "gradcam"})
    logit_scale = 20.0

    def __init__(self, seed: int = 0, device: str = "cpu"):
        self.memory = MemoryGuard(self.name, device, lambda: None)
        self.memory_for: int | None = None
        self.batches: list[int] = []
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) / math.sqrt(shape[0])

        self.embed, self.head = random(3 * PATCH * PATCH, WIDTH), random(WIDTH, DIMENSION)
        self.cls, self.position = random(1, 1, WIDTH), random(1, GRID * GRID + 1, WIDTH)
        self.blocks = [
            {"qkv": 2 * random(WIDTH, 3 * WIDTH), "out": random(WIDTH, WIDTH), "wide": random(WIDTH, 4 * WIDTH),
             "narrow": random(4 * WIDTH, WIDTH)}
            for _ in range(DEPTH)
        ]  # fmt: skip

    def model_input(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        frame = Frame(image.shape[0], image.shape[1], SIZE, keep_aspect=False)
        placed = frame.place(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))
        return torch.from_numpy(placed / 127.5 - 1).permute(2, 0, 1)[None].float(), frame

    def image_state(self, image: np.ndarray, layer: int) -> ImageState:
        if not 0 <= layer < DEPTH:
            raise InputError(f"layer {layer}: the image tower of small has layers 0 to {DEPTH - 1}.")
        pixels, frame = self.model_input(image)
        return ImageState(self.transform(self.tokens(pixels), 0, layer + 1), (GRID, GRID), frame)

    def finish(self, tokens: Tensor, layer: int) -> Tensor:
        self._take(len(tokens))
        return self.vectors(self.transform(tokens, layer + 1, DEPTH))

    def encode_input(self, batch: Tensor) -> Tensor:
        self._take(len(batch))
        return self.vectors(self.transform(self.tokens(batch), 0, DEPTH))

    def activations(self, image: np.ndarray, text: Tensor) -> TargetActivations:
        pixels, frame = self.model_input(image)
        tokens = self.transform(self.tokens(pixels), 0, DEPTH - 1)
        read = normalised(tokens).requires_grad_(True)
        similarity = self.vectors(self.rest(self.blocks[-1], tokens + self.attention(self.blocks[-1], read)))[0] @ text
        (gradient,) = torch.autograd.grad(self.logit_scale * similarity, read)
        return TargetActivations(read.detach()[0, 1:], gradient[0, 1:], (GRID, GRID), frame)

    def tokens(self, pixels: Tensor) -> Tensor:
        patches = functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2) @ self.embed
        return torch.cat([self.cls.expand(len(pixels), -1, -1), patches], dim=1) + self.position

    def transform(self, tokens: Tensor, first: int, last: int) -> Tensor:
        for block in self.blocks[first:last]:
            tokens = self.rest(block, tokens + self.attention(block, normalised(tokens)))
        return tokens

    def attention(self, block: dict[str, Tensor], read: Tensor) -> Tensor:
        query, key, value = (read @ block["qkv"]).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS), dim=-1)
        return (weights @ value).transpose(1, 2).flatten(2) @ block["out"]

    def rest(self, block: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return tokens + functional.gelu(normalised(tokens) @ block["wide"]) @ block["narrow"]

    def vectors(self, tokens: Tensor) -> Tensor:
        return functional.normalize(normalised(tokens[:, 0]) @ self.head, dim=-1)

    def _take(self, batch: int) -> None:
        self.batches.append(batch)
        if self.memory_for is not None and batch > self.memory_for and (batch > 1 or self.memory.device != "cpu"):
            raise RuntimeError(f"CUDA out of memory: a batch of {batch}")


def normalised(tokens: Tensor) -> Tensor:
    return functional.layer_norm(tokens, tokens.shape[-1:])


def random_text(seed: int = 0, dimension: int = DIMENSION) -> np.ndarray:
    """A unit vector."""
    vector = np.random.default_rng(seed).normal(size=dimension)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def random_picture(seed: int = 0, shape: tuple[int, int] = (70, 110)) -> np.ndarray:
    """Noise with a bright disc, (H, W) uint8."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    ground = np.random.default_rng(seed).normal(70, 25, shape)
    disc = (x - 0.4 * shape[1]) ** 2 + (y - 0.5 * shape[0]) ** 2 < (0.25 * min(shape)) ** 2
    return np.clip(np.where(disc, 190, ground), 0, 255).astype(np.uint8)
