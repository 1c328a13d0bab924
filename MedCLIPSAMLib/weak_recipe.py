"""The settings of an engine ``weak:FOLDER``, and which of its classes a prompt means; loads no model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from MedCLIPSAMLib.ensemble_folder import ModelClass, ModelFolder, read_model_folder
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.recipe_values import from_text

WEAK = "weak:"
_SETTINGS = ("members", "mirroring", "threshold")
_SPELLINGS = (("tumour", "tumor"), ("oedema", "edema"), ("haem", "hem"), ("grey", "gray"), ("colour", "color"))


@dataclass(frozen=True)
class WeakRecipe:
    """What an engine ``weak:FOLDER`` does; it has those parts of :class:`MedCLIPSAMLib.recipe.Recipe` that others read.

    Attributes:
        name: "weak:" and the folder.
        model: What the folder says of itself.
        members: "all" kept checkpoints, or the "last" one alone.
        mirroring: Average over mirrored inputs, see :class:`MedCLIPSAMLib.ensemble.CheckpointEnsemble`.
        threshold: "argmax" for the most probable class, or the probability above which a pixel is in the mask.
        gate, samples: Without meaning here: the network finds the absence of its class by itself, and its samples are
            the checkpoints.
    """

    name: str
    model: ModelFolder
    members: Literal["all", "last"] = "all"
    mirroring: bool = False
    threshold: Literal["argmax"] | float = "argmax"
    gate: bool = False
    samples: int = 1

    segmenter = "nnU-Net"
    presets = None
    reads_text = False  # a prompt only chooses a class, so warnings about its wording have no place

    @property
    def saliency(self) -> str:
        """What the saliency map is: the network's own probability."""
        return "nnU-Net ensemble" if self.members == "all" else "nnU-Net"

    @property
    def prompts(self) -> tuple[str, ...]:
        """Prompts to begin with: those of the classes."""
        return self.model.prompts

    @property
    def window(self) -> tuple[float, float] | None:
        """Intensities that the network saw as black and white in training; None for each image's own."""
        return self.model.window

    @property
    def about(self) -> str:
        """A sentence on the engine."""
        names = ", ".join(one.name for one in self.model.classes)
        return f"An nnU-Net trained with {self.model.supervision}; it finds {names} and nothing else."

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values."""
        model = self.model
        return {
            "name": self.name,
            "saliency": self.saliency,
            "members": self.members,
            "checkpoints": list(model.kept if self.members == "all" else model.kept[-1:]),
            "mirroring": self.mirroring,
            "threshold": self.threshold,
            "kind": model.kind,
            "window": self.window,
            "classes": [{"label": one.label, "name": one.name, "prompt": one.prompt} for one in model.classes],
            "supervision": model.supervision,
            "pseudo_labels": model.pseudo_labels,
            "schedule": model.schedule,
        }

    def with_preset(self, preset: str | None) -> WeakRecipe:
        """Return the recipe itself.

        Raises:
            InputError: A preset is named; there are none.
        """
        if preset is not None:
            raise InputError(f"engine {self.name!r} has no preset {preset!r}; a trained network has none.")
        return self

    def with_settings(self, changes: Mapping[str, Any]) -> WeakRecipe:
        """Return the recipe with single settings replaced, as a user gives them.

        Args:
            changes: ``members``, ``mirroring`` or ``threshold``; a text is read as JSON where it is JSON. "gate" is
                taken and has no effect, so that a caller may switch any engine's gate off.

        Raises:
            InputError: No such setting, or a value that it cannot have.
        """
        read = {name: from_text(value) for name, value in changes.items() if name != "gate"}
        if unknown := [name for name in read if name not in _SETTINGS]:
            raise InputError(f"a trained network has no setting {unknown[0]!r}; it has: {', '.join(_SETTINGS)}.")
        if read.get("members", "all") not in ("all", "last"):
            raise InputError(f"members is {read['members']!r}; pass 'all' or 'last'.")
        if not isinstance(read.get("mirroring", False), bool):
            raise InputError(f"mirroring is {read['mirroring']!r}; pass true or false.")
        threshold = read.get("threshold", "argmax")
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if threshold != "argmax" and not (number and 0 <= threshold < 1):
            raise InputError(f"threshold is {threshold!r}; pass 'argmax' or a probability from 0 to below 1.")
        return replace(self, **read)

    def class_of(self, prompt: str) -> ModelClass:
        """Return the class that a prompt means.

        A class is known by its name or its training prompt, whatever the case, the punctuation and the British or
        American spelling. Anything else is refused, also by a network of one class: its mask would bear a wrong name.

        Raises:
            InputError: It is none of the classes; the message lists them.
        """
        wanted, classes = _normalised(prompt), self.model.classes
        for one in classes:
            if wanted in (_normalised(one.name), _normalised(one.prompt)):
                return one
        known = " or ".join(repr(one.prompt) for one in classes)
        raise InputError(f"this network finds {known} and nothing else, so not {prompt.strip()!r}; pass {known}.")


def load_weak_recipe(engine: str) -> WeakRecipe:
    """Return the settings of an engine ``weak:FOLDER``.

    Raises:
        InputError: No folder is named, or it holds no trained model.
    """
    folder = engine.removeprefix(WEAK).strip()
    if not folder:
        raise InputError("no folder is named; pass weak:FOLDER with the folder of a weakly trained nnU-Net.")
    return WeakRecipe(name=engine, model=read_model_folder(Path(folder)))


def _normalised(text: str) -> str:
    text = " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).split())
    for british, american in _SPELLINGS:
        text = text.replace(british, american)
    return text
