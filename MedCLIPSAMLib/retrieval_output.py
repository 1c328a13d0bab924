"""Retrieval results for people: tables in Markdown like the paper's Table 2, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.retrieval_ranks import DIRECTIONS, TOP, RetrievalReport
from MedCLIPSAMLib.retrieval_significance import PairedTest
from MedCLIPSAMLib.significance import p_text

_COLOURS = ("#2f5d8a", "#d98032", "#4b8b57", "#a4485c", "#7a6aa8", "#8a8a8a")


def table(reports: Mapping[str, RetrievalReport], tests: Sequence[PairedTest] = ()) -> str:
    """Return Markdown: accuracy in per cent as mean ± SD over the runs, the best of each column in bold.

    Args:
        reports: By model, at least one; all of the same examples.
        tests: From :func:`MedCLIPSAMLib.retrieval.compare`, for a second table.

    Raises:
        InputError: No report.
    """
    if not reports:
        raise InputError("there is no retrieval report to show.")
    one = next(iter(reports.values()))
    measures = [(direction, k) for direction in DIRECTIONS for k in TOP]
    best = [max(report.mean(*measure) for report in reports.values()) for measure in measures]
    lines = [
        f"Retrieval accuracy in %, n = {one.examples} pairs, batches of {one.batch}, {one.runs} run(s), "
        f"seed {one.seed}: mean ± standard deviation over the runs. Every candidate with an equal caption is a hit.",
        "",
        _row("Model", *(f"{DIRECTIONS[direction]} top-{k}" for direction, k in measures)),
        "|" + " --- |" * (len(measures) + 1),
    ]
    for name, report in reports.items():
        cells = []
        for measure, highest in zip(measures, best, strict=True):
            text = _share(report.mean(*measure), report.sd(*measure))
            cells.append(f"**{text}**" if report.mean(*measure) == highest and len(reports) > 1 else text)
        lines.append(_row(name, *cells))
    lines.append(_row("chance", *(_share(one.chance(k)) for _, k in measures)))
    lines += ["", ceiling_text(one)]
    if tests:
        lines += ["", *_tests(tests)]
    return "\n".join(lines) + "\n"


def ceiling_text(report: RetrievalReport) -> str:
    """Return a sentence on what equal captions would cost if they did not count as hits."""
    shared = float((report.group_sizes > 1).mean())
    return (
        f"{100 * shared:.1f} % of the examples share their caption with another one of their batch; if only an "
        f"example's own partner counted, no model could exceed {_share(report.ceiling(1))} % (top-1) and "
        f"{_share(report.ceiling(2))} % (top-2)."
    )


def plot(reports: Mapping[str, RetrievalReport], path: str | Path) -> None:
    """Draw the accuracies as bars with their standard deviation over the runs, and the level of chance.

    Args:
        reports: By model, at least one.
        path: The PNG to write.

    Raises:
        InputError: No report, or matplotlib is not installed.
        OutputError: Not writable, disk full.
    """
    if not reports:
        raise InputError("there is no retrieval report to show.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("The picture needs matplotlib; run: pip install matplotlib") from error
    measures = [(direction, k) for direction in DIRECTIONS for k in TOP]
    figure = Figure(figsize=(max(7.0, 4 + 0.9 * len(reports)), 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(reports)
    places = np.arange(len(measures))
    for number, (name, report) in enumerate(reports.items()):
        means = [100 * report.mean(*measure) for measure in measures]
        spread = [100 * (report.sd(*measure) or 0.0) for measure in measures]
        shift = (number - (len(reports) - 1) / 2) * width
        colour = _COLOURS[number % len(_COLOURS)]
        bars = axes.bar(places + shift, means, 0.92 * width, yerr=spread, color=colour, ecolor="#333333", capsize=2)
        bars.set_label(name.lstrip("_") or name)  # matplotlib hides labels that begin so
    one = next(iter(reports.values()))
    for place, (_, k) in enumerate(measures):
        chance = 100 * one.chance(k)
        label = "chance" if place == 0 else None
        axes.plot([place - 0.45, place + 0.45], [chance, chance], color="black", linestyle=":", label=label)
    axes.set_xticks(places, [f"{DIRECTIONS[direction]}\ntop-{k}" for direction, k in measures])
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.set_title(f"{one.examples} pairs, batches of {one.batch}, {one.runs} run(s)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for text in legend.get_texts():
        text.set_parse_math(False)
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": "MedCLIPSAM"})


def _tests(tests: Sequence[PairedTest]) -> list[str]:
    lines = [
        "Paired tests, two-sided, corrected by Holm's method over the rows. McNemar compares the examples; t and "
        "Wilcoxon compare the runs, which shuffle the same examples.",
        "",
        _row("Models", "Measure", "Difference in % [95 %]", "Hit by one alone", "p (McNemar)", "p (t)", "p (Wilcoxon)"),
        "|" + " --- |" * 7,
    ]
    for test in tests:
        low, high = (100 * value for value in test.ci95)
        lines.append(
            _row(
                f"{test.first} - {test.second}",
                f"{DIRECTIONS[test.direction]} top-{test.k}",
                f"{100 * test.difference:+.1f} [{low:+.1f}, {high:+.1f}]",
                f"{test.only_first} / {test.only_second}",
                *(p_text(value) for value in (test.p_mcnemar, test.p_t, test.p_wilcoxon)),
            )
        )
    return lines


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _share(mean: float, sd: float | None = None) -> str:
    return f"{100 * mean:.1f}" if sd is None else f"{100 * mean:.1f} ± {100 * sd:.1f}"
