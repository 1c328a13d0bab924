"""Image embeddings of the dear encoders: the last few in memory, the others in a file that nobody else can open.

Embeddings come from patients' images, so nothing of them may outlive the process. The file has no name (on Windows,
where that is impossible, the system deletes it): the operating system gives it back when the process ends, in whatever
way it ends, also when it is killed. There is nothing that a later start would have to find and remove.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import numpy as np

logger = logging.getLogger(__name__)

LIMIT = 4 << 30
FREE_PART = 10
REMEMBERED = 4
BLOCK = 256 << 10
"""Bytes of the file are given out in such blocks: SAM's embedding takes 16 of them, SAM-Med2D's one."""


def content_digest(image: np.ndarray) -> str:
    """Return a hash of an image's shape, type and pixels."""
    image = np.ascontiguousarray(image)
    digest = hashlib.blake2b(f"{image.shape} {image.dtype}".encode(), digest_size=16)
    digest.update(image.data)
    return digest.hexdigest()


@dataclass
class _Entry:
    """Where an array lies in the file, and how to tell that it is still the same."""

    blocks: list[int]
    shape: tuple[int, ...]
    dtype: np.dtype
    bytes: int
    digest: bytes


class EmbeddingCache:
    """Keeps arrays by name; what is used least goes first. One that cannot be read any more is simply not there.

    For one thread. In a process that was forked from the owner's, only the arrays in memory are found.
    """

    def __init__(self, limit: int | None = None, remembered: int = REMEMBERED):
        """Make an empty cache; the file is made when it is first needed.

        Args:
            limit: The most that the file may take, in bytes; 0 for no file; None for 4 GiB, or a tenth of the free
                disk space if that is less.
            remembered: How many arrays stay in memory.
        """
        self._limit = limit
        self._remembered = remembered
        self._recent: OrderedDict[str, np.ndarray] = OrderedDict()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._file: BinaryIO | None = None
        self._free: list[int] = []
        self._blocks = 0
        self._owner = os.getpid()

    def __contains__(self, key: str) -> bool:
        return key in self._recent or (self._owned and key in self._entries)

    @property
    def file_bytes(self) -> int:
        """What the file takes on the disk at most."""
        return self._blocks * BLOCK

    def capacity(self, size: int) -> int:
        """Return how many arrays of ``size`` bytes can be kept together."""
        return max(self._remembered, self._most_blocks() // -(-size // BLOCK))

    def get(self, key: str) -> np.ndarray | None:
        """Return the array that was put under ``key``, bit-equal and read-only, or None."""
        if key in self._entries:
            self._entries.move_to_end(key)
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        array = self._read(key)
        if array is not None:
            self._remember(key, array)
        return array

    def put(self, key: str, array: np.ndarray) -> None:
        """Keep a copy of ``array`` under ``key``; a disk that is full only means that less is kept."""
        array = np.array(array, order="C")
        self._remember(key, array)
        self._write(key, array)

    def close(self) -> None:
        """Forget everything and give the disk space back."""
        self._recent.clear()
        self._forget_file()

    @property
    def _owned(self) -> bool:
        return os.getpid() == self._owner  # a forked child shares the file's position with its parent

    def _remember(self, key: str, array: np.ndarray) -> None:
        array.setflags(write=False)
        self._recent[key] = array
        self._recent.move_to_end(key)
        while len(self._recent) > self._remembered:
            self._recent.popitem(last=False)

    def _read(self, key: str) -> np.ndarray | None:
        if not self._owned or key not in self._entries:
            return None
        entry = self._entries[key]
        content = bytearray(len(entry.blocks) * BLOCK)
        try:
            for number, block in enumerate(entry.blocks):
                self._file.seek(block * BLOCK)
                self._file.readinto(memoryview(content)[number * BLOCK : (number + 1) * BLOCK])
        except OSError as error:
            self._give_up(error)
            return None
        kept = memoryview(content)[: entry.bytes]
        if hashlib.blake2b(kept, digest_size=16).digest() != entry.digest:
            logger.warning("An image embedding on the disk is damaged; the image is encoded again.")
            self._release(key)
            return None
        return np.frombuffer(kept, entry.dtype).reshape(entry.shape)

    def _write(self, key: str, array: np.ndarray) -> None:
        if not self._owned:
            return
        if key in self._entries:
            self._release(key)
        content = memoryview(array).cast("B")
        wanted = -(-len(content) // BLOCK)
        try:
            blocks = self._take(wanted)
            if blocks is None:
                return
            for number, block in enumerate(blocks):
                self._file.seek(block * BLOCK)
                self._write_all(content[number * BLOCK : (number + 1) * BLOCK])
        except OSError as error:
            self._give_up(error)
            return
        digest = hashlib.blake2b(content, digest_size=16).digest()
        self._entries[key] = _Entry(blocks, array.shape, array.dtype, len(content), digest)

    def _write_all(self, content: memoryview) -> None:
        while content:
            content = content[self._file.write(content) :]

    def _take(self, wanted: int) -> list[int] | None:
        """Return so many blocks of the file, at the cost of the entries used least; None if there never are so many."""
        most = self._most_blocks()
        if wanted > most:
            return None
        while len(self._free) < wanted and self._blocks < most:
            self._free.append(self._blocks)
            self._blocks += 1
        while len(self._free) < wanted:
            self._release(next(iter(self._entries)))
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0, prefix="medclipsam-")  # noqa: SIM115, it stays open
        blocks, self._free = self._free[:wanted], self._free[wanted:]
        return blocks

    def _most_blocks(self) -> int:
        if self._limit is None:
            try:
                self._limit = min(LIMIT, shutil.disk_usage(tempfile.gettempdir()).free // FREE_PART)
            except OSError as error:
                self._give_up(error)
        return self._limit // BLOCK

    def _release(self, key: str) -> None:
        self._free.extend(self._entries.pop(key).blocks)

    def _give_up(self, error: OSError) -> None:
        """Go on with what is in memory."""
        logger.warning("Image embeddings are no longer kept on the disk: %s", error.strerror or error)
        self._forget_file()
        self._limit = 0

    def _forget_file(self) -> None:
        self._entries.clear()
        self._free.clear()
        self._blocks = 0
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


@lru_cache(maxsize=1)
def shared_cache() -> EmbeddingCache:
    """Return the cache that all models of this process share."""
    return EmbeddingCache()
