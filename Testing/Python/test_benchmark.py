"""The benchmark: operations against a count by hand, stages that add up, and the command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from MedCLIPSAMLib.benchmark import Benchmark, StageRate, benchmark, benchmark_table, matrix_product_rate
from MedCLIPSAMLib.cli import app
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.stages import Stages


class CountedSegmenter:
    """Two stages of matrix products whose operations are known: 2 n^3 each."""

    device = "cpu"

    def set_image(self, image, window):
        self.square = torch.from_numpy(image[:32, :32].astype(np.float32))

    def segment(self, prompt, gate=None, stage=None):
        stages = Stages(None, stage)
        with stages.stage("saliency"):
            for _ in range(5):
                self.square @ self.square
        with stages.stage("mask"), torch.inference_mode():
            self.square @ self.square
        return stages


def test_operations_are_counted_stage_by_stage():
    found = benchmark(CountedSegmenter(), np.eye(64, dtype=np.uint8), ("a", "b"), repeats=2)
    one = 2 * 32**3
    assert {stage.name: stage.operations for stage in found.stages} == {
        "saliency": 5 * one,
        "mask": one,
        "all": 6 * one,
        "another prompt": 6 * one,
    }
    assert all(stage.seconds > 0 for stage in found.stages) and found.peak > 0
    table = benchmark_table(found, "counted")
    assert "counted on cpu (float32" in table and "GFLOP" in table


def test_the_share_of_the_peak_is_a_ratio():
    found = Benchmark((StageRate("mask", 2.0, int(1e9)), StageRate("writing", 0.1, 0)), 1e9, "cpu", "float32", None)
    assert found.stages[0].share(found.peak) == pytest.approx(0.5)
    lines = benchmark_table(found, "x").splitlines()
    assert lines[2].split() == ["mask", "2.000", "1.0", "0.5", "50%"] and lines[3].split()[-1] == "-"


def test_the_peak_is_not_below_what_a_plain_product_reaches():
    side = 1024
    left = torch.randn(side, side)
    import time

    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - start)
    assert matrix_product_rate("cpu") > 0.3 * 2 * side**3 / best  # other programs may run meanwhile


@pytest.mark.parametrize("arguments", [{"repeats": 0}, {"prompts": ("one",)}])
def test_unusable_settings(arguments):
    with pytest.raises(InputError):
        benchmark(CountedSegmenter(), np.eye(64, dtype=np.uint8), **{"prompts": ("a", "b"), **arguments})


def test_the_command_measures_the_lite_engine(lite):
    outcome = CliRunner().invoke(app, ["benchmark", "--repeats", "1", "--device", "cpu"])
    assert outcome.exit_code == 0, outcome.output
    rows = {line.split("  ")[0]: line.split() for line in outcome.output.splitlines()[2:]}
    assert {"saliency", "mask", "all"} <= set(rows)
    # LiteMedSAM's encoder, 256 x 256, at two scales: some tens of GFLOP
    assert 10 < float(rows["all"][-3]) < 500
