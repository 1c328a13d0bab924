"""Register of the stand-ins for CTK's and Slicer's widgets, and what they share."""

from __future__ import annotations

from collections.abc import Callable

from PySide6 import QtWidgets

from .native import native_get
from .signals import send

STAND_INS: dict[str, type] = {}


def stand_in(kind: type) -> type:
    """Register a stand-in under its name in the application."""
    STAND_INS[kind.__name__] = kind
    return kind


def stored(name: str, default: object, changed: str | None = None, kind: Callable | None = None) -> property:
    """A property that a stand-in keeps in ``self._values``.

    Args:
        name: the property.
        default: value before it is first set.
        changed: name of a method to call after a change, without arguments.
        kind: conversion of what is set, such as ``float``; the default's own type if it is a number or a text.
    """
    if kind is None and isinstance(default, (bool, int, float, str)):
        kind = type(default)

    def read(self: QtWidgets.QWidget) -> object:
        return self._values.get(name, default)

    def write(self: QtWidgets.QWidget, value: object) -> None:
        value = kind(value) if kind else value
        if value != self._values.get(name, default):
            self._values[name] = value
            if changed:
                getattr(self, changed)()

    return property(read, write)


class StandIn:
    """Mixed in before a Qt class: values of stored properties, and the signals that the stand-in sends itself."""

    _emits: tuple[str, ...] = ()

    def __init__(self, *values: object) -> None:
        native_get(self, "__dict__")["_values"] = {}
        super().__init__(*values)
        self._build()

    def _build(self) -> None:
        """Make the parts inside; called once."""

    def _send(self, signature: str, *values: object) -> None:
        send(self, signature, *values)


def rows(parent: QtWidgets.QWidget, *parts: QtWidgets.QWidget) -> QtWidgets.QHBoxLayout:
    """A tight row of ``parts`` as the layout of ``parent``; the first one takes the room."""
    layout = QtWidgets.QHBoxLayout(parent)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(4)
    for index, part in enumerate(parts):
        layout.addWidget(part, 1 if index == 0 else 0)
    return layout
