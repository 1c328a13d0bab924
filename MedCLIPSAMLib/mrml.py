"""MRML volumes as arrays, and where in a volume a slice view stands. Scene and nodes are arguments; no Qt.

Arrays are (K, J, I), the reverse of VTK's dimensions; matrices take (i, j, k) to right-anterior-superior millimetres.
The same functions run in the Slicer application and in a scene outside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import vtk
from slicer import vtkMRMLTransformNode
from vtk.util.numpy_support import vtk_to_numpy

from MedCLIPSAMLib.errors import InputError

_GRADIENT_STEP = 0.5  # mm; far below any bend of a useful transform, far above rounding


@dataclass(frozen=True)
class SlicePosition:
    """The slice of a volume that is nearest to what a slice view shows at its centre.

    Attributes:
        axis: Array axis (0 K, 1 J, 2 I) along which the slices follow one another.
        index: Slice along ``axis``, always one that exists.
        angle: Degrees between the normals of the view and of the slice; above about 1 the view is oblique to it.
        inside: Whether the view's centre lies within the volume along ``axis``; otherwise ``index`` is the nearest end.
    """

    axis: int
    index: int
    angle: float
    inside: bool


def matrix_array(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """Return a VTK matrix as (4, 4) float64."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtk_matrix(array: np.ndarray) -> vtk.vtkMatrix4x4:
    """Return (4, 4) as a VTK matrix."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(array, np.float64).ravel().tolist())
    return matrix


def check_volume(volume: Any) -> None:
    """Raise an error unless ``volume`` is a usable image: in a scene, with voxels, in one frame, invertible.

    Raises:
        InputError: With the reason and the remedy.
    """
    if volume is None:
        raise InputError("no volume is chosen; choose one.")
    name = volume.GetName()
    if volume.GetScene() is None:
        raise InputError(f"the volume {name!r} is not in the scene any more; choose another one.")
    if not volume.IsA("vtkMRMLScalarVolumeNode"):
        raise InputError(f"{name!r} is a {volume.GetClassName()}, not a volume; choose an image.")
    image = volume.GetImageData()
    scalars = None if image is None else image.GetPointData().GetScalars()
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        raise InputError(f"the volume {name!r} has no image data; load its file again or choose another volume.")
    components = scalars.GetNumberOfComponents()
    if components not in (1, 3, 4) or volume.IsA("vtkMRMLDiffusionWeightedVolumeNode"):
        raise InputError(
            f"the volume {name!r} has {components} values per voxel (a time series or diffusion image); "
            "extract one frame as a scalar volume first."
        )
    ijk_to_ras(volume)


def is_colour(volume: Any) -> bool:
    """Return whether the volume has three (RGB) or four (RGBA) values per voxel."""
    image = volume.GetImageData()
    return image is not None and image.GetNumberOfScalarComponents() in (3, 4)


def volume_view(volume: Any) -> np.ndarray:
    """Return the voxels without copying them: (K, J, I), or (K, J, I, 3) for a colour volume (alpha left out).

    The view lives on the node's memory: use it at once, do not keep or change it.

    Raises:
        InputError: See :func:`check_volume`.
    """
    check_volume(volume)
    image = volume.GetImageData()
    scalars = image.GetPointData().GetScalars()
    if scalars.GetDataType() == vtk.VTK_BIT:
        raise InputError(f"the volume {volume.GetName()!r} stores single bits; cast it to unsigned char first.")
    shape = image.GetDimensions()[::-1]
    if scalars.GetNumberOfComponents() == 1:
        return vtk_to_numpy(scalars).reshape(shape)
    return vtk_to_numpy(scalars).reshape(*shape, -1)[..., :3]


def volume_array(volume: Any) -> np.ndarray:
    """Return a copy of the voxels in their own type: (K, J, I), or (K, J, I, 3) for a colour volume (alpha dropped).

    Raises:
        InputError: See :func:`check_volume`.
    """
    return np.array(volume_view(volume), order="C")


def volume_shape(volume: Any) -> tuple[int, int, int]:
    """Return (K, J, I)."""
    i, j, k = volume.GetImageData().GetDimensions()
    return k, j, i


def ijk_to_ras(volume: Any) -> np.ndarray:
    """Return the volume's own (4, 4) IJK-to-RAS matrix in mm, before any parent transform.

    Raises:
        InputError: The matrix cannot be inverted.
    """
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    array = matrix_array(matrix)
    if not np.isfinite(array).all() or abs(np.linalg.det(array[:3, :3])) < 1e-12:
        raise InputError(
            f"the geometry of the volume {volume.GetName()!r} cannot be inverted (zero spacing or parallel axes); "
            "correct it in the Volumes module."
        )
    return array


def slice_position(slice_node: Any, volume: Any) -> SlicePosition:
    """Return the slice of ``volume`` that a slice view shows, for any orientation of either.

    The view's centre is taken through the volume's parent transform, which may be non-linear, to its indices; the axis
    is the one whose slices lie closest to parallel with the view there.

    Args:
        slice_node: vtkMRMLSliceNode.
        volume: Volume node with image data.

    Raises:
        InputError: See :func:`check_volume`.
    """
    check_volume(volume)
    view = matrix_array(slice_node.GetSliceToRAS())
    world_to_volume = vtk.vtkGeneralTransform()
    vtkMRMLTransformNode.GetTransformBetweenNodes(None, volume.GetParentTransformNode(), world_to_volume)
    ras_to_ijk = np.linalg.inv(ijk_to_ras(volume))

    def index_at(world: np.ndarray) -> np.ndarray:
        return ras_to_ijk[:3, :3] @ world_to_volume.TransformPoint(*world) + ras_to_ijk[:3, 3]

    centre = view[:3, 3]
    steps = np.eye(3) * _GRADIENT_STEP
    # row a: how index a changes per mm of the world, which is the normal of the slices along a
    normals = np.stack([index_at(centre + step) - index_at(centre - step) for step in steps], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normal = view[:3, 2] / np.linalg.norm(view[:3, 2])
    ijk_axis = int(np.argmax(np.abs(normals @ normal)))
    sine = float(np.linalg.norm(np.cross(normals[ijk_axis], normal)))
    position = float(index_at(centre)[ijk_axis])
    count = volume.GetImageData().GetDimensions()[ijk_axis]
    # halves go up whatever the last bits are
    index = math.floor(position + 0.5 + 1e-6) if math.isfinite(position) else 0
    return SlicePosition(
        axis=2 - ijk_axis,
        index=min(max(index, 0), count - 1),
        angle=math.degrees(math.asin(min(sine, 1.0))),
        inside=0 <= index < count,
    )


def displayed_window(volume: Any) -> tuple[float, float] | None:
    """Return the (lower, upper) intensity that Slicer shows as black and white; None for colour or without display."""
    if is_colour(volume):
        return None
    display = volume.GetDisplayNode()
    if display is None or not display.IsA("vtkMRMLScalarVolumeDisplayNode"):
        return None
    width, level = display.GetWindow(), display.GetLevel()
    if not (math.isfinite(width) and math.isfinite(level) and width > 0):
        return None
    return level - width / 2, level + width / 2


def place_beside(node: Any, volume: Any) -> None:
    """Give ``node`` the parent transform of ``volume`` and its place (patient, study or folder) in the data tree."""
    from slicer import vtkMRMLSubjectHierarchyNode

    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    tree = vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume.GetScene())
    if tree is None:
        return
    item = tree.GetItemByDataNode(volume)
    if not item:  # outside the application nothing enters nodes into the tree by itself
        return
    parent = tree.GetItemParent(item)
    own = tree.GetItemByDataNode(node)
    if own:
        tree.SetItemParent(own, parent)
    else:
        tree.CreateItem(parent, node)
