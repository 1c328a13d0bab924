"""The module itself without a main window: opening, sample data, the scriptable logic, reload, the self-test."""

from __future__ import annotations

import sys
from pathlib import Path

import panel_scenes
import pytest
from panel_scenes import add_volume, wait_until


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """The stand-in engine in the child process, and empty settings."""
    import qt

    panel_scenes.use_stand_in(monkeypatch)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    qt.QSettings().clear()


@pytest.fixture
def ready(monkeypatch):
    """Everything is installed."""
    from MedCLIPSAMPanel.setup_section import SetupSection

    monkeypatch.setattr(SetupSection, "ready", property(lambda self: True))
    monkeypatch.setattr(SetupSection, "lacks", lambda self, engine, preset: None)


def test_what_slicer_lists(module):
    assert module.title == "MedCLIPSAM"
    assert module.categories == ("Segmentation",)
    assert "2409.19483" in module.acknowledgementText and "research" in module.helpText.lower()
    assert not module.icon.isNull()


def test_importing_the_module_loads_nothing_heavy(module):
    """The file itself imports nothing but what every Slicer has."""
    import ast

    tree = ast.parse(Path(module.path).read_text(encoding="utf-8"))
    imported = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported <= {*sys.stdlib_module_names, "qt", "ctk", "vtk", "slicer", "numpy"}


def test_opens_without_views(module):
    representation = module.widgetRepresentation()
    representation.enter()
    panel = representation.self().panel
    assert panel.session.worker.pid is None  # nothing is started by looking
    assert not panel.ui.applyButton.enabled
    assert panel.ui.viewComboBox.currentText.startswith("no slice view")


def test_the_only_volume_and_its_middle_slice_are_taken(module, quick, ready):
    volume = add_volume((7, 32, 40))
    representation = module.widgetRepresentation()
    representation.enter()
    panel = representation.self().panel
    assert panel.parameters.inputVolume is volume
    panel.ui.promptEdit.setPlainText("ball")
    panel.ui.applyButton.click()
    wait_until(lambda: panel.session.state == "idle")
    assert "middle slice" in panel.ui.logEdit.plainText
    assert panel.results.row.scope == "slice 3"


def test_maps_of_ours_are_no_input(module, quick, ready, scene):
    add_volume((7, 32, 40))
    representation = module.widgetRepresentation()
    representation.enter()
    panel = representation.self().panel
    panel.ui.promptEdit.setPlainText("ball")
    panel.ui.applyButton.click()
    wait_until(lambda: panel.session.state == "idle")
    panel.ui.inputVolumeSelector.setCurrentNode(scene.GetNodeByID(panel.results.row.saliency_node_id))
    assert not panel.ui.applyButton.enabled


def test_two_volumes_are_not_guessed(module):
    add_volume(name="one")
    add_volume(name="two")
    representation = module.widgetRepresentation()
    representation.enter()
    assert representation.self().panel.parameters.inputVolume is None


def test_sample_data_is_what_the_library_has(module, scene):
    from MedCLIPSAMLib.samples import load_sample, sample_names
    from MedCLIPSAMPanel import sample_data

    assert sorted(sample_data.SAMPLES) == sorted(sample_names())
    volume = sample_data.load("chest-ct")
    image = load_sample("chest-ct").image
    assert volume.GetImageData().GetDimensions() == (*image.array.shape[::-1], 1)
    display = volume.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == image.window


def test_sample_data_is_registered_at_start(module):
    import slicer
    from slicer_double import signals, slicer_parts

    slicer_parts.samples.clear()
    signals.send(slicer.app, "startupCompleted()")
    names = [entry["sampleName"] for entry in slicer_parts.samples]
    assert "Simulated breast ultrasound" in names
    assert all(Path(entry["thumbnailFileName"]).is_file() for entry in slicer_parts.samples)
    nodes = slicer_parts.samples[0]["customDownloader"](None)
    assert nodes[0].GetImageData() is not None


def test_the_logic_for_scripts(module, quick):
    from MedCLIPSAM import MedCLIPSAMLogic
    from MedCLIPSAMLib.errors import MedCLIPSAMError

    volume = add_volume((4, 32, 40))
    logic = MedCLIPSAMLogic()
    segmentation = logic.process(volume, "ball", seed=3)
    rows = logic.session.rows(segmentation)
    assert [row.prompt for row in rows] == ["ball"] and rows[0].unit == "mL"
    again = logic.process(volume, ["ball", "other"], outputSegmentation=segmentation, scope="slice", axis=0, index=2)
    assert again is segmentation
    with pytest.raises(MedCLIPSAMError, match="injected"):
        logic.process(volume, "input error", scope="slice", axis=0, index=2)
    logic.close()
    logic.close()


def test_reload_ends_the_child_and_drops_the_library(module, quick, ready):
    add_volume((4, 32, 40))
    representation = module.widgetRepresentation()
    representation.enter()
    panel = representation.self().panel
    panel.ui.promptEdit.setPlainText("ball")
    panel.ui.applyButton.click()
    wait_until(lambda: panel.session.state == "idle")
    worker = panel.session.worker
    library = sys.modules["MedCLIPSAMLib.session"]
    representation.self().onReload()
    assert not worker.alive
    widget = representation.self()
    assert widget.panel is not None and widget.panel is not panel
    assert sys.modules["MedCLIPSAMLib.session"] is not library
    representation.enter()
    assert widget.ui.promptEdit.plainText == "ball"  # the scene's parameters are still there
    assert [row.prompt for row in widget.panel.results._rows] == ["ball"]


def test_errors_in_slots_are_shown(module, monkeypatch):
    import slicer

    from MedCLIPSAMLib.errors import InputError

    panel = module.widgetRepresentation().self().panel
    shown = []
    monkeypatch.setattr(slicer.util, "errorDisplay", lambda text, **_: shown.append(text))
    monkeypatch.setitem(slicer.app._values, "testing", False)
    monkeypatch.setattr(panel.session, "undo", lambda: (_ for _ in ()).throw(InputError("the value 7 is wrong.")))
    panel.results.onUndo()
    assert shown == ["The value 7 is wrong."]
    monkeypatch.setattr(panel.session, "undo", lambda: 1 / 0)
    panel.results.onUndo()
    assert "ZeroDivisionError" in shown[1]
    assert "ZeroDivisionError" in panel.ui.logEdit.plainText


def test_folder_of_an_own_engine(module, quick, tmp_path):
    import slicer_double

    panel = module.widgetRepresentation().self().panel
    assert panel.segment.engines.engine == "lite" and panel.ui.presetComboBox.count > 1
    (tmp_path / "pytorch_model.bin").touch()
    slicer_double.answer(str(tmp_path))
    panel.segment.engines.onFineTuned()
    assert panel.segment.engines.engine == f"finetuned:{tmp_path}" == panel.parameters.engine
    assert panel.segment.engines.preset is None
    assert panel.ui.presetComboBox.findData("breast-ultrasound") > 0  # it is made of BiomedCLIP
    slicer_double.answer("")
    panel.segment.engines.onWeak()  # the dialog was closed
    assert panel.parameters.engine == f"finetuned:{tmp_path}"
    panel.segment.engines.remember()
    panel.ui.engineComboBox.setCurrentText("lite")
    panel.ui.presetComboBox.setCurrentIndex(panel.ui.presetComboBox.findData("lungs"))
    assert (panel.parameters.engine, panel.parameters.preset) == ("lite", "lungs")
    assert panel.ui.engineComboBox.findText(f"finetuned:{tmp_path}") > 0
