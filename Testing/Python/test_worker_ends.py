"""Every way in which the background process or its parent can die; real processes throughout."""

# ruff: noqa: F401, F811 (fixtures are imported)

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in_engine import ENCODING, LOADING, worker_environment
from worker_support import (
    assert_gone,
    assert_tidy,
    finish,
    folder,
    is_running,
    make_client,
    posix,
    results,
    run,
    slice_task,
    until,
    volume_task,
)

from MedCLIPSAMLib.event_lines import encode_line, parse_event
from MedCLIPSAMLib.worker_client import ENDS, WorkerClient
from MedCLIPSAMLib.worker_files import UNFINISHED
from MedCLIPSAMLib.worker_launch import ROOT, environment

# ---- Death -----------------------------------------------------------------------------------------------------------


def stage(name: str, delay: float = 0.0) -> Callable[[WorkerClient, Path], None]:
    def reached(client: WorkerClient, folder: Path) -> None:
        until(client, lambda event: event.get("stage") == name)
        time.sleep(delay)

    return reached


def event(name: str) -> Callable[[WorkerClient, Path], None]:
    return lambda client, folder: until(client, lambda event: event["event"] == name) and None


def writing(client: WorkerClient, folder: Path) -> None:
    until(client, lambda event: event.get("stage") == "writing")
    end = time.monotonic() + 60.0
    while not any(path.name.startswith(UNFINISHED) for path in (folder / "results").iterdir()):
        assert time.monotonic() < end, client.wait(0.1)
        time.sleep(0.001)
    time.sleep(0.05)


DEATHS: list[tuple[str, dict[str, Any], Callable[[WorkerClient, Path], None]]] = [
    ("before it is ready", {}, lambda client, folder: None),
    ("when it is ready", {}, event("ready")),
    ("while loading", {}, stage("loading engine", 0.1)),
    ("while reading the image", {}, stage("reading image", 0.05)),
    ("while segmenting", {"prompts": ["sleep 0.2"]}, stage("segmenting", 0.3)),
    ("while writing", {"prompts": ["slow writing 60"]}, writing),
    ("between prompts", {"prompts": ["bright", "sleep 1"]}, event("result")),
    ("in the first slice", {"task": "segment_volume", "prompts": ["sleep 0.1"]}, stage("slice", 0.2)),
    ("between slices", {"task": "segment_volume"}, event("progress")),
    ("while refining", {"task": "refine_slice", "prompt": "sleep 0.2"}, stage("segmenting", 0.1)),
    ("while refining slices", {"task": "refine_volume", "prompt": "sleep 0.1"}, stage("slice", 0.2)),
]


@pytest.mark.slow
@posix
def test_a_killed_child_is_an_error_at_every_stage_and_the_next_task_works(make_client, folder):
    np.save(folder / "saliency.npy", np.zeros((48, 64), np.float32))
    np.save(folder / "saliencies.npy", np.zeros((5, 48, 64), np.float32))
    client = make_client(**{LOADING: "0.2", ENCODING: "0.1"})
    for name, changes, reached in DEATHS:
        if changes.get("task", "").endswith("volume"):
            task = volume_task(folder, **{"saliency": str(folder / "saliencies.npy"), "indices": [0, 1], **changes})
        else:
            task = slice_task(folder, **{"saliency": str(folder / "saliency.npy"), **changes})
        if reached in [one[2] for one in DEATHS[:3]]:
            client.close()  # these happen only once in a child's life
        identity, waiting = client.submit(task), client.submit(slice_task(folder))
        group = client._child.process.pid
        reached(client, folder)
        assert client.alive, name
        os.kill(group, signal.SIGKILL)
        events = until(client, lambda event, last=waiting: event.get("id") == last and event["event"] in ENDS)
        ends = [(event["id"], event["kind"]) for event in events if event["event"] in ENDS]
        assert ends == [(identity, "WorkerDied"), (waiting, "WorkerDied")], name
        assert "signal 9; perhaps out of memory" in events[-1]["message"]
        assert not client.alive and client.pid is None and client.poll() == []
        assert_gone(group)
        assert_tidy(folder / "results")
    assert run(client, slice_task(folder))[-1]["event"] == "done"
    os.kill(client.pid, signal.SIGKILL)  # with nothing to do: no event, and the next task does not notice
    time.sleep(0.2)
    assert run(client, slice_task(folder))[-1]["event"] == "done"


@posix
def test_a_child_that_ends_itself_and_its_grandchild(make_client, folder):
    client = make_client()
    (result,) = results(run(client, slice_task(folder, "grandchild")))
    grandchild = int(result["warnings"][0].split()[1])
    assert is_running(grandchild)
    end = run(client, slice_task(folder, "exit"))[-1]
    assert end["kind"] == "WorkerDied" and "code 7" in end["message"]
    assert_gone(os.getpgid(grandchild) if is_running(grandchild) else grandchild)
    assert run(client, volume_task(folder, "kill 3"))[-1]["kind"] == "WorkerDied"
    assert run(client, slice_task(folder))[-1]["event"] == "done"
    assert_tidy(folder / "results")


def test_an_interpreter_that_is_not_there_or_lacks_the_library(make_client, folder, tmp_path):
    client = make_client(python=str(tmp_path / "no python"))
    end = run(client, slice_task(folder))[-1]
    assert end["kind"] == "WorkerDied" and "cannot be started" in end["message"] and not client.alive
    if sys.platform != "win32":
        script = tmp_path / "broken python"
        script.write_text("#!/bin/sh\necho 'the interpreter is broken' >&2\nexit 3\n")
        script.chmod(0o755)
        end = run(make_client(python=str(script)), slice_task(folder))[-1]
        assert "code 3" in end["message"] and "the interpreter is broken" in end["message"]


@posix
def test_behind_a_launcher_as_in_slicer(make_client, folder, tmp_path):
    """The launcher stays as the parent, says something on stdout, and does not pass signals on."""
    script = tmp_path / "launcher"
    script.write_text(f'#!/bin/sh\necho "this is no JSON"\necho "[1, 2]"\n"{sys.executable}" "$@" <&0\nexit $?\n')
    script.chmod(0o755)
    client = make_client(python=str(script), grace=0.3)
    assert run(client, slice_task(folder))[-1]["event"] == "done"
    assert "this is no JSON" in client.log and "[1, 2]" in client.log
    launcher = client._child.process.pid
    assert client.pid != launcher
    hanging = client.submit(slice_task(folder, "hang 60"))
    until(client, lambda event: event.get("stage") == "segmenting")
    client.cancel(hanging)
    assert finish(client, hanging)[-1]["event"] == "cancelled"
    assert_gone(launcher)
    dying = client.submit(slice_task(folder, "hang 60"))
    until(client, lambda event: event.get("stage") == "segmenting")
    os.kill(client.pid, signal.SIGKILL)
    assert finish(client, dying)[-1]["kind"] == "WorkerDied"


# ---- The end of the parent -------------------------------------------------------------------------------------------

PARENT = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from stand_in_engine import worker_environment
from MedCLIPSAMLib.worker_client import WorkerClient
client = WorkerClient(environment=worker_environment())
client.submit({task!r})
while not any(event.get("stage") == "segmenting" for event in client.wait(10)):
    pass
print(client.pid, flush=True)
if {stay!r}:
    sys.stdin.read()
"""


def parent(folder: Path, prompt: str, stay: bool) -> subprocess.Popen:
    """Start a program that uses a client and does not close it."""
    tests = str(Path(__file__).parent)
    code = PARENT.format(root=str(ROOT), tests=tests, task=slice_task(folder, prompt), stay=stay)
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@posix
@pytest.mark.parametrize("prompt", ["sleep 0.5", "hang 60; grandchild"])
def test_the_child_does_not_outlive_a_killed_parent(folder, prompt):
    with parent(folder, prompt, stay=True) as program:
        child = int(program.stdout.readline())
        program.kill()
        program.wait()
        assert_gone(child)


@posix
def test_the_child_ends_with_a_program_that_does_not_close_it(folder):
    with parent(folder, "hang 60; grandchild", stay=False) as program:
        child = int(program.stdout.readline())
        assert program.wait(20.0) == 0
        assert not is_running(child)


def test_a_worker_by_hand_takes_what_it_understands_and_ends_with_its_stdin(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "MedCLIPSAMLib.worker"],
        env=environment(worker_environment()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        process.stdin.write(b'nonsense\n[1]\n{"neither": 1}\n{"cancel": 99}\n\xff\n')
        process.stdin.write(encode_line({**slice_task(folder), "id": "a text"}))
        process.stdin.write(encode_line({**slice_task(folder, "sleep 0.5"), "id": 2}))
        process.stdin.flush()
        events = []
        while not events or (events[-1].get("id"), events[-1].get("stage")) != (2, "segmenting"):
            events.append(parse_event(process.stdout.readline()))
        assert events[0]["event"] == "ready" and events[0]["pid"] == process.pid
        assert [one["event"] for one in events if one.get("id") == "a text"][-1] == "done"
        began = time.monotonic()
        process.stdin.close()
        assert process.wait(10.0) == 0 and time.monotonic() - began < 5


def test_closing_in_the_middle_is_quick_and_the_client_can_go_on(make_client, folder):
    client = make_client(grace=1.0)
    client.submit(slice_task(folder, "hang 60"))
    until(client, lambda event: event.get("stage") == "segmenting")
    group = client.pid
    began = time.monotonic()
    client.close()
    client.close()
    assert time.monotonic() - began < 5 and client.poll() == [] and client.wait(1.0) == []
    assert_gone(group)
    assert run(client, slice_task(folder))[-1]["event"] == "done"
