"""How results reach the folder of a task: under a temporary name first, so that what has its name is whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MedCLIPSAMLib.errors import InputError, OutputError

UNFINISHED = ".unfinished-"
"""Start of the names of what is not whole yet."""


def read_array(path: str | Path, *, mapped: bool = False) -> np.ndarray:
    """Read an ``.npy`` file.

    Args:
        path: The file.
        mapped: True leaves the values on disk until they are needed.

    Raises:
        InputError: The file is not there or is no array.
    """
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"the array {str(path)!r} cannot be read ({error}); run the task again.") from error


def write_array(folder: Path, name: str, array: np.ndarray) -> str:
    """Write ``<name>.npy`` and return its path.

    Raises:
        OutputError: It cannot be written; nothing is left of it.
    """
    path, unfinished = folder / f"{name}.npy", folder / f"{UNFINISHED}{name}.npy"
    try:
        try:
            with unfinished.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise output_error(folder, error) from error
    return str(path)


def unfinished_folder(folder: Path, name: str) -> Path:
    """Make a folder for files that :func:`finish` takes over when they are whole."""
    path = folder / f"{UNFINISHED}{name}"
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise output_error(folder, error) from error
    return path


def finish(unfinished: Path, source: str, folder: Path, name: str) -> str:
    """Move ``<source>.npy`` out of the unfinished ones and return its path; it must not be mapped any more."""
    path = folder / f"{name}.npy"
    try:
        os.replace(unfinished / f"{source}.npy", path)
    except OSError as error:
        raise output_error(folder, error) from error
    return str(path)


def check_space(folder: Path, shape: Sequence[int], count: int, bytes_per_voxel: int) -> None:
    """Raise :class:`OutputError` where the maps of a volume do not fit on the disk.

    Mapped files take up disk only as they are filled, and running out of it then would end the process.
    """
    needed = int(np.prod(shape, dtype=np.int64)) * count * bytes_per_voxel
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the results need {needed / 1e6:.0f} MB and only {free / 1e6:.0f} MB are free in the temporary folder; "
            "make room, choose fewer prompts, or another temporary folder."
        )


def discard_unfinished(folder: str | Path) -> None:
    """Remove what a process that is no more has left half written."""
    try:
        left = [path for path in Path(folder).iterdir() if path.name.startswith(UNFINISHED)]
    except OSError:
        return  # the folder is gone with all that was in it
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def output_error(folder: Path, error: OSError) -> OutputError:
    """Return the error to raise for a result that cannot be written."""
    remedy = "make room on the disk" if error.errno == errno.ENOSPC else "check that the folder can be written to"
    return OutputError(f"the result cannot be written to {folder} ({error.strerror or error}); {remedy}.")
