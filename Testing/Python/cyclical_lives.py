"""Trains with the cyclical trainer in one or more processes that die at given points; run as a program.

    python cyclical_lives.py FOLDER POINT [POINT ...]

Each POINT is one life of the training, a process of its own that goes on where the last one ended:

    train E B    killed in epoch E before batch B
    kept E       killed after the weights of epoch E were kept, before the state was saved
    writing E    killed while the state after epoch E is written
    stop E       ended by the listener after epoch E
    end          nothing happens
    find         as "end", with nnU-Net itself looking for the trainer, also for a prediction

What the last life has to tell goes into FOLDER/told.json. The processes are forked after the imports, which take far
longer than the training.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from tiny_nnunet import DATASET, PLANS

from MedCLIPSAMLib.errors import CancelledError

TRAINER = "nnUNetTrainerCyclical"
FOLD = f"results/{DATASET}/{TRAINER}__{PLANS}__2d"


def die() -> None:
    """End as a process ends that gets no chance to do anything."""
    os.kill(os.getpid(), signal.SIGKILL)


def planted(trainer: Any, module: Any, point: str) -> None:
    """Change a trainer so that it ends at a point."""
    kind, *numbers = point.split()
    epoch = int(numbers[0]) if numbers else -1
    if kind == "train":
        step, batches = trainer.train_step, []

        def train_step(batch: dict) -> dict:
            if trainer.current_epoch == epoch:
                if len(batches) == int(numbers[1]):
                    die()
                batches.append(1)
            return step(batch)

        trainer.train_step = train_step
    elif kind == "kept":
        save = trainer.save_checkpoint

        def save_checkpoint(file: str) -> None:
            if trainer.current_epoch == epoch and file.endswith("latest.pth"):
                die()
            save(file)

        trainer.save_checkpoint = save_checkpoint
    elif kind == "writing":
        write = module.torch.save

        def half(content: Any, file: Any) -> None:
            if trainer.current_epoch == epoch and "optimizer_state" in content:
                whole = io.BytesIO()
                write(content, whole)
                file.write(whole.getvalue()[: whole.tell() // 2])
                file.flush()
                die()
            write(content, file)

        module.torch.save = half
    elif kind == "stop":

        def listener(told: Any) -> None:
            if told.current_epoch == epoch + 1:
                raise CancelledError("The run was cancelled.")

        trainer.epoch_listener = listener


def live(folder: Path, point: str) -> None:
    """Train from the last state to the end, or to the point."""
    from nnunetv2.run import run_training

    device = torch.device("cpu")
    if point == "find":
        from MedCLIPSAMLib.torchvision_import import ensure_torchvision

        ensure_torchvision()  # the search imports all of nnU-Net's trainers
        trainer = run_training.get_trainer_from_args(
            DATASET, "2d", "all", "nnUNetTrainerCyclical", PLANS, device=device
        )
        module = None
    else:
        module = importlib.import_module("cyclical_trainer")
        base = folder / "preprocessed" / DATASET
        plans, dataset = (json.loads((base / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
        trainer = module.nnUNetTrainerCyclical(plans, "2d", "all", dataset, device)
    run_training.maybe_load_checkpoint(trainer, True, False)
    told = {"resumed_at": trainer.current_epoch}
    planted(trainer, module, point)
    trainer.run_training()
    told |= {"lrs": trainer.logger.get_value("lrs", None), "epochs": trainer.current_epoch}
    if point == "find":
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(device=device, allow_tqdm=False)
        kept = sorted(path.name for path in (folder / FOLD / "fold_all").glob("checkpoint_ep*.pth"))
        predictor.initialize_from_trained_model_folder(str(folder / FOLD), ("all",), kept[0])
        told["trainer"] = predictor.trainer_name
    (folder / "told.json").write_text(json.dumps(told))


def main(folder: Path, points: list[str]) -> None:
    """Live through the points; print how each life ended."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training" / "nnunet_trainers"))
    importlib.import_module("nnunetv2.run.run_training")
    for point in points:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                live(folder, point)
                status = 0
            except CancelledError:
                status = 3
            except Exception:
                traceback.print_exc()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        sys.stderr.write(f"LIFE {point}: {os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
