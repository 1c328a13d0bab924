"""The lint of dotted names: ``qt.QLabel``, ``qt.QMessageBox.Ok``, ``slicer.util.loadUI(...)`` and so on."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from functools import cache
from types import ModuleType

from .api import class_api, functions, module_names, scripted_names
from .lint_types import dotted

# What the record holds no list of: classes in slicer.util, and modules of the package slicer.
_UTIL_CLASSES = """
VTKObservationMixin NodeModify RenderBlocker WaitCursor MessageDialog MRMLNodeNotFoundException chdir
"""
UTIL_CLASSES = frozenset(_UTIL_CLASSES.split())
_PACKAGES = """
app cli i18n logging modules mrmlScene packaging parameterNodeWrapper ScriptedLoadableModule testing util
"""
PACKAGES = frozenset(_PACKAGES.split())
OWN_MODULES = frozenset(("medclipsam", "MedCLIPSAMWidget", "MedCLIPSAMInstance"))
I18N = frozenset(("tr", "translate"))
# Scripted module classes whose C++ side the record does not hold.
MODULE_CLASSES = frozenset(("qSlicerScriptedLoadableModule", "qSlicerScriptedLoadableModuleWidget"))


@cache
def slicer_core() -> ModuleType | None:
    """The package of MRML classes, or None where it is not installed."""
    return importlib.import_module("slicer") if importlib.util.find_spec("slicer_core") else None


@cache
def _values() -> frozenset[str]:
    from .qt_values import VALUES

    return VALUES


@cache
def _pyside(name: str) -> type | None:
    if importlib.util.find_spec("PySide6") is None:
        return None
    for module in ("QtWidgets", "QtGui", "QtCore"):
        found = getattr(importlib.import_module(f"PySide6.{module}"), name, None)
        if found is not None:
            return found
    return None


@cache
def signature(text: str) -> inspect.Signature:
    """A signature from the record's text."""
    space: dict[str, object] = {}
    clean = re.sub(r"<function <lambda> at 0x[0-9a-f]+>", "None", text)
    exec(f"from __future__ import annotations\ndef like{clean}: ...", space)
    return inspect.signature(space["like"])


def check(tree: ast.Module) -> list[tuple[int, str]]:
    """Faults in a file's dotted names and in its calls of slicer.util and slicer.packaging."""
    problems = []
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            problems += [(node.lineno, text) for text in _name(dotted(node))]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("slicer", "qt", "ctk"):
            for alias in node.names:
                if alias.name != "*":
                    problems += [(node.lineno, text) for text in _name(f"{node.module}.{alias.name}")]
        elif isinstance(node, ast.Call):
            problems += [(node.lineno, text) for text in _call(node)]
    return problems


def _name(path: str) -> list[str]:
    root, *rest = path.split(".")
    if not rest or root not in ("qt", "ctk", "slicer"):
        return []
    if root == "slicer" and not rest[0].startswith("q"):
        return _slicer(rest)
    record = class_api(rest[0])
    if root == "qt" and rest[0] in _values():
        kind = _pyside(rest[0])
        missing = kind is not None and len(rest) > 1 and not hasattr(kind, rest[1])
        return [f"{path}: Qt has no such name"] if missing else []
    if path == "qt.QUiLoader" or (root == "slicer" and rest[0] in MODULE_CLASSES):
        return []
    if record is None or record.namespace != root:
        return [f"{root}.{rest[0]} is not in the application"]
    if len(rest) > 1 and rest[1] not in record.names:
        return [f"{root}.{rest[0]} has no {rest[1]!r} in the application"]
    return []


def _slicer(rest: list[str]) -> list[str]:
    first, second = rest[0], rest[1] if len(rest) > 1 else ""
    if first in PACKAGES:
        lists = {
            "util": frozenset(functions("slicer.util")) | UTIL_CLASSES,
            "packaging": frozenset(functions("slicer.packaging")),
            "app": class_api("qSlicerApplication").names,
            "modules": module_names() | OWN_MODULES,
            "i18n": I18N,
        }
        if second and first in lists and second not in lists[first]:
            return [f"slicer.{first} has no {second!r} in the application"]
        if first == "ScriptedLoadableModule" and second and second != "VTKObservationMixin":
            return [] if _scripted(second) else [f"slicer.ScriptedLoadableModule has no {second!r}"]
        return []
    core = slicer_core()
    if core is not None and not hasattr(core, first):
        return [f"slicer.{first} is not in the application"]
    if core is not None and first.startswith("vtk") and second and not hasattr(getattr(core, first), second):
        return [f"slicer.{first} has no {second!r}"]
    return []


def _scripted(name: str) -> bool:
    try:
        return bool(scripted_names(name))
    except KeyError:
        return False


def _call(node: ast.Call) -> list[str]:
    path = dotted(node.func)
    space, _, name = path.rpartition(".")
    if space not in ("slicer.util", "slicer.packaging") or name not in functions(space):
        return []
    if any(isinstance(value, ast.Starred) for value in node.args) or any(word.arg is None for word in node.keywords):
        return []
    try:
        signature(functions(space)[name]).bind(*node.args, **{word.arg: word.value for word in node.keywords})
    except TypeError as error:
        return [f"{path}: {error}; its parameters are {functions(space)[name]}"]
    return []
