"""Finding cases and the evaluation report, with a real (if simple) segmenter on drawn images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from drawn_discs import ThresholdSegmenter, make_discs
from PIL import Image

from MedCLIPSAMLib import metrics
from MedCLIPSAMLib.calibration import Reliability, RiskCoverage
from MedCLIPSAMLib.cases import find_cases, read_mask
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.evaluation import evaluate, report_table, true_boxes

pytest.importorskip("surface_distance", reason="surface-distance is not installed (extra 'evaluate')")


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    return make_discs(tmp_path_factory.mktemp("discs"))


@pytest.fixture(scope="module")
def report(discs) -> dict:
    return evaluate(ThresholdSegmenter(), find_cases(discs, "test"), "a bright disc", seed=3)


def without_seconds(report: dict) -> dict:
    return {**report, "cases": [{**case, "seconds": None} for case in report["cases"]]}


def test_find_cases_of_every_real_task(data_dir):
    counts = {}
    for task in ("breast_ultrasound_tumour", "brain_mri_tumour", "chest_xray_lung", "chest_ct_lung"):
        for case in find_cases(data_dir / task, "test"):
            counts[case.dataset] = counts.get(case.dataset, 0) + 1
            assert case.image_path.name == case.mask_path.name == case.file
    assert sorted(counts.values()) == [12, 30, 36, 38, 60, 60, 74]
    assert (counts["BUSI"], counts["BUS-BRA"]) == (74, 12)


def test_find_cases_in_one_folder(discs, tmp_path):
    """``images`` and ``masks`` directly in the folder: all of them, or those of the manifest's split."""
    shutil.copytree(discs / "test", tmp_path / "flat")
    cases = find_cases(tmp_path / "flat")
    assert [case.file for case in cases] == sorted(path.name for path in (tmp_path / "flat/images").iterdir())
    assert {case.dataset for case in cases} == {"flat"}
    with pytest.raises(InputError, match=r"there is no split 'test'.*leave --split out"):
        find_cases(tmp_path / "flat", "test")
    (tmp_path / "flat/manifest.csv").write_text("file\n", encoding="utf-8")
    with pytest.raises(InputError, match="there is no split 'test'"):
        find_cases(tmp_path / "flat", "test")
    manifest = (discs / "manifest.csv").read_text(encoding="utf-8").replace("dim_00.png,test", "dim_00.png,train")
    (tmp_path / "flat/manifest.csv").write_text(manifest, encoding="utf-8")
    assert [(case.file, case.dataset) for case in find_cases(tmp_path / "flat", "train")] == [("dim_00.png", "dim")]
    assert len(find_cases(tmp_path / "flat", "test")) == 16
    with pytest.raises(InputError, match=r"no split 'val'; splits that exist: test, train"):
        find_cases(tmp_path / "flat", "val")


def test_find_cases_names_what_is_wrong(discs, tmp_path):
    with pytest.raises(InputError, match=r"nowhere is not a folder"):
        find_cases(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no folders 'images' and 'masks' in .*val or .*Splits that exist: test\."):
        find_cases(discs, "val")
    with pytest.raises(InputError, match=r"Splits that exist: test\."):
        find_cases(discs)
    with pytest.raises(InputError, match="No folder in it"):
        find_cases(tmp_path, "test")

    def broken(name: str) -> Path:
        return Path(shutil.copytree(discs, tmp_path / name))

    folder = broken("no mask")
    (folder / "test/masks/dim_01.png").unlink()
    with pytest.raises(InputError, match=r"dim_01\.png has no mask: .*masks.dim_01\.png does not exist"):
        find_cases(folder, "test")

    folder = broken("other size")
    Image.new("L", (100, 96)).save(folder / "test/masks/bright_03.png")
    with pytest.raises(InputError, match=r"bright_03\.png: the image is 112 x 96 pixels, its mask 100 x 96"):
        find_cases(folder, "test")

    folder = broken("no picture")
    (folder / "test/images/bright_03.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"bright_03\.png cannot be read as a picture"):
        find_cases(folder, "test")

    folder = broken("incomplete")
    (folder / "test/images/bright_03.png").unlink()
    with pytest.raises(InputError, match=r"lists 1 file\(s\) of split 'test'.*the first is bright_03\.png"):
        find_cases(folder, "test")

    folder = broken("no images")
    (folder / "manifest.csv").unlink()
    shutil.rmtree(folder / "test/images")
    (folder / "test/images").mkdir()
    with pytest.raises(InputError, match=r"no images \(\.png"):
        find_cases(folder, "test")

    folder = broken("manifest")
    (folder / "manifest.csv").write_text("name\nx.png\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"has the columns name; a column 'file' is needed"):
        find_cases(folder, "test")


def test_read_mask_takes_labels_and_pictures(tmp_path):
    def saved(array: np.ndarray, **options) -> Path:
        Image.fromarray(array).save(tmp_path / "mask.png", **options)
        return tmp_path / "mask.png"

    truth = np.zeros((20, 24), np.uint8)
    truth[4:9, 5:15] = 1
    for values in (truth, truth * 255, truth * 3):
        assert np.array_equal(read_mask(saved(values)), truth > 0)
    assert np.array_equal(read_mask(saved(np.repeat(truth[..., None] * 255, 3, 2))), truth > 0)
    soft = truth * 255
    soft[3, 5:15] = 60
    assert np.array_equal(read_mask(saved(soft)), truth > 0)
    assert not read_mask(saved(truth * 0)).any()


def test_true_boxes():
    truth = np.zeros((40, 50), bool)
    truth[3:9, 4:12] = True
    truth[20:30, 30:33] = True
    truth[30, 33] = True  # touches by a corner: the same component
    truth[38, 2] = True  # too small for a box of its own
    assert true_boxes(truth).tolist() == [[4, 3, 12, 9], [30, 20, 34, 31]]
    small = np.zeros((40, 50), bool)
    small[38, 2] = True
    assert true_boxes(small).tolist() == [[2, 38, 3, 39]]
    assert true_boxes(np.zeros((9, 9), bool)).shape == (0, 4)


def test_report_is_that_of_the_masks(discs, report):
    """Every number of the report again, from the segmenter's own results."""
    segmenter = ThresholdSegmenter()
    values = {"bright": [], "dim": []}
    for case, entry in zip(find_cases(discs, "test"), report["cases"], strict=True):
        truth = np.asarray(Image.open(case.mask_path)) > 0
        segmenter.set_image(np.asarray(Image.open(case.image_path)))
        result = segmenter.segment("a bright disc", 3)
        assert (entry["file"], entry["dataset"]) == (case.file, case.dataset)
        assert entry["presence"] == result.presence.score
        assert entry["seconds"] > 0
        if not truth.any():
            assert entry["dsc"] is entry["nsd_2d"] is entry["nsd_paper"] is entry["stages"] is None
            continue
        values[case.dataset].append(metrics.dsc(result.mask, truth))
        assert entry["dsc"] == values[case.dataset][-1] == entry["stages"]["mask"]
        assert entry["nsd_2d"] == metrics.nsd_2d(result.mask, truth)
        assert entry["nsd_paper"] == metrics.nsd_paper(result.mask, truth)
        assert entry["stages"]["coarse"] == metrics.dsc(result.coarse.mask, truth)
        assert entry["stages"]["saliency_0.5"] == metrics.dsc(result.saliency > 0.5, truth)
    for name, dscs in values.items():
        data = report["datasets"][name]
        assert data["n"] == len(dscs)
        assert data["dsc"]["mean"] == pytest.approx(np.mean(dscs))
        assert data["dsc"]["sd"] == pytest.approx(np.std(dscs, ddof=1))
        assert data["dsc"]["ci95"] == pytest.approx(metrics.bootstrap_interval(dscs))
        assert data["stages"]["mask"] == {key: data[key] for key in ("dsc", "nsd_2d", "nsd_paper")}


def test_report_has_the_agreed_shape(report):
    assert list(report) == ["engine", "prompt", "seed", "datasets", "cases"]
    assert (report["engine"], report["prompt"], report["seed"]) == ("threshold", "a bright disc", 3)
    spread = {"mean", "sd", "ci95"}
    for data in report["datasets"].values():
        assert {"n", "n_without_target", "specificity", "auroc_presence"} < set(data)
        assert all(set(data[key]) == spread for key in ("dsc", "nsd_2d", "nsd_paper"))
        assert list(data["stages"]) == ["box_true", "box_whole_image", "saliency_0.5", "coarse", "mask"]
        assert all(set(stage[key]) == spread for stage in data["stages"].values() for key in stage)
        figures = {"auroc_entropy_error", "pearson_entropy_dsc", "spearman_entropy_dsc"}
        assert set(data["uncertainty"]) == {"n", "n_skipped"} | figures
        pooled = {"ece", "brier", "nll", "aurc", "excess_aurc"}
        assert {"n", "n_skipped", "pixels", "error", "per_image"} | pooled < set(data["calibration"])
        assert set(data["calibration"]["per_image"]) == pooled
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_gate_and_images_without_target(report):
    """Skipped with a target: DSC 0 and counted. Skipped without: specificity, and not in the DSC."""
    bright, dim = report["datasets"]["bright"], report["datasets"]["dim"]
    assert (bright["n"], bright["n_without_target"], bright["specificity"], bright["auroc_presence"]) == (8, 4, 1, 1)
    assert (dim["n"], dim["n_without_target"], dim["specificity"], dim["auroc_presence"]) == (5, 0, None, None)
    dark = next(case for case in report["cases"] if case["file"] == "dim_04.png")
    assert dark["skipped"] and dark["dsc"] == dark["nsd_2d"] == dark["nsd_paper"] == 0
    assert dark["stages"]["box_true"] > 0, "the ceiling does not depend on the gate"
    others = [case["dsc"] for case in report["cases"] if case["dataset"] == "dim" and not case["skipped"]]
    assert dim["dsc"]["mean"] == pytest.approx(sum(others) / 5)
    assert (dim["uncertainty"]["n"], dim["uncertainty"]["n_skipped"]) == (len(others), 5 - len(others))


def test_a_false_alarm_costs_specificity(discs, tmp_path):
    folder = Path(shutil.copytree(discs, tmp_path / "alarm"))
    shutil.copy(folder / "test/images/bright_00.png", folder / "test/images/bright_09.png")  # its mask is black
    data = evaluate(ThresholdSegmenter(), find_cases(folder, "test"), "disc")["datasets"]["bright"]
    assert (data["n"], data["n_without_target"], data["specificity"]) == (8, 4, 0.75)
    assert 0.5 < data["auroc_presence"] < 1


def test_stages_are_in_order_on_an_easy_task(report):
    stages = {name: values["dsc"]["mean"] for name, values in report["datasets"]["bright"]["stages"].items()}
    assert stages["box_true"] > 0.9
    assert stages["mask"] > stages["coarse"] > stages["saliency_0.5"] > 0.3
    assert stages["box_whole_image"] > 0.5


def test_uncertainty_finds_the_wrong_pixels(report):
    """The stand-in's errors are at the discs' edges, where its probability is near one half."""
    bright = report["datasets"]["bright"]["uncertainty"]
    assert bright["auroc_entropy_error"]["mean"] > 0.9
    cases = [case for case in report["cases"] if case["dataset"] == "bright" and case["has_target"]]
    expected = metrics.correlation([case["entropy"] for case in cases], [1 - case["dsc"] for case in cases])
    assert (bright["pearson_entropy_dsc"], bright["spearman_entropy_dsc"]) == pytest.approx(expected)
    without = [case for case in report["cases"] if not case["has_target"]]
    assert all(case["entropy"] == 0 and case["auroc_entropy_error"] is None for case in without)


def test_without_calibration_or_stages_there_is_null(discs):
    report = evaluate(ThresholdSegmenter(calibrated=False), find_cases(discs, "test"), "disc", stages=False)
    assert report["datasets"]["bright"]["auroc_presence"] is None
    assert report["datasets"]["bright"]["specificity"] is not None
    assert "stages" not in report["datasets"]["bright"] and "stages" not in report["cases"][0]
    assert all(case["presence"] is None for case in report["cases"])
    json.dumps(report, allow_nan=False)
    assert "Pearson" not in report_table(report)


def test_same_run_same_report(discs, report):
    cases = find_cases(discs, "test")
    again = evaluate(ThresholdSegmenter(), cases, "a bright disc", seed=3)
    assert without_seconds(again) == without_seconds(report)
    backwards = evaluate(ThresholdSegmenter(), cases[::-1], "a bright disc", seed=3)
    assert without_seconds(backwards)["cases"][::-1] == without_seconds(report)["cases"]


def test_limit_and_progress(discs):
    calls = []
    cases = find_cases(discs, "test")
    report = evaluate(
        ThresholdSegmenter(),
        cases,
        "disc",
        stages=False,
        limit=5,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert [case["file"] for case in report["cases"]] == [cases[index].file for index in (0, 3, 6, 10, 13)]
    with pytest.raises(InputError, match="limit 0"):
        evaluate(ThresholdSegmenter(), cases, "disc", limit=0)
    with pytest.raises(InputError, match="no cases"):
        evaluate(ThresholdSegmenter(), [], "disc")


def test_a_damaged_image_is_named(discs, tmp_path):
    folder = Path(shutil.copytree(discs, tmp_path / "damaged"))
    path = folder / "test/images/bright_05.png"
    path.write_bytes(path.read_bytes()[:3000])  # the header is whole, so the sizes can be read
    with pytest.raises(InputError, match=r"bright_05\.png"):
        evaluate(ThresholdSegmenter(), find_cases(folder, "test"), "disc", stages=False)


def test_report_table(report):
    table = report_table(report)
    lines = table.splitlines()
    assert "Engine threshold" in lines[0] and "a bright disc" in lines[0] and "seed 3" in lines[0]
    bright = next(line for line in lines if line.startswith("| bright | 8 |"))
    dsc = report["datasets"]["bright"]["dsc"]
    assert f"{dsc['mean']:.3f} ± {dsc['sd']:.3f} [{dsc['ci95'][0]:.3f}, {dsc['ci95'][1]:.3f}]" in bright
    assert bright.endswith("| 4 | 1.000 | 1.000 |")
    assert any(line.startswith("| dim | 5 | box_true |") for line in lines)
    assert "information, not evidence: bright (n = 8), dim (n = 5), bright without target (n = 4)." in lines[-1]
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert set(tables) == {9, 7, 10}
    pooled = report["datasets"]["bright"]["calibration"]
    figures = [f"{pooled[name]:.4f}" for name in ("ece", "brier", "nll")]
    figures += [f"{1000 * pooled[name]:.4f}" for name in ("aurc", "excess_aurc")]
    assert f"| bright | 8 | 4 | {100 * pooled['error']:.2f} % | {' | '.join(figures)} |" in lines
    json_report = json.loads(json.dumps(report, sort_keys=True))
    assert sorted(report_table(json_report).splitlines()) == sorted(lines), (
        "a report read from disk gives the same rows"
    )


def test_calibration_is_that_of_the_segmented_pixels(discs, report):
    """Pooled over the images that the gate let pass; per image as the mean; null where it skipped."""
    segmenter = ThresholdSegmenter()
    pooled, single = (Reliability(), RiskCoverage()), []
    for case, entry in zip(find_cases(discs, "test"), report["cases"], strict=True):
        if entry["skipped"]:
            assert entry["calibration"] is None
            continue
        segmenter.set_image(np.asarray(Image.open(case.image_path)))
        result, truth = segmenter.segment("a bright disc", 3), read_mask(case.mask_path)
        own = (Reliability(), RiskCoverage())
        for reliability, risk in (own, pooled) if case.dataset == "bright" else (own,):
            reliability.add(result.probability, truth)
            risk.add(result.entropy, result.mask != truth)
        assert entry["calibration"] == {
            **{name: getattr(own[0], name) for name in ("ece", "brier", "nll")},
            **{name: getattr(own[1], name) for name in ("aurc", "excess_aurc")},
        }
        single += [entry["calibration"]["nll"]] if case.dataset == "bright" else []
    data = report["datasets"]["bright"]["calibration"]
    assert (data["n"], data["n_skipped"], data["pixels"]) == (8, 4, 8 * 96 * 112)
    assert data["brier"] == pytest.approx(pooled[0].brier, rel=1e-12)
    assert data["ece"] == pytest.approx(pooled[0].ece, rel=1e-12)
    assert data["aurc"] == pooled[1].aurc and data["error"] == pooled[1].error
    assert data["target_bins"]["count"] == pooled[0].target_bins["count"]
    assert data["per_image"]["nll"]["mean"] == pytest.approx(np.mean(single))


def test_uncertainty_and_stages_are_asked_for_apart(discs, report):
    cases = find_cases(discs, "test")
    alone = evaluate(ThresholdSegmenter(), cases, "a bright disc", 3, stages=False, uncertainty=True)
    for name, data in alone["datasets"].items():
        assert "stages" not in data
        assert data["calibration"] == report["datasets"][name]["calibration"]
        assert data["uncertainty"] == report["datasets"][name]["uncertainty"]
    stages = evaluate(ThresholdSegmenter(), cases[:3], "a bright disc", 3, uncertainty=False)
    assert "stages" in stages["datasets"]["bright"] and "calibration" not in stages["datasets"]["bright"]
    assert "ECE" not in report_table(stages)


def test_an_engine_that_goes_straight_to_its_mask_has_no_stages(discs, report, tmp_path):
    """A network that was trained end to end takes no visual prompts, and its coarse mask is none."""

    class EndToEnd:
        def __init__(self):
            inner = ThresholdSegmenter()
            self.recipe, self.set_image, self.segment = inner.recipe, inner.set_image, inner.segment

    found = evaluate(EndToEnd(), find_cases(discs, "test"), "a bright disc", seed=3, keep=tmp_path / "kept")
    for name, data in report["datasets"].items():
        assert found["datasets"][name] == {key: value for key, value in data.items() if key != "stages"}
    assert not list((tmp_path / "kept").glob("*/coarse.png"))
