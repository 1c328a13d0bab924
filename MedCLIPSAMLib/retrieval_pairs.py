"""Image-caption pairs for retrieval, from a table or from JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.errors import InputError

_FILE_COLUMNS = ("file", "filename", "image", "filepath")
_CAPTION_COLUMNS = ("caption", "text", "title")


@dataclass(frozen=True)
class RetrievalPairs:
    """N images and what is written about them.

    Attributes:
        files: N paths; an image may come more than once.
        captions: N texts, single-spaced.
    """

    files: list[Path]
    captions: list[str]


def read_pairs(source: str | Path, *, root: str | Path | None = None, split: str | None = None) -> RetrievalPairs:
    """Read pairs, and make sure that every image is there.

    Args:
        source: ``.csv``, ``.tsv`` or ``.jsonl`` with a column (key) ``file`` (or ``filename``, ``image``, ``filepath``)
            and one ``caption`` (or ``text``, ``title``), in any case; ``split`` where it is asked for.
        root: Folder that relative file names are below; None for that of ``source``.
        split: Take only the rows of this split; None for all.

    Raises:
        InputError: No such file, another format, a missing column, an empty caption, an image that does not exist, a
            split without rows, or fewer than two pairs.
    """
    source = Path(source)
    if not source.is_file():
        raise InputError(f"{source} does not exist; pass a CSV, TSV or JSONL file of image-caption pairs.")
    base = source.parent if root is None else Path(root)
    files, captions = [], []
    splits: set[str] = set()
    try:
        for line, row in _rows(source):
            own = str(row.get("split") or "")
            splits.add(own)
            if split is not None and own != split:
                continue
            file, caption = (_value(row, names, source, line) for names in (_FILE_COLUMNS, _CAPTION_COLUMNS))
            files.append(base / file)
            captions.append(caption)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source} cannot be read as a table in UTF-8 ({error}); save it again as UTF-8.") from error
    if split is not None and not files:
        known = ", ".join(sorted(filter(None, splits))) or "none"
        raise InputError(f"{source} has no rows of split {split!r}; splits that exist: {known}.")
    if len(files) < 2:
        raise InputError(f"{source} holds {len(files)} pair(s); retrieval needs at least 2.")
    absent = [file for file in dict.fromkeys(files) if not file.is_file()]
    if absent:
        raise InputError(
            f"{len(absent)} image(s) of {source} do not exist, the first is {absent[0]}; name their folder with --root."
        )
    return RetrievalPairs(files, captions)


def _rows(source: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield line number and row, with lower-case keys."""
    suffix = source.suffix.lower()
    with source.open(encoding="utf-8-sig", newline="") as stream:
        if suffix in (".csv", ".tsv"):
            reader = csv.DictReader(stream, delimiter="\t" if suffix == ".tsv" else ",")
            for row in reader:
                yield reader.line_num, {str(key).strip().lower(): value for key, value in row.items()}
        elif suffix in (".jsonl", ".ndjson"):
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, _json_row(line, source, number)
        else:
            raise InputError(f"{source} is of no known type; pass .csv, .tsv or .jsonl.")


def _json_row(line: str, source: Path, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{source}, line {number} is not JSON ({error}); each line must be one object.") from error
    if not isinstance(row, dict):
        raise InputError(f"{source}, line {number} is {type(row).__name__}; each line must be one object.")
    return {str(key).strip().lower(): value for key, value in row.items()}


def _value(row: Mapping[str, Any], names: tuple[str, ...], source: Path, line: int) -> str:
    found = [name for name in names if name in row]
    if not found:
        columns = ", ".join(row) or "(none)"
        raise InputError(f"{source} has the columns {columns}; a column {names[0]!r} is needed.")
    value = row[found[0]]
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text:
        raise InputError(f"{source}, line {line}: the column {found[0]!r} is empty; fill it or remove the row.")
    return text
