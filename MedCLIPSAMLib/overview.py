"""The overview picture: for every prompt the image, saliency, coarse mask with boxes, mask and entropy side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.geometry import SliceGeometry
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.overview_layout import compose
from MedCLIPSAMLib.overview_page import FAINT, format_number
from MedCLIPSAMLib.overview_row import Row, Strip, area_text
from MedCLIPSAMLib.results import PromptResult, VolumeResult

NOTICE = "Research use only"
GREEN, RED = "#1a7f43", "#b3261e"


def write_overview(
    path: str | Path,
    image: np.ndarray,
    results: PromptResult | Sequence[PromptResult],
    *,
    title: str = "",
    engine: str = "",
    window: tuple[float, float] | None = None,
    pixel_spacing: tuple[float, float] | None = None,
    truth: np.ndarray | None = None,
    notice: str = NOTICE,
) -> None:
    """Write one row per prompt on a 2D image as PNG.

    Args:
        path: File to write; its folder exists.
        image: (H, W) or (H, W, 3), any real dtype.
        results: One result or several on this image.
        title: Name of the input.
        engine: Name of the engine.
        window: (lower, upper) intensity shown black and white; None as in :func:`images.robust_window`.
        pixel_spacing: (row, column) distance in mm, or None when it is not known: sizes are then in pixels.
        truth: (H, W) bool, outlined in the mask panel, with the Dice coefficient; or None.
        notice: Footer.

    Raises:
        InputError: No result, or one whose maps have another size than the image; matplotlib is not installed.
        OutputError: Not writable; nothing is left behind.
    """
    image = np.asarray(image)
    rows = []
    for result in _several(results):
        _check_shape(result.prompt, result.mask.shape, image.shape[:2])
        presence = result.presence
        score = _presence_text(presence.score, presence.threshold, presence.accepted)
        coarse = result.coarse
        row = Row(
            heading=result.prompt,
            image=image,
            saliency=result.saliency,
            coarse=coarse.mask,
            components=coarse.components,
            mask=result.mask,
            entropy=result.entropy,
            presence=score[0],
            presence_colour=score[1],
            warnings=list(result.warnings),
            coarse_caption=_coarse_caption(len(coarse.components), coarse.dropped, coarse.threshold),
            mask_caption=_mask_caption(result.mask, pixel_spacing, truth),
            truth=truth,
        )
        if result.skipped:
            row.message = "Skipped: the presence gate found no such target in this image, so nothing was segmented."
        rows.append(row)
    several = _several(results)
    facts = _facts(engine, several, f"{image.shape[1]} × {image.shape[0]} px", pixel_spacing)
    page = compose(rows, title, facts, window, pixel_spacing, notice)
    with replacing(path) as file:
        page.save(file)


def write_volume_overview(
    path: str | Path,
    image: MedicalImage,
    results: VolumeResult | Sequence[VolumeResult],
    *,
    title: str = "",
    engine: str = "",
    window: tuple[float, float] | None = None,
    truth: np.ndarray | None = None,
    notice: str = NOTICE,
) -> None:
    """Write one row per prompt on a volume as PNG: the slice with the largest mask, or the middle one.

    Beneath each row a chart shows the mask area and the presence score of every slice; slices that the gate skipped
    are shaded.

    Args:
        path: File to write; its folder exists.
        image: The volume.
        results: One result or several on this volume; maps may be memory-mapped.
        title: Name of the input; "" takes the file's name.
        engine, window, notice: As in :func:`write_overview`.
        truth: (K, J, I) bool, or None. The Dice coefficient is over the volume.

    Raises:
        InputError: No result, or one of another shape than the volume; matplotlib is not installed.
        OutputError: Not writable; nothing is left behind.
    """
    rows, spacing = [], None
    several = _several(results)
    for result in several:
        _check_shape(result.prompt, result.mask.shape, image.array.shape)
        geometry = SliceGeometry.of(image.array.shape, image.ijk_to_ras, result.axis)
        spacing = geometry.pixel_spacing if image.spacing_known else None
        rows.append(_volume_row(image, result, geometry, spacing, truth))
    count, across, down = geometry.count, geometry.plane_shape[1], geometry.plane_shape[0]
    facts = _facts(engine, several, f"{count} {geometry.plane_name} slices of {across} × {down} px", spacing)
    name = title or image.path.name
    page = compose(rows, name, facts, window if window is not None else image.window, spacing, notice)
    with replacing(path) as file:
        page.save(file)


def _volume_row(
    image: MedicalImage,
    result: VolumeResult,
    geometry: SliceGeometry,
    spacing: tuple[float, float] | None,
    truth: np.ndarray | None,
) -> Row:
    others = tuple(axis for axis in range(3) if axis != geometry.axis)
    counts = np.asarray(np.count_nonzero(result.mask, axis=others))
    asked = [one.index for one in result.slices if one.status != "outside the range"] or [geometry.count // 2]
    shown = int(np.argmax(counts)) if counts.any() else asked[len(asked) // 2]
    record = result.slices[shown]
    statuses = [one.status for one in result.slices]
    presence = np.array([np.nan if one.presence is None else one.presence for one in result.slices], float)
    area = 1.0 if spacing is None else spacing[0] * spacing[1] / 100
    total = int(counts.sum())
    voxel = abs(float(np.linalg.det(image.ijk_to_ras[:3, :3])))
    size = f"{format_number(total * voxel / 1000)} mL in all" if image.spacing_known else f"{total} voxels in all"
    mask, coarse, saliency, entropy = (
        geometry.extract(np.asarray(array), shown)
        for array in (result.mask, result.coarse, result.saliency, result.entropy)
    )
    caption = f"{area_text(mask, spacing)} here, {size}" if total else "Empty mask"
    if truth is not None:
        caption += f"\nDSC {_dice(result.mask, truth)} (volume)"
    score = _presence_text(record.presence, None, record.status != "skipped by the gate")
    row = Row(
        heading=result.prompt,
        image=geometry.extract(image.array, shown),
        saliency=saliency,
        coarse=coarse,
        components=record.components,
        mask=mask,
        entropy=entropy,
        presence=score[0],
        presence_colour=score[1],
        details=[f"slice {shown} of 0 to {geometry.count - 1}, {geometry.plane_name}"],
        warnings=list(dict.fromkeys([*result.warnings, *record.warnings])),
        coarse_caption=_coarse_caption(len(record.components), 0, record.threshold),
        mask_caption=caption,
        truth=None if truth is None else geometry.extract(truth, shown),
        strip=Strip(counts * area, "px" if spacing is None else "cm²", presence, statuses, shown),
    )
    skipped = statuses.count("skipped by the gate")
    row.details.append(f"{skipped} of {geometry.count} slices skipped by the gate" if skipped else "no slice skipped")
    if record.status != "segmented":
        row.message = f"This slice was not segmented: {record.status}."
    return row


def _several(results: PromptResult | VolumeResult | Sequence) -> list:
    several = list(results) if isinstance(results, Sequence) else [results]
    if not several:
        raise InputError("There is no result to draw; pass at least one.")
    return several


def _check_shape(prompt: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InputError(f"The result for {prompt!r} has shape {found}; the image has {expected}.")


def _presence_text(score: float | None, threshold: float | None, accepted: bool) -> tuple[str, str]:
    """Return what is said of the presence score, and its colour."""
    if score is None:
        return "presence not calibrated", FAINT
    limit = "" if threshold is None else f" (threshold {threshold:.2f})"
    return f"{'present' if accepted else 'not present'}: score {score:.2f}{limit}", GREEN if accepted else RED


def _coarse_caption(components: int, dropped: int, threshold: float | None) -> str:
    if not components:
        return "No component"
    text = f"{components} component{'s' if components > 1 else ''}"
    if threshold is not None:
        text += f", threshold {threshold:.2f}"
    return text + (f"\n{dropped} left out" if dropped else "")


def _mask_caption(mask: np.ndarray, spacing: tuple[float, float] | None, truth: np.ndarray | None) -> str:
    text = area_text(mask, spacing) if mask.any() else "Empty mask"
    return text if truth is None else f"{text}\nDSC {_dice(mask, truth)}"


def _dice(mask: np.ndarray, truth: np.ndarray) -> str:
    total = np.count_nonzero(mask) + np.count_nonzero(truth)
    if not total:
        return "not defined: both empty"
    return f"{2 * np.count_nonzero(np.logical_and(mask, truth)) / total:.3f}"


def _facts(engine: str, results: list, size: str, spacing: tuple[float, float] | None) -> str:
    """Return the line under the title: engine, saliency method, seed, size and spacing."""
    facts = [f"engine {engine}"] if engine else []
    facts.append("saliency " + ", ".join(dict.fromkeys(result.saliency_method for result in results)))
    seeds = list(dict.fromkeys(str(result.seed) for result in results))
    facts.append(f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}")
    facts.append(size)
    facts.append("pixel size unknown" if spacing is None else f"{spacing[1]:.3g} × {spacing[0]:.3g} mm per pixel")
    return " · ".join(facts)
