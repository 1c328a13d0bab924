"""Image and text in, masks and maps out: the stages in the order of the paper's Fig. 3.

    image + text -> saliency -> coarse mask -> visual prompts -> mask
    several masks -> probability -> entropy

Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483. The stages themselves are in saliency/, coarse.py, visual_prompts.py,
sam/, decoding.py and uncertainty.py; this file only passes the data on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from MedCLIPSAMLib.clip.base import VisionLanguageModel
from MedCLIPSAMLib.decoding import sample_probabilities
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import check_image, to_uint8
from MedCLIPSAMLib.model_checks import check_models, model_warnings
from MedCLIPSAMLib.presence import UNCALIBRATED, PresenceCalibration, presence_features
from MedCLIPSAMLib.prompts import Wording, ensemble_embedding, unsupported_wording, wordings
from MedCLIPSAMLib.recipe import Recipe
from MedCLIPSAMLib.results import CoarseMask, Presence, PromptResult, VisualPrompts
from MedCLIPSAMLib.saliency.registry import saliency_map
from MedCLIPSAMLib.sam.base import PromptableSegmenter
from MedCLIPSAMLib.stages import Stages
from MedCLIPSAMLib.uncertainty import SampleMean
from MedCLIPSAMLib.visual_prompts import jitter_boxes

if TYPE_CHECKING:
    from MedCLIPSAMLib.weights import Resolved

KEPT_TEXTS = 256


class TextSegmenter:
    """Segments what a text names. Set an image once, then ask for any number of prompts.

    Example:
        >>> segmenter = load_engine("lite")
        >>> segmenter.set_image(image)
        >>> result = segmenter.segment("breast tumor")
        >>> result.mask, result.entropy
    """

    def __init__(
        self,
        clip: VisionLanguageModel,
        segmenter: PromptableSegmenter,
        recipe: Recipe,
        calibration: PresenceCalibration | None = None,
        device: str = "cpu",
        weights: Sequence[Resolved] = (),
        precision: str = "float32",
    ):
        """Join two models and a recipe; :func:`MedCLIPSAMLib.engines.load_engine` does so by name.

        ``device`` and ``precision`` are those of the models' large products.

        Raises:
            InputError: One of the models cannot do what the recipe wants of it.
        """
        self.clip = clip
        self.segmenter = segmenter
        self.recipe = recipe
        self.calibration = calibration
        self._device = device
        self.precision = precision
        self.weights = tuple(weights)
        self._image: np.ndarray | None = None
        self._content = 0
        self._texts: dict[Wording, np.ndarray] = {}

    @property
    def device(self) -> str:
        """The torch device; "cpu" after another one's memory ran out for one of the models."""
        models = (self.clip, self.segmenter)
        return "cpu" if any(str(model.memory.device) == "cpu" for model in models) else self._device

    @property
    def batch(self) -> int:
        """How many slices :meth:`prepare` encodes together; 1 where that gains nothing."""
        return self.segmenter.batch

    def set_image(self, image: np.ndarray, window: tuple[float, float] | None = None) -> None:
        """Take an image, in 8 bit by ``window``; the models encode it when a stage first needs it.

        Args:
            image: (H, W) or (H, W, 3), any real dtype, at least 16 x 16 pixels, not constant.
            window: Intensities that become black and white; None takes robust percentiles.

        Raises:
            InputError: See :func:`MedCLIPSAMLib.images.check_image`.
        """
        shown = to_uint8(check_image(image), window)
        if shown.min() == shown.max():
            low, high = float(np.min(image)), float(np.max(image))
            at = "the automatic window" if window is None else f"the window {window[0]:g} to {window[1]:g}"
            raise InputError(f"{at} shows nothing of an image with values {low:g} to {high:g}; pass another.")
        # A grey picture in three equal channels draws the same noise and jitter as in one.
        grey = shown.ndim == 3 and (shown == shown[..., :1]).all()
        content = np.ascontiguousarray(shown[..., 0] if grey else shown)
        digest = hashlib.blake2b(content.data, digest_size=8)
        digest.update(str(content.shape).encode())
        self._image = shown
        self._content = int.from_bytes(digest.digest(), "little")

    def encode(self) -> None:
        """Have the segmenter encode the image set before; quick where it has done so for another prompt."""
        self.segmenter.set_image(self._need_image())

    def prepare(self, planes: Sequence[np.ndarray]) -> None:
        """Have the segmenter encode slices together that will be segmented soon: (H, W) or (H, W, 3) uint8."""
        self.segmenter.prepare(planes)

    def presence(self, prompt: str) -> float | None:
        """Return the calibrated score in [0, 1] that the prompt's target is in the image; None without calibration."""
        if self.calibration is None:
            return None
        text = self._text(wordings(prompt, 1)[0])
        return self.calibration.score(presence_features(self.clip, self._need_image(), text))

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
        """Segment what ``prompt`` names in the image set before.

        Every one of the recipe's samples is a paraphrase of the prompt, a noise seed for the saliency and a jitter of
        the boxes; the first is undisturbed, and the saliency, coarse mask and boxes of the result are its own.

        Args:
            prompt: What to find, for example "malignant breast tumour", or "set:" and the name of a prompt set, for
                example "set:breast-ultrasound-p4".
            seed: The run's seed; together with the image's content it fixes every random draw.
            gate: False segments even where the presence score says "not there"; None takes the recipe's choice.
            presence_score: For a slice of a volume, a score that replaces its own, smoothed over its neighbours.
            whole_volume: Whether all slices of a volume are being segmented; the gate is then stricter, since most of
                them do not show the target.
            cancelled: Asked between the stages.
            stage: Told the name of each stage when it begins.

        Returns:
            See :class:`~MedCLIPSAMLib.results.PromptResult`.

        Raises:
            InputError: No image, or an unusable prompt.
            CancelledError: ``cancelled`` said so.
        """
        image = self._need_image()
        if seed < 0:
            raise InputError(f"seed {seed}: it must be 0 or more.")
        if presence_score is not None and self.calibration is None:
            raise InputError("a presence score was given, but this engine has no calibration to judge it by.")
        check_models(self.recipe, self.clip, self.segmenter)
        texts = wordings(prompt, self.recipe.samples, seed)
        image_seed = self._image_seed(seed)
        stages = Stages(cancelled, stage)
        warnings = unsupported_wording(prompt) + model_warnings(self.recipe, self.segmenter, self.weights)
        with stages.stage("presence"):
            score = self.presence(prompt) if presence_score is None else presence_score
            presence = UNCALIBRATED if score is None else self.calibration.presence(score, whole_volume)
        skipped = not presence.accepted and (self.recipe.gate if gate is None else gate)
        if not presence.accepted:
            warnings.append(_absence_warning(prompt, presence, skipped))

        with stages.stage("saliency"):
            saliency = self._saliency(image, texts[0], image_seed)
        with stages.stage("coarse mask"):
            coarse = self.recipe.coarse_mask(saliency, image=image)
            prompts = self.recipe.visual_prompts(coarse, image_seed)

        asked = []
        if len(prompts) and not skipped:
            asked.append(prompts)
            with stages.stage("samples"):
                for number, wording in enumerate(texts[1:], start=1):
                    stages.check()
                    asked.append(self._disturbed_prompts(image, wording, image_seed + number))
        elif not skipped:
            warnings.append("The saliency map is constant: nothing stands out for this prompt.")
        return self._result(prompt.strip(), saliency, coarse, prompts, asked, presence, skipped, seed, stages, warnings)

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
        """Run the stages after the saliency map again, with another threshold or confidence; no text is needed.

        The samples differ in the jitter of their boxes alone, since there is but one saliency map.

        Args:
            saliency: (H, W) in [0, 1], of the image set before.
            prompt: Only copied into the result.
            threshold, minimum_confidence: As for :meth:`Recipe.coarse_mask`; None for the recipe's.
            seed: The run's seed.
            cancelled: Asked between the stages.
            stage: Told the name of each stage when it begins.

        Returns:
            As :meth:`segment`, with a presence that is not known.

        Raises:
            InputError: No image, a map of another size, or a setting outside its range.
            CancelledError: ``cancelled`` said so.
        """
        image = self._need_image()
        if saliency.shape != image.shape[:2]:
            raise InputError(f"the saliency map has shape {saliency.shape}, the image {image.shape[:2]}.")
        image_seed = self._image_seed(seed)
        stages = Stages(cancelled, stage)
        with stages.stage("coarse mask"):
            coarse = self.recipe.coarse_mask(saliency, threshold, minimum_confidence, image)
            prompts = self.recipe.visual_prompts(coarse, image_seed)
        asked, warnings = [], []
        if len(prompts):
            asked.append(prompts)
            for number in range(1, self.recipe.samples):
                rng = np.random.default_rng(image_seed + number)
                asked.append(jitter_boxes(prompts, self.recipe.box_jitter, rng, image.shape))
        else:
            warnings.append("Nothing of the saliency map is above the threshold.")
        return self._result(prompt, saliency, coarse, prompts, asked, UNCALIBRATED, False, seed, stages, warnings)

    def _result(
        self,
        prompt: str,
        saliency: np.ndarray,
        coarse: CoarseMask,
        prompts: VisualPrompts,
        asked: list[VisualPrompts],
        presence: Presence,
        skipped: bool,
        seed: int,
        stages: Stages,
        warnings: list[str],
    ) -> PromptResult:
        """Decode the samples' visual prompts ``asked``, and put the result together."""
        image, mean = self._need_image(), SampleMean()
        if asked:
            with stages.stage("image encoding"):
                self.encode()
            with stages.stage("mask"):
                for probability in sample_probabilities(self.segmenter, asked, image.shape[:2], self.recipe.candidates):
                    mean.add(probability)
        else:
            mean.add(np.zeros(image.shape[:2], np.float32))
        probability = mean.mean
        for model in (self.clip, self.segmenter):
            warnings += model.memory.take_notes()
        return PromptResult(
            prompt=prompt,
            saliency=saliency,
            coarse=coarse,
            prompts=prompts,
            probability=probability,
            mask=self.recipe.final_mask(probability, coarse),
            entropy=mean.entropy(),
            mutual_information=mean.mutual_information(),
            presence=presence,
            skipped=skipped,
            saliency_method=self.recipe.saliency,
            seed=seed,
            seconds=stages.seconds,
            warnings=warnings,
        )

    def _image_seed(self, seed: int) -> int:
        """Return the seed of every random draw: of the run and of the image's content, so that order plays no part."""
        return int(np.random.SeedSequence([seed, self._content]).generate_state(1)[0])

    def _need_image(self) -> np.ndarray:
        if self._image is None:
            raise InputError("there is no image: call set_image before segment.")
        return self._image

    def _text(self, wording: Wording) -> np.ndarray:
        """Return the embedding (D,), of several texts their ensemble; kept, since prompts repeat over the slices."""
        if wording not in self._texts:
            if len(self._texts) >= KEPT_TEXTS:
                self._texts.clear()
            self._texts[wording] = ensemble_embedding(self.clip.encode_texts(list(wording)))
        return self._texts[wording]

    def _saliency(self, image: np.ndarray, wording: Wording, seed: int) -> np.ndarray:
        return saliency_map(self.recipe, self.clip, image, self._text(wording), seed)

    def _disturbed_prompts(self, image: np.ndarray, wording: Wording, seed: int) -> VisualPrompts:
        """Visual prompts of one further sample: another wording, other noise, jittered boxes."""
        coarse = self.recipe.coarse_mask(self._saliency(image, wording, seed), image=image)
        prompts = self.recipe.visual_prompts(coarse, seed)
        return jitter_boxes(prompts, self.recipe.box_jitter, np.random.default_rng(seed), image.shape)


def _absence_warning(prompt: str, presence: Presence, skipped: bool) -> str:
    remedy = "switch the presence gate off to segment it all the same" if skipped else "check the result with care"
    return (
        f'"{prompt}" does not seem to be in this image, or the engine has not learnt it '
        f"(presence {presence.score:.2f}, accepted from {presence.threshold:.2f}); {remedy}."
    )
