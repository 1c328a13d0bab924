"""The model registry: what each weight file is, where it may lie, and the check of its SHA-256 before use.

A file is looked for in this order: the offline folder that the environment variable ``MEDCLIPSAM_WEIGHTS`` names, the
user's data folder, the Python package that carries it, the resources of this installation. The first one found is the
one that is used; if it is damaged, that is an error and not a reason to look further.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from MedCLIPSAMLib.errors import ChecksumError, InputError, MissingWeightsError, OutputError
from MedCLIPSAMLib.resources import resource_path

logger = logging.getLogger(__name__)

OFFLINE_VARIABLE = "MEDCLIPSAM_WEIGHTS"
_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")

Status = Literal["ok", "missing", "wrong size", "wrong hash", "unregistered"]


@dataclass(frozen=True)
class Weight:
    """One entry of the registry.

    Attributes:
        name: How recipes and the command line call it.
        file: Path below a weights folder.
        source: "package:TOP_LEVEL/PATH", "resource:FILE" beside the registry, or the official address ("https://...").
        bytes: Size; None if it is not known.
        sha256: Lower-case hexadecimal; None if it is not known.
        licence, citation: Of the weights.
        used_by: Engines that need it.
        install: The command that installs the package, for a "package:" source.
        pending: Not registered yet: may be used without a SHA-256. Only for weights that are part of this project.
    """

    name: str
    file: str
    source: str
    bytes: int | None
    sha256: str | None
    licence: str
    citation: str
    used_by: tuple[str, ...]
    install: str | None = None
    pending: bool = False


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found for one file.

    Attributes:
        name: Of the registry, or the path below the folder for a file that is not in it.
        path: None when missing.
        status: "unregistered" is a file without a registered SHA-256: nothing is known about it.
        message: What to do; empty for "ok".
    """

    name: str
    path: Path | None
    status: Status
    message: str = ""


def _models_folder() -> Path:
    return resource_path("MedCLIPSAM", "Models", "registry.json").parent


@lru_cache(maxsize=1)
def _entries() -> tuple[Weight, ...]:
    content = json.loads((_models_folder() / "registry.json").read_text(encoding="utf-8"))
    known = {field.name for field in fields(Weight)}
    return tuple(
        Weight(**{key: tuple(value) if key == "used_by" else value for key, value in entry.items() if key in known})
        for entry in content["weights"]
    )


def registry() -> dict[str, Weight]:
    """Return every known weight file by name, installed or not."""
    return {weight.name: weight for weight in _entries()}


def user_folder() -> Path:
    """Return the folder for this user's weights; it need not exist.

    ``~/.local/share/MedCLIPSAM/weights`` (``XDG_DATA_HOME`` is honoured), on Windows below ``%LOCALAPPDATA%``, on macOS
    below ``~/Library/Application Support``.
    """
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "MedCLIPSAM" / "weights"


def locate(name: str) -> Path:
    """Return where the weight file lies, unchecked; for use take :func:`verified`.

    Raises:
        InputError: No such name, or ``MEDCLIPSAM_WEIGHTS`` does not name a folder.
        MissingWeightsError: In none of the places; the message says how to get it.
    """
    weight = _weight(name)
    for path in _candidates(weight):
        if path.is_file():
            return path
    raise MissingWeightsError(
        f"The weights {name!r} ({weight.file}{_size_text(weight)}) are missing. {_remedy(weight)}"
    )


def verified(name: str) -> Path:
    """Return where the weight file lies, after checking its size and SHA-256.

    A file is hashed once per process, and again when its size or time of change differ.

    Raises:
        InputError, MissingWeightsError: See :func:`locate`.
        ChecksumError: The file is not the registered one, or its SHA-256 is not registered at all.
    """
    path = locate(name)
    state = path.stat()
    found = _check(_weight(name), path, lambda: _remembered_hash(path, state.st_size, state.st_mtime_ns))
    if found.status == "unregistered" and _weight(name).pending:
        logger.warning("%s is used unchecked: its SHA-256 is not registered yet", path.name)
    elif found.status != "ok":
        raise ChecksumError(found.message)
    return path


def verify(folder: str | Path | None = None) -> list[Verification]:
    """Check every registered weight file, reading it anew.

    Args:
        folder: Look only there, and also list the weight files in it that the registry does not know; None looks in
            all the places of :func:`locate`.

    Raises:
        InputError: ``folder`` does not exist.
    """
    if folder is None:
        return [_verify_one(weight, _candidates(weight)) for weight in _entries()]
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; pass the one that holds the weight files.")
    found = [_verify_one(weight, [folder / weight.file]) for weight in _entries()]
    registered = {folder / weight.file for weight in _entries()}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _WEIGHT_SUFFIXES and path.is_file() and path not in registered:
            name = path.relative_to(folder).as_posix()
            found.append(Verification(name, path, "unregistered", f"{path} is not in the registry; it is not used."))
    return found


def verifying(name: str, portion: int = 2 << 20) -> Iterator[int | Verification]:
    """Check one weight file, ``portion`` bytes at a time, for a caller that must not be held up.

    Yields:
        The bytes read so far (2 MiB take a few milliseconds), and at the end the :class:`Verification`.

    Raises:
        InputError: See :func:`locate`.
    """
    weight = _weight(name)
    path = next((path for path in _candidates(weight) if path.is_file()), None)
    if path is None:
        yield Verification(name, None, "missing", _remedy(weight))
        return
    digest, done = hashlib.sha256(), 0
    if weight.bytes is None or path.stat().st_size == weight.bytes:
        with path.open("rb") as stream:
            while block := stream.read(portion):
                digest.update(block)
                done += len(block)
                yield done
    yield _check(weight, path, digest.hexdigest)


def removable(name: str) -> Path | None:
    """Return the weight file in the user's data folder, which alone :func:`remove` deletes; None if it is not there."""
    path = user_folder() / _weight(name).file
    return path if path.is_file() else None


def remove(name: str) -> Path:
    """Delete the weight file from the user's data folder and return where it was; other places are left alone.

    Raises:
        InputError: No such name, or the user's data folder does not have the file; the message says where it lies.
        OutputError: It cannot be deleted.
    """
    path = removable(name)
    if path is None:
        weight = _weight(name)
        other = next((place for place in _candidates(weight) if place.is_file()), None)
        where = f"they lie at {other}, which is not MedCLIPSAM's to delete" if other else "they are not installed"
        raise InputError(f"The weights {name!r} are not in {user_folder()}: {where}.")
    try:
        path.unlink()
    except OSError as error:
        raise OutputError(f"{path} cannot be deleted ({error.strerror}); perhaps it is in use.") from error
    if path.parent != user_folder():
        with suppress(OSError):  # other files in it keep their folder
            path.parent.rmdir()
    return path


def _weight(name: str) -> Weight:
    weights = registry()
    if name not in weights:
        raise InputError(f"There are no weights {name!r}; known are {', '.join(weights)}.")
    return weights[name]


def _candidates(weight: Weight) -> list[Path]:
    """Return the places of a weight file, first choice first."""
    places = []
    offline = os.environ.get(OFFLINE_VARIABLE)
    if offline:
        if not Path(offline).is_dir():
            raise InputError(f"{OFFLINE_VARIABLE} is {offline!r}, which is not a folder; correct it or unset it.")
        places.append(Path(offline) / weight.file)
    places.append(user_folder() / weight.file)
    kind, _, rest = weight.source.partition(":")
    if kind == "package":
        top_level, _, inner = rest.partition("/")
        invalidate_caches()  # the package may have been installed a moment ago, by this process
        spec = find_spec(top_level)  # finds a top-level package without importing it
        places += [Path(root) / inner for root in (spec.submodule_search_locations or ())] if spec else []
    elif kind == "resource":
        places.append(_models_folder() / rest)
    return places


def _verify_one(weight: Weight, places: list[Path]) -> Verification:
    for path in places:
        if path.is_file():
            return _check(weight, path, lambda path=path: _hash(path))
    return Verification(weight.name, None, "missing", _remedy(weight))


def _check(weight: Weight, path: Path, hash_of_file: Callable[[], str]) -> Verification:
    size = path.stat().st_size
    if weight.bytes is not None and size != weight.bytes:
        message = f"{path} has {size} bytes, {weight.name!r} has {weight.bytes}: it is incomplete or another file. "
        return Verification(weight.name, path, "wrong size", message + f"Delete it. {_remedy(weight, repair=True)}")
    if weight.sha256 is None:
        message = f"{path}: no SHA-256 is registered for {weight.name!r}, so it cannot be checked; "
        return Verification(weight.name, path, "unregistered", message + "add size and SHA-256 to registry.json.")
    found = hash_of_file()
    if found != weight.sha256:
        message = f"{path} has SHA-256 {found}, {weight.name!r} has {weight.sha256}: it is damaged or another file. "
        return Verification(weight.name, path, "wrong hash", message + f"Delete it. {_remedy(weight, repair=True)}")
    return Verification(weight.name, path, "ok")


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _remembered_hash(path: Path, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file; size and time of change are there to be part of the key."""
    return _hash(path)


def _size_text(weight: Weight) -> str:
    return f", {weight.bytes / 1e6:.0f} MB" if weight.bytes else ""


def _remedy(weight: Weight, repair: bool = False) -> str:
    place = f"{user_folder() / weight.file}, or at {weight.file} in the folder that {OFFLINE_VARIABLE} names"
    if weight.install:
        install = weight.install.replace("pip install", "pip install --force-reinstall") if repair else weight.install
        return f'Run "{install}", or put the file at {place}.'
    if weight.source.startswith("resource:"):
        return f"They are part of MedCLIPSAM: install it again, or put the file at {place}."
    return f"Download {weight.source} and put it at {place}."
