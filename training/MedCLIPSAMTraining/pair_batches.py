"""Which pairs make up which batch: seeded, without equal captions or images in one batch, resumable anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.pair_groups import connected, numbered, random_ranks
from MedCLIPSAMTraining.pair_index import PairIndex

_TRIES = 400  # places looked at to move one pair whose image its batch has already


@dataclass(frozen=True)
class Turn:
    """One batch's place in the training and the rows in it.

    Attributes:
        epoch: From 0.
        position: Batch within the epoch, from 0.
        rows: (B,) int64 rows of the index, the global batch.
    """

    epoch: int
    position: int
    rows: np.ndarray


class BatchPlan:
    """The batches of every epoch, a function of the seed alone: nothing needs to be stored to resume.

    Every row occurs at most once in an epoch; the ``len(rows) % batch`` that are left over are others in every epoch.
    Equal captions, and equal images, come into different batches wherever that is possible: the rows are laid out with
    those that share a caption or image next to each other, and dealt to the batches in turn. A caption that occurs more
    often than there are batches is spread evenly; the loss's ``same_caption`` takes care of the rest.

    Attributes:
        batch: Pairs of a global batch, over all processes.
        seed: Any integer.
        rows: (n,) int64, the rows of the index that are used.
    """

    def __init__(self, index: PairIndex, rows: np.ndarray | None = None, *, batch: int = 64, seed: int = 0) -> None:
        """Plan with the pairs of the index, or with these rows of it.

        Raises:
            InputError: Fewer than two pairs in a batch, or fewer pairs than a batch.
        """
        self.rows = np.arange(len(index)) if rows is None else np.asarray(rows, np.int64)
        self.batch, self.seed = int(batch), int(seed)
        if self.batch < 2:
            raise InputError(f"a batch of {batch} has no negatives; choose at least 2.")
        if len(self.rows) < self.batch:
            raise InputError(f"{len(self.rows)} pairs are fewer than one batch of {batch}; choose a smaller batch.")
        self._caption_keys, self._image_keys = index.caption_keys[self.rows], index.image_keys[self.rows]
        self._captions, self._images = numbered(self._caption_keys), numbered(self._image_keys)
        self._groups = connected(self._captions, self._images)
        self._remembered: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.rows) // self.batch

    @property
    def fingerprint(self) -> str:
        """Hexadecimal name of the plan: the same pairs, batch and seed have the same; to be checked when resuming."""
        text = blake2b(f"{self.batch},{self.seed}".encode(), digest_size=16)
        for keys in (self.rows, self._caption_keys, self._image_keys):
            text.update(np.ascontiguousarray(keys))
        return text.hexdigest()

    def epoch(self, epoch: int) -> np.ndarray:
        """Return (batches, B) int64: the rows of all batches of one epoch."""
        if self._remembered is None or self._remembered[0] != epoch:
            self._remembered = epoch, self._lay_out(epoch)
        return self._remembered[1]

    def turns(self, epoch: int = 0, position: int = 0, *, epochs: int | None = None) -> Iterator[Turn]:
        """Yield the batches from a place on.

        Args:
            epoch, position: Where to begin; ``position`` may be the number of batches, which means the next epoch.
            epochs: How many epochs there are in all, counted from 0; without end by default.

        Raises:
            InputError: There is no such place.
        """
        if epoch < 0 or not 0 <= position <= len(self):
            raise InputError(f"epoch {epoch}, batch {position} is no place in epochs of {len(self)} batches.")
        while epochs is None or epoch < epochs:
            for place in range(position, len(self)):
                yield Turn(epoch, place, self.epoch(epoch)[place])
            epoch, position = epoch + 1, 0

    def share(self, rank: int, processes: int) -> slice:
        """Return which part of a global batch a process loads: equal parts in rank order, as the losses gather them.

        Raises:
            InputError: The batch cannot be divided among so many, or there is no such process.
        """
        if processes < 1 or not 0 <= rank < processes:
            raise InputError(f"process {rank} of {processes}: choose a rank from 0 to {processes - 1}.")
        if self.batch % processes:
            raise InputError(
                f"a batch of {self.batch} cannot be divided among {processes} processes; choose a multiple of "
                f"{processes}."
            )
        size = self.batch // processes
        return slice(rank * size, (rank + 1) * size)

    def collisions(self, epoch: int = 0) -> tuple[int, int]:
        """Return how many pairs of an epoch are in a batch that has their caption, or their image, already."""
        order = np.searchsorted(self.rows, self.epoch(epoch)) if self._rising() else self._places(self.epoch(epoch))
        counts = []
        for values in (self._captions, self._images):
            ordered = np.sort(values[order], axis=1)
            counts.append(int((ordered[:, 1:] == ordered[:, :-1]).sum()))
        return counts[0], counts[1]

    def _rising(self) -> bool:
        return bool((np.diff(self.rows) > 0).all())

    def _places(self, rows: np.ndarray) -> np.ndarray:
        order = np.argsort(self.rows, kind="stable")
        return order[np.searchsorted(self.rows, rows, sorter=order)]

    def _lay_out(self, epoch: int) -> np.ndarray:
        count, batches = len(self.rows), len(self)

        def ranks(values: np.ndarray, what: int) -> np.ndarray:
            return random_ranks(values, self.seed, epoch, what)

        every = np.arange(count)
        used = np.sort(np.argsort(ranks(every, 0), kind="stable")[: batches * self.batch])
        # Groups in random order; within a group by caption, so that a group larger than the number of batches still
        # has each of its captions spread evenly.
        keys = (ranks(used, 3), ranks(self._captions[used], 2), ranks(self._groups[used], 1))
        dealt = used[np.lexsort(keys)].reshape(self.batch, batches).T
        dealt = dealt[np.argsort(ranks(np.arange(batches), 4), kind="stable")]
        dealt = np.take_along_axis(dealt, np.argsort(ranks(dealt.ravel(), 5).reshape(dealt.shape), axis=1), axis=1)
        self._part_images(dealt, epoch)
        return self.rows[dealt]

    def _part_images(self, dealt: np.ndarray, epoch: int) -> None:
        """Exchange pairs between batches, in place, where dealing has left equal images in one batch."""
        images, captions = self._images, self._captions
        ordered = np.sort(images[dealt], axis=1)
        bad = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        for batch in bad.tolist():
            for place in range(self.batch):
                row = dealt[batch, place]
                if (images[dealt[batch]] == images[row]).sum() < 2:
                    continue
                tries = random_ranks(np.arange(2 * _TRIES), self.seed, epoch, 6, int(row))
                for other, there in zip(tries[::2] % len(dealt), tries[1::2] % self.batch, strict=True):
                    swap = dealt[other, there]
                    if (
                        other != batch
                        and _fits(images, captions, dealt[other], there, row)
                        and _fits(images, captions, dealt[batch], place, swap)
                    ):
                        dealt[batch, place], dealt[other, there] = swap, row
                        break


def _fits(images: np.ndarray, captions: np.ndarray, batch: np.ndarray, place: int, row: int) -> bool:
    """Whether the batch has neither the image nor the caption of ``row`` elsewhere than at ``place``."""
    same = (images[batch] == images[row]) | (captions[batch] == captions[row])
    same[place] = False
    return not same.any()
