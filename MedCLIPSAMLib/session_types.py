"""What goes into a session and comes out of it: requests, events, the state of a run, rows of the results table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Scope = Literal["slice", "range", "volume"]
State = Literal["idle", "running", "cancelling"]
Decision = Literal["", "accepted", "rejected"]


@dataclass(frozen=True)
class RunRequest:
    """What to segment, and how.

    Attributes:
        volume_id: MRML id of a scalar or vector volume.
        prompts: One segment each.
        scope: "slice" (``axis`` and ``index`` say which), "range" (``slice_range``) or "volume".
        axis: Array axis 0, 1 or 2 along which slices are taken; None for the axis of acquisition.
        index: The slice, from 0, in slice mode.
        slice_range: (first, last), from 0, both included, in range mode.
        segmentation_id: Where to put the segments; None for the volume's own segmentation, made when it is missing.
        engine, preset, device: As for :func:`MedCLIPSAMLib.engines.load_engine`.
        seed: The run's seed.
        gate: False segments also where the engine says that the target is not there.
        samples: Samples behind the entropy; None for the recipe's number.
        window: Intensities that become black and white; None takes robust percentiles of the whole volume.
    """

    volume_id: str
    prompts: tuple[str, ...]
    scope: Scope = "slice"
    axis: int | None = None
    index: int | None = None
    slice_range: tuple[int, int] | None = None
    segmentation_id: str | None = None
    engine: str = "lite"
    preset: str | None = None
    device: str = "auto"
    seed: int = 0
    gate: bool = True
    samples: int | None = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class SessionEvent:
    """Something that the user interface may want to show.

    Attributes:
        kind: "progress"; "result" (one prompt is in the scene); then one of "finished", "failed", "cancelled" ends
            every run; "device" after :meth:`Session.warm_up`; "log" is a line for the log.
        text: For people.
        data: "result": "segmentation_id" and "prompt"; "device": what the child said about it.
    """

    kind: Literal["progress", "result", "finished", "failed", "cancelled", "device", "log"]
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Status:
    """How far the run is.

    Attributes:
        stage: For example "loading engine", "saliency", "slices".
        done, total: Slices, or prompts on a single slice; total 0 while it is not known.
        seconds_left: None while it is not known.
    """

    stage: str = ""
    done: int = 0
    total: int = 0
    seconds_left: float | None = None

    def text(self) -> str:
        """Return the state as a short line, for example "slice 12 of 60, 0:48 left"."""
        if not self.total:
            return self.stage
        line = f"{self.stage} {min(self.done + 1, self.total)} of {self.total}"
        if self.seconds_left is not None:
            line += f", {duration(self.seconds_left)} left"
        return line


@dataclass(frozen=True)
class ResultRow:
    """One prompt's result, read from the scene.

    Attributes:
        prompt: As typed.
        scope: "slice 12", "slices 3 to 40" or "volume".
        size, unit: Volume in "mL", or area in "mm²" of a result on a single slice.
        mean_saliency: Inside the mask, in [0, 1]; None for an empty mask.
        mean_entropy: Inside the mask, in nats; None for an empty mask.
        confidence: Of the most confident component (Eq. 18), in [0, 1]; None without one.
        presence, presence_threshold: Calibrated score that the target is there, and from where on it counts as present;
            None for an engine without calibration. In volumes the highest of the slices' scores.
        seconds: Computing time of the run for this prompt.
        decision: The user's.
        warnings: Sentences for the user.
        mask_segment_id, coarse_segment_id: In the segmentation; None if the user removed it.
        saliency_node_id, entropy_node_id: In the scene; None if the user removed it.
        threshold, minimum_confidence: Set by the user; None where the recipe's own rules hold.
        used_threshold: The saliency threshold in effect: the slice's, or the median of the slices.
    """

    prompt: str
    scope: str
    size: float
    unit: str
    mean_saliency: float | None
    mean_entropy: float | None
    confidence: float | None
    presence: float | None
    presence_threshold: float | None
    seconds: float
    decision: Decision
    warnings: tuple[str, ...]
    mask_segment_id: str | None
    coarse_segment_id: str | None
    saliency_node_id: str | None
    entropy_node_id: str | None
    threshold: float | None
    minimum_confidence: float | None
    used_threshold: float | None


def duration(seconds: float) -> str:
    """Return seconds as "0:48" or "1:02:05"."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
