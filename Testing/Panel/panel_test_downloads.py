"""Downloads of weights from the section Setup: the real child process against a web server on this computer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import sys
import threading
import time

import pytest
from panel_scenes import ENGINE_FOLDER, wait_until
from setup_fixtures import texts

sys.path.append(str(ENGINE_FOLDER))

from file_server import Faults, file_server  # noqa: E402

pytest_plugins = ["setup_fixtures"]

SIZE = 3_000_000
CHILD = """
import json, sys
from MedCLIPSAMLib import download, weights
entries = json.load(open(sys.argv[1], encoding="utf-8"))
weights._entries = lambda: tuple(weights.Weight(**{**one, "used_by": tuple(one["used_by"])}) for one in entries)
sys.argv = ["download", *sys.argv[2:]]
sys.exit(download.main())
"""


@pytest.fixture
def server(world, monkeypatch, tmp_path):
    """The registry's addresses are on this computer, and its files are small; those of the engine lite are there."""
    from MedCLIPSAMLib import weights
    from MedCLIPSAMPanel import download_child

    real = weights._entries()
    for variable in ("http_proxy", "HTTP_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    with file_server() as server:
        entries = []
        for number, one in enumerate(real):
            if not one.fetchable:
                entries.append(one)
                continue
            content = number.to_bytes(1, "big") * SIZE
            server.files[f"/{one.name}"] = content
            digest = hashlib.sha256(content).hexdigest() if one.sha256 else None
            entries.append(
                dataclasses.replace(one, source=server.url(f"/{one.name}"), bytes=len(content), sha256=digest)
            )
        monkeypatch.setattr(weights, "_entries", lambda: tuple(entries))
        file = tmp_path / "registry.json"
        file.write_text(json.dumps([dataclasses.asdict(one) for one in entries]), encoding="utf-8")
        monkeypatch.setattr(
            download_child, "command", lambda name: [sys.executable, "-c", CHILD, str(file), name], raising=True
        )
        yield server


@pytest.fixture
def table(server, section):
    """The table of weights, with the engine biomedclip+medsam chosen."""
    section.setEngine("biomedclip+medsam", None)
    return section.ui.weightsTable


def choose(section, name):
    table = section.ui.weightsTable
    table.selectRow(texts(table, 0).index(name))


def state(section, name):
    table = section.ui.weightsTable
    return table.item(texts(table, 0).index(name), 2).text()


def press(world, section, button="downloadWeightsButton"):
    """Press a button and agree."""
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    getattr(section.ui, button).click()


def idle(section):
    return not section.weights.downloads.active


def half(server):
    """Let the next answer stop in its middle until the returned event is set."""
    go_on = threading.Event()
    server.faults = [Faults(wait=go_on)]
    server.half.clear()
    return go_on


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_question_tells_everything_and_no_is_no(world, server, section, table):
    choose(section, "medsam")
    world.dialogs.answer(world.qt.QMessageBox.Cancel)
    section.ui.downloadWeightsButton.click()
    (asked,) = world.dialogs.shown
    from MedCLIPSAMLib import weights

    known = weights.registry()["medsam"]
    for words in (known.source, "3 MB", known.sha256, known.licence, known.citation, str(weights.user_folder())):
        assert words in asked.texts[0]
    assert idle(section)
    assert server.asked == []
    assert not weights.user_folder().exists()


def test_where_no_hash_is_published_the_question_says_so(world, server, section, table):
    choose(section, "pmc-clip-image")
    world.dialogs.answer(world.qt.QMessageBox.Cancel)
    section.ui.downloadWeightsButton.click()
    assert "none is published" in world.dialogs.shown[0].texts[0]


def test_a_download_is_followed_and_the_interface_is_never_held_up(world, server, section, table):
    from MedCLIPSAMLib import weights

    go_on = half(server)
    choose(section, "medsam")
    press(world, section)
    assert section.ui.downloadWeightsButton.text == "Stop"
    assert not section.ui.verifyWeightsButton.enabled
    wait_until(lambda: "50 %" in state(section, "medsam") or "49 %" in state(section, "medsam"))
    assert "medsam" in section.ui.weightsStatusLabel.text
    section.refresh()  # as when the module is entered again
    assert "%" in state(section, "medsam")
    go_on.set()
    longest, end = 0.0, time.monotonic() + 30
    while not idle(section) and time.monotonic() < end:
        began = time.perf_counter()
        world.slicer.app.processEvents()
        longest = max(longest, time.perf_counter() - began)
        time.sleep(0.005)
    assert longest < 0.25  # 50 ms are wanted; machines that run tests are busy
    assert state(section, "medsam") == "✓ verified"
    assert "downloaded and checked" in section.ui.weightsStatusLabel.text
    assert (weights.user_folder() / "medsam_vit_b.pth").stat().st_size == SIZE
    assert section.owner.updates == 1
    assert section.ui.downloadWeightsButton.text == "Download…"
    assert not section.ui.downloadWeightsButton.enabled  # it is there already


def test_all_that_the_engine_needs_comes_one_after_the_other(world, server, section, table):
    needed = ["biomedclip", "biomedclip-tokenizer", "medsam"]
    assert texts(table, 0)[:3] == needed
    assert "(9 MB)" in section.ui.downloadEngineButton.text
    lack = section.lacks("biomedclip+medsam", None)
    assert all(name in lack for name in needed)
    assert "Setup" in lack
    assert "9 MB in all" in lack
    go_on = half(server)
    press(world, section, "downloadEngineButton")
    wait_until(server.half.is_set)
    wait_until(lambda: "then biomedclip-tokenizer, medsam" in section.ui.weightsStatusLabel.text)
    assert state(section, "medsam") == "waiting"
    assert not section.ui.downloadEngineButton.enabled
    go_on.set()
    wait_until(lambda: idle(section))
    assert [path for path, _ in server.asked] == [f"/{name}" for name in needed]
    assert [state(section, name) for name in needed] == ["✓ verified"] * 3
    assert section.lacks("biomedclip+medsam", None) is None
    assert not section.ui.downloadEngineButton.enabled


def test_stop_keeps_what_has_come_and_a_later_download_goes_on(world, server, section, table):
    go_on = half(server)
    choose(section, "medsam")
    press(world, section)
    wait_until(lambda: "%" in state(section, "medsam"))
    pid = section.weights.downloads._child.pid
    section.ui.downloadWeightsButton.click()
    assert state(section, "medsam") == "stopping…"
    wait_until(lambda: idle(section))
    go_on.set()
    assert gone(pid)
    assert "% downloaded" in state(section, "medsam")
    assert section.ui.deleteWeightsButton.enabled  # what has come of it
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    section.ui.downloadWeightsButton.click()
    assert "is here already" in world.dialogs.shown[-1].texts[0]
    wait_until(lambda: idle(section))
    assert server.ranges()[0] is None
    assert int(server.ranges()[1].removeprefix("bytes=").rstrip("-")) > 0
    assert state(section, "medsam") == "✓ verified"


def test_a_killed_child_is_told_and_the_rest_is_not_begun(world, server, section, table):
    go_on = half(server)
    press(world, section, "downloadEngineButton")
    wait_until(lambda: "%" in state(section, "biomedclip"))
    os.kill(section.weights.downloads._child.pid, signal.SIGKILL)
    wait_until(lambda: idle(section))
    go_on.set()
    said = section.ui.weightsStatusLabel.text
    assert "ended unexpectedly (signal 9)" in said
    assert "Not begun: biomedclip-tokenizer, medsam" in said
    assert state(section, "biomedclip") == "failed"
    assert "signal 9" in table.item(0, 2).toolTip()
    press(world, section, "downloadEngineButton")
    wait_until(lambda: idle(section))
    assert [state(section, name) for name in texts(table, 0)[:3]] == ["✓ verified"] * 3


def test_wrong_content_is_refused_and_said(world, server, section, table):
    from MedCLIPSAMLib import weights

    server.faults = [Faults(body=b"x" * SIZE)]
    choose(section, "medsam")
    press(world, section)
    wait_until(lambda: idle(section))
    assert "SHA-256" in section.ui.weightsStatusLabel.text
    assert state(section, "medsam") == "failed"
    assert list(weights.user_folder().glob("*.pth*")) == []
    assert section.lacks("biomedclip+medsam", None) is not None
    press(world, section)
    wait_until(lambda: idle(section))
    assert state(section, "medsam") == "✓ verified"


def test_a_server_without_the_file_is_said(world, server, section, table):
    server.files.pop("/medsam")
    choose(section, "medsam")
    press(world, section)
    wait_until(lambda: idle(section))
    assert "404" in section.ui.weightsStatusLabel.text
    assert section.ui.downloadWeightsButton.enabled


def test_the_part_removed_while_downloading(world, server, section, table):
    from MedCLIPSAMLib import weights

    go_on = half(server)
    choose(section, "medsam")
    press(world, section)
    wait_until(lambda: "%" in state(section, "medsam"))
    for part in weights.user_folder().glob("medsam*.part*"):
        part.unlink()
    go_on.set()
    wait_until(lambda: idle(section))
    if state(section, "medsam") != "✓ verified":
        assert state(section, "medsam") == "failed"
        assert section.ui.weightsStatusLabel.text
        press(world, section)
        wait_until(lambda: idle(section))
    assert state(section, "medsam") == "✓ verified"


def test_closing_the_module_ends_the_child(world, server, section, table):
    go_on = half(server)
    choose(section, "medsam")
    press(world, section)
    wait_until(lambda: "%" in state(section, "medsam"))
    pid = section.weights.downloads._child.pid
    began = time.monotonic()
    section.weights.downloads.close()
    assert time.monotonic() - began < 3
    assert gone(pid)
    assert idle(section)
    section.weights.downloads.close()  # once more changes nothing
    go_on.set()


def test_offline_nothing_can_be_downloaded_and_a_download_stops(world, server, section, table, tmp_path):
    go_on = half(server)
    choose(section, "medsam")
    press(world, section)
    wait_until(lambda: "%" in state(section, "medsam"))
    folder = tmp_path / "offline"
    folder.mkdir()
    section.ui.offlineFolderPath.currentPath = str(folder)
    wait_until(lambda: idle(section))
    go_on.set()
    asked = len(server.asked)
    assert "stopped" in section.ui.weightsStatusLabel.text
    for button in (section.ui.downloadWeightsButton, section.ui.downloadEngineButton):
        assert not button.enabled
        assert "MEDCLIPSAM_WEIGHTS" in button.toolTip
    assert "offline folder" in section.lacks("biomedclip+medsam", None)
    assert len(server.asked) == asked
    section.ui.offlineFolderPath.currentPath = ""
    assert section.ui.downloadWeightsButton.enabled


def test_weights_that_are_fetched_by_hand_are_explained(world, server, section, table, monkeypatch):
    from MedCLIPSAMLib import weights

    opened = []
    monkeypatch.setattr(world.qt.QDesktopServices, "openUrl", lambda url: opened.append(url.toString()))
    choose(section, "sam-med2d")
    assert section.ui.downloadWeightsButton.text == "How to get…"
    address = weights.registry()["sam-med2d"].source
    world.dialogs.answer(world.qt.QMessageBox.Cancel, world.qt.QMessageBox.Ok)
    section.ui.downloadWeightsButton.click()
    assert address in world.dialogs.shown[0].texts[0]
    assert str(weights.user_folder()) in world.dialogs.shown[0].texts[0]
    assert opened == []
    section.ui.downloadWeightsButton.click()
    assert opened == [address]
    section.setEngine("biomedclip+sam-med2d", None)
    assert "says how to get sam-med2d" in section.lacks("biomedclip+sam-med2d", None)
    assert "(6 MB)" in section.ui.downloadEngineButton.text  # what can be downloaded


def test_what_comes_in_another_way_is_not_offered(section, table):
    from MedCLIPSAMLib import weights

    choose(section, "lite-alignment")
    assert not section.ui.downloadWeightsButton.enabled
    assert section.ui.downloadWeightsButton.toolTip == "They are there already."
    assert not weights.registry()["lite-alignment"].fetchable


def test_a_damaged_file_is_downloaded_anew(world, server, section, table):
    from MedCLIPSAMLib import weights

    file = weights.user_folder() / "medsam_vit_b.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"y" * SIZE)
    section.refresh()
    choose(section, "medsam")
    assert not section.ui.downloadWeightsButton.enabled
    section.ui.verifyWeightsButton.click()
    wait_until(lambda: not section.weights.verifying.active)
    assert state(section, "medsam") == "damaged"
    assert section.ui.downloadWeightsButton.enabled
    press(world, section)
    wait_until(lambda: idle(section))
    assert state(section, "medsam") == "✓ verified"


def test_in_testing_mode_nothing_is_downloaded(world, server, section, table, monkeypatch):
    monkeypatch.setitem(world.slicer.app._values, "testing", True)
    choose(section, "medsam")
    section.ui.downloadWeightsButton.click()
    assert idle(section)
    assert server.asked == []


def test_a_child_that_cannot_be_started_is_said(world, server, section, table, monkeypatch):
    from MedCLIPSAMPanel import download_child

    monkeypatch.setattr(download_child, "command", lambda name: ["/no/such/python", name])
    press_errors = section.owner.errors
    choose(section, "medsam")
    press(world, section)
    assert len(press_errors) == 1
    assert "cannot be started" in str(press_errors.pop())
    assert idle(section)
