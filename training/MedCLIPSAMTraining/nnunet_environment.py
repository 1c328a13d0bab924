"""nnU-Net as a child process: its folders, its environment, its end.

nnU-Net reads most of its settings from environment variables, some of them when it is imported, and starts as many
processes as it likes; a child process has its own variables, and gives its memory back when it ends.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.child_process import ChildProcess
from MedCLIPSAMLib.errors import DeviceMemoryError, MedCLIPSAMError
from MedCLIPSAMLib.event_lines import parse_event
from MedCLIPSAMLib.file_output import write_json
from MedCLIPSAMLib.job_form import search_path
from MedCLIPSAMLib.job_launch import python_path

TRAINER = "nnUNetTrainerCyclical"
TRAINERS = Path(__file__).resolve().parent.parent / "nnunet_trainers"
"""Where nnU-Net finds it, in a checkout, in Slicer and in a pip installation."""
_PATIENCE = 0.1  # seconds between two looks at the child, and at the wish to stop
_GRACE = 10.0  # seconds that the child may take to end itself when its stdin closes
_MOST_WORKERS = 12  # as nnU-Net's own default for the augmentation


@dataclass(frozen=True)
class NnunetFolders:
    """nnU-Net's three folders below one.

    Attributes:
        root: The folder that holds them.
    """

    root: Path

    @property
    def log(self) -> Path:
        """All that nnU-Net said, in every run."""
        return self.root / "nnunet.log"

    @property
    def raw(self) -> Path:
        """The data set as it was written."""
        return self.root / "raw"

    @property
    def preprocessed(self) -> Path:
        """Plans and preprocessed cases."""
        return self.root / "preprocessed"

    @property
    def results(self) -> Path:
        """Checkpoints."""
        return self.root / "results"


def check_installed() -> None:
    """Make sure that nnU-Net and the trainer are there; neither is imported.

    Raises:
        MedCLIPSAMError: One is not.
    """
    if find_spec("nnunetv2") is None:
        raise MedCLIPSAMError(
            "nnU-Net is not installed: pip install nnunetv2, or in 3D Slicer the package list "
            "'Weakly supervised training' in the section Setup."
        )
    if not (TRAINERS / "cyclical_trainer.py").is_file():
        raise MedCLIPSAMError(f"{TRAINERS / 'cyclical_trainer.py'} is absent; install MedCLIPSAM again.")


def worker_counts(workers: int | None, device: str) -> tuple[int, int]:
    """Return how many processes preprocess (1 or more) and how many augment while training (0: none of their own).

    Args:
        workers: As the user wants it; None for what suits the machine.
        device: "cpu", "cuda", "mps"; a network on the CPU needs the cores itself.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is not None:
        return max(1, min(workers, cores)), workers
    return min(cores, _MOST_WORKERS), 0 if device == "cpu" or cores < 4 else min(cores - 1, _MOST_WORKERS)


def environment(folders: NnunetFolders, workers: int, training: bool, device: str = "cpu") -> dict[str, str]:
    """Return the environment variables for a child.

    Args:
        folders: nnU-Net's.
        workers: Processes beside the main one; 0 is for training alone, planning would fail with it.
        training: Whether it trains.
        device: As torch names it; nnU-Net takes the first GPU that it sees, so it is shown only one.
    """
    variables = {
        "nnUNet_raw": str(folders.raw),
        "nnUNet_preprocessed": str(folders.preprocessed),
        "nnUNet_results": str(folders.results),
        "nnUNet_extTrainer": str(TRAINERS),
        "nnUNet_def_n_proc": str(max(1, workers)),  # 8 otherwise, on any machine
        "nnUNet_n_proc_DA": str(workers if training else max(1, workers)),
        "PYTHONPATH": python_path(search_path()),
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        "MPLBACKEND": "Agg",
        "nnUNet_wandb_enabled": "0",  # nothing is sent anywhere
    }
    kind, _, number = device.partition(":")
    if kind == "cuda" and number:
        seen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
        variables["CUDA_VISIBLE_DEVICES"] = seen[int(number)] if int(number) < len(seen) else number
    # torch.compile needs a C compiler, which few people's computers have.
    return {"nnUNet_compile": "f"} | dict(os.environ) | variables


def run_child(
    task: str,
    request: Mapping[str, Any],
    folders: NnunetFolders,
    variables: Mapping[str, str],
    told: Callable[[dict[str, Any]], None],
) -> None:
    """Run ``nnunet_child.py`` to its end; whatever ends this block ends the child with everything it has started.

    Args:
        task: "prepare" or "train".
        request: For the child, in JSON's types.
        folders: nnU-Net's; the request is written there.
        variables: From :func:`environment`.
        told: Called with each event, and several times a second with ``{}``; may raise, to stop.

    Raises:
        DeviceMemoryError: It ran out of memory.
        MedCLIPSAMError: It failed; the message says what it said last.
    """
    check_installed()
    path = folders.root / f"{task}.json"
    write_json(path, request)
    arrived = threading.Event()
    command = [sys.executable, "-m", "MedCLIPSAMTraining.nnunet_child", task, str(path)]
    try:
        child = ChildProcess(command, variables, arrived)
    except OSError as error:
        raise MedCLIPSAMError(f"nnU-Net's process cannot be started: {error}.") from error
    failure = ""
    try:
        log = _Log(folders.log)
    except OSError as error:
        child.end(_GRACE)
        raise MedCLIPSAMError(f"{folders.log} cannot be written: {error}.") from error
    try:
        while not child.over():
            arrived.wait(_PATIENCE)
            arrived.clear()
            failure = _listen(child, log, told) or failure
        failure = _listen(child, log, told) or failure
    finally:
        child.end(_GRACE)
        log.write(child.log())
        log.close()
    if child.process.returncode:
        raise _error(task, child.process.returncode, failure, log.last, folders.log)


class _Log:
    """Keeps what the child says, and remembers the last line.

    In a file: much of it reads like errors to who does not know nnU-Net.
    """

    def __init__(self, path: Path) -> None:
        self.last = ""
        self._file = path.open("a", encoding="utf-8")

    def write(self, lines: list[str]) -> None:
        for line in lines:
            if line.strip():
                self.last = line.strip()
                with suppress(OSError):  # a full disk; what needs the room says so
                    self._file.write(f"{line}\n")
        with suppress(OSError):
            self._file.flush()

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()


def _listen(child: ChildProcess, log: _Log, told: Callable[[dict[str, Any]], None]) -> str:
    """Hand on what the child said; return the message of an "error" event."""
    log.write(child.log())
    failure = ""
    for line in child.lines():
        event = parse_event(line)
        if event is not None and event["event"] == "error":
            failure = str(event.get("message", ""))
        elif event is not None:
            told(event)
    told({})
    return failure


def _error(task: str, code: int, failure: str, last: str, log: Path) -> MedCLIPSAMError:
    reason = failure or last or f"exit code {code}"
    if code == -9 and not failure:
        reason = "its process was killed; perhaps the memory ran out"
    if "out of memory" in reason.lower() or code == -9:
        return DeviceMemoryError(f"nnU-Net stopped: {reason}. Close other programs, or take --plans small.")
    what = {"prepare": "could not plan and preprocess the data", "train": "could not train"}[task]
    return MedCLIPSAMError(failure or f"nnU-Net {what}: {reason}; {log} has the details.")
