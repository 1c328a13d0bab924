"""What a loading process does: read the pairs of one batch, and others in the place of those that cannot be read."""

from __future__ import annotations

import errno
import pickle
import struct
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.pair_batches import BatchPlan
from MedCLIPSAMTraining.pair_groups import random_ranks
from MedCLIPSAMTraining.pair_index import Pair, PairIndex

Load = Callable[[Pair], tuple[Tensor, Any]]
BROKEN = (
    InputError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    zlib.error,
    struct.error,
)  # pillow raises all of these
_NOT_THE_FILE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}  # the machine's fault: stops the run
_TRIES = 20  # other pairs that are tried in the place of one that cannot be read


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read: its row in the index, its file, and why."""

    row: int
    file: str
    reason: str


@dataclass(frozen=True)
class LoadedBatch:
    """This process's part of one global batch.

    Attributes:
        images: (b, ...) what ``load`` gave, stacked.
        captions: b captions, or what ``collate`` made of them.
        keys: (b,) int64, equal where captions are equal: the losses' ``same_caption``.
        rows: (b,) int64 rows of the index, replacements included.
        epoch, position: The batch's place; for :meth:`PairLoader.in_order` the epoch is 0.
        skipped: Images that could not be read, found with this batch.
    """

    images: Tensor
    captions: Any
    keys: Tensor
    rows: Tensor
    epoch: int
    position: int
    skipped: tuple[Skipped, ...] = ()

    def pin_memory(self) -> LoadedBatch:
        """Return it in page-locked memory, from which copies to a GPU need not be waited for."""
        return replace(self, images=self.images.pin_memory(), keys=self.keys.pin_memory())


@dataclass(frozen=True)
class Wish:
    """What a worker is to load: ``rows`` is this process's part of ``batch``, the global one."""

    epoch: int
    position: int
    rows: np.ndarray
    batch: np.ndarray
    replace: bool


Loaded = tuple[LoadedBatch | Exception | None, np.ndarray, list[Skipped]]
"""The batch, None where too little could be read; the rows that were tried; what could not be read."""


class BatchReader(Dataset):
    """Loads what is wished; lives in the workers."""

    def __init__(self, index: PairIndex, plan: BatchPlan | None, load: Load, collate: Callable[[list], Any]) -> None:
        self._index, self._load, self._collate = index, load, collate
        self._rows, self._seed = (plan.rows, plan.seed) if plan is not None else (np.arange(0), 0)
        _ = index.caption_keys, index.image_keys  # computed once, here, for all workers

    def __getitem__(self, wish: Wish) -> Loaded:
        """Load what is wished. What goes wrong comes back as a value: raised, it would arrive as another text."""
        tried: list[int] = []
        skipped: list[Skipped] = []
        try:
            batch: LoadedBatch | Exception | None = self._batch(wish, tried, skipped)
        except Exception as error:
            batch = _sendable(error)
        return batch, np.array(tried, np.int64), skipped

    def _batch(self, wish: Wish, tried: list[int], skipped: list[Skipped]) -> LoadedBatch | None:
        rows, images, captions = [], [], []
        for wanted in wish.rows.tolist():
            for row in (wanted, *(self._others(wish, wanted) if wish.replace else ())):
                tried.append(row)
                loaded = self._read(row, skipped)
                if loaded is not None:
                    rows.append(row)
                    images.append(loaded[0])
                    captions.append(loaded[1])
                    break
            else:
                if wish.replace:
                    return None
        if len(shapes := {tuple(image.shape) for image in images}) > 1:
            raise InputError(f"the images of a batch have different shapes, {sorted(shapes)}; all must have one.")
        places = np.array(rows, np.int64)
        return LoadedBatch(
            torch.stack(images) if images else torch.empty(0),
            self._collate(captions),
            torch.from_numpy(np.array(self._index.caption_keys[places])),
            torch.from_numpy(places),
            wish.epoch,
            wish.position,
            tuple(skipped),
        )

    def _read(self, row: int, skipped: list[Skipped]) -> tuple[Tensor, Any] | None:
        pair = self._index[row]
        try:
            return self._load(pair)
        except BROKEN as error:
            causes = (error, error.__cause__)
            if any(isinstance(cause, OSError) and cause.errno in _NOT_THE_FILE for cause in causes):
                raise
            skipped.append(Skipped(row, pair.file, f"{type(error).__name__}: {error}"))
            return None

    def _others(self, wish: Wish, row: int) -> Iterator[int]:
        """Yield pairs that may stand in for ``row``, first those with a caption and image that the batch has not.

        They depend on the planned batch alone, not on what else is replaced, so every process comes to the same.
        """
        places = random_ranks(np.arange(_TRIES * 4), self._seed, wish.epoch, row) % np.uint64(len(self._rows))
        others = self._rows[places.astype(np.int64)]
        new = ~np.isin(others, wish.batch)
        for keys in (self._index.caption_keys, self._index.image_keys):
            new &= ~np.isin(keys[others], keys[wish.batch])
        yield from [*others[new].tolist(), *others[~new & (others != row)].tolist()][:_TRIES]


def _sendable(error: Exception) -> Exception:
    """Return the error with its traceback as a note, as one that another process can be sent."""
    told = "".join(traceback.format_exception(error))
    error.add_note(told)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(told)
    return error
