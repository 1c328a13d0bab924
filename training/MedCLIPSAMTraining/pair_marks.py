"""The split that a table itself gives, in a column ``split``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from MedCLIPSAMLib.errors import InputError

COLUMN = "split"
TRAINING, VALIDATION, TEST = 0, 1, 2
_WORDS = {
    "": TRAINING,  # a row without a mark
    "train": TRAINING,
    "training": TRAINING,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
    "testing": TEST,
}


def split_column(header: Iterable[str]) -> str | None:
    """Return the name of the column among a table's, None if there is none."""
    return next((name for name in header if name.strip().lower() == COLUMN), None)


def split_marks(values: Sequence[str], source: Path) -> np.ndarray:
    """Return (N,) uint8 of what a column says: :data:`TRAINING` (also where it is empty), ``VALIDATION`` or ``TEST``.

    Raises:
        InputError: Another word: a row that may be meant for testing must not be trained on.
    """
    known = {value: _WORDS.get(value.strip().lower()) for value in dict.fromkeys(values)}
    if odd := [value for value, mark in known.items() if mark is None]:
        raise InputError(
            f"{source}: the column {COLUMN!r} says {odd[0]!r}; known are train, val, validation, test, or nothing for "
            "train. Correct it, or call a column that means something else otherwise."
        )
    return np.fromiter((known[value] for value in values), np.uint8, len(values))


def joined_marks(parts: Sequence[tuple[int, np.ndarray | None]]) -> np.ndarray | None:
    """Return the marks of all parts of a source, None where none of them has any.

    Args:
        parts: Of each its number of rows and its marks, None for a part without: its rows are for training.
    """
    if all(marks is None for _, marks in parts):
        return None
    return np.concatenate([np.full(rows, TRAINING, np.uint8) if marks is None else marks for rows, marks in parts])
