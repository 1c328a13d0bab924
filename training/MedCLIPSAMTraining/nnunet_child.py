"""What runs nnU-Net: ``python -m MedCLIPSAMTraining.nnunet_child prepare|train REQUEST.json``, see run_child.

It tells of its progress in events on stdout, and ends with all its processes when its stdin closes: whoever started it
is then gone, or wants it to stop.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.errors import MedCLIPSAMError
from MedCLIPSAMLib.event_lines import EventWriter, take_stdout
from MedCLIPSAMLib.file_output import write_json
from MedCLIPSAMLib.job_folder import FileLock
from MedCLIPSAMLib.torchvision_import import ensure_torchvision
from MedCLIPSAMTraining.cyclical_schedule import CyclicalSettings
from MedCLIPSAMTraining.nnunet_plans import NAMES, finished_plans

LOCK = "nnunet.lock"
LOG = "nnunet.log"
_PATIENCE = 60.0  # seconds; a child whose owner was killed needs moments to end


def prepare(request: dict[str, Any], events: EventWriter) -> None:
    """Extract the fingerprint, plan and preprocess.

    Args:
        request: "preprocessed" (the data set's folder), "dataset_id", "configuration", "size", "schedule" (the plans'
            section), "workers", "cases" (how many), "dataset_json" (for the trained model).
        events: Progress goes there.
    """
    import torch
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = Path(request["preprocessed"])
    if folder.exists():
        shutil.rmtree(folder)  # of a call that was stopped; nnU-Net would take files of it for its own
    folder.mkdir(parents=True)
    configuration, number, workers = request["configuration"], request["dataset_id"], request["workers"]
    schedule = CyclicalSettings.from_plans({"medclipsam": request["schedule"]})
    events.send("progress", done=0, total=0, text="Looking through the data")
    extractor = DatasetFingerprintExtractor(number, workers)
    extractor.show_progress_bar = False
    with _threads_for_one(workers):
        extractor.run(overwrite_existing=True)
    events.send("progress", done=0, total=0, text="Planning")
    planner = ExperimentPlanner(number)
    threads = torch.get_num_threads()
    plans = finished_plans(planner.plan_experiment(), configuration, request["size"], schedule, get_pool_and_conv_props)
    torch.set_num_threads(threads)
    planned = folder / f"{planner.plans_identifier}.json"
    name = NAMES[request["size"]]
    write_json(folder / f"{name}.json", plans)
    planned.unlink(missing_ok=True)
    manager = PlansManager(plans).get_configuration(configuration)
    preprocessor = manager.preprocessor_class(verbose=False)
    preprocessor.show_progress_bar = False
    done = folder / manager.data_identifier
    with _Counting(done, request["cases"], events), _threads_for_one(workers):
        preprocessor.run(number, configuration, name, num_processes=workers)
    found = len(list(done.glob("*.pkl")))
    if found != request["cases"]:
        raise MedCLIPSAMError(f"nnU-Net preprocessed {found} of {request['cases']} cases; its log has the details.")
    write_json(folder / "dataset.json", request["dataset_json"])


@contextmanager
def _threads_for_one(workers: int) -> Iterator[None]:
    """Let nnU-Net's pools be threads of this process where one worker is all they have.

    A process of its own would import torch anew, which takes longer than the work on a small set.
    """
    if workers > 1:
        yield
        return
    found = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: _ThreadContext  # type: ignore[assignment]
    try:
        yield
    finally:
        multiprocessing.get_context = found


class _ThreadContext:
    """Stands in for a context of multiprocessing."""

    Pool = ThreadPool


class _Counting:
    """Within this, a thread tells how many cases are preprocessed."""

    def __init__(self, folder: Path, total: int, events: EventWriter):
        self._folder, self._total, self._events = folder, total, events
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _tell(self) -> None:
        while not self._over.wait(1.0):
            done = len(list(self._folder.glob("*.pkl"))) if self._folder.is_dir() else 0
            self._events.send("progress", done=done, total=self._total, text=f"Preprocessing, {done} of {self._total}")


def train(request: dict[str, Any], events: EventWriter) -> None:
    """Train one fold to its end, going on from its last epoch.

    Args:
        request: "dataset_id", "configuration", "size", "fold", "device".
        events: Progress goes there: finished epochs, and within an epoch its batches.
    """
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    from MedCLIPSAMTraining.nnunet_environment import TRAINER

    fold: str | int = request["fold"] if request["fold"] == "all" else int(request["fold"])
    device = torch.device(request["device"])
    trainer = get_trainer_from_args(
        str(request["dataset_id"]),
        request["configuration"],
        fold,
        TRAINER,
        NAMES[request["size"]],
        continue_training=_has_checkpoint(request),
        device=device,
    )
    if _has_checkpoint(request):
        maybe_load_checkpoint(trainer, True, False)
    teller = _Teller(trainer, events)
    trainer.epoch_listener = teller.epoch
    trainer.train_step = teller.around(trainer.train_step)
    if trainer.current_epoch < trainer.num_epochs:
        trainer.run_training()
    teller.epoch(trainer)


class _Teller:
    """Tells of a training."""

    def __init__(self, trainer: Any, events: EventWriter):
        self._trainer, self._events = trainer, events
        self._batches = 0
        self._loss: float | None = None

    def around(self, step: Callable[[dict], dict]) -> Callable[[dict], dict]:
        """Return nnU-Net's training step, which then counts the batches."""

        def counted(batch: dict) -> dict:
            found = step(batch)
            self._batches += 1
            self._loss = float(found["loss"])
            self._tell()
            return found

        return counted

    def epoch(self, _: Any) -> None:
        """An epoch is over."""
        self._batches = 0
        self._tell()

    def _tell(self) -> None:
        trainer = self._trainer
        each, all_epochs = trainer.num_iterations_per_epoch, trainer.num_epochs
        epoch = min(trainer.current_epoch + 1, all_epochs)
        loss = "" if self._loss is None else f"; loss {self._loss:.4f}"
        self._events.send(
            "progress",
            done=trainer.current_epoch * each + self._batches,
            total=all_epochs * each,
            text=f"Training, epoch {epoch} of {all_epochs}{loss}",
        )


def _has_checkpoint(request: dict[str, Any]) -> bool:
    folder = Path(request["results"])
    return any((folder / f"checkpoint_{name}.pth").is_file() for name in ("latest", "final"))


def _end_with_owner() -> None:
    """Wait for the end of stdin, then end this process and those it has started."""
    while True:
        try:
            if not os.read(0, 1024):
                break
        except OSError:
            break
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(143)


def main(arguments: list[str]) -> int:
    """Run a task; its failure is an "error" event and exit code 1."""
    task, path = arguments
    events = take_stdout()
    threading.Thread(target=_end_with_owner, daemon=True).start()
    lock = FileLock(Path(path).parent / LOCK)
    try:
        if not lock.acquire(patience=_PATIENCE):
            raise MedCLIPSAMError(f"another process works in {Path(path).parent}; wait for its end.")
        request = json.loads(Path(path).read_text("utf-8"))
        ensure_torchvision()  # nnU-Net looks for a trainer in all its modules, of which some import torchvision
        began = time.monotonic()
        {"prepare": prepare, "train": train}[task](request, events)
        events.send("done", seconds=time.monotonic() - began)
    except MedCLIPSAMError as error:
        events.send("error", message=str(error))
        return 1
    except Exception as error:  # nnU-Net raises many kinds; whoever started this is to know which
        traceback.print_exc()
        reason = f"nnU-Net stopped with {type(error).__name__}: {error or 'no message'}"
        events.send("error", message=f"{reason}; {Path(path).parent / LOG} has the details.")
        return 1
    finally:
        lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
