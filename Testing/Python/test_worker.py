"""The background process and its client: results, cancelling, and everything that can die; real processes throughout.

Most tests use the quick engine of stand_in_engine.py in the child, so that its time is not spent on models.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in_engine import ENCODING, LOADING, StandInSegmenter, worker_environment

from MedCLIPSAMLib.errors import OutputError
from MedCLIPSAMLib.event_lines import LineSplitter, encode_line, parse_event
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.pipeline import TextSegmenter
from MedCLIPSAMLib.recipe import load_recipe
from MedCLIPSAMLib.results import PromptResult
from MedCLIPSAMLib.volumes import segment_volume
from MedCLIPSAMLib.worker_client import ENDS, WorkerClient
from MedCLIPSAMLib.worker_files import UNFINISHED, check_space, write_array
from MedCLIPSAMLib.worker_launch import ROOT, environment

WINDOW = (0.0, 200.0)
MAPS = ("mask", "coarse", "saliency", "entropy")
posix = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals")

Event = dict[str, Any]


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """(height, width) int16 with a bright disc."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    centre = rng.uniform(16, 32, 2)
    disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 81
    return np.where(disc, 180, 20 + rng.normal(0, 5, disc.shape)).astype(np.int16)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with blanks and letters beyond ASCII in its path."""
    path = tmp_path / "a földer 肺"
    path.mkdir()
    np.save(path / "slice.npy", picture())
    np.save(path / "volume.npy", np.stack([picture(index) for index in range(5)]))
    return path


@pytest.fixture
def make_client() -> Iterator[Callable[..., WorkerClient]]:
    """Return a function that makes clients of the stand-in engine; at the end none of their processes is left."""
    clients = []

    def make(python: str | None = None, grace: float = 2.0, **variables: str) -> WorkerClient:
        clients.append(WorkerClient(python=python, environment=worker_environment(**variables), grace=grace))
        return clients[-1]

    yield make
    for client in clients:
        child = client._child
        client.close()
        assert not client.alive and client.pid is None
        if child is not None:
            assert child.process.returncode is not None  # no zombie
            assert_gone(child.process.pid)
            for thread in threading.enumerate():
                if thread.name == f"child {child.process.pid}":
                    thread.join(10.0)
                    assert not thread.is_alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[WorkerClient]:
    """A client whose child stays warm; for tests that do it no harm."""
    client = WorkerClient(environment=worker_environment())
    yield client
    client.close()


def assert_gone(group: int, within: float = 10.0) -> None:
    """The process group has no member any more."""
    if sys.platform == "win32":
        return
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail(f"there are still processes in the group {group}")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # an orphan's zombie waits for init, which in containers may never come
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def slice_task(folder: Path, *prompts: str, **changes: Any) -> dict[str, Any]:
    task = {"task": "segment_slice", "array": str(folder / "slice.npy"), "window": list(WINDOW)}
    return {**task, "prompts": list(prompts or ("bright",)), "folder": str(folder / "results"), **changes}


def volume_task(folder: Path, *prompts: str, **changes: Any) -> dict[str, Any]:
    matrix = np.diag([-1.0, -1.0, 3.0, 1.0]).tolist()
    changes = {
        "task": "segment_volume",
        "array": str(folder / "volume.npy"),
        "ijk_to_ras": matrix,
        "axis": 0,
        **changes,
    }
    return slice_task(folder, *prompts, **changes)


def until(client: WorkerClient, wanted: Callable[[Event], bool], seconds: float = 120.0) -> list[Event]:
    """Return all events up to the wanted one and those that came with it."""
    events: list[Event] = []
    end = time.monotonic() + seconds
    while not any(map(wanted, events)):
        assert time.monotonic() < end, f"it did not come; {events}, {client.log}"
        events += client.wait(1.0)
    return events


def finish(client: WorkerClient, identity: int, seconds: float = 120.0) -> list[Event]:
    """Return the events of one task up to its end; there is one end, and nothing after it."""
    events = until(client, lambda event: event.get("id") == identity and event["event"] in ENDS, seconds)
    mine = [event for event in events if event.get("id") == identity]
    assert [event["event"] in ENDS for event in mine].count(True) == 1 and mine[-1]["event"] in ENDS
    return mine


def run(client: WorkerClient, task: dict[str, Any]) -> list[Event]:
    return finish(client, client.submit(task))


def maps(result: Event) -> dict[str, np.ndarray]:
    return {name: np.load(path) for name, path in result["files"].items()}


def maps_of(result: PromptResult) -> dict[str, np.ndarray]:
    return {
        "mask": result.mask,
        "coarse": result.coarse.mask,
        "saliency": result.saliency,
        "entropy": result.entropy,
    }


def results(events: list[Event]) -> list[Event]:
    return [event for event in events if event["event"] == "result"]


def assert_tidy(path: Path) -> None:
    """What is in the results folder is whole."""
    for file in path.iterdir() if path.exists() else ():
        assert not file.name.startswith(UNFINISHED)
        assert np.load(file).size


# ---- Results ---------------------------------------------------------------------------------------------------------


def test_a_slice_is_what_the_engine_gives_in_this_process(shared, folder):
    events = run(shared, slice_task(folder, "bright", "Läsion 肺 🫁", seed=3))
    engine = StandInSegmenter(load_recipe("lite"))
    engine.set_image(picture(), WINDOW)
    for number, (result, prompt) in enumerate(zip(results(events), ("bright", "Läsion 肺 🫁"), strict=True)):
        expected = engine.segment(prompt, 3)
        assert (result["prompt"], result["number"], result["seed"]) == (prompt, number, 3)
        found = maps(result)
        for name, array in {
            "mask": expected.mask,
            "coarse": expected.coarse.mask,
            "saliency": expected.saliency,
        }.items():
            np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(found["entropy"], expected.entropy)
        assert [found[name].dtype.kind for name in MAPS] == ["b", "b", "f", "f"] and expected.mask.any()
        assert result["presence"] == {"score": 0.9, "threshold": 0.5, "accepted": True} and not result["skipped"]
        assert result["threshold"] == pytest.approx(expected.coarse.threshold)
        assert result["components"][0]["box"] == list(expected.coarse.components[0].box)
        assert result["recipe"]["name"] == "lite" and result["versions"]["numpy"] == np.__version__
    assert [event["done"] for event in events if event["event"] == "progress"] == [1, 2]
    assert events[-1]["event"] == "done" and events[-1]["seconds"]["total"] > 0


def test_a_volume_is_what_the_library_gives_and_the_time_left_is_told(shared, folder):
    task = volume_task(folder, "bright", "absent", slice_range=[1, 4], seed=2)
    events = run(shared, task)
    matrix = np.asarray(task["ijk_to_ras"])
    image = MedicalImage(np.load(folder / "volume.npy"), matrix, None, None, True, Path("x"), True)
    engine = StandInSegmenter(load_recipe("lite"))
    expected = segment_volume(engine, image, ["bright", "absent"], axis=0, slice_range=(1, 4), window=WINDOW, seed=2)
    for result, whole in zip(results(events), expected, strict=True):
        for name, array in maps(result).items():
            np.testing.assert_array_equal(array, getattr(whole, name))
        assert [one["status"] for one in result["slices"]] == [one.status for one in whole.slices]
    first, second = results(events)
    assert first["presence"]["accepted"] and not second["presence"]["accepted"] and second["warnings"]
    steps = [event for event in events if event["event"] == "progress"]
    assert [(step["done"], step["total"]) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert steps[0]["seconds_left"] is None and steps[1]["seconds_left"] > 0 and steps[3]["seconds_left"] == 0
    assert_tidy(folder / "results")


def test_colour_volumes_and_a_skipped_slice(shared, folder):
    np.save(folder / "volume.npy", np.repeat(np.load(folder / "volume.npy")[..., None], 3, axis=3).astype(np.uint8))
    (result,) = results(run(shared, volume_task(folder)))
    assert maps(result)["mask"].shape == (5, 48, 64) and maps(result)["mask"].any()
    (skipped,) = results(run(shared, slice_task(folder, "absent")))
    assert skipped["skipped"] and not maps(skipped)["coarse"].any() and maps(skipped)["saliency"].any()
    assert skipped["components"] == []
    (anyway,) = results(run(shared, slice_task(folder, "absent", gate=False)))
    assert not anyway["skipped"] and maps(anyway)["mask"].any() and anyway["recipe"]["gate"] is False


def test_refining_follows_the_threshold(shared, folder):
    (result,) = results(run(shared, slice_task(folder)))
    saliency = result["files"]["saliency"]
    again = slice_task(folder, task="refine_slice", saliency=saliency, prompt="bright")
    low, high = (results(run(shared, {**again, "threshold": value})) for value in (0.2, 0.9))
    assert set(low[0]["files"]) == {"mask", "coarse", "entropy"} and low[0]["prompt"] == "bright"
    assert maps(low[0])["coarse"].sum() > maps(high[0])["coarse"].sum() > 0

    (whole,) = results(run(shared, volume_task(folder)))
    task = volume_task(folder, task="refine_volume", saliency=whole["files"]["saliency"], indices=[1, 3], threshold=0.2)
    (refined,) = results(run(shared, task))
    found = maps(refined)
    assert [plane.any() for plane in found["coarse"]] == [False, True, False, True, False]
    assert found["coarse"][1].sum() >= maps(whole)["coarse"][1].sum()
    assert set(refined["files"]) == {"mask", "coarse", "entropy"}
    assert_tidy(folder / "results")


def test_settings_change_the_recipe_and_load_nothing(shared, folder):
    run(shared, slice_task(folder))
    pid = shared.pid
    presets = sorted(load_recipe("lite").presets or {})
    for changes in ({"samples": 2}, {"gate": False}, {"preset": presets[0]}, {}):
        events = run(shared, slice_task(folder, **changes))
        (result,) = results(events)
        recipe = load_recipe("lite").with_preset(changes.get("preset"))
        assert result["recipe"]["samples"] == changes.get("samples", recipe.samples)
        assert result["recipe"]["gate"] == changes.get("gate", recipe.gate)
        assert result["saliency_method"] == recipe.saliency
        assert "loading engine" not in [event.get("stage") for event in events]
    assert shared.pid == pid
    told = run(shared, {"task": "load", "engine": f"finetuned:{folder}", "device": "cpu"})
    assert [event.get("stage") for event in told] == ["loading engine", None]
    assert told[-1]["device"] == "cpu" and told[-1]["device_name"] and "memory_free" in told[-1]


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "part"),
    [
        ({"prompts": ["error"]}, "InternalError", "ValueError: injected)"),
        ({"prompts": ["input error"]}, "InputError", "injected: pass something else."),
        ({"prompts": ["out of memory"]}, "DeviceMemoryError", "smaller model"),
        ({"prompts": []}, "InputError", "no prompt"),
        ({"prompts": ["word " * 200_000]}, "InputError", "2000"),
        ({"prompts": ["\ud800 surrogate"], "task": "nonsense"}, "InputError", "nonsense"),
        ({"engine": "unknown"}, "InputError", "unknown"),
        ({"preset": "unknown"}, "InputError", "unknown"),
        ({"samples": 0}, "InputError", "samples is 0"),
        ({"window": [5.0, 5.0]}, "InputError", "window"),
        ({"array": "/not/there.npy"}, "InputError", "/not/there.npy"),
        ({"array": __file__}, "InputError", "cannot be read"),
        ({"folder": __file__}, "OutputError", "cannot be written"),
        ({"folder": None}, "InputError", "'folder'"),
        ({"task": "segment_volume"}, "InputError", "ijk_to_ras"),
        ({"task": "refine_slice"}, "InputError", "saliency"),
    ],
)
def test_an_error_has_a_kind_and_a_message_and_the_child_goes_on(shared, folder, changes, kind, part):
    run(shared, {"task": "load"})
    pid = shared.pid
    began = time.monotonic()
    identity = shared.submit(slice_task(folder) | changes)
    assert time.monotonic() - began < 0.5  # also a megabyte is handed over at once
    end = finish(shared, identity)[-1]
    assert (end["event"], end["kind"]) == ("error", kind) and part in end["message"]
    assert results(run(shared, slice_task(folder))) and shared.pid == pid
    assert_tidy(folder / "results")


def test_a_spoiled_gpu_gets_a_new_process(make_client, folder):
    client = make_client()
    bad, waiting = client.submit(slice_task(folder, "cuda error")), client.submit(slice_task(folder))
    events = until(client, lambda event: event.get("id") == waiting and event["event"] in ENDS)
    ends = {event["id"]: event["event"] for event in events if event["event"] in ENDS}
    assert ends == {bad: "error", waiting: "done"}  # what had not begun is none the wiser
    assert [event["event"] for event in events].count("ready") == 2


def test_printing_disturbs_nothing(shared, folder):
    events = run(shared, slice_task(folder, "print"))
    assert len(results(events)) == 1 and events[-1]["event"] == "done"
    until_logged = time.monotonic() + 20
    while not {"below Python", "to stderr", "from a child"} <= set(shared.log) and time.monotonic() < until_logged:
        shared.poll()
    assert {"below Python", "to stderr", "from a child", '{"event": "done", "id": 1}'} <= set(shared.log)


def test_nothing_half_written_gets_its_name(tmp_path):
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="make room"):
        write_array(tmp_path, "mask", Broken())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="MB are free"):
        check_space(tmp_path, (10_000, 100_000, 100_000), 3, 10)


# ---- Cancelling ------------------------------------------------------------------------------------------------------


def test_cancelling_a_slice_and_a_waiting_task(shared, folder):
    run(shared, {"task": "load"})
    pid = shared.pid
    first, second = shared.submit(slice_task(folder, "sleep 0.2")), shared.submit(slice_task(folder))
    third = shared.submit(slice_task(folder, "a third one"))
    until(shared, lambda event: event.get("stage") == "segmenting")
    shared.cancel(second)
    assert [event["event"] for event in finish(shared, second, 0.5)] == [
        "cancelled"
    ]  # at once, not when its turn comes
    shared.cancel(first)
    shared.cancel(first)
    events = until(shared, lambda event: event.get("id") == third and event["event"] in ENDS)
    assert [event["event"] for event in events if event.get("id") == first] == ["cancelled"]
    assert events[-1]["event"] == "done" and shared.pid == pid
    shared.cancel(first)
    shared.cancel(12345)
    assert not results(events[:1]) and shared.poll() == []


@pytest.mark.parametrize("keep", [True, False])
def test_cancelling_a_volume_keeps_the_finished_slices_or_none(shared, folder, keep):
    identity = shared.submit(volume_task(folder, "sleep 0.04"))
    until(shared, lambda event: event.get("done") == 2)
    shared.cancel(identity, keep=keep)
    events = finish(shared, identity)
    if keep:
        (result,) = results(events)
        assert events[-1]["event"] == "done" and events[-1]["kept"]
        statuses = [one["status"] for one in result["slices"]]
        assert statuses[:2] == ["segmented"] * 2 and statuses[-1] == "outside the range"
        mask = maps(result)["mask"]
        assert mask[0].any() and mask[1].any() and not mask[-1].any()
    else:
        assert [event["event"] for event in events if event["event"] != "progress"] == ["cancelled"]
        assert list((folder / "results").iterdir()) == []
    assert_tidy(folder / "results")


def test_keeping_nothing_is_a_plain_cancel(shared, folder):
    identity = shared.submit(volume_task(folder, "sleep 0.1"))
    until(shared, lambda event: event.get("stage") == "slice")
    shared.cancel(identity, keep=True)
    assert finish(shared, identity)[-1]["event"] == "cancelled"


def test_who_does_not_listen_is_ended_and_the_waiting_go_on(make_client, folder):
    client = make_client(grace=0.3)
    hanging, waiting = client.submit(slice_task(folder, "hang 60; grandchild")), client.submit(slice_task(folder))
    until(client, lambda event: event.get("stage") == "segmenting")
    group = client.pid
    began = time.monotonic()
    client.cancel(hanging)
    events = finish(client, hanging)
    assert events[-1]["event"] == "cancelled" and 0.3 <= time.monotonic() - began < 10
    assert_gone(group)
    assert finish(client, waiting)[-1]["event"] == "done" and client.pid != group
    assert_tidy(folder / "results")


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
    ("while encoding", {}, stage("encoding image", 0.05)),
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


# ---- The client in a program that has other things to do -------------------------------------------------------------


@posix
def test_it_works_while_the_main_thread_keeps_the_interpreter_to_itself(make_client, folder):
    """As in Slicer, whose event loop runs in C++ and holds Python's lock between two ticks of a timer."""
    holding = ctypes.PyDLL(None)  # a call through it does not release the lock
    client = make_client()
    run(client, {"task": "load"})
    longest, ticks, events = 0.0, 0, []
    identity = client.submit(slice_task(folder))
    while not any(event["event"] in ENDS for event in events):
        holding.usleep(50_000)
        began = time.perf_counter()
        events += client.poll()
        longest = max(longest, time.perf_counter() - began)
        ticks += 1
    assert events[-1]["event"] == "done" and events[-1]["id"] == identity
    assert ticks <= 60 and longest < 0.5


def test_neither_side_needs_torch():
    modules = ("worker_client", "worker", "worker_tasks", "worker_engines", "volumes", "refine")
    code = f"import sys; from MedCLIPSAMLib import {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_environment_of_the_child(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "/of/the/parent")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "5")
    found = environment({"MORE": "x"})
    assert "PYTHONHOME" not in found and found["MORE"] == "x" and found["PYTHONUTF8"] == "1"
    assert found["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/of/the/parent"]
    assert found["MALLOC_TRIM_THRESHOLD_"] == "5" and found["MALLOC_MMAP_THRESHOLD_"] == "4000000000"


def test_lines_survive_any_cut_and_any_value():
    message = {"event": "x", "text": 'Zeile\n"肺" \ud800', "nan": float("nan"), "n": np.float32(0.5), "a": np.arange(3)}
    line = encode_line(message)
    for size in (1, 7, 10_000):
        splitter = LineSplitter()
        pieces = [(line * 3)[start : start + size] for start in range(0, 3 * len(line), size)]
        lines = [one for piece in pieces for one in splitter.feed(piece)]
        assert lines == [line[:-1]] * 3 and splitter.last() == b""
    assert parse_event(line) == {**message, "nan": None, "n": 0.5, "a": [0, 1, 2]}
    for other in (b"\xff\xfe", b"[1]", b'{"no": 1}', b'{"event": 1}', b"[" * 100_000):
        assert parse_event(other) is None
    with pytest.raises(TypeError):
        encode_line({"event": object()})


# ---- The real engine -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_lite_engine_gives_the_same_bits_in_the_child(lite, folder):
    y, x = np.mgrid[:160, :192]
    image = (40 + 30 * np.sin(x / 9) + 120 * ((x - 90) ** 2 + (y - 70) ** 2 < 700)).astype(np.int16)
    np.save(folder / "slice.npy", image)
    np.save(folder / "volume.npy", np.stack([image, image]))
    engine = TextSegmenter(lite.clip, lite.segmenter, replace(lite.recipe, samples=2, gate=False), lite.calibration)
    settings = {"samples": 2, "gate": False, "device": "cpu", "seed": 5}
    client = WorkerClient()
    try:
        (result,) = results(finish(client, client.submit(slice_task(folder, "brain tumor", **settings)), 400.0))
        engine.set_image(image, WINDOW)
        expected = engine.segment("brain tumor", 5)
        assert expected.mask.any()
        for name, array in maps_of(expected).items():
            np.testing.assert_array_equal(maps(result)[name], array)

        task = volume_task(folder, "brain tumor", **settings)
        (whole,) = results(finish(client, client.submit(task), 400.0))
        plain = MedicalImage(np.stack([image, image]), np.asarray(task["ijk_to_ras"]), None, None, True, folder, True)
        (expected_volume,) = segment_volume(engine, plain, ["brain tumor"], axis=0, window=WINDOW, seed=5)
        for name, array in maps(whole).items():
            np.testing.assert_array_equal(array, getattr(expected_volume, name))

        refining = slice_task(folder, task="refine_slice", saliency=result["files"]["saliency"], **settings)
        (refined,) = results(finish(client, client.submit(refining | {"threshold": 0.6}), 400.0))
        again = engine.refine(expected.saliency, threshold=0.6, seed=5)
        for name in ("mask", "coarse", "entropy"):
            np.testing.assert_array_equal(maps(refined)[name], maps_of(again)[name])
    finally:
        client.close()
