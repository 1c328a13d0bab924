"""PythonQt's connect and disconnect: signals by signature, arguments cut to what the slot takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from PySide6 import QtCore

from . import collect
from .api import ClassApi, normalized
from .native import native_get

KEY = "_double_connections"


def _accepted(slot: Callable) -> int | None:
    """How many positional arguments PythonQt passes at most; None: all. Only plain functions and methods are cut."""
    function = slot.__func__ if inspect.ismethod(slot) else slot
    if not inspect.isfunction(function) or function.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return function.__code__.co_argcount - (1 if inspect.ismethod(slot) else 0)


def _guarded(slot: Callable, limit: int) -> Callable:
    """``slot`` as the signal calls it: arguments cut, exceptions collected instead of lost."""
    accepted = _accepted(slot)

    def call(*values: object) -> None:
        values = values[:limit]
        try:
            slot(*(values if accepted is None else values[:accepted]))
        except Exception as error:
            collect.record(error)

    return call


def _count(signature: str) -> int:
    inside = signature.partition("(")[2].rstrip(")")
    return 0 if not inside else inside.count(",") + 1


def native_signatures(sender: QtCore.QObject, name: str) -> list[str]:
    """Signatures of Qt's own signals of this name."""
    meta = QtCore.QObject.metaObject(sender)
    methods = [meta.method(index) for index in range(meta.methodCount())]
    return [
        bytes(method.methodSignature().data()).decode()
        for method in methods
        if method.methodType() == QtCore.QMetaMethod.MethodType.Signal and bytes(method.name().data()).decode() == name
    ]


def _native(sender: QtCore.QObject, signature: str) -> QtCore.SignalInstance | None:
    """PySide's signal for a signature; None when Qt's own classes have no such signal."""
    name = signature.partition("(")[0]
    kinds = native_signatures(sender, name)
    if signature not in kinds:
        return None
    instance = native_get(sender, name)
    types = signature.partition("(")[2].rstrip(")").split(",")
    if len(kinds) == 1 or types == [""]:
        return instance
    return instance[types[0] if len(types) == 1 else tuple(types)]


class Connections:
    """What is connected to one object's signals."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Callable, Callable, QtCore.SignalInstance | None]] = []

    @classmethod
    def of(cls, sender: QtCore.QObject) -> Connections:
        """The connections of ``sender``, made when missing."""
        return native_get(sender, "__dict__").setdefault(KEY, cls())


def find(sender: QtCore.QObject, api: ClassApi | None, emits: tuple, signal: str) -> str:
    """The normalized signature of a signal of ``sender``.

    Raises:
        AttributeError: the application's class has no such signal.
    """
    signature = normalized(signal)
    listed = api is not None and not api.flat
    known = signature in api.signals if listed else signature in emits or _native(sender, signature) is not None
    if not known:
        have = sorted(api.signals) if api else []
        raise AttributeError(f"{type(sender).__name__} has no signal {signal!r}; it has {', '.join(have)}")
    return signature


def connect(sender: QtCore.QObject, api: ClassApi | None, emits: tuple, signal: str, slot: Callable) -> bool:
    """Connect ``slot`` to ``signal`` of ``sender``.

    Raises:
        AttributeError: the application's class has no such signal.
        TypeError: the slot cannot be called.
        NotInDoubleError: the application has the signal, the double never sends it.
    """
    if not callable(slot):
        raise TypeError(f"cannot connect {signal!r} to {slot!r}: not callable")
    signature = find(sender, api, emits, signal)
    call = _guarded(slot, _count(signature))
    native = None if signature in emits else _native(sender, signature)
    if native is None and signature not in emits:
        raise collect.NotInDoubleError(f"{type(sender).__name__}.{signature} is never sent by the double")
    if native is not None:
        native.connect(call)
    Connections.of(sender).entries.append((signature, slot, call, native))
    return True


def disconnect(
    sender: QtCore.QObject, api: ClassApi | None, emits: tuple, signal: str, slot: Callable | None = None
) -> bool:
    """Disconnect a slot, or all; False when it was not connected, as in PythonQt."""
    signature = find(sender, api, emits, signal)
    entries = Connections.of(sender).entries
    for entry in [item for item in entries if item[0] == signature and slot in (None, item[1])]:
        entries.remove(entry)
        if entry[3] is not None:
            entry[3].disconnect(entry[2])
        if slot is not None:
            return True
    return slot is None


def send(sender: QtCore.QObject, signature: str, *values: object) -> None:
    """Send a signal of a stand-in."""
    if signature not in type(sender)._emits:
        raise AttributeError(f"{type(sender).__name__} does not declare {signature}")
    if not QtCore.QObject.signalsBlocked(sender):
        for entry in list(Connections.of(sender).entries):
            if entry[0] == signature and entry[3] is None:
                entry[2](*values)


class BoundSignal:
    """``widget.clicked``: connected by ``widget.clicked.connect(f)``, sent by calling it."""

    def __init__(self, sender: QtCore.QObject, name: str, signatures: list[str]) -> None:
        self.sender, self.name = sender, name
        self.signature = max(signatures, key=_count)

    def connect(self, slot: Callable) -> bool:
        """Connect a callable."""
        return self.sender.connect(self.signature, slot)

    def disconnect(self, slot: Callable | None = None) -> bool:
        """Disconnect a callable, or all."""
        return self.sender.disconnect(self.signature, slot)

    def emit(self, *values: object) -> None:
        """Send the signal."""
        native = _native(self.sender, self.signature)
        if native is not None:
            native.emit(*values)
        else:
            send(self.sender, self.signature, *values)

    __call__ = emit
