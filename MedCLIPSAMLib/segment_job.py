"""One input, some prompts, and a folder of results: the whole job of `segment`, without any user interface.

Everything that can be wrong with the request is found before a model is loaded; see result_folder.py for the way the
results reach the output folder.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib import reporting
from MedCLIPSAMLib.engines import check_choice
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.file_output import (
    Segment,
    check_output_folder,
    write_json,
    write_map_nrrd,
    write_mask_png,
    write_segmentation_nrrd,
)
from MedCLIPSAMLib.geometry import SliceGeometry, spacing
from MedCLIPSAMLib.images import check_image, robust_window
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.prompts import check_prompt, wordings
from MedCLIPSAMLib.result_folder import collected
from MedCLIPSAMLib.results import CoarseMask, PromptResult, VisualPrompts, VolumeResult

if TYPE_CHECKING:
    from MedCLIPSAMLib.pipeline import TextSegmenter

Progress = Callable[[int, int], None]
SEGMENTATION_FILE = "segmentation.seg.nrrd"
OVERVIEW_FILE = "overview.png"
_MASK_COLOURS = ((0.31, 0.69, 0.42), (0.30, 0.55, 0.85), (0.85, 0.45, 0.30), (0.65, 0.45, 0.80))
_COARSE_COLOURS = ((0.95, 0.85, 0.30), (0.55, 0.85, 0.90), (0.95, 0.70, 0.60), (0.85, 0.75, 0.90))


@dataclass(frozen=True)
class SegmentRequest:
    """A checked request; make it with :func:`make_request`.

    Attributes:
        image: The input.
        prompts: One or more texts, without outer white space.
        output: Folder for the results; it exists and can be written to.
        engine, preset, device: As for :func:`MedCLIPSAMLib.engines.load_engine`.
        seed: The run's seed.
        axis: Array axis of a volume along which slices are taken; None for a 2D image.
        slice_range: (first, last) slice of a volume, from 0, both included; None for all.
        window: Intensities shown as black and white.
        gate: False segments also where the engine says that the target is not there; a setting of the engine, so it
            has no effect on one that is passed to :func:`run`.
        truth: bool, the reference mask of a sample, shown in the overview.
        notice: Origin and terms of the input, kept in ``result.json``; None for a user's own.
        reading_seconds: How long reading the input took.
    """

    image: MedicalImage
    prompts: tuple[str, ...]
    output: Path
    engine: str = "lite"
    preset: str | None = None
    device: str = "auto"
    seed: int = 0
    axis: int | None = None
    slice_range: tuple[int, int] | None = None
    window: tuple[float, float] | None = None
    gate: bool = True
    truth: np.ndarray | None = None
    notice: str | None = None
    reading_seconds: float = 0.0


def make_request(
    source: str | Path | MedicalImage,
    prompts: Sequence[str],
    output: str | Path,
    *,
    axis: int | str | None = None,
    slice_range: tuple[int, int] | None = None,
    window: tuple[float, float] | None = None,
    **settings: Any,
) -> SegmentRequest:
    """Check a request and read its input; loads no model.

    Args:
        source: A file or DICOM folder, or an image in memory.
        prompts: One or more texts, no two the same; none for the first of the preset's own.
        output: Folder for the results; created where it does not exist.
        axis: Array axis 0, 1 or 2, or "axial", "coronal", "sagittal"; None for the axis of acquisition.
        slice_range: (first, last), from 0, both included.
        window: (lower, upper) intensity; None takes the file's own, else a robust one.
        settings: The other attributes of :class:`SegmentRequest`.

    Raises:
        InputError: Anything wrong with the prompts, the input or the settings.
        OutputError: The output folder cannot be written to.
    """
    recipe = check_choice(settings.get("engine", "lite"), settings.get("preset"), settings.get("device", "auto"))
    if (seed := settings.get("seed", 0)) < 0:
        raise InputError(f"seed {seed}: it must be 0 or more.")
    if slice_range is not None and slice_range[0] > slice_range[1]:
        first, last = slice_range
        raise InputError(f"slices {first}:{last}: the first lies after the last; did you mean {last}:{first}?")
    checked = tuple(check_prompt(prompt) for prompt in prompts or recipe.prompts[:1])
    for prompt in checked:
        wordings(prompt, 1)  # raises for an unknown prompt set
    if not checked:
        raise InputError("there is no prompt; say what to segment: --prompt TEXT, for example --prompt 'breast tumor'.")
    if twice := [prompt for number, prompt in enumerate(checked) if prompt.lower() in map(str.lower, checked[:number])]:
        raise InputError(f"the prompt {twice[0]!r} is given twice; leave one of the two out.")
    if window is not None and not window[1] > window[0]:
        raise InputError(f"window ({window[0]:g}, {window[1]:g}): the upper intensity must be above the lower one.")
    began = time.perf_counter()
    image = source if isinstance(source, MedicalImage) else read_image(source)
    if not image.is_volume:
        check_image(image.array, str(image.path.name))
        if axis is not None or slice_range is not None:
            raise InputError(f"{image.path.name} is a 2D image; an axis or a slice range is for volumes only.")
        array_axis = None
    else:
        geometry = SliceGeometry.of(image.array.shape, image.ijk_to_ras, axis)
        array_axis = geometry.axis
        first, last = slice_range or (0, geometry.count - 1)
        if not 0 <= first <= last < geometry.count:
            raise InputError(
                f"slices {first}:{last} do not lie in the volume; along the {geometry.plane_name} axis it has "
                f"slices 0:{geometry.count - 1}."
            )
    reading_seconds = time.perf_counter() - began
    return SegmentRequest(
        image=image,
        prompts=checked,
        output=check_output_folder(output),
        axis=array_axis,
        slice_range=slice_range,
        window=window or image.window or robust_window(image.array),
        reading_seconds=reading_seconds,
        **settings,
    )


def load_segmenter(engine: str, preset: str | None, device: str, gate: bool) -> TextSegmenter:
    """Load an engine, see :func:`MedCLIPSAMLib.engines.load_engine`; ``gate=False`` switches its presence gate off."""
    from MedCLIPSAMLib.engines import load_engine

    segmenter = load_engine(engine, preset=preset, device=device)
    if not gate:
        segmenter.recipe = replace(segmenter.recipe, gate=False)
    return segmenter


def run(
    request: SegmentRequest,
    segmenter: TextSegmenter | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[dict[str, Any]]:
    """Segment and write the results.

    Args:
        request: From :func:`make_request`.
        segmenter: A loaded engine; None loads ``request.engine``.
        progress: Called with (steps done, steps in all); a step is a prompt on an image, or a slice of a volume.
        cancelled: Asked between steps.

    Returns:
        What each prompt's ``result.json`` says; ``report["files"]`` names the files in ``request.output``.

    Raises:
        CancelledError: ``cancelled`` said so; the output folder is as it was before.
        OutputError: A file could not be written; the output folder is as it was before.
        MedCLIPSAMError: As raised by the engine.
    """
    began = time.perf_counter()
    if segmenter is None:
        segmenter = load_segmenter(request.engine, request.preset, request.device, request.gate)
    loading = time.perf_counter() - began
    with collected(request.output) as folder:
        write = _segment_volume if request.image.is_volume else _segment_image
        reports = write(request, segmenter, folder, progress, cancelled)
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
            report.update(common)
            write_json(folder / name, report)
    return reports


def _segment_image(
    request: SegmentRequest,
    segmenter: TextSegmenter,
    folder: Path,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> list[dict[str, Any]]:
    image, matrix = request.image, request.image.ijk_to_ras
    segmenter.set_image(image.array, window=request.window)
    results, reports = [], []
    for number, prompt in enumerate(request.prompts):
        result: PromptResult = segmenter.segment(prompt, seed=request.seed, cancelled=cancelled)
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
    if _can_draw(reports):
        from MedCLIPSAMLib.overview import write_overview

        column, row, _ = spacing(image.ijk_to_ras)
        write_overview(
            folder / OVERVIEW_FILE,
            image.array,
            results,
            title=image.path.name,
            engine=segmenter.recipe.name,
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
    segmenter: TextSegmenter,
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
    if _can_draw(reports):
        from MedCLIPSAMLib.overview import write_volume_overview

        engine = segmenter.recipe.name
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
