"""Slice views: which there are, which slice of a volume they show, and what lies in their layers.

Without a main window the scene has no slice nodes at all; then there is nothing to choose and nothing to show.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import slicer

from MedCLIPSAMLib import mrml


def sliceNodes() -> list[Any]:
    """Return the slice nodes of the layout that is shown; all of them where none says so."""
    nodes = list(slicer.util.getNodesByClass("vtkMRMLSliceNode"))
    return [node for node in nodes if node.IsMappedInLayout()] or nodes


def sliceNode(layout_name: str) -> Any:
    """Return the slice node of a view such as "Red", or the first one, or None."""
    nodes = sliceNodes()
    return next((node for node in nodes if node.GetLayoutName() == layout_name), nodes[0] if nodes else None)


def compositeNodes() -> list[Any]:
    """Return the slice composite nodes, which say what lies in the layers of each view."""
    return list(slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"))


def shownVolume() -> Any:
    """Return the volume in the background of the slice views, of the Red one first; None if there is none."""
    nodes = sorted(compositeNodes(), key=lambda node: node.GetLayoutName() != "Red")
    for node in nodes:
        volume = slicer.mrmlScene.GetNodeByID(node.GetBackgroundVolumeID() or "")
        if isInput(volume):
            return volume
    return None


def isInput(volume: Any) -> bool:
    """Whether a node is an image that can be segmented, and not a label map or a map of ours."""
    if volume is None or not volume.IsA("vtkMRMLScalarVolumeNode") or volume.IsA("vtkMRMLLabelMapVolumeNode"):
        return False
    return volume.GetAttribute("MedCLIPSAM.Kind") is None and volume.GetImageData() is not None


def inputs() -> Iterator[Any]:
    """Return the volumes of the scene that can be segmented."""
    return (node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if isInput(node))


def shownSlice(volume: Any, axis: int) -> int | None:
    """Return the slice along an array axis that some view shows, or None."""
    for node in sliceNodes():
        position = mrml.slice_position(node, volume)
        if position.axis == axis and position.inside:
            return position.index
    return None
