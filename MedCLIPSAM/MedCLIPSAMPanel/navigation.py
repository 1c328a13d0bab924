"""Ways out of the panel: other modules of Slicer, with the chosen segment already chosen there."""

from __future__ import annotations

from typing import Any

import slicer


def openSegmentEditor(segmentation: Any, volume: Any, segment_id: str | None) -> None:
    """Open the Segment Editor on a segment."""
    slicer.util.selectModule("SegmentEditor")
    editor = getattr(_widget("SegmentEditor"), "editor", None)
    if editor is not None:
        editor.setSegmentationNode(segmentation)
        if volume is not None:
            editor.setSourceVolumeNode(volume)
        if segment_id:
            editor.setCurrentSegmentID(segment_id)


def openSegmentStatistics(segmentation: Any, volume: Any) -> None:
    """Open Segment Statistics on a segmentation and the volume that it was made from."""
    slicer.util.selectModule("SegmentStatistics")
    widget = _widget("SegmentStatistics")
    for name, node in (("segmentationSelector", segmentation), ("scalarSelector", volume)):
        selector = getattr(widget, name, None)
        if selector is not None and node is not None:
            selector.setCurrentNode(node)


def _widget(module: str) -> Any:
    """Return the module's Python widget, which exists once the module was shown."""
    return getattr(slicer.modules, f"{module}Widget", None)
