"""Which Qt, CTK or Slicer class an expression of the module has, as far as the source tells."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .api import class_api

Types = frozenset[str]
NOTHING: Types = frozenset()
RETURNS = {
    "horizontalHeader": "QHeaderView",
    "verticalHeader": "QHeaderView",
    "lineEdit": "QLineEdit",
    "addAction": "QAction",
    "addMenu": "QMenu",
    "userSettings": "QSettings",
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of names and attributes; empty when there is anything else in it."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def constructed(node: ast.AST) -> str:
    """The class that ``qt.QLabel`` or ``slicer.qMRMLNodeComboBox`` names; empty for anything else."""
    space, _, name = dotted(node).partition(".")
    record = class_api(name) if name and "." not in name else None
    return name if record is not None and record.namespace == space else ""


def form_name(node: ast.AST) -> str:
    """``x`` of ``self.ui.x`` or ``ui.x``; empty for anything else."""
    if not isinstance(node, ast.Attribute):
        return ""
    inner = node.value
    named = inner.id if isinstance(inner, ast.Name) else inner.attr if isinstance(inner, ast.Attribute) else ""
    return node.attr if named == "ui" else ""


@dataclass
class Scope:
    """A file, class or function with the types of its names."""

    node: ast.AST
    outer: Scope | None = None
    names: dict[str, Types | None] = field(default_factory=dict)  # None: assigned something unknown
    attributes: dict[str, Types | None] = field(default_factory=dict)  # of self, in a class

    def note(self, table: dict[str, Types | None], name: str, types: Types | None) -> None:
        """Remember one more assignment."""
        known = table.get(name, NOTHING)
        table[name] = None if types is None or known is None else known | types

    def owner(self) -> Scope | None:
        """The class around."""
        scope: Scope | None = self
        while scope is not None and not isinstance(scope.node, ast.ClassDef):
            scope = scope.outer
        return scope


class Typing:
    """Types over all files of a module.

    Args:
        files: the module's sources.
        form: name -> class of what the ``.ui`` file holds.
    """

    def __init__(self, files: dict[Path, ast.Module], form: dict[str, str]) -> None:
        self.form = form
        self.scopes: dict[ast.AST, Scope] = {}
        self.classes: dict[str, Scope] = {}
        self.parameters: dict[tuple[str, str], Types | None] = {}
        for tree in files.values():
            self._enter(tree, None)
        for _ in range(3):  # a type goes from a call to a parameter to an attribute
            for scope in self.scopes.values():
                scope.names.clear()
                scope.attributes.clear()
            for scope in self.scopes.values():
                self._arguments(scope)
            for scope in self.scopes.values():
                for node in own_nodes(scope.node):
                    self._learn(scope, node)
            self.parameters.clear()
            for scope in self.scopes.values():
                for node in own_nodes(scope.node):
                    if isinstance(node, ast.Call):
                        self._pass_on(scope, node)

    def _enter(self, node: ast.AST, outer: Scope | None) -> None:
        scope = self.scopes[node] = Scope(node, outer)
        if isinstance(node, ast.ClassDef):
            self.classes[node.name] = scope
        for child in own_nodes(node):
            if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
                self._enter(child, scope)

    def _arguments(self, scope: Scope) -> None:
        if not isinstance(scope.node, FUNCTIONS):
            return
        arguments = scope.node.args
        owner = scope.outer.node.name if scope.outer and isinstance(scope.outer.node, ast.ClassDef) else ""
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            annotated = constructed(argument.annotation) if argument.annotation is not None else ""
            known = self.parameters.get((owner, argument.arg)) if self._is_init(scope) else None
            scope.names[argument.arg] = frozenset({annotated}) if annotated else known

    def _is_init(self, scope: Scope) -> bool:
        return isinstance(scope.node, ast.FunctionDef) and scope.node.name == "__init__"

    def _pass_on(self, scope: Scope, call: ast.Call) -> None:
        """The arguments of ``Section(ui.table)`` are the types of its ``__init__``'s parameters."""
        name = dotted(call.func).rpartition(".")[2]
        found = self.classes.get(name)
        if found is None:
            return
        for node in own_nodes(found.node):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                names = [argument.arg for argument in node.args.args[1:]]
                given = list(zip(names, call.args, strict=False))
                given += [(word.arg, word.value) for word in call.keywords if word.arg]
                for parameter, value in given:
                    key = (name, parameter)
                    known = self.parameters.get(key, NOTHING)
                    types = self.of(value, scope)
                    self.parameters[key] = None if known is None or types is None else known | types

    def _learn(self, scope: Scope, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(scope, target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(scope, node.target, node.value)
        elif isinstance(node, ast.For | ast.comprehension):
            entries = node.iter.elts if isinstance(node.iter, (ast.Tuple, ast.List)) else [None]
            for entry in entries:
                self._assign(scope, node.target, entry)

    def _assign(self, scope: Scope, target: ast.AST, value: ast.AST | None) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            same = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
            for index, part in enumerate(target.elts):
                self._assign(scope, part, value.elts[index] if same else None)
            return
        if isinstance(value, ast.Constant) and value.value is None:
            types: Types | None = NOTHING
        else:
            types = self.of(value, scope) if value is not None else None
        if isinstance(target, ast.Name):
            scope.note(scope.names, target.id, types)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            owner = scope.owner()
            if owner is not None:
                owner.note(owner.attributes, target.attr, types)

    def of(self, node: ast.AST, scope: Scope) -> Types | None:
        """Classes that an expression may have; None when unknown."""
        if form_name(node):
            kind = self.form.get(form_name(node))
            return frozenset({kind}) if kind else None
        if isinstance(node, ast.Name):
            inner: Scope | None = scope
            while inner is not None:
                if node.id in inner.names and not isinstance(inner.node, ast.ClassDef):
                    return inner.names[node.id] or None
                inner = inner.outer
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            owner = scope.owner()
            return (owner.attributes.get(node.attr) or None) if owner else None
        if isinstance(node, ast.Call):
            if constructed(node.func):
                return frozenset({constructed(node.func)})
            if isinstance(node.func, ast.Attribute) and node.func.attr in RETURNS and self.of(node.func.value, scope):
                return frozenset({RETURNS[node.func.attr]})
        if isinstance(node, ast.IfExp):
            parts = [self.of(part, scope) for part in (node.body, node.orelse)]
            return parts[0] | parts[1] if all(parts) else None
        return None


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a scope without those inside nested functions and classes; those themselves are included."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            yield from own_nodes(child)
