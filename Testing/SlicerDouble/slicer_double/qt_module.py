"""The module ``qt``: PySide6's classes under PythonQt's rules, and no others than the application has."""

from __future__ import annotations

import types

from PySide6 import QtCore, QtGui, QtWidgets

from . import collect
from .api import class_api
from .qt_values import VALUES


def native_class(name: str) -> type:
    """PySide6's class of this name.

    Raises:
        AttributeError: Qt has no such class.
    """
    for module in (QtWidgets, QtGui, QtCore):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"Qt has no class {name!r}")


class QtModule(types.ModuleType):
    """``import qt``"""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        record = class_api(name)
        if name not in VALUES and (record is None or record.namespace != "qt"):
            raise AttributeError(f"qt.{name} is not among the application's classes that this project may use")
        return native_class(name)


def _setting(self: QtCore.QSettings, key: str, default: object = None) -> object:
    """A value as after a restart: text, or a tuple of texts; ``default`` as it is."""
    value = _native_setting(self, key)
    if value is None:
        return default
    if isinstance(value, (list, tuple)):
        return tuple(_text(item) for item in value)
    return _text(value)


def _text(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else value


_native_setting = QtCore.QSettings.value


def make(folder: str) -> QtModule:
    """The module, with settings kept below ``folder``."""
    from .loader import Loader

    module = QtModule("qt", "Test double of Slicer's qt module.")
    module.QUiLoader = Loader
    QtCore.QSettings.value = _setting
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, QtCore.QSettings.Scope.UserScope, folder)
    single_shot = QtCore.QTimer.singleShot

    def guarded_single_shot(msec: int, slot: object) -> None:
        def call() -> None:
            try:
                slot()
            except Exception as error:
                collect.record(error)

        single_shot(msec, call)

    QtCore.QTimer.singleShot = staticmethod(guarded_single_shot)
    return module
