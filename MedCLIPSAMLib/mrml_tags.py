"""The tags that keep a segment's origin with it: prompt, role, engine, seed, figures, decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import vtk
from slicer import vtkSegment

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.mrml_grid import labelmap_of

TAG_PREFIX = "MedCLIPSAM."
_KEYS = TAG_PREFIX + "Keys"  # VTK's Python wrapping cannot list tags, so the names are a tag themselves
_USUAL = (
    "Prompt",
    "Role",
    "Engine",
    "Preset",
    "Seed",
    "Version",
    "Scope",
    "SaliencyMethod",
    "Presence",
    "PresenceThreshold",
    "Threshold",
    "MinimumConfidence",
    "Confidence",
    "MeanSaliency",
    "MeanEntropy",
    "Seconds",
    "Decision",
    "Warnings",
)


def tags(segmentation: Any, segment_id: str) -> dict[str, str]:
    """Return the tags of a segment whose names begin with "MedCLIPSAM."; empty for a segment made elsewhere.

    Raises:
        InputError: No such segment.
    """
    segment = _segment(segmentation, segment_id)
    names = [TAG_PREFIX + name for name in _USUAL] + (_read(segment, _KEYS) or "").split(",")
    found = ((name, _read(segment, name)) for name in dict.fromkeys(names) if name)
    return {name: unquote(value) for name, value in found if value is not None}


def set_tags(segmentation: Any, segment_id: str, values: Mapping[str, object]) -> None:
    """Set tags of a segment; others stay. What would break the tag list of a ``.seg.nrrd`` file is percent-encoded.

    Args:
        values: By name, "MedCLIPSAM." and a word; a value of None removes the tag, others are stored as text.

    Raises:
        InputError: No such segment, or another kind of name.
    """
    segment = _segment(segmentation, segment_id)
    for name in values:
        if not (name.startswith(TAG_PREFIX) and name[len(TAG_PREFIX) :].isidentifier()) or name == _KEYS:
            raise InputError(f"tag name {name!r}: it must be {TAG_PREFIX!r} and a word.")
    names = {*tags(segmentation, segment_id), *values}
    for name, value in values.items():
        if value is None:
            segment.RemoveTag(name)
            names.discard(name)
        elif _read(segment, name) != (text := _encode(str(value))):
            segment.SetTag(name, text)
    others = sorted(names - {TAG_PREFIX + name for name in _USUAL})
    if others:
        segment.SetTag(_KEYS, ",".join(others))
    elif segment.HasTag(_KEYS):
        segment.RemoveTag(_KEYS)


def is_own(segment: vtkSegment) -> bool:
    """Return whether a segment was made by MedCLIPSAM."""
    return segment.HasTag(TAG_PREFIX + "Prompt")


def _segment(segmentation: Any, segment_id: str) -> vtkSegment:
    labelmap_of(segmentation, segment_id)  # raises for a segment that does not exist
    return segmentation.GetSegmentation().GetSegment(segment_id)


def _read(segment: vtkSegment, name: str) -> str | None:
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else None


def _encode(text: str) -> str:
    """Encode the separators of Slicer's tag list and what NRRD escapes; all other characters stay readable."""
    return "".join(quote(char, safe="") if char in "%|\\" or ord(char) < 32 else char for char in text)
