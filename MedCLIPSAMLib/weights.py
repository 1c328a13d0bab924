"""The model registry: what each weight file is, where it may lie, and the check of its SHA-256 before use.

A file is looked for in this order: the folder of the user's own files that ``MEDCLIPSAM_OWN_WEIGHTS`` names, the
offline folder that ``MEDCLIPSAM_WEIGHTS`` names, the user's data folder, the Python package that carries it, the
resources of this installation. The first one found is the one that is used; if it is damaged, that is an error and not
a reason to look further.

A file whose SHA-256 is not the registered one is never used, with one exception that the user has to ask for: a file in
the folder of ``MEDCLIPSAM_OWN_WEIGHTS`` is, and the result says that it is unverified. Where no SHA-256 is published,
the one of the first use is recorded (weights_recorded.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

from MedCLIPSAMLib import weights_recorded
from MedCLIPSAMLib.errors import ChecksumError, InputError, MissingWeightsError, OutputError
from MedCLIPSAMLib.resources import resource_path
from MedCLIPSAMLib.weight_check import compare
from MedCLIPSAMLib.weight_entry import OFFLINE_VARIABLE as OFFLINE_VARIABLE
from MedCLIPSAMLib.weight_entry import OWN_VARIABLE as OWN_VARIABLE
from MedCLIPSAMLib.weight_entry import Resolved, Trust, Verification, Weight, missing_text, remedy
from MedCLIPSAMLib.weight_places import candidates, is_own, offline, own_files

logger = logging.getLogger(__name__)

PART_SUFFIXES = (".part", ".part.json")  # of a download that is not finished, and of what is known of it
_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_HUB_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


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


def registered(name: str) -> Weight:
    """Return the entry of a weight file.

    Raises:
        InputError: No such name.
    """
    weights = registry()
    if name not in weights:
        raise InputError(f"There are no weights {name!r}; known are {', '.join(weights)}.")
    return weights[name]


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
    """Return where the weight file lies, unchecked; for use take :func:`resolve`.

    Raises:
        InputError: No such name, or ``MEDCLIPSAM_WEIGHTS`` or ``MEDCLIPSAM_OWN_WEIGHTS`` does not name a folder.
        MissingWeightsError: In none of the places; the message says how to get it.
    """
    weight = registered(name)
    path = _find(weight)
    if path is None:
        raise _missing([weight])
    return path


def resolve(names: Iterable[str]) -> dict[str, Resolved]:
    """Find and check weight files before they are loaded.

    A file is hashed once per process, and again when its size or time of change differ. With an offline folder set, the
    libraries of the Hugging Face hub are told to stay offline too; they look when they are imported, so call this
    before.

    Returns:
        For each name where its file lies and how far it can be trusted.

    Raises:
        InputError: See :func:`locate`.
        MissingWeightsError: One error for all that are missing, with size, address and where to put each.
        ChecksumError: A file is not the registered one, or not the one that was recorded at its first use.
    """
    if offline():
        os.environ.update(dict.fromkeys(_HUB_OFFLINE, "1"))
    wanted = [registered(name) for name in dict.fromkeys(names)]
    places = {weight.name: _find(weight) for weight in wanted}
    missing = [weight for weight in wanted if places[weight.name] is None]
    if missing:
        raise _missing(missing)
    return {weight.name: _resolve(weight, path) for weight in wanted if (path := places[weight.name]) is not None}


def verified(name: str) -> Path:
    """Return where one weight file lies, after the checks of :func:`resolve`, which says what it raises."""
    return resolve([name])[name].path


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
    places = {weight: [one for one in own_files(weight, folder) if _is_for(weight, one)] for weight in _entries()}
    found = [_verify_one(weight, paths) for weight, paths in places.items()]
    known = {path for paths in places.values() for path in paths}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _WEIGHT_SUFFIXES and path.is_file() and path not in known:
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
    weight = registered(name)
    path = _find(weight)
    if path is None:
        yield Verification(name, None, "missing", _remedy(weight))
        return
    digest, done = hashlib.sha256(), 0
    if weight.bytes is None or path.stat().st_size == weight.bytes or is_own(weight, path):
        with path.open("rb") as stream:
            while block := stream.read(portion):
                digest.update(block)
                done += len(block)
                yield done
    yield check_file(weight, path, digest.hexdigest)


def check_file(weight: Weight, path: Path, hash_of_file: Callable[[], str] | None = None) -> Verification:
    """Compare one file with what is registered or recorded for ``weight``.

    Args:
        hash_of_file: Returns its SHA-256, and is asked only where that can matter; None reads the file.

    Raises:
        InputError: The record of SHA-256 cannot be read.
        OSError: The file cannot be read.
    """
    return compare(
        weight,
        path,
        hash_of_file or (lambda: _hash(path)),
        own=is_own(weight, path),
        folder=user_folder(),
        offline=offline(),
    )


def removable(name: str) -> Path | None:
    """Return the weight file in the user's data folder, which alone :func:`remove` deletes; None if it is not there."""
    path = user_folder() / registered(name).file
    return path if path.is_file() else None


def remove(name: str) -> Path:
    """Delete a weight file from the user's data folder; other places are left alone.

    What a broken download has left, and the SHA-256 recorded at the first use, go with it.

    Returns:
        What was deleted: the file, or else what there was of it.

    Raises:
        InputError: No such name, or there is nothing to delete; the message says where the file lies.
        OutputError: It cannot be deleted.
    """
    weight, folder = registered(name), user_folder()
    path = folder / weight.file
    deleted = [one for one in (path, *(path.with_name(path.name + end) for end in PART_SUFFIXES)) if one.is_file()]
    has_record = weights_recorded.recorded_sha256(folder, weight) is not None
    if not deleted and not has_record:
        other = _find(weight)
        where = f"they lie at {other}, which is not MedCLIPSAM's to delete" if other else "they are not installed"
        raise InputError(f"The weights {name!r} are not in {folder}: {where}.")
    try:
        for one in deleted:
            one.unlink()
        weights_recorded.forget(folder, name)
    except OSError as error:
        raise OutputError(f"{path} cannot be deleted ({error.strerror}); perhaps it is in use.") from error
    if path.parent != folder:
        with suppress(OSError):  # other files in it keep their folder
            path.parent.rmdir()
    return deleted[0] if deleted else folder / weights_recorded.FILE


def _candidates(weight: Weight) -> list[Path]:
    return candidates(weight, user_folder(), _models_folder())


def _find(weight: Weight) -> Path | None:
    return next((path for path in _candidates(weight) if path.is_file()), None)


def _resolve(weight: Weight, path: Path) -> Resolved:
    try:
        state = path.stat()
        sha256 = _remembered_hash(path, state.st_size, state.st_mtime_ns)
        found = check_file(weight, path, lambda: sha256)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    status: Trust = "unverified"
    if found.status == "ok":
        status = "recorded" if weight.sha256 is None else "verified"
    elif found.status != "unregistered":
        raise ChecksumError(found.message)
    elif is_own(weight, path):
        logger.warning(found.message)
    elif weight.pending:
        logger.warning("%s is used unchecked: its SHA-256 is not registered yet", path.name)
    elif weights_recorded.record(user_folder(), weight, sha256, state.st_size):
        status = "recorded"
    return Resolved(weight.name, path, sha256, status)


def _verify_one(weight: Weight, places: list[Path]) -> Verification:
    for path in places:
        if path.is_file():
            return check_file(weight, path)
    return Verification(weight.name, None, "missing", _remedy(weight))


def _is_for(weight: Weight, path: Path) -> bool:
    """Whether a file would be taken for this weight: by its name, or, only among the user's own, as safetensors."""
    return path.name == Path(weight.file).name or is_own(weight, path)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _remembered_hash(path: Path, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file; size and time of change are there to be part of the key."""
    return _hash(path)


def _remedy(weight: Weight) -> str:
    return remedy(weight, user_folder(), offline=offline())


def _missing(missing: list[Weight]) -> MissingWeightsError:
    return MissingWeightsError(missing_text(missing, user_folder(), offline()))
