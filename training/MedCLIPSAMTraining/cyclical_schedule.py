"""The cyclical schedule of the checkpoint ensemble: an epoch's learning rate, and the epochs whose weights are kept.

After Zhao et al. (arXiv 2212.06278), as used by Koleilat et al. (arXiv 2409.19483, section 3.3): E epochs in D cycles;
the weights of the last G epochs of every cycle are kept, D * G in all. Epochs count from 0. Numbers in, numbers out:
no torch and no nnU-Net.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from MedCLIPSAMLib.errors import InputError

PLANS_KEY = "medclipsam"
"""Where plans.json keeps the settings; nnU-Net leaves keys that it does not know alone."""
_EXPONENT = 0.9  # of nnU-Net's polynomial decay


@dataclass(frozen=True)
class CyclicalSettings:
    """How long to train, how the learning rate oscillates, and what is kept.

    Attributes:
        epochs: E, a multiple of ``cycles``.
        cycles: D.
        kept_per_cycle: G, in [1, E / D].
        iterations: Batches of an epoch; None for nnU-Net's 250.
        validation_iterations: Batches of an epoch's validation; None for nnU-Net's 50.
        initial_rate: alpha_0, from which the rate decays within a cycle.
        restart_rate: alpha_r, the rate of a cycle's first epoch: 0.01 in the paper's program, 0.1 by Zhao et al.
        cycle_share: gamma in (0, 1], the share of a cycle after which the rate stays.
        seed: Of the first weights, and with the epoch of every draw in training.

    Raises:
        InputError: A value outside these ranges, or the epochs are no multiple of the cycles.
    """

    epochs: int = 600
    cycles: int = 3
    kept_per_cycle: int = 10
    iterations: int | None = None
    validation_iterations: int | None = None
    initial_rate: float = 0.01
    restart_rate: float = 0.01
    cycle_share: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "cycles", "kept_per_cycle", "iterations", "validation_iterations"):
            value = getattr(self, name)
            if value is None and name in ("iterations", "validation_iterations"):
                continue
            if not _whole(value) or value < 1:
                raise InputError(f"{name} is {value!r}; pass a whole number from 1.")
        if self.epochs % self.cycles:
            raise InputError(
                f"{self.epochs} epochs cannot be divided into {self.cycles} equal cycles; pass a multiple of "
                f"{self.cycles}, for example {math.ceil(self.epochs / self.cycles) * self.cycles}."
            )
        if self.kept_per_cycle > self.cycle_length:
            raise InputError(
                f"{self.kept_per_cycle} checkpoints cannot be kept of a cycle of {self.cycle_length} epochs; pass "
                f"kept_per_cycle of at most {self.cycle_length}, or more epochs."
            )
        for name in ("initial_rate", "restart_rate"):
            value = getattr(self, name)
            if not _real(value) or not 0 < value < math.inf:
                raise InputError(f"{name} is {value!r}; pass a learning rate above 0, such as 0.01.")
        if not _real(self.cycle_share) or not 0 < self.cycle_share <= 1:
            raise InputError(f"cycle_share is {self.cycle_share!r}; pass a share above 0 and at most 1.")
        if not _whole(self.seed) or self.seed < 0:
            raise InputError(f"seed is {self.seed!r}; pass a whole number from 0.")

    @property
    def cycle_length(self) -> int:
        """T_c = E / D, in epochs."""
        return self.epochs // self.cycles

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any]) -> CyclicalSettings:
        """Return the settings in ``plans["medclipsam"]``; what is absent has the paper's value.

        Raises:
            InputError: An unknown name (a misspelt one must not become the paper's 600 epochs), or a value that
                cannot be.
        """
        section = plans.get(PLANS_KEY, {})
        if not isinstance(section, Mapping):
            raise InputError(f"{PLANS_KEY} in the plans is {section!r}; pass names and values of the schedule.")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [str(name) for name in section if name not in known]
        if unknown:
            raise InputError(
                f"{PLANS_KEY} in the plans has the unknown setting {unknown[0]!r}; known: {', '.join(known)}."
            )
        return cls(**section)

    def to_plans(self) -> dict[str, Any]:
        """Return what ``plans["medclipsam"]`` shall hold."""
        return dataclasses.asdict(self)


def learning_rate(epoch: int, settings: CyclicalSettings) -> float:
    """Return the learning rate of an epoch.

    With t = epoch mod T_c: alpha_r at t = 0, else alpha_0 * (1 - min(t, gamma * T_c) / E)^0.9. The decay is divided by
    all epochs E, not by those of a cycle, as Zhao et al. and the paper's program have it: within one of three cycles
    the rate falls from 0.01 to 0.00756 only.

    Args:
        epoch: In [0, E).

    Raises:
        InputError: No such epoch.
    """
    if not 0 <= epoch < settings.epochs:
        raise InputError(f"there is no epoch {epoch}; pass one from 0 to {settings.epochs - 1}.")
    position = epoch % settings.cycle_length
    if position == 0:
        return float(settings.restart_rate)
    decayed = min(position, settings.cycle_share * settings.cycle_length)
    return float(settings.initial_rate * (1 - decayed / settings.epochs) ** _EXPONENT)


def kept_epochs(settings: CyclicalSettings) -> list[int]:
    """Return the epochs after which the weights are kept: the last G of every cycle, in order.

    For (E, D, G) = (600, 3, 10): 190 to 199, 390 to 399, 590 to 599. (The paper's program has 189 to 198 and so on,
    which never keeps the last epoch of a cycle; the paper's text says the last ten.)
    """
    ends = range(settings.cycle_length, settings.epochs + 1, settings.cycle_length)
    return [epoch for end in ends for epoch in range(end - settings.kept_per_cycle, end)]


def checkpoint_name(epoch: int) -> str:
    """Return the file name of the weights kept after an epoch."""
    return f"checkpoint_ep{epoch:04d}.pth"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
