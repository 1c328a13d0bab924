"""The client in a program that has other things to do, and the lines and files between the two processes."""

# ruff: noqa: F401, F811 (fixtures are imported)

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from worker_support import (
    folder,
    make_client,
    posix,
    run,
    slice_task,
)

from MedCLIPSAMLib.errors import OutputError
from MedCLIPSAMLib.event_lines import LineSplitter, encode_line, parse_event
from MedCLIPSAMLib.worker_client import ENDS
from MedCLIPSAMLib.worker_files import check_space, write_array
from MedCLIPSAMLib.worker_launch import ROOT, environment


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


def test_nothing_half_written_gets_its_name(tmp_path):
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="make room"):
        write_array(tmp_path, "mask", Broken())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="MB are free"):
        check_space(tmp_path, (10_000, 100_000, 100_000), 3, 10)
