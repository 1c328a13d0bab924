"""The trainer's side of a detached job: progress as JSON lines, and the wish to stop, which lets it save first.

Without a supervisor (a trainer started at a shell) nothing is written, and Ctrl+C saves and stops just the same.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from MedCLIPSAMLib.event_lines import EventWriter, take_stdout
from MedCLIPSAMLib.job_folder import CANCEL_VARIABLE, EVENTS_VARIABLE

INTERVAL = 0.2  # seconds between two progress events, which are meant for people


class JobLink:
    """Events out, signals in. Use it as a context manager around the whole of a trainer's work.

    SIGTERM and Ctrl+C end the trainer at once with exit code 143 or 130, except inside :meth:`saving`, where they only
    set :attr:`stop_code`: there the trainer ends its step, saves, and calls :meth:`leave`. A second Ctrl+C ends it
    anyway.

    Attributes:
        active: Whether a supervisor listens.
        stop_code: The exit code to end with, once that is wished.
    """

    def __init__(self) -> None:
        self.active = os.environ.get(EVENTS_VARIABLE) == "1"
        self.stop_code: int | None = None
        self._cancel = Path(os.environ[CANCEL_VARIABLE]) if os.environ.get(CANCEL_VARIABLE) else None
        self._events: EventWriter | None = None
        self._last = 0.0
        self._deferred = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> JobLink:
        """Take the signals, and keep standard output for events alone: what libraries print becomes log."""
        if self.active:
            self._events = take_stdout()
        for name, code in (("SIGTERM", 143), ("SIGINT", 130), ("SIGBREAK", 143)):
            number = getattr(signal, name, None)
            if number is not None:
                self._before[number] = signal.signal(number, self._handler(code))
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handler(self, code: int) -> Callable[[int, FrameType | None], None]:
        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._deferred and not (number == signal.SIGINT and self.stop_code is not None):
                self.stop_code = code
            else:
                raise SystemExit(code)

        return on_signal

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within this, a signal waits until the trainer itself asks whether it is to stop."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def progress(self, done: int, total: int, text: str) -> None:
        """Tell how far the work is, a few times a second at most, and look whether it is to stop.

        Outside of :meth:`saving` the wish to stop ends the trainer here.

        Args:
            done, total: In any unit.
            text: For the user, one line.
        """
        now = time.monotonic()
        if self.active and (now - self._last >= INTERVAL or done >= total):
            self._last = now
            self.send("progress", done=done, total=total, text=text)
            if self._cancel is not None and self._cancel.exists():
                self.stop_code = self.stop_code or 143
        if self.stop_code is not None and not self._deferred:
            self.leave()

    def send(self, event: str, **fields: object) -> None:
        """Send one event; when nobody reads any more, the supervisor was killed and the trainer is to stop."""
        if self._events is not None:
            self._events.send(event, **fields)
            if self._events.broken:
                self.stop_code = self.stop_code or 143

    def leave(self) -> None:
        """End the trainer with the exit code of an interruption.

        Raises:
            SystemExit: Always.
        """
        raise SystemExit(self.stop_code or 143)
