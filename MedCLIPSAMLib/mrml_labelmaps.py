"""The voxels of segments: read, replaced whole, or changed in one slice in place.

Each segment written here lies in a layer of its own, on the voxel grid of the volume that it was made for. One slice is
then written straight into the label map's memory: below a millisecond in a volume of 512 x 512 x 300, where the logic's
merge modes take 0.7 s because they scan the whole label map. Segments that share a label map (as after loading a file)
stay in it until they would overlap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from slicer import vtkOrientedImageData, vtkSegment, vtkSegmentation
from vtk.util.numpy_support import numpy_to_vtk

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.mrml import matrix_array, vtk_matrix
from MedCLIPSAMLib.mrml_grid import (
    LABELMAP,
    Grid,
    bounds,
    check_segmentation,
    check_slice,
    crop,
    first_index,
    is_empty,
    labelmap_of,
    labelmap_voxels,
    offset_on,
    overlap,
    resampled,
)

SURFACE = "Closed surface"
_SURFACE_PENDING = "MedCLIPSAM.SurfacePending"
_ROOMY = 4 * 2**20  # voxels; a segment larger than this gets room for the whole volume at once


def segment_array(segmentation: Any, volume: Any, segment_id: str) -> np.ndarray:
    """Return a segment on the voxel grid of ``volume``.

    Returns:
        (K, J, I) bool. A segment on another grid is resampled to the nearest voxels.

    Raises:
        InputError: No such segment, or see :func:`check_volume` and :func:`check_segmentation`.
    """
    grid = Grid.of(segmentation, volume)
    labelmap, label = labelmap_of(segmentation, segment_id)
    if is_empty(labelmap):
        return np.zeros(grid.shape, bool)
    offset = offset_on(labelmap, grid)
    if offset is None:
        return resampled(labelmap, label, grid)
    mask = np.zeros(grid.shape, bool)
    there, here = overlap(labelmap, offset, grid)
    mask[there] = labelmap_voxels(labelmap)[here] == label
    return mask


def segment_slice(segmentation: Any, volume: Any, segment_id: str, axis: int, index: int) -> np.ndarray:
    """Return one slice of a segment on the grid of ``volume``: 2D bool as stored; otherwise as :func:`segment_array`.

    Args:
        axis, index: Array axis (0 K, 1 J, 2 I) and the slice along it.
    """
    grid = Grid.of(segmentation, volume)
    check_slice(grid, axis, index)
    return grid_slice(segmentation, grid, segment_id, axis, index)


def grid_slice(segmentation: Any, grid: Grid, segment_id: str, axis: int, index: int) -> np.ndarray:
    """Do the work of :func:`segment_slice` on a grid."""
    labelmap, label = labelmap_of(segmentation, segment_id)
    plane = np.zeros([size for one, size in enumerate(grid.shape) if one != axis], bool)
    if is_empty(labelmap):
        return plane
    offset = offset_on(labelmap, grid)
    if offset is None:
        return np.take(resampled(labelmap, label, grid, (axis, index)), 0, axis)
    there, here = overlap(labelmap, offset, grid)
    if there[axis].start <= index < there[axis].stop:
        row = index - there[axis].start + here[axis].start
        flat = tuple(one for number, one in enumerate(there) if number != axis)
        here = tuple(row if number == axis else one for number, one in enumerate(here))
        plane[flat] = labelmap_voxels(labelmap)[here] == label
    return plane


def set_segment(segmentation: Any, volume: Any, segment_id: str, mask: np.ndarray) -> None:
    """Replace all voxels of a segment.

    A closed surface of the segment is dropped, since it is out of date: :func:`update_surfaces` makes it again.

    Args:
        mask: (K, J, I) of ``volume``; bool, or an integer type where non-zero is inside.

    Raises:
        InputError: Another shape or a float type, no such segment, or see :func:`check_volume`.
    """
    grid = Grid.of(segmentation, volume)
    mask = _check_mask(mask, grid.shape, "the volume's voxels")
    labelmap_of(segmentation, segment_id)
    box = bounds(mask)
    if box is not None and mask[box].size > _ROOMY:  # growing so much at the next edit would be felt
        replace_voxels(segmentation, segment_id, np.array(mask, order="C").view(np.uint8), (0, 0, 0), grid.matrix)
    else:
        replace_voxels(segmentation, segment_id, *crop(mask), grid.matrix)


def set_segment_slice(
    segmentation: Any, volume: Any, segment_id: str, axis: int, index: int, plane: np.ndarray
) -> None:
    """Replace one slice of a segment; every other voxel stays as it is. Fast in volumes of any size.

    Args:
        axis, index: Array axis (0 K, 1 J, 2 I) and the slice along it.
        plane: The slice as stored (the two other axes in their order); bool or integer.

    Raises:
        InputError: Another shape or a float type, no such segment or slice, or see :func:`check_volume`.
    """
    grid = Grid.of(segmentation, volume)
    check_slice(grid, axis, index)
    plane = _check_mask(plane, tuple(n for one, n in enumerate(grid.shape) if one != axis), "the slice's voxels")
    put_grid_slice(segmentation, grid, segment_id, axis, index, plane)


def put_grid_slice(segmentation: Any, grid: Grid, segment_id: str, axis: int, index: int, plane: np.ndarray) -> None:
    """Do the work of :func:`set_segment_slice` on a grid."""
    labelmap, _ = labelmap_of(segmentation, segment_id)
    offset = None if is_empty(labelmap) else offset_on(labelmap, grid)
    if offset is None or not _has_room(labelmap, offset, grid, axis, index, plane):
        _grow(segmentation, segment_id, grid, offset)
        offset = (0, 0, 0)
    if not _write_slice(segmentation, segment_id, grid, offset, axis, index, plane):
        # other segments of the same layer are in the way: move to a layer of its own, then there are none
        _grow(segmentation, segment_id, grid, offset)
        _write_slice(segmentation, segment_id, grid, (0, 0, 0), axis, index, plane)
    _changed(segmentation, segment_id)


def add_to(segmentation: Any, segment: vtkSegment, segment_id: str) -> None:
    """Add a segment without voxels in a layer of its own: the layers of other segments are not touched.

    (An "empty segment" of VTK would share the first layer.)
    """
    segment.AddRepresentation(LABELMAP, _no_voxels(np.eye(4)))
    if not segmentation.GetSegmentation().AddSegment(segment, segment_id):
        raise InputError(f"the segment {segment.GetName()!r} cannot be added to {segmentation.GetName()!r}.")


def replace_voxels(
    segmentation: Any, segment_id: str, voxels: np.ndarray, start: tuple[int, int, int], matrix: np.ndarray
) -> None:
    """Give a segment a label map of its own.

    Args:
        voxels: (K, J, I) uint8, 1 inside, may be empty. The label map keeps this very array: pass one of its own.
        start, matrix: Index of the first voxel (k, j, i); (4, 4) from indices to the segmentation's millimetres.
    """
    image = _no_voxels(matrix)
    if voxels.size:
        bounds = [(first, first + size - 1) for first, size in zip(start, voxels.shape, strict=True)]
        image.SetExtent(*bounds[2], *bounds[1], *bounds[0])
        # the VTK array keeps the numpy array alive; pages that nobody writes to never take memory
        scalars = numpy_to_vtk(voxels.reshape(-1), deep=False, array_type=vtk.VTK_UNSIGNED_CHAR)
        scalars.SetName("ImageScalars")
        image.GetPointData().SetScalars(scalars)
    _leave_layer(segmentation, segment_id)
    segment = segmentation.GetSegmentation().GetSegment(segment_id)
    segment.SetLabelValue(1)
    segment.AddRepresentation(LABELMAP, image)
    _changed(segmentation, segment_id)


def cropped_voxels(segmentation: Any, segment_id: str) -> tuple[np.ndarray, tuple[int, int, int], np.ndarray]:
    """Return a copy of a segment's voxels on its own grid, as :func:`replace_voxels` takes them."""
    labelmap, label = labelmap_of(segmentation, segment_id)
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    if is_empty(labelmap):
        return np.zeros((0, 0, 0), np.uint8), (0, 0, 0), matrix_array(matrix)
    voxels, start = crop(labelmap_voxels(labelmap) == label)
    return voxels, tuple(a + b for a, b in zip(start, first_index(labelmap), strict=True)), matrix_array(matrix)


def update_surfaces(segmentation: Any) -> bool:
    """Make the closed surfaces again that changes of voxels have dropped; return whether there were any."""
    check_segmentation(segmentation)
    if segmentation.GetAttribute(_SURFACE_PENDING) is None:
        return False
    segmentation.SetAttribute(_SURFACE_PENDING, None)
    return bool(segmentation.GetSegmentation().CreateRepresentation(SURFACE))


def _no_voxels(matrix: np.ndarray) -> vtkOrientedImageData:
    image = vtkOrientedImageData()
    image.SetImageToWorldMatrix(vtk_matrix(matrix))
    image.SetExtent(0, -1, 0, -1, 0, -1)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)  # without a type no surface could be made of it
    return image


def _has_room(
    labelmap: vtkOrientedImageData, offset: tuple[int, int, int], grid: Grid, axis: int, index: int, plane: np.ndarray
) -> bool:
    """Return whether the label map's extent has room for everything that is set in a slice."""
    there, _ = overlap(labelmap, offset, grid)
    rows, columns = (one for number, one in enumerate(there) if number != axis)
    if not there[axis].start <= index < there[axis].stop:
        return not plane.any()
    outside = plane[: rows.start], plane[rows.stop :], plane[:, : columns.start], plane[:, columns.stop :]
    return not any(part.any() for part in outside)


def _grow(segmentation: Any, segment_id: str, grid: Grid, offset: tuple[int, int, int] | None) -> None:
    """Move a segment into a label map of its own that covers the whole grid, and what it had beyond the grid."""
    labelmap, label = labelmap_of(segmentation, segment_id)
    start = (0, 0, 0)
    if is_empty(labelmap):
        voxels = np.zeros(grid.shape, np.uint8)
    elif offset is None:
        voxels = resampled(labelmap, label, grid).view(np.uint8)
    else:
        old = labelmap_voxels(labelmap)
        first = [one + shift for one, shift in zip(first_index(labelmap), offset, strict=True)]
        start = tuple(min(0, one) for one in first)
        stop = [max(n, one + size) for n, one, size in zip(grid.shape, first, old.shape, strict=True)]
        voxels = np.zeros([high - low for low, high in zip(start, stop, strict=True)], np.uint8)
        place = tuple(slice(f - s, f - s + n) for f, s, n in zip(first, start, old.shape, strict=True))
        np.equal(old, label, out=voxels[place].view(bool))
    replace_voxels(segmentation, segment_id, voxels, start, grid.matrix)


def _write_slice(
    segmentation: Any,
    segment_id: str,
    grid: Grid,
    offset: tuple[int, int, int],
    axis: int,
    index: int,
    plane: np.ndarray,
) -> bool:
    """Write a slice in place; return False, with nothing changed, if another segment of the layer is in the way."""
    labelmap, label = labelmap_of(segmentation, segment_id)
    there, here = overlap(labelmap, offset, grid)
    if not there[axis].start <= index < there[axis].stop:
        return True  # beyond the label map's extent, where nothing is set and nothing is to be set
    row = index - there[axis].start + here[axis].start
    block = labelmap_voxels(labelmap)[tuple(row if number == axis else one for number, one in enumerate(here))]
    inside = plane[tuple(one for number, one in enumerate(there) if number != axis)]
    if _shares_layer(segmentation, segment_id, labelmap):
        if (inside & (block != 0) & (block != label)).any():
            return False
        block[(block == label) & ~inside] = 0
        block[inside] = label
    else:
        block[...] = np.where(inside, label, 0)
    labelmap.GetPointData().GetScalars().Modified()
    return True


def _shares_layer(segmentation: Any, segment_id: str, labelmap: vtkOrientedImageData) -> bool:
    core = segmentation.GetSegmentation()
    others = (one for one in core.GetSegmentIDs() if one != segment_id)
    return any(core.GetSegment(one).GetRepresentation(LABELMAP) is labelmap for one in others)


def _leave_layer(segmentation: Any, segment_id: str) -> None:
    """Clear a segment's voxels from a label map that it shares, so that the other segments alone stay in it."""
    labelmap, label = labelmap_of(segmentation, segment_id)
    if is_empty(labelmap) or not _shares_layer(segmentation, segment_id, labelmap):
        return
    voxels = labelmap_voxels(labelmap)
    voxels[voxels == label] = 0
    labelmap.GetPointData().GetScalars().Modified()


def _changed(segmentation: Any, segment_id: str) -> None:
    """Drop what was derived from a segment's old voxels and tell the views, but leave other segments' surfaces."""
    core = segmentation.GetSegmentation()
    segment = core.GetSegment(segment_id)
    if segment.GetRepresentation(SURFACE) is not None:
        segmentation.SetAttribute(_SURFACE_PENDING, "1")
    segment.RemoveAllRepresentations(LABELMAP)
    core.InvokeEvent(vtkSegmentation.SourceRepresentationModified, segment_id)
    core.InvokeEvent(vtkSegmentation.RepresentationModified, segment_id)


def _check_mask(mask: np.ndarray, shape: tuple[int, ...], meaning: str) -> np.ndarray:
    """Return a mask as bool; wrong shapes and fractions are never guessed at."""
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise InputError(f"a mask of shape {mask.shape} does not fit {meaning}, {shape}.")
    if mask.dtype.kind not in "bui":
        raise InputError(f"a mask of type {mask.dtype} is not yes or no for each voxel; apply a threshold first.")
    return mask.astype(bool, copy=False)
