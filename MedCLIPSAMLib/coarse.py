"""From a saliency map to a coarse mask: threshold, connected components, confidence (Eqs. 17-19 of the paper).

The paper (Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483) leaves the confidence threshold open. Every component's
mean already lies above the map's threshold, so a small value would do nothing; 0.5 of the [0, 1] map is our choice, and
a map whose components all fail it still gives its most confident one.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy import ndimage

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import check_finite
from MedCLIPSAMLib.results import CoarseMask, Component

EIGHT_CONNECTED = np.ones((3, 3), bool)
MAXIMUM_STEPS = 1000
"""Of k-means, which on real maps settles within about 20."""


def check_saliency(saliency: np.ndarray) -> np.ndarray:
    """Return ``saliency`` as an (H, W) float array.

    Raises:
        InputError: Not a real (H, W) array with at least one pixel, NaN or infinite values, or values outside [0, 1].
    """
    saliency = np.asarray(saliency)
    if saliency.ndim != 2 or saliency.size == 0 or saliency.dtype.kind not in "buif":
        raise InputError(
            f"the saliency map has shape {saliency.shape} and type {saliency.dtype}; pass (H, W) real numbers."
        )
    check_finite(saliency, "the saliency map")
    low, high = float(saliency.min()), float(saliency.max())
    if low < 0 or high > 1:
        raise InputError(f"the saliency map runs from {low} to {high}; scale it to [0, 1].")
    return saliency if saliency.dtype in (np.float32, np.float64) else saliency.astype(np.float32)


def otsu_threshold(saliency: np.ndarray) -> float:
    """Return Otsu's threshold, Eq. 17: the split of the 8-bit map with the largest between-class variance.

    The map is rounded to 256 levels. With ``t`` the highest background level (the lowest of equally good ones),
    foreground is every level above ``t``; the value returned lies half a level above it, so that
    ``saliency > threshold`` on the unrounded map is the same decision.

    Args:
        saliency: (H, W) in [0, 1].

    Returns:
        The threshold in [0, 1]; nothing of a constant map lies above it.

    Raises:
        InputError: See :func:`check_saliency`.
    """
    saliency = check_saliency(saliency)
    counts = np.bincount(np.rint(saliency * np.float32(255)).astype(np.uint8).ravel(), minlength=256)
    below = np.cumsum(counts)
    moment = np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    valid = (below > 0) & (above > 0)
    if not valid.any():  # one level only: that level is background
        return min((float(counts.argmax()) + 0.5) / 255, 1.0)
    # N^2 times the variance between the classes, from whole numbers: equal splits across a gap stay exactly equal
    difference = (moment[-1] * below - moment * below[-1]).astype(np.float64)
    variance = np.where(valid, difference**2 / np.maximum(below * above, 1), -1.0)
    return (float(variance.argmax()) + 0.5) / 255


def kmeans_threshold(saliency: np.ndarray) -> float:
    """Return the midpoint of the two centres that k-means with k = 2 finds among the saliency values.

    Lloyd's iteration in one dimension, started at the lowest and the highest value, so the same map always gives the
    same threshold. This is the rule of the authors' program (there on a reduced map with random starts); at its optimum
    it minimises the same variance as Otsu's.

    Args:
        saliency: (H, W) in [0, 1].

    Returns:
        The threshold in [0, 1]; nothing of a constant map lies above it.

    Raises:
        InputError: See :func:`check_saliency`.
    """
    values = np.sort(check_saliency(saliency).astype(np.float32), axis=None).astype(np.float64)
    if values[0] == values[-1]:
        return float(values[0])
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = (values[0] + values[-1]) / 2
    split = int(np.searchsorted(values, middle, side="right"))
    for _ in range(MAXIMUM_STEPS):
        middle = (sums[split] / split + (sums[-1] - sums[split]) / (values.size - split)) / 2
        following = int(np.searchsorted(values, middle, side="right"))
        if following == split:
            break
        split = following
    return float(middle)


def coarse_mask(
    saliency: np.ndarray,
    *,
    method: Literal["otsu", "kmeans"] | float = "otsu",
    foreground: np.ndarray | None = None,
    minimum_confidence: float = 0.5,
    relative_confidence: float = 0.0,
    minimum_area: int = 0,
    maximum_components: int | None = None,
    order: Literal["confidence", "area"] = "confidence",
) -> CoarseMask:
    """Threshold a saliency map and keep its convincing 8-connected components (Eqs. 17-19).

    A component's confidence is its mean saliency (Eq. 18). If no component passes the rules below, the most confident
    of those with ``minimum_area`` (or, failing that, of all) is kept: only a map with nothing above the threshold, such
    as a constant one, gives an empty mask.

    Args:
        saliency: (H, W) in [0, 1].
        method: "otsu" (the paper), "kmeans" (the authors' program), or a fixed threshold in [0, 1).
        foreground: (H, W) bool, where another rule than a threshold has chosen the pixels; ``method`` is not used then,
            and the result's threshold is the lowest saliency among them.
        minimum_confidence: Keep components above this confidence (Eq. 19), in [0, 1].
        relative_confidence: Keep components with at least this part of the highest confidence, in [0, 1].
        minimum_area: Keep components with at least so many pixels.
        maximum_components: Keep at most so many; None keeps all.
        order: Which components ``maximum_components`` keeps: the most confident, or the largest ("area", the authors'
            program: 1, for lungs 2). The result lists them by confidence in either case, equal ones by area.

    Returns:
        The kept components, their labels, the threshold and the number of components dropped.

    Raises:
        InputError: A map that :func:`check_saliency` refuses, or a setting outside its range.
    """
    saliency = check_saliency(saliency)
    _check_settings(minimum_confidence, relative_confidence, minimum_area, maximum_components, order)
    if foreground is None:
        threshold = _threshold(saliency, method)
        foreground = saliency > threshold
    else:
        threshold = float(saliency[foreground].min(initial=1.0))

    labels, count = ndimage.label(foreground, structure=EIGHT_CONNECTED)
    if count == 0:
        return CoarseMask(np.zeros(saliency.shape, bool), threshold, (), np.zeros(saliency.shape, np.int32))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    sums = np.bincount(labels.ravel(), weights=saliency.ravel(), minlength=count + 1)[1:]
    confidences = sums / areas

    by_confidence = np.lexsort((-areas, -confidences))  # equal ones in reading order
    large = areas >= minimum_area
    passed = large & (confidences > minimum_confidence) & (confidences >= relative_confidence * confidences.max())
    kept = by_confidence[passed[by_confidence]]
    if kept.size == 0:
        candidates = by_confidence[large[by_confidence]]
        kept = (candidates if candidates.size else by_confidence)[:1]
    if maximum_components is not None:
        ranked = kept if order == "confidence" else kept[np.argsort(-areas[kept], kind="stable")]
        kept = kept[np.isin(kept, ranked[:maximum_components])]

    renumber = np.zeros(count + 1, np.int32)
    renumber[kept + 1] = np.arange(1, kept.size + 1)
    boxes = ndimage.find_objects(labels)
    components = tuple(
        Component(
            box=(boxes[i][1].start, boxes[i][0].start, boxes[i][1].stop, boxes[i][0].stop),
            area=int(areas[i]),
            confidence=float(confidences[i]),
        )
        for i in kept
    )
    labels = renumber[labels]
    return CoarseMask(labels > 0, threshold, components, labels, dropped=count - kept.size)


def _threshold(saliency: np.ndarray, method: str | float) -> float:
    if method == "otsu":
        return otsu_threshold(saliency)
    if method == "kmeans":
        return kmeans_threshold(saliency)
    if isinstance(method, (int, float)) and not isinstance(method, bool) and 0 <= method < 1:
        return float(method)
    raise InputError(f"threshold method {method!r}: choose 'otsu', 'kmeans' or a number from 0 to below 1.")


def _check_settings(
    minimum_confidence: float,
    relative_confidence: float,
    minimum_area: int,
    maximum_components: int | None,
    order: str,
) -> None:
    for name, value in (("minimum_confidence", minimum_confidence), ("relative_confidence", relative_confidence)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}; it must lie in [0, 1].")
    if not 0 <= minimum_area < math.inf:
        raise InputError(f"minimum_area is {minimum_area}; it must be a number of pixels, 0 or more.")
    if maximum_components is not None and maximum_components < 1:
        raise InputError(f"maximum_components is {maximum_components}; it must be at least 1, or None for all.")
    if order not in ("confidence", "area"):
        raise InputError(f"order is {order!r}; choose 'confidence' or 'area'.")
