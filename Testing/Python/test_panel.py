"""The panel's tests, ``Testing/Panel/panel_test_*.py``, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import panel_runner
import pytest


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the reports."""
    return tmp_path_factory.mktemp("panel")


@pytest.mark.parametrize(("file", "name"), panel_runner.parameters("panel_test_*.py"))
def test_panel(file: Path, name: str, reports: Path) -> None:
    """One test function of a panel test file."""
    panel_runner.expect(file, name, reports)
