"""The voxel grid of a volume as a segmentation node sees it, and where a segment's label map lies on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import vtk
from slicer import vtkMRMLTransformNode, vtkOrientedImageData, vtkOrientedImageDataResample
from vtk.util.numpy_support import vtk_to_numpy

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.mrml import check_volume, ijk_to_ras, matrix_array, volume_shape, vtk_matrix

LABELMAP = "Binary labelmap"
_VOXEL_TOLERANCE = 1e-3  # grids that agree within this fraction of a voxel are one grid


@dataclass(frozen=True)
class Grid:
    """A voxel grid in the coordinates of a segmentation node.

    Attributes:
        shape: (K, J, I).
        matrix: (4, 4), indices to the segmentation's own millimetres.
    """

    shape: tuple[int, int, int]
    matrix: np.ndarray

    @classmethod
    def of(cls, segmentation: Any, volume: Any) -> Grid:
        """Return the grid of ``volume`` as ``segmentation`` sees it.

        Raises:
            InputError: An unusable volume, or a non-linear transform between the two nodes.
        """
        check_segmentation(segmentation)
        check_volume(volume)
        matrix = ijk_to_ras(volume)
        if volume.GetParentTransformNode() is not segmentation.GetParentTransformNode():
            between = vtk.vtkGeneralTransform()
            parents = volume.GetParentTransformNode(), segmentation.GetParentTransformNode()
            vtkMRMLTransformNode.GetTransformBetweenNodes(*parents, between)
            if not vtkMRMLTransformNode.IsGeneralTransformLinear(between):
                raise InputError(
                    f"{segmentation.GetName()!r} and {volume.GetName()!r} are under different non-linear transforms; "
                    "put both under the same transform, or choose a new segmentation."
                )
            linear = vtk.vtkMatrix4x4()
            vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(*parents, linear)
            matrix = matrix_array(linear) @ matrix
        return cls(volume_shape(volume), matrix)


def check_segmentation(segmentation: Any) -> None:
    """Raise an error unless ``segmentation`` is in a scene and keeps its segments as label maps.

    Raises:
        InputError: With the reason and the remedy.
    """
    if segmentation is None:
        raise InputError("no segmentation is chosen; choose one or make a new one.")
    if segmentation.GetScene() is None:
        raise InputError(f"the segmentation {segmentation.GetName()!r} is not in the scene any more; choose another.")
    source = segmentation.GetSegmentation().GetSourceRepresentationName()
    if source != LABELMAP:
        raise InputError(
            f"{segmentation.GetName()!r} keeps its segments as {source!r}; choose a new segmentation, or make "
            f"{LABELMAP!r} its source representation in the Segmentations module."
        )


def check_slice(grid: Grid, axis: int, index: int) -> None:
    """Raise :class:`InputError` unless ``grid`` has this slice."""
    if axis not in (0, 1, 2):
        raise InputError(f"axis {axis!r} is unknown; pass 0 (K), 1 (J) or 2 (I).")
    if not 0 <= index < grid.shape[axis]:
        raise InputError(f"slice {index} does not exist; axis {axis} has slices 0 to {grid.shape[axis] - 1}.")


def labelmap_of(segmentation: Any, segment_id: str) -> tuple[vtkOrientedImageData, int]:
    """Return the label map that holds a segment, perhaps among others, and the segment's value in it.

    Raises:
        InputError: No such segment, or see :func:`check_segmentation`.
    """
    check_segmentation(segmentation)
    segment = segmentation.GetSegmentation().GetSegment(segment_id)
    labelmap = None if segment is None else segment.GetRepresentation(LABELMAP)
    if labelmap is None:
        raise InputError(f"{segmentation.GetName()!r} has no segment {segment_id!r}; it may have been deleted.")
    return labelmap, segment.GetLabelValue()


def is_empty(labelmap: vtkOrientedImageData) -> bool:
    """Return whether a label map holds no voxels at all."""
    return labelmap.GetPointData().GetScalars() is None or min(labelmap.GetDimensions()) < 1


def labelmap_voxels(labelmap: vtkOrientedImageData) -> np.ndarray:
    """Return the label values (K, J, I) of a label map that is not empty; a view."""
    return vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(labelmap.GetDimensions()[::-1])


def first_index(labelmap: vtkOrientedImageData) -> tuple[int, int, int]:
    """Return the index (k, j, i) of a label map's first voxel."""
    extent = labelmap.GetExtent()
    return extent[4], extent[2], extent[0]


def offset_on(labelmap: vtkOrientedImageData, grid: Grid) -> tuple[int, int, int] | None:
    """Return how many voxels (k, j, i) the label map's indices lie below the grid's; None if it is another grid."""
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    between = np.linalg.inv(grid.matrix) @ matrix_array(matrix)
    offset = np.round(between[:3, 3])
    extent = np.reshape(labelmap.GetExtent(), (3, 2)).astype(float)
    corners = np.stack(np.meshgrid(*extent, indexing="ij"), axis=-1).reshape(-1, 3)
    shift = corners @ between[:3, :3].T + between[:3, 3] - corners
    if not np.abs(shift - offset).max() < _VOXEL_TOLERANCE:
        return None
    i, j, k = (int(one) for one in offset)
    return k, j, i


def overlap(
    labelmap: vtkOrientedImageData, offset: tuple[int, int, int], grid: Grid
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the common part of a label map and the grid: as slices of the grid, and of the label map's array."""
    there, here = [], []
    sizes = labelmap.GetDimensions()[::-1]
    for first, shift, size, count in zip(first_index(labelmap), offset, sizes, grid.shape, strict=True):
        start = first + shift
        low = min(max(start, 0), count)
        high = max(min(start + size, count), low)
        there.append(slice(low, high))
        here.append(slice(low - start, high - start) if high > low else slice(0, 0))
    return tuple(there), tuple(here)


def resampled(
    labelmap: vtkOrientedImageData, label: int, grid: Grid, place: tuple[int, int] | None = None
) -> np.ndarray:
    """Return where a label map has ``label``, at the nearest voxels of another grid.

    Args:
        place: (axis, index) of the only slice that is wanted, or None for all.

    Returns:
        (K, J, I) bool; one slice keeps its axis, with the size 1.
    """
    box = [(0, size - 1) for size in grid.shape]
    if place is not None:
        box[place[0]] = (place[1], place[1])
    reference, result = vtkOrientedImageData(), vtkOrientedImageData()
    reference.SetExtent(*box[2], *box[1], *box[0])
    reference.SetImageToWorldMatrix(vtk_matrix(grid.matrix))
    reference.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    resample = vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage
    if not resample(labelmap, reference, result, False, False):
        raise InputError("a segment cannot be brought onto the volume's voxels; check the segmentation's geometry.")
    return labelmap_voxels(result) == label


def bounds(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Return the smallest box (K, J, I) that holds everything set in a bool mask; None for an empty mask."""
    k = np.flatnonzero(mask.any(axis=(1, 2)))
    if not k.size:
        return None
    flat = mask[k[0] : k[-1] + 1].any(axis=0)
    rows = k, np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    box_k, box_j, box_i = (slice(int(one[0]), int(one[-1]) + 1) for one in rows)
    return box_k, box_j, box_i


def crop(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return the part of a bool mask (K, J, I) that is not empty, as an own uint8 array, and its first index."""
    box = bounds(mask)
    if box is None:
        return np.zeros((0, 0, 0), np.uint8), (0, 0, 0)
    return np.array(mask[box], order="C").view(np.uint8), (box[0].start, box[1].start, box[2].start)
