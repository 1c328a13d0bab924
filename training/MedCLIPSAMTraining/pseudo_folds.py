"""Cross-validation folds in which no patient is both trained on and validated with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def patient_folds(patients: Mapping[str, str | None], count: int = 5, seed: int = 0) -> list[dict[str, list[str]]]:
    """Divide cases into folds by patient, as nnU-Net's ``splits_final.json`` has them.

    The patients are shuffled by the seed and then, those with the most cases first, each put into the fold with the
    fewest cases, so that the folds are of about equal size.

    Args:
        patients: The patient of every case; a case without one (None or "") counts as a patient of its own.
        count: Folds at most; with fewer patients than that there is one fold for each.
        seed: Of the shuffling.

    Returns:
        ``{"train": cases, "val": cases}`` of each fold, in alphabetical order; empty for fewer than two patients.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for case in sorted(patients):
        patient = patients[case]
        groups.setdefault(("patient", patient) if patient else ("case", case), []).append(case)
    if len(groups) < 2:
        return []
    cases = list(groups.values())
    order = [cases[index] for index in np.random.default_rng(seed).permutation(len(cases))]
    folds: list[list[str]] = [[] for _ in range(min(count, len(cases)))]
    for group in sorted(order, key=len, reverse=True):  # stable: equal sizes stay shuffled
        min(folds, key=len).extend(group)
    return [{"train": sorted(set(patients) - set(fold)), "val": sorted(fold)} for fold in folds]
