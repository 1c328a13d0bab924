"""How long the session holds up the user interface: ``python bench_session.py [--volume 300 512 512]``.

A quick engine stands in, so that only what happens in Slicer's own process counts: the start of a run, the longest
poll, and the live slider, for a slice and for the whole volume. Prints milliseconds and their part of the limit.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing" / "Python")]

from stand_in_engine import worker_environment  # noqa: E402

from MedCLIPSAMLib.session import Session  # noqa: E402
from MedCLIPSAMLib.session_types import RunRequest  # noqa: E402
from MedCLIPSAMLib.slicer_scene import SlicerScene  # noqa: E402
from MedCLIPSAMLib.worker_client import WorkerClient  # noqa: E402

SLICE_LIMIT, VOLUME_LIMIT, SLIDER_LIMIT = 50.0, 1000.0, 100.0  # ms


def timed(action: Callable[[], object]) -> float:
    """Return the wall time of a call in milliseconds."""
    start = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - start)


def measure(session: Session, request: RunRequest) -> tuple[float, float]:
    """Run a request; return the time of its start and of the longest poll in milliseconds."""
    start = timed(lambda: session.run(request))
    longest = 0.0
    while session.state != "idle":
        longest = max(longest, timed(session.poll))
        time.sleep(0.01)
    return start, longest


def line(name: str, value: float, limit: float) -> None:
    """Print one figure beside its limit."""
    sys.stdout.write(f"| {name} | {value:.1f} ms | {value / limit:.2f} of {limit:.0f} ms |\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volume", type=int, nargs=3, default=(300, 512, 512), metavar=("K", "J", "I"))
    shape = tuple(parser.parse_args().volume)
    rng = np.random.default_rng(0)
    array = rng.integers(0, 200, shape, dtype=np.int16)
    array[:, shape[1] // 3 : shape[1] // 2, shape[2] // 3 : shape[2] // 2] += 800
    worker = WorkerClient(environment=worker_environment())
    with SlicerScene() as built:
        volume = built.add_volume(array, np.diag([0.7, 0.7, 1.0, 1.0]), "volume")
        session = Session(built.scene, worker=worker)
        sys.stdout.write(
            f"{' x '.join(map(str, shape))} int16\n\n| what | longest | of the limit |\n| --- | --- | --- |\n"
        )
        index = shape[0] // 2
        request = RunRequest(volume.GetID(), ("bright",), axis=0, index=index)
        line("slice, first run: start", measure(session, request)[0], SLICE_LIMIT)
        for number in range(2):
            start, longest = measure(session, RunRequest(**{**vars(request), "index": index + number}))
            line("slice: start", start, SLICE_LIMIT)
            line("slice: longest poll", longest, SLICE_LIMIT)
        key = session.segmentation(volume).GetID(), "bright"
        line("slice: live slider", timed(lambda: session.preview(*key, 0.7, 0.3)), SLIDER_LIMIT)
        start, longest = measure(session, RunRequest(volume.GetID(), ("bright",), scope="volume", axis=0))
        line("volume: start", start, VOLUME_LIMIT)
        line("volume: longest poll", longest, VOLUME_LIMIT)
        line("volume: live slider", timed(lambda: session.preview(*key, 0.6, 0.3, index=index)), SLIDER_LIMIT)
        portions = []
        while True:
            start_time = time.perf_counter()
            done = session.apply_coarse()
            portions.append(1000 * (time.perf_counter() - start_time))
            if done:
                break
        line("volume: slider, longest portion", max(portions), VOLUME_LIMIT)
        session.close()


if __name__ == "__main__":
    main()
