"""The whole pipeline on phantoms with an untrained alignment: contracts, seeds, the gate, cancelling, bad requests."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from MedCLIPSAMLib.engines import choose_device, engine_names, load_engine
from MedCLIPSAMLib.errors import CancelledError, InputError
from MedCLIPSAMLib.pipeline import TextSegmenter
from MedCLIPSAMLib.presence import PresenceCalibration, presence_features
from MedCLIPSAMLib.prompts import wordings
from MedCLIPSAMLib.recipe import Recipe, load_recipe
from MedCLIPSAMLib.results import PromptResult
from MedCLIPSAMLib.samples import load_sample

PROMPT, OTHER = "breast tumor", "both lungs"
REJECTS_ALL = PresenceCalibration(weights=(0.0, 0.0, 0.0), bias=0.0, threshold=0.9)
MAPS = ("saliency", "probability", "mask", "entropy", "mutual_information")


def phantom(height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    """Two bright discs on a noisy ground, uint8."""
    y, x = np.mgrid[:height, :width]
    discs = ((x - 35) ** 2 + (y - 40) ** 2 < 18**2) | ((x - 85) ** 2 + (y - 60) ** 2 < 12**2)
    noise = np.random.default_rng(seed).normal(0, 10, (height, width))
    return np.clip(np.where(discs, 200, 80) + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def build(untrained_segmenter):
    """Return a function that makes a segmenter of its own around the shared models."""

    def build(calibration: PresenceCalibration | None = None, **settings) -> TextSegmenter:
        recipe = replace(untrained_segmenter.recipe, **settings)
        return TextSegmenter(untrained_segmenter.clip, untrained_segmenter.segmenter, recipe, calibration)

    return build


def assert_sound(result: PromptResult, shape: tuple[int, int]) -> None:
    for name in MAPS:
        plane = getattr(result, name)
        assert plane.shape == shape and plane.dtype == (np.bool_ if name == "mask" else np.float32), name
        assert np.isfinite(plane).all() and plane.min() >= 0, name
    assert result.saliency.max() <= 1 and result.probability.max() <= 1
    assert result.entropy.max() <= np.float32(math.log(2))
    assert (result.mutual_information <= result.entropy + 1e-6).all()
    np.testing.assert_array_equal(result.mask, result.probability > 0.5)
    assert result.coarse.mask.shape == shape and result.coarse.mask.dtype == np.bool_
    assert len(result.prompts) == len(result.coarse.components)
    if len(result.prompts):
        x0, y0, x1, y1 = result.prompts.boxes.T
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= shape[1]).all() and (y1 <= shape[0]).all()


def assert_bit_equal(one: PromptResult, other: PromptResult) -> None:
    for name in MAPS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_array_equal(one.prompts.boxes, other.prompts.boxes)
    assert (one.seed, one.presence, one.coarse.components) == (other.seed, other.presence, other.coarse.components)


@pytest.mark.parametrize("method", ["patch_similarity", "m2ib"])
def test_result_keeps_the_contract(build, method):
    segmenter = build(saliency=method)
    image = phantom()
    segmenter.set_image(image)
    result = segmenter.segment(f"  {PROMPT}\n")
    assert_sound(result, image.shape)
    assert result.prompt == PROMPT and result.saliency_method == method
    assert result.mask.any() and result.mutual_information.max() > 0, "three samples that agree everywhere?"
    assert result.saliency.min() == 0 and result.saliency.max() == 1
    assert set(result.seconds) == {"presence", "saliency", "coarse mask", "samples", "image encoding", "mask"}
    assert result.presence.score is None and result.presence.threshold is None and result.presence.accepted
    assert not result.skipped and result.warnings == []
    json.dumps(segmenter.recipe.as_dict())


def test_probability_is_the_mean_over_the_samples(build):
    """Eqs. 21 and 22 by hand, from one-sample runs of the same prompts."""
    segmenter = build()
    image = phantom()
    segmenter.set_image(image)
    result = segmenter.segment(PROMPT, seed=4)
    image_seed = int(np.random.SeedSequence([4, segmenter._content]).generate_state(1)[0])
    samples = [result.prompts]
    for number, wording in enumerate(wordings(PROMPT, 3, 4)[1:], start=1):
        samples.append(segmenter._disturbed_prompts(image, wording, image_seed + number))
    probabilities = []
    for prompts in samples:
        logits, _ = segmenter.segmenter.predict(prompts)
        probabilities.append(1 / (1 + np.exp(-logits.astype(np.float64).max(axis=0))))
    mean = np.mean(probabilities, axis=0)
    np.testing.assert_allclose(result.probability, mean, atol=1e-4)

    def entropy(p: np.ndarray) -> np.ndarray:
        p = np.clip(p, 1e-12, 1 - 1e-12)
        return -p * np.log(p) - (1 - p) * np.log(1 - p)

    np.testing.assert_allclose(result.entropy, entropy(mean), atol=1e-3)
    information = entropy(mean) - np.mean([entropy(p) for p in probabilities], axis=0)
    np.testing.assert_allclose(result.mutual_information, information, atol=1e-3)


def test_one_sample_has_no_mutual_information(build):
    segmenter = build(samples=1)
    segmenter.set_image(phantom())
    result = segmenter.segment(PROMPT)
    assert_sound(result, (90, 120))
    assert result.entropy.max() > 0 and not result.mutual_information.any()


@pytest.mark.parametrize("method", ["patch_similarity", "m2ib"])
def test_repeat_is_bit_equal_whatever_came_between(build, untrained_segmenter, method):
    segmenter = build(saliency=method)
    image = phantom()
    segmenter.set_image(image)
    first, second = segmenter.segment(PROMPT, seed=1), segmenter.segment(OTHER, seed=1)
    again = build(saliency=method)
    again.set_image(phantom(64, 64, seed=9))
    again.segment(OTHER)
    untrained_segmenter.clip.encoder._remembered.clear()
    again.set_image(image.copy())
    assert_bit_equal(again.segment(OTHER, seed=1), second)  # the prompts in the other order
    assert_bit_equal(again.segment(PROMPT, seed=1), first)
    assert np.abs(first.saliency - second.saliency).max() > 0.01


def test_seed_and_content_fix_the_random_draws(build):
    segmenter = build(saliency="m2ib", samples=2)
    segmenter.set_image(phantom())
    first, other = (segmenter.segment(PROMPT, seed=seed) for seed in (0, 2**40))
    assert (first.seed, other.seed) == (0, 2**40)
    assert np.abs(first.saliency - other.saliency).max() > 1e-4
    segmenter.set_image(phantom().astype(np.float64), window=(0, 255))  # the same picture from another file
    assert_bit_equal(segmenter.segment(PROMPT), first)
    content = segmenter._content
    colours = np.repeat(phantom()[..., None], 3, axis=2)
    segmenter.set_image(colours)  # the same picture, saved in colour
    assert_bit_equal(segmenter.segment(PROMPT), first)
    colours[..., 2] //= 2
    contents = set()
    for different in (phantom()[:, ::-1], phantom().T, phantom(seed=1), colours):
        segmenter.set_image(different)
        contents.add(segmenter._content)
    assert len(contents - {content}) == 4, "another image draws other noise"


@pytest.mark.parametrize("kind", ["16 bit", "signed", "float", "bool", "RGB", "16-bit RGB"])
def test_any_kind_of_image(build, kind):
    grey = phantom()
    image = {
        "16 bit": grey.astype(np.uint16) * 200,
        "signed": grey.astype(np.int16) * 8 - 1000,
        "float": grey / 1000,
        "bool": grey > 140,
        "RGB": np.stack([grey, grey // 2, 255 - grey], axis=-1),
        "16-bit RGB": np.stack([grey] * 3, axis=-1).astype(np.uint16) * 256,
    }[kind]
    segmenter = build(samples=1)
    segmenter.set_image(image)
    result = segmenter.segment(PROMPT)
    assert_sound(result, grey.shape)
    assert result.mask.any()


def test_constant_saliency_gives_an_empty_result_and_says_so(build):
    segmenter = build()
    segmenter.clip = copy.copy(segmenter.clip)
    patches, frame = segmenter.clip.patch_embeddings(phantom())
    segmenter.clip.patch_embeddings = lambda image: (np.zeros_like(patches), frame)
    segmenter.set_image(phantom())
    result = segmenter.segment(PROMPT)
    assert_sound(result, (90, 120))
    assert not result.mask.any() and not result.probability.any() and not result.entropy.any()
    assert len(result.prompts) == 0 and not result.skipped
    assert any("nothing stands out" in warning for warning in result.warnings)


class TestGate:
    def test_rejected_prompt_is_skipped(self, build, monkeypatch):
        segmenter = build(REJECTS_ALL)
        monkeypatch.setattr(segmenter.segmenter, "predict", lambda prompts: pytest.fail("the segmenter was asked"))
        segmenter.set_image(phantom())
        for gate in (True, None):
            result = segmenter.segment(PROMPT, gate=gate)
            assert_sound(result, (90, 120))
            assert result.skipped and not result.presence.accepted
            assert (result.presence.score, result.presence.threshold) == (0.5, 0.9)
            for name in ("probability", "mask", "entropy", "mutual_information"):
                assert not getattr(result, name).any(), name
            assert result.saliency.any(), "the saliency is still shown"
            assert len(result.warnings) == 1
            assert "presence 0.50, accepted from 0.90" in result.warnings[0] and "gate off" in result.warnings[0]

    def test_gate_off_segments_with_a_warning(self, build):
        free = build()
        free.set_image(phantom())
        expected = free.segment(PROMPT)
        for segmenter, gate in ((build(REJECTS_ALL), False), (build(REJECTS_ALL, gate=False), None)):
            segmenter.set_image(phantom())
            result = segmenter.segment(PROMPT, gate=gate)
            assert not result.skipped and not result.presence.accepted
            np.testing.assert_array_equal(result.probability, expected.probability)
            assert len(result.warnings) == 1 and "with care" in result.warnings[0]

    def test_a_score_from_outside_replaces_the_images_own(self, build):
        segmenter = build(REJECTS_ALL, samples=1)
        segmenter.set_image(phantom())
        accepted = segmenter.segment(PROMPT, presence_score=0.9)
        assert accepted.presence.accepted and accepted.presence.score == 0.9 and not accepted.skipped
        assert segmenter.segment(PROMPT, presence_score=0.89).skipped

    def test_a_score_without_calibration_is_a_bad_request(self, build):
        segmenter = build(samples=1)
        segmenter.set_image(phantom())
        with pytest.raises(InputError):
            segmenter.segment(PROMPT, presence_score=0.9)

    def test_score_is_the_logistic_regression_on_the_features(self, build):
        calibration = PresenceCalibration(weights=(4.0, -3.0, 2.0), bias=0.3, threshold=0.5)
        segmenter = build(calibration)
        image = phantom()
        segmenter.set_image(image)
        clip = segmenter.clip
        text = clip.encode_texts([PROMPT])[0]
        features = presence_features(clip, image, text)
        # 90 x 120 pixels lie in the upper three quarters of the model's input: 24 of the 32 rows of patches
        similarity = np.sort((clip.patch_embeddings(image)[0][:24] @ text).ravel())
        expected = [similarity[-8:].mean(), clip.encode_images([image])[0] @ text, clip.absent_vector() @ text]
        np.testing.assert_allclose(features, expected, atol=1e-6)
        score = 1 / (1 + math.exp(-(4 * expected[0] - 3 * expected[1] + 2 * expected[2] + 0.3)))
        assert segmenter.presence(PROMPT) == pytest.approx(score, abs=1e-6)
        assert segmenter.segment(PROMPT, gate=False).presence.accepted == (score >= 0.5)

    def test_no_calibration_no_score(self, build):
        segmenter = build()
        segmenter.set_image(phantom())
        assert segmenter.presence(PROMPT) is None


class TestCancel:
    def test_between_all_stages(self, build):
        segmenter = build(saliency="m2ib")
        segmenter.set_image(phantom())
        expected = segmenter.segment(PROMPT)
        asked = []
        segmenter.segment(PROMPT, cancelled=lambda: bool(asked.append(None)))
        assert len(asked) >= 6, "before each of the five stages and between the samples"
        for call in range(1, len(asked) + 1):
            left = iter(range(call))
            with pytest.raises(CancelledError):
                segmenter.segment(PROMPT, cancelled=lambda left=left, call=call: next(left) == call - 1)
        assert_bit_equal(segmenter.segment(PROMPT, cancelled=lambda: False), expected)


class TestBadRequests:
    @pytest.mark.parametrize("prompt", ["", "  \n", "?!", None, "x" * 3000])
    def test_prompt(self, build, prompt):
        segmenter = build()
        segmenter.set_image(phantom())
        with pytest.raises(InputError, match="prompt"):
            segmenter.segment(prompt)

    def test_no_image(self, build):
        for ask in (TextSegmenter.segment, TextSegmenter.presence):
            with pytest.raises(InputError, match="call set_image"):
                ask(build(REJECTS_ALL), PROMPT)

    @pytest.mark.parametrize(
        "image", [np.zeros((40, 40)), phantom()[:12], np.full((40, 40), np.nan), np.zeros((40, 40, 4), np.uint8)]
    )
    def test_unusable_image_leaves_the_one_before(self, build, image):
        segmenter = build(samples=1)
        segmenter.set_image(phantom())
        expected = segmenter.segment(PROMPT)
        with pytest.raises(InputError):
            segmenter.set_image(image)
        assert_bit_equal(segmenter.segment(PROMPT), expected)

    @pytest.mark.parametrize("window", [(300, 400), (10, 10), (20, 10)])
    def test_window_that_shows_nothing_leaves_the_image_before(self, build, window):
        segmenter = build(samples=1)
        segmenter.set_image(phantom())
        expected = segmenter.segment(PROMPT)
        with pytest.raises(InputError, match="window"):
            segmenter.set_image(phantom(seed=3).astype(np.int16), window)
        assert_bit_equal(segmenter.segment(PROMPT), expected)

    def test_negative_seed(self, build):
        segmenter = build(samples=1)
        segmenter.set_image(phantom())
        with pytest.raises(InputError, match="seed"):
            segmenter.segment(PROMPT, seed=-1)

    def test_wording_that_cannot_be_honoured_is_warned_about(self, build):
        segmenter = build(samples=1)
        segmenter.set_image(phantom())
        warnings = segmenter.segment("the larger tumor on the left").warnings
        assert len(warnings) == 2 and '"left"' in warnings[0] and '"larger"' in warnings[1]

    def test_unknown_saliency_method(self, build):
        segmenter = build(saliency="guesswork")
        segmenter.set_image(phantom())
        with pytest.raises(InputError, match="guesswork"):
            segmenter.segment(PROMPT)


class TestEngines:
    def test_unknown_engine_names_the_known_ones(self):
        with pytest.raises(InputError, match=r"engine 'light' is unknown; known: .*lite"):
            load_engine("light")
        assert "lite" in engine_names()

    def test_unknown_preset_names_the_known_ones(self):
        with pytest.raises(InputError, match="engine 'lite' has no preset 'nose'; known: "):
            load_engine("lite", preset="nose")
        recipe = Recipe("toy", "m2ib", {}, presets={"lung": {"samples": 1}, "brain": {"threshold": 0.4}})
        with pytest.raises(InputError, match="known: brain, lung"):
            recipe.with_preset("nose")
        assert recipe.with_preset("brain").threshold == 0.4 and recipe.with_preset("lung").samples == 1
        assert recipe.with_preset(None) is recipe

    @pytest.mark.parametrize("device", ["tpu9", "", "cuda:99", "gpu"])
    def test_unknown_device_names_the_known_ones(self, device):
        with pytest.raises(InputError, match=r"device .* cannot be used .*pass auto, cpu, cuda or mps") as caught:
            choose_device(device)
        assert repr(device) in str(caught.value) and "\n" not in str(caught.value)

    def test_devices_that_are_there(self):
        assert choose_device("cpu") == "cpu" and choose_device("auto") in ("cpu", "cuda")

    def test_shipped_recipe_can_be_written_down(self):
        recipe = load_recipe("lite")
        written = json.loads(json.dumps(recipe.as_dict()))
        assert written["name"] == "lite" and "presets" not in written and "about" not in written
        assert json.loads(json.dumps(Recipe(**written).as_dict())) == written
        for preset in recipe.presets or {}:
            assert recipe.with_preset(preset) != recipe

    def test_trained_engine_on_a_sample(self, lite):
        sample = load_sample("breast-ultrasound")
        lite.set_image(sample.image.array, sample.image.window)
        result = lite.segment(sample.prompt, gate=False)
        assert_sound(result, sample.truth.shape)
        assert result.presence.score is None or 0 <= result.presence.score <= 1
