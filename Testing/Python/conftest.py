"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from MedCLIPSAMLib.errors import MissingWeightsError

if TYPE_CHECKING:
    from MedCLIPSAMLib.pipeline import TextSegmenter

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("PYTHONPATH", str(ROOT))  # as the launcher does; for child processes of tests run by hand
pytest_plugins = ["slicer_fixtures"]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real images and masks: ``MEDCLIPSAM_DATA``, or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("MEDCLIPSAM_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"no real data at {folder}; set MEDCLIPSAM_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def untrained_segmenter() -> TextSegmenter:
    """The lite engine's own models with a random alignment; shared, so change a copy and not its attributes."""
    from untrained import untrained_segmenter as build

    try:
        return build()
    except MissingWeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def lite() -> TextSegmenter:
    """The trained lite engine on the CPU; shared, so change a copy and not its attributes."""
    from MedCLIPSAMLib.engines import load_engine

    try:
        return load_engine("lite", device="cpu")
    except MissingWeightsError as error:
        pytest.skip(str(error))
