"""From a map over the model's input to a saliency map over the image."""

from __future__ import annotations

import logging

import numpy as np

from MedCLIPSAMLib.images import Frame

logger = logging.getLogger(__name__)

ROUNDING = 1e-6
"""Relative span below which a map is constant: interpolation leaves single-precision rounding errors."""


def minimum_maximum(plane: np.ndarray) -> np.ndarray:
    """Scale a map linearly to minimum 0 and maximum 1; a constant map becomes 0, with a warning."""
    low, high = float(plane.min()), float(plane.max())
    if not high - low > ROUNDING * max(abs(low), abs(high)):
        logger.warning("The saliency map is constant; it is set to zero.")
        return np.zeros(plane.shape, np.float32)
    return ((plane - low) / (high - low)).astype(np.float32)


def to_image(plane: np.ndarray, frame: Frame) -> np.ndarray:
    """Interpolate a map (rows, columns) over the model's input bilinearly to the image, then scale it to [0, 1]."""
    return minimum_maximum(frame.restore(plane))
