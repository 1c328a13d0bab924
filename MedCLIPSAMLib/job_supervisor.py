"""The process that runs one training job and outlives whoever asked for it: ``python -m MedCLIPSAMLib.job_supervisor``.

It holds the job's lock as long as it lives, waits for its turn at the GPU, runs the trainer, copies what that says to
the log, keeps ``status.json``, and ends the trainer when asked to. It imports nothing heavy.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from MedCLIPSAMLib.event_lines import parse_event
from MedCLIPSAMLib.job_folder import GPU_LOCK, LOG_BYTES, FileLock, JobFolder, is_held
from MedCLIPSAMLib.job_trainer import INTERRUPTED, ask_to_stop, end_orphans, start_trainer
from MedCLIPSAMLib.process_tree import end_tree

logger = logging.getLogger(__name__)

POLL = 0.1  # seconds between two looks at the trainer and at the wish to stop
STATUS_INTERVAL = 0.4  # seconds between two writings of the status while it is only the progress that changes
LINE_BYTES = 65_536


class Log:
    """The log file: bounded, and a full disk never stops a training.

    It grows past its bound only while another program (Windows: a viewer, a scanner) keeps it from being set aside.
    """

    def __init__(self, folder: JobFolder, limit: int = LOG_BYTES):
        self.folder = folder
        self.limit = limit
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()
        self.last = ""  # the last line that says something

    def write(self, line: bytes) -> None:
        """Add a line; of a line that was drawn over and over (a progress bar) only the last state."""
        line = line.rstrip(b"\r\n").rpartition(b"\r")[2]
        with self._lock:
            if line.strip():
                self.last = line.decode("utf-8", "replace").strip()
            try:
                if self._file is None:
                    self._file = self.folder.log.open("ab", buffering=0)
                if self._file.tell() > self.limit:
                    self._close()
                    with suppress(OSError):  # it is open elsewhere; the next line tries again
                        os.replace(self.folder.log, self.folder.old_log)
                    self._file = self.folder.log.open("ab", buffering=0)
                self._file.write(line + b"\n")
            except OSError as error:
                logger.debug("Log line lost: %s", error)

    def close(self) -> None:
        """Close the file."""
        with self._lock, suppress(OSError):
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None  # forgotten first: whatever fails from here on, no line meets a closed file
        if file is not None:
            file.close()


class Supervisor:
    """One run of one job."""

    def __init__(self, folder: JobFolder):
        self.folder = folder
        self.job = folder.description()
        earlier = folder.status()
        self.log = Log(folder)
        self.stop = threading.Event()
        self.error = ""
        self._earlier = float(earlier.get("seconds") or 0.0)
        self._start: float | None = None  # of this run's trainer, on the monotonic clock
        self._changed = True
        self._written = 0.0
        self._lock = threading.Lock()
        self.status: dict[str, Any] = {
            "state": "waiting",
            "run": earlier.get("run", 1),
            "started": earlier.get("started"),
            "requested": earlier.get("requested"),
            "seconds": self._earlier,
            "progress": earlier.get("progress"),
            "supervisor": os.getpid(),
            "trainer": earlier.get("trainer"),  # until there is a new one: it may have outlived its supervisor
            "exit": None,
            "error": "",
        }

    def run(self) -> None:
        """Wait for the turn, run the trainer, write how it ended."""
        for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGBREAK", None)):
            if number is not None:
                signal.signal(number, lambda *_: self.stop.set())
        self._write(lasting=True)
        gpu = FileLock(self.folder.path.parent / GPU_LOCK)
        try:
            if self.job["gpu"] and not self._wait_for_turn(gpu):
                self._end("cancelled", None)
                return
            self._train()
        except Exception as error:  # whatever it is, the job's status must say it
            logger.exception("The supervisor failed.")
            self.error = f"The supervisor failed: {error}"
            self._end("failed", None)
            raise
        finally:
            gpu.release()
            self.log.close()

    def _stopping(self) -> bool:
        return self.stop.is_set() or self.folder.cancel.exists()

    # ---- The GPU -----------------------------------------------------------------------------------------------------

    def _wait_for_turn(self, gpu: FileLock) -> bool:
        """Take the GPU's lock when no job that asked earlier is waiting for it; False when asked to stop."""
        while not self._stopping():
            if not self._others_first() and gpu.acquire():
                return True
            self.stop.wait(5 * POLL)
        return False

    def _others_first(self) -> bool:
        mine = (self.status["requested"] or 0, self.folder.path.name)
        for path in self.folder.path.parent.iterdir():
            if path == self.folder.path or not (path / "lock").exists():
                continue
            other = JobFolder(path)
            status = other.status()
            if (
                status.get("state") == "waiting"
                and (status.get("requested") or 0, path.name) < mine
                and is_held(other.lock)
            ):
                return True
        return False

    # ---- The trainer -------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        if self._stopping():
            self._end("cancelled", None)
            return
        if not end_orphans(self.folder, self.status["trainer"], self.job["grace"]):
            raise OSError("processes of this job's earlier run are still there; end them, or restart the computer")
        trainer = start_trainer(self.folder, self.job)
        self._start = time.monotonic()
        self.status |= {"state": "running", "trainer": trainer.pid, "started": self.status["started"] or time.time()}
        self._write(lasting=True)
        readers = [
            threading.Thread(target=self._read, args=(pipe, events), daemon=True)
            for pipe, events in ((trainer.stdout, True), (trainer.stderr, False))
        ]
        for reader in readers:
            reader.start()
        asked = self._follow(trainer)
        end_tree(trainer, 0.0)  # what it may have left behind
        for reader in readers:
            reader.join(5.0)
        self._finish(trainer.returncode, asked)

    def _follow(self, trainer: subprocess.Popen) -> bool:
        """Wait for the trainer's end; on a wish to stop ask it, then end its tree. Returns whether it was asked."""
        asked: float | None = None
        while True:
            try:
                trainer.wait(POLL)
                return asked is not None
            except subprocess.TimeoutExpired:
                pass
            if asked is None and self._stopping():
                asked = time.monotonic()
                ask_to_stop(trainer)
            elif asked is not None and time.monotonic() - asked > self.job["grace"]:
                self.error = f"It did not stop within {self.job['grace']:g} s and was ended."
                end_tree(trainer, 0.0)
            self._write_progress()

    def _read(self, pipe: BinaryIO, events: bool) -> None:
        with pipe:
            while line := pipe.readline(LINE_BYTES):
                event = parse_event(line) if events else None
                if event is None:
                    self.log.write(line)
                elif event["event"] == "progress":
                    with self._lock:
                        self.status["progress"] = {name: event.get(name) for name in ("done", "total", "text")}
                        self._changed = True
                elif event["event"] == "error":
                    self.error = str(event.get("message", ""))

    # ---- The status --------------------------------------------------------------------------------------------------

    def _finish(self, code: int, asked: bool) -> None:
        if code == 0:
            self._end("finished", code)
        elif asked or code in INTERRUPTED:
            self._end("cancelled", code)
        else:
            self.error = self.error or _reason(code, self.log.last)
            self._end("failed", code)

    def _end(self, state: str, code: int | None) -> None:
        self.status |= {"state": state, "exit": code, "error": "" if state == "finished" else self.error}
        for _ in range(60):  # a disk that is full now may have room in a minute
            if self._write(lasting=True):
                return
            time.sleep(1.0)

    def _write_progress(self) -> None:
        if self._changed and time.monotonic() - self._written >= STATUS_INTERVAL:
            self._write()

    def _write(self, *, lasting: bool = False) -> bool:
        with self._lock:
            running = time.monotonic() - self._start if self._start is not None else 0.0
            status = self.status | {"seconds": self._earlier + running, "written": time.time()}
            self._changed = False
        self._written = time.monotonic()
        try:
            self.folder.write_status(status, lasting=lasting)
        except OSError as error:
            self._changed = True
            logger.debug("The status could not be written: %s", error)
            return False
        return True


def _reason(code: int, last: str) -> str:
    """What to tell of a trainer that failed: its own last words, or the signal that ended it."""
    if code < 0:
        hint = "; perhaps the memory ran out" if code == -9 else ""
        return f"It was ended by signal {-code}{hint}."
    return last or f"It ended with exit code {code} and said nothing."


def main(arguments: list[str]) -> int:
    """Run the job of a folder; exit code 0 when its status says how it ended, 1 when it could not be taken on."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if len(arguments) != 1:
        logger.error("Give the folder of one job.")
        return 1
    folder = JobFolder(Path(arguments[0]).absolute())
    if not folder.description():
        logger.error("There is no job in %s.", folder.path)
        return 1
    lock = FileLock(folder.lock)
    if not lock.acquire(patience=2.0):
        logger.error("This job is running already.")
        return 1
    try:
        Supervisor(folder).run()
    finally:
        lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
