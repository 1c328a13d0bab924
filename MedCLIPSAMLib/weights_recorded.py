"""SHA-256 of weight files for which nobody publishes one: recorded at the first use, compared at every later one."""

from __future__ import annotations

import datetime
import json
import logging
import os
import tempfile
from pathlib import Path

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.weight_entry import Weight

logger = logging.getLogger(__name__)

FILE = "recorded.json"
LOCKS = ".locks"
_PATIENCE = 20.0  # seconds to wait for another process that writes the file; it needs milliseconds


def recorded_sha256(folder: Path, weight: Weight) -> str | None:
    """Return the SHA-256 that the weight file had at its first use; None if it was not used yet.

    Args:
        folder: The user's folder of weights.
        weight: One that is registered with another address now counts as not used yet.

    Raises:
        InputError: The record cannot be read; it is not overwritten, since files would then be trusted anew.
    """
    entry = _read(folder).get(weight.name)
    if not isinstance(entry, dict) or entry.get("source") != weight.source:
        return None
    value = entry.get("sha256")
    return value if isinstance(value, str) else None


def record(folder: Path, weight: Weight, sha256: str, size: int) -> bool:
    """Note the SHA-256 of a weight file, and say so in the log.

    Returns:
        Whether that was possible; not in a folder that cannot be written to.

    Raises:
        InputError: See :func:`recorded_sha256`.
    """
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    entry = {"sha256": sha256, "bytes": size, "source": weight.source, "date": today}
    try:
        _change(folder, weight.name, entry)
    except (OSError, NotImplementedError) as error:  # a file system may know no locks
        logger.warning("The SHA-256 of %s cannot be recorded in %s: %s", weight.name, folder / FILE, error)
        return False
    text = "No SHA-256 is published for %s; the one it has now, %s, is recorded in %s and compared from now on."
    logger.warning(text, weight.name, sha256, folder / FILE)
    return True


def forget(folder: Path, name: str) -> None:
    """Remove the record of a weight file, if there is one.

    Raises:
        InputError: See :func:`recorded_sha256`.
        OSError: The record cannot be written.
    """
    if name in _read(folder):
        _change(folder, name, None)


def lock_file(folder: Path, name: str) -> Path:
    """Return the file that locks ``name`` between processes; its folder is made.

    Raises:
        OSError: The folder cannot be made.
    """
    locks = folder / LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    return locks / f"{name}.lock"


def _read(folder: Path) -> dict[str, object]:
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); repair it, or delete it to record anew.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; repair it, or delete it to record anew.")
    return content


def _change(folder: Path, name: str, entry: dict[str, object] | None) -> None:
    from filelock import FileLock

    with FileLock(lock_file(folder, "recorded"), timeout=_PATIENCE):
        content = _read(folder)
        content.pop(name, None)
        if entry is not None:
            content[name] = entry
        handle, temporary = tempfile.mkstemp(prefix=".recorded-", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(content, stream, indent=1, sort_keys=True)
            os.replace(temporary, folder / FILE)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
