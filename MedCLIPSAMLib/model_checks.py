"""What a recipe wants of the models against what they can do, and what the user should know of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from MedCLIPSAMLib.clip.base import VisionLanguageModel
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.recipe import Recipe
from MedCLIPSAMLib.sam.base import PromptableSegmenter

if TYPE_CHECKING:
    from MedCLIPSAMLib.weights import Resolved

FINE_TUNED = "fine-tuned"
"""How a result names the weights of an engine ``finetuned:FOLDER``."""


def check_models(recipe: Recipe, clip: VisionLanguageModel, segmenter: PromptableSegmenter) -> None:
    """Raise :class:`InputError` if a model cannot do what the recipe wants of it, before anything long begins."""
    if recipe.saliency not in clip.saliency_methods:
        can = ", ".join(sorted(clip.saliency_methods)) or "none"
        raise InputError(f"{clip.name} cannot serve the saliency method {recipe.saliency!r}; it serves: {can}.")
    if recipe.visual_prompt not in segmenter.prompt_kinds:
        can = ", ".join(sorted(segmenter.prompt_kinds))
        raise InputError(f"{segmenter.name} cannot take {recipe.visual_prompt!r} as visual prompts; it takes: {can}.")
    if recipe.candidates != "single" and segmenter.masks_per_prompt == 1:
        raise InputError(
            f"{segmenter.name} gives one mask for each prompt, so {recipe.candidates!r} has nothing to choose from; "
            "take 'single'."
        )


def model_warnings(recipe: Recipe, segmenter: PromptableSegmenter, weights: Sequence[Resolved]) -> list[str]:
    """Return sentences for the user: weights that nobody has verified, prompts that a model was not trained for."""
    warnings = []
    for one in weights:
        if one.name == FINE_TUNED:
            warnings.append(f"The fine-tuned weights ({one.path.name}) are not verified: nobody has published them.")
        elif one.status == "unverified":
            warnings.append(f"The weights {one.name!r} ({one.path.name}) are not verified: not the registered file.")
    if recipe.visual_prompt not in segmenter.trained_kinds:
        trained = " and ".join(sorted(segmenter.trained_kinds))
        warnings.append(f"{segmenter.name} was trained for {trained}; masks from {recipe.visual_prompt!r} are worse.")
    return warnings
