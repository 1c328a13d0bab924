"""Small drawn sets for the weakly supervised training, and its command in a process of its own.

The target is bright, which is what the engine of stand_in_engine.py finds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--plans", "small", "--epochs", "4", "--cycles", "2", "--checkpoints", "1", "--iterations", "2"]
"""A training of seconds: eight batches, and two kept checkpoints."""


def picture(rng: np.random.Generator, shape: tuple[int, int] = (48, 56)) -> tuple[np.ndarray, np.ndarray]:
    """A grey image with a bright blob, and the blob's mask."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    centre = rng.uniform(14, 30, 2)
    mask = ((y - centre[0]) / rng.uniform(6, 9)) ** 2 + ((x - centre[1]) / rng.uniform(6, 9)) ** 2 < 1
    pixels = rng.normal(60, 6, shape)
    pixels[mask] += 130
    return np.clip(pixels, 1, 255).astype(np.uint8), mask


def write_images(folder: Path, count: int = 6, masks: Path | None = None) -> Path:
    """Write PNG images, and their masks where wanted; return the folder."""
    rng = np.random.default_rng(0)
    for place in filter(None, (folder, masks)):
        place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels, mask = picture(rng)
        Image.fromarray(pixels).save(folder / f"image_{number}.png")
        if masks is not None:
            Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"image_{number}.png")
    return folder


def block(rng: np.random.Generator, slices: int = 5) -> np.ndarray:
    """A volume (K, J, I) int16 with a bright tube, in made-up Hounsfield units."""
    pixels, mask = picture(rng, (40, 44))
    volume = np.repeat(pixels[None].astype(np.int16), slices, axis=0) + rng.integers(-4, 4, (slices, 1, 1))
    volume[:, mask] += 100
    return (volume - 100).astype(np.int16)


def write_volumes(folder: Path, count: int = 3) -> Path:
    """Write NIfTI volumes with an oblique geometry; return the folder."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    turn = np.deg2rad(20)
    axes = [np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn), 0, 0, 0, 1]
    for number in range(count):
        image = sitk.GetImageFromArray(block(rng))
        image.SetSpacing((0.8, 0.9, 3.0))
        image.SetDirection(axes)
        image.SetOrigin((-11.0, 7.0, 40.0 + number))
        sitk.WriteImage(image, str(folder / f"volume_{number}.nii.gz"))
    return folder


def write_dicom_folder(folder: Path, patients: int = 3) -> Path:
    """Write one CT series a patient, each in a folder of its own; return the folder of all."""
    from test_file_dicom import dicom  # imports the library, which the panel's tests load from another place

    rng = np.random.default_rng(2)
    for patient in range(patients):
        series = folder / f"study{patient}"
        series.mkdir(parents=True)
        for number, plane in enumerate(block(rng)):
            dicom(
                series / f"{number}.dcm",
                plane,
                PatientID=f"secret-{patient}",
                SeriesInstanceUID=f"1.2.3.{patient}",
                ImagePositionPatient=[0.0, 0.0, 2.5 * number],
                RescaleSlope=1,
                RescaleIntercept=0,
            )
    return folder


def environment(**variables: str) -> dict[str, str]:
    """The variables of a training that takes the stand-in engine."""
    search = os.pathsep.join(map(str, (ROOT, ROOT / "training", ROOT / "Testing" / "Python")))
    own = {"MEDCLIPSAM_WORKER_ENGINE": "stand_in_engine:load", "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    return os.environ | own | variables


def start(options: Sequence[object], log: Path, **variables: str) -> subprocess.Popen:
    """Start ``python -m MedCLIPSAMTraining.weak_supervision`` on the CPU."""
    command = [sys.executable, "-m", "MedCLIPSAMTraining.weak_supervision", *map(str, options)]
    command += ["--device", "cpu", "--workers", "0"]
    with log.open("ab") as stream:
        return subprocess.Popen(command, env=environment(**variables), stdout=stream, stderr=stream)


def run(options: Sequence[object], log: Path, **variables: str) -> None:
    """Run it to its end, which must be a good one."""
    code = start(options, log, **variables).wait(300)
    if code:
        raise RuntimeError(f"ended with {code}:\n" + log.read_text("utf-8", errors="replace")[-4000:])


def wait_until(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 200) -> None:
    """Wait while the process lives; an end before the condition holds is a failure."""
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"the process ended with {process.returncode}")
        if time.monotonic() > until:
            raise TimeoutError("waited too long")
        time.sleep(0.005)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until the condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("waited too long")
        time.sleep(0.02)


def read_json(path: Path) -> dict:
    """A JSON file's content."""
    return json.loads(path.read_text("utf-8"))
