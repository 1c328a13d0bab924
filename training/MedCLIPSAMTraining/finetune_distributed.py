"""One process or several (``torchrun``): who this process is, and what all of them agree on.

Several processes work on one global batch: each holds an equal, consecutive part of it, the features are gathered with
their gradients, and the gradients of the weights are averaged, so that the numbers are those of one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from MedCLIPSAMLib.engines import choose_device
from MedCLIPSAMLib.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

PATIENCE = timedelta(hours=2)
"""The first process writes checkpoints and exports while the others wait."""


@dataclass(frozen=True)
class Processes:
    """All processes of a run, as seen by one of them.

    Attributes:
        rank: Of this one, from 0.
        count: Of all.
        device: Where this one computes.
        group: For collective calls; None where there is one process alone.
    """

    rank: int
    count: int
    device: torch.device
    group: ProcessGroup | None

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def any(self, wish: int | None) -> int | None:
        """Return the highest wish of all processes, so that they stop at the same step; None if none has one."""
        if self.group is None:
            return wish
        told = torch.tensor([wish or 0], device=self.device)
        distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self.group)
        return int(told) or None

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gave, by rank; any object that can be pickled."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value, group=self.group)
        return found

    def wait(self) -> None:
        """Go on only when all processes have come here."""
        if self.group is not None:
            distributed.barrier(group=self.group)


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, or be the only one.

    Args:
        device: "auto", "cpu", "cuda", ...; of several processes each takes the GPU of its local rank.

    Raises:
        InputError: The device does not exist, or there are fewer GPUs than processes on this machine.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, torch.device(choose_device(device)), None)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device)
    if chosen == "cuda":
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}. Start "
                "as many processes as there are GPUs, or pass --device cpu."
            )
        chosen = f"cuda:{local}"
        torch.cuda.set_device(local)
    elif chosen != "cpu":
        raise InputError(f"device {device!r}: several processes work on the CPU or on CUDA GPUs; pass cpu or cuda.")
    distributed.init_process_group("nccl" if chosen.startswith("cuda") else "gloo", timeout=PATIENCE)
    yield Processes(rank, count, torch.device(chosen), distributed.group.WORLD)
    distributed.destroy_process_group()  # not after an error: others may never come to it
