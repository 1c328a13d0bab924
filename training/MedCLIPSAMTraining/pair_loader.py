"""Images and captions of planned batches, read by other processes while the model computes."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.pair_batches import BatchPlan
from MedCLIPSAMTraining.pair_broken import BrokenImages, write_skipped
from MedCLIPSAMTraining.pair_index import PairIndex
from MedCLIPSAMTraining.pair_reading import BatchReader, Load, LoadedBatch, Skipped, Wish

logger = logging.getLogger(__name__)

_SHARED = Path("/dev/shm")  # what Linux hands batches over by; containers often have 64 MB of it


class PairLoader:
    """Loads the batches of a plan in order, ahead of the training.

    An image that cannot be read is listed, and another pair takes its place: always the same one, whatever the number
    of workers or processes, so that a resumed run sees the same batches. Too many of them stop the run.

    Attributes:
        skipped: Row of the index -> what could not be read there, so far and by this process.
        waited: Seconds that the caller has waited for batches.
    """

    def __init__(
        self,
        index: PairIndex,
        plan: BatchPlan | None,
        load: Load,
        *,
        workers: int = 2,
        ahead: int = 2,
        broken_share: float = 0.01,
        broken: BrokenImages | None = None,
        rank: int = 0,
        processes: int = 1,
        pin: bool = False,
        collate: Callable[[list[Any]], Any] = list,
        context: str | None = None,
    ) -> None:
        """Prepare; the workers start with the first batch.

        Args:
            index: The pairs.
            plan: Their batches; None for a loader that is only asked for pairs :meth:`in_order`.
            load: Reads one pair: (image tensor of one shape for all, caption or its tokens). It runs in the workers, so
                it must not touch a GPU; equal pairs must give equal results. Where processes are started rather than
                forked (Windows, macOS) it must be picklable and should not carry a model.
            workers: Processes that load; 0 loads in this one.
            ahead: Batches that each worker prepares ahead.
            broken_share: Share of all pairs of the index that may be unreadable.
            broken: Counts them together with those of other loaders, in place of that share.
            rank, processes: This process's part of every batch, see :meth:`BatchPlan.share`.
            pin: Page-locked memory, for copies to a GPU.
            collate: Makes the captions of a batch one thing, in the worker; for example a tokenizer.
            context: How workers start ("fork", "spawn", "forkserver"); the platform's way by default.

        Raises:
            InputError: A number out of range.
        """
        if workers < 0 or ahead < 1:
            raise InputError(f"{workers} workers, {ahead} batches ahead: choose at least 0 and 1.")
        self.index, self.plan = index, plan
        self.skipped: dict[int, Skipped] = {}
        self.waited = 0.0
        self._share = plan.share(rank, processes) if plan is not None else slice(None)
        self._dataset = BatchReader(index, plan, load, collate)
        self._workers, self._ahead = workers, ahead
        self._broken = broken or BrokenImages(broken_share, len(index))
        self._pin, self._context = pin, context
        self._seen = np.zeros(len(index), bool)

    def batches(self, epoch: int = 0, position: int = 0, *, epochs: int | None = None) -> Iterator[LoadedBatch]:
        """Yield the plan's batches from a place on; see :meth:`BatchPlan.turns`.

        Raises:
            InputError: Too many images cannot be read (the message lists them), images of different shapes, or a
                worker was ended from outside.
        """
        if self.plan is None:
            raise InputError("a loader without a plan has no batches; ask for pairs in order.")
        wishes = (
            Wish(turn.epoch, turn.position, turn.rows[self._share], turn.rows, True)
            for turn in self.plan.turns(epoch, position, epochs=epochs)
        )
        yield from self._run(wishes)

    def in_order(self, rows: Sequence[int] | np.ndarray, batch: int) -> Iterator[LoadedBatch]:
        """Yield these rows once, in order; one that cannot be read is left out, so batches may be smaller.

        Args:
            rows: Rows of the index, for example the validation's.
            batch: Pairs at once.

        Raises:
            InputError: As for :meth:`batches`.
        """
        rows = np.asarray(rows, np.int64)
        parts = (rows[first : first + batch] for first in range(0, len(rows), batch))
        wishes = (Wish(0, number, part, part, False) for number, part in enumerate(parts))
        yield from self._run(wishes)

    def write_skipped(self, path: Path) -> None:
        """Write what could not be read as a CSV: row, file, reason."""
        write_skipped(path, self.skipped.values())

    def _run(self, wishes: Iterator[Wish]) -> Iterator[LoadedBatch]:
        first = next(wishes, None)
        if first is None:
            return
        workers, ahead = self._room(first)
        loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=_Once(first, wishes),
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            worker_init_fn=_start_worker if workers else None,
            multiprocessing_context=self._context if workers else None,
            pin_memory=self._pin and torch.cuda.is_available(),
            generator=torch.Generator(),  # else it would draw from the one that the training's own numbers come from
        )
        batches = iter(loader)
        try:
            while True:
                began = time.perf_counter()
                try:
                    found = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
                        raise InputError(
                            "a process that loads images was ended from outside, mostly because the memory ran out; "
                            f"use fewer than {workers} workers or smaller batches."
                        ) from error
                    raise
                self.waited += time.perf_counter() - began
                batch, tried, skipped = found
                if isinstance(batch, Exception):
                    raise batch
                self._note(tried, skipped, stop=batch is None)
                if batch is not None and len(batch.rows):
                    yield batch
        finally:
            del batches  # ends the workers

    def _room(self, wish: Wish) -> tuple[int, int]:
        """Return workers and batches ahead that the shared memory has room for; a full one kills a worker."""
        workers, ahead = self._workers, self._ahead
        if not workers or not _SHARED.is_dir() or (free := shutil.disk_usage(_SHARED).free) > 2 << 30:
            return workers, ahead
        batch, _, _ = self._dataset[replace(wish, rows=wish.rows[:1])]
        size = batch.images.nbytes * len(wish.rows) if isinstance(batch, LoadedBatch) else 0
        while workers and size * (workers * ahead + 2) > 0.9 * free:
            workers, ahead = (workers, ahead - 1) if ahead > 1 else (workers - 1, ahead)
        if (workers, ahead) != (self._workers, self._ahead):
            logger.warning(
                "%s has %d MB free: %d loading processes, %d batches ahead, instead of %d and %d; give the container "
                "more shared memory (--shm-size).",
                *(_SHARED, free >> 20, workers, ahead, self._workers, self._ahead),
            )
        return workers, ahead

    def _note(self, tried: np.ndarray, skipped: Iterable[Skipped], stop: bool) -> None:
        """Remember what could not be read, and stop when that is too much."""
        new = np.unique(tried[~self._seen[tried]])
        self._seen[new] = True
        found = {item.row: item for item in skipped if item.row not in self.skipped}
        self.skipped |= found
        for row in found:
            logger.warning("image of pair %d cannot be read and is skipped", row)
        self._broken.note(len(new), found.values(), stop)


class _Once:
    """The wishes as the sampler that a DataLoader asks for."""

    def __init__(self, first: Wish, rest: Iterator[Wish]) -> None:
        self._first, self._rest = first, rest

    def __iter__(self) -> Iterator[Wish]:
        yield self._first
        yield from self._rest


def _as_it_is(loaded: object) -> object:
    return loaded


def _start_worker(number: int) -> None:
    """Leave Ctrl+C to the main process, which ends the workers after it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
