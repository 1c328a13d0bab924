"""Start a job's supervisor so that it outlives this process, and learn whether it took the job on."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.job_folder import FileLock, JobFolder
from MedCLIPSAMLib.job_form import search_path

START_SECONDS = 30.0
"""A supervisor that has not reported by then has not started."""

_supervisors: list[subprocess.Popen] = []  # started by this process; looked at so that they do not stay as zombies


def launch(files: JobFolder) -> None:
    """Start a supervisor for the folder and wait until it has taken the job on, usually a tenth of a second.

    Raises:
        InputError: The job has a supervisor.
        MedCLIPSAMError: The supervisor did not start; the status says so as well.
        OSError: The folder cannot be written, or there is no Python to start.
    """
    lock = FileLock(files.lock)
    if not lock.acquire(patience=0.5):
        raise InputError(f"Job {files.path.name} is running already.")
    try:
        files.cancel.unlink(missing_ok=True)
        earlier = files.status()
        status = {name: earlier.get(name) for name in ("started", "seconds", "progress", "trainer")}
        status |= {"state": "waiting", "run": int(earlier.get("run", 0)) + 1, "requested": time.time()}
        files.write_status(status, lasting=True)
    finally:
        lock.release()
    try:
        with tempfile.TemporaryFile() as said:  # what it says when it cannot start; afterwards the status tells
            process = _start(files.path, said)
            _supervisors.append(process)
            reason = _refusal(process, files, said)
    except OSError as error:
        files.write_status(status | {"state": "failed", "error": f"The job's supervisor did not start: {error}."})
        raise
    if reason is not None:
        files.write_status(status | {"state": "failed", "error": f"The job's supervisor did not start: {reason}"})
        raise MedCLIPSAMError(f"The job's supervisor did not start: {reason}")


def reap() -> None:
    """Let go of supervisors that have ended."""
    _supervisors[:] = [process for process in _supervisors if process.poll() is None]


def _refusal(process: subprocess.Popen, files: JobFolder, said: IO[bytes]) -> str | None:
    until = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None  # asked before the status is read: a quick job ends with a status
        if files.status().get("supervisor") is not None:
            return None
        if ended or time.monotonic() > until:
            process.kill()
            process.wait()
            said.seek(0)
            words = said.read().decode("utf-8", "replace").split("\n")
            return next((word.strip() for word in reversed(words) if word.strip()), f"exit code {process.returncode}")
        time.sleep(0.01)


def _start(folder: Path, said: IO[bytes]) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": python_path(search_path()[:1]), "PYTHONUTF8": "1"}
    options: dict[str, Any] = {"cwd": folder, "env": environment, "stdin": subprocess.DEVNULL}
    options |= {"stdout": said, "stderr": subprocess.STDOUT}
    command = [sys.executable, "-m", "MedCLIPSAMLib.job_supervisor", str(folder)]
    if sys.platform != "win32":
        return subprocess.Popen(command, start_new_session=True, **options)
    flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    try:
        return subprocess.Popen(command, creationflags=flags | subprocess.CREATE_BREAKAWAY_FROM_JOB, **options)
    except PermissionError:  # whoever started this process does not let its children go
        return subprocess.Popen(command, creationflags=flags, **options)


def python_path(first: tuple[Path, ...]) -> str:
    """The value of PYTHONPATH for a child: these folders, then what this process was given."""
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")])])
