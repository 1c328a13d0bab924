"""The settings of an engine: everything about a run that is not a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from MedCLIPSAMLib.coarse import coarse_mask
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.resources import resource_path
from MedCLIPSAMLib.results import CoarseMask


@dataclass(frozen=True)
class Recipe:
    """Settings of every stage, in the order of the pipeline; kept in ``result.json``.

    Attributes:
        name: The engine.
        saliency: "patch_similarity" or "m2ib".
        scales: Sizes at which patch similarity looks at the image, see ``saliency.patch_similarity``.
        m2ib: Settings of M2IB, see :class:`MedCLIPSAMLib.saliency.m2ib.M2IBSettings`.
        threshold: "otsu", "kmeans" or a fixed saliency in [0, 1).
        minimum_confidence, relative_confidence: Which components are kept, see ``coarse.coarse_mask``.
        minimum_area: Smallest component as a part of the image, in [0, 1).
        maximum_components: At most so many components; None for all.
        component_order: "confidence" or "area": which ones that limit keeps.
        visual_prompt: "boxes", "points" or "both".
        points_per_component, negatives: Positive and negative points for each component.
        box_padding: Part of the box side added on each side.
        samples: G, the number of samples behind the probability and the entropy.
        box_jitter: Standard deviation of a box edge as a part of the box side, in the samples after the first.
        gate: Whether a presence score below the threshold stops the run.
        presets: Named changes of the above, for a task; "about" says in a sentence when to take it.
        about: A sentence on the engine.
    """

    name: str
    saliency: str
    m2ib: dict[str, Any]
    scales: tuple[float, ...] = (1.0,)
    threshold: Literal["otsu", "kmeans"] | float = "otsu"
    minimum_confidence: float = 0.5
    relative_confidence: float = 0.0
    minimum_area: float = 0.0
    maximum_components: int | None = None
    component_order: Literal["confidence", "area"] = "confidence"
    visual_prompt: Literal["boxes", "points", "both"] = "boxes"
    points_per_component: int = 10
    negatives: int = 0
    box_padding: float = 0.0
    samples: int = 5
    box_jitter: float = 0.03
    gate: bool = True
    presets: dict[str, dict[str, Any]] | None = None
    about: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))  # JSON gives a list

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
    ) -> CoarseMask:
        """Return the coarse mask of a saliency map by this recipe, or with a user's own threshold or confidence.

        Args:
            saliency: (H, W) in [0, 1].
            threshold: Replaces the recipe's.
            minimum_confidence: Replaces both of the recipe's confidence rules, in [0, 1].
        """
        own = minimum_confidence is not None
        return coarse_mask(
            saliency,
            method=self.threshold if threshold is None else threshold,
            minimum_confidence=minimum_confidence if own else self.minimum_confidence,
            relative_confidence=0.0 if own else self.relative_confidence,
            minimum_area=int(self.minimum_area * saliency.size),
            maximum_components=self.maximum_components,
            order=self.component_order,
        )

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


def load_recipe(engine: str) -> Recipe:
    """Read ``Resources/MedCLIPSAM/Engines/<engine>.json``."""
    path = resource_path("MedCLIPSAM", "Engines", f"{engine}.json")
    settings = json.loads(path.read_text(encoding="utf-8"))
    unknown = set(settings) - {field.name for field in fields(Recipe)}
    if unknown:
        raise InputError(f"{path.name} has settings that no recipe knows: {', '.join(sorted(unknown))}.")
    return Recipe(**settings)
