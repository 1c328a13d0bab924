"""Settings of a fine-tuning run, with what the paper says and what it leaves open, and the course of the learning rate.

From the paper (Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483, section 4): learning rate 1e-6, "50% decay rate",
batch 64, temperature 0.6, hardness 0.15, 224 pixels, 85 % for training. It leaves open the number of epochs, the
optimiser, weight decay, warm-up, and whether the 50 % are of the learning rate; here they are: the rate halves every
``decay_epochs``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.losses import dcl_loss, dhn_nce_loss, hn_nce_loss, info_nce_loss

LOSSES: dict[str, Callable[..., Tensor]] = {
    "dhn-nce": dhn_nce_loss,
    "hn-nce": hn_nce_loss,
    "dcl": dcl_loss,
    "info-nce": info_nce_loss,
}
SCHEDULES = ("step", "cosine", "constant")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class ModelDefaults:
    """What a model takes for settings that are not given; see :class:`FinetuneSettings` for their meaning."""

    learning_rate: float
    temperature: float
    weight_decay: float
    dropout: float
    keep_patches: float = 0.0


MODEL_DEFAULTS = {
    # The paper's; the weight decay is that of its released script. Without dropout every division of a batch into
    # chunks or processes gives the same numbers.
    "biomedclip": ModelDefaults(1e-6, 0.6, 0.1, 0.0),
    # Those of its own training (align_lite). The last one was chosen on validation pairs: retrieval is as good as
    # without the term, and segmentation does not suffer.
    "lite": ModelDefaults(1e-3, 0.1, 0.05, 0.0, keep_patches=30.0),
    # As BiomedCLIP, so that the two compare; the paper does not fine-tune this model.
    "clip-vit-b-16": ModelDefaults(1e-6, 0.6, 0.1, 0.0),
}


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that decides a run's numbers, the data aside; a run resumes only with the same.

    Attributes:
        model: "biomedclip", "lite", "clip-vit-b-16", or "finetuned:FOLDER" to go on from an earlier result.
        loss: One of :data:`LOSSES`.
        epochs: Passes over the training pairs.
        steps: Stop after so many optimiser steps, whatever ``epochs`` says; 0 for no such limit.
        batch: Pairs that are contrasted with each other, over all processes together.
        learning_rate: Peak of AdamW; 0 takes the model's own, see :data:`MODEL_DEFAULTS`.
        temperature: Of the loss; 0 takes the model's own.
        beta: Hardness, both directions alike.
        alpha: The positive's weight in HN-NCE.
        weight_decay: Of matrices; biases, normalisations and positions have none. None takes the model's own.
        dropout: In BiomedCLIP's text tower; the others have none. None takes the model's own.
        keep_patches: Of the lite model: weight of the term that keeps the similarity of patches and learnt texts, see
            finetune_lite.py. None takes the model's own; 0 lets it change.
        warmup_steps: Linear; None takes 5 % of all steps, 1000 at most.
        schedule: "step" halves the rate every ``decay_epochs``, "cosine" goes to 0, "constant" stays.
        decay_epochs: Of "step".
        clip_gradient: Largest norm of the gradient; 0 for none.
        locked_image_layers: Of the image tower: the input and so many blocks stay as they are; -1 for all of it.
        locked_text_layers: Likewise of the text tower.
        precision: Of the matrices: "bfloat16" by autocast, "float32", or "auto": the former on GPUs made for it.
            Weights, sums and the loss are in single precision always.
        validation_share: Part of the pairs, by patient where known, that validates; without a file of its own for that.
        minimum_characters: Shorter captions are dropped.
        seed: Of every draw.
    """

    model: str = "biomedclip"
    loss: str = "dhn-nce"
    epochs: int = 20
    steps: int = 0
    batch: int = 64
    learning_rate: float = 0.0
    temperature: float = 0.0
    beta: float = 0.15
    alpha: float = 1.0
    weight_decay: float | None = None
    dropout: float | None = None
    keep_patches: float | None = None
    warmup_steps: int | None = None
    schedule: str = "step"
    decay_epochs: int = 5
    clip_gradient: float = 1.0
    locked_image_layers: int = 0
    locked_text_layers: int = 0
    precision: str = "auto"
    validation_share: float = 0.15
    minimum_characters: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("loss", tuple(LOSSES)), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)!r} is unknown; known: {', '.join(known)}.")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} is {value}; it must be from {low} to {high}.")

    def filled(self, kind: str) -> FinetuneSettings:
        """Return the settings with the model's own values in place of those that were not given.

        Args:
            kind: A key of :data:`MODEL_DEFAULTS`.
        """
        own = {
            field.name: getattr(MODEL_DEFAULTS[kind], field.name)
            for field in fields(ModelDefaults)
            if getattr(self, field.name) is None
            or (field.name in ("learning_rate", "temperature") and getattr(self, field.name) == 0)
        }
        return replace(self, **own)

    def loss_arguments(self) -> dict[str, Any]:
        """Return the settings of the loss, for any of :data:`LOSSES`."""
        return {"temperature": self.temperature, "beta1": self.beta, "beta2": self.beta, "alpha": self.alpha}


_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 1_000_000),
    "steps": (0, 1_000_000_000),
    "batch": (2, 1_000_000),
    "learning_rate": (0, 1),
    "temperature": (0, 100),
    "beta": (0, 100),
    "alpha": (0, 1e6),
    "weight_decay": (0, 10),
    "dropout": (0, 0.9),
    "keep_patches": (0, 1e6),
    "warmup_steps": (0, 1_000_000_000),
    "decay_epochs": (1, 1_000_000),
    "clip_gradient": (0, 1e9),
    "locked_image_layers": (-1, 1000),
    "locked_text_layers": (-1, 1000),
    "validation_share": (0, 0.9),
    "minimum_characters": (0, 100_000),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class Course:
    """How long a run is, and its learning rate at every step.

    Attributes:
        epoch_steps: Optimiser steps in an epoch.
        total: Optimiser steps of the whole run.
        warmup: Steps until the peak.
    """

    settings: FinetuneSettings
    epoch_steps: int
    total: int
    warmup: int

    @classmethod
    def of(cls, settings: FinetuneSettings, epoch_steps: int) -> Course:
        """Return the course of a run; ``settings`` are filled."""
        total = settings.epochs * epoch_steps
        if settings.steps:
            total = settings.steps
        warmup = settings.warmup_steps
        if warmup is None:
            warmup = min(1000, total // 20)
        return cls(settings, epoch_steps, total, warmup)

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        settings = self.settings
        peak = settings.learning_rate
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        if settings.schedule == "step":
            return peak * 0.5 ** (step // self.epoch_steps // settings.decay_epochs)
        if settings.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.total - self.warmup)))
        return peak
