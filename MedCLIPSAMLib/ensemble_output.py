"""One input through a trained network into a folder of files: all classes, with both uncertainty maps."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from MedCLIPSAMLib import reporting
from MedCLIPSAMLib.file_output import (
    Segment,
    check_output_folder,
    replacing,
    write_json,
    write_map_nrrd,
    write_mask_png,
    write_segmentation_nrrd,
)
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.result_folder import collected
from MedCLIPSAMLib.weak_volumes import predict_volume

if TYPE_CHECKING:
    from MedCLIPSAMLib.ensemble import EnsemblePrediction
    from MedCLIPSAMLib.ensemble_folder import ModelClass
    from MedCLIPSAMLib.weak_engine import EnsembleSegmenter

LABELS_FILE = "labels.png"
ENTROPY_FILE = "entropy.nrrd"
INFORMATION_FILE = "mutual-information.nrrd"
_COLOURS = ((0.31, 0.69, 0.42), (0.30, 0.55, 0.85), (0.85, 0.45, 0.30), (0.65, 0.45, 0.80))


def predict_to_folder(
    engine: EnsembleSegmenter,
    image: MedicalImage,
    output: str | Path,
    *,
    window: tuple[float, float] | None = None,
    axis: int | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict one input and write what the network says.

    An image gives, for each class, ``mask.png`` and ``probability.nrrd``, and ``labels.png`` where there are several
    classes; a volume ``segmentation.seg.nrrd`` and ``probability.nrrd``. Both give ``entropy.nrrd`` (nats, Eq. 22),
    ``mutual-information.nrrd`` (nats) and ``result.json``. With several classes the files of a class begin with its
    number and name.

    Args:
        engine: From :func:`MedCLIPSAMLib.engines.load_engine` with "weak:FOLDER".
        image: The input.
        output: Folder for the results; an earlier result in it is replaced.
        window: Intensities that become black and white for a network of images, where its training had no window of
            its own.
        axis: Of a volume's slices, for a network of images.
        progress: Called with (steps done, steps in all).

    Returns:
        What ``result.json`` says.

    Raises:
        InputError: The input does not fit the network.
        OutputError: Not writable.
    """
    output, began = Path(output), time.perf_counter()
    if image.is_volume:
        prediction = predict_volume(engine, image, axis, progress, window)
    else:
        engine.set_image(image.array, window or image.window)
        prediction = engine.predict()
    seconds = time.perf_counter() - began
    model = engine.recipe.model
    check_output_folder(output)
    with collected(output) as folder:
        files = [ENTROPY_FILE, INFORMATION_FILE]
        write_map_nrrd(folder / ENTROPY_FILE, prediction.entropy, image.ijk_to_ras)
        write_map_nrrd(folder / INFORMATION_FILE, prediction.mutual_information, image.ijk_to_ras)
        threshold = None if engine.recipe.threshold == "argmax" else float(engine.recipe.threshold)
        masks = [prediction.mask(one.label, threshold) for one in model.classes]
        classes = []
        for one, mask in zip(model.classes, masks, strict=True):
            prefix = "" if len(model.classes) == 1 else f"{one.label}-{_slug(one)}-"
            probability = prediction.probabilities[one.label]
            files.append(f"{prefix}probability.nrrd")
            write_map_nrrd(folder / files[-1], probability, image.ijk_to_ras)
            if not image.is_volume:
                files.append(f"{prefix}mask.png")
                write_mask_png(folder / files[-1], mask)
            classes.append(
                {
                    "label": one.label,
                    "name": one.name,
                    "prompt": one.prompt,
                    "size": reporting.measure(mask, image),
                    "mean_probability_in_mask": float(probability[mask].mean()) if mask.any() else None,
                    "mean_entropy_in_mask": float(prediction.entropy[mask].mean()) if mask.any() else None,
                }
            )
        if image.is_volume:
            files.append("segmentation.seg.nrrd")
            segments = [
                Segment(one.name, mask, _COLOURS[number % len(_COLOURS)], {"MedCLIPSAM.Prompt": one.prompt})
                for number, (one, mask) in enumerate(zip(model.classes, masks, strict=True))
            ]
            write_segmentation_nrrd(folder / files[-1], segments, image.ijk_to_ras)
        elif len(model.classes) > 1:
            files.append(LABELS_FILE)
            with replacing(folder / LABELS_FILE) as file:
                Image.fromarray(_labels(prediction, masks)).save(file, format="PNG")
        files.append("result.json")
        report = {
            "engine": engine.recipe.name,
            "members": prediction.members,
            "classes": classes,
            "entropy": {"mean": float(prediction.entropy.mean()), "maximum": float(prediction.entropy.max())},
            "mutual_information": {"mean": float(prediction.mutual_information.mean())},
            "recipe": engine.recipe.as_dict(),
            "weights": reporting.weights_report(engine.weights),
            "device": engine.device,
            "input": reporting.describe_input(image, engine.recipe.window or window or image.window),
            "seconds": {"network": seconds},
            "warnings": list(image.warnings),
            "files": files,
            "versions": reporting.versions(),
            "note": reporting.RESEARCH_NOTE,
        }
        write_json(folder / "result.json", report)
    return report


def _labels(prediction: EnsemblePrediction, masks: list[np.ndarray]) -> np.ndarray:
    """Return one label for each pixel; of masks that overlap (by a threshold below 0.5) the more probable class."""
    inside = np.any(masks, axis=0)
    best = np.argmax(prediction.probabilities[1:], axis=0) + 1
    return np.where(inside, best, 0).astype(np.uint8)


def _slug(one: ModelClass) -> str:
    return re.sub(r"[^a-z0-9]+", "-", one.name.lower()).strip("-")[:40].strip("-") or "class"
