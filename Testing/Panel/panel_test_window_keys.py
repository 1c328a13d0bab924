"""Typing in the panel with real key events: shortcuts, completion of a line, history."""

from __future__ import annotations

import panel_scenes
import pytest
from panel_scenes import add_volume, show_in_views, wait_until
from PySide6 import QtCore, QtTest, QtWidgets

Key = QtCore.Qt.Key


@pytest.fixture
def panel(monkeypatch, tmp_path, module):
    """The panel, shown in an active window, with a volume."""
    import qt

    panel_scenes.use_stand_in(monkeypatch)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    qt.QSettings().clear()
    add_volume()
    representation = module.widgetRepresentation()
    panel = representation.self().panel
    monkeypatch.setattr(type(panel.setup), "ready", property(lambda self: True))
    representation.enter()
    QtWidgets.QWidget.show(representation)
    QtWidgets.QWidget.activateWindow(representation)
    assert QtTest.QTest.qWaitForWindowActive(representation)
    panel.ui.promptEdit.setFocus()
    yield panel
    QtWidgets.QWidget.hide(representation)


def press(panel, text="", key=None, modifier=QtCore.Qt.KeyboardModifier.NoModifier):
    """Type, as a completer's popup passes it on when one is shown."""
    popup = panel.segment.prompts._completer and panel.segment.prompts._completer.popup()
    target = popup if popup and popup.visible else panel.ui.promptEdit
    if text:
        QtTest.QTest.keyClicks(target, text)
    else:
        QtTest.QTest.keyClick(target, key, modifier)


def typed(panel, text):
    for letter in text:
        press(panel, letter)


def test_ctrl_enter_runs(panel):
    show_in_views(panel.parameters.inputVolume)
    typed(panel, "ball")
    press(panel, key=Key.Key_Escape)
    press(panel, key=Key.Key_Return, modifier=QtCore.Qt.KeyboardModifier.ControlModifier)
    wait_until(lambda: len(panel.results._rows) == 1)
    assert panel.ui.promptEdit.plainText == "ball"


def test_enter_makes_a_new_line(panel):
    typed(panel, "zzz")
    press(panel, key=Key.Key_Return)
    typed(panel, "yyy")
    assert panel.segment.prompts.lines() == ["zzz", "yyy"]
    assert panel.parameters.prompts == "zzz\nyyy"


def test_a_line_is_completed_with_the_keyboard(panel):
    typed(panel, "first")
    press(panel, key=Key.Key_Escape)
    press(panel, key=Key.Key_Return)
    typed(panel, "glio")
    completer = panel.segment.prompts._completer
    assert completer.popup().visible and completer.completionCount() > 1
    press(panel, key=Key.Key_Down)
    press(panel, key=Key.Key_Return)
    lines = panel.segment.prompts.lines()
    assert lines[0] == "first" and "glio" in lines[1].lower() and len(lines[1]) > 4 and len(lines) == 2
    assert panel.parameters.prompts.splitlines() == lines
    assert not completer.popup().visible
    press(panel, key=Key.Key_Return)
    typed(panel, "qq")
    assert panel.segment.prompts.lines() == [*lines, "qq"]


def test_enter_without_a_choice_is_a_line_break(panel):
    typed(panel, "glio")
    assert panel.segment.prompts._completer.popup().visible
    press(panel, key=Key.Key_Return)
    typed(panel, "qq")
    assert panel.segment.prompts.lines() == ["glio", "qq"]


def test_history_is_kept_for_the_user_and_the_scene(panel, scene):
    show_in_views(panel.parameters.inputVolume)
    panel.ui.promptEdit.setPlainText("ball\nother ball")
    panel.ui.applyButton.click()
    wait_until(lambda: panel.session.state == "idle")
    panel.segment.prompts.onHistoryMenu()
    menu = panel.ui.promptHistoryButton.menu()
    assert [action.text for action in menu.actions()][:2] == ["ball", "other ball"]
    scene.Clear(0)
    assert panel.ui.promptEdit.plainText == ""
    panel.segment.prompts.onHistoryMenu()
    menu.actions()[1].trigger()
    assert panel.ui.promptEdit.plainText == "other ball"
    menu.actions()[0].trigger()
    assert panel.segment.prompts.lines() == ["other ball", "ball"]
    menu.actions()[-1].trigger()  # forget
    panel.segment.prompts.onHistoryMenu()
    assert not menu.actions()[0].enabled


def test_examples_by_task(panel):
    panel.segment.prompts.onExamplesMenu()
    tasks = [action.text for action in panel.ui.promptSetsButton.menu().actions()]
    assert tasks[:4] == ["Brain MRI", "Breast ultrasound", "Chest CT", "Chest X-ray"]
    assert tasks[4:] == ["", "Write with a language model…"]
    submenu = panel.ui.promptSetsButton.menu().actions()[tasks.index("Brain MRI")].menu()
    assert any(action.toolTip.startswith("set:brain-mri-p4") for action in submenu.actions())
    submenu.actions()[0].trigger()
    assert panel.segment.prompts.lines() == [submenu.actions()[0].toolTip]
