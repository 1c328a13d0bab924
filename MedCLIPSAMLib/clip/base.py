"""The interface of every vision-language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from MedCLIPSAMLib.images import Frame

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageState:
    """The cached beginning of an image tower, up to the layer that M2IB disturbs.

    Attributes:
        tokens: (1, N, C) tokens after that layer.
        grid: Rows and columns of the patch tokens, which come last among the N.
        frame: How the image lies in the model's input.
    """

    tokens: Tensor
    grid: tuple[int, int]
    frame: Frame


class VisionLanguageModel(Protocol):
    """An image tower and a text tower with a common space of D dimensions.

    Attributes:
        name: For results and messages.
    """

    name: str

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """Return unit vectors (N, D) float32 of images (H, W) or (H, W, 3) uint8."""
        ...

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        """Return unit vectors (N, D) float32."""
        ...

    def image_state(self, image: np.ndarray, layer: int) -> ImageState:
        """Return the tokens after ``layer`` (0-based), without gradients; InputError if there is no such layer."""
        ...

    def finish(self, tokens: Tensor, layer: int) -> Tensor:
        """Run the rest of the image tower on (B, N, C) tokens: unit vectors (B, D), differentiable in the tokens."""
        ...

    def patch_embeddings(self, image: np.ndarray) -> tuple[np.ndarray, Frame]:
        """Return unit vectors (rows, columns, D) float32, one per patch, and the image's frame in the model input.

        Raises:
            InputError: The model was not trained with region captions, so its patches say nothing about text.
        """
        ...
