"""A report of an evaluation as Markdown tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FEW = 30  # fewer images are information, not evidence
_MEASURES = ("dsc", "nsd_2d", "nsd_paper")


def report_table(report: Mapping[str, Any]) -> str:
    """Return a report as Markdown tables: of the data sets, and where they are there of stages and uncertainty."""
    datasets = report["datasets"]
    seed = "" if report["seed"] is None else f", seed {report['seed']}"
    lines = [
        f"Engine {report['engine']}, prompt {prompt_text(report['prompt'])}{seed}. "
        "Mean ± standard deviation [95 % interval of the mean] over the n images with a target.",
        "",
        *table("data set", "n", "DSC", "NSD 2D", "NSD paper", "without target", "specificity", "AUROC presence"),
    ]
    for name, data in datasets.items():
        measures = [spread_text(data[measure]) for measure in _MEASURES]
        absence = [number_text(data[key]) for key in ("specificity", "auroc_presence")]
        lines.append(row(name, data["n"], *measures, data["n_without_target"], *absence))
    for part in (_stages(datasets), _uncertainty(datasets), calibration_table(datasets)):
        lines += ["", *part] if part else []
    lines += few_note(datasets)
    return "\n".join(lines) + "\n"


def calibration_table(datasets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of the calibration table; none where no data set was judged."""
    rows = [
        row(
            name,
            data["calibration"]["n"],
            data["calibration"]["n_skipped"],
            f"{100 * data['calibration']['error']:.2f} %",
            *(figure_text(key, data["calibration"][key]) for key in ("ece", "brier", "nll", "aurc", "excess_aurc")),
        )
        for name, data in datasets.items()
        if "calibration" in data
    ]
    names = ("ECE", "Brier", "NLL", "AURC × 1000", "excess AURC × 1000")
    heading = ("data set", "images", "skipped", "wrong pixels", *names)
    note = (
        "Over all pixels of the segmented images, those without target too; lower is better. ECE: 15 bins of the "
        "largest class probability. Brier: sum over both classes. AURC: of the entropy against the wrong pixels."
    )
    return [*table(*heading), *rows, "", note] if rows else []


def few_note(datasets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return lines that name the data sets with few images."""
    few = [f"{name} (n = {data['n']})" for name, data in datasets.items() if data["n"] < FEW]
    few += [
        f"{name} without target (n = {data['n_without_target']})"
        for name, data in datasets.items()
        if 0 < data["n_without_target"] < FEW
    ]
    return ["", f"Fewer than {FEW} images are information, not evidence: {', '.join(few)}."] if few else []


def _stages(datasets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        row(name, data["n"], stage, *(spread_text(values[measure]) for measure in _MEASURES))
        for name, data in datasets.items()
        for stage, values in data.get("stages", {}).items()
    ]
    return [*table("data set", "n", "stage", "DSC", "NSD 2D", "NSD paper"), *rows] if rows else []


def _uncertainty(datasets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for name, data in datasets.items():
        if "uncertainty" in data:
            found = data["uncertainty"]
            ranks = [number_text(found[f"{kind}_entropy_dsc"]) for kind in ("pearson", "spearman")]
            rows.append(row(name, found["n"], found["n_skipped"], spread_text(found["auroc_entropy_error"]), *ranks))
    heading = ("data set", "n", "skipped", "AUROC entropy, wrong pixels", "Pearson entropy, 1 - DSC", "Spearman")
    return [*table(*heading), *rows] if rows else []


def table(*cells: object) -> list[str]:
    """Return the two first lines of a Markdown table."""
    return [row(*cells), "|" + " --- |" * len(cells)]


def row(*cells: object) -> str:
    """Return a line of a Markdown table; a bar or a line break in a cell cannot break it."""
    texts = (" ".join(str(cell).replace("\\", "\\\\").replace("|", "\\|").split()) for cell in cells)
    return "| " + " | ".join(texts) + " |"


def prompt_text(prompt: str | None) -> str:
    """Return a prompt in quotation marks."""
    return "unknown" if prompt is None else f"“{prompt}”"


def number_text(value: float | None, digits: int = 3) -> str:
    """Return a number for a table."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def figure_text(measure: str, value: float | None, sign: str = "") -> str:
    """Return a calibration figure for a table; AURC times 1000, since most pixels are certain and right."""
    return "n/a" if value is None else f"{value * (1000 if 'aurc' in measure else 1):{sign}.4f}"


def spread_text(spread: Mapping[str, Any], digits: int = 3) -> str:
    """Return mean ± standard deviation [95 % interval] for a table."""
    if spread["mean"] is None:
        return "n/a"
    low, high = spread["ci95"]
    mean, sd = (number_text(spread[name], digits) for name in ("mean", "sd"))
    return f"{mean} ± {sd} [{low:.{digits}f}, {high:.{digits}f}]"


def datasets_of(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all data sets in some reports, in order of appearance."""
    return list(dict.fromkeys(name for report in reports for name in report["datasets"]))
