"""Drawn discs with two folders of predictions to compare, and the two commands that do so."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from drawn_discs import ThresholdSegmenter, make_discs
from scipy import ndimage
from typer.testing import CliRunner

from MedCLIPSAMLib import cli_compare
from MedCLIPSAMLib.cases import find_cases, read_mask
from MedCLIPSAMLib.evaluation import evaluate
from MedCLIPSAMLib.file_output import write_mask_png


def make_compared(folder: Path) -> Path:
    """A data set ``data``, predictions ``threshold`` with their report, and ``eroded`` made of their masks."""
    cases = find_cases(make_discs(folder / "data"), "test")
    report = evaluate(ThresholdSegmenter(), cases, "a bright disc", keep=folder / "threshold")
    (folder / "threshold.json").write_text(json.dumps(report | {"predictions": "threshold"}))
    (folder / "eroded").mkdir()
    for case in cases:
        mask = ndimage.binary_erosion(read_mask(folder / "threshold" / Path(case.file).stem / "mask.png"), iterations=3)
        write_mask_png(folder / "eroded" / case.file, mask)
    return folder


def invoke(*arguments: object) -> tuple[int, str]:
    app = typer.Typer()
    app.command("compare")(cli_compare.compare)
    app.command("figure")(cli_compare.figure)
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    return done.exit_code, done.output
