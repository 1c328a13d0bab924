"""Several evaluations of the same images against each other: paired tests for every measure and data set."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from MedCLIPSAMLib.case_measures import CALIBRATION, MEASURES
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.metrics import bootstrap_interval
from MedCLIPSAMLib.significance import holm, paired_t, wilcoxon_signed_rank

OVERLAP = tuple(MEASURES)
LABELS = {
    "dsc": "DSC",
    "nsd_2d": "NSD 2D",
    "nsd_paper": "NSD paper",
    "ece": "ECE",
    "brier": "Brier",
    "nll": "NLL",
    "aurc": "AURC × 1000",
    "excess_aurc": "excess AURC × 1000",
}
Report = Mapping[str, Any]
Key = tuple[str, str]


@dataclass(frozen=True)
class PairedDifference:
    """How two evaluations differ in one measure on one data set.

    Attributes:
        dataset, measure: Which; the measure by its name in the report.
        first, second: The evaluations.
        n: Images that have the measure in both: for DSC and NSD those with a target.
        mean_first, mean_second: Means over these images.
        difference: Mean of second less first.
        ci95: Bootstrap interval of the difference, over the images.
        p_t, p_wilcoxon: Two-sided p-values of the paired t test and the Wilcoxon signed-rank test over the images; None
            where a test does not exist.
        p_t_holm, p_wilcoxon_holm: The same, corrected by Holm's method over all rows of one table.
    """

    dataset: str
    measure: str
    first: str
    second: str
    n: int
    mean_first: float
    mean_second: float
    difference: float
    ci95: tuple[float, float]
    p_t: float | None
    p_wilcoxon: float | None
    p_t_holm: float | None = None
    p_wilcoxon_holm: float | None = None


def paired_differences(
    reports: Mapping[str, Report], measures: Sequence[str] = OVERLAP, baseline: str | None = None
) -> list[PairedDifference]:
    """Test every pair of evaluations on the images that all of them have.

    Args:
        reports: By name, at least two, from :func:`MedCLIPSAMLib.evaluation.evaluate`.
        measures: Names out of :data:`LABELS`; one that an evaluation does not have is left out.
        baseline: Test the others against this one alone; None tests every pair.

    Returns:
        One row for each pair, data set and measure, in the order of ``reports``; the p-values are corrected over all of
        them, so call it once for each table.

    Raises:
        InputError: Fewer than two reports, no image in common, or the same image with another reference mask.
    """
    if baseline is not None and baseline not in reports:
        raise InputError(f"there is no evaluation {baseline!r}; known: {', '.join(reports)}.")
    common = common_cases(reports)
    datasets = list(dict.fromkeys(dataset for dataset, _ in common))
    if baseline is None:
        pairs = list(itertools.combinations(reports, 2))
    else:
        pairs = [(baseline, name) for name in reports if name != baseline]
    entries = {name: by_key(report) for name, report in reports.items()}
    rows = []
    for (first, second), dataset, measure in itertools.product(pairs, datasets, measures):
        keys = [key for key in common if key[0] == dataset]
        values = [[value_of(entries[name][key], measure) for key in keys] for name in (first, second)]
        known = [pair for pair in zip(*values, strict=True) if None not in pair]
        if known:
            rows.append(_difference(dataset, measure, first, second, np.array(known, float)))
    for name in ("p_t", "p_wilcoxon"):
        corrected = holm([getattr(row, name) for row in rows])
        rows = [replace(row, **{f"{name}_holm": value}) for row, value in zip(rows, corrected, strict=True)]
    return rows


def common_cases(reports: Mapping[str, Report]) -> list[Key]:
    """Return (data set, file) of the images that all reports have, sorted.

    Raises:
        InputError: See :func:`paired_differences`.
    """
    if len(reports) < 2:
        raise InputError(f"{len(reports)} evaluation(s): a comparison needs at least two.")
    entries = {name: by_key(report) for name, report in reports.items()}
    common = sorted(set.intersection(*(set(one) for one in entries.values())))
    if not common:
        examples = "; ".join(f"{name}: {next(iter(one), ('', 'none'))[1]}" for name, one in entries.items())
        raise InputError(
            f"{', '.join(reports)} have no image in common ({examples}); paired tests need evaluations of the same "
            "images, by data set and file name."
        )
    for key in common:
        for fact in ("has_target", "target_pixels"):
            found = {name: one[key][fact] for name, one in entries.items() if one[key].get(fact) is not None}
            if len(set(found.values())) > 1:
                raise InputError(
                    f"{key[1]} of {key[0]} has not the same reference mask in all evaluations ({fact}: "
                    f"{', '.join(f'{name} {value}' for name, value in found.items())}); evaluate them on the same data."
                )
    return common


def by_key(report: Report) -> dict[Key, Mapping[str, Any]]:
    """Return a report's cases by (data set, file)."""
    return {(case["dataset"], case["file"]): case for case in report["cases"]}


def value_of(case: Mapping[str, Any], measure: str) -> float | None:
    """Return one measure of a case in a report; None where it does not exist."""
    return (case.get("calibration") or {}).get(measure) if measure in CALIBRATION else case.get(measure)


def _difference(dataset: str, measure: str, first: str, second: str, values: np.ndarray) -> PairedDifference:
    """Compare (n, 2) values of the same images."""
    before, after = values.T
    return PairedDifference(
        dataset,
        measure,
        first,
        second,
        len(values),
        float(before.mean()),
        float(after.mean()),
        float((after - before).mean()),
        bootstrap_interval(after - before),
        paired_t(after, before),
        wilcoxon_signed_rank(after, before),
    )
