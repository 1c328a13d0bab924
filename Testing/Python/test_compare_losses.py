"""The comparison of losses: its cells, its report, and one short cell through the real trainer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from drawn_data import FOLDERS, make_data

from MedCLIPSAMLib import evaluation, retrieval
from MedCLIPSAMLib.engines import load_engine
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.retrieval_features import RetrievalModel, features
from MedCLIPSAMTraining import compare_losses
from MedCLIPSAMTraining.compare_losses import Budget, Cell, Comparison, cells
from MedCLIPSAMTraining.compare_losses_report import compare, measures, write_report


def result(loss: str, batch: int, seed: int, level: float) -> dict:
    """A cell's result with made-up numbers around ``level``."""
    rng = np.random.default_rng([len(loss), batch, seed])
    images = {f"{index}.png": float(value) for index, value in enumerate(np.clip(rng.normal(level, 0.1, 40), 0, 1))}
    hits = (rng.random((5, 40)) < level).astype(float)
    top = {f"top{k}": {"mean": float(hits.mean())} for k in (1, 2)}
    directions = ("image_to_text", "text_to_image")
    settings = {"loss": loss, "batch": batch, "seed": seed, "epochs": 2, "schedule": "cosine", "limit": None}
    report = {"examples": 40, "batch": 50, "runs": 5, "chance": {"top1": 0.025, "top2": 0.05}}
    kept = {f"{name}_top{k}": hits.mean(axis=0).tolist() for name in directions for k in (1, 2)}
    return {
        "settings": {**settings, "learning_rate": 0.0, "temperature": 0.0},
        "retrieval": {**report, **dict.fromkeys(directions, top), "hits": kept},
        "dsc": {"BUSI": {"mean": float(np.mean(list(images.values()))), "n": 40, "images": images}},
    }


def test_report_finds_a_difference_and_none(tmp_path: Path) -> None:

    results = [result("shipped", 0, 0, 0.3)]
    for seed in range(3):
        results += [result("dhn-nce", 8, seed, 0.8), result("info-nce", 8, seed, 0.4), result("dcl", 8, seed, 0.8)]
    write_report(results, tmp_path)
    groups: dict = {}
    for one in results:
        groups.setdefault((one["settings"]["batch"], one["settings"]["loss"]), []).append(one)
    rows = {(row.other, row.measure): row for row in compare(groups)}
    assert len(rows) == 2 * 3  # two other losses, three measures
    worse, alike = rows["info-nce", "image → text top-1"], rows["dcl", "image → text top-1"]
    assert worse.difference == pytest.approx(0.4, abs=0.1) and worse.p_examples < 0.001 and worse.seeds == 3
    assert abs(alike.difference) < 0.1 and alike.p_examples > 0.05
    text = (tmp_path / "comparison.md").read_text()
    assert "| - | shipped | 1 |" in text and "| 8 | dhn-nce | 3 |" in text and "2 passes" in text
    with (tmp_path / "comparison.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 10 * len(measures(results[0]))
    mean = np.mean([float(row["value"]) for row in table if row["loss"] == "dhn-nce" and row["measure"] == "DSC BUSI"])
    assert mean == pytest.approx(0.8, abs=0.05)


def test_cells_are_skipped_resumed_and_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    wanted = cells(["dcl", "dhn-nce"], [8], range(2))
    assert [cell.name for cell in wanted] == [
        "shipped", "dcl-batch8-seed0", "dhn-nce-batch8-seed0", "dcl-batch8-seed1", "dhn-nce-batch8-seed1",
    ]  # fmt: skip
    computed: list[str] = []

    def compute(self: Comparison, cell: Cell) -> dict:
        computed.append(cell.name)
        if len(computed) == 3:
            raise InputError("the machine went away")
        made = {**result(cell.loss, cell.batch, cell.seed, 0.5), "settings": self._settings(cell)}
        folder = self._folder(cell)
        folder.mkdir(parents=True)
        (folder / compare_losses.RESULT_FILE).write_text(json.dumps(made))
        return made

    monkeypatch.setattr(Comparison, "_compute", compute)
    data = make_data(tmp_path / "data")
    with pytest.raises(InputError):
        list(Comparison(data, tmp_path / "out", Budget()).run(wanted))
    results = list(Comparison(data, tmp_path / "out", Budget()).run(wanted))
    assert computed == [*(cell.name for cell in wanted[:3]), *(cell.name for cell in wanted[2:])]
    assert [one["settings"]["loss"] for one in results] == [cell.loss for cell in wanted]
    with pytest.raises(InputError, match="made with other settings"):
        list(Comparison(data, tmp_path / "out", Budget(epochs=3)).run(wanted[1:]))


@pytest.mark.slow
def test_a_cell_is_trained_and_measured(tmp_path: Path) -> None:
    """One short training through the real trainer, then retrieval and DSC with the engine that it wrote."""
    pytest.importorskip("surface_distance")

    data = make_data(tmp_path / "data", images=1)
    comparison = Comparison(data, tmp_path / "out", Budget(epochs=1, limit=1), device="cpu")
    (trained,) = comparison.run([Cell("dhn-nce", 8, 0)])
    folder = tmp_path / "out" / "cells" / "dhn-nce-batch8-seed0"
    assert (folder / "model" / "lite-alignment.safetensors").is_file() and not (folder / "work").exists()
    assert trained["retrieval"]["examples"] == 4
    # The very engine that a user opens says the same.
    pairs = retrieval.read_pairs(tmp_path / "out" / "pairs" / "test.csv", root=data)
    vectors = features(RetrievalModel(f"finetuned:{folder / 'model'}", "cpu"), pairs, tmp_path / "kept")
    again = retrieval.evaluate(*vectors, pairs.captions)
    assert trained["retrieval"]["image_to_text"]["top1"]["mean"] == again.mean("image_to_text", 1)
    engine = load_engine(f"finetuned:{folder / 'model'}", device="cpu", changes={"samples": 1})
    cases = evaluation.find_cases(data / "brain_mri_tumour", "test")
    report = evaluation.evaluate(engine, cases, "brain tumor", stages=False, limit=1)
    assert list(trained["dsc"]["figshare"]["images"].values()) == [report["cases"][0]["dsc"]]
    assert set(trained["dsc"]) == {dataset for dataset, _ in FOLDERS.values()}
    assert json.loads((folder / "result.json").read_text())["settings"] == trained["settings"]


def test_a_trainer_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no room on the device >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    comparison = Comparison(make_data(tmp_path / "data", images=1), tmp_path / "out", Budget(), device="cpu")
    with pytest.raises(InputError, match="training dcl-batch8-seed0 ended with 3: no room on the device"):
        list(comparison.run([Cell("dcl", 8, 0)]))
    assert not list((tmp_path / "out").rglob("result.json"))


def test_report_without_dsc(tmp_path: Path) -> None:
    results = [result("shipped", 0, 0, 0.3), result("dhn-nce", 8, 0, 0.8), result("dcl", 8, 0, 0.6)]
    write_report([{**one, "dsc": {}} for one in results], tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "DSC: not measured." in text and "| 8 | dcl | text → image top-1 |" in text
