"""nnU-Net's trainer with a cyclical learning rate that keeps the last weights of every cycle (arXiv 2409.19483, 3.3).

nnU-Net finds it by its own means: put this folder into the environment variable ``nnUNet_extTrainer`` and name the
trainer ``nnUNetTrainerCyclical``. nnU-Net imports every file of the folder as a top-level module, hence the absolute
imports; the folder above (training/) and the project's root must be on PYTHONPATH.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.optim.lr_scheduler import LRScheduler

from MedCLIPSAMLib.checkpoint_file import read_checkpoint_file
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMTraining.cyclical_schedule import CyclicalSettings, checkpoint_name, kept_epochs, learning_rate

_SLIM = ("network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes")
"""What nnU-Net's predictor reads of a checkpoint; the optimiser's state would double the file."""


class CyclicalLRScheduler(LRScheduler):
    """Sets the rate of :func:`learning_rate`; nnU-Net calls ``step(epoch)`` before every epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: CyclicalSettings) -> None:
        self._settings = settings
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Set the rate of an epoch, by default of the first."""
        self.last_epoch = 0 if epoch is None else epoch
        rate = learning_rate(self.last_epoch, self._settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class nnUNetTrainerCyclical(nnUNetTrainer):  # noqa: N801 (the name nnU-Net's users expect of a trainer)
    """D cycles of E / D epochs; ``checkpoint_ep%04d.pth`` holds the weights of each of the last G epochs of a cycle.

    The settings stand in plans.json under "medclipsam", see :class:`CyclicalSettings`. The state is saved after every
    epoch, and every draw of an epoch follows from the seed and the epoch. So a run that was killed at any point and
    goes on (``--c``) keeps the very weights of one that never stopped: bit for bit on the same CPU and threads with
    nnUNet_n_proc_DA=0. With augmentation in processes of their own, or on a GPU, the weights agree in distribution
    only. There is no ``checkpoint_best.pth``: the best epoch by the pseudo Dice is not part of the method.

    Attributes:
        cyclical: The settings.
        epoch_listener: Called after every epoch, when all is saved, with this trainer, whose ``current_epoch`` is then
            the number of finished epochs. An exception that it raises ends the training, which can go on later.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ) -> None:
        plans.setdefault(
            "continue_training", False
        )  # nnU-Net takes it out again, so a second trainer would not find it
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.cyclical = CyclicalSettings.from_plans(plans)
        self.initial_lr = self.cyclical.initial_rate
        self.num_epochs = self.cyclical.epochs
        if self.cyclical.iterations is not None:
            self.num_iterations_per_epoch = self.cyclical.iterations
        if self.cyclical.validation_iterations is not None:
            self.num_val_iterations_per_epoch = self.cyclical.validation_iterations
        self.epoch_listener: Callable[[nnUNetTrainerCyclical], None] | None = None
        self._kept = frozenset(kept_epochs(self.cyclical))

    def initialize(self) -> None:
        """Build the network, whose first weights follow from the seed."""
        self._seed(0)
        super().initialize()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, CyclicalLRScheduler]:
        """Return nnU-Net's optimiser with the cyclical learning rate."""
        optimizer, _ = super().configure_optimizers()
        return optimizer, CyclicalLRScheduler(optimizer, self.cyclical)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the cases for training and validation in alphabetical order: a listing of a folder has no order."""
        training, validation = super().do_split()
        return sorted(training), sorted(validation)

    def on_train_start(self) -> None:
        """Clear away what a killed run was writing, then begin as nnU-Net does."""
        if self.local_rank == 0:
            for path in Path(self.output_folder).glob(".partial-*"):
                path.unlink(missing_ok=True)
        super().on_train_start()

    def on_epoch_start(self) -> None:
        """Fix the epoch's draws."""
        super().on_epoch_start()
        self._seed(1 + self.current_epoch)

    def on_epoch_end(self) -> None:
        """Keep the weights where it is their turn, then save the state.

        Not nnU-Net's own method: that saves a best checkpoint, and draws a large picture after every epoch, which takes
        longer than a short epoch.
        """
        epoch = self.current_epoch
        now = time()
        self.logger.log("epoch_end_timestamps", now, epoch)
        self.print_to_log_file("train_loss", round(float(self.logger.get_value("train_losses", -1)), 4))
        self.print_to_log_file("val_loss", round(float(self.logger.get_value("val_losses", -1)), 4))
        dice = [round(float(one), 4) for one in self.logger.get_value("dice_per_class_or_region", -1)]
        self.print_to_log_file("Pseudo dice", dice)
        self.print_to_log_file(f"Epoch time: {now - self.logger.get_value('epoch_start_timestamps', -1):.2f} s")
        # In this order: a state saved first would let a run that is killed in between go on without the kept weights.
        if epoch in self._kept:
            self.save_checkpoint(str(self._kept_file(epoch)))
        self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
        if self.local_rank == 0 and (epoch + 1) % self.cyclical.cycle_length == 0:
            self.logger.plot_progress_png(self.output_folder)
        self.current_epoch += 1
        if self.epoch_listener is not None:
            self.epoch_listener(self)

    def on_train_end(self) -> None:
        """Check that all weights that should be kept are there, then finish as nnU-Net does.

        Raises:
            InputError: Some are absent, since a run with other settings went on here or files were removed.
        """
        absent = [epoch for epoch in sorted(self._kept) if not self._kept_file(epoch).is_file()]
        if absent and self.local_rank == 0 and not self.disable_checkpointing:
            raise InputError(
                f"{len(absent)} of {len(self._kept)} kept checkpoints are absent in {self.output_folder}, the first "
                f"is {checkpoint_name(absent[0])}; train again from the start in an empty folder."
            )
        super().on_train_end()

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint whole or not at all, of plain values only, so that it can be read without unpickling.

        A kept one holds the weights and what nnU-Net's predictor asks for. Any other has nnU-Net's own content.

        Raises:
            OutputError: Not writable, disk full; what stood there before still stands.
        """
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        content = {
            "network_weights": self._module().state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
        }
        if Path(filename).name == checkpoint_name(self.current_epoch):
            content = {name: content[name] for name in _SLIM}
            content["init_args"] = {"configuration": self.configuration_name, "fold": self.fold}
        with replacing(filename) as file:
            torch.save(_plain(content), file)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Go on from a state of this trainer; nothing in the file is run.

        Not nnU-Net's own method, which would unpickle the file.

        Raises:
            InputError: Damaged, or it holds more than numbers and plain values; kept weights, which are no state; or
                the state of a training with other settings.
        """
        if not self.was_initialized:
            self.initialize()
        checkpoint: Any = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            checkpoint = read_checkpoint_file(Path(checkpoint))
        try:
            before = CyclicalSettings.from_plans(checkpoint["init_args"]["plans"])
            if before != self.cyclical:
                raise InputError(
                    f"this training was begun with other settings ({before}) than the plans now have "
                    f"({self.cyclical}); begin anew in an empty folder."
                )
            self._module().load_state_dict(checkpoint["network_weights"])
            self.optimizer.load_state_dict(checkpoint["optimizer_state"])
            if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
                self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
            self.logger.load_checkpoint(checkpoint["logging"])
            self.current_epoch = checkpoint["current_epoch"]
            self._best_ema = checkpoint["_best_ema"]
            self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        except KeyError as error:
            raise InputError(
                f"the checkpoint has no {error}: it holds kept weights and not the state of a training; go on from "
                "checkpoint_latest.pth."
            ) from error

    def _kept_file(self, epoch: int) -> Path:
        return Path(self.output_folder) / checkpoint_name(epoch)

    def _module(self) -> torch.nn.Module:
        """Return the network without the wrappers of several processes and of torch.compile."""
        module = self.network.module if self.is_ddp else self.network
        return getattr(module, "_orig_mod", module)

    def _seed(self, stage: int) -> None:
        """Seed all generators that nnU-Net draws from: stage 0 for the first weights, then 1 + epoch.

        Seeds in place of saved generator states: they hold for data loaders in other processes, too, as far as those
        begin anew, and cannot be lost.
        """
        rank = 0 if stage == 0 else self.local_rank  # processes share the first weights, not the data
        numbers = np.random.SeedSequence([self.cyclical.seed, stage, rank]).generate_state(3)
        random.seed(int(numbers[0]))
        np.random.seed(int(numbers[1]))
        torch.manual_seed(int(numbers[2]))


def _plain(value: Any) -> Any:
    """Return ``value`` as tensors, numbers, texts and plain containers, which torch.load(weights_only=True) reads."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if value is None or (isinstance(value, str | bool | int | float) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, torch.device | Path):
        return str(value)
    raise InputError(f"a value of type {type(value).__name__} ({value!r}) cannot be kept in a checkpoint.")
