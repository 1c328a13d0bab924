"""Paired tests between models that were asked the same retrieval questions, corrected for their number (Holm)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.metrics import bootstrap_interval
from MedCLIPSAMLib.retrieval_ranks import DIRECTIONS, TOP, RetrievalReport
from MedCLIPSAMLib.significance import holm, paired_t, wilcoxon_signed_rank


@dataclass(frozen=True)
class PairedTest:
    """How two models differ in one measure. Every p-value is two-sided and corrected by Holm's method over all rows.

    Attributes:
        first, second: The models.
        direction, k: The measure: "image_to_text" or "text_to_image", top-k.
        difference: Accuracy of the first less that of the second.
        ci95: Bootstrap interval of the difference, over the examples.
        only_first, only_second: Examples that one model alone hits, in more than half of the runs.
        p_mcnemar: Exact McNemar test of these two numbers: the examples are the sample, so this is the one to report.
        p_t: Paired t test over the runs; None where all runs differ by the same amount, or there is one run.
        p_wilcoxon: Wilcoxon signed-rank test over the runs; with five runs never below 0.0625.

    The runs shuffle one and the same set of examples. Tests over them say whether a difference outlasts the shuffling,
    not whether it would hold for other examples.
    """

    first: str
    second: str
    direction: str
    k: int
    difference: float
    ci95: tuple[float, float]
    only_first: int
    only_second: int
    p_mcnemar: float
    p_t: float | None
    p_wilcoxon: float | None


def compare(reports: Mapping[str, RetrievalReport]) -> list[PairedTest]:
    """Test every pair of models in both directions, top-1 and top-2.

    Args:
        reports: By model, all of the same captions with the same batch, runs and seed.

    Returns:
        One row for each pair of models and measure; none for fewer than two models.

    Raises:
        InputError: The reports are of different captions or settings.
    """
    asked = {name: (one.captions_digest, one.batch, one.runs, one.seed) for name, one in reports.items()}
    if len(set(asked.values())) > 1:
        raise InputError(
            f"{', '.join(reports)} were not measured on the same captions with the same batch, runs and seed; "
            "paired tests need the same questions."
        )
    rows = [
        _paired(first, second, reports, direction, k)
        for first, second in itertools.combinations(reports, 2)
        for direction in DIRECTIONS
        for k in TOP
    ]
    for name in ("p_mcnemar", "p_t", "p_wilcoxon"):
        corrected = holm([getattr(row, name) for row in rows])
        rows = [replace(row, **{name: value}) for row, value in zip(rows, corrected, strict=True)]
    return rows


def _paired(first: str, second: str, reports: Mapping[str, RetrievalReport], direction: str, k: int) -> PairedTest:
    from scipy.stats import binomtest

    hits = [reports[name].hits(direction, k) for name in (first, second)]
    shares = [one.mean(axis=0) for one in hits]
    accuracy = [reports[name].accuracy(direction, k) for name in (first, second)]
    usual = [share > 0.5 for share in shares]
    only_first, only_second = (int((usual[a] & ~usual[1 - a]).sum()) for a in (0, 1))
    discordant = only_first + only_second
    return PairedTest(
        first,
        second,
        direction,
        k,
        float((shares[0] - shares[1]).mean()),
        bootstrap_interval(shares[0] - shares[1], resamples=2000),
        only_first,
        only_second,
        float(binomtest(only_first, discordant).pvalue) if discordant else 1.0,
        paired_t(*accuracy),
        wilcoxon_signed_rank(*accuracy),
    )
