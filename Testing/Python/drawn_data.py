"""Drawn masks, and the four data sets' layout with them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

FOLDERS = {
    "breast_ultrasound_tumour": ("BUSI", "benign"),
    "brain_mri_tumour": ("figshare", "tumour"),
    "chest_xray_lung": ("Shenzhen", "tuberculosis"),
    "chest_ct_lung": ("CT", "lung"),
}


def ellipse(
    shape: tuple[int, int], centre: tuple[float, float], axes: tuple[float, float], turn: float = 0
) -> np.ndarray:
    """A filled ellipse; ``axes`` are the half axes along rows and columns, turned by ``turn`` degrees."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    rows, columns = rows - centre[0], columns - centre[1]
    angle = np.deg2rad(turn)
    along = columns * np.cos(angle) - rows * np.sin(angle)
    across = columns * np.sin(angle) + rows * np.cos(angle)
    return (across / axes[0]) ** 2 + (along / axes[1]) ** 2 <= 1


def make_data(folder: Path, images: int = 3) -> Path:
    """The four data sets' layout with drawn masks."""
    rng = np.random.default_rng(0)
    for name, (dataset, label) in FOLDERS.items():
        rows = [["file", "split", "dataset", "subject", "label", "has_target"]]
        for split in ("train", "val", "test"):
            for kind in ("images", "masks"):
                (folder / name / split / kind).mkdir(parents=True)
            for index in range(images):
                mask = ellipse((80, 90), tuple(rng.uniform(20, 60, 2)), tuple(rng.uniform(5, 15, 2)))
                file = f"{split}_{index}.png"
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name / split / "masks" / file)
                noise = rng.integers(0, 255, mask.shape, dtype=np.uint8)
                Image.fromarray(noise).save(folder / name / split / "images" / file)
                rows.append(
                    [
                        file,
                        split,
                        dataset,
                        f"{split}{index}" if name != "breast_ultrasound_tumour" else "",
                        label,
                        "yes",
                    ]
                )
        with (folder / name / "manifest.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    return folder
