"""``slicer.modules`` and the opening of a scripted module, as the application's module factory does it."""

# ruff: noqa: N801, N802 (names of the application)
from __future__ import annotations

import importlib.util
import os
import sys
from types import SimpleNamespace

import slicer
from PySide6 import QtCore, QtWidgets

from .api import module_names
from .collect import NotInDoubleError
from .mrml_widgets import qMRMLWidget
from .scene import World


class Modules:
    """``slicer.modules``"""

    def __init__(self, world: World) -> None:
        for name, logic in world.logics.items():
            module = SimpleNamespace(name=name, logic=lambda logic=logic: logic, path="", title=name)
            setattr(self, name, module)

    def __getattr__(self, name: str) -> object:
        if name in module_names():
            raise NotInDoubleError(f"slicer.modules.{name} is not in the double")
        raise AttributeError(f"slicer.modules has no {name!r}")


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The C++ side of a panel: the ``parent`` that its Python class is given."""

    def self(self) -> object:
        """The Python object."""
        return self._values["python"]

    def isEntered(self) -> bool:
        """Whether the panel is shown."""
        return self._values.get("entered", False)

    def enter(self) -> None:
        """The application shows the panel."""
        self._values["entered"] = True
        getattr(self._values["python"], "enter", lambda: None)()

    def exit(self) -> None:
        """The application shows another panel."""
        self._values["entered"] = False
        getattr(self._values["python"], "exit", lambda: None)()

    def reload(self) -> None:
        """Make the Python object again, from the class that the module's file now has."""
        _make_python(self, self._values["module"])


class qSlicerScriptedLoadableModule:
    """The C++ side of a module: takes title, categories and so on."""

    _FIELDS = """
    title categories contributors dependencies associatedNodeTypes helpText acknowledgementText icon hidden path
    name index
    """
    FIELDS = tuple(_FIELDS.split())

    def __init__(self, name: str, path: str) -> None:
        self.__dict__.update(name=name, path=path)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self.FIELDS and not name.startswith("_"):
            raise AttributeError(f"a module has no property {name!r}")
        self.__dict__[name] = tuple(value) if isinstance(value, list) else value

    def widgetRepresentation(self) -> qSlicerScriptedLoadableModuleWidget:
        """The panel, made and set up when first asked for."""
        if "_panel" not in self.__dict__:
            panel = qSlicerScriptedLoadableModuleWidget()
            QtWidgets.QVBoxLayout(panel)
            panel.setMRMLScene(slicer.mrmlScene)
            panel._values["module"] = self
            self._panel = panel
            _make_python(panel, self)
        return self._panel

    def createNewWidgetRepresentation(self) -> object:
        """A second panel: not in the double."""
        raise NotInDoubleError("createNewWidgetRepresentation")


def _make_python(panel: qSlicerScriptedLoadableModuleWidget, module: qSlicerScriptedLoadableModule) -> None:
    widget = getattr(sys.modules[module.name], f"{module.name}Widget")(panel)
    panel._values["python"] = widget
    setattr(slicer.modules, f"{module.name}Widget", widget)
    widget.setup()


def load_module(path: str) -> qSlicerScriptedLoadableModule:
    """Import a module's file and register it; its panel is not made yet.

    Args:
        path: file of the module; a class of the file's name must be in it.
    """
    name = os.path.splitext(os.path.basename(path))[0]
    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, path)
    code = importlib.util.module_from_spec(spec)
    sys.modules[name] = code
    spec.loader.exec_module(code)
    module = qSlicerScriptedLoadableModule(name, os.path.abspath(path))
    setattr(slicer.modules, name.lower(), module)
    slicer.app.moduleManager()._modules[name] = module
    instance = getattr(code, name)(module)
    module._instance = instance
    setattr(slicer.modules, f"{name}Instance", instance)
    return module


def unload_module(name: str) -> None:
    """End a module's panel as the application does at exit."""
    manager = slicer.app.moduleManager()
    module = manager._modules.pop(name)
    if "_panel" in module.__dict__:
        module._panel._values["python"].cleanup()
        module._panel.setMRMLScene(None)
        QtCore.QObject.deleteLater(module._panel)
        QtWidgets.QApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
    for attribute in (name.lower(), f"{name}Widget", f"{name}Instance"):
        slicer.modules.__dict__.pop(attribute, None)
