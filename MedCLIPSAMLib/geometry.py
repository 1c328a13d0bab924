"""A volume as slices in the standard radiological orientation, for any orientation of its axes, with exact inverse.

Array axes are (K, J, I); the matrix takes (i, j, k) to right-anterior-superior millimetres. Models see axial slices
with anterior at the top and the patient's right at the image's left, coronal slices with superior at the top and right
at the left, sagittal slices with superior at the top and anterior at the left: seen as ITK's LPS axes run, every
displayed row and column points to the left, posterior or inferior. Voxels are only flipped and transposed, never
resampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from MedCLIPSAMLib.errors import InputError

PLANE_NAMES = ("sagittal", "coronal", "axial")  # by the world axis (R, A, S) that the slices follow one another on
_ANISOTROPIC = 1.2
_ROW_AND_COLUMN = ((2, 1), (2, 0), (1, 0))  # world axes of displayed rows and columns, for each plane


def spacing(ijk_to_ras: np.ndarray) -> tuple[float, float, float]:
    """Return the voxel size along I, J and K in mm."""
    i, j, k = np.linalg.norm(_check_matrix(ijk_to_ras)[:3, :3], axis=0)
    return float(i), float(j), float(k)


def slice_axis(ijk_to_ras: np.ndarray, shape: tuple[int, ...]) -> int:
    """Return the array axis along which a volume was acquired slice by slice.

    That is the only axis with a single slice, or the one whose spacing exceeds the next largest more than 1.2 times;
    otherwise K (axis 0), the last one stored.

    Args:
        ijk_to_ras: (4, 4), mm.
        shape: (K, J, I).
    """
    _check_shape(shape)
    single = [axis for axis, count in enumerate(shape) if count == 1]
    if len(single) == 1:
        return single[0]
    steps = spacing(ijk_to_ras)[::-1]
    order = np.argsort(steps)
    return int(order[2]) if steps[order[2]] > _ANISOTROPIC * steps[order[1]] else 0


def world_axes(ijk_to_ras: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return, for the array axes K, J, I, the nearest world axis (0 R, 1 A, 2 S) and whether it runs along it (1) or
    against it (-1). Each world axis is taken once: the assignment with the largest sum of cosines.
    """
    directions = _check_matrix(ijk_to_ras)[:3, 2::-1]  # columns in the order K, J, I
    directions = directions / np.linalg.norm(directions, axis=0)
    # rounding lets volumes at 45 degrees fall the same way whatever the last bits are
    world = max(permutations(range(3)), key=lambda rows: round(float(np.abs(directions[rows, range(3)]).sum()), 6))
    first, second, third = (1 if directions[row, axis] >= 0 else -1 for axis, row in enumerate(world))
    return world, (first, second, third)


def take_slice(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """Return slice ``index`` of ``volume`` along the array axis ``axis`` as stored; a view, no copy."""
    return volume[_slice_of(volume, axis, index)]


def put_slice(volume: np.ndarray, axis: int, index: int, plane: np.ndarray) -> None:
    """Write ``plane``, as stored, into slice ``index`` of ``volume`` along ``axis``, in place."""
    place = _slice_of(volume, axis, index)
    if volume[place].shape != plane.shape:
        raise InputError(f"a plane of shape {plane.shape} does not fit slices of shape {volume[place].shape}.")
    volume[place] = plane


def _slice_of(volume: np.ndarray, axis: int, index: int) -> tuple[slice | int, ...]:
    if volume.ndim not in (3, 4) or axis not in (0, 1, 2):
        raise InputError(
            f"axis {axis} of an array of shape {volume.shape}: pass a volume (K, J, I) and axis 0, 1 or 2."
        )
    if not 0 <= index < volume.shape[axis]:
        raise InputError(f"slice {index} does not exist; axis {axis} has slices 0 to {volume.shape[axis] - 1}.")
    return tuple(int(index) if one == axis else slice(None) for one in range(3))


@dataclass(frozen=True)
class SliceGeometry:
    """How slices are taken from one volume and put back; make it with :meth:`of`.

    Attributes:
        shape: (K, J, I) of the volume.
        axis: Array axis along which the slices follow one another.
        plane_name: "axial", "coronal" or "sagittal", whichever is nearest.
        pixel_spacing: (row, column) distance in mm of the slices as displayed.
        transpose: Whether stored rows become displayed columns.
        flip_rows, flip_columns: Whether the displayed rows or columns run against the stored axis.
    """

    shape: tuple[int, int, int]
    axis: int
    plane_name: str
    pixel_spacing: tuple[float, float]
    transpose: bool
    flip_rows: bool
    flip_columns: bool

    @classmethod
    def of(cls, shape: tuple[int, ...], ijk_to_ras: np.ndarray, axis: int | str | None = None) -> SliceGeometry:
        """Return the geometry of slices along ``axis``.

        Args:
            shape: (K, J, I).
            ijk_to_ras: (4, 4), mm; may be oblique or mirrored.
            axis: Array axis 0, 1 or 2; "axial", "coronal" or "sagittal"; None for :func:`slice_axis`.

        Raises:
            InputError: Another axis, shape, or a matrix that cannot be inverted.
        """
        _check_shape(shape)
        world, signs = world_axes(ijk_to_ras)
        if axis is None:
            axis = slice_axis(ijk_to_ras, shape)
        elif isinstance(axis, str) and axis in PLANE_NAMES:
            axis = world.index(PLANE_NAMES.index(axis))
        elif isinstance(axis, bool | str) or axis not in (0, 1, 2):
            raise InputError(f"axis {axis!r} is unknown; pass axial, coronal, sagittal, 0, 1 or 2.")
        row, column = (world.index(one) for one in _ROW_AND_COLUMN[world[axis]])
        steps = spacing(ijk_to_ras)[::-1]
        return cls(
            shape=(int(shape[0]), int(shape[1]), int(shape[2])),
            axis=int(axis),
            plane_name=PLANE_NAMES[world[axis]],
            pixel_spacing=(steps[row], steps[column]),
            transpose=row > column,
            flip_rows=signs[row] > 0,
            flip_columns=signs[column] > 0,
        )

    @property
    def count(self) -> int:
        """Number of slices."""
        return self.shape[self.axis]

    @property
    def plane_shape(self) -> tuple[int, int]:
        """(H, W) of a displayed slice."""
        rows, columns = (size for axis, size in enumerate(self.shape) if axis != self.axis)
        return (columns, rows) if self.transpose else (rows, columns)

    def to_display(self, plane: np.ndarray) -> np.ndarray:
        """Turn a stored plane, grey or with colours last, into the displayed orientation; a view, no copy."""
        plane = plane.swapaxes(0, 1) if self.transpose else plane
        return plane[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def from_display(self, plane: np.ndarray) -> np.ndarray:
        """Undo :meth:`to_display`; a view, no copy."""
        plane = plane[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]
        return plane.swapaxes(0, 1) if self.transpose else plane

    def extract(self, volume: np.ndarray, index: int) -> np.ndarray:
        """Return slice ``index`` of ``volume`` as displayed: a contiguous copy in memory, (H, W) or (H, W, 3).

        Raises:
            InputError: The volume has another shape, or there is no such slice.
        """
        self._check(volume)
        return np.array(self.to_display(take_slice(volume, self.axis, index)), order="C", subok=False)

    def insert(self, volume: np.ndarray, index: int, plane: np.ndarray) -> None:
        """Write a displayed plane (H, W) into slice ``index`` of ``volume``, which may be memory-mapped.

        Raises:
            InputError: The volume or the plane has another shape, or there is no such slice.
        """
        self._check(volume)
        if plane.shape != self.plane_shape:
            raise InputError(
                f"a plane of shape {plane.shape} does not fit {self.plane_name} slices of {self.plane_shape}."
            )
        put_slice(volume, self.axis, index, self.from_display(plane))

    def _check(self, volume: np.ndarray) -> None:
        if volume.shape[:3] != self.shape:
            raise InputError(f"the volume has shape {volume.shape}; this geometry is for {self.shape}.")


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"a volume of shape {tuple(shape)} has no slices; pass (K, J, I), each at least 1.")


def _check_matrix(ijk_to_ras: np.ndarray) -> np.ndarray:
    matrix = np.asarray(ijk_to_ras, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
        raise InputError(f"ijk_to_ras must be an invertible 4x4 matrix, not {np.array2string(matrix, precision=4)}.")
    return matrix
