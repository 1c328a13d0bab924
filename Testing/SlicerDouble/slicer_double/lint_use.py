"""The lint of what is done with objects: properties, methods, signals."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from .api import ClassApi, class_api, data, normalized
from .lint_types import FUNCTIONS, Scope, Typing, constructed, dotted, form_name, own_nodes

WITHOUT_SUBCLASSES = ("QObject", "QWidget", "QAbstractButton", "QAbstractItemView", "QAbstractSpinBox", "QLayout")
NOT_WITHOUT_ARGUMENTS = ("QHeaderView", "QShortcut", "QSocketNotifier")
Fault = tuple[int, str]


@cache
def _all_signals() -> frozenset[str]:
    known = set()
    for name in data()["classes"]:
        known |= class_api(name).signals
    flat = class_api("qSlicerApplication").names
    for name in data()["classes"]:
        if class_api(name).flat:
            flat |= class_api(name).names
    return frozenset(known | {f"{name}(" for name in flat})


def check(tree: ast.Module, typing: Typing, with_form: bool) -> list[Fault]:
    """Faults of a file in what it does with objects of Qt, CTK and Slicer classes."""
    problems: list[Fault] = []
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for scope in [typing.scopes[node] for node in ast.walk(tree) if node in typing.scopes]:
        for node in own_nodes(scope.node):
            if isinstance(node, ast.Attribute):
                problems += _attribute(node, scope, typing, parents, with_form)
            elif isinstance(node, ast.Call):
                problems += _call(node, scope, typing)
    return problems


def _records(node: ast.AST, scope: Scope, typing: Typing) -> Iterator[ClassApi]:
    for name in sorted(typing.of(node, scope) or ()):
        record = class_api(name)
        if record is not None:
            yield record


def _attribute(
    node: ast.Attribute, scope: Scope, typing: Typing, parents: dict[ast.AST, ast.AST], with_form: bool
) -> Iterator[Fault]:
    name = form_name(node)
    if with_form and name and name not in typing.form:
        yield node.lineno, f"the form has no {name!r}"
    parent = parents.get(node)
    for record in _records(node.value, scope, typing):
        what = f"{record.name}.{node.attr}"
        if node.attr not in record.names:
            yield node.lineno, f"{record.name} has no {node.attr!r} in the application"
            continue
        if record.flat:
            continue
        known = record.properties.get(node.attr)
        called = isinstance(parent, ast.Call) and parent.func is node
        if isinstance(node.ctx, ast.Store):
            if known is None and node.attr != "name":
                yield node.lineno, f"{what} is assigned, but it is no property"
            elif known is not None and not known[1]:
                yield node.lineno, f"{what} is assigned, but it is read-only"
        elif known is not None and called:
            yield node.lineno, f"{what} is a property (a value) and is called as a method"
        elif known is None and node.attr != "name" and _as_value(node, parent):
            yield node.lineno, f"{what} is a method and is used as a value"


def _as_value(node: ast.AST, parent: ast.AST | None) -> bool:
    """Whether a bare attribute is used where only a value makes sense."""
    if isinstance(parent, (ast.If, ast.While, ast.IfExp)):
        return parent.test is node
    return isinstance(parent, (ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.FormattedValue, ast.Subscript))


def _call(node: ast.Call, scope: Scope, typing: Typing) -> Iterator[Fault]:
    made = constructed(node.func)
    if made and node.keywords:
        yield node.lineno, f"{made}(...) takes no keywords in PythonQt"
    if made in NOT_WITHOUT_ARGUMENTS and not node.args:
        yield node.lineno, f"{made} cannot be made without arguments"
    if isinstance(node.func, ast.Name) and node.func.id == "isinstance" and len(node.args) == 2:
        for kind in ast.walk(node.args[1]):
            if dotted(kind).startswith("qt.") and dotted(kind)[3:] in WITHOUT_SUBCLASSES:
                yield node.lineno, f"isinstance(..., {dotted(kind)}): PythonQt's classes do not derive from each other"
    if not isinstance(node.func, ast.Attribute):
        return
    records = list(_records(node.func.value, scope, typing))
    if records and node.keywords:
        yield node.lineno, f"{records[0].name}.{node.func.attr}(...) takes no keywords in PythonQt"
    if node.func.attr in ("connect", "disconnect"):
        yield from _connection(node, records, scope, typing)


def _connection(node: ast.Call, records: list[ClassApi], scope: Scope, typing: Typing) -> Iterator[Fault]:
    sender = node.func.value
    if isinstance(sender, ast.Attribute):  # button.clicked.connect(f)
        for record in _records(sender.value, scope, typing):
            if sender.attr in record.names and not record.flat and not record.is_signal(sender.attr):
                yield node.lineno, f"{record.name}.{sender.attr} is no signal"
    first = node.args[0] if node.args else None
    if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
        return
    signature = normalized(first.value)
    if "(" not in signature:
        yield node.lineno, f"{first.value!r} is not a signal's signature"
        return
    for record in records:
        missing = signature.partition("(")[0] not in record.names if record.flat else signature not in record.signals
        if missing:
            yield node.lineno, f"{record.name} has no signal {first.value!r}"
    if not records and signature not in _all_signals() and f"{signature.partition('(')[0]}(" not in _all_signals():
        yield node.lineno, f"no class of the application has a signal {first.value!r}"
    if node.func.attr == "connect" and len(node.args) == 2:
        inside = signature.partition("(")[2].rstrip(")")
        given = inside.count(",") + 1 if inside else 0
        needed = _needed(node.args[1], scope)
        if needed is not None and needed > given:
            yield node.lineno, f"the slot needs {needed} arguments, {first.value!r} gives {given}"


def _needed(slot: ast.AST, scope: Scope) -> int | None:
    """How many arguments a slot must be given; None when the source does not tell."""
    if isinstance(slot, ast.Lambda):
        return len(slot.args.args) - len(slot.args.defaults)
    if isinstance(slot, ast.Attribute) and isinstance(slot.value, ast.Name) and slot.value.id == "self":
        owner = scope.owner()
        for node in own_nodes(owner.node) if owner else ():
            if isinstance(node, FUNCTIONS) and getattr(node, "name", "") == slot.attr:
                static = any(dotted(decorator) == "staticmethod" for decorator in node.decorator_list)
                return len(node.args.args) - (0 if static else 1) - len(node.args.defaults)
    return None
