"""What can be measured on a mask: parts, their place, size and shape, as numbers without units of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

SMALLEST_SHARE = 0.05
"""A part below this share of the largest one is an uneven edge of the mask, not a finding."""


@dataclass(frozen=True)
class Part:
    """One 8-connected part of a mask of (H, W).

    Attributes:
        area: Share of the image, in (0, 1].
        row, column: Centroid as a share of height and width, in (0, 1); 0 is the top, and the left as one sees it.
        top, left, height, width: Bounding box as a share of height and width.
        eccentricity: Of the ellipse with the same second moments: 0 for a disc, towards 1 for a line.
        solidity: Area over that of the convex hull of its pixels.
        compactness: 4 pi area / perimeter^2: 1 for a disc, lower for a rugged outline. The perimeter follows the
            Cauchy-Crofton formula in four directions.
        axis: Angle of the long axis to the horizontal in degrees, in [0, 90].
    """

    area: float
    row: float
    column: float
    top: float
    left: float
    height: float
    width: float
    eccentricity: float
    solidity: float
    compactness: float
    axis: float


def parts_of(mask: np.ndarray, smallest_share: float = SMALLEST_SHARE) -> list[Part]:
    """Measure the parts of a mask, the largest first.

    Args:
        mask: (H, W) bool.
        smallest_share: Parts smaller than this share of the largest one are left out.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count == 0:
        return []
    areas = np.bincount(labels.ravel())[1:]
    kept = [index for index in np.argsort(-areas, kind="stable") if areas[index] >= smallest_share * areas.max()]
    windows = ndimage.find_objects(labels)
    return [_measure(labels[windows[index]] == index + 1, windows[index], mask.shape) for index in kept]


def _measure(part: np.ndarray, window: tuple[slice, slice], shape: tuple[int, ...]) -> Part:
    rows, columns = np.nonzero(part)
    area = len(rows)
    covariance = np.cov(np.stack([columns, rows]).astype(float), bias=True) if area > 1 else np.zeros((2, 2))
    covariance += np.eye(2) / 12  # a pixel is a square, not a point
    values, vectors = np.linalg.eigh(covariance)
    across, along = vectors[:, 1]
    return Part(
        area=area / (shape[0] * shape[1]),
        row=(window[0].start + rows.mean() + 0.5) / shape[0],
        column=(window[1].start + columns.mean() + 0.5) / shape[1],
        top=window[0].start / shape[0],
        left=window[1].start / shape[1],
        height=part.shape[0] / shape[0],
        width=part.shape[1] / shape[1],
        eccentricity=math.sqrt(max(0.0, 1 - values[0] / values[1])),
        solidity=area / max(area, _hull_area(part)),
        compactness=min(1.0, 4 * math.pi * area / perimeter(part) ** 2),
        axis=math.degrees(math.atan2(abs(along), abs(across))),
    )


def perimeter(mask: np.ndarray) -> float:
    """Return the length of the outline of (H, W) bool in pixels, by Cauchy-Crofton: crossings of four sets of lines.

    Lines of one direction that lie d apart cross an outline pi / 2 x d times as often per length, on average over the
    directions; the diagonals' lines lie 1 / sqrt(2) apart.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    straight = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    diagonal = np.abs(padded[1:, 1:] - padded[:-1, :-1]).sum() + np.abs(padded[1:, :-1] - padded[:-1, 1:]).sum()
    return float(math.pi / 8 * (straight + diagonal / math.sqrt(2)))


def _hull_area(part: np.ndarray) -> float:
    """Return the area of the convex hull of the pixels' corners."""
    rows, columns = np.nonzero(part & ~ndimage.binary_erosion(part, np.ones((3, 3))))
    corners = np.concatenate([np.stack([rows + a, columns + b], axis=1) for a in (0, 1) for b in (0, 1)])
    try:
        return float(ConvexHull(corners).volume)  # in two dimensions "volume" is the area
    except QhullError:
        return float(part.sum())
