"""What the tests of the background process share: tasks, clients, and ways to wait for events."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in_engine import worker_environment

from MedCLIPSAMLib.results import PromptResult
from MedCLIPSAMLib.worker_client import ENDS, WorkerClient
from MedCLIPSAMLib.worker_files import UNFINISHED

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
