"""Saliency methods by name, patch similarity, and what turns a map over the model's input into one over the image."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from small_vit import SmallVit, random_picture, random_text

from MedCLIPSAMLib.clip.lite import LiteClip
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.recipe import Recipe
from MedCLIPSAMLib.released_code import released_saliency
from MedCLIPSAMLib.saliency.gradcam import gradcam
from MedCLIPSAMLib.saliency.gscorecam import gscorecam
from MedCLIPSAMLib.saliency.m2ib import M2IBSettings, m2ib, m2ib_plane
from MedCLIPSAMLib.saliency.normalise import minimum_maximum, to_image
from MedCLIPSAMLib.saliency.patch_similarity import patch_similarity
from MedCLIPSAMLib.saliency.registry import saliency_map


@pytest.fixture(scope="module")
def clip(untrained_segmenter) -> LiteClip:
    return untrained_segmenter.clip


@pytest.fixture(scope="module")
def text(clip) -> np.ndarray:
    return clip.encode_texts(["a round bright mass"])[0]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Wider than high, so that the model input is padded."""
    y, x = np.mgrid[:110, :170]
    ground = np.random.default_rng(0).normal(70, 12, (110, 170))
    return np.clip(np.where((x - 60) ** 2 + (y - 50) ** 2 < 24**2, 190, ground), 0, 255).astype(np.uint8)


class TestNormalise:
    def test_a_constant_map_becomes_zero_with_a_warning(self, caplog):
        with caplog.at_level(logging.WARNING):
            result = to_image(np.full((16, 16), 3.5, np.float32), Frame(40, 60, 256))
        assert result.shape == (40, 60) and result.dtype == np.float32 and not result.any()
        assert "constant" in caplog.text

    def test_a_constant_plane_becomes_zero_with_a_warning(self, caplog):
        with caplog.at_level(logging.WARNING):
            assert not minimum_maximum(np.full((16, 16), 3.5, np.float32)).any()
        assert "constant" in caplog.text

    def test_other_maps_reach_from_0_to_1(self):
        plane = np.random.default_rng(0).normal(-40, 3, (16, 16))
        scaled = minimum_maximum(plane)
        assert scaled.min() == 0 and scaled.max() == 1 and scaled.dtype == np.float32
        np.testing.assert_allclose(np.corrcoef(scaled.ravel(), plane.ravel())[0, 1], 1, atol=1e-6)

    def test_the_map_is_scaled_over_the_image_and_not_over_the_padding(self):
        plane = np.random.default_rng(1).random((16, 16)).astype(np.float32)
        plane[9:] = 1e6  # below an image that takes the upper half
        assert to_image(plane, Frame(128, 256, 256)).std() > 0.1


class TestRegistry:
    def test_methods_by_name(self, untrained_segmenter, clip, image, text):
        recipe = replace(untrained_segmenter.recipe, saliency="m2ib", m2ib={"layer": 2, "beta": 1.0, "steps": 2})
        settings = M2IBSettings(layer=2, beta=1.0, steps=2)
        np.testing.assert_array_equal(
            saliency_map(recipe, clip, image, text, 4), m2ib(clip, image, text, settings=settings, seed=4)
        )
        recipe = replace(recipe, saliency="patch_similarity")
        np.testing.assert_array_equal(saliency_map(recipe, clip, image, text, 4), patch_similarity(clip, image, text))

    def test_class_activation_by_name(self):
        recipe = Recipe("toy", "gradcam", {}, gscorecam={"channels": 5, "batch": 2})
        tower, picture, vector = SmallVit(), random_picture(), random_text()
        np.testing.assert_array_equal(saliency_map(recipe, tower, picture, vector, 4), gradcam(tower, picture, vector))
        got = saliency_map(replace(recipe, saliency="gscorecam"), tower, picture, vector, 4)
        np.testing.assert_array_equal(got, gscorecam(tower, picture, vector, channels=5, batch=2))
        assert tower.batches == [2, 2, 1] * 2

    def test_the_released_programs_map(self):
        """224 x 224, repeated, in 8 bit; from the patches themselves."""
        settings = {"layer": 1, "beta": 0.1, "steps": 3, "copies": 2}
        recipe = Recipe("toy", "m2ib", settings, rules="authors")
        tower, picture, vector = SmallVit(), random_picture(), random_text()
        plane, _ = m2ib_plane(tower, picture, vector, settings=M2IBSettings(**settings), seed=4)
        got = saliency_map(recipe, tower, picture, vector, 4)
        np.testing.assert_array_equal(got, released_saliency(plane, picture.shape))
        assert len(np.unique(got)) <= 256
        plain = saliency_map(replace(recipe, rules="paper"), tower, picture, vector, 4)
        assert 0 < np.abs(got - plain).mean() < 0.02

    def test_unknown_method_names_the_known_ones(self, untrained_segmenter, clip, image, text):
        recipe = replace(untrained_segmenter.recipe, saliency="occlusion")
        with pytest.raises(InputError, match=r"'occlusion' is unknown; known: .*m2ib.*patch_similarity"):
            saliency_map(recipe, clip, image, text, 0)

    def test_patch_similarity_is_the_cosine_of_the_patches(self, clip, image, text):
        patches, frame = clip.patch_embeddings(image)
        np.testing.assert_allclose(np.linalg.norm(patches, axis=-1), 1, atol=1e-5)
        cosine = np.einsum("ijd,d->ij", patches.astype(np.float64), text.astype(np.float64))
        np.testing.assert_allclose(patch_similarity(clip, image, text), to_image(cosine, frame), atol=1e-4)
        assert not patch_similarity(clip, image, np.zeros_like(text)).any()

    def test_patch_similarity_at_two_scales_is_the_mean_of_both(self, clip, image, text):
        """110 x 170 at 0.8: 137 x 212 with black margins of 13, 14 rows and 21, 21 columns."""
        maps = []
        for view in (image, np.pad(image, ((13, 14), (21, 21)))):
            patches, frame = clip.patch_embeddings(view)
            maps.append(frame.restore(patches @ text))
        expected = minimum_maximum((maps[0] + maps[1][13:123, 21:191]) / 2)
        got = patch_similarity(clip, image, text, scales=(1.0, 0.8))
        assert got.shape == image.shape and got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert np.abs(got - patch_similarity(clip, image, text)).max() > 0.01

    @pytest.mark.parametrize("scale", [0.0, -1.0, 1.5])
    def test_scales_outside_the_range_are_refused(self, clip, image, text, scale):
        with pytest.raises(InputError, match=f"scale {scale}"):
            patch_similarity(clip, image, text, scales=(1.0, scale))
