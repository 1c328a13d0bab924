"""What follows from the saliency in the scene: the coarse mask for other thresholds, at once, and a refined mask."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from MedCLIPSAMLib import mrml, mrml_segments
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.geometry import SliceGeometry, put_slice
from MedCLIPSAMLib.recipe import Recipe
from MedCLIPSAMLib.session_input import PreparedRun, need_volume, write_array
from MedCLIPSAMLib.session_publish import (
    PREFIX,
    SLICES,
    Undo,
    load_planes,
    measured,
    number_text,
    volume_of,
    write_overlay,
    write_segments,
)
from MedCLIPSAMLib.session_rows import find_row, prompt_tags
from MedCLIPSAMLib.session_types import ResultRow, RunRequest


class SceneResult:
    """One prompt's result with its saliency and settings, read back from the scene."""

    def __init__(self, scene: Any, segmentation_id: str, row: ResultRow):
        """Look everything up.

        Raises:
            InputError: The saliency or the volume is not in the scene any more.
        """
        self.segmentation = scene.GetNodeByID(segmentation_id)
        self.volume = volume_of(self.segmentation)
        node = scene.GetNodeByID(row.saliency_node_id) if row.saliency_node_id else None
        if self.volume is None or node is None:
            missing = "volume" if self.volume is None else "saliency map"
            raise InputError(f"the {missing} of {row.prompt!r} is not in the scene any more; run the prompt again.")
        self.row = row
        self.tags = prompt_tags(self.segmentation, row.prompt)
        self.axis = int(self.tags["Axis"])
        self._then = np.array(json.loads(self.tags["Matrix"]))
        self.index = self._now(int(self.tags["Index"])) if self.tags.get("Index") else None
        self.slices = tuple(sorted(self._now(index) for index in json.loads(node.GetAttribute(SLICES) or "[]")))
        self.saliency = mrml.volume_view(node)
        self.geometry = SliceGeometry.of(
            mrml.volume_view(self.volume).shape[:3], mrml.ijk_to_ras(self.volume), self.axis
        )
        shape = list(self.geometry.shape)
        if self.index is not None:
            shape[self.axis] = 1
        if self.saliency.size != np.prod(shape) or max((*self.slices, self.index or 0)) >= self.geometry.count:
            raise InputError(f"the volume was changed since {row.prompt!r} was segmented; run the prompt again.")
        settings = json.loads(self.tags.get("Recipe") or "{}")
        self.recipe = Recipe(**settings) if settings else None

    def _now(self, index: int) -> int:
        """Return today's number of a slice: Slicer turns the slices of a left-handed volume round when it loads it.

        Where the volume is does not matter: its slices are the same after it was moved.
        """
        turned = np.linalg.det(mrml.ijk_to_ras(self.volume)[:3, :3]) * np.linalg.det(self._then[:3, :3]) < 0
        return mrml.volume_shape(self.volume)[0] - 1 - index if turned and self.axis == 0 else index

    def plane(self, index: int) -> np.ndarray:
        """Return a slice of the saliency as displayed, (H, W) in [0, 1]."""
        if self.index is None:
            return self.geometry.extract(self.saliency, index)
        stored = self.saliency.reshape([size for axis, size in enumerate(self.geometry.shape) if axis != self.axis])
        return np.ascontiguousarray(self.geometry.to_display(stored))

    def prepared(self) -> PreparedRun:
        """Return the result's own settings as a run."""
        tags = self.tags
        request = RunRequest(
            volume_id=self.volume.GetID(),
            prompts=(self.row.prompt,),
            axis=self.axis,
            index=self.index,
            scope="slice" if self.index is not None else "range",
            segmentation_id=self.segmentation.GetID(),
            engine=tags["Engine"],
            preset=tags.get("Preset") or None,
            device=tags.get("Device") or "auto",
            seed=int(tags["Seed"]),
            samples=int(tags["Samples"]) if tags.get("Samples") else None,
        )
        low, high = json.loads(tags["Window"])
        chosen = None if self.index is not None else (min(self.slices, default=0), max(self.slices, default=0))
        matrix = mrml.ijk_to_ras(self.volume)
        return PreparedRun(request, self.volume.GetName(), matrix, self.geometry, self.index, chosen, (low, high))


class CoarsePass:
    """Coarse masks of all slices of a result for new settings, in portions; written when the last one is done."""

    def __init__(
        self,
        scene: Any,
        segmentation_id: str,
        row: ResultRow,
        threshold: float | None,
        minimum_confidence: float | None,
    ):
        """Look up the result; nothing is changed yet.

        Raises:
            InputError: A setting outside its range, or the saliency is not in the scene any more.
        """
        for name, value in (("threshold", threshold), ("confidence", minimum_confidence)):
            if value is not None and not 0 <= value < 1:
                raise InputError(f"{name} {value:g}: it must lie from 0 to below 1.")
        self.scene = scene
        self.result = SceneResult(scene, segmentation_id, row)
        if self.result.recipe is None or row.coarse_segment_id is None:
            raise InputError(f"the coarse segment of {row.prompt!r} is not in the scene any more; run it again.")
        self.threshold, self.minimum_confidence = threshold, minimum_confidence
        self._left = list(self.result.slices)
        self._masks: dict[int, np.ndarray] = {}
        self._thresholds: list[float] = []
        self._confidence: float | None = None

    def show(self, index: int | None) -> None:
        """Do one slice and write it at once; the slice of a result on a single slice needs no index."""
        if self.result.index is not None:
            index = self.result.index
        if index in self._left:
            self._left.remove(index)
            self._compute(index)
            self._write_slice(index)
        if not self._left:
            self._write_tags()

    def work(self, budget: float) -> bool:
        """Do slices for ``budget`` seconds; True when all are done and written."""
        if not self._left:
            return True
        if not self.scene.IsNodePresent(self.result.segmentation):
            return True
        end = time.perf_counter() + budget
        while self._left:
            self._compute(self._left.pop(0))
            if time.perf_counter() > end:
                break
        if self._left:
            return False
        full = np.zeros(self.result.geometry.shape, bool)
        for index, mask in self._masks.items():
            put_slice(full, self.result.axis, index, mask)
        mrml_segments.set_segment(self.result.segmentation, self.result.volume, self.result.row.coarse_segment_id, full)
        self._write_tags()
        return True

    def _compute(self, index: int) -> None:
        recipe = self.result.recipe
        coarse = recipe.coarse_mask(self.result.plane(index), self.threshold, self.minimum_confidence)
        self._masks[index] = np.ascontiguousarray(self.result.geometry.from_display(coarse.mask))
        self._thresholds.append(coarse.threshold)
        best = max((one.confidence for one in coarse.components), default=None)
        if best is not None:
            self._confidence = best if self._confidence is None else max(best, self._confidence)

    def _write_slice(self, index: int) -> None:
        result = self.result
        mrml_segments.set_segment_slice(
            result.segmentation, result.volume, result.row.coarse_segment_id, result.axis, index, self._masks[index]
        )

    def _write_tags(self) -> None:
        tags = {
            "Threshold": number_text(self.threshold),
            "MinimumConfidence": number_text(self.minimum_confidence),
            "UsedThreshold": number_text(float(np.median(self._thresholds)) if self._thresholds else None),
            "Confidence": number_text(self._confidence),
        }
        for segment_id in (self.result.row.mask_segment_id, self.result.row.coarse_segment_id):
            if segment_id is not None:
                named = {f"{PREFIX}{key}": value for key, value in tags.items()}
                mrml_segments.set_tags(self.result.segmentation, segment_id, named)


def refine_task(scene: Any, segmentation_id: str, prompt: str, folder: Path) -> tuple[PreparedRun, Any, dict[str, Any]]:
    """Write what the child needs to refine a result, and return the run, the volume and the task.

    Raises:
        InputError: The result, its saliency or its volume is not in the scene any more.
    """
    row = find_row(scene, segmentation_id, prompt)
    result = SceneResult(scene, segmentation_id, row)
    prepared = result.prepared()
    volume = need_volume(scene, result.volume.GetID())
    task: dict[str, Any] = prepared.common() | {
        "prompt": prompt,
        "threshold": row.threshold,
        "minimum_confidence": row.minimum_confidence,
    }
    view = mrml.volume_view(volume)
    if result.index is not None:
        task |= {
            "task": "refine_slice",
            "array": write_array(folder, "slice", result.geometry.extract(view, result.index)),
            "saliency": write_array(folder, "saliency", result.plane(result.index)),
        }
    else:
        task |= {
            "task": "refine_volume",
            "array": write_array(folder, "volume", view),
            "saliency": write_array(folder, "saliency", result.saliency),
            "ijk_to_ras": prepared.matrix.tolist(),
            "axis": result.axis,
            "indices": list(result.slices),
        }
    return prepared, volume, task


def write_refined(
    scene: Any, volume: Any, segmentation: Any, run: PreparedRun, result: dict[str, Any], undo: Undo
) -> None:
    """Write a refined result; presence, saliency and the user's settings stay, a decision is open again."""
    planes = load_planes(result["files"], run.geometry, run.index)
    prompt = result["prompt"]
    row = find_row(scene, segmentation.GetID(), prompt)
    saliency = SceneResult(scene, segmentation.GetID(), row)
    write_segments(segmentation, volume, run, prompt, planes)
    write_overlay(scene, volume, "entropy", prompt, planes.entropy, run, undo)
    stored = saliency.saliency.reshape(np.asarray(planes.mask).shape)
    tags = measured(run, type(planes)(planes.mask, planes.coarse, planes.entropy, stored), result)
    tags |= {"Decision": "", "Warnings": json.dumps(result.get("warnings", []))}
    for role in ("mask", "coarse"):
        segment_id = mrml_segments.find_segment(segmentation, prompt, role)
        mrml_segments.set_tags(segmentation, segment_id, {f"{PREFIX}{key}": value for key, value in tags.items()})
