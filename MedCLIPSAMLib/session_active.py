"""The run that is going on: what the child has told so far, and its results on their way into the scene."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from MedCLIPSAMLib import mrml
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.session_input import PreparedRun
from MedCLIPSAMLib.session_live import write_refined
from MedCLIPSAMLib.session_publish import Undo, open_segmentation, publish
from MedCLIPSAMLib.session_types import SessionEvent, Status

logger = logging.getLogger(__name__)


@dataclass
class ActiveRun:
    """A task of the child, from its start until its results are in the scene.

    Attributes:
        kind: What the results are.
        task_id: Of the child's task.
        prepared: What was asked.
        folder: Of the files on their way between the processes.
        volume: The node itself: its id may be given to another one after the scene was closed.
        started: Monotonic time in seconds.
        segmentation_id: Where the results go; None until the volume's own is found or made.
        cancelling: Whether the user has asked for the end.
        status: How far it is.
        undo: What it has changed in the scene.
        over: Whether nothing more will come.
        finished: Whether it ended well.
        pace: Seconds for a slice and prompt, once they are known.
        computed: Whether the child has done its part, so that it writes no more and nothing more comes from it.
        dropped: Whether the results are not wanted any more, which were all there when the user cancelled.
    """

    kind: Literal["segment", "refine"]
    task_id: int
    prepared: PreparedRun
    folder: Path
    volume: Any
    started: float
    segmentation_id: str | None
    cancelling: bool = False
    status: Status = field(default_factory=lambda: Status("starting"))
    undo: Undo = field(default_factory=Undo)
    over: bool = False
    finished: bool = False
    pace: float | None = None
    computed: bool = False
    dropped: bool = False
    _results: deque[dict[str, Any]] = field(default_factory=deque)

    def take(self, event: dict[str, Any]) -> list[SessionEvent]:
        """Take one of the child's events."""
        kind = event.get("event")
        if kind == "stage":
            if not self.cancelling:
                self.status.stage = event["stage"]
            return [SessionEvent("progress", self.status.text())]
        if kind == "progress":
            word = "prompt" if self.prepared.index is not None else "slice"
            stage = "cancelling" if self.cancelling else word
            self.status = Status(stage, event["done"], event["total"], event.get("seconds_left"))
            return [SessionEvent("progress", self.status.text())]
        if kind == "result":
            self._results.append(event)
        elif kind == "done":
            self.computed = True
            self.status = Status("showing results")
            if self.kind == "segment" and self._results:
                seconds = sum(sum(result.get("seconds", {}).values()) for result in self._results)
                self.pace = seconds / sum(max(1, _slices(result)) for result in self._results)
        elif kind == "cancelled":
            self.over = True
            return [SessionEvent("cancelled", "Cancelled; the scene is as it was.")]
        elif kind == "error":
            self.over = True
            return [SessionEvent("failed", event["message"], {"kind": event.get("kind", "")})]
        return []

    def publish_next(self, scene: Any) -> list[SessionEvent]:
        """Bring one result into the scene, once the child has computed all of them; after the last one, end."""
        if not self.computed or self.over:
            return []
        if self.dropped:
            self.over = True
            self.undo.apply(scene)
            return [SessionEvent("cancelled", "Cancelled; the scene is as it was.")]
        if not self._results:
            self.over = self.finished = True
            text = f"Done in {time.monotonic() - self.started:.1f} s."
            return [SessionEvent("finished", text, {"segmentation_id": self.segmentation_id})]
        result = self._results.popleft()
        try:
            if not scene.IsNodePresent(self.volume):
                raise InputError("The volume was removed while the run was going on; nothing was changed.")
            if self.volume.GetImageData() is None or mrml.volume_shape(self.volume) != self.prepared.geometry.shape:
                raise InputError("The volume was changed while the run was going on; run it again.")
            segmentation = open_segmentation(scene, self.volume, self.prepared, self.segmentation_id, self.undo)
            self.segmentation_id = segmentation.GetID()
            write = publish if self.kind == "segment" else write_refined
            write(scene, self.volume, segmentation, self.prepared, result, self.undo)
        except Exception as error:  # else a timer's poll would end by it, and the next one report success
            logger.exception("A result could not be shown.")
            self.over = True
            self.undo.apply(scene)
            return [SessionEvent("failed", str(error) or type(error).__name__)]
        prompt = result["prompt"]
        data = {"segmentation_id": self.segmentation_id, "prompt": prompt, "warnings": result.get("warnings")}
        return [SessionEvent("result", f'"{prompt}" is done.', data)]


def _slices(result: dict[str, Any]) -> int:
    """How many slices were looked at for a result."""
    records = result.get("slices")
    return 1 if records is None else sum(record["status"] != "outside the range" for record in records)
