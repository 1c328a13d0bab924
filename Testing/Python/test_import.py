"""Importing the library is fast and needs no model package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "matplotlib", "scipy", "SimpleITK")
LIGHT_MODULES = ("errors", "results", "images", "resources", "weights")  # needed before anything is installed or loaded
TORCH_FREE_MODULES = (*LIGHT_MODULES, "metrics", "cases", "evaluation")


def child(code: str) -> str:
    """Run ``code`` in a fresh interpreter at the root and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_takes_less_than_half_a_second():
    code = "import time; t = time.perf_counter(); import MedCLIPSAMLib; print(time.perf_counter() - t)"
    assert min(float(child(code)) for _ in range(3)) < 0.5


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in LIGHT_MODULES)])
def test_import_loads_no_heavy_package(module):
    loaded = child(f"import sys, MedCLIPSAMLib{module}; print(*({set(HEAVY)!r} & set(sys.modules)))")
    assert loaded == ""


@pytest.mark.parametrize("name", TORCH_FREE_MODULES)
def test_import_works_without_torch(name):
    """As on a computer where torch is not installed."""
    child(f"import sys; sys.modules['torch'] = None; import MedCLIPSAMLib.{name}")
