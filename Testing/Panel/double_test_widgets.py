"""The stand-ins behave as it was measured in the application."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import ctk
import numpy as np
import pytest
import qt
import slicer
import slicer_double
from slicer_double import dialogs

FORM = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Form</class>
<widget class="qMRMLWidget" name="Form"><layout class="QVBoxLayout" name="formLayout">
 <item><widget class="ctkCollapsibleButton" name="section"><property name="text"><string>Section</string></property>
  <layout class="QFormLayout" name="rows"><item row="0" column="0">
   <widget class="QLabel" name="label"><property name="buddy"><cstring>slider</cstring></property></widget></item>
  <item row="0" column="1"><widget class="ctkSliderWidget" name="slider">
   <property name="maximum"><double>1.0</double></property><property name="value"><double>0.25</double></property>
   <property name="SlicerParameterName" stdset="0"><string>threshold</string></property></widget></item>
  <item row="1" column="1"><widget class="qMRMLNodeComboBox" name="volumes"><property name="nodeTypes">
   <stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property></widget></item></layout></widget></item>
</layout></widget>
<customwidgets>
 <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>q.h</header><container>1</container></customwidget>
 <customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><header>c.h</header><container>1</container></customwidget>
 <customwidget><class>ctkSliderWidget</class><extends>QWidget</extends><header>s.h</header></customwidget>
 <customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends><header>n.h</header></customwidget>
</customwidgets>
<connections><connection><sender>Form</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
 <receiver>volumes</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""


@pytest.fixture
def form(tmp_path):
    """A loaded form and its named children."""
    (tmp_path / "form.ui").write_text(FORM, encoding="utf-8")
    widget = slicer.util.loadUI(str(tmp_path / "form.ui"))
    yield widget, slicer.util.childWidgetVariables(widget)
    widget.setMRMLScene(None)


def selector(scene, *kinds):
    """A node selector in the scene."""
    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = kinds
    box.setMRMLScene(scene)
    return box


def test_a_form_makes_the_applications_classes_and_connections(form, scene):
    widget, ui = form
    assert (ui.section.text, ui.slider.value, ui.slider.maximum) == ("Section", 0.25, 1.0)
    assert ui.slider.property("SlicerParameterName") == "threshold"
    assert ui.label.buddy() is ui.slider and ui.volumes.mrmlScene() is None
    widget.setMRMLScene(scene)
    assert ui.volumes.mrmlScene() is scene and ui.volumes.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    with pytest.raises(AttributeError):
        ui.noSuchWidget  # noqa: B018


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('class="ctkSliderWidget" name', 'class="ctkSlider" name'),
        ('<property name="maximum">', '<property name="maximums">'),
        ("mrmlSceneChanged(vtkMRMLScene*)", "sceneChanged()"),
        ("setMRMLScene(vtkMRMLScene*)", "setScene(vtkMRMLScene*)"),
    ],
)
def test_a_form_with_unknown_names_is_refused(tmp_path, old, new):
    (tmp_path / "form.ui").write_text(FORM.replace(old, new), encoding="utf-8")
    with pytest.raises(AttributeError):
        slicer.util.loadUI(str(tmp_path / "form.ui"))


def test_a_node_selector_does_not_select_what_is_added_later(scene):
    box, got = selector(scene, "vtkMRMLScalarVolumeNode"), []
    box.connect("currentNodeChanged(vtkMRMLNode*)", got.append)
    box.connect("currentNodeChanged(bool)", got.append)
    box.connect("currentNodeIDChanged(QString)", got.append)
    first = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "A")
    scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    slicer.app.processEvents()
    assert box.currentNode() is None and box.nodeCount() == 1 and got == []
    box.setCurrentNode(first)
    assert got == [first, True, first.GetID()] and box.currentNodeID == first.GetID()
    box.setCurrentNode(first)
    assert len(got) == 3
    scene.RemoveNode(first)
    assert box.currentNode() is None and got[3:] == [None, False, ""]


def test_a_node_selector_follows_scene_close_and_hidden_nodes(scene):
    box = selector(scene, "vtkMRMLVolumeNode")
    hidden = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    hidden.HideFromEditorsOn()
    assert box.nodeCount() == 0
    node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode")
    box.setCurrentNodeID(node.GetID())
    scene.Clear(0)
    assert box.currentNode() is None and box.nodeCount() == 0
    other = slicer.vtkMRMLScalarVolumeNode()
    box.setCurrentNode(other)  # not in the scene
    assert box.currentNode() is None
    box.nodeTypes = ("vtkMRMLScalarVolumeNode",)
    assert box.addNode() is box.currentNode() is not None


def test_a_property_without_effect_in_the_double_is_kept():
    box = slicer.qMRMLNodeComboBox()
    with pytest.raises(NotImplementedError):
        box.sizeAdjustPolicy  # noqa: B018
    box.sizeAdjustPolicy = qt.QComboBox.AdjustToContents
    assert box.sizeAdjustPolicy == qt.QComboBox.AdjustToContents


def test_a_gone_selector_does_not_follow_the_scene(scene):
    box = selector(scene, "vtkMRMLScalarVolumeNode")
    box.deleteLater()
    del box
    gc.collect()
    slicer.app.processEvents()
    scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")


def test_sliders_keep_to_their_range_and_tell_changes_once():
    slider, got = ctk.ctkSliderWidget(), []
    slider.connect("valueChanged(double)", got.append)
    slider.maximum, slider.decimals = 1, 3
    slider.value = 0.5
    slider.setValue(0.5)
    slider.value = 7
    assert got == [0.5, 1.0] and isinstance(slider.maximum, float)
    slider.blockSignals(True)
    slider.value = 0
    assert len(got) == 2 and slider.value == 0
    ends = ctk.ctkRangeWidget()
    ends.connect("valuesChanged(double,double)", lambda low, high: got.append((low, high)))
    ends.maximum = 10
    ends.setValues(2, 50)
    assert (ends.minimumValue, ends.maximumValue) == (2, 10) and got[-1] == (2, 10)
    with pytest.raises(AttributeError):
        slider.setMaximum(2)  # a property only, in the application


def test_a_collapsed_section_hides_its_children_and_opens_as_it_was():
    window = qt.QWidget()
    layout = qt.QVBoxLayout(window)
    section, got = ctk.ctkCollapsibleButton(), []
    layout.addWidget(section)
    inner = qt.QVBoxLayout(section)
    shown, hidden = qt.QLabel("a"), qt.QLabel("b")
    inner.addWidget(shown)
    inner.addWidget(hidden)
    hidden.hide()
    window.show()
    section.connect("contentsCollapsed(bool)", got.append)
    section.collapsed = True
    assert not shown.visible
    section.collapsed = False
    assert shown.visible and not hidden.visible and got == [True, False]
    section.click()
    assert section.collapsed and not section.checked


def test_paths_and_messages_are_asked(tmp_path):
    path, got = ctk.ctkPathLineEdit(), []
    path.connect("currentPathChanged(QString)", got.append)
    path.filters = ctk.ctkPathLineEdit.Dirs
    path.currentPath = "/a"
    dialogs.answer("/b")
    path.browse()
    assert got[-1] == path.currentPath == "/b"


def test_in_testing_mode_confirmations_are_not_shown():
    assert slicer.app.testingEnabled()
    slicer.util.infoDisplay("said")
    slicer.util.errorDisplay("wrong")
    slicer.util.confirmOkCancelDisplay("sure?")
    assert dialogs.shown == []


def test_outside_testing_mode_they_are(monkeypatch):
    monkeypatch.setitem(slicer.app._values, "testing", False)
    dialogs.answer(qt.QMessageBox.Ok, qt.QMessageBox.Cancel)
    assert slicer.util.confirmOkCancelDisplay("sure?") is True
    assert slicer.util.confirmOkCancelDisplay("sure?") is False
    assert dialogs.shown[0].texts[0] == "sure?"


def test_segments_are_listed_and_shown_in_3d(scene):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.CreateDefaultDisplayNodes()
    volume = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6), np.uint8))
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    table, button = slicer.qMRMLSegmentsTableView(), slicer.qMRMLSegmentationShow3DButton()
    table.setMRMLScene(scene)
    table.setSegmentationNode(node)
    button.setSegmentationNode(node)
    segment = node.GetSegmentation().AddEmptySegment("id", "liver")
    assert table.segmentCount == 1 and table.displayedSegmentIDs() == (segment,)
    table.setSelectedSegmentIDs((segment,))
    assert table.selectedSegmentIDs() == (segment,)
    assert button.segmentationNode() is node and not button.checked
    table.setSegmentationNode(None)


def test_pictures_have_the_process_scale_and_are_not_blank(tmp_path, form):
    widget, _ui = form
    size = slicer_double.save_picture(widget, tmp_path / "form.png", 400)
    image = qt.QImage(str(tmp_path / "form.png"))
    assert size.width() == image.width() == 400 * widget.devicePixelRatio()
    colours = {image.pixel(x, y) for x in range(0, image.width(), 2) for y in range(0, image.height(), 2)}
    assert len(colours) > 8


def test_a_module_is_opened_reloaded_and_ended(tmp_path):
    (tmp_path / "Probe.py").write_text(
        """
import slicer, qt
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin
calls = []
class Probe(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title, parent.categories = "Probe", ["Segmentation"]
class ProbeWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
    def setup(self):
        super().setup()
        self.layout.addWidget(qt.QLabel("hello"))
        self.logic = ProbeLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, lambda *_: calls.append("closed"))
    def enter(self): calls.append("enter")
    def exit(self): calls.append("exit")
    def cleanup(self):
        calls.append("cleanup")
        self.removeObservers()
class ProbeLogic(ScriptedLoadableModuleLogic): pass
class ProbeTest(ScriptedLoadableModuleTest):
    def test_it(self): calls.append("test")
""",
        encoding="utf-8",
    )
    module = slicer_double.load_module(str(tmp_path / "Probe.py"))
    widget = slicer.util.getModuleWidget("Probe")
    calls = __import__("Probe").calls
    assert module.categories == ("Segmentation",) and slicer.modules.ProbeWidget is widget
    assert slicer.util.modulePath("Probe") == str(tmp_path / "Probe.py")
    assert slicer.util.getModuleLogic("Probe") is widget.logic
    node = widget.logic.getParameterNode()
    slicer.mrmlScene.Clear(0)
    assert widget.logic.getParameterNode() is node and node.GetAttribute("ModuleName") == "Probe"
    module.widgetRepresentation().enter()
    slicer.modules.ProbeInstance.runTest()
    widget.onReload()
    assert slicer.modules.ProbeWidget is not widget and calls == ["closed", "enter", "test", "cleanup"]
    slicer_double.unload_module("Probe")
    assert __import__("Probe").calls[-1] == "cleanup" and not hasattr(slicer.modules, "probe")
    with pytest.raises(AttributeError, match="no property"):
        module.colour = 1


def test_pictures_are_taken_at_each_scale(tmp_path):
    (tmp_path / "Shown.py").write_text(
        """
import qt
from slicer.ScriptedLoadableModule import *
class Shown(ScriptedLoadableModule): pass
class ShownWidget(ScriptedLoadableModuleWidget):
    def setup(self):
        self.label = qt.QLabel("hello")
        self.layout.addWidget(self.label)
""",
        encoding="utf-8",
    )
    (tmp_path / "fill.py").write_text("def prepare(widget):\n    widget.label.text = 'long ' * 20\n", encoding="utf-8")
    command = [sys.executable, "-m", "slicer_double.pictures", str(tmp_path / "Shown.py"), str(tmp_path)]
    folder = Path(slicer_double.__file__).parents[1]
    subprocess.run([*command, "--width", "300", "--prepare", str(tmp_path / "fill.py")], check=True, cwd=folder)
    sizes = [qt.QImage(str(tmp_path / f"Shown_{percent}.png")).height() for percent in (100, 150)]
    assert sizes[1] == pytest.approx(1.5 * sizes[0], abs=3)
