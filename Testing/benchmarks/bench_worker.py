"""What the background process adds to the pipeline's own time on one slice, with the models warm in both processes.

    python Testing/benchmarks/bench_worker.py [--quick] [--side 512]

Every image is new to both, so it is encoded by both; they take turns on it, so that other load on the machine hits
both. The child's time runs from the array in this process to the result's arrays in this process, files included.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from MedCLIPSAMLib.engines import load_engine  # noqa: E402
from MedCLIPSAMLib.pipeline import TextSegmenter  # noqa: E402
from MedCLIPSAMLib.worker_client import ENDS, WorkerClient  # noqa: E402

PROMPT = "brain tumor"
WINDOW = (-100.0, 400.0)
ADDED_TARGET = 150.0  # milliseconds


def image(number: int, side: int) -> np.ndarray:
    """(side, side) int16 with a bright ball in noise, another one for every number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side]
    centre, radius = rng.uniform(0.3 * side, 0.7 * side, 2), side / 10
    ball = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    return (rng.normal(0, 30, (side, side)) + 300 * ball).astype(np.int16)


def finish(client: WorkerClient, identity: int) -> list[dict[str, Any]]:
    """Return all events of a task."""
    events: list[dict[str, Any]] = []
    while not any(event.get("id") == identity and event["event"] in ENDS for event in events):
        events += client.wait(1.0)
    if events[-1]["event"] != "done":
        raise SystemExit(f"the task failed: {events[-1].get('message')}")
    return events


def here(segmenter: TextSegmenter, array: np.ndarray) -> dict[str, np.ndarray]:
    """Segment in this process."""
    segmenter.set_image(array, WINDOW)
    result = segmenter.segment(PROMPT, gate=False)
    return {"mask": result.mask, "saliency": result.saliency, "entropy": result.entropy, "coarse": result.coarse.mask}


def there(client: WorkerClient, array: np.ndarray, folder: Path) -> tuple[dict[str, np.ndarray], float]:
    """Segment in the child; also return the seconds that its pipeline took."""
    path = folder / "slice.npy"
    np.save(path, array)
    task = {"task": "segment_slice", "array": str(path), "window": WINDOW, "prompts": [PROMPT], "folder": str(folder)}
    events = finish(client, client.submit({**task, "gate": False, "device": "cpu"}))
    (result,) = [event for event in events if event["event"] == "result"]
    seconds = events[-1]["seconds"]
    maps = {name: np.load(file) for name, file in result["files"].items()}
    return maps, seconds["reading image"] + seconds["segmenting"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--side", type=int, default=512, help="rows and columns of the slice")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    repeats = 5 if arguments.quick else 15
    segmenter = load_engine("lite", device="cpu")
    client = WorkerClient()
    began = time.perf_counter()
    client.start()
    while not any(event["event"] == "ready" for event in client.wait(60.0)):
        pass
    ready = time.perf_counter() - began
    finish(client, client.submit({"task": "load", "engine": "lite", "device": "cpu"}))
    loaded = time.perf_counter() - began
    own, whole, added = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats + 2):
            array = image(turn, arguments.side)
            start = time.perf_counter()
            expected = here(segmenter, array)
            middle = time.perf_counter()
            found, pipeline = there(client, array, Path(folder))
            end = time.perf_counter()
            if any(not np.array_equal(found[name], expected[name]) for name in expected):
                raise SystemExit("the child's result differs from this process's")
            if turn > 1:  # the first two warm up
                own.append(middle - start)
                whole.append(end - middle)
                added.append(1000 * (end - middle - pipeline))
    began = time.perf_counter()
    client.close()
    closed = time.perf_counter() - began
    ratio = statistics.median(b / a for a, b in zip(own, whole, strict=True))
    verdict = "reached" if statistics.median(added) <= ADDED_TARGET else "MISSED"
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"
    print(f"lite engine, slice {arguments.side} x {arguments.side}, {repeats} images, load {load}")
    print(f"with the child / in this process  {ratio:.3f}")
    print(
        f"added by the child                {statistics.median(added):.1f} ms (median), {max(added):.1f} ms (highest); "
        f"at most {ADDED_TARGET:.0f} ms: {verdict}"
    )
    print(f"in this process                   {1000 * statistics.median(own):.1f} ms")
    print(f"with the child                    {1000 * statistics.median(whole):.1f} ms")
    print(f"start to ready, to models loaded  {ready:.2f} s, {loaded:.2f} s")
    print(f"close                             {closed:.2f} s")


if __name__ == "__main__":
    main()
