"""Windowing, 8 bit, RGB, and resizing with its exact inverse: the only place where pixels change their grid.

Pixel coordinates follow the usual continuous convention: pixel ``i`` covers ``[i, i + 1)``, so a box
``(x0, y0, x1, y1)`` around columns 3..7 and rows 2..5 is ``(3, 2, 8, 6)`` and scales with the image exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from MedCLIPSAMLib.errors import InputError

MINIMUM_SIDE = 16


def check_image(image: np.ndarray, name: str = "image") -> np.ndarray:
    """Return ``image`` as an array if the pipeline can work with it.

    Args:
        image: (H, W) or (H, W, 3), any real dtype.
        name: How the image is called in messages.

    Raises:
        InputError: Wrong shape or type, a side under 16 pixels, NaN or infinite values, or a constant image.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(f"{name} has shape {image.shape}; pass (H, W) for grey or (H, W, 3) for RGB.")
    if image.dtype.kind not in "buif":
        raise InputError(f"{name} has type {image.dtype}; pass real numbers (integers or floats).")
    if min(image.shape[:2]) < MINIMUM_SIDE:
        raise InputError(
            f"{name} is {image.shape[1]} x {image.shape[0]} pixels; at least {MINIMUM_SIDE} x {MINIMUM_SIDE} are "
            "needed."
        )
    check_finite(image, name)
    if image.min() == image.max():
        raise InputError(f"{name} is constant (every pixel is {image.flat[0]}); there is nothing to segment in it.")
    return image


def check_finite(array: np.ndarray, name: str = "image") -> None:
    """Raise :class:`InputError` if a float array holds NaN or infinite values; the message counts them."""
    if array.dtype.kind != "f":
        return
    # Slice by slice, so that a volume needs no second array of its own size.
    planes = array if array.ndim == 4 or (array.ndim == 3 and array.shape[2] != 3) else array[None]
    count = sum(int(plane.size - np.count_nonzero(np.isfinite(plane))) for plane in planes)
    if count:
        raise InputError(
            f"{name} holds {count} NaN or infinite values of {array.size}; replace them, for example with the "
            "background value."
        )


def robust_window(image: np.ndarray, low: float = 0.5, high: float = 99.5) -> tuple[float, float]:
    """Return the intensity percentiles ``low`` and ``high`` (in percent) of an image or volume.

    An 8-bit image is taken to be made for display: its window is (0, 255). Where the percentiles fall together, as
    in a mostly empty image, the window is the full range.
    """
    if image.dtype == np.uint8:
        return 0.0, 255.0
    if image.dtype == np.bool_:
        return 0.0, 1.0
    step = max(1, round((image.size / 4_000_000) ** (1 / image.ndim)))  # 4 million values tell the percentiles
    sample = image[tuple(slice(None, None, step) for _ in range(min(image.ndim, 3)))]
    bottom, top = (float(value) for value in np.percentile(sample, (low, high)))
    if not top > bottom:
        bottom, top = float(image.min()), float(image.max())
    return bottom, top


def to_uint8(image: np.ndarray, window: tuple[float, float] | None = None) -> np.ndarray:
    """Map ``window`` = (lower, upper) intensity linearly onto 0..255 with rounding; values outside are clipped.

    Args:
        image: Any shape, real.
        window: Intensities that become 0 and 255; None takes :func:`robust_window`.

    Raises:
        InputError: The upper bound is not above the lower one.
    """
    lower, upper = robust_window(image) if window is None else window
    if image.dtype == np.uint8 and (lower, upper) == (0.0, 255.0):
        return image
    if not upper > lower:
        raise InputError(f"window ({lower}, {upper}): the upper intensity must be above the lower one.")
    # Single precision tells 16-bit values and ordinary floats apart; wider types may need double.
    is_long = image.dtype.itemsize > 4 or (image.dtype.kind in "ui" and image.dtype.itemsize == 4)
    wide = np.float64 if is_long else np.float32
    scaled = (image.astype(wide) - wide(lower)) * wide(255.0 / (upper - lower))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def to_rgb(image: np.ndarray, window: tuple[float, float] | None = None) -> np.ndarray:
    """Return (H, W, 3) uint8 from a grey or RGB image of any real dtype; see :func:`to_uint8`."""
    image = to_uint8(image, window)
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


@lru_cache(maxsize=64)
def _resize_matrix(source: int, target: int) -> np.ndarray:
    """Return the (target, source) weights of a one-dimensional resize: area mean when shrinking, else linear."""
    if target < source:
        edges = np.arange(target + 1) * (source / target)
        cells = np.arange(source)
        overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
        weights = np.clip(overlap, 0, None)
    else:
        centre = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
        left = np.minimum(centre.astype(int), max(source - 2, 0))
        right_weight = centre - left
        weights = np.zeros((target, source))
        weights[np.arange(target), left] = 1 - right_weight
        weights[np.arange(target), np.minimum(left + 1, source - 1)] += right_weight
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights.setflags(write=False)
    return weights


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize the first two axes to (height, width): mean over the covered area when shrinking, bilinear otherwise.

    Returns float32 of shape (height, width) or (height, width, C), in the input's value range.
    """
    rows = _resize_matrix(image.shape[0], height)
    columns = _resize_matrix(image.shape[1], width)
    image = image.astype(np.float32, copy=False)
    if image.ndim == 2:
        return rows @ image @ columns.T
    return np.stack([rows @ image[..., channel] @ columns.T for channel in range(image.shape[2])], axis=-1)


@dataclass(frozen=True)
class Frame:
    """How an image of (height, width) lies in a model's square input of side ``size``.

    Attributes:
        height, width: The image's own size in pixels.
        size: Side of the model input.
        keep_aspect: True scales the longest side to ``size`` and pads at the bottom and right with zeros (SAM);
            False squashes to ``size`` x ``size`` (CLIP).
    """

    height: int
    width: int
    size: int
    keep_aspect: bool = True

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width that the image takes in the model input."""
        if not self.keep_aspect:
            return self.size, self.size
        scale = self.size / max(self.height, self.width)
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    def place(self, image: np.ndarray) -> np.ndarray:
        """Resize ``image`` (H, W[, C]) into the model input: float32 (size, size[, C]), padding 0."""
        height, width = self.inner
        placed = np.zeros((self.size, self.size, *image.shape[2:]), np.float32)
        placed[:height, :width] = resize(image, height, width)
        return placed

    def restore(self, plane: np.ndarray) -> np.ndarray:
        """Bring a map (h, w) over the model input, of any resolution, back to the image: float32 (H, W).

        The padding is cut off at sub-pixel accuracy: each image pixel's centre is looked up in the map bilinearly.
        """
        inner_height, inner_width = self.inner
        rows = _lookup_matrix(plane.shape[0], self.height, inner_height / self.size)
        columns = _lookup_matrix(plane.shape[1], self.width, inner_width / self.size)
        return rows @ plane.astype(np.float32, copy=False) @ columns.T

    def scale_points(self, points: np.ndarray) -> np.ndarray:
        """Map points (..., 2) as (x, y) from image pixels to model-input pixels, float32."""
        inner_height, inner_width = self.inner
        factor = np.array([inner_width / self.width, inner_height / self.height], np.float32)
        return (np.asarray(points, np.float32) * factor).astype(np.float32)

    def scale_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes (N, 4) as (x0, y0, x1, y1) from image pixels to model-input pixels, float32."""
        return self.scale_points(np.asarray(boxes, np.float32).reshape(-1, 2, 2)).reshape(-1, 4)


@lru_cache(maxsize=64)
def _lookup_matrix(source: int, target: int, covered: float) -> np.ndarray:
    """Return (target, source) weights that read ``target`` pixels from the first ``covered`` part of the cells."""
    centre = (np.arange(target) + 0.5) * (covered * source / target) - 0.5
    last = max(int(np.ceil(covered * source - 1e-9)) - 1, 0)  # never reads a cell that is padding alone
    centre = np.clip(centre, 0, last)
    left = np.minimum(centre.astype(int), max(source - 2, 0))
    weights = np.zeros((target, source), np.float32)
    weights[np.arange(target), left] = 1 - (centre - left)
    weights[np.arange(target), np.minimum(left + 1, source - 1)] += (centre - left).astype(np.float32)
    weights.setflags(write=False)
    return weights
