"""The checks of the Extensions Index: this checkout passes, and each fault is found."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("extension_index_checks", ROOT / "Testing" / "extension_index_checks.py")
index = importlib.util.module_from_spec(spec)
spec.loader.exec_module(index)


def test_this_checkout_passes():
    assert index.check(ROOT) == []


@pytest.fixture
def extension(tmp_path) -> Path:
    """A small extension that passes."""
    for name in ("MedCLIPSAM.json", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    start = "https://raw.githubusercontent.com/medclipsam/SlicerMedCLIPSAM/main/Pictures"
    lines = [
        "project(MedCLIPSAM)",
        'set(EXTENSION_HOMEPAGE "https://github.com/medclipsam/SlicerMedCLIPSAM")',
        'set(EXTENSION_CONTRIBUTORS "Someone")',
        'set(EXTENSION_DESCRIPTION "Something.")',
        'set(EXTENSION_DEPENDS "PyTorch")',
        f'set(EXTENSION_ICONURL "{start}/icon.png")',
        f'set(EXTENSION_SCREENSHOTURLS "{start}/icon.png {start}/icon.png")',
    ]
    (tmp_path / "CMakeLists.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "Pictures").mkdir()
    (tmp_path / "Pictures" / "icon.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    words = "panel.png result-3d.png Tutorial with a sample. Patents: none known. arXiv 2409.19483"
    (tmp_path / "README.md").write_text(words, encoding="utf-8")
    for file, text in {
        "MedCLIPSAM/MedCLIPSAM.py": "import os\nimport slicer\nfrom MedCLIPSAMPanel import part\n",
        "MedCLIPSAM/MedCLIPSAMPanel/__init__.py": "",
        "MedCLIPSAM/MedCLIPSAMPanel/part.py": "from MedCLIPSAMLib.a import thing\n",
        "MedCLIPSAMLib/__init__.py": "",
        "MedCLIPSAMLib/a.py": (
            "from typing import TYPE_CHECKING\n"
            "from MedCLIPSAMLib import b\n"
            "if TYPE_CHECKING:\n    import torch\n"
            "def f():\n    import torch\n"
        ),
        "MedCLIPSAMLib/b.py": "import numpy.linalg\nfrom . import a\n",
        "MedCLIPSAMLib/unused.py": "import torch\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert index.check(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "Magic"}, "category 'Magic' is not one of"),
        ({"homepage": "x"}, "there is no field 'homepage'"),
        ({"tier": "1"}, "tier must be a int, not '1'"),
        ({"tier": 6}, "tier 6 is not 1 to 5"),
        ({"scm_url": "git@github.com:medclipsam/SlicerMedCLIPSAM.git"}, "is not of the form https://HOST/PATH"),
        ({"scm_url": "https://github.com/medclipsam/MedCLIPSAM.git"}, "must begin with Slicer"),
        ({"build_dependencies": ["PyTorch", "NNUNet"]}, "EXTENSION_DEPENDS is ['PyTorch']"),
        ({"$schema": "http://x"}, "$schema is not"),
    ],
)
def test_faults_of_the_entry(extension, change, message):
    file = extension / "MedCLIPSAM.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    assert any(message in line for line in index.check(extension))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("MedCLIPSAM.json", "\n", "\r\n", "LF line ends"),
        ("MedCLIPSAM.json", '"category": "Segmentation",', "", "lacks category"),
        ("MedCLIPSAM.json", "{", "[", "is not JSON"),
        ("CMakeLists.txt", "project(MedCLIPSAM)", "project(Other)", "is not MedCLIPSAM"),
        ("CMakeLists.txt", 'icon.png")\nset(EXTENSION_S', 'icon.png" # x)\nset(EXTENSION_S', "EXTENSION_ICONURL"),
        ("CMakeLists.txt", "icon.png ", "icon.png\n", "EXTENSION_SCREENSHOTURLS"),
        ("CMakeLists.txt", "Pictures/icon.png ", "Pictures/none.png ", "Pictures/none.png is not in the repository"),
        ("CMakeLists.txt", "/main/Pictures", "/master/Pictures", "does not begin with"),
        ("Pictures/icon.png", "PNG", "JPG", "is not a picture"),
        ("README.md", "panel.png", "", "the screenshot of the panel"),
        ("README.md", "Patents", "", "a word on patents"),
        ("MedCLIPSAM/MedCLIPSAM.py", "import os", "import requests", "MedCLIPSAM.py:1 imports requests"),
        ("MedCLIPSAMLib/b.py", "numpy.linalg", "torch.nn", "MedCLIPSAMLib/b.py:1 imports torch.nn"),
        ("MedCLIPSAMLib/b.py", "import numpy.linalg", "try:\n    import cv2\nexcept ImportError: pass", "imports cv2"),
        ("MedCLIPSAMLib/a.py", "def f():", "def f():\n    pip_install('torch')", "installs torch by pip"),
        ("MedCLIPSAMLib/a.py", "def f():", "def f():\n    load(x, trust_remote_code=True)", "run code that was"),
    ],
)
def test_faults_of_the_files(extension, file, old, new, message):
    path = extension / file
    text = path.read_bytes().decode("latin-1")
    assert old in text
    path.write_bytes(text.replace(old, new).encode("latin-1"))
    found = index.check(extension)
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    "file", ["MedCLIPSAM.json", "CMakeLists.txt", "LICENSE", "README.md", "MedCLIPSAM/MedCLIPSAM.py"]
)
def test_missing_files(extension, file):
    (extension / file).unlink()
    assert index.check(extension) != []


def test_a_large_repository_is_found(extension):
    with (extension / "large.bin").open("wb") as stream:
        stream.truncate(101_000_000)  # takes no room on the disk
    assert any("at most 100 are allowed" in line for line in index.check(extension))
