"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real images and masks: ``MEDCLIPSAM_DATA``, or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("MEDCLIPSAM_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"no real data at {folder}; set MEDCLIPSAM_DATA to its folder")
    return folder
