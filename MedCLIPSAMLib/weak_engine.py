"""The engine ``weak:FOLDER``: a trained nnU-Net checkpoint ensemble behind the surface of the pipeline.

    image -> mean softmax of the checkpoints (Eq. 21) -> mask, entropy (Eq. 22)

A prompt only chooses the class. There is no coarse stage: ``saliency`` is the class's mean probability, and ``coarse``
the final mask itself, whose components have the mean probability inside as confidence. Presence is not known.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from MedCLIPSAMLib.coarse import coarse_mask
from MedCLIPSAMLib.ensemble import IMAGE_SPACING, CheckpointEnsemble, EnsemblePrediction
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import check_image, to_uint8
from MedCLIPSAMLib.presence import UNCALIBRATED
from MedCLIPSAMLib.results import CoarseMask, PromptResult, VisualPrompts
from MedCLIPSAMLib.stages import Stages
from MedCLIPSAMLib.uncertainty import binary_entropy
from MedCLIPSAMLib.weak_recipe import WeakRecipe
from MedCLIPSAMLib.weight_entry import Resolved

if TYPE_CHECKING:
    from MedCLIPSAMLib.presence import PresenceCalibration

_BATCH = 8  # slices for which a checkpoint is opened once; where the network is quick, opening it takes as long
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow and nnU-Net's readers do


class EnsembleSegmenter:
    """Has the surface of :class:`MedCLIPSAMLib.pipeline.TextSegmenter`, see :mod:`MedCLIPSAMLib.engine_interface`.

    Attributes:
        recipe: Settings and classes.
        ensemble: The network.
        weights: The checkpoints.
        calibration: None: the engine gates nothing.
    """

    calibration: PresenceCalibration | None = None

    def __init__(self, recipe: WeakRecipe, device: str = "cpu") -> None:
        """Load the model of a recipe.

        Raises:
            InputError: A file of the model cannot be used.
            ChecksumError: A file is not the one that was trained.
            MedCLIPSAMError: nnU-Net is not installed.
        """
        self.recipe = recipe
        self.ensemble = CheckpointEnsemble(recipe.model, device, members=recipe.members, mirroring=recipe.mirroring)
        self.weights = tuple(
            Resolved(Path(name).name, recipe.model.path / name, recipe.model.sha256[name], "unverified")
            for name in self.ensemble.files
        )
        self._image: np.ndarray | None = None
        self._key = b""
        self._kept: OrderedDict[bytes, EnsemblePrediction] = OrderedDict()

    @property
    def device(self) -> str:
        """The torch device; "cpu" after another one's memory ran out."""
        return self.ensemble.device

    @property
    def batch(self) -> int:
        """How many slices :meth:`prepare` takes together; one on a CPU, where a run must answer a cancel."""
        return 1 if self.device.startswith("cpu") else _BATCH

    @property
    def takes_whole_volumes(self) -> bool:
        """Whether the network was trained on volumes: it then has no use for single slices."""
        return self.recipe.model.kind == "volumes"

    def set_image(self, image: np.ndarray, window: tuple[float, float] | None = None) -> None:
        """Take an image; the network sees it when a result is first asked for.

        Args:
            image: (H, W) or (H, W, 3), any real dtype, at least 16 x 16 pixels, not constant.
            window: Intensities that become black and white; None takes robust percentiles. A network that was trained
                with a window sees that one, whatever is passed; only a slice that is in 8 bit already stays as it is.

        Raises:
            InputError: See :func:`MedCLIPSAMLib.images.check_image`.
        """
        image = check_image(image)
        windowed = image.dtype == np.uint8 and window == (0.0, 255.0)
        self._image = image if windowed else to_uint8(image, self.recipe.window or window)
        self._key = _content(self._image)

    def encode(self) -> None:
        """Do nothing: there is no encoding apart from the prediction."""

    def prepare(self, planes: Sequence[np.ndarray]) -> None:
        """Predict slices together that will be segmented soon: (H, W) or (H, W, 3) uint8."""
        if self.takes_whole_volumes:
            return
        new = {key: plane for plane in planes if (key := _content(plane)) not in self._kept}
        if new:
            self._predict(new, None)

    def presence(self, prompt: str) -> None:
        """Return None: whether the class is there at all is not known beyond the mask."""

    def predict(self, check: Callable[[], None] | None = None) -> EnsemblePrediction:
        """Return all classes' probabilities in the image set before.

        Args:
            check: Called before each checkpoint; ends the run by raising.

        Raises:
            InputError: No image, or a network of volumes.
        """
        image = self._need_image()
        if self.takes_whole_volumes:
            raise InputError("this network was trained on volumes and cannot segment a single image; pass the volume.")
        if self._key not in self._kept:
            self._predict({self._key: image}, check)
        return self._kept[self._key]

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
    ) -> PromptResult:
        """Segment the class that ``prompt`` means in the image set before.

        Args:
            prompt: Name or training prompt of a class, see :meth:`WeakRecipe.class_of`.
            seed: Only copied into the result: nothing is drawn.
            gate, whole_volume: Without effect.
            presence_score: Must be None.
            cancelled: Asked before each checkpoint.
            stage: Told the name of each stage when it begins.

        Returns:
            ``probability`` and ``saliency``: the class's mean probability; ``entropy``: Eq. 22 over all classes, in
            [0, ln R]; ``mask`` and ``coarse``: the same mask.

        Raises:
            InputError: No image, an unknown prompt, or a network of volumes.
            CancelledError: ``cancelled`` said so.
        """
        if presence_score is not None:
            raise InputError("a presence score was given, but this engine has no calibration to judge it by.")
        if seed < 0:
            raise InputError(f"seed {seed}: it must be 0 or more.")
        image = self._need_image()
        chosen, warnings = self.recipe.class_of(prompt), []
        stages = Stages(cancelled, stage)
        if image.ndim == 3 and self.ensemble.channels == 1 and (image != image[..., :1]).any():
            warnings.append("The network was trained on grey images; it sees this one without its colours.")
        with stages.stage("network"):
            prediction = self.predict(stages.check)
        warnings += self.ensemble.take_notes()
        threshold = None if self.recipe.threshold == "argmax" else float(self.recipe.threshold)
        probability = prediction.probabilities[chosen.label]
        mask = prediction.mask(chosen.label, threshold)
        return PromptResult(
            prompt=prompt.strip(),
            saliency=probability,
            coarse=mask_as_coarse(mask, probability, threshold),
            prompts=VisualPrompts(),
            probability=probability,
            mask=mask,
            entropy=prediction.entropy,
            mutual_information=prediction.mutual_information,
            presence=UNCALIBRATED,
            skipped=False,
            saliency_method=self.recipe.saliency,
            seed=seed,
            seconds=stages.seconds,
            warnings=warnings,
        )

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
    ) -> PromptResult:
        """Make another mask of a probability map: another threshold, or only components of some confidence.

        Args:
            saliency: (H, W) in [0, 1], the ``saliency`` of a result, which is a probability.
            prompt, seed: Only copied into the result.
            threshold: None for 0.5.
            minimum_confidence: Of a component, its mean probability; None keeps all.
            cancelled, stage: As for :meth:`segment`.

        Returns:
            The entropy is that of the two classes "this one" and "anything else", since the map says no more; mutual
            information is 0.

        Raises:
            InputError: No image, a map of another size, or a setting outside its range.
            CancelledError: ``cancelled`` said so.
        """
        image = self._need_image()
        if saliency.shape != image.shape[:2]:
            raise InputError(f"the probability map has shape {saliency.shape}, the image {image.shape[:2]}.")
        stages = Stages(cancelled, stage)
        with stages.stage("mask"):
            coarse = coarse_mask(
                saliency,
                method=0.5 if threshold is None else threshold,
                minimum_confidence=0.0 if minimum_confidence is None else minimum_confidence,
            )
            probability = np.asarray(saliency, np.float32)
        return PromptResult(
            prompt=prompt,
            saliency=probability,
            coarse=coarse,
            prompts=VisualPrompts(),
            probability=probability,
            mask=coarse.mask,
            entropy=binary_entropy(probability),
            mutual_information=np.zeros_like(probability),
            presence=UNCALIBRATED,
            skipped=False,
            saliency_method=self.recipe.saliency,
            seed=seed,
            seconds=stages.seconds,
            warnings=[],
        )

    def _predict(self, images: Mapping[bytes, np.ndarray], check: Callable[[], None] | None) -> None:
        """Predict images and keep the results of the last few, for further prompts and for slices made ahead."""
        arrays = [self._channels(image) for image in images.values()]
        predictions = self.ensemble.predict_together(arrays, [IMAGE_SPACING] * len(arrays), cancelled=check)
        self._kept.update(zip(images, predictions, strict=True))
        while len(self._kept) > self.batch + 1:
            self._kept.popitem(last=False)

    def _channels(self, image: np.ndarray) -> np.ndarray:
        """Return (C, 1, H, W) float32 with the network's number of channels."""
        if self.ensemble.channels not in (1, 3):
            raise InputError(f"the network takes {self.ensemble.channels} channels; an image has 1 or 3.")
        if self.ensemble.channels == 3:
            image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
            return image.transpose(2, 0, 1)[:, None].astype(np.float32)
        if image.ndim == 3:
            same = not (image != image[..., :1]).any()
            image = image[..., 0] if same else np.rint(image.astype(np.float32) @ _GREY)
        return image[None, None].astype(np.float32)

    def _need_image(self) -> np.ndarray:
        if self._image is None:
            raise InputError("there is no image: call set_image before segment.")
        return self._image


def mask_as_coarse(mask: np.ndarray, probability: np.ndarray, threshold: float | None) -> CoarseMask:
    """Return a final mask (H, W) as a coarse one, with the mean probability of each component as its confidence."""
    coarse = coarse_mask(probability, foreground=mask, minimum_confidence=0.0)
    return replace(coarse, threshold=0.5 if threshold is None else threshold)


def _content(image: np.ndarray) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
    digest.update(str(image.shape).encode())
    return digest.digest()
