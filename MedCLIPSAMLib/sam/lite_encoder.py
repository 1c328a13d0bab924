"""LiteMedSAM's image encoder, run once per image for the segmenter and the image tower of the lite engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.memory import MemoryGuard
from MedCLIPSAMLib.sam.embedding_cache import content_digest
from MedCLIPSAMLib.sam.tiny_vit import TinyViT

GRID = 64
REMEMBERED = 6
"""Images whose features are kept, 7 MB each: a slice and its two neighbours, at two scales."""


@dataclass(frozen=True)
class LiteFeatures:
    """The encoder's output for one image.

    Attributes:
        frame: How the image lies in the 256 x 256 input.
        embedding: (1, 256, 64, 64), what the mask decoder reads.
        tokens: (1, 1024, 736), the features after stage 2, stage 4 and the neck, averaged onto a 32 x 32 grid.
    """

    frame: Frame
    embedding: Tensor
    tokens: Tensor


def model_input(image: np.ndarray) -> tuple[np.ndarray, Frame]:
    """Return LiteMedSAM's input, (256, 256, 3) float32 in [0, 1], and its frame, as in the official inference code.

    The longest side becomes 256 (area mean), intensities are scaled from minimum..maximum to 0..1, then zeros are
    padded at the bottom and right.

    Args:
        image: (H, W) or (H, W, 3) uint8.
    """
    frame = Frame(image.shape[0], image.shape[1], TinyViT.image_size)
    placed = frame.place(image)
    height, width = frame.inner
    inner = placed[:height, :width]
    low, high = float(inner.min()), float(inner.max())
    inner -= low
    inner /= max(high - low, 1e-8)
    if placed.ndim == 2:
        placed = np.repeat(placed[..., None], 3, axis=2)
    return placed, frame


class LiteEncoder:
    """Callable that encodes an image and remembers the last few, so that two models can share the work.

    Attributes:
        device: Where it is.
        memory: Watches over the device's memory, for all models that share the encoder: they move together.
    """

    def __init__(self, state: dict[str, Tensor], device: torch.device):
        """Load the encoder.

        Args:
            state: The checkpoint's entries under ``image_encoder.``, without that prefix.
            device: Where to run.
        """
        self.device = device
        encoder = TinyViT()
        encoder.load_state_dict(state)
        encoder.eval().requires_grad_(False)
        self.encoder = encoder.fuse().to(device, memory_format=torch.channels_last)
        self.memory = MemoryGuard("LiteMedSAM's encoder", str(device), self._to_cpu)
        self._followers: list[Callable[[torch.device], None]] = []
        self._remembered: OrderedDict[str, LiteFeatures] = OrderedDict()

    def __call__(self, image: np.ndarray) -> LiteFeatures:
        """Encode ``image``, (H, W) or (H, W, 3) uint8."""
        key = content_digest(image)
        if key in self._remembered:
            self._remembered.move_to_end(key)
            return self._remembered[key]
        features = self._remembered[key] = self.memory.run(lambda _: self._encode(image), 1, "encoder")
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return features

    def follow(self, move: Callable[[torch.device], None]) -> None:
        """Have ``move`` called with the new device whenever the encoder has gone to another one."""
        self._followers.append(move)

    def _to_cpu(self) -> None:
        self.device = torch.device("cpu")
        self._remembered.clear()
        self.encoder.to(self.device)
        for move in self._followers:
            move(self.device)

    @torch.inference_mode()
    def features(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, 256, 64, 64) and tokens (B, 1024, 736) of (B, 3, 256, 256) inputs."""
        batch = batch.to(self.device).contiguous(memory_format=torch.channels_last)
        scales = self.encoder.multi_scale(batch)
        tokens = torch.nn.functional.avg_pool2d(torch.cat(scales, dim=1), 2).flatten(2).transpose(1, 2)
        return scales[-1], tokens

    def _encode(self, image: np.ndarray) -> LiteFeatures:
        placed, frame = model_input(image)
        embedding, tokens = self.features(torch.from_numpy(placed).permute(2, 0, 1)[None])
        return LiteFeatures(frame, embedding.contiguous(), tokens.contiguous())
