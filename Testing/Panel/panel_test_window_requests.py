"""What the panel asks for: volume, view, slices, output and settings, as the widgets say them."""

from __future__ import annotations

import numpy as np
import pytest
from panel_scenes import add_volume, open_panel, run, show_in_views, wait_until


@pytest.fixture
def panel(monkeypatch, tmp_path, module):
    """The panel, entered, with a volume in the views and everything installed."""
    return open_panel(monkeypatch, tmp_path, module)


def test_the_shown_volume_and_slice_are_taken(panel):
    assert panel.parameters.inputVolume is panel.volume
    request = panel.segment.scope.requestFields(panel.volume)
    assert request["scope"] == "slice" and request["axis"] == 0
    assert panel.ui.sliceInfoLabel.text == f"Axial slice {request['index']} of 0 to 5"
    panel.ui.viewComboBox.setCurrentIndex(panel.ui.viewComboBox.findData("Yellow"))
    assert panel.segment.scope.requestFields(panel.volume)["axis"] == 2
    assert "Sagittal" in panel.ui.sliceInfoLabel.text


def test_a_range_of_slices_on_another_axis(panel):
    from MedCLIPSAMLib import mrml_segments

    volume = add_volume((20, 48, 40))
    panel.ui.inputVolumeSelector.setCurrentNode(volume)
    panel.ui.scopeComboBox.setCurrentIndex(panel.ui.scopeComboBox.findData("range"))
    panel.ui.sliceAxisComboBox.setCurrentIndex(panel.ui.sliceAxisComboBox.findData("coronal"))
    assert panel.ui.sliceRangeWidget.maximum == 47
    panel.ui.sliceRangeWidget.setValues(20, 26)
    assert panel.ui.sliceInfoLabel.text == "7 coronal slices"
    run(panel, "ball", "range")
    row = panel.results.row
    mask = mrml_segments.segment_array(panel.results.segmentation, volume, row.mask_segment_id)
    found = np.flatnonzero(mask.any(axis=(0, 2)))
    assert found.min() >= 20 and found.max() <= 26


def test_a_turned_view_is_said(panel, scene):
    import slicer
    import vtk

    node = scene.GetNodeByID("vtkMRMLSliceNodeRed")
    turn = vtk.vtkTransform()
    turn.RotateX(12)
    node.GetSliceToRAS().Multiply4x4(turn.GetMatrix(), node.GetSliceToRAS(), node.GetSliceToRAS())
    node.UpdateMatrices()
    wait_until(lambda: "turned by 12°" in panel.ui.sliceInfoLabel.text)
    run(panel, "ball")
    assert "turned by 12°" in panel.ui.logEdit.plainText
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 1


def test_a_view_beside_the_volume_is_refused(panel, scene):
    panel.ui.promptEdit.setPlainText("ball")
    scene.GetNodeByID("vtkMRMLSliceNodeRed").SetSliceOffset(500)
    wait_until(lambda: "does not cut" in panel.ui.sliceInfoLabel.text)
    panel.ui.applyButton.click()
    assert panel.session.state == "idle" and "does not cut" in panel.ui.logEdit.plainText


def test_settings_reach_the_request(panel):
    ui = panel.ui
    ui.promptEdit.setPlainText("ball")
    ui.seedSpinBox.value = 9
    ui.samplesSpinBox.value = 3
    ui.gateCheckBox.checked = False
    request = panel.segment.request()
    assert (request.seed, request.samples, request.gate, request.window) == (9, 3, False, None)
    ui.windowModeComboBox.setCurrentIndex(ui.windowModeComboBox.findData("display"))
    panel.volume.GetDisplayNode().AutoWindowLevelOff()
    panel.volume.GetDisplayNode().SetWindowLevelMinMax(30, 90)
    assert panel.segment.request().window == pytest.approx((30, 90))
    ui.windowModeComboBox.setCurrentIndex(ui.windowModeComboBox.findData("manual"))
    assert not ui.windowRangeWidget.isHidden()
    assert panel.segment.request().window == pytest.approx((30, 90))  # begins with what is displayed
    ui.windowRangeWidget.setValues(40, 150)
    assert panel.segment.request().window == pytest.approx((40, 150))


def test_another_volume_brings_its_own_results(panel):
    run(panel, "ball")
    first = panel.parameters.resultsSegmentation
    other = add_volume(name="other")
    panel.ui.inputVolumeSelector.setCurrentNode(other)
    assert panel.parameters.resultsSegmentation is None and panel.ui.resultsTable.rowCount == 0
    panel.ui.inputVolumeSelector.setCurrentNode(panel.volume)
    assert panel.parameters.resultsSegmentation is first and panel.ui.resultsTable.rowCount == 1


def test_colour_volume_with_one_slice(panel, scene):
    volume = add_volume((1, 40, 48), "ultrasound", colour=True)
    show_in_views(volume)
    panel.ui.inputVolumeSelector.setCurrentNode(volume)
    run(panel, "ball")
    assert panel.results.row.size > 0 and panel.results.row.unit == "mm²"


def test_output_into_an_existing_segmentation(panel, scene):
    import vtk

    chosen = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    chosen.CreateDefaultDisplayNodes()
    chosen.SetReferenceImageGeometryParameterFromVolumeNode(panel.volume)
    chosen.GetSegmentation().AddEmptySegment("kept", "kept")
    panel.ui.outputSegmentationSelector.setCurrentNode(chosen)
    run(panel, "ball")
    assert panel.parameters.resultsSegmentation is chosen
    ids = vtk.vtkStringArray()
    chosen.GetSegmentation().GetSegmentIDs(ids)
    assert ids.GetValue(0) == "kept" and ids.GetNumberOfValues() == 3
