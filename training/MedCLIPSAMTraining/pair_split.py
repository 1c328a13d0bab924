"""Training and validation pairs: kept apart by patient, or as the table itself says."""

from __future__ import annotations

import math

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.pair_groups import connected, numbered, random_ranks
from MedCLIPSAMTraining.pair_index import PairIndex
from MedCLIPSAMTraining.pair_marks import TEST, TRAINING, VALIDATION
from MedCLIPSAMTraining.text_column import TextBuilder


def split(index: PairIndex, validation: float = 0.15, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Divide the pairs at random, 85 to 15 as in the paper.

    All pairs of a patient are on one side, and so are all pairs of an image, also where two patients share it (see
    :meth:`PairIndex.with_compared_images` for images under several names). Which side a patient comes to depends on the
    seed and the names, not on the order of the pairs.

    Args:
        index: The pairs, cleaned.
        validation: Share of the pairs, 0 to below 1; met as closely from below as whole patients allow, but never with
            an empty side unless it is 0.
        seed: Any integer.

    Returns:
        The rows for training and those for validation, each (n,) int64 in rising order.

    Raises:
        InputError: The share is out of range, or all pairs belong to one patient or image.
    """
    if not 0 <= validation < 1 or math.isnan(validation):
        raise InputError(f"the validation share is {validation}; choose 0 to below 1, for example 0.15.")
    rows = np.arange(len(index))
    if validation == 0:
        return rows, rows[:0]
    images = index.image_keys
    patients = index.patients.keys()
    known = np.asarray(index.patients.lengths) > 0
    groups = connected(numbered(images), numbered(np.where(known, patients, images)))
    sizes = np.bincount(groups)
    if len(sizes) < 2:
        raise InputError(
            f"all {len(index)} pairs belong to one patient or show one image, so none can be kept for validation; "
            "set the validation share to 0 or give more patients."
        )
    names = np.full(len(sizes), np.iinfo(np.int64).max)
    np.minimum.at(names, groups, np.where(known, patients, images))
    order = np.argsort(random_ranks(names, seed), kind="stable")
    chosen, room = np.zeros(len(sizes), bool), round(validation * len(index))
    for group in order.tolist():
        if sizes[group] <= room:
            chosen[group] = True
            room -= int(sizes[group])
        if room <= 0:
            break
    if not chosen.any():
        chosen[order[np.argmin(sizes[order])]] = True
    if chosen.all():
        chosen[order[-1]] = False
    held_out = chosen[groups]
    return rows[~held_out], rows[held_out]


def marked_rows(index: PairIndex) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows for training (marked so, or without a mark), for validation and for testing, each (n,) int64."""
    if index.splits is None:
        rows = np.arange(len(index))
        return rows, rows[:0], rows[:0]
    training, validation, test = (np.flatnonzero(index.splits == mark) for mark in (TRAINING, VALIDATION, TEST))
    return training, validation, test


def shared(index: PairIndex, training: np.ndarray, others: np.ndarray) -> tuple[int, int]:
    """Return how many of the patients and of the images of ``others`` training sees too.

    Args:
        index: The pairs.
        training, others: Rows of it.
    """
    known = np.asarray(index.patients.lengths) > 0
    patients = [index.patients.keys()[rows[known[rows]]] for rows in (training, others)]
    images = [index.image_keys[rows] for rows in (training, others)]
    return len(np.intersect1d(*patients)), len(np.intersect1d(*images))


def shared_between(training: PairIndex, others: PairIndex) -> tuple[int, int]:
    """Return how many of the patients and of the images of another index training sees too.

    Images are compared by their files' contents, see :meth:`PairIndex.with_compared_images`.
    """
    patients = [index.patients.keys()[np.asarray(index.patients.lengths) > 0] for index in (training, others)]
    builder = TextBuilder()
    for index in (training, others):
        builder.add([index[row].file for row in range(len(index))])
    files = builder.column()
    images = PairIndex(files, files, files).with_compared_images().image_keys
    return len(np.intersect1d(*patients)), len(np.intersect1d(images[: len(training)], images[len(training) :]))
