"""What the background process can be asked to do; worker.py runs these one at a time.

A task is a JSON object with "id", "task" and the parameters named below; "engine", "preset", "device", "samples" and
"gate" are those of every task. Arrays come and go as ``.npy`` files; ``folder`` is where the results are put.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.worker_context import TaskContext
from MedCLIPSAMLib.worker_engines import KeptEngine, describe_device
from MedCLIPSAMLib.worker_files import check_space, finish, output_error, read_array, unfinished_folder, write_array
from MedCLIPSAMLib.worker_reports import slice_report, volume_report

if TYPE_CHECKING:
    from MedCLIPSAMLib.engine_interface import Engine
    from MedCLIPSAMLib.medical_image import MedicalImage
    from MedCLIPSAMLib.results import VolumeResult

BYTES_PER_VOXEL = 4 + 4 + 1 + 1  # saliency and entropy, coarse mask and mask


def run_task(context: TaskContext, engine: KeptEngine) -> dict[str, Any]:
    """Run a task; what it returns goes into its "done" event.

    Raises:
        InputError: There is no such task, or a parameter is missing.
        MedCLIPSAMError: As the task says.
    """
    name = context.task.get("task")
    if name not in TASKS:
        raise InputError(f"the task {name!r} is unknown; known: {', '.join(TASKS)}.")
    return TASKS[name](context, engine) or {}


def load(context: TaskContext, engine: KeptEngine) -> dict[str, Any]:
    """Load the models ahead of the first run; "done" tells the device and its memory."""
    segmenter = context.segmenter(engine)
    return {"engine": segmenter.recipe.name, **describe_device(str(segmenter.device))}


def segment_slice(context: TaskContext, engine: KeptEngine) -> None:
    """Segment one image for every one of ``prompts``: ``array`` (H, W) or (H, W, 3), ``window``, ``seed``."""
    folder, prompts = context.folder(), context.prompts()
    segmenter = context.segmenter(engine)
    _set_image(context, segmenter)
    for number, prompt in enumerate(prompts):
        with context.stage("segmenting"):
            result = segmenter.segment(prompt, context.seed(), cancelled=context.cancelled, stage=context.tell)
        # What the gate skipped is not shown as a coarse finding either.
        coarse = np.zeros_like(result.coarse.mask) if result.skipped else result.coarse.mask
        maps = {"mask": result.mask, "coarse": coarse, "saliency": result.saliency, "entropy": result.entropy}
        files = _write_maps(context, folder, number, maps)
        context.send("result", number=number, files=files, **slice_report(result, segmenter))
        context.progress(number + 1, len(prompts))


def refine_slice(context: TaskContext, engine: KeptEngine) -> None:
    """Run the stages after the saliency again: ``array``, ``saliency``, ``threshold``, ``minimum_confidence``."""
    folder, saliency = context.folder(), read_array(context.need("saliency"))
    segmenter = context.segmenter(engine)
    _set_image(context, segmenter)
    with context.stage("segmenting"):
        result = segmenter.refine(saliency, **_refining(context), stage=context.tell)
    maps = {"mask": result.mask, "coarse": result.coarse.mask, "entropy": result.entropy}
    files = _write_maps(context, folder, 0, maps)
    context.send("result", number=0, files=files, **slice_report(result, segmenter))


def segment_volume(context: TaskContext, engine: KeptEngine) -> dict[str, Any]:
    """Segment slices: ``array`` (K, J, I) or (K, J, I, 3), ``ijk_to_ras``, ``axis``, ``slice_range``, ``prompts``.

    When the client cancels and wants to keep what is finished, that is the result, and "done" says "kept": true.
    """
    prompts, slice_range = context.prompts(), context.task.get("slice_range")

    def work(segmenter: Engine, image: MedicalImage, unfinished: Path) -> list[VolumeResult]:
        from MedCLIPSAMLib.volumes import segment_volume

        return segment_volume(
            segmenter,
            image,
            prompts,
            axis=context.task.get("axis"),
            slice_range=(slice_range[0], slice_range[1]) if slice_range else None,
            window=context.window(),
            seed=context.seed(),
            folder=unfinished,
            progress=context.progress,
            cancelled=context.cancelled,
            keep_finished=True,
        )

    return _volume_task(context, engine, work, len(prompts), ("mask", "coarse", "saliency", "entropy"))


def refine_volume(context: TaskContext, engine: KeptEngine) -> dict[str, Any]:
    """Refine the slices ``indices`` of a volume along ``axis``: as refine_slice, with arrays (K, J, I)."""
    axis, indices = context.need("axis"), context.need("indices")
    saliency = read_array(context.need("saliency"), mapped=True)

    def work(segmenter: Engine, image: MedicalImage, unfinished: Path) -> list[VolumeResult]:
        from MedCLIPSAMLib.refine import refine_volume

        result = refine_volume(
            segmenter,
            image,
            saliency,
            axis=axis,
            indices=indices,
            window=context.window(),
            folder=unfinished,
            progress=context.progress,
            **_refining(context),
        )
        return [result]

    return _volume_task(context, engine, work, 1, ("mask", "coarse", "entropy"))


TASKS: dict[str, Callable[[TaskContext, KeptEngine], dict[str, Any] | None]] = {
    "load": load,
    "segment_slice": segment_slice,
    "segment_volume": segment_volume,
    "refine_slice": refine_slice,
    "refine_volume": refine_volume,
}


def _set_image(context: TaskContext, segmenter: Engine) -> None:
    array = read_array(context.need("array"))
    with context.stage("reading image"):
        segmenter.set_image(array, context.window())


def _refining(context: TaskContext) -> dict[str, Any]:
    """The settings that both forms of refining share."""
    return {
        "prompt": context.task.get("prompt") or "",
        "threshold": context.task.get("threshold"),
        "minimum_confidence": context.task.get("minimum_confidence"),
        "seed": context.seed(),
        "cancelled": context.cancelled,
    }


def _write_maps(context: TaskContext, folder: Path, number: int, maps: dict[str, np.ndarray]) -> dict[str, str]:
    with context.stage("writing"):
        return {
            name: write_array(folder, f"{context.task['id']}-{number}-{name}", array) for name, array in maps.items()
        }


def _volume_task(
    context: TaskContext,
    engine: KeptEngine,
    work: Callable[[Engine, MedicalImage, Path], list[VolumeResult]],
    count: int,
    names: tuple[str, ...],
) -> dict[str, Any]:
    """Run ``work`` with its maps in unfinished files, then let these become the results."""
    from MedCLIPSAMLib.medical_image import MedicalImage

    folder, array = context.folder(), read_array(context.need("array"), mapped=True)
    matrix = np.asarray(context.need("ijk_to_ras"), np.float64)
    image = MedicalImage(array, matrix, None, None, True, Path(context.need("array")), spacing_known=True)
    check_space(folder, array.shape[:3], count, BYTES_PER_VOXEL)
    segmenter = context.segmenter(engine)
    identity = context.task["id"]
    unfinished = unfinished_folder(folder, str(identity))
    try:
        with context.stage("slice"):
            reports = [volume_report(result, segmenter) for result in work(segmenter, image, unfinished)]
        # The mapped files are closed by now, which Windows needs before they can be moved.
        kept = context.cancelled()
        if kept and not (context.keep() and _any_slice(reports)):
            context.check()
        for number, report in enumerate(reports):
            files = {
                name: finish(unfinished, f"{number}-{name}", folder, f"{identity}-{number}-{name}") for name in names
            }
            context.send("result", number=number, files=files, **report)
    except OSError as error:
        raise error if isinstance(error, MedCLIPSAMError) else output_error(folder, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {"kept": True} if kept else {}


def _any_slice(reports: list[dict[str, Any]]) -> bool:
    return any(one["status"] != "outside the range" for report in reports for one in report["slices"])
