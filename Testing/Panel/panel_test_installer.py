"""The installer: what it asks, in what order it installs, and what it says when that fails."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

pytest_plugins = ["setup_fixtures"]


def test_slicer_5_10_gets_one_list_of_arguments(world, lacking, monkeypatch):
    from MedCLIPSAMPanel.installer import Installer

    calls = []
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)  # importing it fails, as there

    def pip_install(requirements):
        assert isinstance(requirements, list)
        calls.append(requirements)
        assert Path(requirements[requirements.index("-c") + 1]).read_text().startswith("numpy==")
        lacking()

    monkeypatch.setattr(world.slicer.util, "pip_install", pip_install)
    lacking("safetensors")
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    assert Installer().install(["segmentation"]) == "installed"
    assert len(calls) == 1
    assert "safetensors>=0.4" in calls[0]


def test_testing_mode_never_installs(world, lacking, pytorch, monkeypatch):
    from MedCLIPSAMPanel import installer
    from MedCLIPSAMPanel.settings import setSetting, setting

    monkeypatch.setitem(world.slicer.app._values, "testing", True)
    lacking("torch", "tokenizers")
    assert installer.Installer().install(["segmentation"]) == "declined"
    setSetting(installer.PENDING, f"{int(time.time())} segmentation")
    installer.resumePendingInstall()
    assert setting(installer.PENDING, "") != ""  # it is for a session with a user
    assert world.pip == []
    assert pytorch == []


def test_a_restart_that_did_not_help_is_not_repeated(world, lacking, monkeypatch, caplog):
    from MedCLIPSAMPanel import installer
    from MedCLIPSAMPanel.settings import setSetting, setting

    monkeypatch.setattr(world.slicer.util, "restart", lambda: pytest.fail("restarted again"))
    lacking("torch")
    setSetting(installer.PENDING, f"{int(time.time())} segmentation")
    with caplog.at_level("ERROR"):  # without a main window Slicer's errorDisplay only logs
        installer.resumePendingInstall()
    assert "Extensions Manager" in caplog.text
    assert setting(installer.PENDING, "") == ""


@pytest.mark.parametrize("marker", ["12 segmentation", "nonsense segmentation", f"{10**12} x"])
def test_an_old_or_broken_marker_is_dropped(world, lacking, marker):
    from MedCLIPSAMPanel import installer
    from MedCLIPSAMPanel.settings import setSetting, setting

    lacking("torch")
    if marker.endswith(" x"):
        marker = f"{int(time.time())} no-such-group"  # a message, not a crash at Slicer's start
    setSetting(installer.PENDING, marker)
    installer.resumePendingInstall()
    assert setting(installer.PENDING, "") == ""
    assert world.pip == []


def test_a_failing_pip_is_explained(world, lacking, monkeypatch):
    from MedCLIPSAMPanel.installer import Installer, InstallError

    def pip_install(requirements, **keywords):
        print("Could not fetch URL: SSLError(SSLCertVerificationError('certificate verify failed'))")
        raise subprocess.CalledProcessError(1, "pip install")

    monkeypatch.setattr(sys.modules["slicer.packaging"], "pip_install", pip_install)
    lacking("tokenizers")
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    with pytest.raises(InstallError, match=r"tokenizers could not be installed\. .*PIP_CERT"):
        Installer().install(["segmentation"])
    assert world.slicer.app.overrideCursor() is None


def test_success_without_an_effect_is_a_failure(world, lacking):
    from MedCLIPSAMPanel.installer import Installer, InstallError

    lacking("tokenizers")
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    with pytest.raises(InstallError, match=r"tokenizers>=0\.20: not installed"):
        Installer().install(["segmentation"])  # the double's pip does nothing
    assert len(world.pip) == 1


def test_torch_of_a_wrong_version_is_replaced_but_not_while_it_is_loaded(world, lacking, pytorch, monkeypatch):
    from MedCLIPSAMLib import dependencies
    from MedCLIPSAMPanel import installer

    real = dependencies._version
    monkeypatch.setattr(dependencies, "_version", lambda name: "2.9.1" if name == "torch" else real(name))
    monkeypatch.setattr(installer.Installer, "_tellAfterwards", lambda self, names: None)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    assert installer.Installer().install(["segmentation"]) == "installed"
    assert [one[0] for one in pytorch] == ["uninstall", "install"]
    restarts = []
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setattr(world.slicer.util, "restart", lambda: restarts.append(1))
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    assert installer.Installer().install(["segmentation"]) == "restarting"
    assert restarts == [1]
    with pytest.raises(installer.InstallError, match="Disable that extension"):
        installer.Installer().install(["segmentation"], asked=True)


def test_other_threads_are_refused(world):
    from MedCLIPSAMPanel.installer import Installer, InstallError

    caught = []

    def work():
        try:
            Installer().install(["segmentation"])
        except InstallError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])
