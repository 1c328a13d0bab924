"""The temporary folder by which a session and its child hand over images; what a crash left of others is removed."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from MedCLIPSAMLib.job_folder import FileLock, is_held

PREFIX = "medclipsam-session-"
LOCK = "lock"
_NEW = 60.0  # seconds; so young a folder may be one that another program is just about to lock


class SessionFolder:
    """A folder that lives as long as the program, at most until the next one starts: it holds patients' images.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        """Make the folder, and remove those whose program has ended without doing so."""
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = FileLock(self.path / LOCK)
        self._lock.acquire()
        for other in self.path.parent.glob(f"{PREFIX}*"):
            with suppress(OSError):  # another user's
                lock = other / LOCK
                if time.time() - lock.stat().st_mtime > _NEW and not is_held(lock):
                    shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """Remove the folder."""
        self._lock.release()  # Windows removes no open file
        shutil.rmtree(self.path, ignore_errors=True)
