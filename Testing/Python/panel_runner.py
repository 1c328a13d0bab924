"""Runs test files of ``Testing/Panel``, each in a process of its own, and gives the outcome of each test in them.

The double of Slicer changes its process for good, so those tests cannot run in the process of the others.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "Testing" / "Panel"
LIMIT = 600  # seconds for one file


@dataclass(frozen=True)
class Outcome:
    """How one test of a file ended: "passed", "failed" or "skipped", and its text."""

    name: str
    state: str
    text: str


def functions(file: Path) -> list[str]:
    """Names of the test functions of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def parameters(pattern: str) -> list:
    """A pytest parameter (file, function) for each test function in the files that match."""
    return [
        pytest.param(file, name, id=f"{file.stem}-{name}")
        for file in sorted(FOLDER.glob(pattern))
        for name in functions(file)
    ]


def outcome(case: ET.Element) -> Outcome:
    """One test of a JUnit report."""
    for tag, state in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        node = case.find(tag)
        if node is not None:
            return Outcome(case.get("name", ""), state, f"{node.get('message', '')}\n{node.text or ''}")
    return Outcome(case.get("name", ""), "passed", "")


@cache
def run(file: Path, report: Path) -> tuple[list[Outcome], str]:
    """Run a file once; returns its tests' outcomes and the end of its output."""
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-q"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}", str(file)]
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=LIMIT
        )
        output = f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    except subprocess.TimeoutExpired as error:
        output = f"ran longer than {LIMIT} s\n{str(error.stdout)[-4000:]}"
    cases = [outcome(case) for case in ET.parse(report).iter("testcase")] if report.is_file() else []
    return cases, output


def expect(file: Path, name: str, folder: Path) -> None:
    """Pass, fail or skip as the test function ``name`` of ``file`` did, with all its parameters."""
    for package, distribution in (("PySide6", "PySide6-Essentials"), ("slicer_core", "slicer-core")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"this needs {distribution}")
    cases, output = run(file, folder / f"{file.stem}.xml")
    mine = [case for case in cases if case.name == name or case.name.startswith(f"{name}[")]
    if not mine:
        pytest.fail(f"{name} was not run: {output}", pytrace=False)
    failed = [f"{case.name}\n{case.text}" for case in mine if case.state == "failed"]
    if failed:
        pytest.fail("\n\n".join(failed), pytrace=False)
    if all(case.state == "skipped" for case in mine):
        pytest.skip(mine[0].text.strip())
