"""The whole job of `evaluate`, without any user interface: everything that can be wrong is found before it begins."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MedCLIPSAMLib import evaluation
from MedCLIPSAMLib.engines import check_choice, load_engine
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import check_output_folder, write_json
from MedCLIPSAMLib.prompts import check_prompt, wordings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate.

    Attributes:
        data_dir, split: See :func:`MedCLIPSAMLib.cases.find_cases`.
        output: The report to write, JSON.
        prompt: What to segment; may be None with ``predictions``.
        engine, preset, device, changes: See :func:`MedCLIPSAMLib.engines.load_engine`; without a meaning with
            ``predictions``.
        seed, limit: See :func:`MedCLIPSAMLib.evaluation.evaluate`.
        predictions, label: Judge the segmentations of this folder, see
            :func:`MedCLIPSAMLib.evaluation.evaluate_predictions`; None runs the engine.
        keep: A folder for the engine's segmentations; None keeps none.
        diagram: A PNG for the reliability diagram; None draws none.
    """

    data_dir: Path
    output: Path
    prompt: str | None = None
    split: str | None = None
    engine: str = "lite"
    preset: str | None = None
    seed: int = 0
    device: str = "auto"
    limit: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    predictions: Path | None = None
    label: int | None = None
    keep: Path | None = None
    diagram: Path | None = None


def run(request: EvaluationRequest, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Evaluate, write the report and, where asked for, the diagram; return the report.

    Raises:
        InputError: Anything wrong with the options, the data or the predictions.
        OutputError: A file that cannot be written.
        MedCLIPSAMError: As raised by the engine.
    """
    prompt = None if request.prompt is None else check_prompt(request.prompt)
    _check(request, prompt)
    cases = evaluation.find_cases(request.data_dir, request.split)
    for path, what in ((request.output, "report.json"), (request.diagram, "picture.png")):
        if path is not None and path.is_dir():
            raise InputError(f"{path} is a folder; pass the name of the {Path(what).stem}, for example {path / what}.")
        if path is not None:
            check_output_folder(path.parent)
    kept = request.keep or request.predictions
    if request.predictions is not None:
        report = evaluation.evaluate_predictions(
            request.predictions, cases, prompt, progress, request.limit, request.label
        )
    else:
        if request.keep is not None:
            check_output_folder(request.keep)
        segmenter = load_engine(request.engine, request.preset, request.device, request.changes)
        report = evaluation.evaluate(
            segmenter, cases, prompt, request.seed, progress=progress, limit=request.limit, keep=request.keep
        )
    if kept is not None:
        report["predictions"] = _relative(kept, request.output.parent)
    write_json(request.output, report)
    if request.diagram is not None and not _has_probabilities(report):
        logger.warning("%s was not made: there is no probability to judge.", request.diagram)
    elif request.diagram is not None:
        from MedCLIPSAMLib.reliability_diagram import write_reliability_diagram

        write_reliability_diagram(request.diagram, {report["engine"]: report})
    return report


def _check(request: EvaluationRequest, prompt: str | None) -> None:
    if request.predictions is None:
        if prompt is None:
            raise InputError("there is no prompt; say what to segment: --prompt TEXT, for example 'breast tumor'.")
        if request.label is not None:
            raise InputError("--label chooses a class of masks that exist already; it goes with --predictions.")
        wordings(prompt, 1)  # raises for an unknown prompt set
        check_choice(request.engine, request.preset, request.device).with_settings(request.changes)
    elif request.keep is not None:
        raise InputError("--keep writes what an engine segments; with --predictions the segmentations exist already.")
    if request.seed < 0:
        raise InputError(f"seed {request.seed}: it must be 0 or more.")
    if request.limit is not None and request.limit < 1:
        raise InputError(f"--limit {request.limit}: it must be 1 or more.")
    if request.diagram is not None and importlib.util.find_spec("matplotlib") is None:
        raise InputError("--diagram needs matplotlib; run: pip install matplotlib")


def _has_probabilities(report: Mapping[str, Any]) -> bool:
    return any("confidence_bins" in data.get("calibration", {}) for data in report["datasets"].values())


def _relative(path: Path, folder: Path) -> str:
    """Return the path as seen from the report's folder, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive, on Windows
        return str(path.resolve())
