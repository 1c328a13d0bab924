"""Where pairs come from: CSV and JSON Lines here, published layouts and shards in modules of their own.

A source gives its rows in chunks of equally long lists: files, captions, patients ("" where unknown), and what the
column ``split`` says where there is one.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.pair_marks import split_column

Chunk = tuple[Sequence[str], ...]
CHUNK = 16_384
NAMES = ("file", "caption", "patient")
OTHER_NAMES = {  # how else the columns are commonly called, in lower case
    "file": ("filename", "file_name", "filepath", "file_path", "image", "image_path", "image_file", "path", "name"),
    "caption": ("title", "text", "description"),
    "patient": ("patient_id", "patientid", "subject", "subject_id", "case", "case_id"),
}


@dataclass
class Rows:
    """What a source holds.

    Attributes:
        chunks: Yields the rows; read once.
        roots: Folders that relative files may lie in, the likeliest first.
        check: Whether it is yet to be seen that the files are there.
    """

    chunks: Iterator[Chunk]
    roots: tuple[Path, ...]
    check: bool = True


def find_rows(source: Path, root: Path | None, columns: tuple[str, str, str]) -> Rows:
    """Find out what ``source`` is; see :meth:`PairIndex.read` for what is known and what is raised."""
    from MedCLIPSAMTraining.pair_layouts import find_published
    from MedCLIPSAMTraining.pair_shards import find_shards, shard_rows

    if shards := find_shards(source):
        folder = Path(os.path.commonpath([shard.parent.resolve() for shard in shards]))
        return Rows(shard_rows(shards, folder), (folder,), check=False)
    if not source.exists():
        raise InputError(f"{source} does not exist; name a CSV or JSON Lines file of pairs, a data set or shards.")
    if (published := find_published(source, root)) is not None:
        return published
    if source.is_dir():
        raise InputError(
            f"the folder {source} holds neither shards (.tar) nor MedPix 2.0 (Descriptions.json) nor ROCO "
            "(captions.txt); name the file that lists the pairs."
        )
    suffix = source.suffix.lower()
    if suffix in (".csv", ".tsv"):
        chunks = _table_chunks(source, columns)
    elif suffix in (".jsonl", ".ndjson", ".json"):
        chunks = _record_chunks(source, columns)
    else:
        raise InputError(f"{source} ends in {suffix!r}; pairs are read from .csv, .tsv, .jsonl, .json or .tar.")
    return Rows(chunks, (root,) if root else (source.parent, source.parent / "images"))


def read_header(source: Path) -> tuple[list[str], str]:
    """Return the columns of a table and what separates them."""
    with _as_text(source) as file:
        line = file.readline()
    separator = "\t" if source.suffix.lower() == ".tsv" else max(",;\t", key=line.count)
    return next(csv.reader([line], delimiter=separator), []), separator


def _table_chunks(source: Path, columns: tuple[str, str, str]) -> Iterator[Chunk]:
    header, separator = read_header(source)
    names = find_columns(header, columns, source)
    places = [header.index(name) if name is not None else None for name in (*names, split_column(header))]
    with _as_text(source) as file:
        reader = csv.reader(file, delimiter=separator)
        next(reader, None)
        while rows := list(islice(filter(None, reader), CHUNK)):
            try:
                found = [[row[at] for row in rows] if at is not None else None for at in places]
            except IndexError:
                short = min(rows, key=len)
                raise InputError(
                    f"{source}, line {reader.line_num} or up to {len(rows)} before: {len(short)} values for "
                    f"{len(header)} columns; a caption with a {separator!r} in it needs quotation marks."
                ) from None
            yield _chunk(found, source, reader.line_num)


def _record_chunks(source: Path, columns: tuple[str, str, str]) -> Iterator[Chunk]:
    records = read_records(source)
    first = next(records, None)
    if first is None:
        return
    names = find_columns(list(first), columns, source)
    done, rows = 0, [first, *islice(records, CHUNK - 1)]
    while rows:
        split = split_column(dict.fromkeys(key for row in rows for key in row))  # perhaps only some rows have a mark
        found = [[_text(row.get(name)) for row in rows] if name is not None else None for name in (*names, split)]
        done += len(rows)
        yield _chunk(found, source, done)
        rows = list(islice(records, CHUNK))


def read_records(source: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file, or of a JSON list.

    Raises:
        InputError: A line is no JSON object, or the text is not UTF-8.
    """
    with _as_text(source) as file:
        number = 0
        try:
            if source.suffix.lower() == ".json":
                for number, record in enumerate(json.load(file), start=1):
                    yield _object(record, source, number)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _object(json.loads(line), source, number)
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(f"{source}, record {number}: no JSON object ({error}).") from error


def _object(record: object, source: Path, number: int) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{source}, record {number}: {type(record).__name__} instead of an object with named values.")
    return record


def find_columns(header: list[str], wanted: tuple[str, str, str], source: Path) -> list[str | None]:
    """Return the header's names for file, caption and patient; the last is None where there is none.

    Raises:
        InputError: A column is missing; the message lists those there are.
    """
    lower = {name.strip().lower(): name for name in reversed(header)}
    found: list[str | None] = []
    for standard, name in zip(NAMES, wanted, strict=True):
        others = OTHER_NAMES[standard] if name == standard else ()
        match = next((lower[candidate] for candidate in (name.lower(), *others) if candidate in lower), None)
        if match is None and (standard != "patient" or name != standard):
            raise InputError(
                f"{source} has no column {name!r}; it has {', '.join(map(repr, header)) or 'none'}. Name the column of "
                f"the {standard}, or add one."
            )
        found.append(match)
    return found


def _chunk(columns: list[list[str] | None], source: Path, line: int) -> Chunk:
    """Return the columns as a chunk; without patients they are unknown, without a split there is none."""
    files, captions, patients, splits = columns
    if "" in files:
        raise InputError(f"{source}, line {line} or up to {len(files)} before: a row names no image file.")
    found = (files, captions, [""] * len(files) if patients is None else patients)
    return found if splits is None else (*found, splits)


def _text(value: object) -> str:
    return "" if value is None else str(value)


@contextmanager
def _as_text(source: Path) -> Iterator[TextIO]:
    """Open a file as UTF-8, and turn what goes wrong in reading it into errors that say what to do."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 ({error.reason}); save it as UTF-8.") from error
    except csv.Error as error:
        raise InputError(f"{source} cannot be read ({error}); is a quotation mark not closed?") from error
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error}).") from error
