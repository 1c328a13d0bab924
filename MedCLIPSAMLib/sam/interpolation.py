"""Bilinear interpolation as the SAM programs do it, as matrices: an image is ``rows @ plane @ columns.T``."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional


@lru_cache(maxsize=64)
def bilinear(source: int, target: int) -> np.ndarray:
    """Return the (target, source) float32 weights of torch's bilinear interpolation, without align_corners."""
    # On the unit matrix, interpolation along the rows alone gives the weights themselves.
    unit = torch.eye(source)[None, None]
    weights = functional.interpolate(unit, (target, source), mode="bilinear", align_corners=False)[0, 0].numpy()
    weights.setflags(write=False)
    return weights


@lru_cache(maxsize=64)
def through_input(source: int, size: int, inner: int, target: int) -> np.ndarray:
    """Return the (target, source) weights of: up to the model's input, cut the padding off, on to the image.

    Args:
        source: Cells of the decoder's mask.
        size: Pixels of the model's input.
        inner: How many of those the image takes.
        target: Pixels of the image.
    """
    weights = bilinear(inner, target) @ bilinear(source, size)[:inner]
    weights.setflags(write=False)
    return weights
