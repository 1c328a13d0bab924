"""Text-prompted segmentation of medical images with saliency, uncertainty and weak supervision.

The library behind the MedCLIPSAM module of 3D Slicer; pure Python, usable on its own. Importing it is fast and loads
neither torch nor any other heavy package: the names below are loaded when they are first used.

Example:
    >>> from MedCLIPSAMLib import load_engine, read_image
    >>> segmenter = load_engine("lite")
    >>> segmenter.set_image(read_image("breast.png").array)
    >>> result = segmenter.segment("malignant breast tumour")

Research use only; not for diagnosis or treatment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from MedCLIPSAMLib.engines import engine_names, load_engine
    from MedCLIPSAMLib.file_io import MedicalImage, read_image
    from MedCLIPSAMLib.pipeline import TextSegmenter
    from MedCLIPSAMLib.volumes import segment_volume

_PLACES = {
    "MedicalImage": "medical_image",
    "TextSegmenter": "pipeline",
    "engine_names": "engines",
    "load_engine": "engines",
    "read_image": "file_io",
    "segment_volume": "volumes",
}
__all__ = ["MedicalImage", "TextSegmenter", "engine_names", "load_engine", "read_image", "segment_volume"]


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
