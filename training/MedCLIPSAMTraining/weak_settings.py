"""Everything that decides the result of a weakly supervised training, and what only decides how it is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.cyclical_schedule import CyclicalSettings

CONFIGURATIONS = ("2d", "3d_fullres")
PLANS = ("default", "small")
FOLDS = 5
"""Parts of the cross-validation that ``splits_final.json`` describes, as nnU-Net's own."""
ALL = "all"
BACKGROUND = "background"


@dataclass(frozen=True)
class SelectionRules:
    """Which pseudo-labels are trusted.

    Attributes:
        minimum_confidence: Of a prompt's coarse finding (Eqs 18/19), in [0, 1]; 0 takes all.
        maximum_entropy: Of a prompt's result, mean in nats where the probability is above 0.05, in [0, ln 2]; None
            takes all.
    """

    minimum_confidence: float = 0.0
    maximum_entropy: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_confidence <= 1:
            raise InputError(f"minimum confidence {self.minimum_confidence}: it must be from 0 to 1.")
        if self.maximum_entropy is not None and not self.maximum_entropy > 0:
            raise InputError(
                f"maximum entropy {self.maximum_entropy}: it must be above 0, in nats; {math.log(2):.3f} allows all."
            )


@dataclass(frozen=True)
class WeakSettings:
    """What decides the numbers of the result; a work folder belongs to one set of them.

    Attributes:
        data: Folder of images or volumes, or a cohort folder.
        masks: Folder of true masks in place of a cohort; None for pseudo-labels.
        prompts: The classes 1..R-1 in this order; empty takes those of the cohort.
        engine, preset, changes: Of the cohort, see :func:`MedCLIPSAMLib.engines.load_engine`.
        window: Intensities shown as black and white, for the engine and, of 2D images, for the network; None for each
            file's own.
        rules: Which pseudo-labels are trusted.
        configuration: nnU-Net's, "2d" or, for volumes, "3d_fullres".
        plans: "default" as nnU-Net plans for a GPU; "small" for a CPU, see nnunet_plans.py.
        folds: "all" trains on every case; "0" .. "4" leave a fifth of the patients out for validation.
        schedule: Of the training.
        seed: Of the cohort and of the training.
    """

    data: Path
    masks: Path | None = None
    prompts: tuple[str, ...] = ()
    engine: str = "lite"
    preset: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    window: tuple[float, float] | None = None
    rules: SelectionRules = field(default_factory=SelectionRules)
    configuration: str = "2d"
    plans: str = "default"
    folds: tuple[str, ...] = (ALL,)
    schedule: CyclicalSettings = field(default_factory=CyclicalSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("configuration", self.configuration, CONFIGURATIONS)
        _one_of("plans", self.plans, PLANS)
        allowed = (ALL, *map(str, range(FOLDS)))
        if not self.folds or len(set(self.folds)) < len(self.folds):
            raise InputError(f"folds {', '.join(self.folds) or 'none'}: name one or more, each once.")
        for fold in self.folds:
            _one_of("fold", fold, allowed)
        if ALL in self.folds and len(self.folds) > 1:
            raise InputError(
                "fold all together with others: the network of all cases has seen what the other folds keep apart; "
                "train it into another folder."
            )
        spelt = [" ".join(prompt.split()).lower() for prompt in self.prompts]
        if twice := [prompt for number, prompt in enumerate(spelt) if prompt in spelt[:number]]:
            raise InputError(f"the prompt {twice[0]!r} is given twice; leave one of the two out.")
        if BACKGROUND in spelt:
            raise InputError(f"the prompt {BACKGROUND!r} is nnU-Net's name for what is no class; choose another.")
        if self.window is not None and not self.window[1] > self.window[0]:
            low, high = self.window
            raise InputError(f"window ({low:g}, {high:g}): the upper intensity must be above the lower one.")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings in JSON's types, as they are read again from a work folder."""
        values = asdict(self) | {"data": str(self.data), "masks": None if self.masks is None else str(self.masks)}
        return json.loads(json.dumps(values))


@dataclass(frozen=True)
class WeakOptions:
    """What may change between stop and resume.

    Attributes:
        output: The model folder.
        work: Folder of the stages.
        device: "auto", "cpu", "cuda", "mps".
        workers: Processes beside the main one that preprocess and augment; None takes what the machine has, and for
            the training on a CPU none: a resumed run then goes on to the same bits.
    """

    output: Path
    work: Path
    device: str = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers {self.workers}: it must be 0 or more.")


def difference(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name what differs between two sets of settings, as "epochs 6 in place of 9"."""
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += difference(old, new, f"{prefix}{name} ")
        elif old != new:
            found.append(f"{prefix}{name} {_text(old)} in place of {_text(new)}")
    return found


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name} {value!r} is unknown; known: {', '.join(known)}.")
