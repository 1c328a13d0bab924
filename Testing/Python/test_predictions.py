"""Segmentations that exist already, by this program or any other, evaluated like an engine's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from drawn_discs import ThresholdSegmenter, make_discs
from PIL import Image

from MedCLIPSAMLib import evaluation_job
from MedCLIPSAMLib.calibration import Reliability
from MedCLIPSAMLib.cases import find_cases, read_mask
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.evaluation import evaluate, evaluate_predictions, report_table
from MedCLIPSAMLib.file_output import write_map_nrrd, write_mask_png

pytest.importorskip("surface_distance", reason="surface-distance is not installed (extra 'evaluate')")


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    return make_discs(tmp_path_factory.mktemp("discs"))


@pytest.fixture(scope="module")
def kept(discs, tmp_path_factory) -> tuple[dict, Path]:
    """A report of the engine, and the folder of the predictions that it kept."""
    folder = tmp_path_factory.mktemp("evaluated") / "kept"
    return evaluate(ThresholdSegmenter(), find_cases(discs, "test"), "a bright disc", seed=3, keep=folder), folder


def test_kept_predictions_give_the_same_report(discs, kept):
    report, folder = kept
    again = evaluate_predictions(folder, find_cases(discs, "test"))
    assert (again["engine"], again["prompt"], again["seed"]) == ("threshold", "a bright disc", 3)
    for name, data in report["datasets"].items():
        found = again["datasets"][name]
        assert list(found["stages"]) == ["coarse", "mask"]
        assert {key: value for key, value in found.items() if key != "stages"} == {
            key: value for key, value in data.items() if key != "stages"
        }
    assert json.loads(json.dumps(again, allow_nan=False)) == again
    files = {"mask.png", "coarse.png", "probability.nrrd", "entropy.nrrd", "result.json"}
    assert {path.name for path in (folder / "bright_00").iterdir()} == files


def flat_masks(cases, folder: Path, values: int = 1) -> Path:
    """The reference masks as any program may write them: NAME.png with 0 and ``values``."""
    folder.mkdir()
    for case in cases:
        Image.fromarray(np.uint8(read_mask(case.mask_path) * values)).save(folder / case.file)
    return folder


def test_masks_of_any_program(discs, tmp_path):
    """Masks alone: overlap, and nothing of what is not known."""
    cases = find_cases(discs, "test")
    for values in (1, 255):
        found = evaluate_predictions(flat_masks(cases, tmp_path / f"by nnU-Net {values}", values), cases)
        assert (found["engine"], found["prompt"], found["seed"]) == (f"by nnU-Net {values}", None, None)
        data = found["datasets"]["dim"]
        assert (data["n"], data["dsc"]["mean"], data["nsd_2d"]["mean"]) == (5, 1, 1)
        assert not {"stages", "uncertainty", "calibration"} & set(data)
        assert "by nnU-Net" in report_table(found)


def test_probabilities_as_nnunet_saves_them(discs, tmp_path):
    """Two classes of three: the target is what is not background, or one label."""
    cases = find_cases(discs, "test")[:3]
    folder = flat_masks(cases, tmp_path / "nnunet", 2)
    random = np.random.default_rng(0)
    both, second = Reliability(), Reliability()
    for case in cases:
        truth = read_mask(case.mask_path)
        values = random.dirichlet([1, 1, 1], truth.shape).transpose(2, 0, 1).astype(np.float32)
        np.savez_compressed(folder / f"{Path(case.file).stem}.npz", probabilities=values[:, None])
        both.add(np.clip(values[1:].sum(axis=0), 0, 1), truth)
        second.add(values[2], truth)
    found = evaluate_predictions(folder, cases)["datasets"]["bright"]["calibration"]
    assert found["brier"] == pytest.approx(both.brier) and found["ece"] == pytest.approx(both.ece)
    chosen = evaluate_predictions(folder, cases, label=2)["datasets"]["bright"]
    assert chosen["calibration"]["brier"] == pytest.approx(second.brier)
    assert chosen["dsc"]["mean"] == 1
    assert evaluate_predictions(folder, cases, label=1)["datasets"]["bright"]["dsc"]["mean"] == 0
    with pytest.raises(InputError, match="3 classes; there is no label 3"):
        evaluate_predictions(folder, cases, label=3)


def test_maps_beside_flat_masks(discs, tmp_path):
    """NAME_entropy.nrrd alone gives what can be said of an entropy."""
    cases = find_cases(discs, "test")[:2]
    folder = flat_masks(cases, tmp_path / "maps")
    for case in cases:
        truth = read_mask(case.mask_path)
        write_mask_png(folder / case.file, np.roll(truth, 2, axis=0))
        doubt = (np.roll(truth, 2, axis=0) != truth).astype(np.float32)
        write_map_nrrd(folder / f"{Path(case.file).stem}_entropy.nrrd", doubt, np.eye(4))
    data = evaluate_predictions(folder, cases)["datasets"]["bright"]
    assert data["uncertainty"]["auroc_entropy_error"]["mean"] == 1
    assert data["calibration"]["ece"] is None and data["calibration"]["aurc"] < 1e-3 < data["calibration"]["error"]
    assert "confidence_bins" not in data["calibration"]


def test_predictions_of_a_cohort(discs, tmp_path):
    """Cases of a cohort are found by their path in its source, those of several prompts by the prompt."""
    cases = find_cases(discs, "test")[:2]
    rows = ["case,file,prompt"]
    for number, case in enumerate(cases):
        folder = tmp_path / "cohort/cases" / f"case-{number}"
        folder.mkdir(parents=True)
        truth = read_mask(case.mask_path)
        for prompt, prefix, mask in (("disc", "1-disc-", truth), ("nothing", "2-nothing-", truth & False)):
            rows.append(f"case-{number},images/{case.file},{prompt}")
            write_mask_png(folder / f"{prefix}mask.png", mask)
            facts = {"prompt": prompt, "engine": "lite", "run_seed": 4, "skipped_by_gate": not mask.any()}
            (folder / f"{prefix}result.json").write_text(json.dumps(facts))
    (tmp_path / "cohort/cohort.csv").write_text("\n".join(rows) + "\n")
    found = evaluate_predictions(tmp_path / "cohort", cases, "Disc")
    assert (found["engine"], found["prompt"], found["seed"]) == ("lite", "disc", 4)
    assert found["datasets"]["bright"]["dsc"]["mean"] == 1
    nothing = evaluate_predictions(tmp_path / "cohort", cases, "nothing")
    assert nothing["datasets"]["bright"]["dsc"]["mean"] == 0 and nothing["cases"][0]["skipped"]
    with pytest.raises(InputError, match=r"several prompts \('disc', 'nothing'\); choose one"):
        evaluate_predictions(tmp_path / "cohort", cases)


def test_predictions_that_cannot_be_judged(discs, tmp_path):
    cases = find_cases(discs, "test")[:3]
    folder = flat_masks(cases, tmp_path / "masks")
    with pytest.raises(InputError, match="absent is not a folder"):
        evaluate_predictions(tmp_path / "absent", cases)
    with pytest.raises(InputError, match="label 0"):
        evaluate_predictions(folder, cases, label=0)
    (folder / "bright_01.png").unlink()
    with pytest.raises(InputError, match=r"no prediction for 1 of 3 image\(s\), the first is bright_01\.png"):
        evaluate_predictions(folder, cases)
    Image.new("L", (50, 40)).save(folder / "bright_01.png")
    with pytest.raises(
        InputError, match=r"bright_01\.png: the predicted mask is 50 x 40 pixels, the reference 112 x 96"
    ):
        evaluate_predictions(folder, cases)
    (folder / "bright_01.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(InputError, match=r"bright_01\.png"):
        evaluate_predictions(folder, cases)
    shutil.copy(folder / "bright_00.png", folder / "bright_01.png")
    np.savez(folder / "bright_00.npz", probabilities=np.array([{}], object))  # a pickle is never opened
    with pytest.raises(InputError, match=r"bright_00\.npz cannot be read"):
        evaluate_predictions(folder, cases)
    (folder / "bright_00.npz").unlink()
    write_map_nrrd(folder / "bright_00_probability.nrrd", np.zeros((40, 50), np.float32), np.eye(4))
    with pytest.raises(InputError, match=r"bright_00\.png in .*probability has shape \(40, 50\), the mask \(96, 112\)"):
        evaluate_predictions(folder, cases)


def test_the_job_writes_report_and_diagram(discs, kept):
    """``evaluate --predictions``, with paths that can be moved together."""
    pytest.importorskip("matplotlib")
    folder = kept[1].parent / "out"
    request = evaluation_job.EvaluationRequest(
        discs, folder / "report.json", split="test", predictions=kept[1], diagram=folder / "reliability.png"
    )
    written = evaluation_job.run(request)
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == written
    assert written["predictions"] == "../kept"
    with Image.open(folder / "reliability.png") as picture:
        assert picture.size[0] > 700 and np.asarray(picture.convert("RGB")).std() > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is no prompt"),
        ({"prompt": "disc", "label": 2}, "goes with --predictions"),
        ({"predictions": Path("x"), "keep": Path("y")}, "with --predictions the segmentations exist already"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        evaluation_job.run(evaluation_job.EvaluationRequest(tmp_path / "nowhere", tmp_path / "report.json", **options))
