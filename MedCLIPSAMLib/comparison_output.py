"""A comparison of evaluations for people (Markdown) and programs (CSV)."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from MedCLIPSAMLib.case_measures import CALIBRATION
from MedCLIPSAMLib.comparison import (
    LABELS,
    OVERLAP,
    Key,
    PairedDifference,
    Report,
    by_key,
    common_cases,
    paired_differences,
    value_of,
)
from MedCLIPSAMLib.evaluation_report import (
    FEW,
    calibration_table,
    figure_text,
    number_text,
    prompt_text,
    row,
    spread_text,
    table,
)
from MedCLIPSAMLib.evaluation_summary import spread
from MedCLIPSAMLib.file_output import check_output_folder, replacing
from MedCLIPSAMLib.significance import p_text

TABLE_FILE, ROWS_FILE, DIAGRAM_FILE = "comparison.md", "comparison.csv", "reliability.png"
_TESTS = (
    "Paired tests over the images, two-sided: t is Student's paired t test, W the Wilcoxon signed-rank test; p-values "
    "are corrected by Holm's method over the rows of the table. The difference is that of the means [95 % bootstrap "
    "interval]. Several images of one patient count as independent here, which makes the tests too sure of themselves."
)


def write_comparison(reports: Mapping[str, Report], output: str | Path) -> list[Path]:
    """Write ``comparison.md``, ``comparison.csv`` and, where probabilities were judged, ``reliability.png``.

    Args:
        reports: By name, at least two.
        output: A folder; made where it does not exist.

    Returns:
        The files; without the picture where matplotlib is not installed.

    Raises:
        InputError: See :func:`MedCLIPSAMLib.comparison.paired_differences`.
        OutputError: Not writable.
    """
    overlap, calibration = paired_differences(reports), paired_differences(reports, CALIBRATION)
    output = check_output_folder(output)
    files = [output / TABLE_FILE, output / ROWS_FILE]
    with replacing(files[0]) as file:
        file.write(comparison_table(reports, overlap, calibration).encode())
    with replacing(files[1]) as file:
        file.write(_rows_csv([*overlap, *calibration]).encode())
    judged = any("confidence_bins" in data.get("calibration", {}) for one in reports.values() for data in _data(one))
    if judged and importlib.util.find_spec("matplotlib") is not None:
        from MedCLIPSAMLib.reliability_diagram import write_reliability_diagram

        files.append(output / DIAGRAM_FILE)
        write_reliability_diagram(files[-1], reports)
    return files


def comparison_table(
    reports: Mapping[str, Report], overlap: Sequence[PairedDifference], calibration: Sequence[PairedDifference]
) -> str:
    """Return Markdown: means on the common images, paired tests, calibration.

    Args:
        reports: By name.
        overlap, calibration: From :func:`MedCLIPSAMLib.comparison.paired_differences`; each is a table.
    """
    common = common_cases(reports)
    lines = ["# Comparison", "", *_sources(reports, common), "", *_means(reports, common)]
    if overlap:
        lines += ["", "## Paired tests", "", _TESTS, "", *_tests(overlap)]
    pooled = _pooled(reports, common)
    if pooled:
        lines += ["", "## Calibration", "", *pooled]
    if calibration:
        lines += ["", "The same measures image by image, tested in pairs as above; lower is better.", ""]
        lines += _tests(calibration)
    few = {one.dataset: one.n for one in overlap if one.n < FEW}
    if few:
        named = ", ".join(f"{name} (n = {count})" for name, count in few.items())
        lines += ["", f"Fewer than {FEW} images are information, not evidence: {named}."]
    return "\n".join(lines) + "\n"


def _sources(reports: Mapping[str, Report], common: Sequence[Key]) -> list[str]:
    lines = table("name", "engine", "prompt", "seed", "images", "in common")
    for name, report in reports.items():
        seed = "n/a" if report.get("seed") is None else report["seed"]
        counts = (len(report["cases"]), len(common))
        lines.append(row(name, report["engine"], prompt_text(report.get("prompt")), seed, *counts))
    return lines


def _means(reports: Mapping[str, Report], common: Sequence[Key]) -> list[str]:
    lines = [
        "Mean ± standard deviation [95 % interval of the mean] over the n common images with a target.",
        "",
        *table("data set", "name", "n", *(LABELS[measure] for measure in OVERLAP), "without target", "specificity"),
    ]
    for dataset in dict.fromkeys(dataset for dataset, _ in common):
        for name, report in reports.items():
            entries = by_key(report)
            cases = [entries[key] for key in common if key[0] == dataset]
            with_target = [case for case in cases if case["has_target"]]
            without = [case["empty"] for case in cases if not case["has_target"]]
            measures = [spread_text(spread([value_of(case, one) for case in with_target])) for one in OVERLAP]
            specificity = number_text(float(np.mean(without)) if without else None)
            lines.append(row(dataset, name, len(with_target), *measures, len(without), specificity))
    return lines


def _pooled(reports: Mapping[str, Report], common: Sequence[Key]) -> list[str]:
    judged = {
        f"{dataset}, {name}": report["datasets"][dataset]
        for dataset in dict.fromkeys(dataset for dataset, _ in common)
        for name, report in reports.items()
        if dataset in report["datasets"]
    }
    lines = calibration_table(judged)
    skipped = {data["calibration"]["n_skipped"] for data in judged.values() if "calibration" in data}
    if any(len(report["cases"]) > len(common) for report in reports.values()) or len(skipped) > 1:
        lines += ["", "These figures are over all images of each evaluation that it segmented, not the common ones."]
    return lines


def _tests(rows: Sequence[PairedDifference]) -> list[str]:
    lines = table("data set", "measure", "difference of", "n", "means", "difference [95 %]", "p (t)", "p (W)")
    for one in rows:
        first, second, *differences = (
            f"{value:{sign}.3f}" if one.measure in OVERLAP else figure_text(one.measure, value, sign)
            for value, sign in (
                (one.mean_first, ""),
                (one.mean_second, ""),
                *((value, "+") for value in (one.difference, *one.ci95)),
            )
        )
        lines.append(
            row(
                one.dataset,
                LABELS[one.measure],
                f"{one.second} - {one.first}",
                one.n,
                f"{second} - {first}",
                "{} [{}, {}]".format(*differences),
                p_text(one.p_t_holm),
                p_text(one.p_wilcoxon_holm),
            )
        )
    return lines


def _rows_csv(rows: Sequence[PairedDifference]) -> str:
    names = [one.name for one in fields(PairedDifference) if one.name != "ci95"]
    place = names.index("difference") + 1
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names[:place], "ci95_low", "ci95_high", *names[place:]])
    for one in rows:
        values = ["" if (value := getattr(one, name)) is None else value for name in names]
        writer.writerow([*values[:place], *one.ci95, *values[place:]])
    return text.getvalue()


def _data(report: Report) -> list[Mapping[str, Any]]:
    return list(report["datasets"].values())
