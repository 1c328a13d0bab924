"""A running task of the background process: its parameters, what it tells the client, and what it asks it."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedCLIPSAMLib import worker_files
from MedCLIPSAMLib.errors import CancelledError, InputError

if TYPE_CHECKING:
    from MedCLIPSAMLib.pipeline import TextSegmenter
    from MedCLIPSAMLib.worker_engines import KeptEngine

MEASURED = 12
"""Slices of which the mean tells the time that is left; blank and skipped ones come in runs and are quicker."""


class TaskContext:
    """One task; made for it and thrown away after it.

    Attributes:
        task: The request.
        cancelled: Called to ask whether the client wants the task to end.
        keep: Called to ask whether it then wants what is finished.
        seconds: Wall time of the stages so far.
    """

    def __init__(
        self,
        task: dict[str, Any],
        send: Callable[..., None],
        cancelled: Callable[[], bool],
        keep: Callable[[], bool],
    ):
        """Join a request and the ways to the client; ``send`` is called with an event's name and its fields."""
        self.task = task
        self.cancelled = cancelled
        self.keep = keep
        self.seconds: dict[str, float] = {}
        self._send = send
        self._last = time.perf_counter()
        self._steps: deque[float] = deque(maxlen=MEASURED)

    # ---- To the client -----------------------------------------------------------------------------------------------

    def send(self, event: str, **fields: Any) -> None:
        """Send an event of this task."""
        self._send(event, id=self.task["id"], **fields)

    def check(self) -> None:
        """Raise :class:`CancelledError` if the client wants the task to end."""
        if self.cancelled():
            raise CancelledError("The run was cancelled.")

    def tell(self, name: str) -> None:
        """Tell the client that a part of a stage begins."""
        self.send("stage", stage=name)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tell the client that a stage begins, and add its time to ``seconds``."""
        self.check()
        self.send("stage", stage=name)
        start = self._last = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def progress(self, done: int, total: int) -> None:
        """Tell how much is done; the first step is a warm-up, which says nothing about the others."""
        now = time.perf_counter()
        if done > 1:
            self._steps.append(now - self._last)
        self._last = now
        left = statistics.fmean(self._steps) * (total - done) if self._steps else None
        self.send("progress", done=done, total=total, seconds_left=left)

    # ---- Parameters --------------------------------------------------------------------------------------------------

    def need(self, name: str) -> Any:
        """Return a parameter.

        Raises:
            InputError: The request does not have it.
        """
        if self.task.get(name) is None:
            raise InputError(f"the task {self.task.get('task')!r} needs the parameter {name!r}.")
        return self.task[name]

    def prompts(self) -> list[str]:
        """Return the texts, at least one."""
        prompts = self.need("prompts")
        if not isinstance(prompts, list) or not prompts:
            raise InputError("there is no prompt; pass at least one text that says what to segment.")
        return prompts

    def window(self) -> tuple[float, float] | None:
        """Return the intensities that become black and white; None for automatic ones."""
        window = self.task.get("window")
        return None if window is None else (float(window[0]), float(window[1]))

    def seed(self) -> int:
        """Return the run's seed."""
        return self.task.get("seed") or 0

    def folder(self) -> Path:
        """Return the folder for the results, which is made where it is missing."""
        folder = Path(self.need("folder"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise worker_files.output_error(folder, error) from error
        return folder

    def segmenter(self, engine: KeptEngine) -> TextSegmenter:
        """Return the engine that the request names, loaded if need be, with the wanted recipe."""
        settings = {name: self.task.get(name) for name in ("preset", "samples", "gate")}
        name, device = self.task.get("engine") or "lite", self.task.get("device") or "auto"
        if engine.is_loaded(name, device):
            return engine.get(name, device=device, **settings)
        with self.stage("loading engine"):
            segmenter = engine.get(name, device=device, **settings)
        self.check()
        return segmenter
