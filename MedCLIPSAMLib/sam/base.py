"""The interface of every segmenter of the SAM family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from MedCLIPSAMLib.memory import MemoryGuard
from MedCLIPSAMLib.results import VisualPrompts


class PromptableSegmenter(Protocol):
    """Encodes an image once and answers many visual prompts on it.

    Attributes:
        name: For results and messages.
        prompt_kinds: Which of "boxes", "points" and "both" the model can take.
        trained_kinds: Which of them it was trained for.
        masks_per_prompt: How many candidates :meth:`predict_candidates` gives for each prompt; 1 for a model that
            was trained for a single mask.
        batch: How many images :meth:`prepare` encodes together; 1 where that gains nothing.
        memory: Watches over the device's memory.
    """

    name: str
    prompt_kinds: frozenset[str]
    trained_kinds: frozenset[str]
    masks_per_prompt: int
    batch: int
    memory: MemoryGuard

    def prepare(self, images: Sequence[np.ndarray]) -> None:
        """Encode images that :meth:`set_image` will be given soon, together where that is faster; keeps them cached."""
        ...

    def set_image(self, image: np.ndarray) -> None:
        """Encode ``image``, (H, W) or (H, W, 3) uint8; the embedding is kept until the next call."""
        ...

    def predict(self, prompts: VisualPrompts) -> tuple[np.ndarray, np.ndarray]:
        """Return one mask per row of ``prompts``.

        Returns:
            Logits (N, H, W) float32 in the image's own pixels, foreground above 0, and the model's own quality
            estimates (N,) float32.

        Raises:
            InputError: No image was set, no prompts were given, or the model cannot take their kind.
        """
        ...

    def predict_candidates(self, prompts: VisualPrompts) -> tuple[np.ndarray, np.ndarray]:
        """Return all M = ``masks_per_prompt`` candidates for each row of ``prompts``.

        Returns:
            Logits (N, M, H, W) float32 and the model's own quality estimates (N, M) float32.

        Raises:
            InputError: As for :meth:`predict`, or the model gives a single mask.
        """
        ...
