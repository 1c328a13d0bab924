"""What the authors' released program does after the saliency, where it differs from the paper; for comparison only.

github.com/HealthX-Lab/MedCLIP-SAMv2, files ``generate_saliency_maps.py``, ``postprocess_saliency_maps.py`` and
``prompt_sam.py``. The behaviour is rebuilt here from its description; the code is our own. What it cannot do is not
imitated: with fewer than ten foreground pixels or with an empty mask that program fails, and here the points are fewer
or there are no prompts.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

from MedCLIPSAMLib.coarse import EIGHT_CONNECTED, check_saliency, kmeans_threshold
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.results import CoarseMask, Component, VisualPrompts
from MedCLIPSAMLib.saliency.normalise import minimum_maximum

INPUT_SIDE = 224
CLUSTER_SIDE = 256
POINTS = 10


def released_saliency(plane: np.ndarray, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Return a saliency map as that program writes it: 224 x 224, stretched to the image by repetition, in 8 bit.

    The map is interpolated bilinearly to 224 x 224, scaled to [0, 1], brought to the image's size by nearest neighbour
    and rounded to 256 levels.

    Args:
        plane: (h, w) map over the whole image: of the patches, as ``m2ib_plane`` gives it for a squashed image, or any
            finer one. From the map of ``m2ib`` itself the result is off by about one level where the map bends.
        shape: Of the image, (H, W, ...); None for ``plane``'s own.

    Returns:
        (H, W) float32, multiples of 1 / 255 in [0, 1].
    """
    height, width = (plane.shape if shape is None else shape)[:2]
    full = minimum_maximum(Frame(INPUT_SIDE, INPUT_SIDE, INPUT_SIDE, keep_aspect=False).restore(plane))
    return np.rint(_nearest(full, height, width) * np.float32(255)) / np.float32(255)


def released_coarse_mask(saliency: np.ndarray, components: int = 1) -> CoarseMask:
    """Threshold by k-means on a 256 x 256 picture and keep the largest components.

    Args:
        saliency: (H, W) in [0, 1]; rounded to 8 bit.
        components: How many are kept, at least 1 (2 for lungs); more, where others are as large as the last of them.

    Returns:
        As :func:`MedCLIPSAMLib.coarse.coarse_mask`; the threshold is that of the 256 x 256 picture. Empty for a
        constant map.

    Raises:
        InputError: A map that :func:`MedCLIPSAMLib.coarse.check_saliency` refuses, or a number below 1.
    """
    if components < 1:
        raise InputError(f"components is {components}; it must be at least 1.")
    saliency = np.rint(check_saliency(saliency).astype(np.float32) * np.float32(255)) / np.float32(255)
    small = _nearest(saliency, CLUSTER_SIDE, CLUSTER_SIDE)
    threshold = kmeans_threshold(small)
    found, count = ndimage.label(_nearest(small > threshold, *saliency.shape), structure=EIGHT_CONNECTED)
    labels, _ = ndimage.label(_largest(found, count, components) > 0, structure=EIGHT_CONNECTED)
    kept = [
        Component(
            box=(columns.start, rows.start, columns.stop, rows.stop),
            area=int(np.count_nonzero(labels[rows, columns] == number)),
            confidence=float(saliency[rows, columns][labels[rows, columns] == number].mean()),
        )
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1)
    ]
    order = sorted(range(len(kept)), key=lambda index: -kept[index].confidence)
    renumber = np.zeros(len(kept) + 1, np.int32)
    renumber[np.array(order, np.intp) + 1] = np.arange(1, len(kept) + 1)
    labels = renumber[labels]
    return CoarseMask(labels > 0, threshold, tuple(kept[index] for index in order), labels, dropped=count - len(kept))


def released_visual_prompts(
    coarse: CoarseMask, kind: Literal["boxes", "points", "both"] = "boxes", seed: int = 0, *, merged: bool = True
) -> VisualPrompts:
    """Return one box around all contours, and points from all of them together.

    A box ends one pixel before the image's last edge at the latest. A component within the hole of another has no
    contour of its own. Points are pixel indices (x, y), not centres; every box gets the same ten.

    Args:
        coarse: The coarse mask; without components the result has length 0.
        kind: "boxes", "points" or "both"; "points" makes one row, whatever ``merged`` is.
        seed: Of the points, which that program draws without one.
        merged: False for a box around each outer contour, as its authors advise for lungs.

    Raises:
        InputError: An unknown kind.
    """
    if kind not in ("boxes", "points", "both"):
        raise InputError(f"kind of prompt {kind!r}: choose 'boxes', 'points' or 'both'.")
    boxes = _outer_boxes(coarse.mask, merged)
    if kind == "boxes":
        return VisualPrompts(boxes=boxes)
    rows = min(len(boxes), 1) if kind == "points" else len(boxes)
    pixels = np.argwhere(coarse.mask.T)
    chosen = np.random.default_rng(seed).choice(pixels, size=min(POINTS, len(pixels)), replace=False)
    points = np.zeros((rows, POINTS, 2), np.float32)
    labels = np.full((rows, POINTS), -1, np.int32)
    points[:, : len(chosen)] = chosen
    labels[:, : len(chosen)] = 1
    return VisualPrompts(boxes=boxes if kind == "both" else None, points=points, point_labels=labels)


def released_largest(mask: np.ndarray, number: int) -> np.ndarray:
    """Keep the ``number`` largest 8-connected components of a mask, and those as large as the last of them.

    That program does so after the segmenter; its number is that of the coarse mask's outer contours, see
    :func:`outer_contours`.

    Args:
        mask: (H, W) bool.
        number: 0 or more.

    Returns:
        (H, W) bool.
    """
    labels, count = ndimage.label(mask, structure=EIGHT_CONNECTED)
    return _largest(labels, count, number) > 0


def outer_contours(mask: np.ndarray) -> int:
    """Return the number of 8-connected components of an (H, W) mask that do not lie within a hole of another."""
    return ndimage.label(ndimage.binary_fill_holes(mask), structure=EIGHT_CONNECTED)[1]


def _largest(labels: np.ndarray, count: int, number: int) -> np.ndarray:
    """Set the labels 1 to ``count`` of all but the ``number`` largest components, and their equals, to 0."""
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    smallest = np.sort(areas)[::-1][:number].min(initial=np.iinfo(areas.dtype).max)
    return np.where(np.concatenate([[False], areas >= smallest])[labels], labels, 0)


def _outer_boxes(mask: np.ndarray, merged: bool) -> np.ndarray:
    labels = mask.astype(np.int32) if merged else ndimage.label(ndimage.binary_fill_holes(mask), EIGHT_CONNECTED)[0]
    height, width = mask.shape
    boxes = [
        (columns.start, rows.start, min(columns.stop, width - 1), min(rows.stop, height - 1))
        for rows, columns in ndimage.find_objects(labels)
    ]
    return np.array(boxes, np.float32).reshape(-1, 4)


def _nearest(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h, w) by nearest neighbour as OpenCV does: output pixel i shows input pixel floor(i * h / height)."""
    rows, columns = (
        np.minimum(np.floor(np.arange(target) * (1 / (target / source))).astype(int), source - 1)
        for source, target in zip(plane.shape, (height, width), strict=True)
    )
    return plane[np.ix_(rows, columns)]
