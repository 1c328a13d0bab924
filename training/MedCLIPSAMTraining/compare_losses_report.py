"""The report of a comparison of losses: one CSV of all numbers, and Markdown with means, spread and paired tests.

Two tests stand side by side. Over the seeds: Student's paired t of the cells with equal seed; its sample is the
trainings, of which there are few. Over the examples: Wilcoxon's signed-rank test of the test images (pairs), each with
its mean over the seeds; its sample is the images, and it takes these trainings as given.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.retrieval_ranks import DIRECTIONS, TOP
from MedCLIPSAMLib.significance import holm, p_text, paired_t, wilcoxon_signed_rank

REFERENCE = "dhn-nce"
MEAN_DSC = "DSC, mean of the data sets"
Result = Mapping[str, Any]


@dataclass(frozen=True)
class _Comparison:
    """DHN-NCE less another loss at one batch size, in one measure."""

    batch: int
    other: str
    measure: str
    difference: float
    seeds: int
    p_seeds: float | None
    p_examples: float | None


def write_report(results: Sequence[Result], output: Path) -> None:
    """Write ``comparison.csv`` and ``comparison.md``.

    Args:
        results: The content of the cells' ``result.json``.
        output: The folder.

    Raises:
        OutputError: Not writable, disk full.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["loss", "batch", "seed", "measure", "value"])
    for result in results:
        cell = result["settings"]
        for measure, value in measures(result).items():
            writer.writerow([cell["loss"], cell["batch"] or "", cell["seed"], measure, f"{value:.6f}"])
    for name, content in (("comparison.csv", text.getvalue()), ("comparison.md", markdown(results))):
        with replacing(output / name) as file:
            file.write(content.encode())


def measures(result: Result) -> dict[str, float]:
    """Return the numbers of a cell by name: retrieval accuracy, DSC per data set and their mean, all in [0, 1]."""
    found = {
        f"{DIRECTIONS[direction]} top-{k}": result["retrieval"][direction][f"top{k}"]["mean"]
        for direction in DIRECTIONS
        for k in TOP
    }
    dsc = {f"DSC {name}": values["mean"] for name, values in sorted(result["dsc"].items())}
    mean = {MEAN_DSC: float(np.mean(list(dsc.values())))} if dsc else {}
    return {**found, **mean, **dsc}


def markdown(results: Sequence[Result]) -> str:
    """Return the tables."""
    groups: dict[tuple[int, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["settings"]["batch"], result["settings"]["loss"]), []).append(result)
    names = list(measures(results[0]))
    one = results[0]["retrieval"]
    counts = ", ".join(f"{name} {values['n']}" for name, values in sorted(results[0]["dsc"].items()))
    dsc = (
        f"DSC: images with a target, {counts}; one sample each, the presence gate off."
        if counts
        else "DSC: not measured."
    )
    lines = [
        "# Losses compared on measured captions",
        "",
        _budget_text(results),
        f"Retrieval: {one['examples']} test pairs, batches of {one['batch']}, {one['runs']} shuffles; chance "
        f"{100 * one['chance']['top1']:.1f} % (top-1). {dsc}",
        "In %, mean ± standard deviation over the seeds.",
        "",
        _row("batch", "loss", "seeds", *names),
        "|" + " --- |" * (len(names) + 3),
    ]
    for (batch, loss), group in sorted(groups.items(), key=lambda item: item[0][0]):  # keeps the losses' order
        values = [measures(result) for result in group]
        cells = [_spread([value[name] for value in values]) for name in names]
        lines.append(_row(batch or "-", loss, len(group), *cells))
    rows = compare(groups)
    if rows:
        lines += [
            "",
            f"## {REFERENCE} against the others",
            "",
            "Two-sided, corrected by Holm's method over the rows. Over seeds: paired t of trainings with equal seed;",
            "over examples: Wilcoxon's signed-rank test of test pairs or images, each with its mean over the seeds.",
            "",
            _row("batch", "against", "measure", "difference in %", "seeds", "p over seeds", "p over examples"),
            "|" + " --- |" * 7,
        ]
        lines += [
            _row(
                row.batch,
                row.other,
                row.measure,
                f"{100 * row.difference:+.2f}",
                row.seeds,
                p_text(row.p_seeds),
                p_text(row.p_examples),
            )
            for row in rows
        ]
    return "\n".join(lines) + "\n"


def compare(groups: Mapping[tuple[int, str], Sequence[Result]]) -> list[_Comparison]:
    """Test the reference loss against every other one at the same batch size, on the seeds that both have."""
    rows = []
    for (batch, other), group in groups.items():
        reference = {result["settings"]["seed"]: result for result in groups.get((batch, REFERENCE), ())}
        paired = [(reference[seed], one) for one in group if (seed := one["settings"]["seed"]) in reference]
        if other == REFERENCE or not paired:
            continue
        for measure, (of_cell, of_examples) in _TESTED.items():
            if measure not in measures(paired[0][0]):  # DSC was not asked for
                continue
            own, others = (np.array([of_cell(pair[side]) for pair in paired]) for side in (0, 1))
            examples = [np.mean([of_examples(pair[side]) for pair in paired], axis=0) for side in (0, 1)]
            rows.append(
                _Comparison(
                    batch,
                    other,
                    measure,
                    float((own - others).mean()),
                    len(paired),
                    paired_t(own, others),
                    wilcoxon_signed_rank(*examples),
                )
            )
    seeds = holm([row.p_seeds for row in rows])
    examples = holm([row.p_examples for row in rows])
    corrected = zip(rows, seeds, examples, strict=True)
    return [
        _Comparison(row.batch, row.other, row.measure, row.difference, row.seeds, p_seeds, p_examples)
        for row, p_seeds, p_examples in corrected
    ]


def _hits(direction: str) -> tuple[Callable[[Result], float], Callable[[Result], np.ndarray]]:
    name = f"{DIRECTIONS[direction]} top-1"
    return (lambda result: measures(result)[name]), (
        lambda result: np.array(result["retrieval"]["hits"][f"{direction}_top1"])
    )


def _images(result: Result) -> np.ndarray:
    """Return the DSC of every test image, one data set after the other; all images weigh alike here."""
    sets = [values["images"] for _, values in sorted(result["dsc"].items())]
    return np.array([value for images in sets for value in images.values()])


_TESTED = {
    **{f"{DIRECTIONS[direction]} top-1": _hits(direction) for direction in DIRECTIONS},
    MEAN_DSC: ((lambda result: measures(result)[MEAN_DSC]), _images),
}


def _budget_text(results: Sequence[Result]) -> str:
    trained = [result["settings"] for result in results if result["settings"]["batch"]]
    if not trained:
        return "The shipped weights alone."
    one = trained[0]
    given = {name: one[name] or "the model's own" for name in ("learning_rate", "temperature")}
    return (
        f"The lite alignment, fine-tuned from the shipped weights for {one['epochs']} passes over the training "
        f"captions (learning rate {given['learning_rate']}, {one['schedule']} schedule, temperature "
        f"{given['temperature']}), whatever the batch size: a smaller batch means more steps, each from fewer pairs."
    )


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * np.mean(values):.1f}"
    return f"{mean} ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
