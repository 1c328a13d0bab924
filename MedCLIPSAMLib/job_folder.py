"""A training job's folder: its files, how they are written, and the lock that shows that its supervisor lives.

``job.json`` what is run, written once; ``status.json`` how it stands, written by the supervisor while it lives;
``lock`` held by the supervisor; ``trainer.lock`` held by the trainer's processes; ``cancel`` the wish to stop;
``log.txt`` (and ``log.1.txt`` before it) what the trainer said. All else is the trainer's own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Literal

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

State = Literal["waiting", "running", "finished", "failed", "cancelled", "lost"]
ENDED = ("finished", "failed", "cancelled", "lost")

GPU_LOCK = "gpu.lock"
"""In the store's root: held by the supervisor whose job uses the GPU."""

EVENTS_VARIABLE = "MEDCLIPSAM_EVENTS"
"""Set to 1 for a trainer that is to write events, one JSON object a line, on its standard output."""

CANCEL_VARIABLE = "MEDCLIPSAM_CANCEL"
"""Names the file whose appearance asks the trainer to stop; for systems and moments where a signal is not heard."""

LOG_BYTES = 20_000_000
"""A longer log is set aside once, and the one set aside before is dropped."""


class FileLock:
    """An exclusive lock on a file that ends with the process, however that ends; no process number can be mistaken."""

    def __init__(self, path: Path):
        self.path = path
        self.file: BinaryIO | None = None

    def acquire(self, patience: float = 0.0) -> bool:
        """Take the lock if it is free.

        Args:
            patience: Seconds to try again, since one that only asks (:func:`is_held`) may be in the way for a moment.

        Returns:
            Whether this object holds it now.

        Raises:
            OSError: The file cannot be opened.
        """
        until = time.monotonic() + patience
        while self.file is None:
            file = self.path.open("ab")
            if _lock(file):
                self.file = file
                break
            file.close()
            if time.monotonic() >= until:
                break
            time.sleep(0.01)
        return self.file is not None

    def release(self) -> None:
        """Give the lock back; closing the file does it."""
        if self.file is not None:
            self.file.close()
            self.file = None


def _lock(file: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Tell whether some process holds the :class:`FileLock` on ``path``, without being in its way for long."""
    try:
        with path.open("rb+") as file:
            if sys.platform == "win32":
                return not _lock(file)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that only ask do not see each other
            except OSError:
                return True
            return False
    except OSError:
        return False


class JobFolder:
    """The files of one job.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lock = path / "lock"
        self.trainer_lock = path / "trainer.lock"
        self.cancel = path / "cancel"
        self.log = path / "log.txt"
        self.old_log = path / "log.1.txt"

    def description(self) -> dict[str, Any]:
        """What is run, or an empty dictionary where there is no such job or its file is damaged."""
        return _read(self.path / "job.json")

    def write_description(self, description: dict[str, Any]) -> None:
        """Write what is run."""
        write_json(self.path / "job.json", description, lasting=True)

    def status(self) -> dict[str, Any]:
        """How the job stood when that was last written; empty where it never was, or is damaged."""
        return _read(self.path / "status.json")

    def write_status(self, status: dict[str, Any], *, lasting: bool = False) -> None:
        """Replace the status; ``lasting`` also brings it to the disk before the call returns."""
        write_json(self.path / "status.json", status, lasting=lasting)

    def log_tail(self, lines: int) -> list[str]:
        """The last lines of the log, without loading more than is needed for them."""
        wanted = 400 * max(lines, 1)
        text = b""
        for path in (self.log, self.old_log):
            try:
                with path.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(max(0, size - (wanted - len(text))))
                    text = file.read() + text
            except FileNotFoundError:
                continue
            if len(text) >= wanted:
                break
        found = text.decode("utf-8", "replace").splitlines()
        if len(text) >= wanted:
            found = found[1:]  # it may have been cut
        return found[-lines:] if lines > 0 else []


def write_json(path: Path, value: dict[str, Any], *, lasting: bool = False) -> None:
    """Write a JSON file under a temporary name, then put it in place, so that a reader sees the old or the new one."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        _replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _replace(temporary: str, path: Path) -> None:
    for _ in range(20):
        try:
            os.replace(temporary, path)
            return
        except PermissionError:  # Windows, while another process reads the file
            if sys.platform != "win32":
                raise
            time.sleep(0.02)
    os.replace(temporary, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
