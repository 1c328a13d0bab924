"""Fixtures for the section Setup and the installer: pip is kept from installing, everything else is real."""

from __future__ import annotations

import sys
import types

import pytest
import slicer_double


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
