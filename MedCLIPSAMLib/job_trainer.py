"""The trainer as a child of the job's supervisor: start it, ask it to stop, end what an earlier one has left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from MedCLIPSAMLib.job_folder import CANCEL_VARIABLE, EVENTS_VARIABLE, FileLock, JobFolder, is_held
from MedCLIPSAMLib.job_form import search_path
from MedCLIPSAMLib.job_launch import python_path

INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of a trainer that was asked to stop."""


def start_trainer(files: JobFolder, job: dict[str, Any]) -> subprocess.Popen:
    """Start ``python -m module arguments`` in a process group of its own, with pipes for both outputs.

    Its processes inherit the lock ``trainer.lock``: while that is held, some of them live.
    """
    environment = os.environ | {
        EVENTS_VARIABLE: "1",
        CANCEL_VARIABLE: str(files.cancel),
        "PYTHONPATH": python_path(search_path()),
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # nothing is imported from the job's folder
        "TYPER_STANDARD_TRACEBACK": "1",
        "NO_COLOR": "1",
    }
    lock = FileLock(files.trainer_lock)
    if not lock.acquire(patience=0.5) or lock.file is None:
        raise OSError("processes of this job's earlier run are still there")
    # On Windows the trainer shares the supervisor's hidden console, as CTRL_BREAK asks for.
    group: dict[str, Any] = (
        {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        if sys.platform == "win32"
        else {"start_new_session": True, "pass_fds": [lock.file.fileno()]}
    )
    try:
        return subprocess.Popen(
            [sys.executable, "-m", job["module"], *job["arguments"]],
            cwd=files.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **group,
        )
    finally:
        lock.release()  # what the trainer inherited still holds it


def ask_to_stop(trainer: subprocess.Popen) -> None:
    """Let the trainer save and end by itself."""
    if trainer.poll() is None:
        trainer.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGTERM)


def end_orphans(files: JobFolder, group: Any, grace: float) -> bool:
    """End what a trainer whose supervisor was killed has left, so that two never write into one folder.

    Args:
        files: The job's.
        group: The trainer's process number, from the status.
        grace: Seconds to save and end by itself.

    Returns:
        Whether none is left.
    """
    for number, seconds in ((signal.SIGTERM, grace), (getattr(signal, "SIGKILL", signal.SIGTERM), 5.0)):
        # While the lock is held the group lives, so its number cannot have been given to another.
        if is_held(files.trainer_lock) and isinstance(group, int) and sys.platform != "win32":
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                return False  # who holds the lock has left the group
        until = time.monotonic() + seconds
        while is_held(files.trainer_lock) and time.monotonic() < until:
            time.sleep(0.05)
    return not is_held(files.trainer_lock)
