"""PySide6's own attribute access, kept before the rules of ``pythonqt`` replace it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache

os.environ.pop("PYSIDE6_OPTION_PYTHON_ENUM", None)  # PySide6 leaves it to children, where it goes before ours
if sys.version_info < (3, 12):
    # PySide6's wheels are built for a None that cannot die, and take references of it away; give it plenty.
    ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40
sys.pyside6_option_python_enum = 0x0E  # enums are integers, as in PythonQt

from PySide6.QtCore import QObject  # noqa: E402

_look_ups: dict[type, Callable] = {}


def keep_look_ups(kinds: list[type]) -> None:
    """Remember the attribute look-up of those classes that have their own."""
    _look_ups.update({kind: vars(kind)["__getattribute__"] for kind in kinds if "__getattribute__" in vars(kind)})


@cache
def _look_up(kind: type) -> Callable:
    return next(_look_ups[base] for base in kind.__mro__ if base in _look_ups)


def native_get(self: QObject, name: str) -> object:
    """PySide6's own attribute look-up, without the rules."""
    return _look_up(type(self))(self, name)


def native_set(self: QObject, name: str, value: object) -> None:
    """Python's own attribute assignment, without the rules."""
    for base in type(self).__mro__:
        descriptor = vars(base).get(name)
        if hasattr(type(descriptor), "__set__"):
            descriptor.__set__(self, value)
            return
    native_get(self, "__dict__")[name] = value
