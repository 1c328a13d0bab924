"""The background process: ``python -m MedCLIPSAMLib.worker``. It keeps the models loaded between runs.

Requests come as JSON lines on stdin, events go as JSON lines to the descriptor that was stdout; see event_lines.py and
worker_tasks.py. Every task ends with exactly one of

    {"event": "done", "id", "seconds"}, {"event": "error", "id", "kind", "message"}, {"event": "cancelled", "id"}

An error with "restart": true has made the process useless (a GPU in an undefined state); it ends then.

Tasks run one after another in the main thread; a thread reads the requests, so that {"cancel": id, "keep": bool}
arrives during a task. When stdin closes or the parent is gone, the running task is asked to end, and after a short
while the process ends in any case. The first event is "ready"; torch is not imported before a task needs it.

For tests, the environment variable MEDCLIPSAM_WORKER_ENGINE = "module:function" names a function that stands in for
``MedCLIPSAMLib.engines.load_engine`` (same arguments) and returns an object with the surface of ``TextSegmenter``; no
torch is needed then.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from MedCLIPSAMLib.event_lines import CHUNK, EventWriter, LineSplitter, parse_line, take_stdout
from MedCLIPSAMLib.worker_launch import PARENT_GROUP_VARIABLE, process_group

if TYPE_CHECKING:
    from MedCLIPSAMLib.worker_engines import KeptEngine

PARENT_INTERVAL = 0.5  # seconds between two looks whether the parent is still there
ENDING_SECONDS = 1.5  # for a task to end by itself after the parent is gone

logger = logging.getLogger("MedCLIPSAMLib.worker")  # __name__ is "__main__" here


class Requests:
    """The tasks that wait, and the wishes to cancel; filled by a thread that reads stdin."""

    def __init__(self, events: EventWriter):
        """Take stdin over; ``events`` tells of tasks that are cancelled before their turn."""
        self._closed = threading.Event()
        self._events = events
        self._waiting: deque[dict[str, Any]] = deque()
        self._current: object = None
        self._cancel: bool | None = None  # for the current task: None, or whether to keep what is finished
        self._changed = threading.Condition()
        # Libraries and processes started from here find an empty stdin and cannot take requests away.
        self._descriptor = os.dup(0)
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        os.close(empty)

    def next(self) -> dict[str, Any] | None:
        """Wait for a task and make it the current one; None when there will be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed.is_set())
            if self._closed.is_set():
                return None
            task = self._waiting.popleft()
            self._current, self._cancel = task["id"], None
            return task

    def cancelled(self) -> bool:
        """Whether the current task is to end."""
        return self._cancel is not None or self.closed

    def keep(self) -> bool:
        """Whether the current task, being cancelled, is to give what it has finished."""
        return bool(self._cancel) and not self.closed

    def close(self) -> None:
        """There will be no more requests, and nobody waits for results."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether nobody is there any more to send requests and to read events."""
        return self._closed.is_set() or self._events.broken

    def wait_closed(self, timeout: float) -> bool:
        """Wait for :attr:`closed`."""
        return self._closed.wait(timeout) or self.closed

    def read(self) -> None:
        """Read until stdin is closed; for a thread."""
        lines = LineSplitter()
        try:
            while piece := _read_piece(self._descriptor):
                for line in lines.feed(piece):
                    self._take(line)
        except OSError as error:
            logger.warning("Reading the requests failed: %s", error)
        self.close()

    def _take(self, line: bytes) -> None:
        request = parse_line(line)
        if request is None or not ("id" in request or "cancel" in request):
            logger.warning("A line of %d bytes on stdin is no request.", len(line))
            return
        with self._changed:
            if "cancel" not in request:
                self._waiting.append(request)
            elif request["cancel"] == self._current:
                self._cancel = bool(request.get("keep"))
            else:
                for task in [one for one in self._waiting if one["id"] == request["cancel"]]:
                    self._waiting.remove(task)
                    self._events.send("cancelled", id=task["id"])
            self._changed.notify_all()


def _read_piece(descriptor: int) -> bytes:
    """Wait for bytes; b"" at the end."""
    if sys.platform != "win32":
        return os.read(descriptor, CHUNK)
    # While a thread waits in a read, Windows blocks every question about the pipe, which native libraries ask when they
    # are loaded (numpy issue 24290). So look first, and read only what is there.
    import _winapi
    import msvcrt

    handle = msvcrt.get_osfhandle(descriptor)
    try:
        while not _winapi.PeekNamedPipe(handle, 0)[0]:
            time.sleep(0.01)
    except BrokenPipeError:
        return b""
    return os.read(descriptor, CHUNK)


def watch_parent(requests: Requests, own_group: bool) -> None:
    """Wait until nobody wants this process any more, then see that it ends; for a thread."""
    parent = os.getppid()
    while not requests.wait_closed(PARENT_INTERVAL):
        if os.getppid() != parent:
            break
    requests.close()
    # A thread of its own that works also while a library holds Python's lock; it tells stderr where that was.
    faulthandler.dump_traceback_later(ENDING_SECONDS + 0.4, exit=True)
    time.sleep(ENDING_SECONDS)
    logger.warning("A task did not end in time; the process ends now.")
    if own_group:
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def end_group(own_group: bool) -> None:
    """End what this process has started and not ended; not where other processes may share its group."""
    if own_group:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGTERM)


def serve(requests: Requests, events: EventWriter) -> None:
    """Run tasks until there are none any more."""
    engine: KeptEngine | None = None
    while (task := requests.next()) is not None:
        from MedCLIPSAMLib.worker_engines import KeptEngine

        engine = engine or KeptEngine()
        if not run(task, engine, requests, events):
            return


def run(task: dict[str, Any], engine: KeptEngine, requests: Requests, events: EventWriter) -> bool:
    """Run a task and send its one end event; False if this process is of no use any more."""
    from MedCLIPSAMLib.errors import CancelledError, MedCLIPSAMError
    from MedCLIPSAMLib.worker_engines import describe_error, is_out_of_memory, spoils_process
    from MedCLIPSAMLib.worker_tasks import TaskContext, run_task

    context = TaskContext(task, events.send, requests.cancelled, requests.keep)
    began = time.perf_counter()
    end: dict[str, Any]
    usable, no_memory = True, False
    try:
        told = run_task(context, engine)
        end = {"event": "done", "seconds": {**context.seconds, "total": time.perf_counter() - began}, **told}
    except CancelledError:
        end = {"event": "cancelled"}
    except Exception as error:  # whatever goes wrong in a task, the client must learn of it
        foreseen = isinstance(error, MedCLIPSAMError)
        logger.error("The task %s failed: %s", task.get("task"), type(error).__name__, exc_info=not foreseen)
        kind, message = describe_error(error)
        usable, no_memory = not spoils_process(error), is_out_of_memory(error)
        end = {"event": "error", "kind": kind, "message": message, "restart": not usable}
    if no_memory:  # outside the except block, where the error's frames no longer hold the arrays
        engine.release()
    context.send(**end)
    return usable


def main() -> None:
    """Serve the client at stdin until it closes."""
    events = take_stdout()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s:%(name)s: %(message)s", stream=sys.stderr)
    faulthandler.enable()
    parent_group = os.environ.pop(PARENT_GROUP_VARIABLE, "")
    own_group = parent_group != "" and parent_group != process_group()
    requests = Requests(events)
    from MedCLIPSAMLib.reporting import versions

    events.send("ready", pid=os.getpid(), versions=versions())
    threading.Thread(target=requests.read, name="requests", daemon=True).start()
    threading.Thread(target=watch_parent, args=(requests, own_group), name="parent", daemon=True).start()
    serve(requests, events)
    end_group(own_group)
    os._exit(0)  # taking the libraries down in good order would only take time


if __name__ == "__main__":
    main()
