"""Paired comparison of evaluations against scipy, the tables, and what is refused."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compared_discs import invoke, make_compared
from scipy import stats

from MedCLIPSAMLib.cases import find_cases
from MedCLIPSAMLib.comparison import common_cases, paired_differences
from MedCLIPSAMLib.comparison_output import write_comparison
from MedCLIPSAMLib.comparison_sources import read_reports, split_name
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.evaluation import evaluate_predictions
from MedCLIPSAMLib.metrics import bootstrap_interval

pytest.importorskip("surface_distance", reason="surface-distance is not installed (extra 'evaluate')")
ROOT = Path(__file__).resolve().parents[2]


def drawn_report(engine: str, shift: float, datasets: dict[str, int], seed: int) -> dict:
    """A report of drawn numbers; the last image of every data set has no target."""
    random, cases = np.random.default_rng(seed), []
    for dataset, count in datasets.items():
        difficulty = np.random.default_rng(len(dataset)).uniform(0.3, 0.9, count)
        for number in range(count):
            value = float(np.clip(difficulty[number] + shift + random.normal(0, 0.05), 0, 1))
            here = number < count - 1
            cases.append(
                {
                    "file": f"{number}.png",
                    "dataset": dataset,
                    **{name: value - less if here else None for name, less in (("dsc", 0), ("nsd_2d", 0.1))},
                    "nsd_paper": value if here else None,
                    "has_target": here,
                    "target_pixels": 50 + number if here else 0,
                    "empty": not here,
                    "skipped": False,
                    "calibration": {"ece": 0.1, "brier": 1 - value, "nll": None, "aurc": 0.2, "excess_aurc": 0.1},
                }
            )
    return {"engine": engine, "prompt": "x", "seed": 0, "datasets": {name: {} for name in datasets}, "cases": cases}


@pytest.fixture
def three() -> dict[str, dict]:
    sets = {"one": 20, "other": 12}
    return {
        name: drawn_report(name, shift, sets, seed)
        for seed, (name, shift) in enumerate({"zero-shot": 0.0, "weak": 0.1, "full": 0.101}.items())
    }


def plain_holm(values: list[float]) -> list[float]:
    order, highest, result = np.argsort(values, kind="stable"), 0.0, [0.0] * len(values)
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, values[index] * (len(values) - place)))
        result[index] = highest
    return result


def test_paired_tests_are_those_of_scipy(three) -> None:
    rows = paired_differences(three)
    assert len(rows) == 3 * 2 * 3
    for row in rows:
        values = [
            np.array(
                [
                    case[row.measure]
                    for case in sorted(three[name]["cases"], key=lambda one: one["file"])
                    if case["dataset"] == row.dataset and case["has_target"]
                ]
            )
            for name in (row.first, row.second)
        ]
        assert row.n == {"one": 19, "other": 11}[row.dataset]
        assert (row.mean_first, row.mean_second) == pytest.approx([one.mean() for one in values])
        assert row.difference == pytest.approx(values[1].mean() - values[0].mean())
        assert row.ci95 == pytest.approx(bootstrap_interval(values[1] - values[0]))
        assert row.p_t == pytest.approx(stats.ttest_rel(*values).pvalue)
        method = "exact" if row.n <= 16 else "approx"
        expected = stats.wilcoxon(*values, correction=False, method=method).pvalue
        assert row.p_wilcoxon == pytest.approx(expected, rel=1e-6)
    for name in ("p_t", "p_wilcoxon"):
        corrected = [getattr(row, f"{name}_holm") for row in rows]
        assert corrected == pytest.approx(plain_holm([getattr(row, name) for row in rows]))
    found = {(row.first, row.second, row.dataset, row.measure): row for row in rows}
    assert found["zero-shot", "weak", "one", "dsc"].p_t_holm < 0.01
    assert found["weak", "full", "one", "dsc"].p_t_holm > 0.05


def test_against_a_baseline_there_are_fewer_tests(three) -> None:
    rows = paired_differences(three, ("dsc",), baseline="zero-shot")
    assert [(row.first, row.second) for row in rows] == [("zero-shot", "weak")] * 2 + [("zero-shot", "full")] * 2
    every = paired_differences(three, ("dsc",))
    assert rows[0].p_t == every[0].p_t and rows[0].p_t_holm <= every[0].p_t_holm
    with pytest.raises(InputError, match="no evaluation 'lite'; known: zero-shot, weak, full"):
        paired_differences(three, baseline="lite")


def test_measures_of_images_without_target_and_missing_ones(three) -> None:
    rows = paired_differences(three, ("brier", "nll", "ece"))
    assert {row.measure for row in rows} == {"brier", "ece"}, "nll is null everywhere"
    assert {row.n for row in rows if row.dataset == "one"} == {20}, "the image without target counts"
    assert all((row.difference, row.p_t, row.p_wilcoxon) == (0, 1, 1) for row in rows if row.measure == "ece")
    del three["weak"]["cases"][0]["calibration"]  # an older report
    assert min(row.n for row in paired_differences(three, ("brier",)) if row.dataset == "one") == 19


def test_only_common_images_are_compared_in_any_order(three) -> None:
    expected = paired_differences({"a": three["zero-shot"], "b": three["weak"]})
    three["weak"]["cases"] = three["weak"]["cases"][::-1]
    assert paired_differences({"a": three["zero-shot"], "b": three["weak"]}) == expected
    three["weak"]["cases"] = [case for case in three["weak"]["cases"] if case["file"] != "3.png"]
    assert ("one", "3.png") not in common_cases(three)
    assert {row.n for row in paired_differences(three)} == {18, 10}


def test_what_cannot_be_compared_is_said(three) -> None:
    with pytest.raises(InputError, match="needs at least two"):
        paired_differences({"weak": three["weak"]})
    other = drawn_report("other", 0, {"elsewhere": 5}, 0)
    with pytest.raises(InputError, match="have no image in common"):
        paired_differences({**three, "other": other})
    three["full"]["cases"][2]["target_pixels"] += 1
    with pytest.raises(
        InputError, match=r"2\.png of one has not the same reference mask .*target_pixels: zero-shot 52"
    ):
        paired_differences(three)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    return make_compared(tmp_path_factory.mktemp("compared"))


def test_compare_command(evaluated, tmp_path) -> None:
    """A report against a folder of masks: tables for people and programs, and the reliability diagram."""
    sources = (evaluated / "threshold.json", f"small={evaluated / 'eroded'}")
    status, text = invoke("compare", *sources, "--data", evaluated / "data", "--split", "test", "--output", tmp_path)
    assert status == 0, text
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8") in text
    assert "| bright | DSC | small - threshold | 8 |" in text and "Fewer than 30 images" in text
    with (tmp_path / "comparison.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["dataset"] for row in rows} == {"bright", "dim"}
    small = evaluate_predictions(evaluated / "eroded", find_cases(evaluated / "data", "test"))
    for row in rows:
        mean = small["datasets"][row["dataset"]][row["measure"]]["mean"]
        assert float(row["mean_second"]) == pytest.approx(mean)
        assert float(row["mean_second"]) - float(row["mean_first"]) == pytest.approx(float(row["difference"]))
        assert float(row["ci95_low"]) <= float(row["difference"]) <= float(row["ci95_high"])
        assert row["measure"] in ("dsc", "nsd_2d", "nsd_paper"), "masks alone have no calibration to compare"
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    assert (tmp_path / "reliability.png").stat().st_size > 10_000


def test_comparison_of_calibrations(evaluated, tmp_path) -> None:
    cases = find_cases(evaluated / "data", "test")
    reports = {name: evaluate_predictions(evaluated / "threshold", cases) for name in ("a|b", "$c_$")}
    files = write_comparison(reports, tmp_path)
    text = files[0].read_text(encoding="utf-8")
    assert "| bright | Brier | $c_$ - a\\|b | 8 |" in text and "## Calibration" in text
    assert text.count("| 1.000 | 1.000 |") == 2 * (3 + 5), "equal evaluations differ in nothing"
    assert [path.name for path in files] == ["comparison.md", "comparison.csv", "reliability.png"]


def test_comparison_without_matplotlib_has_its_tables(evaluated, tmp_path) -> None:
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'matplotlib' else find(name, *rest)\n"
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; from MedCLIPSAMLib.comparison_sources import read_report\n"
        "from MedCLIPSAMLib.comparison_output import write_comparison\n"
        "report = read_report(Path(sys.argv[1]))\n"
        "write_comparison({'a': report, 'b': report}, Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, str(evaluated / "threshold.json"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["comparison.csv", "comparison.md"]


def test_sources_are_read_and_named(evaluated, tmp_path) -> None:
    report = evaluated / "threshold.json"
    second = Path(shutil.copy(report, tmp_path / "second.json"))
    assert list(read_reports([str(report), str(second)], None)) == ["threshold", "second"]
    assert list(read_reports([f"a={report}", f"b={second}"], None)) == ["a", "b"]
    odd = Path(shutil.copy(report, tmp_path / "seed=1.json"))
    assert split_name(str(odd)) == (None, str(odd))
    with pytest.raises(InputError, match="two evaluations are called 'a'"):
        read_reports([f"a={report}", f"a={second}"], None)
    with pytest.raises(InputError, match=r"is a folder of predictions; .*--data"):
        read_reports([str(evaluated / "eroded")], None)
    with pytest.raises(InputError, match=r"absent\.json cannot be read as a report"):
        read_reports([str(tmp_path / "absent.json")], None)
    for content in ("[]", '{"engine": "x", "datasets": {}, "cases": [1]}', "no json", '{"engine": "x"}'):
        second.write_text(content)
        with pytest.raises(InputError, match=r"second\.json"):
            read_reports([str(second)], None)


def test_compare_command_refuses_before_it_begins(evaluated, tmp_path) -> None:
    status, text = invoke("compare", evaluated / "threshold.json", "--output", tmp_path / "out")
    assert (status, text) == (2, "Error: 1 evaluation given; a comparison needs at least two.\n")
    assert not (tmp_path / "out").exists()
