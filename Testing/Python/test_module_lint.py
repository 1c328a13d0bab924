"""The module uses only names that the application has; and the lint that says so catches seeded faults."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "Testing" / "SlicerDouble"))

from slicer_double import lint  # noqa: E402

SOURCES = [ROOT / "MedCLIPSAM" / "MedCLIPSAM.py", *sorted((ROOT / "MedCLIPSAM" / "MedCLIPSAMPanel").glob("*.py"))]
FORM = ROOT / "Resources" / "UI" / "MedCLIPSAM.ui"

SAMPLE_FORM = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Form</class>
<widget class="qMRMLWidget" name="Form"><layout class="QVBoxLayout" name="formLayout">
 <item><widget class="ctkCollapsibleButton" name="section"><property name="text"><string>Input</string></property>
  <layout class="QFormLayout" name="rows">
  <item row="0" column="0"><widget class="QLabel" name="volumeLabel">
   <property name="buddy"><cstring>volumeSelector</cstring></property></widget></item>
  <item row="0" column="1"><widget class="qMRMLNodeComboBox" name="volumeSelector">
   <property name="toolTip"><string>The volume</string></property></widget></item>
  <item row="1" column="1"><widget class="ctkSliderWidget" name="slider">
   <property name="toolTip"><string>The threshold</string></property>
   <property name="maximum"><double>1.0</double></property></widget></item>
  <item row="2" column="1"><widget class="QTableWidget" name="table"/></item>
  <item row="3" column="1"><widget class="QPushButton" name="applyButton">
   <property name="toolTip"><string>Run</string></property></widget></item></layout></widget></item>
</layout></widget>
<customwidgets>
 <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><container>1</container></customwidget>
 <customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><container>1</container></customwidget>
 <customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends></customwidget>
 <customwidget><class>ctkSliderWidget</class><extends>QWidget</extends></customwidget>
</customwidgets>
<connections><connection><sender>Form</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
 <receiver>volumeSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""

SAMPLE = """
import logging
import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class Rows:
    def __init__(self, table):
        self.table = table
        self.table.rowCount = 0
        self.table.horizontalHeader().setStretchLastSection(True)
        header: qt.QHeaderView = table.verticalHeader()
        header.setVisible(False)


class ProbeWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def setup(self):
        self.ui = slicer.util.childWidgetVariables(slicer.util.loadUI(self.resourcePath("UI/Probe.ui")))
        self.rows = Rows(self.ui.table)
        self.timer = qt.QTimer()
        self.timer.setInterval(50)
        self.timer.connect("timeout()", self.onTimer)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.ui.slider.connect("valueChanged(double)", self.onSlider)
        self.ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: self.onTimer())
        slicer.app.connect("startupCompleted()", self.onTimer)
        self.shortcut = qt.QShortcut(qt.QKeySequence("Ctrl+Return"), self.ui.applyButton)
        for button in (self.ui.applyButton, qt.QToolButton()):
            button.enabled = True

    def onApply(self, checked=False):
        import torch
        if self.ui.volumeSelector.currentNode() is None or not self.ui.applyButton.enabled:
            slicer.util.errorDisplay(_("Choose a volume."), windowTitle="Probe")
        if slicer.util.confirmOkCancelDisplay("Sure?") and self.ui.slider.value > 0:
            slicer.packaging.pip_install("torch", constraints="c.txt")
        box = qt.QMessageBox()
        box.icon = qt.QMessageBox.Warning
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        return node.GetDisplayNode() or isinstance(node, slicer.vtkMRMLSegmentationNode)

    def onSlider(self, value):
        self.ui.applyButton.text = f"{value:.2f} of {self.ui.slider.maximum}"

    def onTimer(self):
        slicer.app.processEvents()
"""

SEEDED = [
    ("self.ui.applyButton.connect", "self.ui.aplyButton.connect", "the form has no 'aplyButton'"),
    ("self.ui.slider.value > 0", "self.ui.slider.value() > 0", "called as a method"),
    ("not self.ui.applyButton.enabled", "not self.ui.applyButton.isEnable()", "has no 'isEnable'"),
    ("volumeSelector.currentNode() is", "volumeSelector.currentNode is", "used as a value"),
    ('"clicked(bool)"', '"clicked(int)"', "has no signal 'clicked(int)'"),
    ('"valueChanged(double)"', '"valueChanged(int)"', "has no signal"),
    ('"currentNodeChanged(vtkMRMLNode*)"', '"currentNodeChanged"', "not a signal's signature"),
    ('"timeout()", self.onTimer', '"timeout()", self.onSlider', "needs 1 arguments"),
    ('"startupCompleted()"', '"startupComplete()"', "no class of the application has a signal"),
    ("self.ui.applyButton.text =", "self.ui.applyButton.label =", "has no 'label'"),
    ("self.ui.applyButton.text =", "self.ui.applyButton.click =", "it is no property"),
    ("self.table.rowCount = 0", "self.table.x = 0", "read-only"),
    ("self.table.rowCount = 0", "self.table.rows = 0", "has no 'rows'"),
    ("setStretchLastSection", "setStretchLast", "QHeaderView has no"),
    ("qt.QTimer()", "qt.QTimers()", "qt.QTimers is not in the application"),
    ("self.timer.setInterval(50)", "self.timer.setIntervall(50)", "has no 'setIntervall'"),
    ("qt.QToolButton()", "ctk.ctkToolButton()", "ctk.ctkToolButton is not in the application"),
    ("qt.QToolButton()", "slicer.qMRMLToolButton()", "slicer.qMRMLToolButton is not in the application"),
    ("qt.QMessageBox.Warning", "qt.QMessageBox.Warn", "has no 'Warn'"),
    ("qt.QMessageBox()", "qt.QMessageBox(text='x')", "takes no keywords"),
    ("qt.QShortcut(qt.QKeySequence(", "qt.QHeaderView() or (qt.QKeySequence(", "cannot be made without arguments"),
    ("slicer.util.errorDisplay(", "slicer.util.errorMessage(", "slicer.util has no 'errorMessage'"),
    ('windowTitle="Probe"', 'title="Probe"', None),
    ('constraints="c.txt"', 'constraint="c.txt"', "unexpected keyword argument 'constraint'"),
    ("slicer.packaging.pip_install", "slicer.packaging.pipInstall", "slicer.packaging has no"),
    ("slicer.app.processEvents()", "slicer.app.processAllEvents()", "slicer.app has no 'processAllEvents'"),
    ("slicer.vtkMRMLSegmentationNode", "slicer.vtkMRMLSegmentNode", "slicer.vtkMRMLSegmentNode is not"),
    ("isinstance(node, slicer.vtkMRMLSegmentationNode)", "isinstance(node, qt.QWidget)", "do not derive"),
    ("import numpy as np", "import numpy as np\nimport torch", "torch is imported at file scope"),
    ("import vtk\n", "import vtk\ntry:\n    import scipy\nfinally: pass\n", "scipy is imported at file"),
    ("import logging\n", "import logging\nslicer.util.pip_install('x')\n", "installed or started at import"),
    ("from slicer.util import VTK", "from slicer.util import NoSuchMixin, VTK", "slicer.util has no 'NoSuchMixin'"),
]
SEEDED_FORM = [
    ('class="ctkSliderWidget" name', 'class="ctkSlider" name', "no class ctkSlider"),
    ('<property name="maximum">', '<property name="maximumm">', "no property 'maximumm'"),
    ('name="applyButton"', 'name="slider"', "'slider' is given 2 times"),
    ("<cstring>volumeSelector</cstring>", "<cstring>volumes</cstring>", "buddy 'volumes' does not exist"),
    ("<string>Run</string>", "<string></string>", "QPushButton without a tooltip"),
    ("<signal>mrmlSceneChanged(vtkMRMLScene*)", "<signal>sceneChanged()", "no signal sceneChanged()"),
    ("<slot>setMRMLScene(vtkMRMLScene*)", "<slot>setScene(vtkMRMLScene*)", "no slot setScene"),
    ("<receiver>volumeSelector", "<receiver>volumes", "'volumes' does not exist"),
    ("<class>ctkSliderWidget</class>", "<class>ctkOther</class>", "not declared in <customwidgets>"),
    ("QWidget</extends><container>1</container>", "QWidget</extends>", "not declared as a container"),
    ("</connections>", "", "not valid XML"),
]


def problems(folder: Path, source: str, form: str) -> str:
    """What the lint says about a source and a form."""
    (folder / "Probe.py").write_text(source, encoding="utf-8")
    (folder / "Probe.ui").write_text(form, encoding="utf-8")
    return "\n".join(problem.text for problem in lint.check_module([folder / "Probe.py"], folder / "Probe.ui"))


def test_the_module_uses_only_what_the_application_has():
    if not FORM.is_file():
        pytest.skip("the module is not there")
    assert "\n".join(map(str, lint.check_module(SOURCES, FORM))) == ""


def test_a_faultless_module_passes(tmp_path):
    assert problems(tmp_path, SAMPLE, SAMPLE_FORM) == ""


@pytest.mark.parametrize(("old", "new", "text"), SEEDED, ids=[str(number) for number in range(len(SEEDED))])
def test_a_fault_in_the_source_is_caught(tmp_path, old, new, text):
    assert old in SAMPLE
    found = problems(tmp_path, SAMPLE.replace(old, new), SAMPLE_FORM)
    assert text in found if text else found == ""  # errorDisplay passes further keywords on


@pytest.mark.parametrize(("old", "new", "text"), SEEDED_FORM, ids=[str(number) for number in range(len(SEEDED_FORM))])
def test_a_fault_in_the_form_is_caught(tmp_path, old, new, text):
    assert old in SAMPLE_FORM
    assert text in problems(tmp_path, SAMPLE, SAMPLE_FORM.replace(old, new, 1))


def test_a_problem_says_where_it_is(tmp_path):
    (tmp_path / "Probe.py").write_text("import qt\n\nx = qt.QNothing()\n", encoding="utf-8")
    (found,) = lint.check_module([tmp_path / "Probe.py"], None)
    assert str(found) == f"{tmp_path / 'Probe.py'}:3: qt.QNothing is not in the application"
