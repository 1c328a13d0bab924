"""The double of Slicer agrees with the application's record and keeps PythonQt's rules.

What must run inside the double is in ``Testing/Panel/double_test_*.py``, in processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import panel_runner
import pytest

DOUBLE = panel_runner.ROOT / "Testing" / "SlicerDouble"


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the reports."""
    return tmp_path_factory.mktemp("double")


@pytest.mark.parametrize(("file", "name"), panel_runner.parameters("double_test_*.py"))
def test_in_the_double(file: Path, name: str, reports: Path) -> None:
    """One test function that runs inside the double."""
    panel_runner.expect(file, name, reports)


def test_the_record_says_where_it_comes_from_and_has_what_it_inherits():
    code = """
from slicer_double.api import ORIGIN, class_api, data, normalized
assert data()["origin"] == ORIGIN and "5.13.0" in ORIGIN
button = class_api("QPushButton")
assert {"text", "enabled", "toolTip"} <= button.properties.keys()
assert "clicked(bool)" in button.signals and {"click", "setText", "raise_", "name"} <= button.names
assert class_api("QNothing") is None and class_api("QHeaderView").flat
assert normalized("f(const QString &, int )") == "f(QString,int)"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DOUBLE)


def test_a_broken_panel_test_file_is_reported_and_not_passed(tmp_path, monkeypatch):
    broken = tmp_path / "panel_test_broken.py"
    broken.write_text("import os\n\ndef test_dies():\n    os.abort()\n", encoding="utf-8")
    monkeypatch.setitem(os.environ, "PYTEST_ADDOPTS", "")
    with pytest.raises(pytest.fail.Exception, match="test_dies was not run"):
        panel_runner.expect(broken, "test_dies", tmp_path)
