"""How much faster two processes segment a cohort than one, with models of one thread each.

    python Testing/benchmarks/bench_cohort.py [--quick] [--engine lite]

The ratio is of the rates between the first and the last finished input, so that starting the processes and loading the
models, which a long run does once, do not count; both are told as well. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing" / "Python")]
os.environ["OMP_NUM_THREADS"] = "1"  # before torch; Dask sets it for its processes as well
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])

from cohort_support import draw_inputs, outputs  # noqa: E402

from MedCLIPSAMLib import cohort_worker  # noqa: E402
from MedCLIPSAMLib.cohort import run_cohort  # noqa: E402

TARGET = 1.7
PROMPT = "a bright mass"


@dataclass(frozen=True)
class Timed:
    """One run: inputs a second once under way, seconds up to the first result, and its masks and maps."""

    rate: float
    starting: float
    outputs: dict[str, bytes]


def timed(source: Path, output: Path, workers: int, engine: str) -> Timed:
    """Run a cohort."""
    finished: list[float] = []
    began = time.perf_counter()
    run_cohort(
        source,
        [PROMPT],
        output,
        engine=engine,
        device="cpu",
        gate=False,
        workers=workers,
        progress=lambda done, _: finished.append(time.perf_counter()) if done else None,
    )
    cohort_worker.release_engine()
    # The second process loads its models while the first one works: its first inputs are left out, too.
    under_way = finished[2 * workers :]
    return Timed((len(under_way) - 1) / (under_way[-1] - under_way[0]), finished[0] - began, outputs(output))


def main() -> int:
    """Run the benchmark; the exit code says whether the target was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer inputs, one repetition")
    parser.add_argument("--engine", default="lite")
    options = parser.parse_args()
    count, repeats = (24, 1) if options.quick else (60, 3)
    runs: dict[int, list[Timed]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        source = draw_inputs(folder / "in", count, side=256)
        for turn in range(repeats):  # in turns, so that a change of the machine's pace meets both
            for workers, of_them in runs.items():
                of_them.append(timed(source, folder / f"out{turn}-{workers}", workers, options.engine))
    same = runs[1][0].outputs == runs[2][0].outputs
    ratio = statistics.median(two.rate / one.rate for one, two in zip(runs[1], runs[2], strict=True))
    sys.stdout.write(f"{count} images of 256 x 256, engine {options.engine}, {os.cpu_count()} cores\n")
    for workers, of_them in runs.items():
        rate, starting = (statistics.median(getattr(one, name) for one in of_them) for name in ("rate", "starting"))
        sys.stdout.write(f"{workers} process(es): {rate:.2f} inputs a second, {starting:.1f} s to the first result\n")
    sys.stdout.write(f"two to one: {ratio:.2f} (target {TARGET}); the same masks and maps: {'yes' if same else 'NO'}\n")
    return 0 if ratio >= TARGET and same else 1


if __name__ == "__main__":
    raise SystemExit(main())
