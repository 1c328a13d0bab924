"""The saliency methods by the name that recipes and results use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from MedCLIPSAMLib.clip.base import VisionLanguageModel
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.recipe import Recipe


def _m2ib(recipe: Recipe, model: VisionLanguageModel, image: np.ndarray, text: np.ndarray, seed: int) -> np.ndarray:
    from MedCLIPSAMLib.saliency.m2ib import M2IBSettings, m2ib, m2ib_plane

    settings = M2IBSettings(**recipe.m2ib)
    if recipe.rules == "authors":
        from MedCLIPSAMLib.released_code import released_saliency

        plane, _ = m2ib_plane(model, image, text, settings=settings, seed=seed)
        return released_saliency(plane, image.shape)
    return m2ib(model, image, text, settings=settings, seed=seed)


def _gscorecam(
    recipe: Recipe, model: VisionLanguageModel, image: np.ndarray, text: np.ndarray, seed: int
) -> np.ndarray:
    from MedCLIPSAMLib.saliency.gscorecam import gscorecam

    return gscorecam(model, image, text, seed=seed, **recipe.gscorecam)


def _gradcam(recipe: Recipe, model: VisionLanguageModel, image: np.ndarray, text: np.ndarray, seed: int) -> np.ndarray:
    from MedCLIPSAMLib.saliency.gradcam import gradcam

    return gradcam(model, image, text, seed=seed)


def _patch_similarity(
    recipe: Recipe, model: VisionLanguageModel, image: np.ndarray, text: np.ndarray, seed: int
) -> np.ndarray:
    from MedCLIPSAMLib.saliency.patch_similarity import patch_similarity

    return patch_similarity(model, image, text, scales=recipe.scales, seed=seed)


SALIENCY_METHODS: dict[str, Callable[..., np.ndarray]] = {
    "m2ib": _m2ib,
    "patch_similarity": _patch_similarity,
    "gscorecam": _gscorecam,
    "gradcam": _gradcam,
}


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
