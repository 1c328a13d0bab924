"""A volume as a run of slices: axis, order, presence smoothed over neighbours, results put back into the geometry.

Slices are read and written one at a time. With a folder, the maps are memory-mapped files, so working memory does not
grow with the number of slices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from MedCLIPSAMLib.engine_interface import Engine
from MedCLIPSAMLib.errors import CancelledError, InputError
from MedCLIPSAMLib.geometry import SliceGeometry
from MedCLIPSAMLib.images import MINIMUM_SIDE, check_finite, robust_window, to_uint8
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.prompts import unsupported_wording, wordings
from MedCLIPSAMLib.results import PromptResult, SliceRecord, VolumeResult

NEIGHBOURS = 1
"""Slices on each side over which the presence score is averaged."""

_MAPS = {"saliency": np.float32, "coarse": np.bool_, "mask": np.bool_, "entropy": np.float32}


def segment_volume(
    segmenter: Engine,
    image: MedicalImage,
    prompts: Sequence[str],
    *,
    axis: int | str | None = None,
    slice_range: tuple[int, int] | None = None,
    window: tuple[float, float] | None = None,
    seed: int = 0,
    gate: bool | None = None,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    keep_finished: bool = False,
) -> list[VolumeResult]:
    """Segment every slice of a volume, presented in the standard radiological orientation.

    The presence score of a slice is the mean over itself and its neighbours; no slice is encoded twice for that.

    Args:
        segmenter: A loaded engine.
        image: A volume, (K, J, I) or in colour (K, J, I, 3), with its geometry.
        prompts: One result each.
        axis: As for :meth:`SliceGeometry.of`; None is the axis of acquisition.
        slice_range: (first, last) along the axis, from 0, both included; None for all. The presence gate is stricter
            for all slices than for a range, in which the user expects the target.
        window: Intensities that become black and white in every slice; None takes the file's, else robust percentiles
            of the whole volume. An engine that was trained with a window of its own takes that one.
        seed: The run's seed.
        gate: False segments slices that the presence gate would skip; None takes the recipe's choice.
        folder: Where to keep the maps as memory-mapped ``.npy`` files; None keeps them in memory.
        progress: Called with (slices done, slices in all).
        cancelled: Asked between slices and stages.
        keep_finished: True returns the finished slices on cancel (the rest are "outside the range") instead of raising.

    Returns:
        One :class:`VolumeResult` per prompt, in the volume's own array axes.

    Raises:
        InputError: Not a volume, unusable values, prompts, axis or range.
        CancelledError: ``cancelled`` said so and ``keep_finished`` is False.
    """
    volume = image.array
    if not image.is_volume or not (volume.ndim == 3 or (volume.ndim == 4 and volume.shape[3] == 3)):
        raise InputError(f"an array of shape {volume.shape} is not a volume (K, J, I); segment it as a 2D image.")
    for prompt in prompts:
        wordings(prompt, 1)  # raises for an unusable prompt before any slice is read
    texts = [prompt.strip() for prompt in prompts]
    if not texts:
        raise InputError("there is no prompt; pass at least one text that says what to segment.")
    geometry = SliceGeometry.of(volume.shape[:3], image.ijk_to_ras, axis)
    if min(geometry.plane_shape) < MINIMUM_SIDE:
        raise InputError(
            f"{geometry.plane_name} slices of this volume are {geometry.plane_shape[1]} x {geometry.plane_shape[0]} "
            f"pixels; at least {MINIMUM_SIDE} x {MINIMUM_SIDE} are needed. Choose another axis."
        )
    check_finite(volume, "the volume")
    window = getattr(segmenter.recipe, "window", None) or window or image.window or robust_window(volume)
    if not window[1] > window[0]:
        raise InputError(f"window ({window[0]:g}, {window[1]:g}): the upper intensity must be above the lower one.")
    if seed < 0:
        raise InputError(f"seed {seed}: it must be 0 or more.")
    first, last = slice_range or (0, geometry.count - 1)
    if not 0 <= first <= last < geometry.count:
        raise InputError(
            f"slices {first}:{last} do not lie in 0:{geometry.count - 1} of the {geometry.plane_name} axis."
        )

    whole_volume = last - first + 1 == geometry.count > 1  # who names a range has seen the target in it
    results = [empty_result(text, number, geometry, segmenter, seed, folder) for number, text in enumerate(texts)]
    run = _Run(segmenter, volume, geometry, window, texts)
    whole = getattr(segmenter, "takes_whole_volumes", None)
    if whole is False:
        for result in results:
            result.warnings.append("This network learnt from 2D images; slices of a volume may be unlike them.")
    try:
        if whole:
            from MedCLIPSAMLib.weak_volumes import segment_whole_volume

            shown = range(first, last + 1)
            segment_whole_volume(segmenter, image, results, geometry, shown, progress=progress, cancelled=cancelled)
            first = last + 1  # no slice is left to be done on its own
        for done, index in enumerate(range(first, last + 1)):
            if cancelled is not None and cancelled():
                raise CancelledError("The run was cancelled.")
            if (done % run.ahead) == 0:
                run.prepare(range(index, min(last, index + run.ahead - 1) + 1))
            around = range(max(first, index - NEIGHBOURS), min(last, index + NEIGHBOURS) + 1)
            for number, result in enumerate(results):
                start = time.perf_counter()
                scores = [score for one in around if (score := run.score(one, number)) is not None]
                plane = run.plane(index)
                if plane is None:
                    result.slices[index] = SliceRecord(index, "blank")
                    continue
                segmenter.set_image(plane, (0.0, 255.0))
                outcome = segmenter.segment(
                    texts[number],
                    seed,
                    gate=gate,
                    presence_score=float(np.mean(scores)) if scores else None,
                    whole_volume=whole_volume,
                    cancelled=cancelled,
                )
                result.presence_threshold = outcome.presence.threshold
                put_slice_result(result, geometry, index, outcome, time.perf_counter() - start)
            run.forget(index - NEIGHBOURS)
            if progress is not None:
                progress(done + 1, last - first + 1)
    except CancelledError:
        if not keep_finished:
            raise
    for result in results:
        _finish(result, window)
    return results


class _Run:
    """Planes and presence scores of the few slices around the current one."""

    def __init__(
        self,
        segmenter: Engine,
        volume: np.ndarray,
        geometry: SliceGeometry,
        window: tuple[float, float],
        texts: list[str],
    ):
        self.segmenter = segmenter
        self.volume = volume
        self.geometry = geometry
        self.window = window
        self.texts = texts
        # Where a gate decides slice by slice, encoding ahead would be work for slices that it then skips.
        self.ahead = segmenter.batch if segmenter.calibration is None else 1
        self._planes: dict[int, np.ndarray | None] = {}
        self._scores: dict[int, list[float | None]] = {}

    def prepare(self, indices: range) -> None:
        """Have the next slices encoded together, where the segmenter gains by that."""
        if self.ahead > 1:
            self.segmenter.prepare([plane for one in indices if (plane := self.plane(one)) is not None])

    def plane(self, index: int) -> np.ndarray | None:
        """Return the slice as displayed, (H, W) or (H, W, 3) uint8; None if nothing can be seen in it."""
        if index not in self._planes:
            plane = to_uint8(self.geometry.extract(self.volume, index), self.window)
            self._planes[index] = None if plane.min() == plane.max() else plane
        return self._planes[index]

    def score(self, index: int, number: int) -> float | None:
        """Return the slice's own presence score for a prompt; None without calibration, 0 for a blank slice."""
        if self.segmenter.calibration is None:
            return None
        if index not in self._scores:
            plane = self.plane(index)
            if plane is None:
                self._scores[index] = [0.0] * len(self.texts)
            else:
                self.segmenter.set_image(plane, (0.0, 255.0))
                self._scores[index] = [self.segmenter.presence(text) for text in self.texts]
        return self._scores[index][number]

    def forget(self, index: int) -> None:
        """Drop a slice that no later one looks at."""
        self._planes.pop(index, None)
        self._scores.pop(index, None)


def empty_result(
    text: str, number: int, geometry: SliceGeometry, segmenter: Engine, seed: int, folder: Path | None
) -> VolumeResult:
    """Return the ``number``-th result of a run, all its maps zero and all its slices "outside the range"."""
    maps = {}
    for name, kind in _MAPS.items():
        if folder is None:
            maps[name] = np.zeros(geometry.shape, kind)
        else:  # a new file reads as zeros and takes up disk only where it is written
            path = Path(folder) / f"{number}-{name}.npy"
            maps[name] = np.lib.format.open_memmap(path, "w+", kind, geometry.shape)
    return VolumeResult(
        prompt=text,
        axis=geometry.axis,
        slices=[SliceRecord(index, "outside the range") for index in range(geometry.count)],
        saliency_method=segmenter.recipe.saliency,
        seed=seed,
        warnings=unsupported_wording(text) if getattr(segmenter.recipe, "reads_text", True) else [],
        **maps,
    )


def put_slice_result(
    result: VolumeResult, geometry: SliceGeometry, index: int, outcome: PromptResult, seconds: float
) -> None:
    """Write one slice's maps and record into the volume's result."""
    maps = {
        "saliency": outcome.saliency,
        "coarse": outcome.coarse.mask,
        "mask": outcome.mask,
        "entropy": outcome.entropy,
    }
    for name, plane in maps.items():
        # What the gate skipped is not shown as a coarse finding either.
        if not (outcome.skipped and name == "coarse"):
            geometry.insert(getattr(result, name), index, plane)
    for stage, value in outcome.seconds.items():
        result.seconds[stage] = result.seconds.get(stage, 0.0) + value
    result.slices[index] = SliceRecord(
        index=index,
        status="skipped by the gate" if outcome.skipped else "segmented",
        presence=outcome.presence.score,
        components=() if outcome.skipped else outcome.coarse.components,
        threshold=outcome.coarse.threshold,
        seconds=seconds,
        warnings=outcome.warnings,
    )


def _finish(result: VolumeResult, window: tuple[float, float]) -> None:
    """Flush the maps and say in words what happened to the slices."""
    for name in _MAPS:
        array = getattr(result, name)
        if isinstance(array, np.memmap):
            array.flush()
    seen = [record for record in result.slices if record.status in ("segmented", "skipped by the gate")]
    if not seen and any(record.status == "blank" for record in result.slices):
        result.warnings.append(
            f"Nothing can be seen in any slice at the window {window[0]:g} to {window[1]:g}: pass another window."
        )
    skipped = sum(record.status == "skipped by the gate" for record in seen)
    if skipped:
        result.warnings.append(
            f"{skipped} of {len(seen)} slices were skipped because the target does not seem to be in them; "
            "switch the presence gate off, or choose a slice range, to segment them."
        )
    elif seen and all(record.presence is None for record in seen):
        result.warnings.append("This engine has no presence calibration: every slice was segmented.")
    if len(seen) > 1:  # what every slice says is said of the volume, such as that the weights are not verified
        shared = set.intersection(*(set(record.warnings) for record in seen))
        result.warnings += [text for text in seen[0].warnings if text in shared and text not in result.warnings]
    # The warnings about absence stand in the slices' own records; once for the volume is enough here.
    result.slices = [
        replace(record, warnings=[text for text in record.warnings if text not in result.warnings])
        for record in result.slices
    ]
