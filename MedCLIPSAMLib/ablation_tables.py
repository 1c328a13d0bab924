"""The ablation tables for people: one Markdown file, and a CSV file with every number."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from MedCLIPSAMLib.ablation_rows import TABLES
from MedCLIPSAMLib.ablation_runs import MEASURES
from MedCLIPSAMLib.ablation_values import TESTED, Result
from MedCLIPSAMLib.evaluation_report import FEW, number_text, prompt_text, row, table
from MedCLIPSAMLib.significance import p_text

LABEL_MARK = "†"
_NAMES = {"dsc": "DSC", "nsd_2d": "NSD 2D", "nsd_paper": "NSD paper"}


@dataclass(frozen=True)
class Heading:
    """What a reader must know of all tables.

    Attributes:
        task, split, prompt: As asked.
        seed: Of the runs.
        engines: By name.
        images: How many, with and without target.
    """

    task: str
    split: str | None
    prompt: str
    seed: int
    engines: Sequence[str]
    images: int


def markdown(heading: Heading, tables: Mapping[str, Sequence[Result]]) -> str:
    """Return all tables.

    Args:
        heading: For the top.
        tables: By the key of :data:`TABLES`, from :func:`MedCLIPSAMLib.ablation_values.collect`.
    """
    split = f", split {heading.split}" if heading.split else ""
    lines = [
        f"# Ablation: {heading.task}{split}",
        "",
        f"{heading.images} images, seed {heading.seed}, prompt {_escaped(prompt_text(heading.prompt))} (in Table 3 the "
        "row's own). "
        "Mean ± sample standard deviation over the n images with a target; the presence gate is off. NSD with a "
        "tolerance of 2 pixels: 2D of the contours, paper as the paper's program has it.",
        "",
        "Difference and p: against the first row of the table that was run, on the same images; two-sided paired t "
        "test and Wilcoxon signed-rank test, corrected by Holm's method over the rows, data sets, and DSC and NSD 2D "
        "of the table. Bold: the best of the rows without a dagger.",
        "",
        f"{LABEL_MARK} uses true labels: of these images (their subtype, their boxes), or of training images with "
        "masks (few-shot, full supervision). Not comparable with the others.",
    ]
    if any(engine.startswith("lite") for engine in heading.engines):
        lines += [
            "",
            "The alignment of the engine lite was trained on images and masks of the train splits named in its card; "
            "on those data sets it is not zero-shot in the paper's sense.",
        ]
    for key, results in tables.items():
        lines += ["", f"## Table {key}. {TABLES[key]}", *_table(results)]
    return "\n".join(lines) + "\n"


def _table(results: Sequence[Result]) -> list[str]:
    """Return the tables of all data sets, and why rows were not run."""
    lines: list[str] = []
    reasons: dict[str, int] = {}
    few = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        group = [result for result in results if result.dataset == dataset]
        count = group[0].images
        if count < FEW:
            few.append(f"{dataset} (n = {count})")
        best = _best(group)
        names = [_NAMES[measure] for measure in MEASURES]
        lines += ["", f"### {dataset}, n = {count}", ""]
        lines += table("engine", "row", *names, "Δ DSC", "p (t)", "p (Wilcoxon)")
        for result in group:
            name = result.row.label + (f" {LABEL_MARK}" if result.row.uses_labels else "")
            if not result.values:
                number = reasons.setdefault(result.reason, len(reasons) + 1)
                lines.append(row(result.row.engine, name, f"not run ({number})", *[""] * 5))
                continue
            cells = [_spread_text(result, measure, best) for measure in MEASURES]
            change = f"{result.difference['dsc']:+.3f}" if "dsc" in result.difference else ""
            tests = [p_text(found["dsc"]) if "dsc" in found else "" for found in (result.p_t, result.p_wilcoxon)]
            lines.append(row(result.row.engine, name, *cells, change, *tests))
    if reasons:
        lines += ["", "Not run:", "", *(f"{number}. {_escaped(reason)}" for reason, number in reasons.items())]
    if few:
        lines += ["", f"Fewer than {FEW} images are information, not evidence: {', '.join(few)}."]
    return lines


def _best(group: Sequence[Result]) -> dict[str, float]:
    """Return the highest mean of each measure among the rows without true labels, if there are several."""
    shown = [result for result in group if result.values and not result.row.uses_labels]
    means = {measure: [one.spread[measure][0] for one in shown if measure in one.spread] for measure in MEASURES}
    return {measure: max(found) for measure, found in means.items() if len(found) > 1}


def _spread_text(result: Result, measure: str, best: Mapping[str, float]) -> str:
    if measure not in result.spread:
        return "n/a"
    mean, deviation, *_ = result.spread[measure]
    text = number_text(mean) if deviation is None else f"{number_text(mean)} ± {number_text(deviation)}"
    return f"**{text}**" if not result.row.uses_labels and mean == best.get(measure) else text


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;")


def csv_text(tables: Mapping[str, Sequence[Result]]) -> str:
    """Return one line for each row and data set, with all numbers at full precision; empty cells where there is none.

    Columns: table, dataset, engine, row, stage, prompt, runs (the files with all settings), uses_labels, status,
    reason, n; for each measure its mean, sd,
    ci95_low, ci95_high; for DSC and NSD 2D the difference and both p-values.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = ["table", "dataset", "engine", "row", "stage", "prompt", "runs", "uses_labels", "status", "reason", "n"]
    columns += [f"{measure}_{part}" for measure in MEASURES for part in ("mean", "sd", "ci95_low", "ci95_high")]
    columns += [f"{measure}_{part}" for measure in TESTED for part in ("difference", "p_t", "p_wilcoxon")]
    writer.writerow(columns)
    for key, results in tables.items():
        for result in results:
            of = result.row
            values = [key, result.dataset, of.engine, of.label, of.stage, _joined(run.prompt for run in of.runs)]
            values.append(_joined(result.files))
            values += ["yes" if of.uses_labels else "no", "done" if result.values else "not run", result.reason]
            values.append(len(result.values))
            for measure in MEASURES:
                values += result.spread.get(measure, [None] * 4)
            for measure in TESTED:
                values += [found.get(measure) for found in (result.difference, result.p_t, result.p_wilcoxon)]
            writer.writerow(["" if value is None else value for value in values])
    return stream.getvalue()


def _joined(texts: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(texts))
