"""Very many strings as one block of bytes: a million take what their letters take, and a forked process shares them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np

_ODD_LETTERS = "surrogatepass"  # JSON may hold half characters; they go in and out unchanged


class TextColumn:
    """A read-only column of strings.

    Attributes:
        blob: uint8, the strings in UTF-8, one after the other.
        starts: (N,) int64, where each begins in ``blob``.
        lengths: (N,) int32, bytes.
    """

    def __init__(self, blob: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Keep the three arrays, which may be mapped from a file."""
        self.blob, self.starts, self.lengths = blob, starts, lengths
        self._view = memoryview(blob)

    def __len__(self) -> int:
        """Return the number of strings."""
        return len(self.starts)

    def __getitem__(self, row: int) -> str:
        """Return one string."""
        start = int(self.starts[row])
        return str(self._view[start : start + int(self.lengths[row])], "utf-8", _ODD_LETTERS)

    def __iter__(self) -> Iterator[str]:
        """Yield all strings in order."""
        for piece in self.encoded():
            yield piece.decode("utf-8", _ODD_LETTERS)

    def encoded(self) -> Iterator[bytes]:
        """Yield all strings in order as UTF-8."""
        view, step = self._view, 1 << 16
        for first in range(0, len(self), step):
            starts = self.starts[first : first + step].tolist()
            lengths = self.lengths[first : first + step].tolist()
            for start, length in zip(starts, lengths, strict=True):
                yield bytes(view[start : start + length])

    def __getstate__(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what a copy needs."""
        return self.blob, self.starts, self.lengths

    def __setstate__(self, state: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Become the copy."""
        self.__init__(*state)

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.blob.nbytes + self.starts.nbytes + self.lengths.nbytes

    def take(self, rows: np.ndarray) -> TextColumn:
        """Return the column of these rows, which shares the letters."""
        return TextColumn(self.blob, self.starts[rows], self.lengths[rows])

    def keys(self) -> np.ndarray:
        """Return (N,) int64: equal strings have equal keys, the same on every machine; see :func:`text_key`."""
        return np.fromiter(map(text_key, self.encoded()), np.int64, len(self))


class TextBuilder:
    """Collects strings into a :class:`TextColumn`."""

    def __init__(self) -> None:
        """Begin with none."""
        self._blob, self._lengths = bytearray(), [np.empty(0, np.int32)]

    def add(self, strings: Sequence[str]) -> None:
        """Append many strings."""
        encoded = [text.encode("utf-8", _ODD_LETTERS) for text in strings]
        self._blob += b"".join(encoded)  # grows in place; pieces kept for later would leave holes in the memory
        self._lengths.append(np.fromiter(map(len, encoded), np.int32, len(encoded)))

    def column(self) -> TextColumn:
        """Return the column; the builder is not to be used afterwards."""
        lengths = np.concatenate(self._lengths)
        starts = np.cumsum(lengths, dtype=np.int64)
        starts -= lengths
        return TextColumn(np.frombuffer(self._blob, np.uint8), starts, lengths)


def text_key(text: bytes) -> int:
    """Return a signed 64-bit number of the bytes: BLAKE2b, so that chance collisions do not occur in practice."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)


def column_of(strings: Iterable[str]) -> TextColumn:
    """Return a column of these strings."""
    builder = TextBuilder()
    builder.add(list(strings))
    return builder.column()
