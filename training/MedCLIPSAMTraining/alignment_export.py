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

ACCEPTED = 0.995
"""Share of the right prompts of the validation split that the threshold accepts: a lesion that is skipped costs more
than an image without one that is segmented."""

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
    """Fit the presence score on validation images: right prompts against other targets' and unknown ones.

    Chest CT slices take part as images only where other targets are asked for, since shipped weights never saw one.
    """
    rng = np.random.default_rng(seed)
    rows, labels = [], []
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
                rows.append(presence_features(clip, pixels, texts[prompt]))
                labels.append(right)
        for name in rng.choice(list(unknown), 6, replace=False):
            rows.append(presence_features(clip, pixels, unknown[name]))
            labels.append(False)
    return fit_logistic(np.array(rows), np.array(labels))


def fit_logistic(rows: np.ndarray, labels: np.ndarray, penalty: float = 1e-3) -> PresenceCalibration:
    """Fit a logistic regression with both classes weighted alike, and the threshold that accepts ``ACCEPTED``.

    Args:
        rows: (N, F) features.
        labels: (N,) bool, whether the target is there.
        penalty: Weight of the squared coefficients.
    """
    features = torch.from_numpy(rows).double()
    target = torch.from_numpy(labels).double()
    share = target.mean()
    weight = torch.where(target > 0, 0.5 / share, 0.5 / (1 - share))
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
    return PresenceCalibration(calibration.weights, calibration.bias, float(np.quantile(scores, 1 - ACCEPTED)))
