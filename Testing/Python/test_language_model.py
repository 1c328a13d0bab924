"""Prompt sets by a language model: asked, cleaned, stored, taken from the store, edited, and used as prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from chat_server import SENTENCES, ChatServer, chat_server
from typer.testing import CliRunner

from MedCLIPSAMLib import language_http
from MedCLIPSAMLib.child_process import ChildProcess
from MedCLIPSAMLib.cli_prompts import prompts_app
from MedCLIPSAMLib.errors import InputError, OutputError
from MedCLIPSAMLib.event_lines import encode_line, parse_event
from MedCLIPSAMLib.language_http import LanguageModelError
from MedCLIPSAMLib.language_model import ask, is_stored, set_name, stored_name, write_set
from MedCLIPSAMLib.language_question import KEY_VARIABLE, Question
from MedCLIPSAMLib.prompt_sets import LLM_TEMPLATE, load_prompt_set, prompt_sets, user_sets_folder
from MedCLIPSAMLib.prompts import wordings

ROOT = Path(__file__).resolve().parents[2]
MORE = [
    "Posterior shadowing below a taller-than-wide nodule.",
    "Angular edges and tiny bright spots inside a solid mass.",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's sets in a folder of their own; no proxy, no key, not offline."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
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


def question(server: ChatServer, **changes: object) -> Question:
    """A question for as many sentences as the server has."""
    given = {"target": "breast tumor", "modality": "breast ultrasound", "model": "small-model", "count": 4}
    return Question(**{**given, "endpoint": server.endpoint, **changes})


# ---- Asking ----------------------------------------------------------------------------------------------------------


def test_rounds_until_there_are_enough(server: ChatServer) -> None:
    server.replies = ["\n".join(SENTENCES), "\n".join([SENTENCES[0].upper(), *MORE])]
    told: list[tuple[int, int]] = []
    assert ask(question(server, count=6), progress=lambda *numbers: told.append(numbers)) == [*SENTENCES, *MORE]
    assert told == [(4, 6), (6, 6)] and len(server.asked) == 2
    assert server.asked[0].body == server.asked[1].body  # what the user has agreed to, and nothing else


def test_a_model_that_repeats_itself_is_not_asked_for_ever(server: ChatServer) -> None:
    assert ask(question(server, count=20)) == SENTENCES
    assert len(server.asked) == 2


def test_more_than_wanted_is_cut(server: ChatServer) -> None:
    assert ask(question(server, count=2)) == SENTENCES[:2]


def test_nothing_of_use_is_an_error(server: ChatServer, folder: Path) -> None:
    server.replies = ["Sorry, I cannot help."]
    with pytest.raises(LanguageModelError, match="without a sentence"):
        write_set(question(server))
    assert not folder.exists() and prompt_sets() == [name for name in prompt_sets() if not load_prompt_set(name).own]


def test_the_key_of_the_environment_is_sent_and_kept_nowhere(
    server: ChatServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    write_set(question(server))
    assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"
    assert not any("sk-secret" in file.read_text() for file in folder.rglob("*") if file.is_file())


# ---- Storing ---------------------------------------------------------------------------------------------------------


def test_a_set_is_stored_with_where_it_comes_from(server: ChatServer, folder: Path) -> None:
    written = write_set(question(server))
    assert written.name == "breast-tumor-ultrasound" and written.own and written.is_ensemble
    assert written.prompts == tuple(SENTENCES) and written.task == "breast ultrasound"
    content = json.loads((folder / "breast-tumor-ultrasound.json").read_text(encoding="utf-8"))
    assert content["prompts"] == SENTENCES and content["design"] == "P4"
    assert "small-model" in content["attribution"] and "not checked" in content["attribution"]
    request = content["request"]
    assert request["template"] == LLM_TEMPLATE and request["text"] == question(server).text
    assert (request["target"], request["modality"], request["model"]) == (
        "breast tumor",
        "breast ultrasound",
        "small-model",
    )
    assert request["date"][:2] == "20" and request["endpoint"] == server.endpoint
    assert [path.name for path in folder.iterdir()] == ["breast-tumor-ultrasound.json"]
    assert written.name in prompt_sets() and load_prompt_set(written.name) == written


def test_the_set_serves_as_an_ensemble_and_edited_by_its_first_sentence(server: ChatServer, folder: Path) -> None:
    written = write_set(question(server))
    ways = wordings(f"set:{written.name}", 3)
    assert ways[0] == tuple(SENTENCES) and all(len(way) == 1 for way in ways[1:])
    file = folder / f"{written.name}.json"
    content = json.loads(file.read_text())
    content |= {"design": "P2", "prompts": ["a better sentence", *SENTENCES]}
    file.write_text(json.dumps(content))
    assert wordings(f"set:{written.name}", 2)[0] == ("a better sentence",)


def test_the_same_question_is_not_asked_twice_and_edits_stay(server: ChatServer, folder: Path) -> None:
    first = write_set(question(server))
    file = folder / f"{first.name}.json"
    file.write_text(file.read_text().replace(SENTENCES[0], "My own sentence of a mass."))
    assert is_stored(question(server)) and stored_name(question(server)) == first.name
    again = write_set(question(server))
    assert again.prompts[0] == "My own sentence of a mass." and len(server.asked) == 1
    copy = write_set(question(server), name="mine")
    assert copy.prompts == again.prompts and len(server.asked) == 1
    copied = folder / "mine.json"
    copied.write_text(copied.read_text().replace("My own", "Another"))
    assert write_set(question(server), name="mine").prompts[0] == "Another sentence of a mass."
    assert write_set(question(server), again=True).prompts == tuple(SENTENCES) and len(server.asked) == 2


@pytest.mark.parametrize("change", [{"model": "other"}, {"count": 3}, {"modality": "mammography"}, {"target": "cyst"}])
def test_another_question_is_asked_and_stored_beside(server: ChatServer, change: dict[str, object]) -> None:
    first = write_set(question(server))
    other = question(server, **change)
    assert not is_stored(other)
    second = write_set(other)
    assert second.name != first.name and len(server.asked) == 2
    assert {first.name, second.name} <= set(prompt_sets())


def test_names_that_are_taken_or_impossible_are_refused_before_asking(server: ChatServer, folder: Path) -> None:
    write_set(question(server), name="Mine")
    (folder / "broken.json").write_text("{")
    other = question(server, target="cyst")
    for name in (
        "mine",
        "broken",
        "brain-mri-p4",
        "Brain-MRI-P2",
        "../x",
        "a/b",
        "con",
        "",
        "x" * 81,
        "a.json",
        "-a",
        ".a",
    ):
        with pytest.raises(InputError):
            write_set(other, name=name)
    assert len(server.asked) == 1
    assert set_name(other, "leber-läsion") == "leber-läsion"
    assert set_name(question(server), "mine") == "Mine"  # the same question


def test_a_folder_that_cannot_be_written(server: ChatServer, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("a file in its place")
    with pytest.raises(OutputError, match="is a file"):
        write_set(question(server))
    assert folder.read_text() == "a file in its place"


# ---- The command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Runs ``prompts ...`` as the program does."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.add_typer(prompts_app, name="prompts")
    app.command()(lambda: None)

    def call(*arguments: str, answer: str | None = None):
        return CliRunner().invoke(app, ["prompts", *arguments], input=answer)

    return call


def write_options(server: ChatServer, *more: str) -> list[str]:
    options = {"target": "breast tumor", "modality": "breast ultrasound", "endpoint": server.endpoint, "model": "m"}
    return ["write", *(part for name, value in options.items() for part in (f"--{name}", value)), "--count", "4", *more]


def test_the_list_marks_the_users_sets_and_names_broken_ones(run, server: ChatServer, folder: Path) -> None:
    write_set(question(server), name="mine")
    (folder / "broken.json").write_text("{")
    (folder / "brain-mri-p4.json").write_text('{"prompts": ["x"]}')
    done = run()
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert "    set:mine  (yours)" in lines and "    set:brain-mri-p4" in lines
    assert lines.index("breast ultrasound") < lines.index("    set:mine  (yours)")
    assert "broken.json" in done.stderr and "comes with the software" in done.stderr


def test_nothing_is_sent_before_the_user_agrees(run, server: ChatServer, folder: Path) -> None:
    shown = Question("breast tumor", "breast ultrasound", server.endpoint, "m", 4).outgoing(with_key=False)
    for answer in ("n\n", "\n", None):
        done = run(*write_options(server), answer=answer)
        assert done.exit_code == 1 and shown in done.stderr
    assert server.asked == [] and not folder.exists()
    done = run(*write_options(server), answer="y\n")
    assert done.exit_code == 0, done.output
    assert "\n".join(SENTENCES) in done.stdout
    assert "set:breast-tumor-ultrasound takes the mean of all sentences" in done.stdout
    assert str(folder / "breast-tumor-ultrasound.json") in done.stdout
    assert len(server.asked) == 1


def test_scripts_say_yes_and_a_second_run_sends_nothing(run, server: ChatServer) -> None:
    assert run(*write_options(server, "--yes", "--name", "mine")).exit_code == 0
    done = run(*write_options(server))
    assert done.exit_code == 0 and "nothing is sent" in done.stderr and len(server.asked) == 1
    done = run(*write_options(server, "--again", "--yes"))
    assert done.exit_code == 0 and "replace set:mine" in done.stderr and len(server.asked) == 2


def test_mistakes_are_one_line_and_send_nothing(run, server: ChatServer, tmp_path: Path, monkeypatch) -> None:
    for changes in (["--target", "case.nii"], ["--endpoint", "http://example.org/v1"], ["--name", "brain-mri-p0"]):
        done = run(*write_options(server, "--yes", *changes))
        assert done.exit_code == 2 and done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(tmp_path))
    done = run(*write_options(server, "--yes"))
    assert done.exit_code == 2 and done.stderr == f"Error: {language_http.OFFLINE_MESSAGE}\n"
    assert server.asked == []


def test_wording_that_no_engine_honours_is_pointed_out(run, server: ChatServer) -> None:
    server.replies = ["A dark mass in the left breast.\nA bright nodule in fat."]
    done = run(*write_options(server, "--yes"))
    assert done.exit_code == 0 and '"left": the engine cannot tell' in done.stderr and "2 of 4 sentences" in done.stderr


# ---- The child process of the panel ----------------------------------------------------------------------------------


def child(**environment: str) -> ChildProcess:
    everything = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return ChildProcess([sys.executable, "-m", "MedCLIPSAMLib.language_model"], everything, threading.Event())


def events(process: ChildProcess, seconds: float = 30.0) -> list[dict]:
    """All events until the child has ended."""
    until, lines = time.monotonic() + seconds, []
    while not process.over() and time.monotonic() < until:
        lines += process.lines()
        time.sleep(0.02)
    process.end(0)
    return [event for line in [*lines, *process.lines()] if (event := parse_event(line))]


def request(server: ChatServer, **changes: object) -> bytes:
    given = {"target": "breast tumor", "modality": "breast ultrasound", "model": "m", "count": 4}
    return encode_line({**given, "endpoint": server.endpoint, **changes})


def test_the_child_reports_and_stores(server: ChatServer, folder: Path) -> None:
    process = child(**{KEY_VARIABLE: "sk-secret"})
    process.send(request(server, name="mine"))
    progress, done = events(process)
    assert progress == {"event": "progress", "done": 4, "total": 4}
    assert done["event"] == "done" and done["name"] == "mine" and done["asked"] and done["prompts"] == SENTENCES
    assert done["path"] == str(folder / "mine.json") and load_prompt_set("mine").prompts == tuple(SENTENCES)
    assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"
    process = child()
    process.send(request(server))
    (done,) = events(process)
    assert done["name"] == "mine" and not done["asked"] and len(server.asked) == 1


@pytest.mark.parametrize(
    ("line", "kind", "told"),
    [
        (b"nonsense\n", "InputError", "one JSON line"),
        (b'{"target": "x"}\n', "InputError", "one JSON line"),
        ({"target": "case.png"}, "InputError", "holds '.'"),
        ({"count": None}, "InputError", "sentences were asked for"),
        ({"model": "refused"}, "LanguageModelError", "status 401"),
    ],
)
def test_the_child_reports_errors(server: ChatServer, line: bytes | dict, kind: str, told: str) -> None:
    server.replies = [(401, {}, b"")]
    process = child()
    process.send(line if isinstance(line, bytes) else request(server, **line))
    (event,) = events(process)
    assert (event["event"], event["kind"]) == ("error", kind) and told in event["message"]
    assert process.process.returncode == 1


def test_the_child_ends_when_its_stdin_closes(server: ChatServer, folder: Path) -> None:
    server.replies = [lambda handler: server.stopping.wait(20)]
    process = child()
    process.send(request(server))
    until = time.monotonic() + 20
    while not server.asked and time.monotonic() < until:
        time.sleep(0.02)
    began = time.monotonic()
    process.close_input()
    assert process.process.wait(10) == 0 and time.monotonic() - began < 5
    assert events(process) == [] and not folder.exists()


def test_importing_it_needs_neither_torch_nor_requests() -> None:
    code = "import sys, MedCLIPSAMLib.language_model, MedCLIPSAMLib.cli_prompts;"
    code += "print('torch' in sys.modules, 'requests' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
