"""One mask from the candidates that a segmenter gives for a prompt.

SAM answers a prompt with three masks (whole, part, sub-part) and estimates the quality (IoU) of each. The rules of the
MedCLIP-SAMv2 program let their masks vote; there the vote runs over the boxes when the prompts are boxes. Here it runs
over the candidates of each prompt.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from MedCLIPSAMLib.errors import InputError

RULES = ("best", "average", "mrm", "staple")


def combine(logits: np.ndarray, scores: np.ndarray, rule: Literal["best", "average", "mrm", "staple"]) -> np.ndarray:
    """Return one probability map per prompt; its mask is where the map is above 0.5.

    Args:
        logits: (N, M, H, W), foreground above 0; M candidates for each of N prompts.
        scores: (N, M), the model's estimates of their quality.
        rule: "best": the sigmoid of the candidate with the highest score. The others take the candidates' masks
            (logit > 0): "average": their mean, so that the majority wins. "mrm": their sum weighted by the scores
            (negative ones count as 0), stretched from its minimum and maximum to 0 and 1. "staple": the probability
            by STAPLE (Warfield et al., IEEE Trans Med Imaging 23:903, 2004), which also estimates how far each
            candidate is to be trusted.

    Returns:
        (N, H, W) float32 in [0, 1].

    Raises:
        InputError: Unknown rule, or shapes that do not fit.
    """
    if rule not in RULES:
        raise InputError(f"multimask rule {rule!r} is unknown; choose one of {', '.join(RULES)}.")
    if logits.ndim != 4 or scores.shape != logits.shape[:2] or logits.shape[1] == 0:
        raise InputError(f"candidates of shape {logits.shape} with scores of shape {scores.shape} do not fit.")
    if rule == "best":
        best = logits[np.arange(len(logits)), scores.argmax(axis=1)]
        return (1 / (1 + np.exp(-np.clip(best, -60, 60)))).astype(np.float32)
    masks = logits > 0
    if rule == "average":
        return masks.mean(axis=1, dtype=np.float32)
    vote = _weighted if rule == "mrm" else _staple
    combined = np.empty((len(logits), *logits.shape[2:]), np.float32)
    for row, (candidates, quality) in enumerate(zip(masks, scores, strict=True)):
        # Where all agree there is nothing to vote on, and both rules would divide by zero.
        same = (candidates == candidates[:1]).all()
        combined[row] = candidates[0] if same else vote(candidates, quality)
    return combined


def _weighted(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    weights = np.clip(scores, 0, None).astype(np.float32)
    if not weights.any():
        weights[:] = 1
    total = np.tensordot(weights, masks.astype(np.float32), axes=1)
    low, high = total.min(), total.max()
    # Constant, although the masks differ: those that differ have no weight.
    return (total - low) / (high - low) if high > low else (total > weights.sum() / 2).astype(np.float32)


def _staple(masks: np.ndarray, _: np.ndarray) -> np.ndarray:
    import SimpleITK as sitk

    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
    probability = sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0)).astype(np.float32)
    if not np.isfinite(probability).all():  # the estimation has run into a division by zero
        return masks.mean(axis=0, dtype=np.float32)
    return np.clip(probability, 0, 1)
