"""The stages after the saliency map again, on the slices of a volume: other thresholds, no text, no presence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from MedCLIPSAMLib.engine_interface import Engine
from MedCLIPSAMLib.errors import CancelledError, InputError
from MedCLIPSAMLib.geometry import SliceGeometry
from MedCLIPSAMLib.images import robust_window, to_uint8
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.results import VolumeResult
from MedCLIPSAMLib.volumes import empty_result, put_slice_result


def refine_volume(
    segmenter: Engine,
    image: MedicalImage,
    saliency: np.ndarray,
    *,
    axis: int,
    indices: Sequence[int],
    prompt: str = "",
    threshold: float | Literal["otsu", "kmeans"] | None = None,
    minimum_confidence: float | None = None,
    window: tuple[float, float] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> VolumeResult:
    """Make coarse mask, mask and entropy of some slices anew from their saliency; see :meth:`TextSegmenter.refine`.

    Args:
        segmenter: A loaded engine.
        image: The volume, (K, J, I) or (K, J, I, 3).
        saliency: (K, J, I) in [0, 1]; may be memory-mapped.
        axis: Array axis along which the slices were segmented.
        indices: The slices to do; all others come back empty.
        prompt: Only copied into the result.
        threshold, minimum_confidence: As for :meth:`TextSegmenter.refine`.
        window, seed, folder, progress, cancelled: As for :func:`MedCLIPSAMLib.volumes.segment_volume`.

    Raises:
        InputError: The map or a slice number does not fit the volume, or a setting is outside its range.
        CancelledError: ``cancelled`` said so.
    """
    if saliency.shape != image.array.shape[:3]:
        raise InputError(f"the saliency has shape {saliency.shape}, the volume {image.array.shape[:3]}.")
    geometry = SliceGeometry.of(saliency.shape, image.ijk_to_ras, axis)
    window = window or image.window or robust_window(image.array)
    result = empty_result(prompt, 0, geometry, segmenter, seed, folder)
    for done, index in enumerate(indices):
        if cancelled is not None and cancelled():
            raise CancelledError("The run was cancelled.")
        start = time.perf_counter()
        plane = to_uint8(geometry.extract(image.array, index), window)
        if plane.min() == plane.max():
            continue
        segmenter.set_image(plane, (0.0, 255.0))
        outcome = segmenter.refine(
            geometry.extract(saliency, index),
            prompt=prompt,
            threshold=threshold,
            minimum_confidence=minimum_confidence,
            seed=seed,
            cancelled=cancelled,
        )
        put_slice_result(result, geometry, index, outcome, time.perf_counter() - start)
        if progress is not None:
            progress(done + 1, len(indices))
    return result
