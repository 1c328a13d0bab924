"""One download in a child process: started, listened to and stopped without ever waiting for it."""

from __future__ import annotations

import logging
import sys
import threading
import time

from slicer.i18n import tr as _

from MedCLIPSAMLib import worker_launch
from MedCLIPSAMLib.child_process import ChildProcess
from MedCLIPSAMLib.errors import OutputError
from MedCLIPSAMLib.event_lines import parse_event

logger = logging.getLogger("MedCLIPSAMLib.download")  # what the section Log shows

STOP_GRACE = 4.0  # seconds in which the child may end by itself when its stdin was closed
CLOSE_GRACE = 0.5  # when Slicer is waiting
_RATE_AFTER = 2.0  # seconds of downloading before it is said how long it will take


def command(name: str) -> list[str]:
    """Return the command line of the child; the interpreter is this one, which in Slicer is PythonSlicer."""
    return [sys.executable, "-m", "MedCLIPSAMLib.download", name]


class DownloadChild:
    """The download of one weight file.

    Attributes:
        name: Of the weights.
        done, total: Bytes so far, and in all or None.
        path: Of the finished file; None until then.
        failure: Why it failed; empty otherwise.
        stopped: Whether :meth:`stop` was called.
    """

    def __init__(self, name: str):
        """Start the child.

        Raises:
            OutputError: It cannot be started.
        """
        self.name = name
        self.done = 0
        self.total: int | None = None
        self.path: str | None = None
        self.failure = ""
        self.stopped = False
        self._stop_at = 0.0
        self._began: tuple[float, int] | None = None
        try:
            self._child = ChildProcess(command(name), worker_launch.environment({}), threading.Event())
        except OSError as error:
            text = _("The download cannot be started ({reason}); restart Slicer and try again.")
            raise OutputError(text.format(reason=error.strerror or error)) from error

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.process.pid

    def poll(self) -> bool:
        """Take what the child has said; returns whether it is over."""
        over = self._child.over()  # before the lines are read: then they are all there
        for line in self._child.lines():
            event = parse_event(line)
            if event is not None:
                self._take(event)
        for line in self._child.log():
            logger.info("%s", line)
        if over:
            if self.path is None and not self.failure and not self.stopped:
                self.failure = self._unexpected()
        elif self.stopped and not self._child.killed and time.monotonic() - self._stop_at > STOP_GRACE:
            self._child.kill()
        return over

    def seconds_left(self) -> float | None:
        """Return how long it will go on at the pace so far; None while that cannot be said."""
        if self._began is None or not self.total:
            return None
        seconds, came = time.monotonic() - self._began[0], self.done - self._began[1]
        if seconds < _RATE_AFTER or came <= 0:
            return None
        return (self.total - self.done) * seconds / came

    def stop(self) -> None:
        """Ask the child to end; what has come is kept and gone on with the next time."""
        if not self.stopped:
            self.stopped, self._stop_at = True, time.monotonic()
            self._child.close_input()

    def close(self) -> None:
        """End the child now."""
        self.stopped = True
        self._child.end(CLOSE_GRACE)

    def _take(self, event: dict) -> None:
        kind = event["event"]
        if kind == "progress":
            done, total = event.get("done"), event.get("total")
            self.done = done if isinstance(done, int) else self.done
            self.total = total if isinstance(total, int) and total > 0 else None
            if self._began is None:
                self._began = (time.monotonic(), self.done)
        elif kind == "done":
            self.path = str(event.get("path", ""))
        elif kind == "error":
            self.failure = str(event.get("message") or event.get("kind") or _("unknown error"))

    def _unexpected(self) -> str:
        code = self._child.process.returncode
        how = _("signal {number}").format(number=-code) if code and code < 0 else _("code {code}").format(code=code)
        text = _("The process that downloads {name} ended unexpectedly ({how}). Download goes on where it stopped.")
        return text.format(name=self.name, how=how)
