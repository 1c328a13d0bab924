"""The window that asks a language model for prompts; the server and the child process are real."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Python"))

from chat_server import SENTENCES, chat_server
from panel_scenes import wait_until

pytest_plugins = ["setup_fixtures"]


class Owner:
    """What the window asks of the panel."""

    def __init__(self):
        self.errors = []

    def showError(self, error):
        self.errors.append(str(error))


@pytest.fixture
def server():
    """A chat server on this computer."""
    with chat_server() as running:
        yield running


@pytest.fixture
def writer(world, monkeypatch):
    """The window with its panel; ``offered`` and ``changes`` tell what it said to that."""
    monkeypatch.delenv("MEDCLIPSAM_LLM_KEY", raising=False)
    from MedCLIPSAMPanel.prompt_writer import PromptWriter

    offered, changes = [], []
    made = PromptWriter(Owner(), offered.append, lambda: changes.append(1))
    made.offered, made.changes = offered, changes
    yield made
    made.cleanup()


def fill(writer, server, **changes):
    values = {"target": "breast tumor", "modality": "breast ultrasound", "endpoint": server.endpoint, "model": "m"}
    for name, text in {**values, **changes}.items():
        getattr(writer, name).text = text
    writer.count.value = 4


def finish(writer):
    wait_until(lambda: writer._child is None)


def test_nothing_can_be_sent_before_all_is_filled_in(writer, server):
    assert not writer.askButton.enabled and "Fill in" in writer.status.text
    fill(writer, server, model="")
    assert not writer.askButton.enabled and writer.outgoing.plainText == ""
    fill(writer, server)
    assert writer.askButton.enabled and writer.status.text == ""
    assert writer._question().body in writer.outgoing.plainText
    assert not writer.useButton.enabled and not writer.editButton.enabled
    fill(writer, server, target="case-0012.nii")
    assert not writer.askButton.enabled and "No" not in writer.status.text and "holds '.'" in writer.status.text
    fill(writer, server, endpoint="http://example.org/v1")
    assert not writer.askButton.enabled and "not encrypted" in writer.status.text
    assert server.asked == [] and writer.owner.errors == []


def test_declining_sends_nothing_and_the_question_shows_the_text(world, writer, server):
    fill(writer, server)
    writer.key.text = "sk-secret"
    world.dialogs.answer(world.qt.QMessageBox.Cancel)
    writer.askButton.click()
    (asked,) = world.dialogs.shown
    assert writer._question().outgoing(with_key=True) in asked.texts[0]
    assert "sk-secret" not in asked.texts[0] and "sk-secret" not in writer.outgoing.plainText
    assert server.asked == [] and writer._child is None


def test_the_set_is_written_shown_and_offered(world, writer, server, monkeypatch):
    from MedCLIPSAMLib.prompts import load_prompt_set

    fill(writer, server)
    writer.key.text = "sk-secret"
    writer.show()
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    writer.askButton.click()
    assert writer.askButton.text == "Cancel" and not writer.target.enabled
    finish(writer)
    assert writer.owner.errors == [] and server.asked[0].headers["Authorization"] == "Bearer sk-secret"
    assert server.asked[0].body.decode() == writer._question().body
    assert writer.sentences.plainText.splitlines() == SENTENCES and writer.sentences.visible
    assert "set:breast-tumor-ultrasound: 4 sentences" in writer.status.text and writer.changes == [1]
    opened = []
    monkeypatch.setattr(world.qt.QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    writer.editButton.click()
    assert opened[0].endswith("breast-tumor-ultrasound.json") and Path(opened[0]).is_file()
    writer.useButton.click()
    assert writer.offered == ["set:breast-tumor-ultrasound"] and not writer.dialog.visible
    assert load_prompt_set("breast-tumor-ultrasound").prompts == tuple(SENTENCES)
    assert writer.key.text == ""


def test_settings_keep_server_and_model_but_no_key(world, writer, server):
    from MedCLIPSAMPanel.prompt_writer import PromptWriter

    fill(writer, server)
    writer.key.text = "sk-secret"
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    writer.askButton.click()
    finish(writer)
    settings = world.qt.QSettings()
    kept = {key: settings.value(key) for key in settings.allKeys()}
    assert server.endpoint in kept.values() and "sk-secret" not in str(kept)
    other = PromptWriter(Owner(), print)
    assert (other.endpoint.text, other.model.text, other.key.text) == (server.endpoint, "m", "")
    other.show("lung")
    assert other.target.text == "lung"
    other.cleanup()


def test_stored_answers_need_no_question_and_asking_anew_does(world, writer, server):
    fill(writer, server)
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    writer.askButton.click()
    finish(writer)
    assert writer.askButton.text == "Show stored" and writer.again.enabled
    writer.askButton.click()
    finish(writer)
    assert len(server.asked) == 1 and len(world.dialogs.shown) == 1 and writer.useButton.enabled
    writer.again.checked = True
    assert writer.askButton.text == "Ask..." and not writer.useButton.enabled
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    writer.askButton.click()
    finish(writer)
    assert len(server.asked) == 2 and writer.useButton.enabled and not writer.again.checked
    fill(writer, server, target="cyst")
    assert not writer.useButton.enabled and not writer.sentences.visible  # that set is of another question


def test_a_refusal_is_shown(world, writer, server):
    server.replies = [(401, {}, b"")]
    fill(writer, server)
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    writer.askButton.click()
    finish(writer)
    assert len(writer.owner.errors) == 1 and "status 401" in writer.owner.errors[0]
    assert "status 401" in writer.status.text and writer.askButton.enabled and not writer.useButton.enabled


@pytest.mark.parametrize("way", ["button", "close"])
def test_cancelling_a_silent_server(world, writer, server, way):
    server.replies = [lambda handler: server.stopping.wait(60)]
    fill(writer, server)
    writer.show()
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    writer.askButton.click()
    wait_until(lambda: server.asked)
    process = writer._child._child.process
    (writer.askButton.click if way == "button" else writer.dialog.close)()
    finish(writer)
    assert process.poll() is not None and writer.owner.errors == []
    assert writer.target.enabled and writer.askButton.text == "Ask..."
    assert writer.status.text == ("Cancelled; nothing was stored." if way == "button" else "")


def test_the_window_goes_with_the_panel(world, server):
    from MedCLIPSAMPanel.prompt_writer import PromptWriter

    server.replies = [lambda handler: server.stopping.wait(60)]
    writer = PromptWriter(Owner(), print)
    fill(writer, server)
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    writer.askButton.click()
    wait_until(lambda: server.asked)
    process = writer._child._child.process
    writer.cleanup()
    assert process.poll() is not None


def test_offline_nothing_is_sent(writer, server, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(tmp_path))
    fill(writer, server)
    assert not writer.askButton.enabled and "MEDCLIPSAM_WEIGHTS" in writer.status.text


def test_enter_in_a_line_sends_nothing(writer, server):
    import qt

    fill(writer, server)
    writer.show()
    assert not any(button.autoDefault or button.default for button in writer.dialog.findChildren(qt.QPushButton))
