"""Start a process in a group of its own, and end it with everything that it has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

AFTER_KILL = 5.0
"""Seconds to wait for a killed process; only one that hangs in the kernel takes longer."""


def start_group(command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen:
    """Start a process as the head of its own session (POSIX) or process group without a window (Windows).

    A signal from the terminal, such as Ctrl+C, does not reach it. The started process may be a launcher, as Slicer's
    Python is: whatever it starts belongs to the group.

    Args:
        command: Program and arguments.
        options: As for :class:`subprocess.Popen`.

    Raises:
        OSError: The program cannot be started.
    """
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        options["creationflags"] = options.get("creationflags", 0) | flags
    else:
        options["start_new_session"] = True
    return subprocess.Popen(command, **options)


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process from :func:`start_group` and what it has started, without waiting for their end.

    On POSIX the rest of the group is killed also when the process itself has ended before.
    """
    if sys.platform == "win32":
        if process.poll() is None:
            # It finds children by their parent, so nothing may be killed before it has looked: no kill() here.
            subprocess.Popen(
                ["taskkill", "/PID", str(process.pid), "/T", "/F"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                creationflags=subprocess.CREATE_NO_WINDOW,
            )
        return
    # macOS refuses (PermissionError) where it would report a group without living members
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def end_tree(process: subprocess.Popen, grace: float) -> None:
    """Wait for a process to end by itself, then kill what is left of its tree; no zombie stays.

    Args:
        process: From :func:`start_group`.
        grace: Seconds in which it may end by itself.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    kill_tree(process)
    try:
        process.wait(AFTER_KILL)
    except subprocess.TimeoutExpired:
        process.kill()  # the kill command was not found, or it was refused
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(AFTER_KILL)
