"""The rows of visual prompts as SAM's decoder takes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.results import VisualPrompts

DECODER_BATCH = 16


def check_prompts(prompts: VisualPrompts, name: str, kinds: frozenset[str]) -> None:
    """Raise InputError if there are no prompts, or of a kind that the model called ``name`` cannot take."""
    if len(prompts) == 0:
        raise InputError(f"{name} was given no prompts: the coarse mask is empty.")
    kind = "boxes" if prompts.points is None else "points" if prompts.boxes is None else "both"
    if kind not in kinds:
        known = " or ".join(repr(known) for known in sorted(kinds))
        raise InputError(f"{name} cannot take visual prompts of kind {kind!r}; choose {known}, or another segmenter.")
    if kind == "points" and (prompts.point_labels == -1).all(axis=1).any():
        raise InputError(f"{name} was given a row without any point; each needs at least one.")


def equal_rows(prompts: VisualPrompts, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]:
    """Yield rows of equally many real points, without their fillers: row numbers (n,), points and labels.

    The decoder would attend to fillers, and a row's mask would depend on how many points the others have.
    """
    real = np.zeros((len(prompts), 0), bool) if prompts.points is None else prompts.point_labels != -1
    counts = real.sum(axis=1)
    for count in np.unique(counts):
        equal = np.flatnonzero(counts == count)
        for start in range(0, len(equal), batch):
            rows = equal[start : start + batch]
            if count == 0:
                yield rows, None, None
                continue
            chosen = real[rows]
            points = prompts.points[rows][chosen].reshape(len(rows), count, 2)
            yield rows, points, prompts.point_labels[rows][chosen].reshape(len(rows), count)
