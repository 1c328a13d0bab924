"""From the runs to what a row shows: values by image, their mean and spread, and paired tests against the first row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from MedCLIPSAMLib.ablation_rows import Row
from MedCLIPSAMLib.ablation_runs import MEASURES, Measured
from MedCLIPSAMLib.cases import Case
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.metrics import bootstrap_interval
from MedCLIPSAMLib.significance import holm, paired_t, wilcoxon_signed_rank

TESTED = ("dsc", "nsd_2d")
Values = dict[str, dict[str, float]]  # by file, then by measure


@dataclass
class Result:
    """What a row shows of one data set.

    Attributes:
        row: Which.
        dataset: Which.
        images: How many of it show the target.
        values: Of every image with a target, by its file and the measure.
        reason: Why there are none; empty if there are.
        files: Names of the files that hold the settings and values of its runs.
        spread: By measure (mean, sample standard deviation or None, lower, upper bound of the mean's 95 % interval).
        difference: By measure, mean less that of the first row.
        p_t, p_wilcoxon: By measure, corrected by Holm's method over the table; None where there is no test.
    """

    row: Row
    dataset: str
    values: Values = field(default_factory=dict)
    images: int = 0
    reason: str = ""
    files: tuple[str, ...] = ()
    spread: dict[str, tuple[float, float | None, float, float]] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)
    p_t: dict[str, float | None] = field(default_factory=dict)
    p_wilcoxon: dict[str, float | None] = field(default_factory=dict)


def collect(
    rows: Sequence[tuple[Row, Sequence[Measured]]],
    cases: Mapping[str, Case],
    targets: Mapping[str, bool],
    labels: Mapping[str, str],
) -> list[Result]:
    """Return the results of one table: for every data set, in order of its name, one of each row.

    Args:
        rows: Each with what is known of its runs, in the order of ``Row.runs``.
        cases: By key, see :func:`MedCLIPSAMLib.ablation_runs.case_key`.
        targets: By key, whether the reference mask holds anything.
        labels: By file, the label of the manifest; empty without one.
    """
    results = []
    for dataset in sorted({case.dataset for case in cases.values()}):
        wanted = {key: case for key, case in cases.items() if case.dataset == dataset and targets[key]}
        for row, measured in rows:
            result = Result(
                row, dataset, images=len(wanted), files=tuple(one.file.name for one in measured if one.file)
            )
            try:
                result.values = _values(row, measured, wanted, labels)
            except InputError as error:
                result.reason = str(error)
            for measure in MEASURES:
                result.spread |= _spread(measure, result.values)
            results.append(result)
    _test(results)
    return results


def read_labels(data_dir: Path, split: str | None) -> dict[str, str]:
    """Return the column "label" of the manifest by file; empty without manifest or column."""
    import csv

    path = data_dir / "manifest.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if split is None or row.get("split") in (None, "", split)]
    return {row["file"]: row["label"] for row in rows if row.get("label")}


def subtype_of(label: str, subtypes: Sequence[str]) -> str | None:
    """Return the subtype whose words a label holds, for "lower-grade glioma" "glioma"; None if not exactly one."""
    words = f" {_plain(label)} "
    found = [subtype for subtype in subtypes if f" {_plain(subtype)} " in words]
    return found[0] if len(found) == 1 else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _values(row: Row, measured: Sequence[Measured], cases: Mapping[str, Case], labels: Mapping[str, str]) -> Values:
    """Return a row's values for some cases.

    Raises:
        InputError: They are not all there; the message says why, for the table.
    """
    if not cases:
        raise InputError("no image of this data set shows the target")
    if row.reason:
        raise InputError(row.reason)
    if row.report is not None:
        return _of_report(row.report, [case.file for case in cases.values()])
    chosen = {key: measured[0] for key in cases}
    if row.by_subtype:
        of_subtype = dict(zip(row.by_subtype, measured, strict=True))
        kinds = {key: subtype_of(labels.get(case.file, ""), list(of_subtype)) for key, case in cases.items()}
        unknown = [cases[key] for key, kind in kinds.items() if kind is None]
        if unknown:
            named = sorted({labels.get(case.file, "") for case in unknown} - {""})
            said = f"its labels there are: {', '.join(named)}" if named else "it has no column label for them"
            raise InputError(
                f"for {len(unknown)} of {len(cases)} images the manifest names none of the subtypes "
                f"{', '.join(of_subtype)} ({said})"
            )
        chosen = {key: of_subtype[kind] for key, kind in kinds.items()}
    for one in chosen.values():
        if one.reason:
            raise InputError(one.reason)
    done = sum(not one.lacks(key) for key, one in chosen.items())
    if done < len(chosen):
        raise InputError(f"not finished: {done} of {len(chosen)} images; the same command goes on")
    entries = [one.entries[key] for key, one in chosen.items()]
    if row.stage == "mask":
        return {entry["file"]: entry["mask"] for entry in entries}
    if any(row.stage not in entry["stages"] for entry in entries):
        raise InputError("the engine has no such stage")
    return {entry["file"]: entry["stages"][row.stage] for entry in entries}


def _of_report(path: Path, files: Sequence[str]) -> Values:
    """Return the values of some images in a ``report.json``.

    Raises:
        InputError: It is none, or has not all of the images.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        found = {case["file"]: {name: case[name] for name in MEASURES} for case in content["cases"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path.name} is no report of `./medclipsam evaluate` ({type(error).__name__}: {error})"
        ) from error
    absent = [file for file in files if file not in found or found[file]["dsc"] is None]
    if absent:
        raise InputError(f"{path.name} lacks {len(absent)} of {len(files)} images, the first is {absent[0]}")
    return {file: found[file] for file in files}


def _spread(measure: str, values: Values) -> dict[str, tuple[float, float | None, float, float]]:
    known = np.array([one[measure] for one in values.values() if one[measure] is not None], float)
    if known.size == 0:
        return {}
    deviation = float(known.std(ddof=1)) if known.size > 1 else None
    return {measure: (float(known.mean()), deviation, *bootstrap_interval(known))}


def _test(results: Sequence[Result]) -> None:
    """Compare every row with the first one that has values, data set by data set; correct over all of them."""
    first: dict[str, Result] = {}
    tests: list[tuple[Result, str, float | None, float | None]] = []
    for result in results:
        if not result.values:
            continue
        if result.dataset not in first:
            first[result.dataset] = result
            continue
        reference = first[result.dataset]
        for measure in TESTED:
            pairs = [
                (values[measure], reference.values[file][measure])
                for file, values in result.values.items()
                if values[measure] is not None and reference.values[file][measure] is not None
            ]
            if pairs:
                own, other = np.array(pairs, float).T
                result.difference[measure] = float((own - other).mean())
                tests.append((result, measure, paired_t(own, other), wilcoxon_signed_rank(own, other)))
    p_t, p_wilcoxon = (holm([test[place] for test in tests]) for place in (2, 3))
    for (result, measure, *_), of_t, of_wilcoxon in zip(tests, p_t, p_wilcoxon, strict=True):
        result.p_t[measure], result.p_wilcoxon[measure] = of_t, of_wilcoxon
