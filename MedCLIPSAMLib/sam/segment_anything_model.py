"""SAM ViT-H, ViT-L and ViT-B: Kirillov et al., "Segment Anything", ICCV 2023."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.sam.interpolation import through_input
from MedCLIPSAMLib.sam.sam_family import PIXEL_MEAN, PIXEL_STD, SamFamily
from MedCLIPSAMLib.sam.vit_encoder import VIT_B, VIT_H, VIT_L

SIZES = {"sam-vit-h": ("SAM ViT-H", VIT_H), "sam-vit-l": ("SAM ViT-L", VIT_L), "sam-vit-b": ("SAM ViT-B", VIT_B)}


class SegmentAnything(SamFamily):
    """SAM with the conventions of its own predictor.

    The longest side becomes 1024 by pillow's bilinear filter, which averages when it shrinks; the colours are
    normalised; zeros are padded at the bottom and right. A mask of 256 x 256 is interpolated to 1024, cut, and
    interpolated to the image.
    """

    prompt_kinds = frozenset({"boxes", "points", "both"})
    trained_kinds = frozenset({"boxes", "points", "both"})
    masks_per_prompt = 3

    def __init__(self, size: str, state: Mapping[str, Tensor], **settings: Any):
        """Build the model.

        Args:
            size: "sam-vit-h", "sam-vit-l" or "sam-vit-b".
            state, settings: See :class:`SamFamily`.
        """
        name, shape = SIZES[size]
        super().__init__(name, state, shape, **settings)

    def _input(self, image: np.ndarray, frame: Frame) -> np.ndarray:
        height, width = frame.inner
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        placed = np.zeros((self.image_size, self.image_size, 3), np.float32)
        placed[:height, :width] = (resized.reshape(height, width, -1) - PIXEL_MEAN) / PIXEL_STD
        return placed

    def _restore(self, planes: np.ndarray, frame: Frame) -> np.ndarray:
        height, width = frame.inner
        rows = through_input(planes.shape[1], self.image_size, height, frame.height)
        columns = through_input(planes.shape[2], self.image_size, width, frame.width)
        return rows @ planes @ columns.T
