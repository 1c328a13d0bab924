"""Imports open_clip with what it needs, or says how to install it."""

from __future__ import annotations

import importlib
from types import ModuleType

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.torchvision_import import ensure_torchvision

_PACKAGES = {"open_clip": "open_clip_torch", "transformers": "transformers", "timm": "timm"}


def import_open_clip(model: str) -> ModuleType:
    """Return the module open_clip.

    Args:
        model: What needs it, for the message.

    Raises:
        InputError: It, transformers or timm is not installed; the message has the command that installs them.
    """
    ensure_torchvision()
    missing = []
    for module, package in _PACKAGES.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            missing.append(package)
    if missing:
        raise InputError(
            f"{model} needs the package{'s' * (len(missing) > 1)} {', '.join(missing)}; run: pip install "
            f"{' '.join(missing)}   (versions that fit: Resources/MedCLIPSAM/requirements-biomedclip.txt)"
        )
    return importlib.import_module("open_clip")
