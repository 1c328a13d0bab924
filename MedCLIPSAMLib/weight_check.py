"""Compare a weight file with what is registered for it, or with what was recorded at its first use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from MedCLIPSAMLib.weight_entry import OWN_VARIABLE, Verification, Weight, repair
from MedCLIPSAMLib.weights_recorded import recorded_sha256


def compare(
    weight: Weight, path: Path, sha256: Callable[[], str], *, own: bool, folder: Path, offline: bool
) -> Verification:
    """Return what is known of a file.

    Args:
        path: An existing file.
        sha256: Returns its SHA-256; is called only where that can matter, since it takes seconds for large files.
        own: It is the user's own file, which need not be the registered one.
        folder: The user's folder of weights, which has the record.
        offline: Do not advise to let the program download it.

    Raises:
        InputError: The record cannot be read.
        OSError: The file cannot be read.
    """
    if own:
        if sha256() == weight.sha256:
            return Verification(weight.name, path, "ok")
        message = f"{path} is your own file ({OWN_VARIABLE}), not the registered one; it is used unverified."
        return Verification(weight.name, path, "unregistered", message)
    advice = repair(weight, path, folder, offline=offline)
    size = path.stat().st_size
    if weight.bytes is not None and size != weight.bytes:
        message = f"{path} has {size} bytes, {weight.name!r} has {weight.bytes}: it is incomplete or another file."
        return Verification(weight.name, path, "wrong size", f"{message} {advice}")
    if weight.sha256 is not None:
        found = sha256()
        if found == weight.sha256:
            return Verification(weight.name, path, "ok")
        message = f"{path} has SHA-256 {found}, {weight.name!r} has {weight.sha256}: it is damaged or another file."
        return Verification(weight.name, path, "wrong hash", f"{message} {advice}")
    known = recorded_sha256(folder, weight)
    if known is None:
        message = f"{path}: no SHA-256 is published for {weight.name!r}; at its first use it is recorded."
        return Verification(weight.name, path, "unregistered", message)
    found = sha256()
    if found == known:
        message = "No SHA-256 is published; it is still the one that was recorded at the first use."
        return Verification(weight.name, path, "ok", message)
    message = (
        f"{path} has SHA-256 {found}, but {known} was recorded at the first use of {weight.name!r}: it is damaged or "
        f"was changed since. {advice} If it was replaced on purpose by a newer one, "
        f'"medclipsam weights remove {weight.name}" forgets the record, and deletes the file if it lies in {folder}.'
    )
    return Verification(weight.name, path, "wrong hash", message)
