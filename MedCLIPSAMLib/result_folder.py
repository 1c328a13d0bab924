"""How results reach a folder: all files or none, and the files of the previous result go with it.

Files are written into a temporary folder inside the output folder and moved out when all of them are there. The
descriptions (``result.json``) of the previous result go first and the new ones come last, so that a folder with a
description holds the whole result that it describes. The previous files go into a second temporary folder, from which
they come back when the new ones cannot take their places (Windows: another program has one of them open).
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from MedCLIPSAMLib.errors import OutputError
from MedCLIPSAMLib.medical_image import file_label

DESCRIPTION = "result.json"
_OWN_FILE = re.compile(
    r"(\d+-[a-z0-9-]+-)?(mask\.png|coarse\.png|saliency\.nrrd|entropy\.nrrd|result\.json)"
    r"|(\d+-[a-z0-9-]+-)?(probability\.nrrd|mutual-information\.nrrd)|labels\.png"
    r"|overview\.png|segmentation\.seg\.nrrd"
)


@contextmanager
def collected(output: Path) -> Iterator[Path]:
    """Yield a temporary folder inside ``output``; when the block ends well, its files replace the previous result.

    Whatever fails, ``output`` is then as it was before.

    Raises:
        OutputError: For any ``OSError`` in the block or here.
    """
    folder = output / f".partial-{secrets.token_hex(8)}"
    try:
        folder.mkdir()
        yield folder
        _publish(folder, output)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{file_label(output)} cannot be written ({error.strerror or error}); "
            "free some space, or choose another output folder."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, output: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    old = {name for name in _previous_files(output) | names if os.path.lexists(output / name)}
    for name in sorted(old):
        if (output / name).is_dir() and not (output / name).is_symlink():  # no run made it: it is not ours to move
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(output / name))
    aside = output / f".partial-{secrets.token_hex(8)}"
    moves = [(output / name, aside / name) for name in sorted(old, key=_description_last, reverse=True)]
    moves += [(folder / name, output / name) for name in sorted(names, key=_description_last)]
    begun: list[tuple[Path, Path]] = []
    try:
        aside.mkdir()
        for source, target in moves:
            begun.append((source, target))
            os.replace(source, target)
    except BaseException as error:  # also Ctrl+C and SIGTERM
        if not _taken_back(begun):  # the folder stays: it may hold the only copy
            raise OutputError(
                f"{file_label(output)} cannot be written, and its previous result could not be put back as a whole; "
                f"look into its folder {aside.name} for what is missing."
            ) from error
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _description_last(name: str) -> tuple[bool, str]:
    return name.endswith(DESCRIPTION), name


def _taken_back(moves: list[tuple[Path, Path]]) -> bool:
    """Undo moves, the last first, as many as can be; return whether all could be."""
    whole = True
    for source, target in reversed(moves):
        if os.path.lexists(target) and not os.path.lexists(source):  # else this move was not made
            try:
                shutil.move(target, source)  # copies where moving is refused
            except OSError:
                whole = False
    return whole


def _previous_files(output: Path) -> set[str]:
    """Return the files that an earlier run wrote here, by its own account."""
    files: set[str] = set()
    for path in output.glob(f"*{DESCRIPTION}"):
        if _OWN_FILE.fullmatch(path.name):
            with suppress(OSError, ValueError, TypeError, KeyError):
                files.update(json.loads(path.read_text("utf-8"))["files"])
    return {name for name in files if isinstance(name, str) and _OWN_FILE.fullmatch(name)}
