"""A test double of the 3D Slicer application: enough of ``qt``, ``ctk`` and ``slicer`` to run a panel without it.

The panel runs on PySide6 (offscreen) with PythonQt's rules, and on the real MRML of slicer-core. It is a double: that a
panel works here does not prove that it works in Slicer. It is strict, so that what fails here would most likely fail
there: unknown classes, properties, signals and methods raise (see ``api``), exceptions in slots, Qt's warnings and
VTK's errors are collected and raised by ``check``. What cannot be shown here: the real widgets' looks and timing,
PythonQt's conversions and lifetimes, Qt 5.15 itself, the real layout manager and views.

    import slicer_double
    slicer_double.install()
    module = slicer_double.load_module(".../MedCLIPSAM.py")
    widget = slicer.util.getModuleWidget("MedCLIPSAM")
    ...
    slicer_double.check()

It changes the process for good: run it in a process of its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

_installed: dict[str, object] = {}


def install(main_window: bool = False, testing: bool = True) -> None:
    """Put ``qt``, ``ctk`` and the missing parts of ``slicer`` into this process.

    Args:
        main_window: with a main window and three slice views; otherwise as with ``--no-main-window``.
        testing: as with ``--testing``: confirmations are answered with yes, messages are not shown.

    Raises:
        RuntimeError: installed before with other settings.
    """
    settings = {"main_window": main_window, "testing": testing}
    if _installed:
        if _installed != settings:
            raise RuntimeError(f"the double was installed with {_installed}, not {settings}; use another process")
        return
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    folder = tempfile.mkdtemp(prefix="slicer-double-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    from . import native, pythonqt  # noqa: F401  (native decides how PySide6 is loaded)

    pythonqt.install_rules()
    import slicer

    from . import application, collect, dialogs, look, qt_module, scene, slicer_parts

    collect.watch()
    dialogs.install()
    sys.modules["qt"] = qt_module.make(os.path.join(folder, "settings"))
    app = application.qSlicerApplication(["Slicer"])
    app.setOrganizationName("NA-MIC")
    look.apply(app)
    world = scene.build(Path(folder) / "share")
    slicer.app, slicer.mrmlScene = app, world.scene
    slicer_parts.install(world)
    app._start(world, folder, main_window, testing)
    _installed.update(settings)


def check() -> None:
    """Raise what went wrong in slots and in Qt's and VTK's messages since the last call."""
    from . import collect

    collect.check()


def load_module(path: str) -> object:
    """Import and register a scripted module's file, as the application does at its start."""
    from . import modules

    return modules.load_module(path)


def unload_module(name: str) -> None:
    """End a module's panel, as the application does at its end."""
    from . import modules

    modules.unload_module(name)


def answer(*values: object) -> None:
    """Prepare what the next dialogs return, in order."""
    from . import dialogs

    dialogs.answer(*values)


def save_picture(widget: object, path: object, width: int = 460) -> object:
    """Save a picture of a widget as a module panel of ``width`` points shows it."""
    from . import look

    return look.save_picture(widget, path, width)
