"""Saliency and entropy maps as overlay volumes: published exactly where they were computed, coloured, found again."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.mrml import check_volume, ijk_to_ras, place_beside, volume_shape, vtk_matrix

Kind = Literal["saliency", "entropy"]
VOLUME_ROLE = "MedCLIPSAM.volume"
_KIND, _PROMPT, _AXIS, _INDEX = (f"MedCLIPSAM.{name}" for name in ("Kind", "Prompt", "Axis", "Index"))
_TABLE = "MedCLIPSAM.ColorTable"
_UNDERNEATH = "MedCLIPSAM.foreground"  # node reference to the user's own foreground volume
_OPACITY = "MedCLIPSAM.ForegroundOpacity"
_COLOURS = 256
# Below the lower threshold an overlay is transparent, so that the image is seen.
_WINDOWS = {"saliency": (0.0, 1.0), "entropy": (0.0, math.log(2.0))}
_THRESHOLDS = {"saliency": (0.15, 2.0), "entropy": (0.05, 2.0)}
# RGB 0 to 255 at even steps: both rise steadily in lightness; warm for saliency, cold for entropy.
_RAMPS = {
    "saliency": ((45, 10, 70), (115, 20, 110), (190, 45, 85), (238, 100, 45), (252, 175, 55), (255, 250, 190)),
    "entropy": ((20, 25, 75), (25, 70, 140), (15, 125, 165), (40, 180, 165), (130, 225, 150), (240, 255, 200)),
}


def publish_overlay(
    scene: Any, volume: Any, kind: Kind, prompt: str, array: np.ndarray, axis: int, index: int | None = None
) -> Any:
    """Show a map over its volume; the node of the same volume, kind and prompt is used again.

    Display settings are made with the node and then left to the user.

    Args:
        scene: MRML scene.
        volume: The volume that the map was computed for.
        kind: "saliency" (0 to 1) or "entropy" (0 to ln 2, in nats).
        prompt: The text prompt.
        array: (K, J, I), or one slice as stored when ``index`` is given: the node then is a volume of that one slice.
            Any real type; stored as float32, NaN and infinities as 0.
        axis: Array axis along which the slices follow one another.
        index: The slice, or None for the whole volume.

    Returns:
        The vtkMRMLScalarVolumeNode.

    Raises:
        InputError: Unknown kind, another shape, no such slice, or an unusable volume; the scene is then unchanged.
    """
    check_volume(volume)
    if kind not in _RAMPS:
        raise InputError(f"overlay kind {kind!r} is unknown; pass 'saliency' or 'entropy'.")
    shape = volume_shape(volume)
    if axis not in (0, 1, 2) or (index is not None and not 0 <= index < shape[axis]):
        raise InputError(f"slice {index} along axis {axis} does not exist in a volume of shape {shape}.")
    wanted = shape if index is None else tuple(n for one, n in enumerate(shape) if one != axis)
    if array.shape != wanted or array.dtype.kind not in "buif":
        raise InputError(f"a map of shape {array.shape} and type {array.dtype} does not fit {wanted}.")
    matrix = ijk_to_ras(volume)
    if index is not None:
        array = np.expand_dims(array, axis)
        matrix[:3, 3] += index * matrix[:3, 2 - axis]

    node = find_overlay(scene, volume, kind, prompt)
    if node is None:
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{' '.join(prompt.split())} ({kind})")
        node.CreateDefaultDisplayNodes()
        node.SetAttribute(_KIND, kind)
        node.SetAttribute(_PROMPT, prompt)
        node.SetNodeReferenceID(VOLUME_ROLE, volume.GetID())
        _set_up_display(node.GetDisplayNode(), colour_table(scene, kind), kind)
    modified = node.StartModify()
    try:
        node.SetAttribute(_AXIS, str(axis))
        node.SetAttribute(_INDEX, None if index is None else str(index))
        node.SetIJKToRASMatrix(vtk_matrix(matrix))
        _set_voxels(node, array)
        place_beside(node, volume)
    finally:
        node.EndModify(modified)
    return node


def find_overlays(scene: Any, volume: Any, kind: Kind | None = None, prompt: str | None = None) -> list[Any]:
    """Return the overlay nodes of a volume, all or those of one kind or prompt."""
    nodes = scene.GetNodesByClass("vtkMRMLScalarVolumeNode")
    nodes.UnRegister(None)
    found = []
    for number in range(nodes.GetNumberOfItems()):
        node = nodes.GetItemAsObject(number)
        if (
            node.GetAttribute(_KIND) in ((kind,) if kind else _RAMPS)
            and node.GetNodeReferenceID(VOLUME_ROLE) == volume.GetID()
            and prompt in (None, node.GetAttribute(_PROMPT))
        ):
            found.append(node)
    return found


def find_overlay(scene: Any, volume: Any, kind: Kind, prompt: str) -> Any:
    """Return the overlay node of a volume, kind and prompt, or None."""
    return next(iter(find_overlays(scene, volume, kind, prompt)), None)


def overlay_array(node: Any) -> np.ndarray:
    """Return a copy of a map as it was published: (K, J, I) float32, or the 2D slice as stored.

    Raises:
        InputError: The node has lost its voxels.
    """
    check_volume(node)
    array = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars()).reshape(volume_shape(node))
    place = overlay_slice(node)
    return np.array(array if place is None else np.take(array, 0, axis=place[0]), order="C")


def overlay_slice(node: Any) -> tuple[int, int] | None:
    """Return the (axis, index) of the slice of its volume that an overlay shows, or None for a whole volume.

    The index is taken from the geometry, since Slicer may reverse a volume's slices when it reads it from a file.
    """
    axis, index = node.GetAttribute(_AXIS), node.GetAttribute(_INDEX)
    if axis is None or index is None:
        return None
    volume = node.GetNodeReference(VOLUME_ROLE)
    if volume is None:
        return int(axis), int(index)
    first = np.linalg.inv(ijk_to_ras(volume)) @ ijk_to_ras(node)[:, 3]
    return int(axis), round(float(first[2 - int(axis)]))


def colour_table(scene: Any, kind: Kind) -> Any:
    """Return the scene's colour table for ``kind``, made when missing; kept with the scene, hidden from the editors."""
    nodes = scene.GetNodesByClass("vtkMRMLColorTableNode")
    nodes.UnRegister(None)
    for number in range(nodes.GetNumberOfItems()):
        if nodes.GetItemAsObject(number).GetAttribute(_TABLE) == kind:
            return nodes.GetItemAsObject(number)
    table = scene.CreateNodeByClass("vtkMRMLColorTableNode")
    table.UnRegister(None)
    table.SetName(f"MedCLIPSAM {kind}")
    table.SetAttribute(_TABLE, kind)
    table.SetTypeToUser()
    table.SetNumberOfColors(_COLOURS)
    ramp = np.array(_RAMPS[kind]) / 255
    steps = np.linspace(0, len(ramp) - 1, _COLOURS)
    for number, step in enumerate(steps):
        red, green, blue = (float(np.interp(step, range(len(ramp)), ramp[:, channel])) for channel in range(3))
        table.SetColor(number, f"{number / (_COLOURS - 1):.3f}", red, green, blue, float(number > 0))
    table.SetHideFromEditors(True)
    table.SetSaveWithScene(True)
    return scene.AddNode(table)


def show_overlay(scene: Any, node: Any, opacity: float) -> None:
    """Show ``node`` as the foreground of all slice views; None gives back what the user had there.

    Args:
        opacity: 0 to 1; ignored for None.
    """
    composites = scene.GetNodesByClass("vtkMRMLSliceCompositeNode")
    composites.UnRegister(None)
    for number in range(composites.GetNumberOfItems()):
        composite = composites.GetItemAsObject(number)
        kept = composite.GetAttribute(_OPACITY)
        if node is not None:
            if kept is None:
                composite.SetNodeReferenceID(_UNDERNEATH, composite.GetForegroundVolumeID())
                composite.SetAttribute(_OPACITY, repr(composite.GetForegroundOpacity()))
            composite.SetForegroundVolumeID(node.GetID())
            composite.SetForegroundOpacity(opacity)
        elif kept is not None:
            users = composite.GetNodeReference(_UNDERNEATH)
            composite.SetForegroundVolumeID(None if users is None else users.GetID())
            composite.SetForegroundOpacity(float(kept))
            composite.SetNodeReferenceID(_UNDERNEATH, None)
            composite.SetAttribute(_OPACITY, None)


def _set_voxels(node: Any, array: np.ndarray) -> None:
    """Write (K, J, I) into a node as float32, into the memory it has if that fits."""
    image = node.GetImageData()
    scalars = None if image is None else image.GetPointData().GetScalars()
    if scalars is None or scalars.GetDataType() != vtk.VTK_FLOAT or volume_shape(node) != array.shape:
        image = vtk.vtkImageData()
        image.SetDimensions(*array.shape[::-1])
        image.AllocateScalars(vtk.VTK_FLOAT, 1)
        scalars = image.GetPointData().GetScalars()
    values = vtk_to_numpy(scalars).reshape(array.shape)
    np.copyto(values, array, casting="same_kind" if array.dtype.kind in "bf" else "unsafe")
    with np.errstate(over="ignore", invalid="ignore"):
        finite = math.isfinite(float(values.sum(dtype=np.float32)))  # one pass; an overflow only costs a second one
    if not finite:
        np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    if node.GetImageData() is image:
        scalars.Modified()
        image.Modified()
    else:
        node.SetAndObserveImageData(image)


def _set_up_display(display: Any, table: Any, kind: Kind) -> None:
    display.SetAndObserveColorNodeID(table.GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(*_WINDOWS[kind])
    display.AutoThresholdOff()
    display.SetThreshold(*_THRESHOLDS[kind])
    display.ApplyThresholdOn()
    display.SetInterpolate(True)
