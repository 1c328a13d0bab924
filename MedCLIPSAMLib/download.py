"""Fetch weight files into the user's data folder: ``python -m MedCLIPSAMLib.download NAME`` is the panel's child.

The child says, as JSON lines, {"event": "progress", "done", "total"} (bytes; total may be null) and at the end one of
{"event": "done", "path"}, {"event": "error", "kind", "message"}, {"event": "cancelled"}. It ends when its stdin closes;
what has come by then is kept and gone on with the next time.

The Hugging Face hub's files go the same way as all others: its own library deletes what has come when a download is
broken off, and does not know REQUESTS_CA_BUNDLE. ``HF_ENDPOINT`` names another hub, as for that library.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from MedCLIPSAMLib import weights, weights_recorded
from MedCLIPSAMLib.errors import (
    CancelledError,
    ChecksumError,
    InputError,
    MedCLIPSAMError,
    MissingWeightsError,
    OutputError,
)
from MedCLIPSAMLib.weight_entry import OFFLINE_VARIABLE, Weight, remedy

logger = logging.getLogger("MedCLIPSAMLib.download")  # __name__ is "__main__" in the child

HUB = "https://huggingface.co/"
ENDING_SECONDS = 2.0  # for the download to end by itself when nobody waits for it any more
PROGRESS_INTERVAL = 0.1  # seconds between two events
_WAIT = 0.2  # seconds between two looks whether another process is ready
_PORTION = 1 << 22

Progress = Callable[[int, int | None], None]
Cancelled = Callable[[], bool]


def address(weight: Weight) -> str:
    """Return where the file is downloaded from: the registered address, at the hub that ``HF_ENDPOINT`` names."""
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint and weight.source.startswith(HUB):
        return f"{endpoint.rstrip('/')}/{weight.source.removeprefix(HUB)}"
    return weight.source


def check_fetchable(name: str) -> Weight:
    """Return the entry of a weight file that may be downloaded now.

    Raises:
        InputError: No such name, it comes in another way, or an offline folder is set.
    """
    weight = weights.registered(name)
    if not weight.fetchable:
        raise InputError(f"The weights {name!r} cannot be downloaded. {remedy(weight, weights.user_folder())}")
    if weights.offline():
        raise InputError(
            f"No connection is made while {OFFLINE_VARIABLE} names an offline folder; unset it to download {name!r}. "
            + remedy(weight, weights.user_folder(), offline=True)
        )
    return weight


def fetch(name: str, *, progress: Progress | None = None, cancelled: Cancelled | None = None) -> Path:
    """Download a weight file, check it, and put it into the user's data folder; go on with what is there of it.

    Of several processes one downloads; the others wait and take its file. A file that is there and whole is not
    downloaded again.

    Args:
        name: In the registry.
        progress: Is called with the bytes that are there and those of the whole file, None while that is not known.
        cancelled: Is asked again and again whether to stop.

    Returns:
        The file.

    Raises:
        InputError: See :func:`check_fetchable`.
        MissingWeightsError: It cannot be had from the server; the message says why.
        ChecksumError: Another file came; it was deleted.
        OutputError: The folder cannot be written to, or its disk has too little room.
        CancelledError: ``cancelled`` said so.
    """
    weight = check_fetchable(name)
    from MedCLIPSAMLib.http_range import OtherFileError, TransferError, transfer
    from MedCLIPSAMLib.part_file import PartFile

    folder, url = weights.user_folder(), address(weight)
    path = folder / weight.file
    part_path = path.with_name(path.name + weights.PART_SUFFIXES[0])
    with _alone(folder, weight, part_path, progress, cancelled):
        if path.is_file() and weights.check_file(weight, path).status == "ok":
            return path
        part = PartFile(part_path, url, checked=weight.sha256 is not None)
        try:
            transfer(url, part, size=weight.bytes, progress=progress, cancelled=cancelled)
        except OtherFileError as error:
            raise ChecksumError(f"{url} cannot be used: {error}. Nothing of it was kept. {_ASK}") from error
        except TransferError as error:
            kept = f"{part.done / 1e6:.1f} MB have come and are kept. " if part.done else ""
            raise MissingWeightsError(
                f"{name!r} could not be downloaded from {url}: {error}. {kept}Try again, or by hand: "
                + remedy(weight, folder, offline=True)
            ) from error
        sha256 = _sha256(part_path, cancelled)
        expected = weight.sha256 or weights_recorded.recorded_sha256(folder, weight) or part.sha256
        if expected not in (None, sha256):
            part.discard()
            known = "registered" if weight.sha256 else "known for it"
            text = f"{url} gave a file with SHA-256 {sha256}; {expected} is {known}."
            raise ChecksumError(f"{text} It was deleted. {_ASK}")
        _install(part_path, path)
        part.forget()
        if weight.sha256 is None and weights_recorded.recorded_sha256(folder, weight) is None:
            weights_recorded.record(folder, weight, sha256, part.done)
    return path


_ASK = "Try again; if it stays so, ask who runs your network, or whether there is a newer version of MedCLIPSAM."


@contextmanager
def _alone(
    folder: Path, weight: Weight, part: Path, progress: Progress | None, cancelled: Cancelled | None
) -> Iterator[None]:
    """Hold the lock of a weight file; while another process has it, show how far that one is."""
    from filelock import FileLock, Timeout

    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(weights_recorded.lock_file(folder, weight.name))
        while True:
            try:
                lock.acquire(timeout=_WAIT)
                break
            except Timeout:
                if cancelled and cancelled():
                    raise CancelledError("The download was cancelled.") from None
                if progress and part.is_file():
                    progress(part.stat().st_size, weight.bytes)
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{folder} cannot be written to ({reason}). Change its permissions, or let XDG_DATA_HOME (on Windows "
            f"LOCALAPPDATA) name a folder of yours; or put the file at {weight.file} in a folder that "
            f"{OFFLINE_VARIABLE} names."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sha256(path: Path, cancelled: Cancelled | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while portion := stream.read(_PORTION):
            digest.update(portion)
            if cancelled and cancelled():
                raise CancelledError("The download was cancelled; what has come is kept.")
    return digest.hexdigest()


def _install(part: Path, path: Path) -> None:
    try:
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())  # the name must not last longer than the content
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); perhaps it is in use.") from error


# ---- The panel's child ---------------------------------------------------------------------------------------------


def main() -> int:
    """Fetch the weights that the command line names, and tell the parent; return the exit status."""
    from MedCLIPSAMLib.event_lines import take_stdout

    events = take_stdout()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s:%(name)s: %(message)s", stream=sys.stderr)
    # Both load native code, which on Windows must not happen while a thread waits for a pipe.
    import filelock  # noqa: F401

    from MedCLIPSAMLib import http_range  # noqa: F401

    closed = threading.Event()
    threading.Thread(target=_watch, args=(closed,), name="stdin", daemon=True).start()
    shown = 0.0

    def progress(done: int, total: int | None) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= PROGRESS_INTERVAL or done == total:
            shown = now
            events.send("progress", done=done, total=total)

    try:
        if len(sys.argv) != 2:
            raise InputError("pass the name of one weight file.")
        path = fetch(sys.argv[1], progress=progress, cancelled=lambda: closed.is_set() or events.broken)
    except CancelledError:
        events.send("cancelled")
        return 1
    except MedCLIPSAMError as error:
        events.send("error", kind=type(error).__name__, message=str(error))
        return 1
    except Exception as error:  # whatever goes wrong, the parent must learn of it
        logger.exception("The download failed.")
        text = f"The download failed ({type(error).__name__}: {error}); the log tells more."
        events.send("error", kind="InternalError", message=text)
        return 1
    events.send("done", path=path)
    return 0


def _watch(closed: threading.Event) -> None:
    """Wait until the parent closes stdin, then see that this process ends; for a thread."""
    while os.read(0, 4096):
        pass
    closed.set()
    time.sleep(ENDING_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
