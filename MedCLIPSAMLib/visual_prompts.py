"""From a coarse mask to what the segmenter is asked: a box, points, or both for each component.

Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483, section 3.3: a bounding box around, or points sampled inside, every
connected contour. Points are drawn for each component by itself and from a seed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from scipy import ndimage

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.results import CoarseMask, VisualPrompts

NEGATIVE_MARGIN = 0.02
"""Negatives keep this part of the image's longer side (at least one pixel) away from every component, because the
outline of a coarse mask is not to be trusted."""


def visual_prompts(
    coarse: CoarseMask,
    kind: Literal["boxes", "points", "both"] = "boxes",
    *,
    points_per_component: int = 10,
    negatives: int = 0,
    padding: float = 0.0,
    seed: int = 0,
) -> VisualPrompts:
    """Return one row of prompts for each component of ``coarse``, in the order of its components.

    Args:
        coarse: See :func:`MedCLIPSAMLib.coarse.coarse_mask`; without components the result has length 0.
        kind: "boxes", "points" or "both".
        points_per_component: Points inside each component, drawn without replacement at pixel centres
            (x + 0.5, y + 0.5); a component with fewer pixels gives all of them and the row is filled up.
        negatives: Points outside, added to each row; drawn likewise from the background away from all components.
        padding: Widens each box on each of its four sides by this part of its width or height, clipped to the image.
        seed: Of the points; equal seeds give equal points.

    Returns:
        Boxes (N, 4); points (N, P, 2) and labels (N, P) with P = points_per_component + negatives.

    Raises:
        InputError: A setting outside its range, or negatives asked for with boxes alone.
    """
    if kind not in ("boxes", "points", "both"):
        raise InputError(f"kind of prompt {kind!r}: choose 'boxes', 'points' or 'both'.")
    if kind != "boxes" and points_per_component < 1:
        raise InputError(f"points_per_component is {points_per_component}; it must be at least 1.")
    if negatives < 0 or (negatives > 0 and kind == "boxes"):
        raise InputError(f"negatives is {negatives} with prompts of kind {kind!r}; use 0, or points and 1 or more.")
    if not 0 <= padding < np.inf:
        raise InputError(f"padding is {padding}; it must be a part of the box side, 0 or more.")
    boxes = None if kind == "points" else _boxes(coarse, padding)
    if kind == "boxes":
        return VisualPrompts(boxes=boxes)
    points, labels = _points(coarse, points_per_component, negatives, np.random.default_rng(seed))
    return VisualPrompts(boxes=boxes, points=points, point_labels=labels)


def jitter_boxes(
    prompts: VisualPrompts, strength: float, rng: np.random.Generator, shape: tuple[int, ...]
) -> VisualPrompts:
    """Return ``prompts`` with each box edge moved by a normal(0, strength * side) amount; points stay.

    Args:
        prompts: Prompts without boxes come back as they are.
        strength: Standard deviation as a part of the box width (left and right edge) or height (top and bottom).
        rng: Advances by 4 N draws whatever the strength.
        shape: (H, W, ...) of the image; the boxes stay inside it and at least one pixel wide and high.

    Raises:
        InputError: ``strength`` is negative or not finite.
    """
    if not 0 <= strength < np.inf:
        raise InputError(f"box jitter {strength}: it must be a part of the box side, 0 or more.")
    if prompts.boxes is None:
        return prompts
    edges = prompts.boxes.astype(np.float64).reshape(-1, 2, 2)  # (N, first or last, x or y)
    sides = np.abs(edges[:, 1] - edges[:, 0])
    edges = edges + rng.standard_normal(edges.shape) * (strength * sides[:, None])
    limit = np.array([shape[1], shape[0]], np.float32)
    edges = np.clip(np.sort(edges, axis=1).astype(np.float32), 0, limit)
    first, last = edges[:, 0], edges[:, 1]
    thin = last - first < 1  # such a box becomes the pixel under its centre
    pixel = np.minimum(np.floor((first + last) / 2), limit - 1)
    edges = np.stack([np.where(thin, pixel, first), np.where(thin, pixel + 1, last)], axis=1)
    return replace(prompts, boxes=edges.reshape(-1, 4).astype(np.float32))


def _boxes(coarse: CoarseMask, padding: float) -> np.ndarray:
    boxes = np.array([component.box for component in coarse.components], np.float64).reshape(-1, 2, 2)
    margin = padding * (boxes[:, 1] - boxes[:, 0])
    height, width = coarse.mask.shape
    padded = np.stack([boxes[:, 0] - margin, boxes[:, 1] + margin], axis=1)
    return np.clip(padded, 0, (width, height)).reshape(-1, 4).astype(np.float32)


def _points(
    coarse: CoarseMask, positives: int, negatives: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return points (N, P, 2) and labels (N, P): the positives, then the negatives; -1 where none is left."""
    number = len(coarse.components)
    points = np.zeros((number, positives + negatives, 2), np.float32)
    labels = np.full((number, positives + negatives), -1, np.int32)
    background = _far_background(coarse.mask) if negatives else np.empty((0, 2), np.intp)
    for row, component in enumerate(coarse.components):
        x0, y0, x1, y1 = component.box
        inside = np.argwhere(coarse.labels[y0:y1, x0:x1] == row + 1) + np.array([y0, x0])
        for pixels, wanted, first, label in ((inside, positives, 0, 1), (background, negatives, positives, 0)):
            chosen = rng.choice(pixels, size=min(wanted, len(pixels)), replace=False)
            points[row, first : first + len(chosen)] = chosen[:, ::-1] + 0.5
            labels[row, first : first + len(chosen)] = label
    return points, labels


def _far_background(mask: np.ndarray) -> np.ndarray:
    """Return (n, 2) rows and columns of the pixels that are further than the margin from the mask."""
    if not mask.any():
        return np.empty((0, 2), np.intp)
    margin = max(1.0, NEGATIVE_MARGIN * max(mask.shape))
    return np.argwhere(ndimage.distance_transform_edt(~mask) > margin)
