"""A question to a language model in a child process, for a panel that must not wait: started, polled, cancelled."""

from __future__ import annotations

import threading
import time
from typing import Any

from MedCLIPSAMLib import worker_launch
from MedCLIPSAMLib.child_process import ChildProcess
from MedCLIPSAMLib.event_lines import encode_line, parse_event
from MedCLIPSAMLib.language_http import checked_key
from MedCLIPSAMLib.language_question import KEY_VARIABLE, Question

GRACE = 2.0
"""Seconds in which a cancelled child may end by itself."""

_LAST = ("done", "error")


class LanguageChild:
    """One request under way. None of its methods waits, but for :meth:`close`."""

    def __init__(
        self,
        question: Question,
        *,
        key: str | None = None,
        name: str | None = None,
        again: bool = False,
        python: str | None = None,
    ):
        """Start the child.

        Args:
            question, name, again: See :func:`language_model.write_set`.
            key: Goes to the child in its environment; None or empty leaves what this process's environment has.
            python: The interpreter; None takes this process's.

        Raises:
            InputError: The key cannot be used.
            OSError: The child cannot be started.
        """
        key = checked_key(key)
        request = {"target": question.target, "modality": question.modality, "endpoint": question.endpoint}
        request |= {"model": question.model, "count": question.count, "name": name, "again": again}
        command = [*worker_launch.command(python)[:-1], "MedCLIPSAMLib.language_model"]
        environment = worker_launch.environment({KEY_VARIABLE: key} if key else {})
        self._child = ChildProcess(command, environment, threading.Event())
        self._child.send(encode_line(request))
        self._log: list[str] = []
        self._cancelled_at: float | None = None
        self._ended = False

    @property
    def running(self) -> bool:
        """Whether events are still to come."""
        return not self._ended

    def poll(self) -> list[dict[str, Any]]:
        """Return what has happened since the last call, as in language_model.py.

        The last event of all is "done", "error", or "cancelled".
        """
        if self._ended:
            return []
        if self._cancelled_at is not None and time.monotonic() - self._cancelled_at > GRACE:
            self._child.kill()
        over = self._child.over()  # asked first: what it said before is then there
        events = [event for line in self._child.lines() if (event := parse_event(line)) is not None]
        self._log += self._child.log()
        if any(event["event"] in _LAST for event in events):
            self._ended = True
            self._child.close_input()
        elif over:
            self._ended = True
            events.append(self._end())
        return events

    def cancel(self) -> None:
        """Ask the child to end; the event "cancelled" follows."""
        if self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            self._child.close_input()

    def close(self) -> None:
        """End the child and wait for that, at most a few seconds."""
        self._ended = True
        self._child.end(GRACE)

    def _end(self) -> dict[str, Any]:
        if self._cancelled_at is not None:
            return {"event": "cancelled"}
        words = self._log[-1] if self._log else ""
        return {
            "event": "error",
            "kind": "MedCLIPSAMError",
            "message": worker_launch.end_reason(self._child.process.returncode, words),
        }
