"""How fast an engine is on this machine: time per stage, the operations it must do, and what the machine could do.

Times alone say as much about the computer as about the program. So the floating-point operations of every stage are
counted, and their rate is compared with that of a large matrix product on the same device in the same number format.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from MedCLIPSAMLib.errors import InputError

if TYPE_CHECKING:
    from MedCLIPSAMLib.pipeline import TextSegmenter

_SIDES = {"cpu": 2048, "cuda": 8192, "mps": 4096}
_TOTAL, _SECOND = "all", "another prompt"


@dataclass(frozen=True)
class StageRate:
    """One stage of a run.

    Attributes:
        name: As in ``result.json``; "all" is the whole first prompt, "another prompt" a second one on the same image.
        seconds: Median wall time.
        operations: Floating-point operations (a multiplication with its addition counts as two) in matrix products,
            convolutions and attention; the rest is small and is not counted.
    """

    name: str
    seconds: float
    operations: int

    def share(self, peak: float) -> float:
        """Return the part of ``peak`` (operations per second) that was reached."""
        return self.operations / self.seconds / peak if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Benchmark:
    """What :func:`benchmark` found.

    Attributes:
        stages: In the order of the run.
        peak: Operations per second of a large matrix product.
        device, precision: Where, and in which number format, the large models ran.
        memory: Highest memory of the device in bytes; None where it is not known.
    """

    stages: tuple[StageRate, ...]
    peak: float
    device: str
    precision: str
    memory: int | None


def benchmark(
    segmenter: TextSegmenter,
    image: np.ndarray,
    prompts: Sequence[str],
    *,
    repeats: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Benchmark:
    """Measure an engine on an image.

    Args:
        segmenter: A loaded engine.
        image: (H, W) or (H, W, 3) uint8; every repetition sees it moved by a pixel, so that nothing is cached.
        prompts: Two texts; the second one is asked on the image of the first.
        repeats: Runs that count, after one that warms up; their median is told.
        progress: Called with (runs done, runs in all).

    Raises:
        InputError: Fewer than one repetition, or not two prompts.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats}; it must be at least 1.")
    if len(prompts) != 2:
        raise InputError(f"{len(prompts)} prompts were given; the benchmark asks two.")
    device = str(segmenter.device)
    precision = getattr(segmenter, "precision", "float32")
    runs: list[dict[str, float]] = []
    operations: dict[str, int] = {}
    for turn in range(repeats + 1):
        moved = np.roll(image, turn, axis=1)
        if turn == 0:
            operations = _counted(segmenter, moved, prompts)
            _forget_memory(device)  # counting stores attention matrices that no run does
        else:
            runs.append(_timed(segmenter, moved, prompts, device))
        if progress is not None:
            progress(turn + 1, repeats + 1)
    stages = tuple(
        StageRate(name, statistics.median(run[name] for run in runs), operations.get(name, 0)) for name in runs[0]
    )
    memory = _highest_memory(device)  # before the product, which takes some itself
    return Benchmark(stages, matrix_product_rate(device, precision), device, precision, memory)


def matrix_product_rate(device: str, precision: str = "float32", repeats: int = 5) -> float:
    """Return the operations per second of a square matrix product on a device: the best of some."""
    import torch

    side = _SIDES.get(device.partition(":")[0], 2048)
    left, right = (torch.randn(side, side, device=device).to(getattr(torch, precision)) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        _synchronise(device)
        start = time.perf_counter()
        left @ right
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def benchmark_table(found: Benchmark, engine: str) -> str:
    """Return the table for a person."""
    rows = [("stage", "seconds", "GFLOP", "GFLOP/s", "of peak")]
    for one in found.stages:
        rate = one.operations / one.seconds / 1e9 if one.seconds > 0 else 0.0
        counted = one.operations > 0
        rows.append(
            (
                one.name,
                f"{one.seconds:.3f}",
                f"{one.operations / 1e9:.1f}" if counted else "-",
                f"{rate:.1f}" if counted else "-",
                f"{one.share(found.peak):.0%}" if counted else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    memory = "" if found.memory is None else f", at most {found.memory / 1e9:.1f} GB of memory"
    head = (
        f"{engine} on {found.device} ({found.precision}{memory}); a large matrix product reaches "
        f"{found.peak / 1e9:.0f} GFLOP/s"
    )
    return "\n".join([head, *lines, "What several stages share is counted in the first that needs it."])


def _timed(segmenter: TextSegmenter, image: np.ndarray, prompts: Sequence[str], device: str) -> dict[str, float]:
    start = time.perf_counter()
    segmenter.set_image(image, (0.0, 255.0))
    first = segmenter.segment(prompts[0], gate=False)
    _synchronise(device)
    between = time.perf_counter()
    segmenter.segment(prompts[1], gate=False)
    _synchronise(device)
    return {**first.seconds, _TOTAL: between - start, _SECOND: time.perf_counter() - between}


def _counted(segmenter: TextSegmenter, image: np.ndarray, prompts: Sequence[str]) -> dict[str, int]:
    """Return the operations of each stage; also warms up."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    begun: list[tuple[str, int]] = []
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter cannot look into joint kernels
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            segmenter.set_image(image, (0.0, 255.0))
            segmenter.segment(
                prompts[0], gate=False, stage=lambda name: begun.append((name, counter.get_total_flops()))
            )
            first = counter.get_total_flops()
            segmenter.segment(prompts[1], gate=False)
            second = counter.get_total_flops() - first
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    ends = [count for _, count in begun[1:]] + [first]
    counted = {name: end - count for (name, count), end in zip(begun, ends, strict=True)}
    return {**counted, _TOTAL: first, _SECOND: second}


def _synchronise(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def _forget_memory(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def _highest_memory(device: str) -> int | None:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
