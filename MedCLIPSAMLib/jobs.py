"""Training jobs that run detached: they survive a module reload and Slicer's end, and are found again afterwards.

A job is a folder below the store's root, run by a supervisor process of its own (``job_supervisor.py``). Nothing here
keeps a job in memory: every question is answered from the folder, so any number of processes may look.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from MedCLIPSAMLib.errors import InputError, OutputError
from MedCLIPSAMLib.job_descriptions import descriptions
from MedCLIPSAMLib.job_folder import ENDED, JobFolder, State, is_held
from MedCLIPSAMLib.job_form import Field, JobDescription
from MedCLIPSAMLib.job_launch import START_SECONDS, launch, reap

__all__ = ["Field", "Job", "JobDescription", "JobProgress", "JobStore", "descriptions"]

_REMOVED = ".removed-"
_deleting = threading.Lock()  # one thread at a time: on Windows two could leave each other's folders undeleted


class JobProgress(NamedTuple):
    """How far a job is; ``total`` 0 means that it is not known yet."""

    done: int
    total: int
    text: str


class Job:
    """One job. Its properties read the folder anew each time.

    Attributes:
        id: Name of the folder.
        folder: Path of the folder; results lie in it.
        title: Of its description.
        values: What was chosen in the form.
    """

    def __init__(self, folder: Path):
        self._files = JobFolder(folder)
        description = self._files.description()
        self.id = folder.name
        self.folder = folder
        self.title = str(description.get("title", folder.name))
        self.values: dict[str, Any] = dict(description.get("values", {}))
        self._description = description

    @property
    def state(self) -> State:
        """How the job stands; "lost" when its supervisor is gone without a word (power cut, kill)."""
        return self._now()[0]

    @property
    def progress(self) -> JobProgress:
        """What the trainer said last of its progress."""
        progress = self._files.status().get("progress") or {}
        numbers = [value if isinstance(value, (int, float)) else 0 for value in map(progress.get, ("done", "total"))]
        return JobProgress(int(numbers[0]), int(numbers[1]), str(progress.get("text") or ""))

    @property
    def started(self) -> datetime | None:
        """When its trainer first started; None while it never did."""
        started = self._files.status().get("started")
        return datetime.fromtimestamp(started, UTC) if started else None

    @property
    def seconds(self) -> float:
        """Time that its trainer ran, all runs together."""
        state, status = self._now()
        seconds = float(status.get("seconds") or 0.0)
        return seconds + max(0.0, time.time() - status.get("written", 0.0)) if state == "running" else seconds

    @property
    def error(self) -> str:
        """Why it failed or was lost; empty otherwise."""
        state, status = self._now()
        if state == "lost":
            return "The job ended without a word (the computer was switched off, or its process was ended)."
        return str(status.get("error", ""))

    @property
    def resumable(self) -> bool:
        """Whether :meth:`resume` can be called now."""
        return bool(self._description.get("resumable")) and self.state in ("failed", "cancelled", "lost")

    def log_tail(self, lines: int = 100) -> list[str]:
        """The last lines of what the trainer said."""
        return self._files.log_tail(lines)

    def cancel(self) -> None:
        """Ask the job to stop; returns at once. It saves what it needs to be resumed, and becomes "cancelled".

        Raises:
            OutputError: The wish cannot be written into the job's folder.
        """
        if self.state in ("waiting", "running"):
            try:
                self._files.cancel.touch()
            except OSError as error:
                raise OutputError(f"The job cannot be cancelled: {error}.") from error

    def resume(self) -> None:
        """Go on where the job was stopped, with the same values in the same folder.

        Raises:
            InputError: The job runs, is finished, or cannot be resumed.
            OutputError: Its folder cannot be written.
            MedCLIPSAMError: The supervisor did not start.
        """
        state = self.state
        if state in ("waiting", "running"):
            raise InputError(f"Job {self.id} is {state} already.")
        if state == "finished":
            raise InputError(f"Job {self.id} is finished; there is nothing to resume. Start a new one.")
        if not self._description.get("resumable"):
            raise InputError(f"{self.title} cannot be resumed; start it anew.")
        try:
            launch(self._files)
        except OSError as error:
            raise OutputError(f"The job cannot be resumed in {self.folder}: {error}.") from error

    def _now(self) -> tuple[State, dict[str, Any]]:
        """The state and the status that it was read from."""
        reap()
        status = self._files.status()
        if status.get("state") in ENDED:
            return status["state"], status
        alive = is_held(self._files.lock)
        again = self._files.status()  # it may have ended between the two looks
        if again.get("state") in ENDED:
            return again["state"], again
        state = again.get("state")
        starting = not again.get("supervisor") and time.time() - (again.get("requested") or 0) < START_SECONDS
        if state in ("waiting", "running") and (alive or starting):
            return state, again
        return "lost", again


class JobStore:
    """All jobs below one folder; the GPU is shared by them.

    Attributes:
        root: The folder.
        deletion: The thread that was started last to delete the files of removed jobs; None before the first.
    """

    def __init__(self, root: Path):
        """Open the store; the folder is made when the first job starts."""
        self.root = Path(root).expanduser().absolute()
        self.deletion: threading.Thread | None = None

    def start(self, description: JobDescription, values: Mapping[str, Any]) -> Job:
        """Start a job. It goes on when this process ends.

        Args:
            description: What to run.
            values: Its settings by name; those missing are the defaults.

        Returns:
            The job, running, or waiting for the GPU.

        Raises:
            InputError: The job is not available here, or a value is not allowed.
            OutputError: The folder cannot be written.
            MedCLIPSAMError: The supervisor did not start.
        """
        reason = description.unavailable()
        if reason is not None:
            raise InputError(f"{description.title}: {reason}")
        checked = description.checked(values)
        folder = self._new_folder(description.name)
        self._delete_removed()
        try:
            files = JobFolder(folder)
            files.write_description(
                {
                    "id": folder.name,
                    "job": description.name,
                    "title": description.title,
                    "module": description.module,
                    "arguments": description.command(values, folder),
                    "values": checked,
                    "gpu": description.needs_gpu(values),
                    "resumable": description.resumable,
                    "grace": description.grace,
                    "created": time.time(),
                }
            )
            launch(files)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise OutputError(f"The job cannot be started in {folder}: {error}.") from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Job(folder)

    def jobs(self) -> list[Job]:
        """Return all jobs, the newest first, whoever started them."""
        try:
            folders = [path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        except FileNotFoundError:
            return []
        found = [Job(path) for path in folders if JobFolder(path).description()]
        return sorted(found, key=lambda job: (job._description.get("created", 0.0), job.id), reverse=True)

    def job(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            InputError: There is none of this name.
        """
        for job in self.jobs():
            if job.id == job_id:
                return job
        raise InputError(f"There is no job {job_id!r} in {self.root}.")

    def remove(self, job_id: str) -> None:
        """Delete a job that has ended, with all files in its folder.

        It is gone from :meth:`jobs` at once. Its files, which may be many, are deleted by a thread; what that cannot
        delete (a file is open, the program ends) goes when the next job is removed or started.

        Raises:
            InputError: It is unknown, or has not ended.
            OutputError: Its folder cannot be moved away.
        """
        job = self.job(job_id)
        if job.state not in ENDED or is_held(job._files.trainer_lock):
            raise InputError(f"Job {job_id} is still {job.state}; cancel it first.")
        try:
            # Renamed, not moved into a new folder: nothing stays when it is refused, and no other process can meanwhile
            # take an empty folder for a leftover.
            os.replace(job.folder, self.root / f"{_REMOVED}{secrets.token_hex(8)}")
        except OSError as error:
            raise OutputError(f"Job {job_id} cannot be removed: {error}.") from error
        self._delete_removed()

    def _delete_removed(self) -> None:
        """Start to delete what was removed, now or earlier, without making the caller (a panel) wait."""
        self.deletion = threading.Thread(target=_delete_removed, args=(self.root,), name="removed jobs", daemon=True)
        self.deletion.start()

    def _new_folder(self, name: str) -> Path:
        stem = f"{re.sub('[^a-z0-9-]+', '-', name.lower())}-{datetime.now():%Y%m%d-%H%M%S}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for number in range(1, 1000):
                folder = self.root / (stem if number == 1 else f"{stem}-{number}")
                try:
                    folder.mkdir()
                except FileExistsError:
                    continue
                return folder
        except OSError as error:
            raise OutputError(f"The folder for training jobs {self.root} cannot be written: {error}.") from error
        raise OutputError(f"{self.root} has a thousand jobs of this second; wait a moment.")


def _delete_removed(root: Path) -> None:
    with _deleting, suppress(OSError):
        for folder in list(root.glob(f"{_REMOVED}*")):
            shutil.rmtree(folder, ignore_errors=True)
