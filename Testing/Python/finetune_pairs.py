"""Small image-caption sets for the tests of fine-tuning, and the trainer's command in a process of its own."""

from __future__ import annotations

import atexit
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("upper left", "upper right", "lower left", "lower right")
SHADES = ("dark", "bright")
KINDS = ("round", "oval", "long")


def write_pairs(folder: Path, count: int = 20, seed: int = 0) -> Path:
    """Write ``count`` images (at most 24 differ in words) with a blob each and ``pairs.csv``; return that file."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    y, x = np.mgrid[:48, :48]
    for number in range(count):
        side, shade, kind = number % 4, number // 4 % 2, number // 8 % 3
        centre = (12 if side < 2 else 35, 12 if side % 2 == 0 else 35)
        radii = ((7, 7), (6, 10), (3, 14))[kind]
        blob = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
        pixels = rng.normal(110, 12, (48, 48))
        pixels[blob] += (-70, 90)[shade]
        name = f"images/{number:03}.png"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
        rows.append((name, f"A {shade} {KINDS[kind]} spot in the {SIDES[side]} of image {number // 24}", f"p{number}"))
    path = folder / "pairs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "caption", "patient"), *rows])
    return path


@lru_cache(maxsize=1)
def shared_features() -> Path:
    """A folder for the features of these images that lives as long as this process: each is encoded once."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-features-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def start(
    options: Sequence[object], processes: int = 1, log: Path | None = None, **environment: str
) -> subprocess.Popen:
    """Start ``python -m MedCLIPSAMTraining.finetune``, or several by torch's launcher."""
    search = os.pathsep.join([str(ROOT), str(ROOT / "training")])
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command += ["MedCLIPSAMTraining.finetune", *map(str, options)]
    env = os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"} | environment
    if log is None:
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with log.open("ab") as stream:
        return subprocess.Popen(command, env=env, stdout=stream, stderr=stream)


def run(options: Sequence[object], log: Path, processes: int = 1, **environment: str) -> None:
    """Run it to its end, which must be a good one."""
    code = start(options, processes, log, **environment).wait(300)
    if code:
        raise RuntimeError(f"ended with {code}:\n" + log.read_text(encoding="utf-8", errors="replace")[-3000:])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the lines of a record; none while it is not there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def wait_until(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 200) -> None:
    """Wait while the process lives; an end before the condition holds is a failure."""
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"the process ended with {process.returncode}")
        if time.monotonic() > until:
            raise TimeoutError("waited too long")
        time.sleep(0.002)
