"""What went wrong where no caller sees it: in slots, in Qt's and VTK's own messages.

The application prints such things and goes on. A test must fail, so the double keeps them and ``check`` raises them.
"""

from __future__ import annotations

import sys
from types import TracebackType

from PySide6 import QtCore

problems: list[str | BaseException] = []
HARMLESS = ("propagateSizeHints", "This plugin does not support", "QFontDatabase: Cannot find font directory")


class NotInDoubleError(NotImplementedError):
    """The application has it, but this double does not: extend the double, or do without."""


def record(problem: str | BaseException) -> None:
    """Keep a problem for ``check``."""
    problems.append(problem)


def check() -> None:
    """Raise what was collected, once.

    Raises:
        AssertionError: something was collected; the first exception is its cause.
    """
    found, problems[:] = problems[:], []
    if found:
        cause = next((item for item in found if isinstance(item, BaseException)), None)
        texts = [item if isinstance(item, str) else f"{type(item).__name__}: {item}" for item in found]
        raise AssertionError("outside any caller: " + "; ".join(texts)) from cause


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    record(error.with_traceback(trace))
    sys.__excepthook__(kind, error, trace)


def _qt_message(kind: QtCore.QtMsgType, _context: object, text: str) -> None:
    if kind != QtCore.QtMsgType.QtDebugMsg and not any(part in text for part in HARMLESS):
        record(f"Qt: {text}")


def watch() -> None:
    """Collect uncaught exceptions, Qt's warnings and VTK's errors from now on."""
    import vtk

    sys.excepthook = _uncaught
    sys.unraisablehook = lambda args: record(args.exc_value or str(args.err_msg))
    QtCore.qInstallMessageHandler(_qt_message)

    def vtk_error(_caller: object, _event: str, text: str) -> None:
        record(f"VTK: {text.strip()}")

    vtk_error.CallDataType = vtk.VTK_STRING
    window = vtk.vtkOutputWindow()
    window.SetDisplayModeToNever()
    window.AddObserver("ErrorEvent", vtk_error)
    vtk.vtkOutputWindow.SetInstance(window)
