"""The section Train with real detached jobs: form, start, progress, log, cancel, resume, remove, found again."""

from __future__ import annotations

import pytest
from panel_scenes import wait_until

TRAINER = '''
"""Counts to --steps; goes on where it was stopped."""
import argparse, logging, time
from pathlib import Path
from MedCLIPSAMTraining.job_link import JobLink

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int)
parser.add_argument("--rate", type=float)
parser.add_argument("--note")
parser.add_argument("--twice", action=argparse.BooleanOptionalAction)
parser.add_argument("--output", type=Path)
options = parser.parse_args()
logging.basicConfig(level=logging.INFO, format="%(message)s")
options.output.mkdir(exist_ok=True)
saved = options.output / "step"
with JobLink() as link:
    step = int(saved.read_text()) if saved.exists() else 0
    logging.info("begins at %d; rate %g; note %s; twice %s", step, options.rate, options.note, options.twice)
    if options.note == "fail":
        raise ValueError("the data are wrong")
    while step < options.steps:
        time.sleep(0.02)
        step += 1
        saved.write_text(str(step))
        link.progress(step, options.steps, f"step {step}")
        if link.stop_code is not None:
            link.leave()
    logging.info("counted to %d", step)
'''


@pytest.fixture
def descriptions(module, monkeypatch, tmp_path):
    """A counter, and a job whose command is not there yet."""
    from MedCLIPSAMLib import job_descriptions
    from MedCLIPSAMLib.job_form import Field, JobDescription

    class Counter(JobDescription):
        """Its module lies beside the test."""

        def unavailable(self):
            return None

    counter = Counter(
        name="count",
        title="Counting",
        help="Counts & <waits>.",
        module="tiny_counter",
        fields=(
            Field("steps", "Steps", "int", 20, minimum=1, maximum=5000, tooltip="How far."),
            Field("rate", "Rate", "float", 1e-6, minimum=1e-9, maximum=1.0),
            Field("note", "Note", "text", "none", advanced=True),
            Field("twice", "Twice", "bool", False, advanced=True),
        ),
        resumable=True,
        gpu=False,
        outputs=(("--output", "work"),),
        grace=20.0,
    )
    later = JobDescription("later", "Later", "Will come.", "MedCLIPSAMTraining.not_there", (), False, False)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "tiny_counter.py").write_text(TRAINER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(job_descriptions, "descriptions", lambda: [later, counter])
    return counter, later


@pytest.fixture
def panel(descriptions, module):
    """The panel with the section Train open; every job is ended afterwards."""
    import qt

    qt.QSettings().clear()
    representation = module.widgetRepresentation()
    panel = representation.self().panel
    panel.ui.trainSection.collapsed = False
    representation.enter()
    yield panel
    store = panel.logic.jobStore
    for job in store.jobs():
        job.cancel()
    wait_until(lambda: all(job.state not in ("waiting", "running") for job in store.jobs()))


def field(panel, name):
    """The widget of a field of the form."""
    return panel.ui.jobFieldsArea.findChild("QWidget", f"jobField_{name}")


def start(panel, **values):
    """Fill the form and press Start."""
    for name, value in values.items():
        widget = field(panel, name)
        if name == "steps":
            widget.value = value
        elif name == "twice":
            widget.checked = value
        else:
            widget.text = value
    before = {job.id for job in panel.logic.jobStore.jobs()}
    panel.ui.startJobButton.click()
    started = [job for job in panel.logic.jobStore.jobs() if job.id not in before]
    return started[0] if started else None


def test_form_and_reason(panel):
    assert panel.ui.jobComboBox.currentText == "Counting"  # the first that can be started
    assert panel.ui.startJobButton.enabled and "&amp; &lt;waits&gt;" in panel.ui.jobHelpLabel.text
    assert field(panel, "steps").value == 20 and field(panel, "rate").text == "1e-06"
    assert not field(panel, "twice").isVisibleTo(panel.ui.jobFieldsArea)  # folded
    panel.ui.jobComboBox.setCurrentIndex(0)
    assert not panel.ui.startJobButton.enabled
    assert "not part of this version" in panel.ui.jobHelpLabel.text
    assert panel.ui.jobsTable.isHidden()


def test_a_job_from_start_to_end(panel):
    job = start(panel, steps=30, rate="0.5", note="ü; --x", twice=True)
    assert job.values == {"steps": 30, "rate": 0.5, "note": "ü; --x", "twice": True}
    assert panel.ui.jobsTable.item(0, 0).text() == "Counting"
    seen = set()
    wait_until(lambda: seen.add(panel.ui.jobProgressBar.value) or job.state == "finished")
    wait_until(lambda: panel.ui.jobsTable.item(0, 1).text() == "Finished")
    assert "begins at 0; rate 0.5; note ü; --x; twice True" in panel.ui.jobLogEdit.plainText
    assert "counted to 30" in panel.ui.jobLogEdit.plainText
    assert panel.ui.jobProgressBar.isHidden() and not panel.ui.cancelJobButton.enabled
    assert "Finished" in panel.ui.logEdit.plainText


def test_a_wrong_value_starts_nothing(panel):
    assert start(panel, rate="7") is None
    assert start(panel, rate="abc") is None
    assert panel.logic.jobStore.jobs() == []
    assert "Rate" in panel.ui.logEdit.plainText


def test_cancel_resume_and_remove(panel, monkeypatch):
    import slicer

    job = start(panel, steps=200)
    wait_until(lambda: job.progress.done > 3)
    panel.ui.cancelJobButton.click()
    wait_until(lambda: job.state == "cancelled")
    wait_until(lambda: panel.ui.resumeJobButton.enabled)
    reached = job.progress.done
    panel.ui.resumeJobButton.click()
    wait_until(lambda: job.progress.done > reached)
    assert not panel.ui.removeJobButton.enabled
    panel.ui.cancelJobButton.click()
    wait_until(lambda: job.state == "cancelled")
    wait_until(lambda: panel.ui.removeJobButton.enabled)
    begun = [int(line.split()[2].rstrip(";")) for line in job.log_tail(50) if line.startswith("begins at")]
    assert begun[0] == 0 and begun[1] >= reached > 0
    questions = []
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, title: questions.append(text))
    panel.ui.removeJobButton.click()
    assert job.id in questions[0] and len(panel.logic.jobStore.jobs()) == 1
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, title: True)
    panel.ui.removeJobButton.click()
    assert panel.logic.jobStore.jobs() == []
    assert panel.ui.jobsTable.isHidden()


def test_failure_is_told(panel):
    job = start(panel, note="fail")
    wait_until(lambda: job.state == "failed")
    wait_until(lambda: "the data are wrong" in panel.ui.jobStateLabel.text)


def test_found_again_by_a_new_panel(panel, module):
    """As after a reload or a restart of Slicer."""
    import slicer_double

    job = start(panel, steps=400)
    wait_until(lambda: job.progress.done > 3)
    slicer_double.unload_module("MedCLIPSAM")
    assert job.state == "running"
    from pathlib import Path

    again = slicer_double.load_module(str(Path(module.path)))
    representation = again.widgetRepresentation()
    representation.enter()
    ui = representation.self().panel.ui
    assert ui.jobsTable.rowCount == 1 and ui.jobsTable.item(0, 1).text() == "Running"
    reached = job.progress.done
    wait_until(lambda: job.progress.done > reached)
    ui.cancelJobButton.click()
    wait_until(lambda: job.state == "cancelled")
