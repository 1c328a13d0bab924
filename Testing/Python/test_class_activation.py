"""GradCAM and gScoreCAM against plain forms of their own, on a small tower and on a full-size one."""

from __future__ import annotations

import logging
from copy import copy
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata
from small_vit import GRID, SIZE, SmallVit, random_picture, random_text
from tower_reference import (
    enlarged,
    official_model,
    official_pixels,
    onto_image,
    plain_gradcam,
    plain_gscorecam,
    tokens_and_gradients,
)

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.saliency.gradcam import gradcam
from MedCLIPSAMLib.saliency.gscorecam import gscorecam


@pytest.fixture
def tower() -> SmallVit:
    return SmallVit(seed=4)


IMAGE, TEXT = random_picture(1), random_text(1)


def measured_gradient(tower: SmallVit, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations (P, C) before the last attention, and their gradient by finite differences in double precision."""
    exact = copy(tower)
    exact.blocks = [{name: value.double() for name, value in block.items()} for block in tower.blocks]
    exact.embed, exact.head, exact.cls, exact.position = (
        part.double() for part in (tower.embed, tower.head, tower.cls, tower.position)
    )
    last, vector = exact.blocks[-1], torch.from_numpy(text).double()
    tokens = exact.transform(exact.tokens(exact.model_input(image)[0].double()), 0, len(exact.blocks) - 1)
    mean, deviation = tokens.mean(-1, keepdim=True), tokens.var(-1, correction=0, keepdim=True)
    read = (tokens - mean) / (deviation + 1e-5).sqrt()

    def score(change: torch.Tensor) -> torch.Tensor:
        attended = exact.attention(last, read + change)
        return exact.logit_scale * (exact.vectors(exact.rest(last, tokens + attended))[0] @ vector)

    gradient = np.zeros(read.shape[1:])
    for token, channel in np.ndindex(*gradient.shape):
        change = torch.zeros_like(read)
        change[0, token, channel] = 1e-5
        gradient[token, channel] = float(score(change) - score(-change)) / 2e-5
    return read[0, 1:].numpy(), gradient[1:]


class TestSmallTower:
    def test_gradcam_by_finite_differences(self, tower):
        values, gradient = measured_gradient(tower, IMAGE, TEXT)
        plane = np.maximum((values * gradient.mean(axis=0)).sum(axis=1), 0).reshape(GRID, GRID)
        got = gradcam(tower, IMAGE, TEXT)
        assert got.shape == IMAGE.shape and got.dtype == np.float32
        np.testing.assert_allclose(got, onto_image(plane, IMAGE.shape), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("channels", [1, 7, 40, 300])
    def test_gscorecam_one_by_one(self, tower, channels):
        values, gradient = measured_gradient(tower, IMAGE, TEXT)
        planes = values.T.reshape(-1, GRID, GRID)
        pixels = tower.model_input(IMAGE)[0]
        scores = np.zeros(len(planes))
        for index in np.argsort(-gradient.mean(axis=0))[:channels]:
            mask = enlarged(planes[index], SIZE, SIZE)
            mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-6)
            vector = tower.vectors(tower.transform(tower.tokens(pixels * torch.from_numpy(mask).float()), 0, 4))
            scores[index] = tower.logit_scale * float(vector[0] @ torch.from_numpy(TEXT))
        weights = np.exp(scores) / np.exp(scores).sum()
        plane = np.maximum(np.tensordot(weights, planes, axes=1), 0)
        got = gscorecam(tower, IMAGE, TEXT, channels=channels)
        np.testing.assert_allclose(got, onto_image(plane, IMAGE.shape), rtol=0, atol=1e-4)

    def test_gscorecam_runs_in_batches(self, tower):
        expected = gscorecam(tower, IMAGE, TEXT, channels=35, batch=16)
        assert tower.batches == [16, 16, 3]
        for batch in (1, 50):
            np.testing.assert_allclose(
                gscorecam(tower, IMAGE, TEXT, channels=35, batch=batch), expected, rtol=0, atol=1e-5
            )

    def test_gscorecam_takes_smaller_batches_where_memory_is_short(self, tower):
        expected = gscorecam(SmallVit(seed=4), IMAGE, TEXT, channels=35)
        tower.memory_for = 5
        np.testing.assert_allclose(gscorecam(tower, IMAGE, TEXT, channels=35), expected, rtol=0, atol=1e-5)
        assert tower.batches == [16, 8, *[4] * 8, 3]
        assert any("in batches of 4" in note for note in tower.memory.take_notes())

    def test_opposite_texts_have_different_maps(self, tower):
        assert np.abs(gradcam(tower, IMAGE, TEXT) - gradcam(tower, IMAGE, -TEXT)).max() > 0.1
        assert np.abs(gscorecam(tower, IMAGE, TEXT) - gscorecam(tower, IMAGE, -TEXT)).max() > 0.01

    @pytest.mark.parametrize("method", [gradcam, gscorecam])
    def test_the_seed_and_the_global_random_state_play_no_part(self, tower, method):
        expected = method(tower, IMAGE, TEXT, seed=0)
        torch.manual_seed(3)
        np.testing.assert_array_equal(method(tower, IMAGE, TEXT, seed=9), expected)

    def test_a_text_that_nothing_speaks_for_gives_zero_with_a_warning(self, tower, caplog):
        with caplog.at_level(logging.WARNING):
            assert not gradcam(tower, IMAGE, np.zeros_like(TEXT)).any()
        assert "constant" in caplog.text

    @pytest.mark.parametrize("settings", [{"channels": 0}, {"batch": 0}])
    def test_numbers_below_one_are_refused(self, tower, settings):
        with pytest.raises(InputError, match="at least one channel and one image a batch"):
            gscorecam(tower, IMAGE, TEXT, **settings)


class TestLite:
    """The lite engine's own tower, which pads the image instead of squashing it."""

    @pytest.mark.parametrize("method", [gradcam, partial(gscorecam, channels=2)], ids=["gradcam", "gscorecam"])
    def test_a_map_over_the_image(self, untrained_segmenter, method):
        clip = untrained_segmenter.clip
        text = clip.encode_texts(["a round bright mass"])[0]
        image = random_picture(2, (110, 170))
        saliency = method(clip, image, text)
        assert saliency.shape == image.shape and saliency.dtype == np.float32
        assert saliency.min() == 0 and saliency.max() == 1

    def test_gradient_is_that_of_the_similarity(self, untrained_segmenter):
        """Along a random direction, by a difference of two runs of the tower's last block."""
        clip = untrained_segmenter.clip
        text = torch.from_numpy(clip.encode_texts(["a round bright mass"])[0])
        target = clip.activations(random_picture(2, (110, 170)), text)
        rows, columns = target.grid
        assert target.values.shape == target.gradients.shape == (rows * columns, target.values.shape[1])
        block = clip.tower.blocks[-1]
        tokens = clip.image_state(random_picture(2, (110, 170)), len(clip.tower.blocks) - 1).tokens
        torch.testing.assert_close(block.norm1(tokens)[0, 1:], target.values, rtol=0, atol=1e-5)

        def score(patches: torch.Tensor) -> float:
            read = torch.cat([block.norm1(tokens)[:, :1], patches[None]], dim=1)
            x = tokens + block.self_attn(read, read, read, need_weights=False)[0]
            x = x + block.linear2(block.activation(block.linear1(block.norm2(x))))
            return clip.logit_scale * float(clip.tower.image_vectors(x)[0].double() @ text.double())

        direction = target.gradients / target.gradients.norm()
        with torch.no_grad():
            measured = (score(target.values + 0.5 * direction) - score(target.values - 0.5 * direction)) / 1.0
        assert measured == pytest.approx(float(target.gradients.norm()), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("method", [gradcam, partial(gscorecam, channels=10, batch=1)], ids=["gradcam", "gscorecam"])
def test_the_trained_tower_finds_a_brain_tumour(lite, data_dir, method):
    """The probability that a pixel of the tumour has a higher saliency than one beside it."""
    folder = data_dir / "brain_mri_tumour" / "test"
    text = lite.clip.encode_texts(["brain tumor"])[0]
    for file in sorted((folder / "images").iterdir())[: 3 if method is gradcam else 1]:
        tumour = np.asarray(Image.open(folder / "masks" / file.name)) > 0
        ranks = rankdata(method(lite.clip, np.asarray(Image.open(file)), text)).reshape(tumour.shape)
        inside, outside = tumour.sum(), (~tumour).sum()
        probability = (ranks[tumour].sum() - inside * (inside + 1) / 2) / (inside * outside)
        assert probability > 0.85, (file.name, probability)


@pytest.mark.slow
class TestBiomedCLIP:
    """At full size with random weights, against open_clip's own model."""

    IMAGE = random_picture(3, (150, 220))
    TEXT = random_text(5, 512)

    @pytest.fixture
    def model(self):
        from full_models import biomedclip_model

        return biomedclip_model()

    def test_gradcam(self, model):
        plane = plain_gradcam(official_model(), official_pixels(self.IMAGE), torch.from_numpy(self.TEXT))
        got = gradcam(model, self.IMAGE, self.TEXT)
        np.testing.assert_allclose(got, onto_image(plane, self.IMAGE.shape), rtol=0, atol=1e-4)

    def test_gscorecam(self, model):
        plane = plain_gscorecam(official_model(), official_pixels(self.IMAGE), torch.from_numpy(self.TEXT), channels=9)
        got = gscorecam(model, self.IMAGE, self.TEXT, channels=9, batch=4)
        np.testing.assert_allclose(got, onto_image(plane, self.IMAGE.shape), rtol=0, atol=1e-4)

    def test_behind_the_last_attention_no_patch_has_a_gradient(self):
        """Why the activations are taken before it: MedCLIP-SAM's program names the second normalisation."""
        official = official_model()
        last = official.visual.trunk.blocks[-1]
        pixels, text = official_pixels(self.IMAGE), torch.from_numpy(self.TEXT)
        _, behind = tokens_and_gradients(official, last.norm2, pixels, text)
        _, before = tokens_and_gradients(official, last.norm1, pixels, text)
        assert not behind[1:].any() and behind[0].any()
        assert before[1:].any(dim=1).all()
