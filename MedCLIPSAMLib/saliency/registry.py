"""The saliency methods by the name that recipes and results use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from MedCLIPSAMLib.clip.base import VisionLanguageModel
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.recipe import Recipe


def _m2ib(recipe: Recipe, model: VisionLanguageModel, image: np.ndarray, text: np.ndarray, seed: int) -> np.ndarray:
    from MedCLIPSAMLib.saliency.m2ib import M2IBSettings, m2ib

    return m2ib(model, image, text, settings=M2IBSettings(**recipe.m2ib), seed=seed)


def _patch_similarity(
    recipe: Recipe, model: VisionLanguageModel, image: np.ndarray, text: np.ndarray, seed: int
) -> np.ndarray:
    from MedCLIPSAMLib.saliency.patch_similarity import patch_similarity

    return patch_similarity(model, image, text, scales=recipe.scales, seed=seed)


SALIENCY_METHODS: dict[str, Callable[..., np.ndarray]] = {"m2ib": _m2ib, "patch_similarity": _patch_similarity}


def saliency_map(
    recipe: Recipe, model: VisionLanguageModel, image: np.ndarray, text_embedding: np.ndarray, seed: int
) -> np.ndarray:
    """Return the (H, W) saliency in [0, 1] of the recipe's method.

    Raises:
        InputError: The recipe names an unknown method; the message lists the known ones.
    """
    if recipe.saliency not in SALIENCY_METHODS:
        raise InputError(f"saliency method {recipe.saliency!r} is unknown; known: {', '.join(SALIENCY_METHODS)}.")
    return SALIENCY_METHODS[recipe.saliency](recipe, model, image, text_embedding, seed)
