"""Downloads of weights that go wrong or may not be: what is said, and that the next one works."""

from __future__ import annotations

import os
import signal
import time

from download_steps import SIZE, choose, gone, half, idle, press, state
from file_server import Faults
from panel_scenes import texts, wait_until

pytest_plugins = ["setup_fixtures", "download_fixtures"]


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
