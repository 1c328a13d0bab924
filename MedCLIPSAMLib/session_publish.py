"""Whole results into the scene, and out of it again (undo)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import vtk

from MedCLIPSAMLib import mrml_overlays, mrml_segments
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.geometry import SliceGeometry, spacing
from MedCLIPSAMLib.mrml import place_beside
from MedCLIPSAMLib.session_input import PreparedRun

PREFIX = "MedCLIPSAM."
SLICES = "MedCLIPSAM.Slices"
"""Attribute of a saliency node: the slices that were segmented, as a JSON list of numbers."""
_ATTRIBUTES = ("MedCLIPSAM.Axis", "MedCLIPSAM.Index", SLICES)


@dataclass(frozen=True)
class OverlayState:
    """An overlay node before a run. The node gives its image away, so that publishing cannot write into it."""

    image: Any
    matrix: vtk.vtkMatrix4x4
    attributes: dict[str, str | None]

    @classmethod
    def taken_from(cls, node: Any) -> OverlayState:
        """Take a node's state, and its image away from it: a copy would take longer than a new image."""
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        state = cls(node.GetImageData(), matrix, {name: node.GetAttribute(name) for name in _ATTRIBUTES})
        node.SetAndObserveImageData(None)
        return state

    def restore(self, node: Any) -> None:
        """Put a node back into this state."""
        for name, value in self.attributes.items():
            node.SetAttribute(name, value)
        node.SetIJKToRASMatrix(self.matrix)
        node.SetAndObserveImageData(self.image)


@dataclass
class Undo:
    """What a run changed; nodes are held by id, and one that the user has removed meanwhile is left alone.

    Attributes:
        created: Ids of the nodes that the run added.
        segmentation_id: The segmentation it wrote into, if that was there before.
        segmentation: Its state before.
        overlays: (id, state before) of the overlay nodes that it wrote into.
    """

    created: list[str] = field(default_factory=list)
    segmentation_id: str | None = None
    segmentation: Any = None
    overlays: list[tuple[str, OverlayState]] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether the run has changed anything."""
        return bool(self.created or self.segmentation_id or self.overlays)

    def apply(self, scene: Any) -> None:
        """Put everything back."""
        for node_id in reversed(self.created):
            node = scene.GetNodeByID(node_id)
            if node is None:
                continue
            if node.IsA("vtkMRMLSegmentationNode") and others_segments(node):  # drawn by the user meanwhile
                for segment_id in mrml_segments.own_segments(node):
                    node.GetSegmentation().RemoveSegment(segment_id)
            else:
                remove(scene, node)
        node = scene.GetNodeByID(self.segmentation_id) if self.segmentation_id else None
        if node is not None:
            mrml_segments.restore(node, self.segmentation)
        for node_id, state in self.overlays:
            node = scene.GetNodeByID(node_id)
            if node is not None:
                state.restore(node)


@dataclass(frozen=True)
class Planes:
    """One prompt's maps as the scene wants them: (K, J, I), or one plane as stored.

    Attributes:
        mask, coarse: bool.
        saliency, entropy: float32; saliency is None where it stays as it is.
    """

    mask: np.ndarray
    coarse: np.ndarray
    entropy: np.ndarray
    saliency: np.ndarray | None


def load_planes(files: dict[str, str], geometry: SliceGeometry, index: int | None) -> Planes:
    """Read the child's files; a slice comes as displayed and is turned to the stored orientation."""

    def load(name: str) -> np.ndarray | None:
        if name not in files:
            return None
        array = np.load(files[name], mmap_mode=None if index is not None else "r")
        return array if index is None else np.ascontiguousarray(geometry.from_display(array))

    return Planes(load("mask"), load("coarse"), load("entropy"), load("saliency"))


def remove(scene: Any, node: Any) -> None:
    """Take a node out of the scene with its display and storage nodes, which MRML leaves behind."""
    others = [node.GetNthDisplayNode(number) for number in range(node.GetNumberOfDisplayNodes())]
    others += [node.GetNthStorageNode(number) for number in range(node.GetNumberOfStorageNodes())]
    scene.RemoveNode(node)
    for other in others:
        if other is not None and scene.IsNodePresent(other):
            scene.RemoveNode(other)


def find_segmentation(scene: Any, volume: Any) -> Any:
    """Return the segmentation of a volume that holds segments of ours, or None."""
    nodes = scene.GetNodesByClass("vtkMRMLSegmentationNode")
    nodes.UnRegister(None)
    for number in range(nodes.GetNumberOfItems()):
        node = nodes.GetItemAsObject(number)
        if volume_of(node) is volume and mrml_segments.own_segments(node):
            return node
    return None


def volume_of(segmentation: Any) -> Any:
    """Return the volume that a segmentation belongs to, or None when it is not in the scene any more."""
    return segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())


def others_segments(segmentation: Any) -> bool:
    """Whether a segmentation holds segments that are not ours."""
    return segmentation.GetSegmentation().GetNumberOfSegments() > len(mrml_segments.own_segments(segmentation))


def check_output(scene: Any, volume: Any, segmentation_id: str | None) -> None:
    """Refuse a segmentation of another volume, whose overlays and sliders would then show that volume.

    Raises:
        InputError: It belongs to another one.
    """
    node = scene.GetNodeByID(segmentation_id) if segmentation_id else None
    other = None if node is None else volume_of(node)
    if other is not None and other is not volume:
        raise InputError(
            f"the segmentation {node.GetName()!r} belongs to the volume {other.GetName()!r}, not to "
            f"{volume.GetName()!r}; choose another output, or none for the volume's own."
        )


def open_segmentation(scene: Any, volume: Any, run: PreparedRun, segmentation_id: str | None, undo: Undo) -> Any:
    """Return the segmentation to write into: the chosen one, the volume's own, or a new one."""
    node = scene.GetNodeByID(segmentation_id) if segmentation_id else find_segmentation(scene, volume)
    if node is None:
        node = mrml_segments.new_segmentation(scene, volume, f"{volume.GetName()} MedCLIPSAM")
        undo.created.append(node.GetID())
    elif undo.segmentation_id is None and node.GetID() not in undo.created:
        place = {} if run.index is None else {"volume": volume, "axis": run.geometry.axis, "index": run.index}
        undo.segmentation_id, undo.segmentation = node.GetID(), mrml_segments.snapshot(node, **place)
    if volume_of(node) is None:  # as Slicer's selectors make them
        place_beside(node, volume)
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    return node


def publish(scene: Any, volume: Any, segmentation: Any, run: PreparedRun, result: dict[str, Any], undo: Undo) -> None:
    """Write one prompt's result into segments and overlay nodes; equal prompts replace each other.

    Args:
        scene: The MRML scene.
        volume: The input volume.
        segmentation: From :func:`open_segmentation`.
        run: What was asked.
        result: The child's "result" event.
        undo: Takes down what is changed.
    """
    planes = load_planes(result["files"], run.geometry, run.index)
    write_segments(segmentation, volume, run, result["prompt"], planes)
    tags = result_tags(run, result, planes)
    for role in ("mask", "coarse"):
        segment_id = mrml_segments.find_segment(segmentation, result["prompt"], role)
        mrml_segments.set_tags(segmentation, segment_id, tags)
    for kind in ("saliency", "entropy"):
        array = getattr(planes, kind)
        if array is not None:
            node = write_overlay(scene, volume, kind, result["prompt"], array, run, undo)
            if kind == "saliency":
                node.SetAttribute(SLICES, json.dumps(_segmented(result, run)))


def write_segments(segmentation: Any, volume: Any, run: PreparedRun, prompt: str, planes: Planes) -> None:
    """Write mask and coarse mask of one prompt; the segments are made where they are missing."""
    known = mrml_segments.terminology_for(prompt)
    for role, mask in (("coarse", planes.coarse), ("mask", planes.mask)):
        segment_id = mrml_segments.find_segment(segmentation, prompt, role)
        if segment_id is None:
            coarse = role == "coarse"
            segment_id = mrml_segments.add_segment(
                segmentation,
                f"{prompt} (coarse)" if coarse else prompt,
                mrml_segments.coarse_colour(known.colour) if coarse else known.colour,
                {f"{PREFIX}Prompt": prompt, f"{PREFIX}Role": role},
                known.entry,
            )
            if coarse:  # an outline tells it from the mask, and two surfaces in one place tell nothing
                display = segmentation.GetDisplayNode()
                display.SetSegmentVisibility2DFill(segment_id, False)
                display.SetSegmentVisibility3D(segment_id, False)
        if run.index is None:
            mrml_segments.set_segment(segmentation, volume, segment_id, np.asarray(mask))
        else:
            mrml_segments.set_segment_slice(segmentation, volume, segment_id, run.geometry.axis, run.index, mask)


def write_overlay(
    scene: Any, volume: Any, kind: str, prompt: str, array: np.ndarray, run: PreparedRun, undo: Undo
) -> Any:
    """Write one overlay node, and note in ``undo`` what it was before."""
    known = mrml_overlays.find_overlay(scene, volume, kind, prompt)
    if known is not None and known.GetID() not in (*undo.created, *(node_id for node_id, _ in undo.overlays)):
        undo.overlays.append((known.GetID(), OverlayState.taken_from(known)))
    node = mrml_overlays.publish_overlay(
        scene, volume, kind, prompt, np.asarray(array), run.geometry.axis, index=run.index
    )
    if known is None:
        undo.created.append(node.GetID())
    return node


def result_tags(run: PreparedRun, result: dict[str, Any], planes: Planes) -> dict[str, str]:
    """Return everything about a result that the segments carry, as text."""
    request, presence = run.request, result.get("presence") or {}
    components = _components(result)
    tags = {
        "Engine": request.engine,
        "Preset": request.preset or "",
        "Seed": str(request.seed),
        "Scope": run.scope,
        "Axis": str(run.geometry.axis),
        "Index": "" if run.index is None else str(run.index),
        "Window": json.dumps(list(run.window)),
        "Matrix": json.dumps(run.matrix.tolist()),
        "Device": request.device,
        "Samples": "" if request.samples is None else str(request.samples),
        "SaliencyMethod": result.get("saliency_method", ""),
        "Recipe": json.dumps(result.get("recipe", {})),
        "Version": json.dumps(result.get("versions", {})),
        "Presence": number_text(_best_presence(result, presence)),
        "PresenceThreshold": number_text(presence.get("threshold")),
        "UsedThreshold": number_text(_used_threshold(result)),
        "Threshold": "",
        "MinimumConfidence": "",
        "Confidence": number_text(max((one["confidence"] for one in components), default=None)),
        "Decision": "",
        "Warnings": json.dumps(result.get("warnings", [])),
    }
    return {f"{PREFIX}{key}": value for key, value in (tags | measured(run, planes, result)).items()}


def measured(run: PreparedRun, planes: Planes, result: dict[str, Any]) -> dict[str, str]:
    """Return the tags that follow from the maps: size, means inside the mask, seconds."""
    mask = np.asarray(planes.mask)
    count = int(np.count_nonzero(mask))
    if run.index is None:
        size, unit = count * abs(float(np.linalg.det(run.matrix[:3, :3]))) / 1000, "mL"
    else:
        steps = spacing(run.matrix)[::-1]
        size, unit = (
            count * float(np.prod([step for axis, step in enumerate(steps) if axis != run.geometry.axis])),
            "mm²",
        )
    tags = {"Size": number_text(size), "Unit": unit, "Seconds": number_text(sum(result.get("seconds", {}).values()))}
    for name, array in (("MeanSaliency", planes.saliency), ("MeanEntropy", planes.entropy)):
        if array is not None:
            tags[name] = number_text(_mean_inside(array, mask) if count else None)
    return tags


def number_text(value: float | None) -> str:
    """Return a number for a tag; an unknown one is empty."""
    return "" if value is None else f"{float(value):.6g}"


def _mean_inside(array: np.ndarray, mask: np.ndarray) -> float:
    """Mean over a mask, slice by slice, so that a memory-mapped volume is not read into memory as a whole."""
    if array.ndim == 2:
        return float(array[mask].mean())
    total = sum(float(plane[inside].sum()) for plane, inside in zip(array, mask, strict=True) if inside.any())
    return total / int(np.count_nonzero(mask))


def _components(result: dict[str, Any]) -> list[dict[str, Any]]:
    records = result.get("slices")
    return (
        result.get("components", []) if records is None else [one for r in records for one in r.get("components", [])]
    )


def _used_threshold(result: dict[str, Any]) -> float | None:
    if "slices" not in result:
        return result.get("threshold")
    values = [record["threshold"] for record in result["slices"] if record.get("threshold") is not None]
    return float(np.median(values)) if values else None


def _best_presence(result: dict[str, Any], presence: dict[str, Any]) -> float | None:
    scores = [record["presence"] for record in result.get("slices", ()) if record.get("presence") is not None]
    return max(scores) if scores else presence.get("score")


def _segmented(result: dict[str, Any], run: PreparedRun) -> list[int]:
    if run.index is not None:
        return [run.index]
    return [record["index"] for record in result["slices"] if record["status"] == "segmented"]
