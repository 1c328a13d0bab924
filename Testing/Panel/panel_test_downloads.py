"""Downloads of weights from the section Setup: the real child process against a web server on this computer."""

from __future__ import annotations

import time

from download_steps import SIZE, choose, gone, half, idle, press, state
from panel_scenes import texts, wait_until

pytest_plugins = ["setup_fixtures", "download_fixtures"]


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
    wait_until(lambda: "% of 3 MB" in state(section, "medsam"))
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
    assert "weights" not in (section.lacks("biomedclip+medsam", None) or "")
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
