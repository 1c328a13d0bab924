"""PythonQt's rules, as far as the double keeps them."""

from __future__ import annotations

import functools

import ctk
import pytest
import qt
import slicer
import slicer_double
from slicer_double import dialogs
from slicer_double.collect import NotInDoubleError


def collected() -> str:
    """What was collected so far, as text."""
    with pytest.raises(AssertionError) as caught:
        slicer_double.check()
    return str(caught.value)


def test_a_property_is_a_value():
    button = qt.QPushButton("Run")
    assert (button.text, button.enabled, button.visible, button.name) == ("Run", True, False, "")
    with pytest.raises(TypeError):
        button.text()
    button.text = "Stop"
    assert button.text == "Stop"
    assert isinstance(button.sizeHint, qt.QSize)


@pytest.mark.parametrize("value", [None, object()])
def test_a_property_refuses_what_it_cannot_be(value):
    with pytest.raises(AttributeError, match="does not accept"):
        qt.QPushButton().text = value


def test_what_the_application_has_not_raises():
    button, table = qt.QPushButton(), qt.QTableWidget(1, 1)
    for target in (button, table, table.horizontalHeader(), ctk.ctkSliderWidget(), slicer.qMRMLNodeComboBox()):
        with pytest.raises(AttributeError):
            target.noSuchName  # noqa: B018
        with pytest.raises(AttributeError):
            target.noSuchName = 1
    with pytest.raises(AttributeError, match="no attribute 'selectFile'"):
        button.selectFile  # noqa: B018
    with pytest.raises(AttributeError, match="method or a signal"):
        button.click = None
    with pytest.raises(AttributeError, match="not writable"):
        table.x = 3


def test_what_only_qt_6_has_is_refused():
    with pytest.raises(AttributeError, match="in the application"):
        qt.QTableWidget().initViewItemOption  # noqa: B018


@pytest.mark.parametrize("module, name", [(qt, "QFoo"), (ctk, "ctkFoo"), (slicer, "qMRMLFoo"), (qt, "QGraphicsView")])
def test_unknown_classes_raise(module, name):
    with pytest.raises(AttributeError):
        getattr(module, name)


def test_what_the_double_lacks_is_said():
    with pytest.raises(NotInDoubleError, match="not in the double"):
        ctk.ctkDynamicSpacer  # noqa: B018


@pytest.mark.parametrize("name", ["QHeaderView", "QShortcut"])
def test_some_classes_need_arguments(name):
    with pytest.raises(TypeError):
        getattr(qt, name)()


def test_signals_are_connected_by_signature():
    box, got = qt.QComboBox(), []
    box.connect("currentIndexChanged(int)", got.append)
    box.addItems(["a", "b"])
    box.currentIndex = 1
    assert got == [0, 1]
    assert box.disconnect("currentIndexChanged(int)", got.append)
    assert not box.disconnect("currentIndexChanged(int)", got.append)
    box.currentIndex = 0
    assert got == [0, 1]
    for unknown in ("currentIndexChanged(float)", "changed()", "currentIndexChanged"):
        with pytest.raises(AttributeError, match="no signal"):
            box.connect(unknown, got.append)
    with pytest.raises(NotInDoubleError):
        box.connect("currentIndexChanged(QString)", got.append)  # Qt 5 only
    with pytest.raises(TypeError, match="not callable"):
        box.connect("currentIndexChanged(int)", None)


def test_arguments_are_cut_to_what_a_function_takes_but_not_a_partial():
    button, got = qt.QPushButton(), []
    button.connect("clicked(bool)", lambda: got.append("none"))
    button.connect("clicked()", lambda checked="default": got.append(checked))
    button.connect("clicked(bool)", functools.partial(lambda *values: got.append(values), 1))
    button.click()
    assert got == ["none", "default", (1, False)]


def test_exceptions_in_slots_and_timers_are_collected():
    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    button.clicked.connect(lambda: [][1])
    button.click()
    text = collected()
    assert "ZeroDivisionError" in text and "IndexError" in text
    qt.QTimer.singleShot(0, lambda: int("x"))
    slicer.app.processEvents()
    assert "ValueError" in collected()
    timer = qt.QTimer()
    timer.connect("timeout()", lambda: {}["key"])
    timer.start(0)
    slicer.app.processEvents()
    timer.stop()
    assert "KeyError" in collected()


def test_a_slot_that_wants_too_much_is_collected():
    button = qt.QPushButton()
    button.connect("clicked()", lambda checked: None)
    button.click()
    assert "TypeError" in collected()


def test_python_subclasses_take_attributes_and_override_events():
    class Field(qt.QPlainTextEdit):
        def __init__(self):
            super().__init__()
            self.seen = []

        def keyPressEvent(self, event):
            self.seen.append(event.key())

    class Watcher(qt.QObject):
        seen = 0

        def eventFilter(self, target, event):
            self.seen += 1
            return False

    field, watcher = Field(), Watcher()
    field.installEventFilter(watcher)
    event = qt.QKeyEvent(qt.QEvent.KeyPress, qt.Qt.Key_A, qt.Qt.NoModifier)
    qt.QApplication.sendEvent(field, event)
    assert field.seen == [qt.Qt.Key_A] and watcher.seen >= 1
    with pytest.raises(AttributeError):
        field.noSuchMethod()


def test_lists_are_tuples_and_enums_are_integers():
    box = qt.QComboBox()
    assert isinstance(qt.QWidget().children(), tuple)
    assert slicer.qMRMLNodeComboBox().nodeTypes == ()
    assert qt.Qt.Checked == 2 and qt.QMessageBox.Ok | qt.QMessageBox.Cancel == 0x400400
    assert box.insertPolicy == qt.QComboBox.InsertAtBottom
    assert box.className() == "QComboBox" and ctk.ctkSliderWidget().className() == "ctkSliderWidget"


def test_methods_take_no_keywords():
    with pytest.raises(TypeError):
        qt.QLabel().setText(text="x")


def test_settings_come_back_as_after_a_restart():
    settings = qt.QSettings()
    for value, back in ((["a", "b"], ("a", "b")), (True, "true"), (3, "3"), ("x", "x")):
        settings.setValue("key", value)
        assert qt.QSettings().value("key") == back
    assert slicer.util.settingsValue("key", "x") == "x"
    settings.remove("key")
    assert settings.value("key", 5) == 5


def test_dialogs_are_answered_with_bare_values_and_never_wait():
    dialogs.answer("/a", "text", qt.QMessageBox.Yes)
    assert qt.QFileDialog.getExistingDirectory(None, "Choose") == "/a"
    assert qt.QInputDialog.getText(None, "Name", "Name:") == "text"
    assert qt.QMessageBox.question(None, "Sure", "Sure?") == qt.QMessageBox.Yes
    assert dialogs.shown[0].kind == "QFileDialog.getExistingDirectory"
    with pytest.raises(AssertionError, match="wait for the user"):
        qt.QMessageBox().exec_()
    assert "wait for the user" in collected()
    dialogs.answer("left over")
    with pytest.raises(AssertionError, match="left over"):
        dialogs.clear()


def test_qt_and_vtk_messages_are_collected(scene):
    parent = qt.QWidget()
    qt.QVBoxLayout(parent)
    qt.QVBoxLayout(parent)
    assert "already has a layout" in collected()
    slicer_double.check()
    scene.AddNode(None)
    assert "VTK: ERROR" in collected()
