"""MedPix 2.0, ROCO and ROCOv2 in the layouts that they are published in.

MedPix 2.0 (Siragusa et al. 2025): ``Descriptions.json`` and ``splitted_dataset/descriptions_*.jsonl``, one object per
image with ``U_id`` (the clinical case), ``image`` and ``Description.Caption``; PNG files in ``images``.
ROCO (Pelka et al. 2018): ``captions.txt`` with ``ROCO_ID<tab>caption``, ``dlinks.txt`` with the article's archive and
the figure's file; the images are called ROCO_ID.jpg, formerly ARTICLE_FIGURE.
ROCOv2 (Rückert et al. 2024): ``train_captions.csv`` with ``ID,Caption``, images ID.jpg in ``train_images``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.pair_sources import CHUNK, Chunk, Rows, find_columns, read_header, read_records

logger = logging.getLogger(__name__)

_ARTICLE = re.compile(r"PMC\d+")


def find_published(source: Path, root: Path | None) -> Rows | None:
    """Return the pairs where ``source`` is one of these layouts, else None.

    Raises:
        InputError: It is one of them, but its images are not there.
    """
    if source.is_dir():
        for name in ("Descriptions.json", "Description.json", "captions.txt"):
            if (source / name).is_file():
                return find_published(source / name, root)
        return None
    if source.suffix.lower() in (".json", ".jsonl"):
        first = next(read_records(source), {})
        if {"U_id", "image", "Description"} <= first.keys():
            return _present(_medpix(source), _images(source, root, "images", "../images"), source)
    elif source.name == "captions.txt":
        return _present(_roco(source), _images(source, root, "images"), source)
    elif source.name.endswith("_captions.csv"):
        header, _ = read_header(source)
        if [name.strip().lower() for name in header] == ["id", "caption"]:
            split = source.name.removesuffix("_captions.csv")
            places = (f"{split}_images", f"{split}_images/{split}", f"{split}_images/{split}_images", split, "images")
            return _present(_roco_v2(source), _images(source, root, *places), source)
    return None


def _images(source: Path, root: Path | None, *places: str) -> Path:
    """Return the folder of the images: ``root``, or the first of ``places`` that holds a file."""
    folders = [root] if root else [source.parent / place for place in places]
    for folder in folders:
        if folder.is_dir() and any(entry.is_file() for entry in os.scandir(folder)):
            return folder.resolve()
    raise InputError(f"the images of {source} are not in {' or '.join(map(str, folders))}; name their folder as root.")


def _present(rows: Iterable[tuple[tuple[str, ...], str, str]], folder: Path, source: Path) -> Rows:
    """Return the rows of which an image is in the folder, under the first of its possible names.

    These sets are downloaded image by image, and part of them has vanished since they were published.
    """
    there = {entry.name for entry in os.scandir(folder)}

    def chunks() -> Iterator[Chunk]:
        missing, rest = 0, iter(rows)
        while part := list(islice(rest, CHUNK)):
            found = [(next((name for name in names if name in there), ""), *other) for names, *other in part]
            kept = [row for row in found if row[0]]
            missing += len(found) - len(kept)
            if kept:
                files, captions, patients = zip(*kept, strict=True)
                yield files, captions, patients
        if missing:
            logger.warning("%d images of %s are not in the images' folder and are left out.", missing, source.name)

    return Rows(chunks(), (folder,), check=False)


def _medpix(source: Path) -> Iterator[tuple[tuple[str, ...], str, str]]:
    for number, record in enumerate(read_records(source), start=1):
        try:
            name, caption = str(record["image"]), record["Description"]["Caption"]
        except (KeyError, TypeError) as error:
            raise InputError(f"{source}, record {number} has no {error}: not MedPix 2.0's layout.") from error
        yield (f"{name}.png", name), caption or "", str(record.get("U_id") or "")


def _roco(source: Path) -> Iterator[tuple[tuple[str, ...], str, str]]:
    links: dict[str, tuple[str, str]] = {}
    with_links = source.with_name("dlinks.txt")
    if with_links.is_file():
        for line in with_links.read_text(encoding="utf-8").split("\n"):
            parts = line.split("\t")
            if len(parts) >= 3 and (article := _ARTICLE.search(parts[1])):
                links[parts[0].strip()] = article[0], parts[-1].strip()
    with source.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            name, tab, caption = line.rstrip("\n").partition("\t")
            if not tab:
                raise InputError(f"{source}, line {number} has no tab between image and caption: not ROCO's layout.")
            article, figure = links.get(name.strip(), ("", ""))
            names = (f"{name.strip()}.jpg", *((f"{article}_{figure}",) if figure else ()))
            yield names, caption.strip(), article


def _roco_v2(source: Path) -> Iterator[tuple[tuple[str, ...], str, str]]:
    import csv

    header, separator = read_header(source)
    find_columns(header, ("ID", "Caption", "patient"), source)
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        next(reader, None)
        for row in filter(None, reader):
            if len(row) != 2:
                raise InputError(f"{source}, line {reader.line_num}: {len(row)} values instead of ID and Caption.")
            yield (f"{row[0]}.jpg", f"{row[0]}.png"), row[1], ""
