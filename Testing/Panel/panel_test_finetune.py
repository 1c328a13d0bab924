"""The entry DHN-NCE fine-tuning of the section Train: the real trainer from the form to an engine that segments."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from panel_scenes import wait_until
from train_steps import PATIENCE, fill, shown, started, training_panel

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "Testing" / "Python"))

from finetune_pairs import write_pairs  # noqa: E402

EPOCHS, STEPS = 80, 400  # long enough that a quick machine is not done while the panel is loaded again


@pytest.fixture
def panel(module, monkeypatch, tmp_path):
    """The panel with the entry chosen; every job is ended afterwards."""
    from MedCLIPSAMLib.errors import MissingWeightsError
    from MedCLIPSAMLib.weights import resolve

    try:
        resolve(["lite-medsam", "minilm-l6-v2", "minilm-l6-v2-tokenizer", "lite-alignment"])
    except MissingWeightsError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with training_panel(module, "finetune") as panel:
        yield panel


def test_a_mistake_is_told(panel, tmp_path):
    pairs = write_pairs(tmp_path, 8)
    assert panel.ui.startJobButton.enabled, panel.ui.jobHelpLabel.text
    fill(panel, data=pairs, model="lite", batch=64, device="cpu")
    job = started(panel)
    wait_until(lambda: job.state == "failed", PATIENCE)
    assert "fewer than one batch of 64" in job.error
    wait_until(lambda: "fewer than one batch of 64" in panel.ui.jobStateLabel.text)


@pytest.mark.slow
def test_start_follow_cancel_find_again_resume_and_use(panel, module, tmp_path):
    import slicer_double

    fill(panel, data=write_pairs(tmp_path, 24), model="lite", batch=4, epochs=EPOCHS, device="cpu")
    job = started(panel)
    wait_until(lambda: job.state == "running" and job.progress.text.startswith("Epoch"), PATIENCE)
    wait_until(lambda: panel.ui.jobProgressBar.isVisibleTo(panel.ui.trainSection), PATIENCE)
    assert job.progress.total == STEPS and "loss" in job.progress.text

    slicer_double.unload_module("MedCLIPSAM")  # as when Slicer is closed, or the module reloaded
    assert job.state == "running"
    panel = shown(slicer_double.load_module(str(Path(module.path))), "finetune")
    assert panel.ui.jobsTable.rowCount == 1 and panel.ui.jobsTable.item(0, 1).text() == "Running"
    reached = job.progress.done
    wait_until(lambda: job.progress.done > reached, PATIENCE)

    panel.ui.cancelJobButton.click()
    wait_until(lambda: job.state == "cancelled", PATIENCE)
    steps = job.folder / "work" / "steps.csv"
    done = rows(steps)
    assert 0 < len(done) < STEPS and (job.folder / "work" / "checkpoint.pt").is_file()
    assert not (job.folder / "model" / "finetune.json").exists()

    wait_until(lambda: panel.ui.resumeJobButton.enabled)
    panel.ui.resumeJobButton.click()
    wait_until(lambda: len(rows(steps)) > len(done) or job.state in ("failed", "finished"), PATIENCE)
    assert job.state in ("running", "finished"), job.error
    again = rows(steps)
    assert [row["step"] for row in again] == [str(step + 1) for step in range(len(again))]
    assert [row["loss"] for row in again[: len(done)]] == [row["loss"] for row in done], "it went on, not anew"
    wait_until(lambda: job.state == "finished", PATIENCE)

    model = job.folder / "model"
    slicer_double.answer(str(model))
    panel.segment.engines.onFineTuned()
    assert panel.segment.engines.engine == f"finetuned:{model}"
    command = [sys.executable, "-m", "MedCLIPSAMLib", "segment", "--sample", "breast-ultrasound", "--device", "cpu"]
    command += ["--engine", panel.segment.engines.engine, "--no-gate", "--output", str(tmp_path / "result")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    result = json.loads((tmp_path / "result" / "result.json").read_text(encoding="utf-8"))
    assert str(model) in json.dumps(result)


def rows(path):
    """The lines of a record."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
