"""What everything around an engine relies on: jobs, volumes, the background process, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from MedCLIPSAMLib.results import PromptResult

if TYPE_CHECKING:
    from MedCLIPSAMLib.presence import PresenceCalibration
    from MedCLIPSAMLib.weights import Resolved


class EngineSettings(Protocol):
    """The recipe of an engine.

    Attributes:
        name: The engine, as the user named it.
        saliency: What the saliency map is.
        samples: How many wordings of the prompt are used.
    """

    @property
    def name(self) -> str: ...

    @property
    def saliency(self) -> str: ...

    @property
    def samples(self) -> int: ...

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values, for ``result.json``."""
        ...

    def with_preset(self, preset: str | None) -> EngineSettings: ...

    def with_settings(self, changes: Mapping[str, Any]) -> EngineSettings: ...


class Engine(Protocol):
    """Segments what a text names: the pipeline's ``TextSegmenter``, or the ``EnsembleSegmenter`` of a trained nnU-Net.

    Attributes:
        recipe: Its settings.
        calibration: Of its presence score; None where it has none, and gates nothing.
        device: torch device.
        weights: The files that it was loaded from.
        batch: How many slices :meth:`prepare` takes together; 1 where that gains nothing.
    """

    recipe: Any
    calibration: PresenceCalibration | None
    device: str
    weights: tuple[Resolved, ...]

    @property
    def batch(self) -> int: ...

    def set_image(self, image: np.ndarray, window: tuple[float, float] | None = None) -> None: ...

    def encode(self) -> None: ...

    def prepare(self, planes: Sequence[np.ndarray]) -> None: ...

    def presence(self, prompt: str) -> float | None: ...

    def segment(
        self,
        prompt: str,
        seed: int = 0,
        *,
        gate: bool | None = None,
        presence_score: float | None = None,
        whole_volume: bool = False,
        cancelled: Callable[[], bool] | None = None,
        stage: Callable[[str], None] | None = None,
    ) -> PromptResult: ...

    def refine(
        self,
        saliency: np.ndarray,
        *,
        prompt: str = "",
        threshold: float | Literal["otsu", "kmeans"] | None = None,
        minimum_confidence: float | None = None,
        seed: int = 0,
        cancelled: Callable[[], bool] | None = None,
        stage: Callable[[str], None] | None = None,
    ) -> PromptResult: ...
