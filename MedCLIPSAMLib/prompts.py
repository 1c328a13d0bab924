"""Text prompts: ensembles, paraphrases and the ways to say one prompt; the checks and sets are at hand here as well.

Source of the prompt designs: Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483, section 3.2 and Table 3.
"""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.prompt_checks import MAXIMUM_LENGTH, check_prompt, unsupported_wording
from MedCLIPSAMLib.prompt_sets import (
    ENSEMBLES,
    LLM_TEMPLATE,
    PromptSet,
    load_prompt_set,
    prompt_sets,
)
from MedCLIPSAMLib.resources import resource_path

__all__ = [
    "ENSEMBLES",
    "LLM_TEMPLATE",
    "MAXIMUM_LENGTH",
    "SET_PREFIX",
    "PromptSet",
    "Wording",
    "check_prompt",
    "ensemble_embedding",
    "load_prompt_set",
    "paraphrases",
    "prompt_sets",
    "unsupported_wording",
    "wordings",
]

SET_PREFIX = "set:"
Wording = tuple[str, ...]


def ensemble_embedding(embeddings: np.ndarray, *, raw: bool = False) -> np.ndarray:
    """Return one text embedding for several prompts (P4, P5): normalise, take the mean, normalise.

    Args:
        embeddings: (K, D), one row a prompt.
        raw: True takes the plain mean and normalises nothing, as the authors' program does.

    Returns:
        (D,) float32, of unit length unless ``raw``.

    Raises:
        InputError: Not (K, D) with at least one row and one column, NaN or infinite values, a row of zeros, or rows
            that cancel each other.
    """
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 2 or embeddings.size == 0:
        raise InputError(f"the text embeddings have shape {embeddings.shape}; pass (K, D) with one row a prompt.")
    if not np.isfinite(embeddings).all():
        raise InputError("the text embeddings hold NaN or infinite values; check the text encoder's weights.")
    if raw:
        return embeddings.mean(axis=0).astype(np.float32)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise InputError(f"text embedding {int(lengths[:, 0].argmin())} is zero; check the text encoder's weights.")
    mean = (embeddings / lengths).mean(axis=0)
    length = np.linalg.norm(mean)
    if length < 1e-6:
        raise InputError(f"the {len(embeddings)} prompts cancel each other (their mean is zero); use fewer of them.")
    return (mean / length).astype(np.float32)


def paraphrases(prompt: str, count: int, seed: int = 0) -> list[str]:
    """Return ``count`` wordings of a prompt, the first being the prompt itself.

    The others put it into fixed templates, in an order that depends on the seed alone. When the templates run out, the
    list starts again from the prompt.

    Raises:
        InputError: ``count`` is below 1, or :func:`check_prompt` refuses the prompt.
    """
    prompt = check_prompt(prompt)
    if count < 1:
        raise InputError(f"{count} paraphrases were asked for; at least 1 is needed.")
    templates = _templates()
    order = np.random.default_rng(seed).permutation(len(templates))
    phrase = prompt.rstrip(".!? ") or prompt
    first, _, rest = phrase.partition(" ")
    if first == "A" or (first[:1].isupper() and first[1:].isalpha() and first[1:].islower()):
        phrase = f"{first.lower()} {rest}".rstrip()  # a sentence's capital letter; abbreviations such as MRI stay
    wordings = [prompt, *(templates[index].replace("{}", phrase) for index in order)]
    return [wordings[index % len(wordings)] for index in range(count)]


def wordings(prompt: str, count: int, seed: int = 0) -> list[Wording]:
    """Return ``count`` ways to say a prompt, each a tuple of texts whose embeddings are averaged.

    A free text gives its :func:`paraphrases`. ``set:NAME`` names a prompt set: an ensemble (P4, P5) gives all its
    sentences together and then each on its own, any other set the paraphrases of its first sentence.

    Raises:
        InputError: See :func:`paraphrases` and :func:`load_prompt_set`.
    """
    prompt = check_prompt(prompt)
    if not prompt.startswith(SET_PREFIX):
        return [(text,) for text in paraphrases(prompt, count, seed)]
    chosen = load_prompt_set(prompt.removeprefix(SET_PREFIX).strip())
    if not chosen.is_ensemble:
        return [(text,) for text in paraphrases(chosen.prompts[0], count, seed)]
    order = np.random.default_rng(seed).permutation(len(chosen.prompts))
    return [chosen.prompts, *((chosen.prompts[order[number % len(order)]],) for number in range(count - 1))]


@lru_cache(maxsize=1)
def _templates() -> tuple[str, ...]:
    file = resource_path("MedCLIPSAM", "Prompts", "templates.json")
    return tuple(json.loads(file.read_text(encoding="utf-8"))["templates"])
