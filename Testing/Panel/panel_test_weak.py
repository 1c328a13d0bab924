"""The entry Weakly supervised nnU-Net of the section Train: from the form to an engine that segments."""

from __future__ import annotations

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

from weak_sets import write_images  # noqa: E402

PROMPT = "bright spot"


@pytest.fixture
def panel(module, monkeypatch, tmp_path):
    """The panel with the entry chosen, and a quick engine for the pseudo-labels; every job is ended afterwards."""
    pytest.importorskip("nnunetv2")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MEDCLIPSAM_WORKER_ENGINE", "stand_in_engine:load")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "Testing" / "Python"), os.environ["PYTHONPATH"]]))
    with training_panel(module, "weak-supervision") as panel:
        yield panel


def test_a_mistake_is_told(panel, tmp_path):
    assert panel.ui.startJobButton.enabled, panel.ui.jobHelpLabel.text
    fill(panel, data=write_images(tmp_path / "images", 2), prompt=PROMPT, epochs=10, device="cpu")
    job = started(panel)
    wait_until(lambda: job.state == "failed", PATIENCE)
    assert "10 epochs cannot be divided into 3 equal cycles" in job.error
    wait_until(lambda: "multiple of 3" in panel.ui.jobStateLabel.text)


@pytest.mark.slow
def test_start_follow_cancel_find_again_resume_and_use(panel, module, tmp_path):
    import slicer_double

    from MedCLIPSAMLib.job_folder import ENDED

    images = write_images(tmp_path / "images", 4)
    fill(panel, data=images, prompt=PROMPT, plans="small", device="cpu")
    fill(panel, epochs=24, cycles=2, checkpoints=1, iterations=1)
    job = started(panel)
    wait_until(lambda: job.state in ENDED or job.progress.text.startswith("Training, epoch"), PATIENCE)
    assert job.state == "running", job.error
    wait_until(lambda: panel.ui.jobProgressBar.isVisibleTo(panel.ui.trainSection), PATIENCE)
    assert job.progress.total == 1000 and job.progress.done >= 300

    slicer_double.unload_module("MedCLIPSAM")  # as when Slicer is closed, or the module reloaded
    assert job.state == "running"
    panel = shown(slicer_double.load_module(str(Path(module.path))), "weak-supervision")
    assert panel.ui.jobsTable.rowCount == 1 and panel.ui.jobsTable.item(0, 1).text() == "Running"
    latest = next((job.folder / "work" / "nnunet" / "results").rglob("fold_all")) / "checkpoint_latest.pth"
    wait_until(latest.exists, PATIENCE)

    panel.ui.cancelJobButton.click()
    wait_until(lambda: job.state == "cancelled", PATIENCE)
    stages = job.folder / "work" / "stages"
    assert (stages / "prepare.json").is_file() and not (job.folder / "model" / "weak.json").exists()
    assert not (stages / "train-all.json").exists() and latest.is_file()
    prepared = (stages / "prepare.json").stat().st_mtime_ns

    wait_until(lambda: panel.ui.resumeJobButton.enabled)
    panel.ui.resumeJobButton.click()
    wait_until(lambda: job.state in ("finished", "failed"), PATIENCE)
    assert job.state == "finished", job.error
    assert (stages / "prepare.json").stat().st_mtime_ns == prepared, "it went on, not anew"

    model = job.folder / "model"
    slicer_double.answer(str(model))
    panel.segment.engines.onWeak()
    assert panel.segment.engines.engine == f"weak:{model}"
    command = [sys.executable, "-m", "MedCLIPSAMLib", "segment", str(images / "image_0.png"), "--prompt", PROMPT]
    command += ["--device", "cpu", "--engine", panel.segment.engines.engine, "--output", str(tmp_path / "result")]
    plain = {name: value for name, value in os.environ.items() if name != "MEDCLIPSAM_WORKER_ENGINE"}
    subprocess.run(command, check=True, env=plain | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    result = json.loads((tmp_path / "result" / "result.json").read_text(encoding="utf-8"))
    assert str(model) in json.dumps(result) and (tmp_path / "result" / "entropy.nrrd").is_file()
