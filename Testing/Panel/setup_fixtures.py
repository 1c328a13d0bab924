"""Fixtures for the section Setup and the installer: pip is kept from installing, everything else is real."""

from __future__ import annotations

import sys
import types

import pytest
import slicer_double


class Owner:
    """What the section asks of the panel."""

    def __init__(self, session):
        self.session, self.errors, self.updates, self.polls = session, [], 0, 0

    def showError(self, error):
        self.errors.append(error)

    def setupChanged(self):
        self.updates += 1

    def pollSoon(self):
        self.polls += 1


@pytest.fixture
def world(module, monkeypatch, tmp_path):
    """The application, not in testing mode, with empty settings."""
    import qt
    import slicer
    from slicer_double import dialogs, slicer_parts

    monkeypatch.setitem(slicer.app._values, "testing", False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("MEDCLIPSAM_WEIGHTS", raising=False)
    monkeypatch.delitem(sys.modules, "PyTorchUtils", raising=False)
    qt.QSettings().clear()
    slicer_parts.pip_calls.clear()
    yield types.SimpleNamespace(qt=qt, slicer=slicer, dialogs=dialogs, pip=slicer_parts.pip_calls)
    slicer_double.check()


@pytest.fixture
def section(world):
    """The section alone, with an owner in the panel's place; at the end it must not have reported errors."""
    from MedCLIPSAMLib.resources import resource_path
    from MedCLIPSAMLib.session import Session
    from MedCLIPSAMPanel.setup_section import SetupSection

    widget = world.slicer.util.loadUI(str(resource_path("UI", "MedCLIPSAM.ui")))
    ui = world.slicer.util.childWidgetVariables(widget)
    session = Session(world.slicer.mrmlScene)
    made = SetupSection(ui, Owner(session))
    made._kept = widget
    yield made
    made.cleanup()
    session.close()
    assert made.owner.errors == []


@pytest.fixture
def lacking(monkeypatch):
    """``lacking(names...)``: these distributions are not installed, until they are put back by ``lacking()``."""
    from MedCLIPSAMLib import dependencies

    absent: set[str] = set()
    real = dependencies._version
    monkeypatch.setattr(dependencies, "_version", lambda name: None if name in absent else real(name))
    monkeypatch.setattr(dependencies, "_weights_are_there", lambda package: package not in absent)
    monkeypatch.setattr(dependencies, "check_folder", lambda wanted: None)

    def set_absent(*names: str) -> None:
        absent.clear()
        absent.update(names)

    return set_absent


@pytest.fixture
def pytorch(monkeypatch):
    """The extension PyTorch; what it was asked for is in ``calls``."""
    calls = []

    class PyTorchUtilsLogic:
        def installTorch(self, askConfirmation, torchVersionRequirement, torchvisionVersionRequirement):
            calls.append(("install", askConfirmation, torchVersionRequirement, torchvisionVersionRequirement))

        def uninstallTorch(self):
            calls.append(("uninstall",))

    module = types.ModuleType("PyTorchUtils")
    module.PyTorchUtilsLogic = PyTorchUtilsLogic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)
    return calls
