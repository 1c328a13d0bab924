"""The names of the tensors in a checkpoint, without torch and without reading or building anything else of it."""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path

_LONGEST = 1 << 24
"""Bytes of a table of contents; those of the models here have a hundred thousand."""

_DAMAGED = (OSError, ValueError, TypeError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)


def tensor_names(path: Path) -> frozenset[str]:
    """Return the names of the tensors in a checkpoint, and perhaps other words of its table of contents.

    Args:
        path: Safetensors, known by their content too, or a file of ``torch.save``. Of the latter the strings of its
            pickle are listed; nothing in it is run.

    Returns:
        Empty for a file of another kind, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) == 8 and length < min(_LONGEST, path.stat().st_size) and not start.startswith(b"PK"):
                return frozenset(map(str, json.loads(file.read(length))))
        with zipfile.ZipFile(path) as archive:
            (contents,) = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            with archive.open(contents) as table:
                words = (value for _, value, _ in pickletools.genops(table.read(_LONGEST)))
                return frozenset(word for word in words if isinstance(word, str))
    except _DAMAGED:
        return frozenset()
