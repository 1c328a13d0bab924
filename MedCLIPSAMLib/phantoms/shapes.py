"""What the phantoms are drawn with: smooth noise, spline outlines, vessel trees and projected tubes."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.interpolate import CubicSpline


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float | tuple[float, ...]) -> np.ndarray:
    """Return Gaussian noise smoothed by ``sigma`` (pixels per axis), mean 0 and standard deviation 1, float32.

    Very smooth noise is drawn on a coarser grid and interpolated, which is much faster and looks the same.
    """
    sigmas = np.broadcast_to(np.asarray(sigma, float), (len(shape),))
    steps = np.maximum(1, (sigmas / 3).astype(int))
    coarse_shape = [int(np.ceil(side / step)) + 2 for side, step in zip(shape, steps, strict=True)]
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse_shape, np.float32), sigmas / steps, mode="reflect")
    for axis, (side, step) in enumerate(zip(shape, steps, strict=True)):
        if step == 1:
            noise = np.take(noise, np.arange(side), axis)
            continue
        position = np.arange(side) / step + 0.5
        left = position.astype(int)
        weight = (position - left).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        noise = np.take(noise, left, axis) * (1 - weight) + np.take(noise, left + 1, axis) * weight
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def smooth_step(values: np.ndarray, width: float) -> np.ndarray:
    """Return 0 below, 1 above zero, with a smooth edge that is ``width`` wide (same units as ``values``)."""
    t = np.clip(values / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def closed_spline(points: list[tuple[float, float]], samples: int = 400) -> np.ndarray:
    """Return (samples, 2) points of the smooth closed curve through ``points``."""
    knots = np.asarray([*points, points[0]], float)
    length = np.concatenate([[0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(knots, axis=0), axis=1)))])
    return CubicSpline(length, knots, bc_type="periodic")(np.linspace(0, length[-1], samples, endpoint=False))


def open_spline(points: list[tuple[float, ...]], samples: int = 400) -> np.ndarray:
    """Return (samples, D) points of the smooth curve from the first to the last of ``points``."""
    knots = np.asarray(points, float)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    return CubicSpline(length, knots)(np.linspace(0, length[-1], samples))


def fill_outline(outline: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool, True where the pixel centre lies inside the closed ``outline`` (N, 2) as (x, y) in pixels."""
    height, width = shape
    following = np.roll(outline, -1, axis=0)
    flips = np.zeros((height, width + 1), bool)
    for row in range(height):
        y = row + 0.5
        crossing = (outline[:, 1] <= y) != (following[:, 1] <= y)
        start, end = outline[crossing], following[crossing]
        x = start[:, 0] + (y - start[:, 1]) / (end[:, 1] - start[:, 1]) * (end[:, 0] - start[:, 0])
        for column in np.clip(np.ceil(x - 0.5), 0, width).astype(int):
            flips[row, column] ^= True
    return np.logical_xor.accumulate(flips, axis=1)[:, :width]


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance to the mask's edge in pixels, positive inside, float32."""
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return (inside - outside).astype(np.float32)


def vessel_tree(
    rng: np.random.Generator, root: np.ndarray, targets: np.ndarray, leaf_radius: float = 0.42, spacing: float = 0.7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grow a tree from ``root`` through ``targets`` and return dense samples of its branches.

    Each target joins the node that lies near and close to the root by path, nearest targets first; radii follow
    Murray's law (exponent 2.7) from the number of leaves behind a branch.

    Args:
        rng: Source of the branches' slight curvature.
        root: (3,) position in mm.
        targets: (N, 3) positions in mm.
        leaf_radius: Radius of a last branch in mm.
        spacing: Distance of the samples along a branch in mm.

    Returns:
        Points (M, 3) in mm, radii (M,) in mm, and unit directions (M, 3).
    """
    nodes = np.vstack([root, targets[np.argsort(np.linalg.norm(targets - root, axis=1))]])
    parent, path = np.zeros(len(nodes), int), np.zeros(len(nodes))
    for index in range(1, len(nodes)):
        distance = np.linalg.norm(nodes[:index] - nodes[index], axis=1)
        parent[index] = np.argmin(1.35 * distance + path[:index])
        path[index] = path[parent[index]] + distance[parent[index]]
    leaves = np.ones(len(nodes))
    for index in range(len(nodes) - 1, 0, -1):
        leaves[parent[index]] += leaves[index]
    points, radii, directions = [], [], []
    for index in range(1, len(nodes)):
        start, end = nodes[parent[index]], nodes[index]
        length = np.linalg.norm(end - start)
        along = np.linspace(0, 1, max(2, int(length / spacing)))[:, None]
        bow = rng.normal(0, 0.06 * length, 3) * np.sin(np.pi * along)
        points.append(start + (end - start) * along + bow)
        radius = leaf_radius * leaves[index] ** (1 / 2.7)
        radii.append(np.full(len(along), radius))
        directions.append(np.broadcast_to((end - start) / max(length, 1e-6), (len(along), 3)))
    return np.vstack(points), np.concatenate(radii), np.vstack(directions)


def draw_discs(points: np.ndarray, radii: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return (H, W) float32 in [0, 1]: the union of discs at ``points`` (N, 2) as (x, y) with ``radii``, in pixels."""
    drawn = np.zeros(shape[0] * shape[1], np.float32)
    corner = np.floor(points).astype(int)
    for reach in np.unique(np.ceil(radii)).astype(int):  # discs of a similar size are stamped together
        chosen = np.ceil(radii) == reach
        for dy in range(-reach - 1, reach + 2):
            for dx in range(-reach - 1, reach + 2):
                column, row = (corner[chosen] + (dx, dy)).T
                distance = np.hypot(column + 0.5 - points[chosen, 0], row + 0.5 - points[chosen, 1])
                cover = np.clip(radii[chosen] - distance + 0.5, 0, 1)
                use = (cover > 0) & (column >= 0) & (column < shape[1]) & (row >= 0) & (row < shape[0])
                np.maximum.at(drawn, row[use] * shape[1] + column[use], cover[use].astype(np.float32))
    return drawn.reshape(shape)


def project_points(points: np.ndarray, weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return (H, W) float64: ``weights`` (N,) spread bilinearly over the pixels at ``points`` (N, 2) as (x, y)."""
    x, y = points[:, 0] - 0.5, points[:, 1] - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    image = np.zeros(shape[0] * shape[1])
    for column, row, weight in (
        (left, top, (left + 1 - x) * (top + 1 - y)),
        (left + 1, top, (x - left) * (top + 1 - y)),
        (left, top + 1, (left + 1 - x) * (y - top)),
        (left + 1, top + 1, (x - left) * (y - top)),
    ):
        inside = (column >= 0) & (column < shape[1]) & (row >= 0) & (row < shape[0])
        flat = row[inside] * shape[1] + column[inside]
        image += np.bincount(flat, (weights * weight)[inside], minlength=image.size)
    return image.reshape(shape)
