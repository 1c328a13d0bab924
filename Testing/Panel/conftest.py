"""Fixtures of the panel tests: the module in the test double of Slicer.

These files are run by ``Testing/Python/test_panel.py`` and ``test_slicer_double.py``, each in a process of its own.
To run one by hand:

    pytest -c pyproject.toml Testing/Panel/panel_test_x.py

Files named ``*_test_window*.py`` get an application with a main window and three slice views; the others one
without, as with ``--no-main-window``. MEDCLIPSAM_MODULE names another MedCLIPSAM.py, for instance an installed one.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "Testing" / "SlicerDouble"))
MODULE = Path(os.environ.get("MEDCLIPSAM_MODULE", ROOT / "MedCLIPSAM" / "MedCLIPSAM.py"))
_EXIT_CODE = pytest.StashKey[int]()
WINDOW_PREFIXES = ("panel_test_window", "double_test_window")


def pytest_configure(config: pytest.Config) -> None:
    """Install the double before any test file imports ``qt`` or ``slicer``."""
    import slicer_double

    files = {Path(arg.partition("::")[0]).name for arg in config.args}
    slicer_double.install(main_window=any(name.startswith(WINDOW_PREFIXES) for name in files))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the exit code for the end."""
    session.config.stash[_EXIT_CODE] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End at once: on the way out Python would take VTK and PySide6 apart in any order, and sometimes crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _EXIT_CODE in config.stash:
        atexit._run_exitfuncs()  # temporary folders, child processes
        os._exit(config.stash[_EXIT_CODE])


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Fail on exceptions in slots, on Qt's and VTK's messages, and on dialog answers that nobody asked for."""
    import slicer
    import slicer_double
    from slicer_double import dialogs

    slicer_double.check()
    yield
    slicer.app.processEvents()
    slicer.mrmlScene.Clear(0)
    slicer.app.processEvents()
    dialogs.clear()
    slicer_double.check()


@pytest.fixture
def scene() -> Any:
    """The application's scene, emptied after each test."""
    import slicer

    return slicer.mrmlScene


@pytest.fixture
def module() -> Iterator[Any]:
    """The module, registered as by the application's factory; its panel is not made yet."""
    import slicer_double

    loaded = slicer_double.load_module(str(MODULE))
    yield loaded
    slicer_double.unload_module("MedCLIPSAM")


@pytest.fixture
def widget(module: Any) -> Any:
    """The Python side of the panel, set up and entered."""
    representation = module.widgetRepresentation()
    representation.enter()
    return representation.self()
