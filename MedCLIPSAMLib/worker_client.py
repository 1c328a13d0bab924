"""The parent's side of the background process: tasks in, events out, and never a wait.

The owner calls :meth:`WorkerClient.submit` and then :meth:`WorkerClient.poll` now and then, from a timer or a loop.
What can go wrong with the process arrives as events of the tasks that were open.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from MedCLIPSAMLib.child_process import ChildProcess
from MedCLIPSAMLib.event_lines import encode_line, parse_event
from MedCLIPSAMLib.worker_files import discard_unfinished
from MedCLIPSAMLib.worker_launch import command, end_reason, environment

KEEP_PATIENCE = 60.0
"""Seconds that a cancelled task has to hand over its finished slices: the current slice may take that long."""

ENDS = ("done", "error", "cancelled")
LOG_LINES = 500

logger = logging.getLogger(__name__)


@dataclass
class OpenTask:
    """A task without its end event.

    Attributes:
        task: As submitted, without its id.
        deadline: When the process is killed for it; None unless it was cancelled.
        begun: Whether it has told anything yet; the others wait for their turn.
        progressed: Whether it has finished slices.
    """

    task: dict[str, Any]
    deadline: float | None = None
    begun: bool = False
    progressed: bool = False


class WorkerClient:
    """Keeps one background process, see :mod:`MedCLIPSAMLib.worker`, and talks to it.

    All methods are for one thread. The process starts with the first task, or with :meth:`start`; when it has died,
    the next task starts another one. It ends with :meth:`close`, with this object, and with this program, however that
    ends.
    """

    def __init__(
        self, *, python: str | None = None, environment: Mapping[str, str] | None = None, grace: float = 2.0
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            python: The interpreter; None for this one's (in Slicer that is PythonSlicer).
            environment: Variables on top of those that are inherited.
            grace: Seconds in which a cancelled task, and on closing the process, may end by itself.
        """
        self.grace = grace
        self.versions: dict[str, str | None] = {}
        self._python = python
        self._environment = dict(environment or {})
        self._arrived = threading.Event()
        self._child: ChildProcess | None = None
        self._child_pid: int | None = None
        self._open: dict[int, OpenTask] = {}
        self._pending: list[dict[str, Any]] = []
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._last_id = 0
        self._children: list[ChildProcess] = []  # the same child, for the finalizer, which must not hold this object
        self._finalizer = weakref.finalize(self, _end_all, self._children)  # also runs when the program exits

    @property
    def alive(self) -> bool:
        """Whether the process is there and not being ended."""
        return self._child is not None and self._child.running and not self._child.killed

    @property
    def pid(self) -> int | None:
        """The Python process that does the work; None before the first start and when it is gone."""
        if not self.alive:
            return None
        return self._child_pid or self._child.process.pid

    @property
    def log(self) -> list[str]:
        """The last lines of the process's stderr, as far as :meth:`poll` has seen them."""
        return list(self._log)

    def start(self) -> None:
        """Start the process if it is not there; a failure is told by the tasks that are submitted.

        Raises:
            OSError: The interpreter cannot be started.
        """
        if not self.alive:
            self._retire()
        if self.alive:
            return
        self._child = ChildProcess(command(self._python), environment(self._environment), self._arrived)
        self._children[:] = [self._child]
        self._child_pid = None

    def submit(self, task: Mapping[str, Any]) -> int:
        """Send a task, see :mod:`MedCLIPSAMLib.worker_tasks`, and return its id; all else arrives by :meth:`poll`.

        Raises:
            TypeError: A parameter that JSON cannot hold.
        """
        encode_line(task)  # raises before anything is noted
        if not self.alive:
            self._retire()  # its tasks are the old ones only
        self._last_id += 1
        self._open[self._last_id] = OpenTask(dict(task))
        self._pending += self._send(self._last_id)
        return self._last_id

    def cancel(self, task_id: int, keep: bool = False) -> None:
        """Ask a task to end. If it does not within ``grace``, :meth:`poll` ends the process.

        Args:
            task_id: From :meth:`submit`; an unknown or ended one is ignored.
            keep: Whether the finished slices of a volume are wanted. Then it has a minute, until another call without.
        """
        task = self._open.get(task_id)
        if task is None or self._child is None:
            return
        patience = KEEP_PATIENCE if keep and task.progressed else self.grace
        deadline = time.monotonic() + patience
        task.deadline = deadline if task.deadline is None else min(task.deadline, deadline)
        self._child.send(encode_line({"cancel": task_id, "keep": keep}))

    def poll(self) -> list[dict[str, Any]]:
        """Return the events since the last call, oldest first; never waits.

        If the process has died, every open task gets an "error" of the kind "WorkerDied"; one that was cancelled gets
        its "cancelled".
        """
        events, self._pending = self._pending, []
        child = self._child
        if child is None:
            return events
        time.sleep(0)  # lets the reading threads have the interpreter
        over = child.over()  # asked first, so that nothing which it said before its end is missed
        events += self._take(child)
        if over:
            events += self._bury(child)
        elif not child.killed and any(
            task.deadline is not None and time.monotonic() > task.deadline for task in self._open.values()
        ):
            logger.warning("A task did not end within %g s after it was cancelled; its process is ended.", self.grace)
            child.kill()
        return events

    def wait(self, timeout: float) -> list[dict[str, Any]]:
        """Wait until there is at least one event, or for ``timeout`` seconds; for use without a timer."""
        until = time.monotonic() + timeout
        while True:
            self._arrived.clear()
            events = self.poll()
            left = until - time.monotonic()
            if events or left <= 0 or self._child is None:
                return events
            self._arrived.wait(min(left, 0.05))  # the end of the process and the deadlines make no noise

    def close(self) -> None:
        """End the process; open tasks get no more events. May be called again, and before another :meth:`submit`."""
        child, self._child = self._child, None
        self._children.clear()
        if child is not None:
            child.end(self.grace if child.running and not child.killed else 0.0)
            self._note(child.log())
        for task in self._open.values():
            _discard(task)
        self._open.clear()
        self._pending.clear()

    # ---- Inside ------------------------------------------------------------------------------------------------------

    def _take(self, child: ChildProcess) -> list[dict[str, Any]]:
        """Return the child's new events and take down its log."""
        self._note(child.log())
        events = []
        for line in child.lines():
            event = parse_event(line)
            if event is None:
                self._note([line[:LOG_LINES].decode("utf-8", "replace")])
            elif self._accept(event):
                events.append(event)
        return events

    def _accept(self, event: dict[str, Any]) -> bool:
        if event["event"] == "ready":
            self._child_pid, self.versions = event.get("pid"), event.get("versions") or {}
            return True
        task = self._open.get(event.get("id"))
        if task is None:
            return False
        task.begun = True
        if event["event"] == "progress":
            task.progressed = task.progressed or bool(event.get("done"))
        elif event["event"] in ENDS:
            del self._open[event["id"]]
        if event.get("restart"):
            self._child.kill()
        return True

    def _retire(self) -> None:
        """See a child off that has ended, or that was killed."""
        child = self._child
        if child is not None and not self.alive:
            child.end(0.0)
            self._pending += self._take(child)
            self._pending += self._bury(child)

    def _bury(self, child: ChildProcess) -> list[dict[str, Any]]:
        """Forget a child that has ended, and return an end for its tasks.

        If it was killed for a cancelled task, those that had not begun are none the wiser: a new child gets them.
        """
        last_words = "" if self._child_pid else next((line for line in reversed(self._log) if line.strip()), "")
        message = end_reason(child.process.poll(), last_words)
        logger.log(logging.WARNING if self._open and not child.killed else logging.INFO, "%s", message)
        self._child = self._child_pid = None
        self._children.clear()
        events, waiting = [], []
        for identity, task in self._open.items():
            if task.deadline is not None:
                events.append({"event": "cancelled", "id": identity})
            elif child.killed and not task.begun:
                waiting.append(identity)
                continue
            else:
                events.append(_died(identity, message))
            _discard(task)
        self._open = {identity: self._open[identity] for identity in waiting}
        for identity in waiting:
            events += self._send(identity)
        return events

    def _send(self, identity: int) -> list[dict[str, Any]]:
        """Send an open task to the child, started if need be; returns its end if there can be none."""
        try:
            self.start()
        except OSError as error:
            del self._open[identity]
            return [_died(identity, f"The background process cannot be started ({error}); check the installation.")]
        self._child.send(encode_line({**self._open[identity].task, "id": identity}))
        return []

    def _note(self, lines: list[str]) -> None:
        """Keep lines of the log and pass them on; the child writes its own messages as LEVEL:logger: text."""
        for line in lines:
            self._log.append(line)
            level = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.ERROR}
            logger.log(level.get(line.partition(":")[0], logging.DEBUG), "%s", line)


def _discard(task: OpenTask) -> None:
    if task.task.get("folder"):
        discard_unfinished(task.task["folder"])


def _end_all(children: list[ChildProcess]) -> None:
    for child in children:
        child.end(0.5)


def _died(identity: int, message: str) -> dict[str, Any]:
    return {"event": "error", "id": identity, "kind": "WorkerDied", "message": message}
