"""What the panel does, without Qt: run, cancel, publish, live changes, refine, undo.

The session runs on the main thread alone and never waits for the child: :meth:`Session.poll`, called by a timer or a
loop, takes the child's events and brings whole results into the scene. Until then the scene is as it was, so that a
failed or cancelled run leaves it untouched. Nodes are held by id and looked up again, since the user may remove them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from MedCLIPSAMLib import mrml
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.session_active import ActiveRun
from MedCLIPSAMLib.session_folder import SessionFolder
from MedCLIPSAMLib.session_input import PreparedRun, automatic_window, need_volume, prepare, slice_count, write_array
from MedCLIPSAMLib.session_live import CoarsePass, refine_task
from MedCLIPSAMLib.session_publish import Undo, check_output, find_segmentation
from MedCLIPSAMLib.session_rows import find_row, read_rows, set_decision
from MedCLIPSAMLib.session_types import Decision, ResultRow, RunRequest, SessionEvent, State, Status
from MedCLIPSAMLib.worker_client import ENDS, WorkerClient

POLL_SECONDS = 0.02  # of wait()


class Session:
    """One user's work on one scene.

    Example:
        >>> session = Session(slicer.mrmlScene)
        >>> session.run(RunRequest(volume.GetID(), ("brain tumor",), scope="volume"))
        >>> session.wait()
        >>> session.rows(session.segmentation(volume))
    """

    def __init__(self, scene: Any, *, worker: WorkerClient | None = None, folder: Path | None = None):
        """Open a session; the child is started when it is first needed.

        Args:
            scene: The MRML scene.
            worker: Of the child; None makes one.
            folder: For files on their way between the processes; None makes a temporary one, removed by close().
        """
        self.scene = scene
        self.worker = worker or WorkerClient()
        self._own_folder = SessionFolder() if folder is None else None
        self._folder = Path(folder) if self._own_folder is None else self._own_folder.path
        self._run: ActiveRun | None = None
        self._abandoned: dict[int, Path] = {}
        self._warming: int | None = None
        self._warming_device = ""
        self._warming_failed: Callable[[], None] | None = None
        self._restart_due = False
        self._undo: Undo | None = None
        self._coarse_passes: dict[tuple[str, str], CoarsePass] = {}
        self._windows: dict[str, tuple[tuple[Any, ...], tuple[float, float]]] = {}
        self._pace: dict[tuple[str, str | None, str], float] = {}
        self._number = 0

    # ---- Runs ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Whether a run is going on; "cancelling" until the child has stopped."""
        if self._run is None:
            return "idle"
        return "cancelling" if self._run.cancelling else "running"

    @property
    def status(self) -> Status:
        """How far the run is; empty without one."""
        return Status() if self._run is None else self._run.status

    def warm_up(
        self,
        engine: str = "lite",
        preset: str | None = None,
        device: str = "auto",
        failed: Callable[[], None] | None = None,
    ) -> bool:
        """Load the models in the child ahead of the first run; a "device" event tells of the end, unless it fails.

        Args:
            engine, preset, device: As in :class:`RunRequest`; the event's data has this device as "asked".
            failed: Called if the loading that then is under way fails, this one or an earlier one; not after
                :meth:`restart_worker`.

        Returns:
            Whether it began; not during a run, nor while models are being loaded.
        """
        if self._run is not None:
            return False
        if self._warming is not None and not self._restart_due:
            self._warming_failed = failed or self._warming_failed
            return False
        self._warming = self._submit({"task": "load", "engine": engine, "preset": preset, "device": device})
        self._warming_device, self._warming_failed = device, failed
        return True

    def restart_worker(self) -> None:
        """End the child, so that the next one finds new packages or weights; during a run, once that has ended."""
        self._restart_due = self._run is not None
        if self._restart_due:
            return
        self._warming = None
        self.worker.close()
        self._remove_abandoned()

    def estimate(self, request: RunRequest) -> float | None:
        """Return how long a run will take in seconds, from slices measured before; None before the first.

        Raises:
            InputError: See :meth:`run`.
        """
        pace = self._pace.get(_pace_key(request))
        if pace is None:
            return None
        return pace * slice_count(self.scene, request) * len(request.prompts)

    def run(self, request: RunRequest) -> None:
        """Start a run; its results arrive with :meth:`poll`.

        Raises:
            InputError: A run is going on, or the request cannot be used.
        """
        self._need_idle()
        prepared = prepare(self.scene, request, self._window(request))
        volume = need_volume(self.scene, request.volume_id)
        check_output(self.scene, volume, request.segmentation_id)
        folder = self._new_folder()
        view = mrml.volume_view(volume)
        task: dict[str, Any] = prepared.common() | {
            "prompts": list(prepared.request.prompts),
            "gate": None if request.gate else False,
            "folder": str(folder),
        }
        try:
            if prepared.index is not None:
                plane = prepared.geometry.extract(view, prepared.index)
                task |= {"task": "segment_slice", "array": write_array(folder, "slice", plane)}
            else:
                task |= {
                    "task": "segment_volume",
                    "array": write_array(folder, "volume", view),
                    "ijk_to_ras": prepared.matrix.tolist(),
                    "axis": prepared.geometry.axis,
                    "slice_range": list(prepared.slice_range or ()),
                }
            self._start("segment", prepared, folder, volume, request.segmentation_id, task)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(f"the image cannot be handed over ({error}); free some disk space.") from error

    def refine(self, segmentation_id: str, prompt: str) -> None:
        """Run the segmenter again on a result's coarse mask as the sliders left it; no text, no saliency.

        Raises:
            InputError: A run is going on, or the result or its volume is not in the scene any more.
        """
        self._need_idle()
        self.finish_coarse()
        folder = self._new_folder()
        try:
            prepared, volume, task = refine_task(self.scene, segmentation_id, prompt, folder)
            self._start("refine", prepared, folder, volume, segmentation_id, task | {"folder": str(folder)})
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def cancel(self, keep_finished: bool = False) -> None:
        """Ask the child to stop; the end comes with :meth:`poll`. With ``keep_finished`` finished slices are kept."""
        if self._run is not None and not self._run.cancelling:
            self._run.cancelling = True
            self._run.status = Status("cancelling")
            if self._run.computed:
                self._run.dropped = not keep_finished
            else:
                self.worker.cancel(self._run.task_id, keep=keep_finished)

    def poll(self) -> list[SessionEvent]:
        """Take the child's events and bring at most one whole result into the scene; never waits."""
        events: list[SessionEvent] = []
        for event in self.worker.poll():
            events += self._take(event)
        if self._run is not None:
            events += self._after(self._run, self._run.publish_next(self.scene))
        return events

    def wait(self, timeout: float = 3600.0) -> list[SessionEvent]:
        """Poll until nothing is going on; for use without an event loop.

        Raises:
            TimeoutError: It takes longer than ``timeout`` seconds.
        """
        events = []
        end = time.monotonic() + timeout
        while self._run is not None or self._warming is not None:
            events += self.poll()
            if time.monotonic() > end:
                raise TimeoutError(f"the run did not end within {timeout:g} s")
            self.rest()
        return events

    def rest(self) -> None:
        """Sleep a moment between two polls of a loop."""
        time.sleep(POLL_SECONDS)

    # ---- Results ---------------------------------------------------------------------------------------------------

    def segmentation(self, volume: Any) -> Any:
        """Return the segmentation that holds the volume's results, or None."""
        return find_segmentation(self.scene, volume)

    def rows(self, segmentation: Any) -> list[ResultRow]:
        """Return the results table of a segmentation node, read from the scene; empty for None."""
        return read_rows(self.scene, segmentation)

    def decide(self, segmentation_id: str, prompt: str, decision: Decision) -> None:
        """Accept or reject a result, or take that back (""); rejected segments are hidden, not removed.

        Raises:
            InputError: The result is not in the scene any more.
        """
        set_decision(self.scene, segmentation_id, prompt, decision)

    def preview(
        self,
        segmentation_id: str,
        prompt: str,
        threshold: float | None,
        minimum_confidence: float | None,
        index: int | None = None,
    ) -> None:
        """Make the coarse mask of one slice anew from its saliency, at once, and begin with the other slices.

        Args:
            segmentation_id, prompt: Which result.
            threshold, minimum_confidence: None for the recipe's own rules.
            index: The slice that the user looks at; None, or one that was not segmented, does none at once.

        Raises:
            InputError: A setting outside its range, or the saliency is not in the scene any more.
        """
        row = find_row(self.scene, segmentation_id, prompt)
        one = CoarsePass(self.scene, segmentation_id, row, threshold, minimum_confidence)
        self._coarse_passes[segmentation_id, prompt] = one  # another prompt's goes on, else its mask stayed half done
        one.show(index)

    def apply_coarse(self, budget: float = 0.03) -> bool:
        """Go on with the slices that :meth:`preview` left, for ``budget`` seconds; True when all are done."""
        end = time.perf_counter() + budget
        for key in list(self._coarse_passes):
            if not self._coarse_passes[key].work(end - time.perf_counter()):
                break
            del self._coarse_passes[key]
        return not self._coarse_passes

    def finish_coarse(self) -> None:
        """Do the rest of :meth:`apply_coarse` at once."""
        self.apply_coarse(float("inf"))

    @property
    def can_undo(self) -> bool:
        """Whether the last run can be taken back."""
        return self._undo is not None and self._run is None

    def undo(self) -> None:
        """Take the last run back: its segments, overlays and nodes."""
        if self.can_undo and self._undo is not None:
            undo, self._undo = self._undo, None
            for key in list(self._coarse_passes):
                if key[0] in (undo.segmentation_id, *undo.created):
                    del self._coarse_passes[key]
            undo.apply(self.scene)

    # ---- Ends ------------------------------------------------------------------------------------------------------

    def scene_closing(self) -> None:
        """Forget everything about the scene that is being closed; a run is cancelled and its results are dropped."""
        if self._run is not None and self._run.computed:
            self._end_run()
        elif self._run is not None:
            self.worker.cancel(self._run.task_id)
            # The child may still be writing: the folder goes when the task has ended.
            self._abandoned[self._run.task_id] = self._run.folder
            self._run = None
        self._undo = None
        self._coarse_passes.clear()
        self._windows.clear()

    def close(self) -> None:
        """End the child and remove the temporary files; the scene stays as it is."""
        self._run = None
        self.worker.close()
        self._remove_abandoned()
        if self._own_folder is not None:
            self._own_folder.remove()

    # ---- Inner parts -----------------------------------------------------------------------------------------------

    def _need_idle(self) -> None:
        if self._run is not None:
            raise InputError("a run is going on; wait for its end or cancel it.")

    def _new_folder(self) -> Path:
        self._number += 1
        folder = self._folder / f"run-{self._number}"
        folder.mkdir(parents=True)
        return folder

    def _start(
        self,
        kind: str,
        prepared: PreparedRun,
        folder: Path,
        volume: Any,
        segmentation_id: str | None,
        task: dict[str, Any],
    ) -> None:
        self.finish_coarse()
        task_id = self._submit(task)
        self._run = ActiveRun(kind, task_id, prepared, folder, volume, time.monotonic(), segmentation_id)

    def _submit(self, task: dict[str, Any]) -> int:
        """Send a task to the child; to a new one if that was wished during the last run."""
        if self._restart_due:
            self.restart_worker()
        return self.worker.submit(task)

    def _window(self, request: RunRequest) -> tuple[float, float] | None:
        """Return the automatic window of the request's volume, computed once for each state of its voxels."""
        if request.window is not None:
            return request.window
        volume = need_volume(self.scene, request.volume_id)
        image = volume.GetImageData()
        state = (id(image), image.GetMTime(), image.GetPointData().GetScalars().GetMTime())
        known = self._windows.get(request.volume_id)
        if known is None or known[0] != state:
            known = (state, automatic_window(mrml.volume_view(volume)))
            self._windows[request.volume_id] = known
        return known[1]

    def _take(self, event: dict[str, Any]) -> list[SessionEvent]:
        task_id = event.get("id")
        if task_id is not None and task_id == self._warming:
            return self._take_warming(event)
        if task_id in self._abandoned and event["event"] in ENDS:
            shutil.rmtree(self._abandoned.pop(task_id), ignore_errors=True)
        run = self._run
        if run is None or task_id != run.task_id:
            return []
        events = run.take(event)
        if run.pace is not None:
            self._pace[_pace_key(run.prepared.request)] = run.pace
        return self._after(run, events)

    def _take_warming(self, event: dict[str, Any]) -> list[SessionEvent]:
        if event["event"] not in ("done", "error", "cancelled"):
            return []
        self._warming = None
        if event["event"] == "done":
            data = event | {"asked": self._warming_device}
            return [SessionEvent("device", str(event.get("device_name") or event.get("device", "")), data)]
        if self._warming_failed is not None:
            self._warming_failed()
        return [SessionEvent("log", event.get("message", "The models were not loaded."))]

    def _after(self, run: ActiveRun, events: list[SessionEvent]) -> list[SessionEvent]:
        """Let go of a run that has ended."""
        if run.over:
            if run.finished and run.undo.changed:
                self._undo = run.undo
            self._end_run()
        return events

    def _remove_abandoned(self) -> None:
        for folder in self._abandoned.values():
            shutil.rmtree(folder, ignore_errors=True)
        self._abandoned.clear()

    def _end_run(self) -> None:
        if self._run is not None:
            shutil.rmtree(self._run.folder, ignore_errors=True)
        self._run = None


def _pace_key(request: RunRequest) -> tuple[str, str | None, str]:
    return request.engine, request.preset, request.device
