"""The reliability diagram: what a probability promises against what is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib.calibration import BINS
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.evaluation_report import datasets_of
from MedCLIPSAMLib.file_output import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2f5d8a", "#d98032", "#4b8b57", "#a4485c", "#7a6aa8", "#8a8a8a")
_MARKERS = "osD^vP"


def write_reliability_diagram(path: str | Path, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the data sets side by side, the evaluations as lines in them.

    Above, accuracy against the largest class probability (the bins of the ECE); in the middle, how often the target is
    there against its probability; below, how many pixels there are in the bins of the middle one.

    Args:
        path: The PNG to write.
        reports: By name, from :func:`MedCLIPSAMLib.evaluation.evaluate`; data sets without bins are left out.

    Raises:
        InputError: No report has bins, or matplotlib is not installed.
        OutputError: Not writable.
    """
    found = {
        dataset: {
            name: report["datasets"][dataset]["calibration"]
            for name, report in reports.items()
            if "confidence_bins" in report["datasets"].get(dataset, {}).get("calibration", {})
        }
        for dataset in datasets_of(list(reports.values()))
    }
    found = {dataset: lines for dataset, lines in found.items() if lines}
    if not found:
        raise InputError("no probability was judged in these reports; the reliability diagram has nothing to show.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("the reliability diagram needs matplotlib; run: pip install matplotlib") from error
    figure = Figure(figsize=(3.6 * len(found) + 0.6, 8.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(found), squeeze=False, height_ratios=(1, 1, 0.45))
    for column, (dataset, lines) in enumerate(found.items()):
        _draw_bins(axes[0][column], lines, "confidence_bins", legend=True)
        _draw_bins(axes[1][column], lines, "target_bins", legend=False)
        _draw_counts(axes[2][column], lines)
        axes[0][column].set_title(dataset, fontsize=11, fontweight="bold", parse_math=False)
        axes[0][column].set_xlabel("largest class probability")
        axes[1][column].set_xlabel("probability of the target")
        axes[2][column].set_xlabel("probability of the target")
    for row, label in enumerate(("accuracy", "share of the target", "share of the pixels")):
        axes[row][0].set_ylabel(label)
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": "MedCLIPSAM"})


def _draw_bins(axes: Axes, lines: Mapping[str, Mapping[str, Any]], bins: str, *, legend: bool) -> None:
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1, label="perfect" if legend else None)
    lowest = 1.0
    for number, (name, figures) in enumerate(lines.items()):
        points = [
            pair for pair in zip(figures[bins]["predicted"], figures[bins]["observed"], strict=True) if None not in pair
        ]
        lowest = min([lowest, *(value for pair in points for value in pair)])
        label = f"{name}: ECE {figures['ece']:.3f}, Brier {figures['brier']:.3f}" if legend else None
        style = {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
        axes.plot(*zip(*points, strict=True), linewidth=1.4, markersize=4, **style, label=label)
    start = 0.45 if legend and lowest > 0.45 else 0.0  # two classes: the largest probability is at least one half
    axes.set_xlim(start, 1.01)
    axes.set_ylim(start if lowest >= start else 0.0, 1.01)
    axes.grid(color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        shown = axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        for text in shown.get_texts():
            text.set_parse_math(False)


def _draw_counts(axes: Axes, lines: Mapping[str, Mapping[str, Any]]) -> None:
    edges = np.linspace(0, 1, BINS + 1)
    lowest = 1.0
    for number, figures in enumerate(lines.values()):
        count = np.array(figures["target_bins"]["count"], float)
        share = count / count.sum()
        lowest = min(lowest, share[share > 0].min())
        axes.stairs(np.maximum(share, 1e-12), edges, color=COLOURS[number % len(COLOURS)], linewidth=1.4)
    axes.set_yscale("log")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(lowest / 3, 2)
    axes.spines[["top", "right"]].set_visible(False)
