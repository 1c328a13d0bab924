"""A run over a data set with reference masks, and its report.

``report.json`` is plain JSON: where a number does not exist (no image with a target, an engine without calibration) it
says null. Every number of a data set can be computed again from the report's cases, except the NSD of the stages and
the calibration over all pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib import metrics
from MedCLIPSAMLib.case_measures import MEASURES, Measured, measure_case
from MedCLIPSAMLib.cases import Case, find_cases, read_mask
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.evaluation_report import report_table
from MedCLIPSAMLib.evaluation_summary import DatasetFigures
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.prediction import Prediction, has_stages, write_prediction
from MedCLIPSAMLib.prediction_folder import PredictionFolder
from MedCLIPSAMLib.results import PromptResult, VisualPrompts

if TYPE_CHECKING:
    from MedCLIPSAMLib.engine_interface import Engine

__all__ = ["MEASURES", "STAGES", "Case", "evaluate", "evaluate_predictions", "find_cases", "report_table", "true_boxes"]

STAGES = ("box_true", "box_whole_image", "saliency_0.5", "coarse", "mask")
SMALLEST_BOX_AREA = 20  # pixels; smaller islands of a reference mask get no box of their own

Progress = Callable[[int, int], None]


def evaluate(
    segmenter: Engine,
    cases: Sequence[Case],
    prompt: str,
    seed: int = 0,
    stages: bool = True,
    progress: Progress | None = None,
    limit: int | None = None,
    *,
    uncertainty: bool | None = None,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Segment every case with one prompt and compare with the reference masks.

    Args:
        segmenter: The engine.
        cases: From :func:`find_cases`.
        prompt: The text.
        seed: The run's seed.
        stages: Also measure every stage (the paper's Table 4); costs two more segmenter calls an image.
        progress: Called with (cases done, cases in all).
        limit: At most this many cases, spread evenly over the list.
        uncertainty: Also judge probability and entropy; None does so where ``stages`` is True.
        keep: A folder for every case's mask, coarse mask, probability and entropy, see
            :func:`evaluate_predictions`; None keeps none.

    Returns:
        The report, ready for JSON: ``{"engine", "prompt", "seed", "datasets": {NAME: {"n", "dsc", "nsd_2d",
        "nsd_paper", "n_without_target", "specificity", "auroc_presence"[, "stages", "uncertainty", "calibration"]}},
        "cases": [...]}``.

        ``n`` counts the images with a target; DSC and NSD are over these, each as ``{"mean", "sd", "ci95"}`` (sample
        standard deviation; bootstrap of the mean). An image with a target that the gate skipped counts with 0.
        ``specificity`` is the share of the images without target whose mask is empty, by the gate or otherwise.
        ``stages``: ``box_true`` (ceiling: the segmenter with the boxes of :func:`true_boxes`), ``box_whole_image``
        (floor), ``saliency_0.5`` (saliency above 0.5), ``coarse``, ``mask``; an engine that goes
        straight to its mask, such as a trained nnU-Net, has none.
        ``uncertainty``: ``auroc_entropy_error``, AUROC of the entropy for the wrong pixels of an image, over the images
        that have right and wrong pixels; ``pearson_entropy_dsc`` and ``spearman_entropy_dsc``, correlation of an
        image's mean entropy (where its probability exceeds 0.05; 0 if nowhere) with 1 - DSC. Images that the gate
        skipped were not segmented and have no entropy: they are left out here, ``n_skipped`` counts them.
        ``calibration``: ``ece``, ``brier``, ``nll``, ``aurc`` and ``excess_aurc`` over the pixels of all images
        (without target too) that were segmented, see :mod:`MedCLIPSAMLib.calibration`; the same as means over the
        images (``per_image``); ``error``, the share of wrong pixels; the bins of the reliability diagram.

    Raises:
        InputError: No cases, a limit below 1, or an image that cannot be used; the message names the file.
        MedCLIPSAMError: surface-distance is not installed.
        OutputError: ``keep`` cannot be written.
    """
    cases = chosen_cases(cases, limit)
    uncertainty = stages if uncertainty is None else uncertainty
    names = case_folders(cases) if keep is not None else {}
    staged = stages and has_stages(segmenter)

    def measured() -> Iterable[Measured]:
        for case in cases:
            image, truth = read_image(case.image_path), read_mask(case.mask_path)
            begin = time.perf_counter()
            try:
                segmenter.set_image(image.array, image.window)
                result = segmenter.segment(prompt, seed)
            except InputError as error:
                raise InputError(f"{case.file}: {error}") from error
            seconds = time.perf_counter() - begin
            if keep is not None:
                facts = {"file": case.file, "run_seed": seed}
                write_prediction(keep / names[case.file], result, segmenter, image, facts)
            masks = _stage_masks(segmenter, result, truth) if staged and truth.any() else {}
            prediction = Prediction.of(result, segmenter, seconds)
            yield measure_case(case, truth, prediction, masks if staged else None, uncertainty)

    return _report({"engine": segmenter.recipe.name, "prompt": prompt, "seed": seed}, measured(), len(cases), progress)


def evaluate_predictions(
    folder: str | Path,
    cases: Sequence[Case],
    prompt: str | None = None,
    progress: Progress | None = None,
    limit: int | None = None,
    label: int | None = None,
) -> dict[str, Any]:
    """Compare segmentations that exist already, by any program, with the reference masks.

    Args:
        folder: See :class:`MedCLIPSAMLib.prediction_folder.PredictionFolder`.
        cases: From :func:`find_cases`.
        prompt: Which result to take where there are several.
        progress: Called with (cases done, cases in all).
        limit: At most this many cases, spread evenly over the list.
        label: The target's value in masks of several classes; None takes every value above 0.

    Returns:
        As :func:`evaluate`. ``engine``, ``prompt`` and ``seed`` are those of the folder's ``result.json``, or the
        folder's name and null; probability and entropy are judged where they are there, and of the stages the coarse
        mask.

    Raises:
        InputError: No cases, a case without prediction, a damaged file, or one of the wrong size.
        MedCLIPSAMError: surface-distance is not installed.
    """
    cases = chosen_cases(cases, limit)
    predictions = PredictionFolder(folder, cases, prompt, label)

    def measured() -> Iterable[Measured]:
        for case in cases:
            prediction, truth = predictions.read(case), read_mask(case.mask_path)
            stages = None if prediction.coarse is None else {"coarse": prediction.coarse, "mask": prediction.mask}
            yield measure_case(case, truth, prediction, stages, uncertainty=True)

    facts = {"engine": predictions.engine, "prompt": predictions.prompt or prompt, "seed": predictions.seed}
    return _report(facts, measured(), len(cases), progress)


def chosen_cases(cases: Sequence[Case], limit: int | None) -> Sequence[Case]:
    """Return at most ``limit`` cases, spread evenly over the list, of a list that must hold one.

    Raises:
        InputError: No cases, or a limit below 1.
        MedCLIPSAMError: surface-distance is not installed.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit} (--limit): it must be 1 or more.")
    if limit is not None and limit < len(cases):
        cases = [cases[index * len(cases) // limit] for index in range(limit)]
    if not cases:
        raise InputError("there are no cases to evaluate.")
    metrics.nsd_2d(np.ones((1, 1), bool), np.ones((1, 1), bool))  # a missing package shows now, not after hours
    return cases


def case_folders(cases: Sequence[Case]) -> dict[str, str]:
    """Return the name of each case's folder: its file's name, without the suffix where that is unique."""
    stems = [Path(case.file).stem for case in cases]
    return {case.file: stem if stems.count(stem) == 1 else case.file for case, stem in zip(cases, stems, strict=True)}


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


def _report(
    facts: dict[str, Any], measured: Iterable[Measured], count: int, progress: Progress | None
) -> dict[str, Any]:
    entries, datasets = [], {}
    for done, one in enumerate(measured, start=1):
        entries.append(one.entry)
        datasets.setdefault(one.entry["dataset"], DatasetFigures()).add(one)
        if progress is not None:
            progress(done, count)
    return facts | {
        "datasets": {name: datasets[name].summary() for name in sorted(datasets)},
        "cases": entries,
    }


def _stage_masks(segmenter: Engine, result: PromptResult, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mask (H, W) after every stage, and those of the segmenter with boxes that no text has found."""
    segmenter.encode()  # where the gate skipped the image, it has not been

    def segment_boxes(boxes: np.ndarray) -> np.ndarray:
        logits, _ = segmenter.segmenter.predict(VisualPrompts(boxes=boxes))
        return (np.asarray(logits) > 0).any(axis=0)

    height, width = truth.shape
    whole = np.array([[0, 0, width, height]], np.float32)
    return {
        "box_true": segment_boxes(true_boxes(truth)),
        "box_whole_image": segment_boxes(whole),
        "saliency_0.5": result.saliency > 0.5,
        "coarse": result.coarse.mask,
        "mask": result.mask,
    }
