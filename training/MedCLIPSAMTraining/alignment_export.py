"""Write a trained alignment: float16 weights, settings, and the calibration of the presence score."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from MedCLIPSAMLib.clip.lite import CARD, LiteClip, load_tower
from MedCLIPSAMLib.presence import PresenceCalibration, presence_features
from MedCLIPSAMTraining.alignment_data import CHEST_CT, TrainingImage, load_pair
from MedCLIPSAMTraining.distractors import DISTRACTORS

if TYPE_CHECKING:
    from MedCLIPSAMLib.clip.lite_tower import LiteTower
    from MedCLIPSAMLib.clip.minilm import MiniLM
    from MedCLIPSAMLib.sam.lite_encoder import LiteEncoder

ACCEPTED = 0.95
"""Share of the right prompts of the validation split that the threshold for single images accepts; in most of the rest
the saliency does not find the target either."""
ACCEPTED_SLICES = 0.85
"""The same for slices of a volume: most of those do not have the target, so that more must speak for it."""

RIGHT_PROMPTS = {
    "breast": ("breast tumor", "breast lesion", "a mass in the breast"),
    "brain": ("brain tumor", "brain lesion", "a tumor in the brain"),
    "xray": ("lungs", "lung", "lungs in a chest X-ray"),
    "ct": ("lungs", "lung", "lungs in a CT scan"),
}


def export(
    tower: LiteTower,
    training: dict[str, Any],
    images: list[TrainingImage],
    output: Path,
    encoder: LiteEncoder,
    text: MiniLM,
) -> PresenceCalibration:
    """Write ``output`` (safetensors): the weights in float16, and the settings and calibration as its metadata.

    The calibration is fitted with the rounded weights, as the engine will load them, on the validation images.

    Args:
        tower: Trained.
        training: The settings of the run, with its "seed".
        images: All images of the run.
        output: The safetensors file.
        encoder, text: The frozen parts.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().half().contiguous() for key, value in tower.state_dict().items()}
    card = {"tower": tower.settings, "training": training}
    temporary = output.with_suffix(".part")
    save_file(weights, temporary, {CARD: json.dumps(card)})
    clip = LiteClip(encoder, text, load_tower(temporary))
    calibration = calibrate(clip, [image for image in images if image.split == "val"], training["seed"])
    save_file(weights, temporary, {CARD: json.dumps(card | {"presence": asdict(calibration)})})
    temporary.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(temporary, output)
    return calibration


def calibrate(clip: LiteClip, validation: list[TrainingImage], seed: int = 0) -> PresenceCalibration:
    """Fit the presence score on validation images: right prompts against others, unknown ones, and healthy views.

    Chest CT slices take part as images only where other targets are asked for, since shipped weights never saw one.
    """
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    labels: list[bool] = []
    groups: list[int] = []  # 0 right, 1 other targets and unknown ones, 2 the same organ without the target

    def add(pixels: np.ndarray, text: np.ndarray, group: int) -> None:
        rows.append(presence_features(clip, pixels, text))
        labels.append(group == 0)
        groups.append(group)

    texts = {text: clip.encode_texts([text])[0] for group in RIGHT_PROMPTS.values() for text in group}
    unknown = {text: clip.encode_texts([text])[0] for text in DISTRACTORS}
    for image in validation:
        pixels, mask = load_pair(image)
        present = bool(mask.any())
        for task, prompts in RIGHT_PROMPTS.items():
            other_lungs = {task, image.task} == {"xray", "ct"}  # lungs are lungs in either modality
            for prompt in prompts:
                right = task == image.task and present
                if other_lungs or (right and image.source == CHEST_CT):
                    continue
                add(pixels, texts[prompt], 0 if right else 2 if task == image.task else 1)
        healthy = without_target(pixels, mask, image.task)
        if healthy is not None:
            for prompt in RIGHT_PROMPTS[image.task]:
                add(healthy, texts[prompt], 2)
        for name in rng.choice(list(unknown), 6, replace=False):
            add(pixels, unknown[name], 1)
    return fit_logistic(np.array(rows), np.array(labels), np.array(groups))


def without_target(pixels: np.ndarray, mask: np.ndarray, task: str) -> np.ndarray | None:
    """Return a view of the same organ without its lesion, or None where none can be had.

    A brain whose lesion lies in one half gets the mirror image of the other half there. Of a breast it is the larger
    part of the image beside the lesion, if that is at least a third of its width.

    Args:
        pixels: (H, W) uint8.
        mask: (H, W), the lesion.
        task: "breast" or "brain"; others give None.
    """
    columns = np.nonzero(mask.any(axis=0))[0]
    if task not in ("breast", "brain") or columns.size == 0:
        return None
    width = pixels.shape[1]
    if task == "breast":
        left, right = pixels[:, : columns[0]], pixels[:, columns[-1] + 1 :]
        beside = left if left.shape[1] >= right.shape[1] else right
        return np.ascontiguousarray(beside) if beside.shape[1] >= width / 3 else None
    head = np.nonzero(pixels.max(axis=0) > 30)[0]
    middle = (head[0] + head[-1] + 1) / 2
    index = np.arange(width)
    opposite = np.clip(np.rint(2 * middle - 1 - index).astype(int), 0, width - 1)
    half = index < middle if columns.mean() < middle else index >= middle
    if mask[:, opposite][:, half].any():
        return None
    twin = pixels.copy()
    twin[:, half] = pixels[:, opposite[half]]
    return twin


def fit_logistic(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, penalty: float = 1e-3
) -> PresenceCalibration:
    """Fit a logistic regression, and the thresholds that accept ``ACCEPTED`` and ``ACCEPTED_SLICES``.

    Both classes weigh alike, and so do the groups within a class, however many examples each has.

    Args:
        rows: (N, F) features.
        labels: (N,) bool, whether the target is there.
        groups: (N,) which kind of example it is; a kind belongs to one class.
        penalty: Weight of the squared coefficients.
    """
    features = torch.from_numpy(rows).double()
    target = torch.from_numpy(labels).double()
    weight = torch.zeros_like(target)
    for label in (True, False):
        kinds = np.unique(groups[labels == label])
        for kind in kinds:
            members = torch.from_numpy((labels == label) & (groups == kind))
            weight[members] = 0.5 * len(labels) / (len(kinds) * members.sum())
    coefficients = torch.zeros(rows.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([coefficients], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = features @ coefficients[:-1] + coefficients[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, weight)
        value = value + penalty * coefficients[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    fitted = coefficients.detach().numpy()
    calibration = PresenceCalibration(tuple(float(value) for value in fitted[:-1]), float(fitted[-1]), 0.5)
    scores = np.array([calibration.score(row) for row in rows[labels]])
    threshold, slice_threshold = (float(np.quantile(scores, 1 - share)) for share in (ACCEPTED, ACCEPTED_SLICES))
    return PresenceCalibration(calibration.weights, calibration.bias, threshold, slice_threshold)
