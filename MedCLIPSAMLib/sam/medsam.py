"""MedSAM: Ma et al., "Segment Anything in Medical Images", Nature Communications 15:654, 2024."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage
from torch import Tensor

from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.sam.interpolation import bilinear
from MedCLIPSAMLib.sam.sam_family import SamFamily
from MedCLIPSAMLib.sam.vit_encoder import VIT_B, VitShape

SMALLEST = 1e-7
"""Probabilities are kept that far from 0 and 1, where logits are infinite."""


class MedSAM(SamFamily):
    """A SAM ViT-B trained for boxes on medical images, with the conventions of its own inference program.

    The image is squashed to 1024 x 1024 by cubic splines, and its intensities are scaled from minimum..maximum to
    0..1, without SAM's colour normalisation. The probability, and not the logit, is interpolated to the image.
    """

    prompt_kinds = frozenset({"boxes"})
    trained_kinds = frozenset({"boxes"})
    masks_per_prompt = 1
    keep_aspect = False

    def __init__(self, state: Mapping[str, Tensor], shape: VitShape = VIT_B, **settings: Any):
        """Build the model; for the arguments see :class:`SamFamily`."""
        super().__init__("MedSAM", state, shape, **settings)

    def _input(self, image: np.ndarray, frame: Frame) -> np.ndarray:
        squashed = squash(image, self.image_size).astype(np.float64)
        low, high = squashed.min(), squashed.max()
        return ((squashed - low) / max(high - low, 1e-8)).astype(np.float32)

    def _restore(self, planes: np.ndarray, frame: Frame) -> np.ndarray:
        rows = bilinear(planes.shape[1], frame.height)
        columns = bilinear(planes.shape[2], frame.width)
        probability = rows @ (1 / (1 + np.exp(-np.clip(planes, -60, 60)))) @ columns.T
        probability = np.clip(probability, SMALLEST, 1 - SMALLEST)
        return np.log(probability) - np.log1p(-probability)


def squash(image: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W[, 3]) uint8 to (size, size[, 3]) uint8 by cubic splines, after a Gaussian blur along a side that
    shrinks: the resize of scikit-image with order 3 and anti-aliasing, channel by channel.

    Fractions are cut off and not rounded, as the program does.
    """
    if image.ndim == 3:
        return np.stack([_squash_plane(image[..., channel], size, image) for channel in range(3)], axis=-1)
    return _squash_plane(image, size, image)


def _squash_plane(plane: np.ndarray, size: int, image: np.ndarray) -> np.ndarray:
    factors = np.array(plane.shape) / size
    blurred = ndimage.gaussian_filter(plane.astype(np.float64), np.maximum(0, (factors - 1) / 2), mode="mirror")
    zoomed = ndimage.zoom(blurred, 1 / factors, order=3, mode="mirror", grid_mode=True)
    return np.clip(zoomed, image.min(), image.max()).astype(np.uint8)
