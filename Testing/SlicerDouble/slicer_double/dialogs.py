"""Dialogs that would wait for a user: answered from a list that the test fills, and kept to be looked at.

    dialogs.answer("/data/out")                # the next dialog returns this
    widget.ui.folderButton.click()
    assert dialogs.shown[-1].kind == "QFileDialog.getExistingDirectory"

A dialog without a prepared answer is an error, since in a test it would wait for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from PySide6 import QtWidgets

from . import collect

STATIC = {
    "QFileDialog": ("getExistingDirectory", "getOpenFileName", "getOpenFileNames", "getSaveFileName"),
    "QInputDialog": ("getText", "getItem", "getInt", "getDouble", "getMultiLineText"),
    "QMessageBox": ("question", "information", "warning", "critical", "about"),
}


@dataclass(frozen=True)
class Shown:
    """A dialog that was asked for: what it was, and its arguments or its texts."""

    kind: str
    texts: tuple


shown: list[Shown] = []
_answers: list[object] = []


def answer(*values: object) -> None:
    """Prepare what the next dialogs return, in order."""
    _answers.extend(values)


def clear() -> None:
    """Forget prepared answers and shown dialogs.

    Raises:
        AssertionError: a prepared answer was never asked for.
    """
    left, _answers[:] = _answers[:], []
    shown.clear()
    if left:
        raise AssertionError(f"prepared answers that no dialog asked for: {left!r}")


def ask(kind: str, *texts: object) -> object:
    """Return the next prepared answer.

    Raises:
        AssertionError: none was prepared.
    """
    shown.append(Shown(kind, texts))
    if not _answers:
        error = AssertionError(f"{kind}{texts!r} would wait for the user; prepare dialogs.answer(...)")
        collect.record(error)
        raise error
    return _answers.pop(0)


def _static(kind: str) -> staticmethod:
    return staticmethod(lambda *values: ask(kind, *values))  # one bare value, where PySide gives a tuple


def _exec(self: QtWidgets.QDialog) -> object:
    kind = type(self).__name__
    if isinstance(self, QtWidgets.QMessageBox):
        texts = (QtWidgets.QMessageBox.text(self), QtWidgets.QMessageBox.informativeText(self))
    elif isinstance(self, QtWidgets.QMenu):
        texts = tuple(action.text for action in QtWidgets.QMenu.actions(self))
    else:
        texts = (QtWidgets.QWidget.windowTitle(self),)
    return ask(kind, *texts)


def install() -> None:
    """Replace Qt's waiting functions."""
    for class_name, names in STATIC.items():
        for name in names:
            setattr(getattr(QtWidgets, class_name), name, _static(f"{class_name}.{name}"))
    for kind in (QtWidgets.QDialog, QtWidgets.QMessageBox, QtWidgets.QFileDialog, QtWidgets.QInputDialog):
        kind.exec = _exec
    QtWidgets.QMenu.exec = lambda self, *_position: _exec(self)
