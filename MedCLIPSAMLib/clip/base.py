"""The interface of every vision-language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.memory import MemoryGuard

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


@dataclass(frozen=True)
class TargetActivations:
    """What the class-activation methods look at: tokens late in the image tower, and how the similarity hangs on them.

    Attributes:
        values: (P, C) activations of the P patches.
        gradients: (P, C) gradient of ``logit_scale * cos(image, text)`` with respect to ``values``.
        grid: Rows and columns of the P patches.
        frame: How the image lies in the model's input.
    """

    values: Tensor
    gradients: Tensor
    grid: tuple[int, int]
    frame: Frame


class VisionLanguageModel(Protocol):
    """An image tower and a text tower with a common space of D dimensions.

    A method that a tower cannot serve raises InputError before it computes anything.

    Attributes:
        name: For results and messages.
        logit_scale: The factor of the cosine similarity that the model was trained with.
        saliency_methods: Which of "m2ib", "patch_similarity", "gscorecam" and "gradcam" the model can serve.
        memory: Watches over the device's memory.
    """

    name: str
    logit_scale: float
    saliency_methods: frozenset[str]
    memory: MemoryGuard

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

    def activations(self, image: np.ndarray, text: Tensor) -> TargetActivations:
        """Return the activations before the last attention, and their gradients for the unit vector ``text`` (D,)."""
        ...

    def model_input(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """Return an image as the tower reads it, (1, 3, S, S) float32 normalised, and its frame."""
        ...

    def encode_input(self, batch: Tensor) -> Tensor:
        """Return unit vectors (B, D) float32, without gradients, of (B, 3, S, S) inputs as of :meth:`model_input`."""
        ...

    def patch_embeddings(self, image: np.ndarray) -> tuple[np.ndarray, Frame]:
        """Return unit vectors (rows, columns, D) float32, one per patch, and the image's frame in the model input.

        Raises:
            InputError: The model was not trained with region captions, so its patches say nothing about text.
        """
        ...
