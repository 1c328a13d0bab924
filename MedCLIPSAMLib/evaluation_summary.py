"""The figures of a data set, from those of its cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from MedCLIPSAMLib import metrics
from MedCLIPSAMLib.calibration import Reliability, RiskCoverage
from MedCLIPSAMLib.case_measures import CALIBRATION, MEASURES, Measured, calibration_figures, number


class DatasetFigures:
    """Takes the cases of one data set and keeps what its summary needs; pixels are counted, not kept."""

    def __init__(self) -> None:
        self.cases: list[Measured] = []
        self._reliability: Reliability | None = None
        self._risk: RiskCoverage | None = None

    def add(self, measured: Measured) -> None:
        """Take one case; its counts of pixels are handed over."""
        self.cases.append(measured)
        if measured.reliability is not None:
            self._reliability = self._reliability or Reliability()
            self._reliability.merge(measured.reliability)
        if measured.risk is not None:
            self._risk = self._risk or RiskCoverage()
            self._risk.merge(measured.risk)
        measured.reliability = measured.risk = None

    def summary(self) -> dict[str, Any]:
        """Return the data set's part of the report; see :func:`MedCLIPSAMLib.evaluation.evaluate`."""
        with_target = [one for one in self.cases if one.has_target]
        without = [one for one in self.cases if not one.has_target]
        presence = [one.entry["presence"] for one in self.cases]
        calibrated = all(score is not None for score in presence)
        present = [one.has_target for one in self.cases]
        summary = {
            "n": len(with_target),
            **{name: spread([one.entry[name] for one in with_target]) for name in MEASURES},
            "n_without_target": len(without),
            "specificity": number(np.mean([one.entry["empty"] for one in without])) if without else None,
            "auroc_presence": number(metrics.auroc(presence, present)) if calibrated else None,
        }
        if names := list(dict.fromkeys(name for one in with_target for name in one.stages)):
            summary["stages"] = {
                stage: {
                    name: spread([one.stages[stage][name] for one in with_target if stage in one.stages])
                    for name in MEASURES
                }
                for stage in names
            }
        if any(one.entry.get("entropy") is not None for one in self.cases):
            summary["uncertainty"] = self._uncertainty(with_target)
        if self._risk is not None:
            summary["calibration"] = self._calibration()
        return summary

    def _uncertainty(self, with_target: list[Measured]) -> dict[str, Any]:
        segmented = [one.entry for one in with_target if not one.entry["skipped"] and one.entry["entropy"] is not None]
        pearson, spearman = metrics.correlation(
            [entry["entropy"] for entry in segmented], [1 - entry["dsc"] for entry in segmented]
        )
        found = [one.entry["auroc_entropy_error"] for one in self.cases if not one.entry["skipped"]]
        return {
            "n": len(segmented),
            "n_skipped": sum(one.entry["skipped"] for one in with_target),
            "auroc_entropy_error": spread(found),
            "pearson_entropy_dsc": number(pearson),
            "spearman_entropy_dsc": number(spearman),
        }

    def _calibration(self) -> dict[str, Any]:
        judged = [one.entry["calibration"] for one in self.cases if one.entry["calibration"] is not None]
        bins = (
            {}
            if self._reliability is None
            else {
                "confidence_bins": self._reliability.confidence_bins,
                "target_bins": self._reliability.target_bins,
            }
        )
        return {
            "n": len(judged),
            "n_skipped": sum(one.entry["skipped"] for one in self.cases),
            "pixels": self._risk.pixels,
            "error": number(self._risk.error),
            **calibration_figures(self._reliability, self._risk),
            "per_image": {name: spread([entry[name] for entry in judged]) for name in CALIBRATION},
            **bins,
        }


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean, sample standard deviation and 95 % interval of the mean; values that do not exist are left out."""
    known = np.array([value for value in values if value is not None], float)
    if known.size == 0:
        return {"mean": None, "sd": None, "ci95": None}
    deviation = float(known.std(ddof=1)) if known.size > 1 else None
    return {"mean": float(known.mean()), "sd": deviation, "ci95": list(metrics.bootstrap_interval(known))}
