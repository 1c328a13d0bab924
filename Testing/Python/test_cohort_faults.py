"""Cohorts on several processes: killed workers and a killed client lose nothing, and the results are the same.

The runs are programs of their own, so that they can be killed: ``python cohort_support.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cohort_support
import numpy as np
import pytest
from cohort_support import counted, draw_inputs, leftovers, loaded, outputs
from PIL import Image

from MedCLIPSAMLib import cohort_cluster, cohort_worker
from MedCLIPSAMLib.cohort import run_cohort
from MedCLIPSAMLib.cohort_rows import DONE
from MedCLIPSAMLib.cohort_table import read_cohort
from MedCLIPSAMLib.errors import CancelledError, MedCLIPSAMError
from MedCLIPSAMLib.worker_engines import ENGINE_VARIABLE

pytest.importorskip("distributed", reason="several processes need the package distributed")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(cohort_support.__file__)
PROMPT = "bright disc"


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    """The stand-in engine here and in child processes; returns the file in which it counts."""
    path = os.pathsep.join([str(ROOT), str(PROGRAM.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv(ENGINE_VARIABLE, cohort_support.ENGINE)
    monkeypatch.setenv(cohort_support.COUNT, str(tmp_path / "count"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    yield tmp_path / "count"
    cohort_worker.release_engine()


def start(source: Path, output: Path, *arguments: str) -> subprocess.Popen:
    """Start `segment-cohort` on two processes."""
    command = [sys.executable, str(PROGRAM), str(source), "--prompt", PROMPT, "--output", str(output), "--workers", "2"]
    with (output.parent / "log.txt").open("ab") as log:
        _started.append(subprocess.Popen([*command, *arguments], stdout=log, stderr=log))
    return _started[-1]


_started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    """A test that fails leaves no run behind."""
    yield
    while _started:
        child = _started.pop()
        if child.poll() is None:
            child.kill()
            child.wait()


def wait_for(condition, child: subprocess.Popen | None, seconds: float = 150.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        assert child is None or child.poll() is None, f"the run ended with {child.returncode}"
        time.sleep(0.02)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc").exists()


def kill_workers_and_client(child: subprocess.Popen, done, ready, points: list[int]) -> None:
    """Kill a worker at each of the points but the last, and the client at the last; ``done()`` counts finished ones."""
    *of_workers, of_client = points
    for point in of_workers:
        wait_for(lambda point=point: done() >= point and ready(), child)
        os.kill(ready()[-1], signal.SIGKILL)
    wait_for(lambda: done() >= of_client, child)
    child.kill()
    child.wait()


@pytest.mark.slow
def test_killed_workers_and_a_killed_client_lose_nothing(tmp_path, stand_in, monkeypatch):
    total = 2000
    source, out = draw_inputs(tmp_path / "in", total, side=18), tmp_path / "out"
    child = start(source, out)

    def workers() -> list[int]:
        return [pid for pid in loaded(stand_in) if running(pid)]

    kill_workers_and_client(child, lambda: sum(counted(stand_in).values()), workers, [150, 400, 650, 1000])
    wait_for(lambda: not workers(), None)  # they end with their client
    assert len(loaded(stand_in)) == 5  # two, and one for each killed
    after_kill = sum(counted(stand_in).values())
    assert 1000 <= after_kill < total
    again = start(source, out)
    assert again.wait(150) == 0, (tmp_path / "log.txt").read_text()[-2000:]
    cohort = read_cohort(out)
    assert len(cohort.cases) == total and all(case.results[0].status == DONE for case in cohort.cases)
    # Each kill can catch a process between segmenting an input and writing that it is done: one more for it at most.
    counts = counted(stand_in)
    assert len(counts) == total
    assert sum(counts.values()) <= total + 3 + 2
    assert leftovers(out) == [] and not workers()
    monkeypatch.delenv(cohort_support.COUNT)
    clean = run_cohort(source, [PROMPT], tmp_path / "clean", workers=1)
    assert outputs(out) == outputs(tmp_path / "clean") and len(outputs(out)) == 5 * total

    def facts(one) -> list:
        return [(case.name, case.digest, [(r.entropy, r.confidence) for r in case.results]) for case in one.cases]

    assert facts(clean) == facts(cohort)


@pytest.mark.slow
def test_killed_workers_and_a_killed_client_with_the_lite_engine(tmp_path, lite, data_dir):
    """As above with real images and the real engine, whose numbers must not depend on who computes them."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    found = [sorted((data_dir / task / "test" / "images").iterdir())[:20] for task in TASKS]
    for path in (one for of_task in found for one in of_task):
        picture = Image.open(path)
        picture.resize([max(1, side // 2) for side in picture.size]).save(source / path.name)  # the rest is waiting
    names = len(list(source.iterdir()))
    assert names == 40

    def done() -> int:
        return len(list((out / "cases").glob("*/case.json")))

    def workers() -> list[int]:
        return [pid for pid in children_of(child.pid) if running(pid)] if done() else []

    options = ("--set", "samples=1", "--device", "cpu", "--set", "gate=false")
    child = start(source, out, *options)
    kill_workers_and_client(child, done, workers, [2, 8, 14, 20])
    again = start(source, out, *options)
    assert again.wait(200) == 0, (tmp_path / "log.txt").read_text()[-2000:]
    cohort = read_cohort(out)
    assert [case.results[0].status for case in cohort.cases] == [DONE] * 40 and leftovers(out) == []
    # this process, on some of them
    settings = {"changes": {"samples": "1", "gate": "false"}, "device": "cpu", "workers": 1, "limit": 8}
    run_cohort(source, [PROMPT], tmp_path / "clean", **settings)
    cohort_worker.release_engine()
    clean, both = outputs(tmp_path / "clean"), outputs(out)
    assert len(clean) == 8 * 5 and len(both) == 40 * 5
    assert {name: both[name] for name in clean} == clean


TASKS = ("breast_ultrasound_tumour", "brain_mri_tumour")


def children_of(pid: int) -> list[int]:
    """Return the worker processes of a client, without Python's resource tracker."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(words[1]) == pid and b"resource_tracker" not in command:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_an_input_that_ends_the_process_is_given_up(tmp_path, stand_in):
    source, out = draw_inputs(tmp_path / "in", 12), tmp_path / "out"
    deadly = np.array(Image.open(source / "image 0003.png"))
    deadly[0, 0] = 250
    Image.fromarray(deadly).save(source / "image 0003.png")
    environment = dict(os.environ)
    cohort = run_cohort(source, [PROMPT], out, workers=2)
    assert "PYTEST_CURRENT_TEST" in environment and dict(os.environ) == environment  # Dask's threads stay Dask's
    states = [case.results[0].status for case in cohort.cases]
    assert states.count(DONE) == 11 and states[3] == "failed"
    assert "ended without a word" in cohort.cases[3].results[0].reason
    assert len(loaded(stand_in)) <= 2 + cohort_worker.ATTEMPTS and leftovers(out) == []
    assert set(counted(stand_in).values()) == {1}


@pytest.mark.slow
def test_running_scheduler_cancel_and_errors(tmp_path, stand_in):
    from distributed import LocalCluster

    source, out = draw_inputs(tmp_path / "in", 30), tmp_path / "out"
    with pytest.raises(MedCLIPSAMError, match="no Dask scheduler at 'nowhere:1'"):
        run_cohort(source, [PROMPT], out, scheduler="nowhere:1")
    bad = source / "flat.png"
    Image.new("L", (30, 30), 7).save(bad)
    with (
        cohort_cluster.same_environment(),
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, memory_limit=0) as cluster,
    ):
        address = cluster.scheduler_address
        with pytest.raises(CancelledError):
            cancel_after = lambda: sum(counted(stand_in).values()) >= 10  # noqa: E731
            run_cohort(source, [PROMPT], out, scheduler=address, cancelled=cancel_after)
        states = [case.results[0].status for case in read_cohort(out).cases]
        assert 0 < states.count(DONE) < 30
        time.sleep(0.5)  # what was handed out already
        cohort = run_cohort(source, [PROMPT], out, scheduler=address)
        states = {case.source.name: case.results[0].status for case in cohort.cases}
        assert states.pop("flat.png") == "failed" and set(states.values()) == {DONE} and len(states) == 30
        assert len(loaded(stand_in)) == 1  # kept from run to run, also with two threads
        # each was segmented once, but for those that the cancelled run had in hand
        assert len(counted(stand_in)) == 30 and sum(counted(stand_in).values()) <= 34
        # another folder of that name on the workers' machine
        settings = json.loads((out / "cohort.json").read_text())
        with pytest.raises(MedCLIPSAMError, match="does not see the folder"):
            cohort_worker.check_process(str(out), settings["run"] + "0")
