"""The request to a language model in a child process, as the panel polls it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import SENTENCES, ChatServer, chat_server

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.language_child import LanguageChild
from MedCLIPSAMLib.language_question import KEY_VARIABLE, Question
from MedCLIPSAMLib.prompt_sets import load_prompt_set, user_sets_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's sets in a folder of their own."""
    for name in ("MEDCLIPSAM_WEIGHTS", KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    return user_sets_folder()


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A chat server on this computer."""
    with chat_server() as running:
        yield running


def question(server: ChatServer) -> Question:
    return Question("breast tumor", "breast ultrasound", server.endpoint, "small-model", 4)


def wait_until_asked(server: ChatServer) -> None:
    until = time.monotonic() + 30
    while not server.asked and time.monotonic() < until:
        time.sleep(0.01)
    assert server.asked


def events(child: LanguageChild, seconds: float = 30.0) -> list[dict]:
    """All events, polled as a timer does; no call may take long."""
    found, until = [], time.monotonic() + seconds
    while child.running and time.monotonic() < until:
        began = time.monotonic()
        found += child.poll()
        assert time.monotonic() - began < 1.0
        time.sleep(0.01)
    assert not child.running and child.poll() == []
    return found


def test_progress_then_the_set_and_the_key_only_in_the_request(server: ChatServer, folder: Path) -> None:
    child = LanguageChild(question(server), key=" sk-secret ", name="mine")
    progress, done = events(child)
    child.close()
    assert (progress["done"], progress["total"]) == (4, 4)
    assert done["name"] == "mine" and load_prompt_set("mine").prompts == tuple(SENTENCES)
    assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"
    assert b"sk-secret" not in (folder / "mine.json").read_bytes()
    assert "sk-secret" not in " ".join(map(str, child._child.process.args))


def test_an_error_is_the_last_event(server: ChatServer) -> None:
    server.replies = [(401, {}, b"")]
    child = LanguageChild(question(server))
    (error,) = events(child)
    child.close()
    assert error["event"] == "error" and "status 401" in error["message"]


def test_cancelling_a_silent_server(server: ChatServer, folder: Path) -> None:
    server.replies = [lambda handler: server.stopping.wait(30)]
    child = LanguageChild(question(server))
    wait_until_asked(server)
    began = time.monotonic()
    child.cancel()
    assert events(child) == [{"event": "cancelled"}] and time.monotonic() - began < 10
    assert child._child.process.poll() is not None and not folder.exists()
    child.close()


def test_a_child_that_dies_is_told(server: ChatServer) -> None:
    server.replies = [lambda handler: server.stopping.wait(30)]
    child = LanguageChild(question(server))
    wait_until_asked(server)
    child._child.process.kill()
    (error,) = events(child)
    child.close()
    assert error["event"] == "error" and "ended unexpectedly" in error["message"]


def test_an_odd_key_starts_nothing(server: ChatServer) -> None:
    with pytest.raises(InputError, match=KEY_VARIABLE):
        LanguageChild(question(server), key="a b")
