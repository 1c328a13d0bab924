"""A volume at once: for an nnU-Net that was trained on volumes, behind the same results as a run of slices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from MedCLIPSAMLib.ensemble import EnsemblePrediction
from MedCLIPSAMLib.errors import CancelledError, InputError
from MedCLIPSAMLib.geometry import SliceGeometry, spacing
from MedCLIPSAMLib.images import check_finite, robust_window, to_uint8
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.results import SliceRecord, VolumeResult
from MedCLIPSAMLib.weak_engine import mask_as_coarse

if TYPE_CHECKING:
    from MedCLIPSAMLib.weak_engine import EnsembleSegmenter


def segment_whole_volume(
    engine: EnsembleSegmenter,
    image: MedicalImage,
    results: Sequence[VolumeResult],
    geometry: SliceGeometry,
    indices: range,
    *,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Predict a volume with its own spacing, and fill in the results.

    The volume goes to the network as it is stored, as nnU-Net's own reader passes it on, so it should have been stored
    with the same axes as those of the training. The whole volume is always predicted; ``indices`` says what of it the
    results show.

    Args:
        engine: An engine that :attr:`~EnsembleSegmenter.takes_whole_volumes`.
        image: The volume, (K, J, I).
        results: Empty ones, one a prompt, see :func:`MedCLIPSAMLib.volumes.empty_result`.
        geometry: Of the slices that the results list.
        indices: The slices to show.
        progress: Called with (slices done, slices in all): the slices are all done at once, so these are shares.
        cancelled: Asked before each checkpoint.

    Raises:
        InputError: A volume in colour, NaN, or an unknown prompt.
        CancelledError: ``cancelled`` said so; nothing was filled in.
    """
    check_volume(image)
    chosen = [engine.recipe.class_of(result.prompt) for result in results]  # raises before the long part
    started = time.perf_counter()

    def check() -> None:
        if cancelled is not None and cancelled():
            raise CancelledError("The run was cancelled.")

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(len(indices) * done // total, len(indices))

    prediction = engine.ensemble.predict(image.array[None], volume_spacing(image), cancelled=check, progress=tell)
    seconds = time.perf_counter() - started
    threshold = None if engine.recipe.threshold == "argmax" else float(engine.recipe.threshold)
    notes = engine.ensemble.take_notes()
    for result, found in zip(results, chosen, strict=True):
        result.warnings += notes
        mask, probability = prediction.mask(found.label, threshold), prediction.probabilities[found.label]
        result.seconds["network"] = seconds
        for index in indices:
            planes = {
                "saliency": geometry.extract(probability, index),
                "mask": geometry.extract(mask, index),
                "entropy": geometry.extract(prediction.entropy, index),
            }
            for name, plane in (*planes.items(), ("coarse", planes["mask"])):
                geometry.insert(getattr(result, name), index, plane)
            coarse = mask_as_coarse(planes["mask"], np.clip(planes["saliency"], 0, 1), threshold)
            result.slices[index] = SliceRecord(
                index,
                "segmented",
                components=coarse.components,
                threshold=coarse.threshold,
                seconds=seconds / len(indices),
            )


def predict_volume(
    engine: EnsembleSegmenter,
    image: MedicalImage,
    axis: int | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    window: tuple[float, float] | None = None,
) -> EnsemblePrediction:
    """Return all classes' probabilities of a volume: predicted at once, or slice by slice by a network of images.

    Args:
        engine: Of either kind.
        image: The volume, (K, J, I).
        axis: Along which a network of images takes slices, see :meth:`SliceGeometry.of`.
        progress: Called with (checkpoints or slices done, in all).
        window: Intensities that a network of images is shown as black and white, where its training had no window of
            its own; None for the file's own, else a robust one.

    Raises:
        InputError: A volume in colour, or NaN.
    """
    check_volume(image)
    if engine.takes_whole_volumes:
        return engine.ensemble.predict(image.array[None], volume_spacing(image), progress=progress)
    geometry = SliceGeometry.of(image.array.shape, image.ijk_to_ras, axis)
    window = engine.recipe.window or window or image.window or robust_window(image.array)
    probabilities = np.zeros((len(engine.recipe.model.classes) + 1, *geometry.shape), np.float32)
    probabilities[0] = 1  # where nothing can be seen there is nothing
    entropy, mutual_information = (np.zeros(geometry.shape, np.float32) for _ in range(2))
    for index in range(geometry.count):
        plane = to_uint8(geometry.extract(image.array, index), window)
        if plane.min() < plane.max():
            engine.set_image(plane, (0.0, 255.0))
            prediction = engine.predict()
            for volume, found in zip(probabilities, prediction.probabilities, strict=True):
                geometry.insert(volume, index, found)
            geometry.insert(entropy, index, prediction.entropy)
            geometry.insert(mutual_information, index, prediction.mutual_information)
        if progress is not None:
            progress(index + 1, geometry.count)
    return EnsemblePrediction(probabilities, entropy, mutual_information, len(engine.ensemble.files))


def check_volume(image: MedicalImage) -> None:
    """Raise :class:`InputError` for a volume that no network here can take."""
    if image.array.ndim != 3:
        raise InputError(f"a volume of shape {image.array.shape} is in colour; a trained network takes grey ones.")
    check_finite(image.array, "the volume")


def volume_spacing(image: MedicalImage) -> tuple[float, float, float]:
    """Return the spacing in mm along K, J and I, the order in which nnU-Net's reader gives it."""
    i, j, k = spacing(image.ijk_to_ras)
    return k, j, i
