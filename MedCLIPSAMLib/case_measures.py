"""What is measured of one image: its entry in the report, and what only its data set's summary needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from MedCLIPSAMLib import metrics
from MedCLIPSAMLib.calibration import Reliability, RiskCoverage
from MedCLIPSAMLib.cases import Case
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.prediction import Prediction

MEASURES = {"dsc": metrics.dsc, "nsd_2d": metrics.nsd_2d, "nsd_paper": metrics.nsd_paper}
CALIBRATION = ("ece", "brier", "nll", "aurc", "excess_aurc")
POSSIBLE = 0.05  # probability above which a pixel counts for an image's mean entropy


@dataclass
class Measured:
    """One case.

    Attributes:
        entry: Its entry in the report.
        has_target: Whether the reference shows the target.
        stages: Measures of the mask after every stage.
        reliability, risk: Counts of its pixels; None where its probability or its entropy is not known.
    """

    entry: dict[str, Any]
    has_target: bool
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    reliability: Reliability | None = None
    risk: RiskCoverage | None = None


def measure_case(
    case: Case,
    truth: np.ndarray,
    prediction: Prediction,
    stages: Mapping[str, np.ndarray] | None,
    uncertainty: bool,
) -> Measured:
    """Compare one prediction with its reference.

    Args:
        case: The image.
        truth: (H, W) bool, the reference.
        prediction: Of the same size.
        stages: Masks (H, W) by the stage's name; None where stages are not asked for.
        uncertainty: Whether to judge probability and entropy.

    Raises:
        InputError: The prediction has another size than the reference.
    """
    mask = prediction.mask
    if mask.shape != truth.shape:
        raise InputError(
            f"{case.file}: the predicted mask is {mask.shape[1]} x {mask.shape[0]} pixels, the reference "
            f"{truth.shape[1]} x {truth.shape[0]}; both need the same size (resize masks with nearest neighbour)."
        )
    entry = {
        "file": case.file,
        "dataset": case.dataset,
        **{name: number(measure(mask, truth)) for name, measure in MEASURES.items()},
        "presence": number(prediction.presence),
        "seconds": prediction.seconds,
        "has_target": bool(truth.any()),
        "target_pixels": int(np.count_nonzero(truth)),
        "skipped": prediction.skipped,
        "empty": not mask.any(),
    }
    measured = Measured(entry, entry["has_target"])
    if uncertainty:
        _judge_uncertainty(measured, prediction, truth)
    if stages is not None:
        if measured.has_target:
            for name, stage in stages.items():
                measured.stages[name] = {key: measure(stage, truth) for key, measure in MEASURES.items()}
        entry["stages"] = {name: values["dsc"] for name, values in measured.stages.items()} or None
    return measured


def _judge_uncertainty(measured: Measured, prediction: Prediction, truth: np.ndarray) -> None:
    probability, entropy, error = prediction.probability, prediction.entropy, prediction.mask != truth
    measured.entry |= {"entropy": None, "auroc_entropy_error": None, "calibration": None}
    if entropy is None:
        return
    measured.entry["entropy"] = mean_entropy(entropy, prediction.mask if probability is None else probability)
    measured.entry["auroc_entropy_error"] = number(metrics.error_auroc(entropy, error))
    if prediction.skipped:  # nothing was segmented: its maps say nothing
        return
    measured.risk = RiskCoverage()
    measured.risk.add(entropy, error)
    if probability is not None:
        measured.reliability = Reliability()
        measured.reliability.add(probability, truth)
    measured.entry["calibration"] = calibration_figures(measured.reliability, measured.risk)


def mean_entropy(entropy: np.ndarray, probability: np.ndarray) -> float:
    """Return the mean entropy where the probability (or a mask) exceeds 0.05; 0 if it does nowhere."""
    possible = probability > POSSIBLE
    return float(entropy[possible].mean(dtype=float)) if possible.any() else 0.0


def calibration_figures(reliability: Reliability | None, risk: RiskCoverage | None) -> dict[str, float | None]:
    """Return ``ece``, ``brier``, ``nll``, ``aurc``, ``excess_aurc``; None for what is not known."""
    figures = {name: None if reliability is None else number(getattr(reliability, name)) for name in CALIBRATION[:3]}
    return figures | {name: None if risk is None else number(getattr(risk, name)) for name in CALIBRATION[3:]}


def number(value: float | None) -> float | None:
    """Return a number for JSON: None for one that does not exist."""
    return None if value is None or math.isnan(value) else float(value)
