"""Image-caption pairs from images with masks: ``python -m MedCLIPSAMTraining.measured_captions DATA --output DIR``.

Captions say what the label says (benign, tuberculosis, ...) and what is measured on the mask: place, size, shape and
number of lesions; size, symmetry and reach of lungs (measured_wording.py, mask_measures.py). They are made for
comparing losses and models where no written reports are to be had: a report's wording is richer, and these measures are
exact where a radiologist's are not.

Written are ``train.csv`` (several wordings of every image), ``val.csv`` and ``test.csv`` (one each), each from its own
split's images and masks alone, and ``README.md``. The test masks are read for the test captions, and for nothing else.
The same data, seed and number of wordings give the same files, byte for byte.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from MedCLIPSAMLib.cases import read_mask
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.file_output import check_output_folder, replacing
from MedCLIPSAMLib.retrieval_ranks import caption_key
from MedCLIPSAMTraining.alignment_data import FOLDERS
from MedCLIPSAMTraining.mask_measures import parts_of
from MedCLIPSAMTraining.measured_wording import describe

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
WORDINGS = 4


@dataclass(frozen=True)
class CaptionRow:
    """One pair, as a row of the tables.

    Attributes:
        file: Below the data folder, with forward slashes.
        caption: What is written.
        patient: Patient or case where the data set gives one, with the data set's name; else empty.
        dataset, task: Of the image.
    """

    file: str
    caption: str
    patient: str
    dataset: str
    task: str


def measured_captions(data: Path, split: str, *, wordings: int = 1, seed: int = 0) -> list[CaptionRow]:
    """Describe every image of a split.

    Args:
        data: Folder with the four data sets.
        split: "train", "val" or "test".
        wordings: How many captions an image gets, each worded anew; equal ones of an image are left out.
        seed: Together with an image's name it draws the wordings, so they do not depend on other images.

    Raises:
        InputError: A data set or a mask is missing, an unknown split, or a number below 1.
    """
    if split not in SPLITS or wordings < 1 or seed < 0:
        raise InputError(
            f"split {split!r}, {wordings} wordings, seed {seed}: pass {', '.join(SPLITS)}, 1 or more, 0 or more."
        )
    rows = []
    for folder, task in FOLDERS.items():
        manifest = data / folder / "manifest.csv"
        if not manifest.is_file():
            raise InputError(f"{manifest} is missing; pass the folder that holds {', '.join(FOLDERS)}.")
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            listed = sorted(
                (row for row in csv.DictReader(stream) if row["split"] == split), key=lambda row: row["file"]
            )
        for row in listed:
            parts = parts_of(read_mask(data / folder / split / "masks" / row["file"]))
            label = row["label"] if task in ("breast", "xray") else ""
            kind = "flair" if row["dataset"].startswith("LGG") else task
            captions = dict.fromkeys(
                describe(kind, label, parts, _generator(seed, folder, row["file"], number))
                for number in range(wordings)
            )
            patient = f"{row['dataset']}:{row['subject']}" if row["subject"] else ""
            file = f"{folder}/{split}/images/{row['file']}"
            rows += [CaptionRow(file, caption, patient, row["dataset"], task) for caption in captions]
    return rows


def write_captions(data: Path, output: Path, *, wordings: int = WORDINGS, seed: int = 0) -> dict[str, list[CaptionRow]]:
    """Write the three tables and their description into a folder.

    Args:
        data: Folder with the four data sets.
        output: Folder to write to; created.
        wordings: Captions per training image.
        seed: See :func:`measured_captions`.

    Raises:
        InputError: See :func:`measured_captions`.
        OutputError: Not writable, disk full.
    """
    tables = {
        split: measured_captions(data, split, wordings=wordings if split == "train" else 1, seed=seed)
        for split in SPLITS
    }
    check_output_folder(output)
    for split, rows in tables.items():
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([field.name for field in fields(CaptionRow)])
        writer.writerows(astuple(row) for row in rows)
        with replacing(output / f"{split}.csv") as file:
            file.write(text.getvalue().encode())
    with replacing(output / "README.md") as file:
        file.write(description(tables, wordings, seed).encode())
    return tables


def distinct_share(rows: Sequence[CaptionRow]) -> float:
    """Return the share of pairs whose caption no pair of another image has."""
    images: dict[str, set[str]] = {}
    for row in rows:
        images.setdefault(caption_key(row.caption), set()).add(row.file)
    return sum(len(images[caption_key(row.caption)]) == 1 for row in rows) / max(1, len(rows))


def description(tables: dict[str, list[CaptionRow]], wordings: int, seed: int) -> str:
    """Return what the tables hold, as Markdown."""
    lines = [
        "# Captions measured on masks",
        "",
        f"Made by MedCLIPSAMTraining.measured_captions, seed {seed}, {wordings} wordings of every training image. File",
        "names are relative to the data folder. Left, right, top and bottom are those of the image as one sees it; per",
        "cent are of the image's area, height or width. Labels come from the data sets, everything else is measured on",
        "the masks of the same split: place, size, shape and number of lesions; size, symmetry and reach of lungs.",
        "",
        "The chest CT slices state no licence: use them for experiments, not for weights that are passed on.",
        "",
        "| split | pairs | images | data sets | captions that no other image has |",
        "| --- | --- | --- | --- | --- |",
    ]
    for split, rows in tables.items():
        images = {row.file: row.dataset for row in rows}
        counts = ", ".join(f"{name} {count}" for name, count in sorted(Counter(images.values()).items()))
        lines.append(f"| {split} | {len(rows)} | {len(images)} | {counts} | {100 * distinct_share(rows):.1f} % |")
    lines += ["", "Examples:", ""]
    rows = tables["train"]
    lines += [f"- {rows[index * len(rows) // 12].caption}" for index in range(12) if rows]
    return "\n".join(lines) + "\n"


def _generator(seed: int, folder: str, file: str, number: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}|{folder}|{file}|{number}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def main(
    data: Annotated[Path, typer.Argument(help="Folder with the four data sets.")],
    output: Annotated[Path, typer.Option(help="Folder for train.csv, val.csv, test.csv and README.md.")],
    wordings: Annotated[int, typer.Option(help="Captions of every training image.")] = WORDINGS,
    seed: Annotated[int, typer.Option(help="Of the wordings.")] = 0,
) -> None:
    """Write image-caption pairs whose captions are measured on the masks."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        tables = write_captions(data, output, wordings=wordings, seed=seed)
    except MedCLIPSAMError as error:
        logger.error("Error: %s", error)
        raise SystemExit(2) from error
    for split, rows in tables.items():
        logger.info("%s: %d pairs, %.1f %% captions of one image alone", split, len(rows), 100 * distinct_share(rows))


if __name__ == "__main__":
    typer.run(main)
