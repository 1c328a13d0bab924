"""The lint of a scripted module: every qt, ctk and slicer name that it uses is one that the application has.

It reads the sources and the ``.ui`` file and runs nothing. What it cannot follow (objects whose class the source does
not tell) it lets pass; the panel tests on the double see those.

    python -m slicer_double.lint MedCLIPSAM/MedCLIPSAM.py MedCLIPSAM/MedCLIPSAMPanel/*.py Resources/UI/MedCLIPSAM.ui
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from . import lint_names, lint_ui, lint_use
from .lint_types import Typing

ALLOWED_IMPORTS = {"slicer", "vtk", "qt", "ctk", "numpy", "MedCLIPSAMPanel", "MedCLIPSAMLib", "MedCLIPSAM"}
INSTALLERS = re.compile(r"\b(pip_install|pip_ensure|pip_uninstall|check_call|check_output|Popen|system|ensurepip)\b")


@dataclass(frozen=True, order=True)
class Problem:
    """One fault: where and what."""

    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def check_module(files: list[Path], form: Path | None) -> list[Problem]:
    """Check a module's sources and its form; returns what is wrong, in order."""
    names, texts = lint_ui.check(form) if form is not None else ({}, [])
    problems = [Problem(form, 1, text) for text in texts] if form is not None else []
    trees = {file: ast.parse(file.read_text(encoding="utf-8"), str(file)) for file in files}
    typing = Typing(trees, names)
    for file, tree in trees.items():
        faults = [*_imports(tree), *lint_names.check(tree), *lint_use.check(tree, typing, form is not None)]
        problems += [Problem(file, line, text) for line, text in faults]
    return sorted(set(problems))


def _file_scope(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that run at import, also those in ``if`` and ``try``, but not ``if TYPE_CHECKING``."""
    found = []
    for statement in body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        found.append(statement)
        if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            for part in ("body", "orelse", "finalbody"):
                found += _file_scope(getattr(statement, part, []))
            for handler in getattr(statement, "handlers", []):
                found += _file_scope(handler.body)
        elif isinstance(statement, ast.ClassDef):
            found += _file_scope(statement.body)
    return found


def _imports(tree: ast.Module) -> list[tuple[int, str]]:
    problems = []
    for statement in _file_scope(tree.body):
        names = []
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            names = [statement.module or ""] if statement.level == 0 else []
        for name in names:
            root = name.partition(".")[0]
            if root not in ALLOWED_IMPORTS and root not in sys.stdlib_module_names:
                problems.append((statement.lineno, f"{name} is imported at file scope"))
        simple = isinstance(statement, (ast.Expr, ast.Assign, ast.AnnAssign))
        if simple and INSTALLERS.search(" ".join(_called(statement))):
            problems.append((statement.lineno, "something is installed or started at import"))
    return problems


def _called(statement: ast.stmt) -> list[str]:
    calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return [func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in calls]


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    form_file = next((path for path in paths if path.suffix == ".ui"), None)
    result = check_module([path for path in paths if path.suffix == ".py"], form_file)
    sys.stdout.write("".join(f"{problem}\n" for problem in result))
    sys.exit(1 if result else 0)
