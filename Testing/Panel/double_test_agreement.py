"""Everything that the double offers is in the application, by the application's own record."""

from __future__ import annotations

import inspect

import pytest
import qt
import slicer
from slicer_double.api import class_api, functions, module_names, scripted_names
from slicer_double.lint_names import UTIL_CLASSES, signature
from slicer_double.qt_values import VALUES
from slicer_double.stand_ins import STAND_INS

OVERRIDES = ("event", "paintEvent", "hitButton")  # of Qt's virtual functions


@pytest.mark.parametrize("name", sorted(STAND_INS))
def test_a_stand_in_offers_nothing_that_the_application_has_not(name):
    kind, record = STAND_INS[name], class_api(name)
    assert record is not None and record.namespace == ("ctk" if name.startswith("ctk") else "slicer")
    own = {key for key in vars(kind) if not key.startswith("_") and key != "staticMetaObject"}
    assert own - set(OVERRIDES) <= record.names
    for key in own:
        if isinstance(vars(kind)[key], property):
            assert key in record.properties, f"{key} is a method there"
            assert not record.properties[key][1] or vars(kind)[key].fset, f"{key} can be set there"
        elif inspect.isfunction(vars(kind)[key]) and key not in OVERRIDES:
            assert key not in record.properties, f"{key} is a property there"
    assert set(kind._emits) <= record.signals


@pytest.mark.parametrize("name", sorted(STAND_INS))
def test_a_stand_in_keeps_its_properties_and_refuses_other_names(name):
    widget, record = STAND_INS[name](), class_api(name)
    for key in sorted(record.properties):
        try:
            value = getattr(widget, key)
        except NotImplementedError:
            continue
        if record.properties[key][1] and isinstance(value, bool) and key not in ("visible", "down"):
            setattr(widget, key, value)
            assert getattr(widget, key) == value
    base = {key for parent in type(widget).__mro__[1:] for key in vars(parent) if not key.startswith("_")}
    written = "lambda widget: widget.{}"
    for key in sorted(base - record.names)[:40]:
        if not key.endswith("Event"):
            with pytest.raises(AttributeError):
                eval(written.format(key))(widget)
    widget.deleteLater()


def test_qt_classes_offer_nothing_else():
    for name in ("QPushButton", "QTableWidget", "QTextEdit", "QComboBox", "QTimer", "QFormLayout", "QProgressBar"):
        record, made = class_api(name), getattr(qt, name)()
        assert record.namespace == "qt"
        extra = [key for key in dir(type(made)) if key not in record.names and not key.startswith("_")]
        for key in [key for key in extra if not key.endswith("Event")][:60]:
            with pytest.raises(AttributeError):
                eval(f"lambda made: made.{key}")(made)


def test_slicer_util_is_the_applications():
    listed = functions("slicer.util")
    have = {key for key, value in vars(slicer.util).items() if inspect.isfunction(value) and not key.startswith("_")}
    assert have <= listed.keys()
    kept = ("loadUI", "childWidgetVariables", "confirmOkCancelDisplay", "errorDisplay", "setSliceViewerLayers")
    for name in (*kept, "selectModule", "settingsValue", "reloadScriptedModule", "pip_install", "showStatusMessage"):
        assert list(inspect.signature(getattr(slicer.util, name)).parameters) == list(
            signature(listed[name]).parameters
        )
    assert {"VTKObservationMixin", "WaitCursor"} <= UTIL_CLASSES


def test_packaging_takes_the_applications_parameters():
    import slicer.packaging
    from slicer_double import slicer_parts

    listed = functions("slicer.packaging")
    for name, text in listed.items():
        assert callable(getattr(slicer.packaging, name)), text
    slicer_parts.pip_calls.clear()
    slicer.util.pip_install("numpy", constraints="c.txt")
    assert slicer_parts.pip_calls == [("pip_install", ("numpy",), {"constraints": "c.txt"})]
    with pytest.raises(TypeError):
        slicer.packaging.pip_install("numpy", no_such=1)
    assert slicer.packaging.pip_check("numpy") and not slicer.packaging.pip_check(["numpy", "no-such-package"])


def test_scripted_classes_and_modules_are_the_applications():
    import slicer.ScriptedLoadableModule as scripted

    for name in ("ScriptedLoadableModule", "ScriptedLoadableModuleWidget", "ScriptedLoadableModuleLogic"):
        own = {key for key in vars(getattr(scripted, name)) if not key.startswith("__")}
        assert own == scripted_names(name)
    test_names = {key for key in vars(scripted.ScriptedLoadableModuleTest) if not key.startswith("_")}
    assert test_names <= scripted_names("ScriptedLoadableModuleTest")
    assert set(vars(slicer.modules)) <= module_names()
    with pytest.raises(AttributeError):
        slicer.modules.nosuchmodule  # noqa: B018


def test_the_application_object_offers_nothing_else():
    record = class_api("qSlicerApplication")
    own = {key for key in vars(type(slicer.app)) if not key.startswith("_") and key != "staticMetaObject"}
    assert own <= record.names
    with pytest.raises(AttributeError):
        slicer.app.noSuchName  # noqa: B018
    assert slicer.app.layoutManager() is None and slicer.util.mainWindow() is None
    assert slicer.util.setSliceViewerLayers(background=None, fit=True) is None


def test_value_classes_are_qts():
    for name in VALUES:
        assert getattr(qt, name) is not None
