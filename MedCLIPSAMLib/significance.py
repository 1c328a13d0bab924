"""Paired tests of two samples, and Holm's correction for their number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected by Holm's step-down method (1979); None, a test that does not exist, stays None."""
    known = sorted((value, index) for index, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for place, (value, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * value))
        corrected[index] = highest
    return corrected


def paired_t(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the two-sided p-value of Student's paired t test of two (n,) samples.

    1 for equal samples; None where the differences have no spread, or there are fewer than two.
    """
    from scipy.stats import ttest_rel

    difference = np.asarray(first, float) - np.asarray(second, float)
    if len(difference) < 2:
        return None
    if np.allclose(difference, difference[0], rtol=0, atol=1e-12):
        return 1.0 if abs(difference[0]) < 1e-12 else None
    return float(ttest_rel(first, second).pvalue)


def wilcoxon_signed_rank(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the two-sided p-value of the Wilcoxon signed-rank test of two (n,) samples; 1 for equal samples.

    Exact, by all 2^n signs of the ranks, for up to 16 differences that are not zero (ties share their mean rank); by
    the normal approximation for more. None for fewer than two differences in all.
    """
    from scipy.stats import norm, rankdata

    difference = np.round(np.asarray(first, float) - np.asarray(second, float), 12)  # so that ties are ties
    if len(difference) < 2:
        return None
    difference = difference[difference != 0]
    if len(difference) == 0:
        return 1.0
    ranks = rankdata(np.abs(difference))
    observed = abs(float((ranks * np.sign(difference)).sum()))
    if len(ranks) > 16:
        return float(2 * norm.sf(observed / math.sqrt(float((ranks**2).sum()))))
    sums = np.zeros(1)
    for rank in ranks:
        sums = np.concatenate([sums - rank, sums + rank])
    return float((np.abs(sums) >= observed - 1e-9).mean())


def p_text(value: float | None) -> str:
    """Return a p-value for a table."""
    return "n/a" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
