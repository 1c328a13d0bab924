"""When memory runs out: smaller batches, then the CPU, and a note; with allocations that really fail."""

from __future__ import annotations

import subprocess
import sys
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from MedCLIPSAMLib.errors import DeviceMemoryError
from MedCLIPSAMLib.memory import MemoryGuard, free_device_memory, is_out_of_memory

ROOT = Path(__file__).resolve().parents[2]
TOO_MUCH = 1 << 60
ITEMS = torch.arange(11.0)


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


class Doubling:
    """Doubles eleven items, so many at a time; where ``fits`` is exceeded it really asks for an exabyte."""

    def __init__(self, device: str = "cpu:0", fits: dict[str, int] | None = None):
        self.guard = MemoryGuard("doubling", device, self._to_cpu)
        self.place = device
        self.fits = fits or {}
        self.batches: list[tuple[str, int]] = []

    def _to_cpu(self) -> None:
        self.place = "cpu"

    def work(self, batch: int) -> torch.Tensor:
        self.batches.append((self.place, batch))
        results = []
        for start in range(0, len(ITEMS), batch):
            results.append(2 * ITEMS[start : start + batch].to(self.place))
            if batch > self.fits.get(self.place, 99):
                torch.empty(TOO_MUCH)
        return torch.cat(results)


def test_real_failures_are_told_from_others():
    with pytest.raises(RuntimeError) as torch_failure:
        torch.empty(TOO_MUCH)
    with pytest.raises(MemoryError) as numpy_failure:
        np.empty(TOO_MUCH, np.uint8)
    with pytest.raises(MemoryError) as python_failure:
        bytearray(TOO_MUCH)
    for failure in (torch_failure, numpy_failure, python_failure):
        assert is_out_of_memory(failure.value)
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not is_out_of_memory(other.value)
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        DeviceMemoryError("The device has not enough memory."),
    ],
)
def test_messages_of_other_devices(error):
    assert is_out_of_memory(error)


def test_enough_memory_changes_nothing():
    model = Doubling()
    assert torch.equal(model.guard.run(model.work, 8), 2 * ITEMS)
    assert model.batches == [("cpu:0", 8)] and model.guard.device == "cpu:0" and model.guard.take_notes() == []


def test_the_batch_is_halved_until_it_fits_and_that_is_remembered():
    model = Doubling(fits={"cpu:0": 2})
    assert torch.equal(model.guard.run(model.work, 8), 2 * ITEMS)
    assert model.batches == [("cpu:0", 8), ("cpu:0", 4), ("cpu:0", 2)]
    notes = model.guard.take_notes()
    assert notes == [f"doubling: the memory of cpu:0 ran out; now in batches of {batch}." for batch in (4, 2)]
    assert model.guard.take_notes() == [], "each is told once"
    model.batches.clear()
    assert torch.equal(model.guard.run(model.work, 8), 2 * ITEMS)
    assert torch.equal(model.guard.run(model.work, 1), 2 * ITEMS)
    assert model.batches == [("cpu:0", 2), ("cpu:0", 1)] and model.guard.device == "cpu:0"


def test_what_fits_is_known_for_each_kind_of_work():
    model = Doubling(fits={"cpu:0": 2})
    model.guard.run(model.work, 8, "large")
    model.batches.clear()
    model.fits = {}
    model.guard.run(model.work, 16, "small")
    model.guard.run(model.work, 16, "large")
    assert model.batches == [("cpu:0", 16), ("cpu:0", 2)]


def test_the_cpu_is_the_last_resort():
    model = Doubling(fits={"cpu:0": 0})
    assert torch.equal(model.guard.run(model.work, 2), 2 * ITEMS)
    assert model.batches == [("cpu:0", 2), ("cpu:0", 1), ("cpu", 1)]
    assert model.guard.device == "cpu"
    assert "now runs on the CPU, which is slower" in model.guard.take_notes()[-1]
    model.guard.run(model.work, 2)
    assert model.batches[-1] == ("cpu", 1) and model.guard.take_notes() == []


def test_want_of_memory_on_the_cpu_is_an_error():
    model = Doubling("cpu", fits={"cpu": 0})
    with pytest.raises(RuntimeError, match="allocate") as failure:
        model.guard.run(model.work, 4)
    assert is_out_of_memory(failure.value)
    assert model.batches == [("cpu", 4), ("cpu", 2), ("cpu", 1)]
    assert model.guard.device == "cpu"


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_pass_at_once(error):
    calls = []

    def work(batch: int) -> None:
        calls.append(batch)
        raise error

    guard = MemoryGuard("model", "cpu:0", lambda: pytest.fail("moved to the CPU"))
    with pytest.raises(type(error)):
        guard.run(work, 4)
    assert calls == [4] and guard.take_notes() == []


def test_a_batch_below_one_is_refused():
    with pytest.raises(ValueError, match="batch"):
        MemoryGuard("model", "cpu", lambda: None).run(lambda batch: batch, 0)


def test_a_failed_attempt_keeps_nothing_alive():
    """Otherwise its tensors would take the memory that the smaller batch needs."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive = []

    def work(batch: int) -> int:
        alive.append([reference() is not None for reference in held])
        activations = torch.ones(1000)
        held.append(weakref.ref(activations))
        cycle = [activations]
        cycle.append(cycle)
        if batch > 1:
            torch.empty(TOO_MUCH)
        return batch

    assert MemoryGuard("model", "cpu", lambda: None).run(work, 4) == 1
    assert alive == [[], [False], [False, False]]


def test_under_a_real_limit_of_the_process():
    """A product of matrices under RLIMIT_AS: the limit is the system's, not a number in the test."""
    pytest.importorskip("resource")
    program = """
import resource, torch
from MedCLIPSAMLib.memory import MemoryGuard
torch.set_num_threads(1)
items = torch.ones(64, 1 << 16)
def work(batch):
    return torch.cat([(items[i : i + batch, None] * torch.ones(64, 1)).sum(dim=(1, 2)) for i in range(0, 64, batch)])
work(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))
guard = MemoryGuard("matrices", "cpu", lambda: None)
result = guard.run(work, 64)  # 1 GiB at once
print(bool((result == 64 * (1 << 16)).all()), len(guard.take_notes()) > 0)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    done = run(program)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_freeing_memory_without_torch_needs_no_torch():
    program = (
        "import sys; from MedCLIPSAMLib.memory import *; from MedCLIPSAMLib import memory; "
        "memory.free_device_memory(); print('torch' in sys.modules)"
    )
    done = run(program)
    assert done.stdout.strip() == "False", done.stderr
    free_device_memory()


def test_an_engine_says_where_its_models_are(untrained_segmenter) -> None:
    """After one of them had to leave the GPU the results name the CPU, and a kept engine is loaded anew."""
    from MedCLIPSAMLib.pipeline import TextSegmenter
    from MedCLIPSAMLib.worker_engines import KeptEngine

    clip, segmenter = untrained_segmenter.clip, untrained_segmenter.segmenter
    engine = TextSegmenter(clip, segmenter, untrained_segmenter.recipe, device="cuda")
    assert engine.device == "cpu", "that of the models, whatever was asked for"
    for model in (clip, segmenter):
        model.memory.device = "cuda"
    try:
        assert engine.device == "cuda"
        kept = KeptEngine()
        kept._segmenter, kept._key, kept._device = engine, ("lite", "auto"), "cuda"
        assert kept.is_loaded("lite", "auto")
        clip.memory.device = "cpu"
        assert engine.device == "cpu" and not kept.is_loaded("lite", "auto")
    finally:
        for model in (clip, segmenter):
            model.memory.device = "cpu"


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("out of shape")])
def test_want_of_memory_while_loading_names_the_remedy(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    from MedCLIPSAMLib import engines

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(engines, "load_segmenter", fail)
    monkeypatch.setattr(
        engines, "resolve", lambda names: {name: types.SimpleNamespace(name=name, path=None) for name in names}
    )
    if "memory" in str(failure):
        with pytest.raises(DeviceMemoryError, match=r"to load lite; close other programs.*--device cpu"):
            engines.load_engine("lite", device="cpu")
    else:
        with pytest.raises(RuntimeError, match="out of shape"):
            engines.load_engine("lite", device="cpu")
