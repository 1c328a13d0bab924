"""PythonQt's attribute rules on PySide6's classes.

As in PythonQt, of every QObject: a property is a value and not a method; a name that the application's class does not
have raises AttributeError; a new attribute cannot be made on a C++ object, only on objects of Python subclasses; lists
come back as tuples; methods take no keywords. The rules are installed on PySide6's own classes, so they also hold for
objects that Qt made itself. This changes the whole process.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from functools import cache

from PySide6 import QtCore, QtGui, QtWidgets

from . import signals
from .api import ClassApi, class_api
from .collect import NotInDoubleError
from .native import keep_look_ups, native_get, native_set

QObject = QtCore.QObject
PACKAGE = __name__.rpartition(".")[0]
loading = [False]  # PySide6's loader puts a form's children on it as attributes; PythonQt finds them without


class View:
    """What the rules need to know of one Python class.

    Attributes:
        api: the application's record of the nearest class that Qt or the double defines; None when not recorded.
        user: names defined by Python classes above that class: the panel's own subclasses.
        own: names defined by stand-ins of the double.
        emits: signals that the double sends itself.
    """

    def __init__(self, kind: type) -> None:
        self.user: set[str] = set()
        self.own: set[str] = set()
        self.derived = False
        self.api: ClassApi | None = None
        for base in kind.__mro__:
            if base.__module__.startswith(PACKAGE):
                self.own |= set(vars(base))
                if self.api is None and class_api(base.__name__) is None:
                    self.user |= set(vars(base))  # not recorded, such as the layout manager: what the double has counts
                self.api = self.api or class_api(base.__name__)
            elif base.__module__.startswith(("PySide6", "Shiboken")):
                self.api = self.api or (None if self.own else class_api(base.__name__))
                break
            else:
                self.derived = True
                self.user |= set(vars(base))
        self.emits = tuple(getattr(kind, "_emits", ()))


view_of = cache(View)


def simple(value: object) -> object:
    """A result as PythonQt gives it: lists are tuples."""
    return tuple(simple(item) for item in value) if isinstance(value, list) else value


def _property(self: QObject, name: str) -> QtCore.QMetaProperty | None:
    meta = QObject.metaObject(self)
    index = meta.indexOfProperty(name)
    return meta.property(index) if index >= 0 else None


def _read(self: QObject, prop: QtCore.QMetaProperty, name: str) -> object:
    """The value of a property; not through Qt where that would ask Python for an override, without end."""
    if name in ("sizeHint", "minimumSizeHint", "text"):
        for base in type(self).__mro__:
            if base.__module__.startswith("PySide6") and name in vars(base):
                return vars(base)[name](self)
    return prop.read(self)


class Method:
    """A method of an object: no keywords, lists as tuples, and equal to itself when looked up again."""

    def __init__(self, target: QObject, name: str, function: Callable) -> None:
        self.target, self.__name__, self.function = target, name, function

    def __call__(self, *values: object) -> object:
        return simple(self.function(*values))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and (self.target, self.__name__) == (other.target, other.__name__)

    def __hash__(self) -> int:
        return hash((id(self.target), self.__name__))


def _find_children(self: QObject, kind: object = QObject, name: str = "") -> tuple:
    wanted = kind if isinstance(kind, str) else kind.__name__
    found = []
    for child in QObject.children(self):
        match = any(base.__name__ == wanted for base in type(child).__mro__)
        if match and (not name or QObject.objectName(child) == name):
            found.append(child)
        found.extend(_find_children(child, kind, name))
    return tuple(found)


def _connect(self: QObject, signal: str, receiver: object, slot: str | None = None) -> bool:
    view = view_of(type(self))
    target = receiver if slot is None else getattr(receiver, slot.partition("(")[0])
    return signals.connect(self, view.api, view.emits, signal, target)


def _disconnect(self: QObject, signal: str, slot: Callable | None = None) -> bool:
    view = view_of(type(self))
    return signals.disconnect(self, view.api, view.emits, signal, slot)


SPECIAL: dict[str, Callable[[QObject], object]] = {
    "name": lambda self: QObject.objectName(self),
    "connect": lambda self: lambda *values: _connect(self, *values),
    "disconnect": lambda self: lambda *values: _disconnect(self, *values),
    "className": lambda self: (
        lambda: next(kind.__name__ for kind in type(self).__mro__ if kind.__module__.startswith(("PySide6", PACKAGE)))
    ),
    "delete": lambda self: lambda: QObject.deleteLater(self),
    "findChildren": lambda self: lambda *values: _find_children(self, *values),
    "findChild": lambda self: lambda *values: next(iter(_find_children(self, *values)), None),
    "exec_": lambda self: native_get(self, "exec"),
    "print_": lambda self: native_get(self, "print_"),
    "raise_": lambda self: native_get(self, "raise_"),
}


def _written() -> bool:
    """Whether Python code says ``object.name``. Qt looks up overrides of its virtual functions in the same way."""
    frame = sys._getframe(2)
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] in ("LOAD_ATTR", "LOAD_METHOD")


def get_attribute(self: QObject, name: str) -> object:
    """Attribute look-up of every QObject."""
    view = view_of(type(self))
    if name.startswith("_") or name in view.user or name.endswith("Event"):
        return native_get(self, name)
    kept = native_get(self, "__dict__")
    if name in kept and not isinstance(kept[name], QtCore.SignalInstance):
        return kept[name]
    api = view.api
    if api is not None and name not in api.names:
        if not _written():
            return native_get(self, name)
        raise AttributeError(f"{api.name} has no attribute {name!r} in the application")
    if name in view.own:
        return simple(native_get(self, name))
    if name in SPECIAL:
        return SPECIAL[name](self)
    is_property = api is None or api.flat or name in api.properties
    prop = _property(self, name) if is_property else None
    if prop is not None:
        return simple(_read(self, prop, name))
    if api is not None and name in api.properties:
        if name in kept.get("_values", ()):
            return kept["_values"][name]
        raise NotInDoubleError(f"property {api.name}.{name} is not in the double")
    if api is not None and api.is_signal(name) and not api.flat:
        return signals.BoundSignal(self, name, [s for s in api.signals if s.partition("(")[0] == name])
    try:
        value = native_get(self, name)
    except AttributeError:
        if api is None:
            raise
        raise NotInDoubleError(f"{api.name}.{name} is not in the double") from None
    if isinstance(value, QtCore.SignalInstance):
        return signals.BoundSignal(self, name, signals.native_signatures(self, name))
    return Method(self, name, value) if callable(value) and not isinstance(value, type) else value


def set_attribute(self: QObject, name: str, value: object) -> None:
    """Attribute assignment of every QObject."""
    if loading[0] and isinstance(value, QObject) and QObject.objectName(value) == name:
        return
    if isinstance(value, QtCore.SignalInstance):  # PySide6 keeps its signals this way
        native_set(self, name, value)
        return
    view = view_of(type(self))
    api = view.api
    if name in view.own and (api is None or api.flat or name in api.properties or name in view.user):
        native_set(self, name, value)
        return
    if name == "name":
        name = "objectName"
    prop = _property(self, name) if api is None or api.flat or name in api.properties else None
    if prop is not None:
        if not prop.isWritable():
            raise AttributeError(f"property {name!r} of {type(self).__name__} is not writable")
        if (value is None and not prop.typeName().endswith("*")) or not prop.write(self, value):
            raise AttributeError(f"property {name!r} of type {prop.typeName()} does not accept {value!r}")
    elif api is not None and name in api.properties:
        if "_values" not in native_get(self, "__dict__") or not api.properties[name][1]:
            raise NotInDoubleError(f"property {api.name}.{name} is not in the double, or cannot be written")
        self._values[name] = value  # a stand-in keeps what it is told, without doing anything with it
    elif api is not None and name in api.names and name not in view.user:
        raise AttributeError(f"{name!r} of {type(self).__name__} is a method or a signal and cannot be replaced")
    elif view.derived or (view.own and name.startswith("_")):
        native_set(self, name, value)
    else:
        raise AttributeError(f"{type(self).__name__} has no property {name!r}; C++ objects take no new attributes")


def install_rules() -> None:
    """Put the rules on PySide6's classes; before any class of the double or of a panel is made."""
    kinds = []
    for module in (QtCore, QtGui, QtWidgets):
        members = (getattr(module, name) for name in dir(module))  # makes PySide6 load what it loads when used
        kinds += [kind for kind in members if isinstance(kind, type) and issubclass(kind, QObject)]
    keep_look_ups(kinds)
    for kind in kinds:  # a Shiboken class may have its own, so each one is told
        kind.__getattribute__ = get_attribute
        kind.__setattr__ = set_attribute
