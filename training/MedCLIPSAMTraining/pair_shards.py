"""webdataset shards: tar files whose members KEY.jpg and KEY.txt (or KEY.json) are a pair.

The members stay in their shard. The index keeps where their bytes lie, as ``SHARD::OFFSET+BYTES::NAME``, so any pair is
read by one seek and in any order; that asks for shards on a local disk.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.pair_sources import CHUNK, Chunk

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".nrrd", ".nii", ".nii.gz", ".mha")
CAPTIONS = (".txt", ".caption", ".text")
_MEMBER = re.compile(r"(?P<shard>.*)::(?P<offset>\d+)\+(?P<size>\d+)::(?P<name>.*)", re.DOTALL)
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def find_shards(source: Path) -> list[Path]:
    """Return the shards that a file, folder or pattern means, in order; none where it means something else.

    Raises:
        InputError: A pattern that fits no file, or shards that are compressed.
    """
    text = str(source)
    if text.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise InputError(f"{source} is compressed, so single pairs cannot be read from it; uncompress it to .tar.")
    if source.is_dir():
        return sorted(path for path in source.iterdir() if path.suffix.lower() == ".tar")
    if source.is_file():
        return [source] if source.suffix.lower() == ".tar" else []
    if not text.lower().endswith(".tar"):
        return []
    if braces := _BRACES.search(text):
        first, last = braces.groups()
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        shards = [Path(text[: braces.start()] + number + text[braces.end() :]) for number in numbers]
        if missing := [path for path in shards if not path.is_file()]:
            raise InputError(f"{len(missing)} of {len(shards)} shards are not there, the first is {missing[0]}.")
        return shards
    shards = sorted(Path(path) for path in glob.glob(text))
    if not shards:
        raise InputError(f"no shard fits {source}; check the pattern.")
    return shards


def shard_rows(shards: list[Path], root: Path) -> Iterator[Chunk]:
    """Yield the pairs of the shards; a group without an image or without a caption is passed over.

    Args:
        shards: The files.
        root: Folder that the names of the shards are given relative to.

    Raises:
        InputError: A shard is damaged, or a KEY.json is no object with a caption.
    """
    rows: list[tuple[str, str, str]] = []
    for shard in shards:
        try:
            for row in _groups(shard, root):
                rows.append(row)
                if len(rows) == CHUNK:
                    yield tuple(zip(*rows, strict=True))
                    rows = []
        except (tarfile.TarError, OSError) as error:
            raise InputError(f"the shard {shard} is damaged ({error}); copy it again.") from error
    if rows:
        yield tuple(zip(*rows, strict=True))


def _groups(shard: Path, root: Path) -> Iterator[tuple[str, str, str]]:
    key, image, caption, patient = None, "", None, ""
    relative = os.path.relpath(shard.resolve(), root)
    with tarfile.open(shard, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # tarfile would keep all of them
            if not member.isreg():
                continue
            folder, name = os.path.split(member.name)
            stem, _, ending = name.partition(".")
            if (folder, stem) != key:
                if image and caption is not None:
                    yield image, caption, patient
                key, image, caption, patient = (folder, stem), "", None, ""
            ending = f".{ending.lower()}"
            if ending in IMAGES and not image:
                image = f"{relative}::{member.offset_data}+{member.size}::{name}"
            elif ending in CAPTIONS:
                caption = _read(tar, member).decode("utf-8", "replace")
            elif ending == ".json":
                about = _about(_read(tar, member), shard, member.name)
                caption = str(about["caption"]) if caption is None and about.get("caption") is not None else caption
                patient = next(
                    (str(about[name]) for name in ("patient", "patient_id", "subject") if about.get(name)), ""
                )
    if image and caption is not None:
        yield image, caption, patient


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


def _about(text: bytes, shard: Path, name: str) -> dict[str, object]:
    try:
        about = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name} in the shard {shard} is no JSON ({error}).") from error
    if not isinstance(about, dict):
        raise InputError(f"{name} in the shard {shard} is {type(about).__name__}, not an object with a caption.")
    return about


def member_size(file: str) -> int | None:
    """Return the bytes of a shard's member; None for an ordinary file."""
    place = _MEMBER.fullmatch(file)
    return int(place["size"]) if place else None


def read_file(file: str) -> bytes:
    """Return the bytes of an image, an ordinary file or a shard's member.

    Raises:
        OSError: It is not there, or the shard has become shorter.
    """
    place = _MEMBER.fullmatch(file)
    if not place:
        return Path(file).read_bytes()
    with open(place["shard"], "rb") as shard:
        shard.seek(int(place["offset"]))
        content = shard.read(int(place["size"]))
    if len(content) != int(place["size"]):
        raise OSError(f"{place['name']}: its shard ends too early")
    return content


@contextmanager
def local_image(file: str) -> Iterator[Path]:
    """Give an image as a file for as long as the context lasts: the file itself, or a private copy of a shard's member.

    Args:
        file: As in :attr:`Pair.file`.
    """
    place = _MEMBER.fullmatch(file)
    if not place:
        yield Path(file)
        return
    content = read_file(file)
    name = place["name"]
    handle, path = tempfile.mkstemp(suffix=name[name.index(".") :].lower())  # only its owner can read it
    try:
        with os.fdopen(handle, "wb") as copy:
            copy.write(content)
        yield Path(path)
    finally:
        os.unlink(path)
