"""What belongs to the user and the computer rather than to the scene: QSettings below "MedCLIPSAM/"."""

from __future__ import annotations

from typing import Any

import qt
import slicer

PREFIX = "MedCLIPSAM/"


def setting(name: str, default: Any) -> Any:
    """Return a setting as the type of ``default``; the settings file keeps everything as text.

    Args:
        name: Without the prefix.
        default: bool, int, float, str, or a list of str.
    """
    value = qt.QSettings().value(PREFIX + name)
    if value is None:
        return default
    if isinstance(default, list):  # one entry comes back as a text, several as a tuple
        entries = [value] if isinstance(value, str) else list(value or ())
        return [str(entry) for entry in entries if entry]
    if isinstance(default, bool):
        return slicer.util.toBool(value)
    try:
        return type(default)(value)
    except (TypeError, ValueError):
        return default


def setSetting(name: str, value: Any) -> None:
    """Keep a setting; None removes it."""
    if value is None:
        qt.QSettings().remove(PREFIX + name)
    else:
        qt.QSettings().setValue(PREFIX + name, value)
