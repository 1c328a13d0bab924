"""Where the files beside the code are: in a source checkout, in an installed Slicer module, in a pip installation."""

from __future__ import annotations

from pathlib import Path

from MedCLIPSAMLib.errors import InputError


def resource_path(*parts: str) -> Path:
    """Return the path of a file or folder below ``Resources``.

    A pip installation keeps ``Resources`` inside the package; a source checkout and an installed Slicer module keep it
    beside the package. In Slicer other extensions may share that folder, so the first place that has the wanted file
    counts, not the first that has a ``Resources``.

    Args:
        parts: The path below ``Resources``, for example ``"MedCLIPSAM", "Prompts"``.

    Raises:
        InputError: No place has it.
    """
    package = Path(__file__).resolve().parent
    candidates = [folder.joinpath("Resources", *parts) for folder in (package, package.parent)]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise InputError(
        f"{Path('Resources', *parts)} is missing (looked for {' and '.join(map(str, candidates))}); "
        "the installation is incomplete: install MedCLIPSAM again."
    )
