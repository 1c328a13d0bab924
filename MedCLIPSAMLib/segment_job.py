"""One input, some prompts, and a folder of results: the whole job of `segment`, without any user interface.

The request is checked by segment_request.py; see result_folder.py for the way the results reach the output folder.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib import reporting
from MedCLIPSAMLib.engines import load_engine
from MedCLIPSAMLib.file_output import (
    Segment,
    write_json,
    write_map_nrrd,
    write_mask_png,
    write_segmentation_nrrd,
)
from MedCLIPSAMLib.geometry import spacing
from MedCLIPSAMLib.prompts import wordings
from MedCLIPSAMLib.result_folder import collected
from MedCLIPSAMLib.results import CoarseMask, PromptResult, VisualPrompts, VolumeResult
from MedCLIPSAMLib.segment_request import SegmentRequest

if TYPE_CHECKING:
    from MedCLIPSAMLib.engine_interface import Engine

Progress = Callable[[int, int], None]
SEGMENTATION_FILE = "segmentation.seg.nrrd"
OVERVIEW_FILE = "overview.png"
_MASK_COLOURS = ((0.31, 0.69, 0.42), (0.30, 0.55, 0.85), (0.85, 0.45, 0.30), (0.65, 0.45, 0.80))
_COARSE_COLOURS = ((0.95, 0.85, 0.30), (0.55, 0.85, 0.90), (0.95, 0.70, 0.60), (0.85, 0.75, 0.90))


def run(
    request: SegmentRequest,
    segmenter: Engine | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    stage: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Segment and write the results; a run that fails leaves the output folder as it was before.

    Args:
        request: From :func:`~MedCLIPSAMLib.segment_request.make_request`.
        segmenter: A loaded engine; None loads ``request.engine``.
        progress: Called with (steps done, steps in all); a step is a prompt on an image, or a slice of a volume.
        cancelled: Asked between steps.
        stage: Told what a 2D image is going through.

    Returns:
        What each prompt's ``result.json`` says; ``report["files"]`` names the files in ``request.output``.

    Raises:
        CancelledError: ``cancelled`` said so.
        OutputError: A file could not be written.
        MedCLIPSAMError: As raised by the engine.
    """
    try:
        return _run(request, segmenter, progress, cancelled, stage)
    except BaseException:  # also Ctrl+C and SIGTERM
        if request.output_is_new:
            with suppress(OSError):  # another program may have put something there meanwhile
                request.output.rmdir()
        raise


def _run(
    request: SegmentRequest,
    segmenter: Engine | None,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
    stage: Callable[[str], None] | None,
) -> list[dict[str, Any]]:
    began = time.perf_counter()
    if segmenter is None:
        segmenter = load_engine(request.engine, request.preset, request.device, request.recipe_changes)
    loading = time.perf_counter() - began
    with collected(request.output) as folder:
        if request.image.is_volume:
            reports = _segment_volume(request, segmenter, folder, progress, cancelled)
        else:
            reports = _segment_image(request, segmenter, folder, progress, cancelled, stage)
        common = {
            "engine": segmenter.recipe.name,
            "preset": request.preset,
            "recipe": segmenter.recipe.as_dict(),
            "weights": reporting.weights_report(segmenter.weights),
            "run_seed": request.seed,
            "device": str(getattr(segmenter, "device", request.device)),
            "input": reporting.describe_input(request.image, request.window) | {"notice": request.notice},
            "versions": reporting.versions(),
            "note": reporting.RESEARCH_NOTE,
        }
        for number, report in enumerate(reports):
            report["seconds"] = {"reading": request.reading_seconds, "loading": loading, **report["seconds"]}
            name = f"{_prefix(request.prompts, number)}result.json"
            report["files"].append(name)
            # The sentences themselves: a prompt set may be edited later.
            texts = wordings(request.prompts[number], segmenter.recipe.samples, request.seed)
            report.update(common, texts=[list(one) for one in texts])
            write_json(folder / name, report)
    return reports


def _segment_image(
    request: SegmentRequest,
    segmenter: Engine,
    folder: Path,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
    stage: Callable[[str], None] | None,
) -> list[dict[str, Any]]:
    image, matrix = request.image, request.image.ijk_to_ras
    segmenter.set_image(image.array, window=request.window)
    results, reports = [], []
    for number, prompt in enumerate(request.prompts):
        result: PromptResult = segmenter.segment(prompt, seed=request.seed, cancelled=cancelled, stage=stage)
        if result.skipped:  # what the gate skipped is not written as a coarse finding either
            empty = np.zeros(result.mask.shape, bool)
            nothing = CoarseMask(empty, result.coarse.threshold, (), empty.astype(np.int32))
            result = replace(result, coarse=nothing, prompts=VisualPrompts())
        prefix = _prefix(request.prompts, number)
        write_mask_png(folder / f"{prefix}mask.png", result.mask)
        write_mask_png(folder / f"{prefix}coarse.png", result.coarse.mask)
        write_map_nrrd(folder / f"{prefix}saliency.nrrd", result.saliency, matrix)
        write_map_nrrd(folder / f"{prefix}entropy.nrrd", result.entropy, matrix)
        names = [f"{prefix}{name}" for name in ("mask.png", "coarse.png", "saliency.nrrd", "entropy.nrrd")]
        reports.append(reporting.report_image(result, image) | {"files": names})
        results.append(result)
        if progress is not None:
            progress(number + 1, len(request.prompts))
    if request.overview and _can_draw(reports):
        from MedCLIPSAMLib.overview import write_overview

        column, row, _ = spacing(image.ijk_to_ras)
        write_overview(
            folder / OVERVIEW_FILE,
            image.array,
            results,
            title=image.path.name,
            engine=request.label,
            window=request.window,
            pixel_spacing=(row, column) if image.spacing_known else None,
            truth=request.truth,
        )
    return reports


def _can_draw(reports: list[dict[str, Any]]) -> bool:
    """Enter the overview among each prompt's files, or, where matplotlib is not installed, a warning."""
    drawn = importlib.util.find_spec("matplotlib") is not None
    for report in reports:
        if drawn:
            report["files"].insert(0, OVERVIEW_FILE)
        else:
            report["warnings"].append(f"{OVERVIEW_FILE} was not made: it needs matplotlib (pip install matplotlib).")
    return drawn


def _segment_volume(
    request: SegmentRequest,
    segmenter: Engine,
    folder: Path,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> list[dict[str, Any]]:
    from MedCLIPSAMLib.volumes import segment_volume

    image, matrix = request.image, request.image.ijk_to_ras
    maps = folder / "maps"  # for memory-mapped arrays; not part of the result
    maps.mkdir()
    results: list[VolumeResult] = segment_volume(
        segmenter,
        image,
        list(request.prompts),
        axis=request.axis,
        slice_range=request.slice_range,
        window=request.window,
        seed=request.seed,
        folder=maps,
        progress=progress,
        cancelled=cancelled,
    )
    segments, reports = [], []
    for number, result in enumerate(results):
        prefix = _prefix(request.prompts, number)
        tags = {"MedCLIPSAM.Prompt": result.prompt, "MedCLIPSAM.Engine": segmenter.recipe.name}
        colour = number % len(_MASK_COLOURS)
        segments.append(Segment(result.prompt, result.mask, _MASK_COLOURS[colour], tags))
        segments.append(Segment(f"{result.prompt} (coarse)", result.coarse, _COARSE_COLOURS[colour], tags))
        write_map_nrrd(folder / f"{prefix}saliency.nrrd", result.saliency, matrix)
        write_map_nrrd(folder / f"{prefix}entropy.nrrd", result.entropy, matrix)
        names = [f"{prefix}{name}" for name in ("saliency.nrrd", "entropy.nrrd")]
        reports.append(reporting.report_volume(result, image) | {"files": [SEGMENTATION_FILE, *names]})
    write_segmentation_nrrd(folder / SEGMENTATION_FILE, segments, matrix)
    if request.overview and _can_draw(reports):
        from MedCLIPSAMLib.overview import write_volume_overview

        engine = request.label
        overview = folder / OVERVIEW_FILE
        write_volume_overview(overview, image, results, engine=engine, window=request.window, truth=request.truth)
    del segments, results  # closes the memory-mapped files, which Windows needs before they can go
    shutil.rmtree(maps, ignore_errors=True)
    return reports


def _prefix(prompts: Sequence[str], number: int) -> str:
    """Return "" for a single prompt, else for example "2-left-lung-"."""
    if len(prompts) == 1:
        return ""
    slug = re.sub(r"[^a-z0-9]+", "-", prompts[number].lower()).strip("-")[:40].strip("-")
    return f"{number + 1}-{slug or 'prompt'}-"
