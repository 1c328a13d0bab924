"""The interface of every segmenter of the SAM family."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from MedCLIPSAMLib.results import VisualPrompts


class PromptableSegmenter(Protocol):
    """Encodes an image once and answers many visual prompts on it.

    Attributes:
        name: For results and messages.
        prompt_kinds: Which of "boxes" and "points" the model was trained for.
    """

    name: str
    prompt_kinds: frozenset[str]

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
