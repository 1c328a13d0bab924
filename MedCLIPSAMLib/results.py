"""What leaves the library: plain dataclasses of numpy arrays and numbers, no model and no tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Component:
    """One connected component of a coarse mask.

    Attributes:
        box: (x0, y0, x1, y1) in pixels; pixel i covers [i, i + 1), so x1 and y1 lie behind the last pixel.
        area: Number of pixels.
        confidence: Mean saliency inside, in [0, 1] (Eq. 18).
    """

    box: tuple[int, int, int, int]
    area: int
    confidence: float


@dataclass(frozen=True)
class CoarseMask:
    """The thresholded saliency map (Eqs. 17-19).

    Attributes:
        mask: (H, W) bool, the kept components only.
        threshold: Saliency above which a pixel is foreground, in [0, 1].
        components: The kept components, most confident first.
        labels: (H, W) int32; 0 is background, ``i + 1`` is ``components[i]``.
        dropped: How many components were left out (low confidence, small, or beyond the allowed number).
    """

    mask: np.ndarray
    threshold: float
    components: tuple[Component, ...]
    labels: np.ndarray
    dropped: int = 0


@dataclass(frozen=True)
class VisualPrompts:
    """What the segmenter is asked: one row per coarse component.

    Attributes:
        boxes: (N, 4) float32 as (x0, y0, x1, y1) in image pixels, or None.
        points: (N, P, 2) float32 as (x, y) in image pixels, or None. Rows with fewer points are filled up.
        point_labels: (N, P) int32: 1 inside, 0 outside, -1 filler; None without points.
    """

    boxes: np.ndarray | None = None
    points: np.ndarray | None = None
    point_labels: np.ndarray | None = None

    def __len__(self) -> int:
        rows = self.boxes if self.boxes is not None else self.points
        return 0 if rows is None else len(rows)


@dataclass(frozen=True)
class Presence:
    """Whether the prompt's target is in the image at all.

    Attributes:
        score: Calibrated probability in [0, 1], or None when the engine has no calibration.
        threshold: Score from which on the target counts as present; None without calibration.
        accepted: False when the gate says "not there"; True without calibration, which gates nothing.
    """

    score: float | None
    threshold: float | None
    accepted: bool


@dataclass
class PromptResult:
    """One prompt on one 2D image. All maps are (H, W) in the image's own pixels.

    Attributes:
        prompt: As typed.
        saliency: float32 in [0, 1].
        coarse: Threshold, components and coarse mask.
        prompts: The visual prompts of the undisturbed sample.
        probability: float32 in [0, 1], the mean over the samples.
        mask: bool, probability > 0.5.
        entropy: float32 in nats, Eq. 22 of the mean: [0, ln 2].
        mutual_information: float32 in nats, entropy of the mean less the mean entropy.
        presence: See :class:`Presence`.
        skipped: True when the presence gate stopped the run before the segmenter; the masks are then empty.
        saliency_method: "m2ib", "patch_similarity", ...
        seed: The run's seed; with the image's content it fixes every random draw.
        seconds: Wall time per stage.
        warnings: Sentences for the user.
    """

    prompt: str
    saliency: np.ndarray
    coarse: CoarseMask
    prompts: VisualPrompts
    probability: np.ndarray
    mask: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray
    presence: Presence
    skipped: bool
    saliency_method: str
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class SliceRecord:
    """What is kept of one slice of a volume beside its maps."""

    index: int
    status: str  # "segmented", "skipped by the gate", "outside the range", "blank"
    presence: float | None = None
    components: tuple[Component, ...] = ()
    threshold: float | None = None
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


@dataclass
class VolumeResult:
    """One prompt on a volume; the maps are (K, J, I) like the volume and may be memory-mapped.

    Attributes:
        axis: Array axis (0, 1 or 2) along which slices were taken.
        slices: One record per slice along ``axis``, in order.
        presence_threshold: From where on a slice's score counted as present; None without calibration.
        The other attributes are those of :class:`PromptResult`.
    """

    prompt: str
    axis: int
    saliency: np.ndarray
    coarse: np.ndarray
    mask: np.ndarray
    entropy: np.ndarray
    slices: list[SliceRecord]
    saliency_method: str
    seed: int
    presence_threshold: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
