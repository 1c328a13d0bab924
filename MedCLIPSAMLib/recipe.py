"""The settings of an engine: everything about a run that is not a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np

from MedCLIPSAMLib.clip.registry import finetuned_kind
from MedCLIPSAMLib.coarse import coarse_mask
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.recipe_values import check_range, from_text, read_value
from MedCLIPSAMLib.resources import resource_path
from MedCLIPSAMLib.results import CoarseMask, VisualPrompts
from MedCLIPSAMLib.visual_prompts import visual_prompts

LITE_ALIGNMENT = "lite-alignment.safetensors"
"""The file by which a folder is known to hold a fine-tuned model of the engine lite."""


@dataclass(frozen=True)
class Recipe:
    """Settings of every stage, in the order of the pipeline; kept in ``result.json``.

    Attributes:
        name: The engine, see :func:`MedCLIPSAMLib.engines.load_engine`.
        segmenter: Which model of the SAM family, where the engine's name does not say it.
        saliency: "patch_similarity", "m2ib", "gscorecam" or "gradcam".
        scales: Sizes at which patch similarity looks at the image, see ``saliency.patch_similarity``.
        m2ib: Settings of M2IB, see :class:`MedCLIPSAMLib.saliency.m2ib.M2IBSettings`.
        gscorecam: Settings of gScoreCAM, see :func:`MedCLIPSAMLib.saliency.gscorecam.gscorecam`.
        threshold: "otsu", "kmeans", a fixed saliency in [0, 1), or "crf", see :mod:`MedCLIPSAMLib.crf`.
        minimum_confidence, relative_confidence: Which components are kept, see ``coarse.coarse_mask``.
        minimum_area: Smallest component as a part of the image, in [0, 1).
        maximum_components: At most so many components; None for all.
        component_order: "confidence" or "area": which ones that limit keeps.
        visual_prompt: "boxes", "points" or "both".
        points_per_component, negatives: Positive and negative points for each component.
        box_padding: Part of the box side added on each side.
        candidates: How the candidate masks of a prompt become one: "single" asks the segmenter for one mask; the
            others are the rules of :func:`MedCLIPSAMLib.sam.multimask.combine`.
        samples: G, the number of samples behind the probability and the entropy.
        box_jitter: Standard deviation of a box edge as a part of the box side, in the samples after the first.
        gate: Whether a presence score below the threshold stops the run.
        rules: "paper", or "authors" for what the authors' released program does where it differs, see
            :mod:`MedCLIPSAMLib.released_code`; it keeps ``maximum_components`` components.
        prompts: Prompts to begin with, such as "set:chest-ct-p2"; in a preset, what the paper found best for the task.
        presets: Named changes of the above, for a task; "about" says in a sentence when to take it.
        about: A sentence on the engine.
    """

    name: str
    saliency: Literal["patch_similarity", "m2ib", "gscorecam", "gradcam"]
    m2ib: dict[str, Any]
    segmenter: str = "lite-medsam"
    scales: tuple[float, ...] = (1.0,)
    gscorecam: dict[str, Any] = field(default_factory=dict)
    threshold: Literal["otsu", "kmeans", "crf"] | float = "otsu"
    minimum_confidence: float = 0.5
    relative_confidence: float = 0.0
    minimum_area: float = 0.0
    maximum_components: int | None = None
    component_order: Literal["confidence", "area"] = "confidence"
    visual_prompt: Literal["boxes", "points", "both"] = "boxes"
    points_per_component: int = 10
    negatives: int = 0
    box_padding: float = 0.0
    candidates: Literal["single", "best", "average", "mrm", "staple"] = "single"
    samples: int = 5
    box_jitter: float = 0.03
    gate: bool = True
    rules: Literal["paper", "authors"] = "paper"
    prompts: tuple[str, ...] = ()
    presets: dict[str, dict[str, Any]] | None = None
    about: str = ""

    def __post_init__(self) -> None:
        for name in ("scales", "prompts"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.rules not in ("paper", "authors"):  # another word would pass for "paper" unnoticed
            raise InputError(f"rules is {self.rules!r}; pass 'paper' or 'authors'.")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values, without the presets that were not chosen and the sentence."""
        settings = asdict(self)
        del settings["presets"], settings["about"]
        return settings

    def coarse_mask(
        self,
        saliency: np.ndarray,
        threshold: Literal["otsu", "kmeans"] | float | None = None,
        minimum_confidence: float | None = None,
        image: np.ndarray | None = None,
    ) -> CoarseMask:
        """Return the coarse mask of a saliency map by this recipe, or with a user's own threshold or confidence.

        Args:
            saliency: (H, W) in [0, 1].
            threshold: Replaces the recipe's.
            minimum_confidence: Replaces both of the recipe's confidence rules, in [0, 1].
            image: (H, W) or (H, W, 3) uint8, which the threshold "crf" looks at; without it that is "otsu".

        Raises:
            InputError: See :func:`MedCLIPSAMLib.coarse.coarse_mask` and :func:`MedCLIPSAMLib.crf.dense_crf`.
        """
        own = minimum_confidence is not None
        if self.rules == "authors" and threshold is None and not own:
            from MedCLIPSAMLib.released_code import released_coarse_mask

            return released_coarse_mask(saliency, self.maximum_components or 1)
        method = self.threshold if threshold is None else threshold
        foreground = None
        if method == "crf":
            method = "otsu"
            if image is not None:
                from MedCLIPSAMLib.crf import dense_crf

                foreground = dense_crf(saliency, image)
        return coarse_mask(
            saliency,
            method=method,
            foreground=foreground,
            minimum_confidence=minimum_confidence if own else self.minimum_confidence,
            relative_confidence=0.0 if own else self.relative_confidence,
            minimum_area=int(self.minimum_area * saliency.size),
            maximum_components=self.maximum_components,
            order=self.component_order,
        )

    def visual_prompts(self, coarse: CoarseMask, seed: int) -> VisualPrompts:
        """Return what the segmenter is asked for a coarse mask, see :func:`MedCLIPSAMLib.visual_prompts`."""
        if self.rules == "authors":
            from MedCLIPSAMLib.released_code import released_visual_prompts

            # One box in all, but for lungs one each, as its authors advise.
            return released_visual_prompts(
                coarse, self.visual_prompt, seed, merged=self.maximum_components in (None, 1)
            )
        return visual_prompts(
            coarse,
            self.visual_prompt,
            points_per_component=self.points_per_component,
            negatives=self.negatives,
            padding=self.box_padding,
            seed=seed,
        )

    def final_mask(self, probability: np.ndarray, coarse: CoarseMask) -> np.ndarray:
        """Return the mask (H, W) bool of a mean probability (H, W): above 0.5."""
        mask = probability > 0.5
        if self.rules == "authors":
            from MedCLIPSAMLib.released_code import outer_contours, released_largest

            return released_largest(mask, outer_contours(coarse.mask))
        return mask

    def with_preset(self, preset: str | None) -> Recipe:
        """Return the recipe with a preset's changes.

        Raises:
            InputError: There is no such preset; the message names the known ones.
        """
        if preset is None:
            return self
        if preset not in (self.presets or {}):
            known = ", ".join(sorted(self.presets or {})) or "none"
            raise InputError(f"engine {self.name!r} has no preset {preset!r}; known: {known}.")
        return replace(self, **{name: value for name, value in self.presets[preset].items() if name != "about"})

    def with_settings(self, changes: Mapping[str, Any]) -> Recipe:
        """Return the recipe with single settings replaced, as a user gives them.

        Args:
            changes: Value by the name of an attribute, or of a part of one ("m2ib.layer"); a text is read as JSON where
                it is JSON ("0.4", "[1, 0.5]").

        Raises:
            InputError: No such setting, or a value of the wrong kind; the message names what is possible.
        """
        hints = get_type_hints(type(self))
        open_names = sorted(set(hints) - {"name", "segmenter", "presets", "prompts", "about"})
        read: dict[str, Any] = {}
        for name, value in _nested(changes).items():
            if name not in open_names:
                raise InputError(f"the recipe has no setting {name!r}; it has: {', '.join(open_names)}.")
            value = read_value(name, value, hints[name])
            if isinstance(value, dict):
                value = getattr(self, name) | value  # what is not given stays
            check_range(name, value)
            read[name] = value
        return replace(self, **read)


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Turn "m2ib.layer": 9 into "m2ib": {"layer": 9}."""
    nested: dict[str, Any] = {}
    for name, value in changes.items():
        outer, dot, inner = name.partition(".")
        if dot:
            value = {**nested.get(outer, {}), inner: from_text(value)}
        nested[outer] = value
    return nested


def load_recipe(engine: str) -> Recipe:
    """Return the settings of an engine; its models are not loaded.

    Args:
        engine: As for :func:`MedCLIPSAMLib.engines.load_engine`; the name has been checked.
    """
    clip, segmenter = split_engine(engine)
    path = resource_path("MedCLIPSAM", "Engines", f"{_settings_file(clip)}.json")
    settings = json.loads(path.read_text(encoding="utf-8"))
    unknown = set(settings) - {one.name for one in fields(Recipe)}
    if unknown:
        raise InputError(f"{path.name} has settings that no recipe knows: {', '.join(sorted(unknown))}.")
    return Recipe(**settings | {"name": engine} | ({"segmenter": segmenter} if segmenter else {}))


def split_engine(engine: str) -> tuple[str, str | None]:
    """Return the two parts of an engine's name CLIP+SEGMENTER; None for a segmenter that is not named.

    A folder may have a plus sign in its name: what follows the last one is a segmenter only if it looks like one.
    """
    clip, plus, segmenter = engine.rpartition("+")
    _, colon, folder = engine.partition(":")
    if not plus or not re.fullmatch(r"[a-z0-9-]+", segmenter) or (colon and Path(folder).is_dir()):
        return engine, None
    return clip, segmenter


def _settings_file(clip: str) -> str:
    """Return the name of the settings of a CLIP: those of what a fine-tuned one was made of."""
    kind, _, folder = clip.partition(":")
    if kind != "finetuned":
        return clip
    path = Path(folder).expanduser()
    return "lite" if (path / LITE_ALIGNMENT).is_file() else finetuned_kind(path)
