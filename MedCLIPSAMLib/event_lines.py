"""Messages between processes: one JSON object a line. An "event" is what a child says to whoever started it.

A child keeps a duplicate of its stdout for events and points stdout itself at stderr, so that a library that prints
ends up in the log and cannot break the protocol.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

CHUNK = 65_536


def encode_line(message: Mapping[str, Any]) -> bytes:
    """Return a message as one line of ASCII with its line feed.

    numpy numbers and arrays become numbers and lists, paths become texts; what JSON has no number for (NaN, infinity)
    becomes null.

    Raises:
        TypeError: A value that JSON cannot hold.
    """
    return json.dumps(_plain(message), allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def parse_line(line: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object in a line; None if it holds anything else."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):  # also bytes that are not UTF-8
        return None
    return message if isinstance(message, dict) else None


def parse_event(line: bytes | str) -> dict[str, Any] | None:
    """Return the event in a line, a JSON object with an "event"; None if it holds anything else."""
    message = parse_line(line)
    return message if message is not None and isinstance(message.get("event"), str) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # numpy, which is not needed for anything else here
        return _plain(value.tolist())
    return value


class LineSplitter:
    """Puts the lines together from the pieces in which a pipe delivers them."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the lines that ``piece`` completes, without their line feeds; blank lines are left out."""
        *lines, rest = piece.split(b"\n")
        for line in lines:
            whole = b"".join([*self._rest, line])
            self._rest.clear()
            if whole.strip():
                yield whole
        if rest:
            self._rest.append(rest)

    def last(self) -> bytes:
        """Return what came after the last line feed."""
        rest = b"".join(self._rest)
        self._rest.clear()
        return rest


class EventWriter:
    """Sends events from any thread, each in one piece."""

    def __init__(self, descriptor: int):
        """Write to the file descriptor, which is owned from now on."""
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self.broken = False

    def send(self, event: str, **fields: Any) -> None:
        """Send one event; when nobody listens any more, ``broken`` becomes True and nothing else happens."""
        line = memoryview(encode_line({"event": event, **fields}))
        with self._lock:
            while line and not self.broken:
                try:
                    line = line[os.write(self._descriptor, line) :]
                except OSError:
                    self.broken = True


def take_stdout() -> EventWriter:
    """Return a writer on this process's stdout, which from then on goes to stderr, for C libraries and children too."""
    if sys.stdout is not None:
        sys.stdout.flush()
    descriptor = os.dup(1)  # not inherited by child processes
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return EventWriter(descriptor)
