"""What the section Setup asks of the background process: its device, and a new one that finds what has come."""

from __future__ import annotations

import os

import pytest
from panel_scenes import add_volume, use_stand_in, wait_until

pytest_plugins = ["setup_fixtures"]

LOADING = "Loading the models…"
ENGINE = """
import os, time
from pathlib import Path
import stand_in_engine
from MedCLIPSAMLib.errors import InputError

HERE = Path(__file__).parent

def load(name, preset, device):
    (HERE / "seen").write_text(os.environ.get("MEDCLIPSAM_WEIGHTS", "none"), encoding="utf-8")
    while (HERE / "wait").exists():
        time.sleep(0.01)
    if (HERE / "broken").exists():
        raise InputError("injected: put it right.")
    made = stand_in_engine.load(name, preset, device)
    made.device = "the card" if device == "auto" else "the processor"
    return made
"""


@pytest.fixture
def orders(tmp_path, monkeypatch):
    """The folder of an engine: files "wait" and "broken" in it are orders, in "seen" it tells where weights are."""
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "told_engine.py").write_text(ENGINE, encoding="utf-8")
    use_stand_in(monkeypatch)
    monkeypatch.setenv("MEDCLIPSAM_WORKER_ENGINE", "told_engine:load")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ["PYTHONPATH"]]))
    return folder


@pytest.fixture
def panel(world, module, orders, monkeypatch):
    """The panel, entered, on a volume, as if everything was installed."""
    from MedCLIPSAMPanel.setup_section import SetupSection

    monkeypatch.setattr(SetupSection, "ready", property(lambda self: True))
    monkeypatch.setattr(SetupSection, "lacks", lambda self, engine, preset: None)
    panel = module.widgetRepresentation().self().panel
    add_volume()
    module.widgetRepresentation().enter()
    return panel


@pytest.fixture
def offline(tmp_path):
    """An offline folder."""
    folder = tmp_path / "offline"
    folder.mkdir()
    return folder


def start(panel, prompt):
    """Press Apply for a whole volume, and wait until the child is at work."""
    ui = panel.ui
    ui.promptEdit.setPlainText(prompt)
    ui.scopeComboBox.setCurrentIndex(ui.scopeComboBox.findData("volume"))
    ui.applyButton.click()
    assert panel.session.state == "running"
    wait_until(lambda: panel.session.state == "idle" or panel.session.status.done)


def finish(panel):
    wait_until(lambda: panel.session.state == "idle")


def reopen(panel):
    panel.ui.setupSection.collapsed = True
    panel.ui.setupSection.collapsed = False


def choose_device(panel, name):
    panel.ui.deviceComboBox.setCurrentIndex(panel.ui.deviceComboBox.findData(name))


def begin_loading(panel, orders):
    """Load for the device "auto", as typing a prompt does, until :func:`let_go_on`."""
    (orders / "wait").touch()
    began = panel.session.warm_up("lite", None, "auto")
    wait_until((orders / "seen").exists)
    return began


def let_go_on(orders):
    (orders / "wait").unlink()


def test_an_offline_folder_chosen_during_a_run_holds_for_the_next_one(panel, orders, offline):
    start(panel, "sleep 0.05")
    panel.ui.offlineFolderPath.currentPath = str(offline)
    assert panel.session.state == "running"
    finish(panel)
    assert [row.prompt for row in panel.results._rows] == ["sleep 0.05"]  # the run itself was left alone
    assert (orders / "seen").read_text(encoding="utf-8") == "none"
    start(panel, "ball")
    finish(panel)
    assert (orders / "seen").read_text(encoding="utf-8") == str(offline)
    pid = panel.session.worker.pid
    start(panel, "ball")
    finish(panel)
    assert panel.session.worker.pid == pid  # it was begun anew once


def test_models_loaded_ahead_after_such_a_run_are_those_of_the_next_one(panel, orders, offline):
    start(panel, "sleep 0.05")
    panel.ui.offlineFolderPath.currentPath = str(offline)
    finish(panel)
    reopen(panel)
    wait_until(lambda: panel.ui.deviceLabel.text == "In use: the card")
    assert (orders / "seen").read_text(encoding="utf-8") == str(offline)
    pid = panel.session.worker.pid
    start(panel, "ball")
    finish(panel)
    assert panel.session.worker.pid == pid


def test_packages_that_came_during_a_run_are_found_by_the_next_one(panel, monkeypatch):
    from MedCLIPSAMPanel import installer

    start(panel, "ball")
    finish(panel)
    pid = panel.session.worker.pid

    def install(self, groups):
        start(panel, "sleep 0.05")  # its progress lets the interface work
        return "installed"

    monkeypatch.setattr(installer.Installer, "install", install)
    panel.setup.onInstall()
    assert "run is going on" not in panel.ui.logEdit.plainText
    assert panel.session.state == "running" and panel.session.worker.pid == pid
    finish(panel)
    start(panel, "ball")
    finish(panel)
    assert panel.session.worker.pid != pid


def test_a_loading_that_fails_is_no_longer_shown_and_asked_for_again(panel, orders):
    label = panel.ui.deviceLabel
    (orders / "broken").touch()
    reopen(panel)
    assert label.text == LOADING
    wait_until(lambda: label.text == "")
    log = panel.ui.logEdit.plainText
    assert "injected" in log and "models are loaded" not in log
    (orders / "broken").unlink()
    reopen(panel)
    assert label.text == LOADING
    wait_until(lambda: label.text == "In use: the card")
    reopen(panel)
    assert label.text == "In use: the card"  # asked once


def test_a_loading_that_is_cut_off_is_no_longer_shown_and_asked_for_again(panel, orders, offline):
    label = panel.ui.deviceLabel
    (orders / "wait").touch()
    reopen(panel)
    wait_until((orders / "seen").exists)
    assert label.text == LOADING
    panel.ui.offlineFolderPath.currentPath = str(offline)
    assert label.text == ""
    let_go_on(orders)
    reopen(panel)
    assert label.text == LOADING
    wait_until(lambda: label.text == "In use: the card")
    assert (orders / "seen").read_text(encoding="utf-8") == str(offline)


def test_while_others_load_the_device_waits_for_its_turn(panel, orders):
    label = panel.ui.deviceLabel
    begin_loading(panel, orders)
    panel.ui.setupSection.collapsed = False
    choose_device(panel, "cpu")
    assert label.text == LOADING
    shown = []
    show = panel.setup.showDevice
    panel.setup.showDevice = lambda data: (show(data), shown.append((data["device"], label.text)))
    let_go_on(orders)
    wait_until(lambda: label.text == "In use: the processor")
    assert shown == [("the card", LOADING), ("the processor", "In use: the processor")]


def test_a_loading_of_others_for_the_same_device_is_an_answer(panel, orders):
    begin_loading(panel, orders)
    reopen(panel)
    assert panel.ui.deviceLabel.text == LOADING
    let_go_on(orders)
    wait_until(lambda: panel.ui.deviceLabel.text == "In use: the card")
    assert panel.session.wait(1.0) == []  # nothing was asked on top


def test_when_a_loading_of_others_fails_the_device_is_asked_for_once(panel, orders):
    begin_loading(panel, orders)
    panel.ui.setupSection.collapsed = False
    choose_device(panel, "cpu")
    (orders / "broken").touch()
    let_go_on(orders)
    wait_until(lambda: panel.ui.deviceLabel.text == "")
    wait_until(lambda: panel.ui.logEdit.plainText.count("injected") == 2)  # theirs and its own
    assert panel.session.wait(1.0) == []


def test_loading_ahead_tells_whether_it_began(panel, orders):
    assert begin_loading(panel, orders)
    assert not panel.session.warm_up("lite", None, "cpu")
    let_go_on(orders)
    events = panel.session.wait()
    assert [(one.kind, one.text, one.data["asked"]) for one in events] == [("device", "the card", "auto")]
    start(panel, "sleep 0.05")
    assert not panel.session.warm_up("lite", None, "cpu")
    finish(panel)
    assert panel.session.warm_up("lite", None, "cpu")
    panel.session.wait()
