"""Runs from the panel, with slice views: the real session and child process with a quick engine."""

from __future__ import annotations

import numpy as np
import pytest
from panel_scenes import add_volume, open_panel, run, show_in_views, wait_until


@pytest.fixture
def panel(monkeypatch, tmp_path, module):
    """The panel, entered, with a volume in the views and everything installed."""
    return open_panel(monkeypatch, tmp_path, module)


def nodes(kind):
    import slicer

    return slicer.util.getNodesByClass(kind)


def own_maps():
    return [node for node in nodes("vtkMRMLScalarVolumeNode") if node.GetAttribute("MedCLIPSAM.Kind")]


def test_apply_says_what_is_missing(panel):
    assert not panel.ui.applyButton.enabled
    assert "Type what to segment" in panel.ui.applyButton.toolTip
    panel.ui.promptEdit.setPlainText("ball")
    assert panel.ui.applyButton.enabled


def test_one_slice_two_prompts(panel):
    from MedCLIPSAMLib import mrml_segments

    run(panel, "ball\nother ball")
    segmentation = panel.parameters.resultsSegmentation
    rows = panel.session.rows(segmentation)
    assert [row.prompt for row in rows] == ["ball", "other ball"]
    index = panel.segment.scope.currentSlice(panel.volume).index
    mask = mrml_segments.segment_array(segmentation, panel.volume, rows[0].mask_segment_id)
    assert mask[index].sum() > 50
    assert not np.delete(mask, index, axis=0).any()
    table = panel.ui.resultsTable
    assert table.rowCount == 2 and table.item(0, 0).text() == "ball"
    assert table.item(0, 2).text().endswith("mm²")
    assert "seems to be there" in panel.ui.presenceLabel.text
    assert not panel.ui.resultsSection.collapsed
    assert panel.ui.applyButton.text == "Apply" and panel.ui.applyButton.enabled


def test_running_again_replaces(panel):
    run(panel, "ball")
    before = (len(nodes("vtkMRMLSegmentationNode")), len(own_maps()))
    run(panel, "ball")
    assert (len(nodes("vtkMRMLSegmentationNode")), len(own_maps())) == before
    assert panel.parameters.resultsSegmentation.GetSegmentation().GetNumberOfSegments() == 2


def test_a_failed_run_leaves_the_scene_and_says_why(panel):
    run(panel, "input error")
    assert nodes("vtkMRMLSegmentationNode") == [] and own_maps() == []
    assert "injected" in panel.ui.presenceLabel.text
    assert "injected" in panel.ui.logEdit.plainText
    run(panel, "ball")
    assert len(panel.results._rows) == 1


def test_a_dead_child_is_told_and_the_next_run_works(panel):
    run(panel, "kill")
    assert "ended unexpectedly" in panel.ui.presenceLabel.text
    run(panel, "ball")
    assert [row.prompt for row in panel.results._rows] == ["ball"]


def test_absent_target_is_red(panel):
    from MedCLIPSAMPanel import wording

    run(panel, "absent")
    assert wording.BAD in panel.ui.presenceLabel.text and "absent" in panel.ui.presenceLabel.text
    assert panel.ui.resultsTable.item(0, 2).text() == "empty"


def test_cancel_of_a_slice_asks_nothing(panel):
    panel.ui.promptEdit.setPlainText("sleep 0.3")
    panel.ui.applyButton.click()
    panel.ui.applyButton.click()
    assert panel.ui.applyButton.text == "Cancelling…"
    wait_until(lambda: panel.session.state == "idle")
    assert nodes("vtkMRMLSegmentationNode") == []
    assert "Cancelled" in panel.ui.presenceLabel.text


@pytest.mark.parametrize("button", ["keepButton", "discardButton"])
def test_cancel_of_a_volume_asks_whether_to_keep(panel, button):
    panel.ui.promptEdit.setPlainText("sleep 0.05")
    panel.ui.scopeComboBox.setCurrentIndex(panel.ui.scopeComboBox.findData("volume"))
    panel.ui.applyButton.click()
    wait_until(lambda: panel.session.status.done >= 2)
    panel.ui.applyButton.click()
    assert not panel.ui.keepArea.isHidden() and panel.session.state == "running"
    panel.ui.continueButton.click()
    assert panel.ui.keepArea.isHidden() and panel.session.state == "running"
    panel.ui.applyButton.click()
    getattr(panel.ui, button).click()
    wait_until(lambda: panel.session.state == "idle")
    assert len(nodes("vtkMRMLSegmentationNode")) == (button == "keepButton")
    assert panel.ui.keepArea.isHidden() and panel.ui.progressArea.isHidden()


def test_cancel_of_a_refinement_asks_nothing(panel):
    """It is whole or nothing, also after a run whose finished slices could have been kept."""
    run(panel, "sleep 0.05", "volume")
    row = panel.results.row
    panel.ui.refineButton.click()
    wait_until(lambda: panel.session.status.done >= 2)
    panel.ui.applyButton.click()
    assert panel.ui.keepArea.isHidden() and panel.session.state == "cancelling"
    wait_until(lambda: panel.session.state == "idle")
    assert "Cancelled" in panel.ui.presenceLabel.text
    assert panel.results.row == row
    panel.ui.applyButton.click()
    wait_until(lambda: panel.session.status.done >= 2)
    panel.ui.applyButton.click()
    assert not panel.ui.keepArea.isHidden()  # a run of Apply asks again
    panel.ui.discardButton.click()
    wait_until(lambda: panel.session.state == "idle")


def test_volume_progress_and_estimate(panel):
    run(panel, "sleep 0.02")
    panel.ui.scopeComboBox.setCurrentIndex(panel.ui.scopeComboBox.findData("volume"))
    wait_until(lambda: "about" in panel.ui.estimateLabel.text)
    seen = []
    panel.ui.applyButton.click()
    wait_until(lambda: seen.append((panel.ui.progressBar.value, panel.ui.progressLabel.text)) or not panel.session._run)
    assert any("of 6" in text for _value, text in seen)
    assert max(value for value, _text in seen) >= 4
    assert panel.results.row.unit == "mL"


def test_scene_closed_while_running(panel, scene):
    import slicer

    panel.ui.promptEdit.setPlainText("sleep 0.3")
    panel.ui.applyButton.click()
    scene.Clear(0)
    assert panel.session.state == "idle"
    assert panel.ui.promptEdit.plainText == "" and panel.ui.applyButton.text == "Apply"
    assert panel.ui.progressArea.isHidden()
    for _number in range(100):
        slicer.app.processEvents()
    assert nodes("vtkMRMLSegmentationNode") == []
    volume = add_volume()
    show_in_views(volume)
    panel.enter()
    assert panel.parameters.inputVolume is volume
    run(panel, "ball")
    assert len(panel.results._rows) == 1


def test_volume_removed_while_running(panel, scene):
    panel.ui.promptEdit.setPlainText("sleep 0.2")
    panel.ui.applyButton.click()
    scene.RemoveNode(panel.volume)
    wait_until(lambda: panel.session.state == "idle")
    assert nodes("vtkMRMLSegmentationNode") == []
    assert "removed" in panel.ui.presenceLabel.text
    assert not panel.ui.applyButton.enabled


def test_leaving_ends_the_child(panel, module):
    import os

    run(panel, "ball")
    pid = panel.session.worker.pid
    assert pid is not None
    module.widgetRepresentation().self().cleanup()
    module.widgetRepresentation().self().cleanup()  # once more changes nothing
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_panel_is_never_blocked(panel, monkeypatch):
    """Neither Apply nor any call of the poll timer takes long, also with a large slice."""
    import time

    volume = add_volume((3, 512, 512), "large")
    show_in_views(volume)
    panel.ui.inputVolumeSelector.setCurrentNode(volume)
    run(panel, "ball")
    longest = []
    poll = panel.onPoll
    monkeypatch.setattr(panel, "onPoll", None, raising=False)
    panel._timer.stop()
    start = time.perf_counter()
    panel.ui.applyButton.click()
    longest.append(time.perf_counter() - start)
    while panel.session.state != "idle":
        start = time.perf_counter()
        poll()
        longest.append(time.perf_counter() - start)
        time.sleep(0.005)
    assert max(longest) < 0.25, longest  # 50 ms are wanted; machines that run tests are busy
