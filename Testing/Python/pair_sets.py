"""Small sets of image-text pairs for the tests of reading, batching and loading them."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMTraining.image_text_data import Pair, PairIndex, local_image

LONG = "a caption that is long enough to stay, number "


def picture(value: int = 0, side: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03d}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number))
    return names


def write_csv(path: Path, rows: list[list[str]], separator: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


def index_of(captions: list, images: list | None = None, patients: list | None = None) -> PairIndex:
    images = images or list(range(len(captions)))
    patients = patients or [None] * len(captions)
    return PairIndex.of(Pair(str(i), str(c), p) for i, c, p in zip(images, captions, patients, strict=True))


def value_of(pair: Pair) -> tuple[torch.Tensor, str]:
    """The loader's ``load`` of these tests: the first pixel."""
    with local_image(pair.file) as path:
        return torch.tensor([float(read_image(path).array[0, 0])]), pair.caption


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
