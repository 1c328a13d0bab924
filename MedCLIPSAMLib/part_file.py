"""A file that has come in part: the bytes in ``NAME.part``, from where and which version in ``NAME.part.json``."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from MedCLIPSAMLib.errors import OutputError

SPARE = 100_000_000  # bytes of the disk that stay free


class PartFile:
    """What has come so far, perhaps to another process. Nobody else may write it meanwhile.

    Attributes:
        path: The part file.
        done: Bytes in it.
        version: What the server calls this version of the file, for If-Range; None if it is not known.
        sha256: What the server says of the whole file; None where it says nothing.
    """

    def __init__(self, path: Path, url: str, *, checked: bool = False) -> None:
        """Look at what is there; what cannot be gone on with is deleted.

        Args:
            path: The part file.
            url: Only what came from there is gone on with.
            checked: The SHA-256 of the whole file will be compared, so a part without a version is no danger.
        """
        self.path, self.done = path, 0
        self.version: str | None = None
        self.sha256: str | None = None
        self._url, self._known = url, path.with_name(path.name + ".json")
        if not path.is_file():
            return
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            read = json.loads(self._known.read_text(encoding="utf-8"))
            known = read if isinstance(read, dict) else {}
        version, sha256 = known.get("version"), known.get("sha256")
        if known.get("url") != url or not (checked or isinstance(version, str)):
            self.discard()
            return
        self.done = path.stat().st_size
        self.version = version if isinstance(version, str) else None
        self.sha256 = sha256 if isinstance(sha256, str) else None

    def note(self) -> None:
        """Write down the version, for a process that goes on later.

        Raises:
            OutputError: It cannot be written.
        """
        note = {"url": self._url, "version": self.version, "sha256": self.sha256}
        self._on_disk(self._known.write_text, json.dumps(note), "utf-8")

    def open(self) -> BinaryIO:
        """Return the file, opened to go on; write with :meth:`write` and close with :meth:`close`.

        Raises:
            OutputError: It cannot be written.
        """
        return self._on_disk(self.path.open, "ab" if self.done else "wb")

    def write(self, stream: BinaryIO, piece: bytes) -> None:
        """Add a piece.

        Raises:
            OutputError: It cannot be written.
        """
        self._on_disk(stream.write, piece)
        self.done += len(piece)

    def close(self, stream: BinaryIO) -> None:
        """Close the file; a full disk may tell only now.

        Raises:
            OutputError: The last pieces could not be written.
        """
        self._on_disk(stream.close)

    def discard(self) -> None:
        """Delete what has come."""
        self.path.unlink(missing_ok=True)
        self.forget()
        self.done, self.version = 0, None

    def forget(self) -> None:
        """Delete what was noted, as when the file has got its final name."""
        self._known.unlink(missing_ok=True)

    def check_room(self, total: int) -> None:
        """Make sure that the rest fits on the disk.

        Raises:
            OutputError: It does not.
        """
        free, needed = shutil.disk_usage(self.path.parent).free, total - self.done + SPARE
        if free < needed:
            raise OutputError(
                f"{free / 1e9:.2f} GB are free on the disk of {self.path.parent}; {needed / 1e9:.2f} GB are needed for "
                "the rest of the download. Make room and try again; what has come is kept."
            )

    def _on_disk(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Call a function of the disk; a failure of the network, which is an OSError too, must not be taken for its."""
        try:
            return function(*arguments)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                text = f"The disk of {self.path} is full. Make room and try again; what has come is kept."
            else:
                text = f"{self.path} cannot be written ({error.strerror}); check the permissions of its folder."
            raise OutputError(text) from error
