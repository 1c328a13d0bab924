"""A child process that is talked to in lines, with threads in between so that its owner never waits for a pipe."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from MedCLIPSAMLib.event_lines import CHUNK, LineSplitter
from MedCLIPSAMLib.process_tree import end_tree, kill_tree, start_group

PENDING_LOG = 2000  # lines of stderr that are kept until somebody asks for them
LINE_BYTES = 4000  # of a line of stderr
HANDED_OVER = 0.01  # seconds to let the writing thread run; it needs far less
STUBBORN = 5.0  # seconds after which a killed process counts as gone


class ChildProcess:
    """One running child. The threads touch nothing but queues, so they may outlive their owner."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], arrived: threading.Event):
        """Start the child in a process group of its own.

        Args:
            command: Program and arguments.
            environment: All of the child's environment variables.
            arrived: Set whenever the child has said something or has ended.

        Raises:
            OSError: It cannot be started.
        """
        self.process = start_group(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._arrived = arrived
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._log: deque[str] = deque(maxlen=PENDING_LOG)
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._written = threading.Event()
        self._silent = threading.Event()
        self._killed_at: float | None = None
        self._ended_at: float | None = None
        self._owner = os.getpid()
        for target in (self._write, self._read_lines, self._read_log):
            threading.Thread(target=target, name=f"child {self.process.pid}", daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether the process is there; a process that has ended leaves no zombie."""
        return self.process.poll() is None

    @property
    def killed(self) -> bool:
        """Whether :meth:`kill` was called."""
        return self._killed_at is not None

    def over(self) -> bool:
        """Whether it has ended and all that it said can be had from :meth:`lines`."""
        now = time.monotonic()
        if self.running:
            return self.killed and now - self._killed_at > STUBBORN
        if self._ended_at is None:
            self._ended_at = now
            self.close_input()  # ends the thread that writes
            kill_tree(self.process)  # what it has started may still be there, and may hold the pipe
        return self._silent.is_set() or now - self._ended_at > 1.0

    def send(self, line: bytes) -> None:
        """Hand a line over to the thread that writes it; waits for the writing for a moment at most."""
        self._written.clear()
        self._outbox.put(line)
        # Where the main thread runs long stretches of C++ code, as in Slicer, other threads run only while it waits.
        self._written.wait(HANDED_OVER)

    def close_input(self) -> None:
        """Close the child's stdin after what was sent."""
        self._outbox.put(None)

    def lines(self) -> list[bytes]:
        """Return the lines that came since the last call."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._lines.get_nowait())
        return found

    def log(self) -> list[str]:
        """Return the lines of stderr that came since the last call."""
        found = []
        with contextlib.suppress(IndexError):
            while True:
                found.append(self._log.popleft())
        return found

    def kill(self) -> None:
        """Kill the process and all that it has started, without waiting."""
        self._killed_at = self._killed_at or time.monotonic()
        kill_tree(self.process)

    def end(self, grace: float) -> None:
        """Close its stdin, give it ``grace`` seconds to end, then kill what is left; returns when it is gone."""
        if os.getpid() == self._owner:  # and not in a copy of the program that was forked from it
            self.close_input()
            end_tree(self.process, grace)
            self._silent.wait(1.0)  # for its last lines

    # ---- Threads -----------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        pipe = self.process.stdin
        with contextlib.suppress(OSError):  # that it has ended is noticed elsewhere
            while (line := self._outbox.get()) is not None:
                rest = memoryview(line)
                while rest:
                    rest = rest[pipe.write(rest) :]
                self._written.set()
        self._written.set()
        with contextlib.suppress(OSError):
            pipe.close()

    def _read_lines(self) -> None:
        splitter = LineSplitter()
        pipe = self.process.stdout
        with pipe, contextlib.suppress(OSError):
            while piece := os.read(pipe.fileno(), CHUNK):
                for line in splitter.feed(piece):
                    self._lines.put(line)
                self._arrived.set()
        if rest := splitter.last():
            self._lines.put(rest)
        self._silent.set()
        self._arrived.set()

    def _read_log(self) -> None:
        splitter = LineSplitter()
        pipe = self.process.stderr
        with pipe, contextlib.suppress(OSError):
            while piece := os.read(pipe.fileno(), CHUNK):
                self._log.extend(_text(line) for line in splitter.feed(piece))
        if rest := splitter.last():
            self._log.append(_text(rest))


def _text(line: bytes) -> str:
    """Return a line as text; of a line that was drawn over and over (a progress bar) only the last state."""
    return line.rstrip(b"\r\n").rpartition(b"\r")[2][:LINE_BYTES].decode("utf-8", "replace")
