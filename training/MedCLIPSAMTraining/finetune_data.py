"""The pairs of a run: read, cleaned, split, and given out as batches to the trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.finetune_distributed import Processes
from MedCLIPSAMTraining.finetune_loop import PairBatch
from MedCLIPSAMTraining.finetune_models import TrainableClip, pixels
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings
from MedCLIPSAMTraining.image_text_data import (
    BatchPlan,
    BrokenImages,
    CleaningSettings,
    Pair,
    PairIndex,
    PairLoader,
    Skipped,
    clean,
    local_image,
    marked_rows,
    split,
)
from MedCLIPSAMTraining.pair_split import shared, shared_between

logger = logging.getLogger(__name__)

VALIDATION_CHUNK = 32
SETTLING_IMAGES = 512
REMEMBERED = 200_000  # kept features of images in each loading process, 1 kB each


@dataclass(frozen=True)
class DataSettings:
    """Where the pairs are.

    Attributes:
        data: See :meth:`PairIndex.read`.
        validation: Pairs of their own for validation; None keeps a share of ``data`` out of the training.
        root: Folder of relative image files.
        columns: Names of the columns of file, caption and patient.
        broken_share: Share of the images of all pairs, those for validation included, that may be unreadable; more stop
            the run.
    """

    data: Path
    validation: Path | None = None
    root: Path | None = None
    columns: tuple[str, str, str] = ("file", "caption", "patient")
    broken_share: float = 0.01

    def read(self, source: Path, shortest: int) -> tuple[PairIndex, dict[str, Any]]:
        """Return the pairs of a source, cleaned, and what cleaning did."""
        file, caption, patient = self.columns
        index = PairIndex.read(source, root=self.root, file_column=file, caption_column=caption, patient_column=patient)
        index, report = clean(index.with_compared_images(), CleaningSettings(shortest=shortest))
        logger.info("%s: %s", source.name, report.text())
        return index, report.as_dict()


@dataclass(frozen=True)
class LoadPair:
    """Loads one pair in a loader process: the image by the model's own preprocessing, and the caption.

    Attributes:
        image_input: See :class:`~MedCLIPSAMTraining.finetune_models.TrainableClip`.
        remembers: Keep what it gave in memory: for features, which are small, where reading the image takes longest.
        known: What is remembered already, by file.
    """

    image_input: Callable[[Path | np.ndarray], torch.Tensor]
    remembers: bool = False
    known: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, pair: Pair) -> tuple[torch.Tensor, str]:
        known = self.known.get(pair.file)
        if known is None:
            with local_image(pair.file) as path:
                known = self.image_input(path)
            if self.remembers and len(self.known) < REMEMBERED:
                self.known[pair.file] = known
        return known, pair.caption


class FinetuneData:
    """Training and validation pairs.

    Attributes:
        training, validation: Indices; the latter may be empty.
        epoch_steps: Batches of an epoch.
        identity: Tells whether a resumed run has the same pairs; JSON-able.
    """

    def __init__(self, source: DataSettings, settings: FinetuneSettings, processes: Processes):
        """Read and plan.

        Raises:
            InputError: See :meth:`PairIndex.read`, :func:`clean`, :func:`split` and :class:`BatchPlan`; or the tables'
                own split leaves nothing to train on or to validate with.
        """
        self._processes = processes
        index, self._cleaning = source.read(source.data, settings.minimum_characters)
        training, validation, test = marked_rows(index)
        self._marked = None if index.splits is None else (len(training), len(validation), len(test))
        if self._marked is not None:
            _tell_marks(index, training, validation, test)
        self.training = index.take(training)
        if source.validation is not None:
            if len(validation):
                logger.info("The rows marked val are left out too, for there are validation pairs of their own.")
            self.validation = _for_validation(source.read(source.validation, settings.minimum_characters)[0])
            _tell_shared("validation", *shared_between(self.training, self.validation))
        elif len(validation):
            self.validation = index.take(validation)
        else:
            rows, held_out = split(self.training, settings.validation_share, settings.seed)
            self.validation, self.training = self.training.take(held_out), self.training.take(rows)
        if len(self.training) < settings.batch:
            raise InputError(
                f"{len(self.training)} training pairs are left, fewer than one batch of {settings.batch}; pass a "
                "smaller --batch, or more pairs."
            )
        if 0 < len(self.validation) < 2:
            raise InputError(
                f"there is {len(self.validation)} pair for validation, and retrieval needs 2; pass a larger "
                "--validation-share, or 0 for none."
            )
        _check_captions(self.training, settings.batch)
        self._plan = BatchPlan(self.training, batch=settings.batch, seed=settings.seed)
        self.epoch_steps = len(self._plan)
        keys = blake2b(digest_size=16)
        for some in (self.validation.caption_keys, self.validation.image_keys):
            keys.update(np.ascontiguousarray(some).data)
        self.identity = {"pairs": len(self.training), "plan": self._plan.fingerprint, "validation": keys.hexdigest()}
        self._broken = BrokenImages(source.broken_share, len(self.training) + len(self.validation))
        self._validation_loader: PairLoader | None = None
        self._batches: Iterator[PairBatch] | None = None
        self._known: dict[str, torch.Tensor] = {}
        self._next = -1
        logger.info("%d pairs for training, %d for validation.", len(self.training), len(self.validation))

    def report(self) -> dict[str, Any]:
        """Return the numbers of pairs, for a JSON file."""
        captions, images = self._plan.collisions()
        return {
            "training_pairs": len(self.training),
            "validation_pairs": len(self.validation),
            "marked": self._marked and dict(zip(("train", "validation", "test"), self._marked, strict=True)),
            "cleaning": self._cleaning,
            "equal_in_one_batch": {"captions": captions, "images": images},
        }

    def prepare(self, model: TrainableClip, say: Callable[[int, int, str], None]) -> None:
        """Have the model compute the features of its frozen parts, each process a part of the images."""
        if not model.keeps_features:
            return
        files: dict[str, None] = {}
        for index in (self.training, self.validation):
            files |= dict.fromkeys(index[row].file for row in range(len(index)))
        mine = list(files)[self._processes.rank :: self._processes.count]
        for done, (file, features) in enumerate(zip(mine, model.prepare(map(_readable, mine)), strict=True), 1):
            if features is not None and len(self._known) < REMEMBERED:
                self._known[file] = features
            say(done, len(mine), "Features of the images")
        self._processes.wait()
        # From the whole list: tables are often sorted, by modality or by hospital.
        spread = np.unique(np.linspace(0, len(files) - 1, SETTLING_IMAGES).round().astype(int))
        every = list(files)
        model.settle(_readable(every[place]) for place in spread)

    def next_batch(self, model: TrainableClip, step: int, workers: int) -> PairBatch:
        """Return this process's part of the batch of a step, counted from 0 over all epochs.

        Raises:
            InputError: Too many images cannot be read; the message lists them.
        """
        if self._batches is None or self._next != step:
            self.close()
            self._batches = self._training_batches(model, step, workers)
        self._next = step + 1
        return next(self._batches)

    def close(self) -> None:
        """End the loader processes."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    @property
    def skipped(self) -> list[Skipped]:
        """The images that this process could not read; their rows are those of the training or validation."""
        return list(self._broken.skipped.values())

    def _training_batches(self, model: TrainableClip, step: int, workers: int) -> Iterator[PairBatch]:
        loader = self._new_loader(self.training, self._plan, model, workers)
        for batch in loader.batches(*divmod(step, self.epoch_steps)):
            yield PairBatch(batch.images, batch.captions, batch.keys)

    def _new_loader(self, index: PairIndex, plan: BatchPlan | None, model: TrainableClip, workers: int) -> PairLoader:
        return PairLoader(
            index,
            plan,
            LoadPair(model.image_input, model.keeps_features, dict(self._known)),
            workers=workers,
            broken=self._broken,
            rank=self._processes.rank,
            processes=self._processes.count,
            pin=self._processes.device.type == "cuda",
        )

    def validation_batches(self, model: TrainableClip, workers: int) -> Iterator[tuple[np.ndarray, PairBatch]]:
        """Yield this process's part of the validation pairs, as rows and their batch; unreadable ones are left out."""
        rows = np.arange(len(self.validation))
        mine = rows[rows // VALIDATION_CHUNK % self._processes.count == self._processes.rank]
        if self._validation_loader is None:  # kept: what it could not read is counted once, not at every validation
            self._validation_loader = self._new_loader(self.validation, None, model, workers)
        for batch in self._validation_loader.in_order(mine, VALIDATION_CHUNK):
            yield batch.rows.numpy(), PairBatch(batch.images, batch.captions, batch.keys)


def joined(found: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of the validation pairs and their features in the order of the rows, from parts in any order.

    Raises:
        InputError: Fewer than two of the images could be read.
    """
    parts = [part for part in found if len(part[0])]
    if sum(len(rows) for rows, _, _ in parts) < 2:
        raise InputError(
            "fewer than 2 images of the validation pairs can be read; correct them, or validate with none."
        )
    rows, images, texts = (np.concatenate(some) for some in zip(*parts, strict=True))
    order = np.argsort(rows)
    return rows[order], images[order], texts[order]


def _for_validation(index: PairIndex) -> PairIndex:
    """Return the pairs of a validation table that validate: those marked so, or where none is, those without a mark."""
    if index.splits is None:
        return index
    unmarked, validation, test = marked_rows(index)
    if not len(validation) and len(test):
        raise InputError(
            f"the validation pairs hold {len(test)} rows marked test and none marked val; test rows choose no model. "
            "Mark the rows that validate."
        )
    return index.take(validation) if len(validation) else index.take(unmarked)


def _tell_marks(index: PairIndex, training: np.ndarray, validation: np.ndarray, test: np.ndarray) -> None:
    logger.info(
        "The column split marks %d rows for training, %d for validation and %d for testing; the last are left out.",
        *map(len, (training, validation, test)),
    )
    if not len(training):
        raise InputError("the column split marks no row for training; mark some as train.")
    for name, rows in (("validation", validation), ("test", test)):
        _tell_shared(name, *shared(index, training, rows))


def _tell_shared(name: str, patients: int, images: int) -> None:
    if patients or images:
        logger.warning(
            "%d patients and %d images of the %s pairs are among the training pairs too; what is measured there is "
            "better than it would be with new ones. Correct the tables.",
            *(patients, images, name),
        )


def _check_captions(index: PairIndex, batch: int) -> None:
    """Refuse captions so equal that a batch would have nothing to contrast.

    Raises:
        InputError: One of them fills at least one batch.
    """
    _, places, counts = np.unique(index.caption_keys, return_index=True, return_counts=True)
    most = counts.argmax()
    if counts[most] > (batch - 1) * (len(index) // batch):
        raise InputError(
            f"{counts[most]} of {len(index)} training pairs have the caption {index.captions[int(places[most])]!r}; in "
            f"batches of {batch} some would hold no other, and nothing to tell it from. Pass a larger --batch, or "
            "captions that differ."
        )


def _readable(file: str) -> np.ndarray | None:
    try:
        with local_image(file) as path:
            return pixels(path)
    except (InputError, OSError) as error:
        logger.debug("%s", error)  # the loader lists it
        return None
