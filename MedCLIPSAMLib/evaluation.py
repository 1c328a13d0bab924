"""A run over a data set with reference masks, and its report.

``report.json`` is plain JSON: where a number does not exist (no image with a target, an engine without calibration) it
says null. Every number of a data set can be computed again from the report's cases, except the NSD of the stages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib import metrics
from MedCLIPSAMLib.cases import Case, find_cases, read_mask
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.results import PromptResult, VisualPrompts

if TYPE_CHECKING:
    from MedCLIPSAMLib.pipeline import TextSegmenter

__all__ = ["Case", "evaluate", "find_cases", "report_table", "true_boxes"]

MEASURES = {"dsc": metrics.dsc, "nsd_2d": metrics.nsd_2d, "nsd_paper": metrics.nsd_paper}
STAGES = ("box_true", "box_whole_image", "saliency_0.5", "coarse", "mask")
SMALLEST_BOX_AREA = 20  # pixels; smaller islands of a reference mask get no box of their own
POSSIBLE = 0.05  # probability above which a pixel counts for an image's mean entropy
FEW = 30  # fewer images are information, not evidence


@dataclass
class _Measured:
    """One case: its entry in the report, and what only the summary needs."""

    entry: dict[str, Any]
    has_target: bool
    stages: dict[str, dict[str, float]] = field(default_factory=dict)


def evaluate(
    segmenter: TextSegmenter,
    cases: Sequence[Case],
    prompt: str,
    seed: int = 0,
    stages: bool = True,
    progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Segment every case with one prompt and compare with the reference masks.

    Args:
        segmenter: The engine.
        cases: From :func:`find_cases`.
        prompt: The text.
        seed: The run's seed.
        stages: Also measure every stage (the paper's Table 4) and the uncertainty; costs two more segmenter calls an
            image.
        progress: Called with (cases done, cases in all).
        limit: At most this many cases, spread evenly over the list.

    Returns:
        The report, ready for JSON: ``{"engine", "prompt", "seed", "datasets": {NAME: {"n", "dsc", "nsd_2d",
        "nsd_paper", "n_without_target", "specificity", "auroc_presence"[, "stages", "uncertainty"]}}, "cases":
        [...]}``.

        ``n`` counts the images with a target; DSC and NSD are over these, each as ``{"mean", "sd", "ci95"}`` (sample
        standard deviation; bootstrap of the mean). An image with a target that the gate skipped counts with 0.
        ``specificity`` is the share of the images without target whose mask is empty, by the gate or otherwise.
        ``stages``: ``box_true`` (ceiling: the segmenter with the boxes of :func:`true_boxes`), ``box_whole_image``
        (floor), ``saliency_0.5`` (saliency above 0.5), ``coarse``, ``mask``.
        ``uncertainty``: ``auroc_entropy_error``, AUROC of the entropy for the wrong pixels of an image, over the images
        that have right and wrong pixels; ``pearson_entropy_dsc`` and ``spearman_entropy_dsc``, correlation of an
        image's mean entropy (where its probability exceeds 0.05; 0 if nowhere) with 1 - DSC. Images that the gate
        skipped were not segmented and have no entropy: they are left out here, ``n_skipped`` counts them.

    Raises:
        InputError: No cases, a limit below 1, or an image that cannot be used; the message names the file.
        MedCLIPSAMError: surface-distance is not installed.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit} (--limit): it must be 1 or more.")
    if limit is not None and limit < len(cases):
        cases = [cases[index * len(cases) // limit] for index in range(limit)]
    if not cases:
        raise InputError("there are no cases to evaluate.")
    metrics.nsd_2d(np.ones((1, 1), bool), np.ones((1, 1), bool))  # a missing package shows now, not after hours
    measured = []
    for number, case in enumerate(cases):
        measured.append(_measure(segmenter, case, prompt, seed, stages))
        if progress is not None:
            progress(number + 1, len(cases))
    groups: dict[str, list[_Measured]] = {}
    for one in measured:
        groups.setdefault(one.entry["dataset"], []).append(one)
    return {
        "engine": segmenter.recipe.name,
        "prompt": prompt,
        "seed": seed,
        "datasets": {name: _summarise(groups[name], stages) for name in sorted(groups)},
        "cases": [one.entry for one in measured],
    }


def true_boxes(truth: np.ndarray) -> np.ndarray:
    """Return the bounding boxes (N, 4) float32 of a reference mask's 8-connected components of at least 20 pixels.

    A mask of smaller components only gives the boxes of all of them; an empty mask gives none.
    """
    from scipy.ndimage import find_objects, label

    labels, _ = label(truth, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    smallest = SMALLEST_BOX_AREA if (areas >= SMALLEST_BOX_AREA).any() else 1
    boxes = [
        (columns.start, rows.start, columns.stop, rows.stop)
        for (rows, columns), area in zip(find_objects(labels), areas, strict=True)
        if area >= smallest
    ]
    return np.array(boxes, np.float32).reshape(-1, 4)


def _measure(segmenter: TextSegmenter, case: Case, prompt: str, seed: int, stages: bool) -> _Measured:
    image, truth = read_image(case.image_path), read_mask(case.mask_path)
    begin = time.perf_counter()
    try:
        segmenter.set_image(image.array, image.window)
        result = segmenter.segment(prompt, seed)
    except InputError as error:
        raise InputError(f"{case.file}: {error}") from error
    seconds = time.perf_counter() - begin
    mask = result.mask  # empty where the gate skipped the image
    entry = {
        "file": case.file,
        "dataset": case.dataset,
        **{name: _number(measure(mask, truth)) for name, measure in MEASURES.items()},
        "presence": _number(result.presence.score),
        "seconds": seconds,
        "has_target": bool(truth.any()),
        "skipped": bool(result.skipped),
        "empty": not mask.any(),
    }
    measured = _Measured(entry, entry["has_target"])
    if stages:
        possible = result.probability > POSSIBLE
        entry["entropy"] = float(result.entropy[possible].mean(dtype=float)) if possible.any() else 0.0
        entry["auroc_entropy_error"] = _number(metrics.error_auroc(result.entropy, mask != truth))
        if measured.has_target:
            for name, stage in _stage_masks(segmenter, result, mask, truth).items():
                measured.stages[name] = {key: measure(stage, truth) for key, measure in MEASURES.items()}
        entry["stages"] = {name: values["dsc"] for name, values in measured.stages.items()} or None
    return measured


def _stage_masks(
    segmenter: TextSegmenter, result: PromptResult, mask: np.ndarray, truth: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the mask (H, W) after every stage, and those of the segmenter with boxes that no text has found."""

    segmenter.encode()  # where the gate skipped the image, it has not been

    def segment_boxes(boxes: np.ndarray) -> np.ndarray:
        logits, _ = segmenter.segmenter.predict(VisualPrompts(boxes=boxes))
        return (np.asarray(logits) > 0).any(axis=0)

    height, width = truth.shape
    return {
        "box_true": segment_boxes(true_boxes(truth)),
        "box_whole_image": segment_boxes(np.array([[0, 0, width, height]], np.float32)),
        "saliency_0.5": result.saliency > 0.5,
        "coarse": result.coarse.mask,
        "mask": mask,
    }


def _summarise(group: list[_Measured], stages: bool) -> dict[str, Any]:
    with_target = [one for one in group if one.has_target]
    without = [one for one in group if not one.has_target]
    presence = [one.entry["presence"] for one in group]
    calibrated = all(score is not None for score in presence)
    summary = {
        "n": len(with_target),
        **{name: _spread([one.entry[name] for one in with_target]) for name in MEASURES},
        "n_without_target": len(without),
        "specificity": _number(np.mean([one.entry["empty"] for one in without])) if without else None,
        "auroc_presence": _number(metrics.auroc(presence, [one.has_target for one in group])) if calibrated else None,
    }
    if stages:
        summary["stages"] = {
            stage: {name: _spread([one.stages[stage][name] for one in with_target]) for name in MEASURES}
            for stage in STAGES
        }
        segmented = [one for one in with_target if not one.entry["skipped"]]
        pearson, spearman = metrics.correlation(
            [one.entry["entropy"] for one in segmented], [1 - one.entry["dsc"] for one in segmented]
        )
        summary["uncertainty"] = {
            "n": len(segmented),
            "n_skipped": len(with_target) - len(segmented),
            "auroc_entropy_error": _spread(
                [one.entry["auroc_entropy_error"] for one in group if not one.entry["skipped"]]
            ),
            "pearson_entropy_dsc": _number(pearson),
            "spearman_entropy_dsc": _number(spearman),
        }
    return summary


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean, sample standard deviation and 95 % interval of the mean; values that do not exist are left out."""
    known = np.array([value for value in values if value is not None], float)
    if known.size == 0:
        return {"mean": None, "sd": None, "ci95": None}
    deviation = float(known.std(ddof=1)) if known.size > 1 else None
    return {"mean": float(known.mean()), "sd": deviation, "ci95": list(metrics.bootstrap_interval(known))}


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def report_table(report: dict[str, Any]) -> str:
    """Return a report as Markdown tables for people: one of the data sets, and those of stages and uncertainty."""
    datasets = report["datasets"]
    lines = [
        f"Engine {report['engine']}, prompt “{report['prompt']}”, seed {report['seed']}. "
        "Mean ± standard deviation [95 % interval of the mean] over the n images with a target.",
        "",
        *_row("data set", "n", "DSC", "NSD 2D", "NSD paper", "without target", "specificity", "AUROC presence"),
        *_rule(8),
    ]
    for name, data in datasets.items():
        measures = [_spread_text(data[measure]) for measure in MEASURES]
        absence = [_text(data[key]) for key in ("specificity", "auroc_presence")]
        lines += _row(name, data["n"], *measures, data["n_without_target"], *absence)
    if any("stages" in data for data in datasets.values()):
        lines += ["", *_row("data set", "n", "stage", "DSC", "NSD 2D", "NSD paper"), *_rule(6)]
        for name, data in datasets.items():
            for stage, values in data.get("stages", {}).items():
                lines += _row(name, data["n"], stage, *(_spread_text(values[measure]) for measure in MEASURES))
        lines += [
            "",
            *_row("data set", "n", "skipped", "AUROC entropy, wrong pixels", "Pearson entropy, 1 - DSC", "Spearman"),
            *_rule(6),
        ]
        for name, data in datasets.items():
            if "uncertainty" in data:
                found = data["uncertainty"]
                ranks = [_text(found[f"{kind}_entropy_dsc"]) for kind in ("pearson", "spearman")]
                counts = (found["n"], found["n_skipped"])
                lines += _row(name, *counts, _spread_text(found["auroc_entropy_error"]), *ranks)
    few = [f"{name} (n = {data['n']})" for name, data in datasets.items() if data["n"] < FEW]
    few += [
        f"{name} without target (n = {data['n_without_target']})"
        for name, data in datasets.items()
        if 0 < data["n_without_target"] < FEW
    ]
    if few:
        lines += ["", f"Fewer than {FEW} images are information, not evidence: {', '.join(few)}."]
    return "\n".join(lines) + "\n"


def _row(*cells: object) -> list[str]:
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"]


def _rule(columns: int) -> list[str]:
    return ["|" + " --- |" * columns]


def _text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _spread_text(spread: dict[str, Any]) -> str:
    if spread["mean"] is None:
        return "n/a"
    low, high = spread["ci95"]
    return f"{spread['mean']:.3f} ± {_text(spread['sd'])} [{low:.3f}, {high:.3f}]"
