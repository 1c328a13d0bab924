"""Where a weight file may lie."""

from __future__ import annotations

import os
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.weight_entry import OFFLINE_VARIABLE, OWN_VARIABLE, Weight

_PICKLED = (".pth", ".pt", ".bin")  # files of torch; what is in them may also be saved as safetensors


def offline() -> bool:
    """Whether an offline folder is set: then no connection may be attempted."""
    return bool(os.environ.get(OFFLINE_VARIABLE))


def is_own(weight: Weight, path: Path) -> bool:
    """Whether a file is the user's own one, which need not be the registered one.

    Raises:
        InputError: ``MEDCLIPSAM_OWN_WEIGHTS`` does not name a folder.
    """
    folder = _folder_of(OWN_VARIABLE)
    return folder is not None and os.path.abspath(path) in map(os.path.abspath, own_files(weight, folder))


def own_files(weight: Weight, folder: Path) -> list[Path]:
    """Return where the user's own file may lie in ``folder``: by the registered name, or saved as safetensors."""
    path = folder / weight.file
    return [path, path.with_suffix(".safetensors")] if path.suffix in _PICKLED else [path]


def candidates(weight: Weight, user: Path, models: Path) -> list[Path]:
    """Return the places of a weight file, first choice first.

    Args:
        user: The user's folder of weights.
        models: The folder of the registry, which also has the files of this installation.

    Raises:
        InputError: ``MEDCLIPSAM_WEIGHTS`` or ``MEDCLIPSAM_OWN_WEIGHTS`` does not name a folder.
    """
    own, offline_folder = _folder_of(OWN_VARIABLE), _folder_of(OFFLINE_VARIABLE)
    places = own_files(weight, own) if own else []
    places += [folder / weight.file for folder in (offline_folder, user) if folder]
    kind, _, rest = weight.source.partition(":")
    if kind == "package":
        top_level, _, inner = rest.partition("/")
        invalidate_caches()  # the package may have been installed a moment ago, by this process
        spec = find_spec(top_level)  # finds a top-level package without importing it
        places += [Path(root) / inner for root in (spec.submodule_search_locations or ())] if spec else []
    elif kind == "resource":
        places.append(models / rest)
    return places


def _folder_of(variable: str) -> Path | None:
    value = os.environ.get(variable)
    if value and not Path(value).is_dir():
        raise InputError(f"{variable} is {value!r}, which is not a folder; correct it or unset it.")
    return Path(value) if value else None
