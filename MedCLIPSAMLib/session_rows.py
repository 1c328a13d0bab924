"""The results table, read from the segments' tags and the overlay nodes; it needs nothing but the scene."""

from __future__ import annotations

import json
from typing import Any

from MedCLIPSAMLib import mrml_overlays, mrml_segments
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.session_publish import PREFIX, volume_of
from MedCLIPSAMLib.session_types import Decision, ResultRow


def prompt_tags(segmentation: Any, prompt: str) -> dict[str, str]:
    """Return the tags of a prompt's result without their prefix; empty if there is none."""
    for role in ("mask", "coarse"):
        segment_id = mrml_segments.find_segment(segmentation, prompt, role)
        if segment_id is not None:
            found = mrml_segments.tags(segmentation, segment_id)
            return {key.removeprefix(PREFIX): value for key, value in found.items()}
    return {}


def read_rows(scene: Any, segmentation: Any) -> list[ResultRow]:
    """Return one row per prompt, in the order of the segments; other segments are passed over."""
    if segmentation is None or segmentation.GetScene() is None:
        return []
    rows: dict[str, ResultRow] = {}
    segments = segmentation.GetSegmentation()
    for number in range(segments.GetNumberOfSegments()):
        tags = mrml_segments.tags(segmentation, segments.GetNthSegmentID(number))
        prompt = tags.get(f"{PREFIX}Prompt")
        if prompt and prompt not in rows and f"{PREFIX}Scope" in tags:
            rows[prompt] = _row(scene, segmentation, prompt)
    return list(rows.values())


def find_row(scene: Any, segmentation_id: str, prompt: str) -> ResultRow:
    """Return one row.

    Raises:
        InputError: The result is not in the scene any more.
    """
    segmentation = scene.GetNodeByID(segmentation_id) if segmentation_id else None
    if segmentation is None or "Scope" not in prompt_tags(segmentation, prompt):
        raise InputError(f"the result of {prompt!r} is not in the scene any more; run it again.")
    return _row(scene, segmentation, prompt)


def set_decision(scene: Any, segmentation_id: str, prompt: str, decision: Decision) -> None:
    """Keep the user's decision in the segments' tags; a rejected result is hidden.

    Raises:
        InputError: Another decision, or no such result.
    """
    if decision not in ("", "accepted", "rejected"):
        raise InputError(f"decision {decision!r}: choose accepted, rejected or an empty text.")
    row = find_row(scene, segmentation_id, prompt)
    segmentation = scene.GetNodeByID(segmentation_id)
    display = segmentation.GetDisplayNode()
    for segment_id in (row.mask_segment_id, row.coarse_segment_id):
        if segment_id is not None:
            mrml_segments.set_tags(segmentation, segment_id, {f"{PREFIX}Decision": decision})
            if display is not None:
                display.SetSegmentVisibility(segment_id, decision != "rejected")


def _row(scene: Any, segmentation: Any, prompt: str) -> ResultRow:
    tags = prompt_tags(segmentation, prompt)
    volume = volume_of(segmentation)

    def number(name: str) -> float | None:
        return float(tags[name]) if tags.get(name) else None

    def overlay(kind: str) -> str | None:
        node = mrml_overlays.find_overlay(scene, volume, kind, prompt) if volume is not None else None
        return None if node is None else node.GetID()

    return ResultRow(
        prompt=prompt,
        scope=tags.get("Scope", ""),
        size=number("Size") or 0.0,
        unit=tags.get("Unit", ""),
        mean_saliency=number("MeanSaliency"),
        mean_entropy=number("MeanEntropy"),
        confidence=number("Confidence"),
        presence=number("Presence"),
        presence_threshold=number("PresenceThreshold"),
        seconds=number("Seconds") or 0.0,
        decision=tags.get("Decision", ""),  # type: ignore[arg-type]
        warnings=tuple(json.loads(tags.get("Warnings") or "[]")),
        mask_segment_id=mrml_segments.find_segment(segmentation, prompt, "mask"),
        coarse_segment_id=mrml_segments.find_segment(segmentation, prompt, "coarse"),
        saliency_node_id=overlay("saliency"),
        entropy_node_id=overlay("entropy"),
        threshold=number("Threshold"),
        minimum_confidence=number("MinimumConfidence"),
        used_threshold=number("UsedThreshold"),
    )
