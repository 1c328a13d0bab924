"""M2IB saliency against its plain form, and the information term against textbook numbers."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from m2ib_reference import PlainTower, full_forward_m2ib
from small_vit import SmallVit, random_picture, random_text
from tower_reference import official_model, official_pixels, onto_image, plain_m2ib

from MedCLIPSAMLib.clip.lite import LiteClip
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.saliency.m2ib import M2IBSettings, bottleneck, information_nats, m2ib, m2ib_plane
from MedCLIPSAMLib.saliency.normalise import to_image

SETTINGS = M2IBSettings(layer=0, beta=0.1, steps=10, copies=2)


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


@pytest.fixture(scope="module")
def plain(clip) -> PlainTower:
    return PlainTower(clip)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_equals_the_plain_form(clip, plain, image, text, layer, beta):
    settings = replace(SETTINGS, layer=layer, beta=beta)
    features = plain.encode(image)
    got = m2ib(clip, image, text, settings=settings, seed=3)
    reference = full_forward_m2ib(plain, image, text, settings, seed=3, features=features)
    assert got.shape == image.shape and got.dtype == np.float32
    assert got.min() == 0 and got.max() == 1
    np.testing.assert_allclose(got, reference, rtol=0, atol=1e-4)
    # the optimisation moved the map: it is not that of the untouched bottleneck
    start = full_forward_m2ib(plain, image, text, replace(settings, steps=1), seed=3, features=features)
    assert np.abs(reference - start).max() > 0.05


def test_equals_the_plain_form_through_the_encoder(clip, plain, image, text):
    """The encoder runs at every step for every copy; its weights are frozen, else this alone takes half a minute."""
    settings = replace(SETTINGS, layer=1, steps=4, copies=1)
    plain = copy.deepcopy(plain)
    plain.encoder.requires_grad_(False)
    got = m2ib(clip, image, text, settings=settings, seed=1)
    reference = full_forward_m2ib(plain, image, text, settings, seed=1)
    np.testing.assert_allclose(got, reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_last_block_for_the_cls_token_alone_changes_nothing(clip, image, layer):
    """Neither the vectors nor their gradient."""
    state = clip.image_state(image, layer)
    noise = torch.randn((2, *state.tokens.shape[1:]), generator=torch.Generator().manual_seed(0))
    tokens = (state.tokens + 0.5 * noise).requires_grad_(True)
    weights = torch.randn(256, generator=torch.Generator().manual_seed(1))

    def gradient(vectors: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((vectors @ weights).sum(), tokens)[0]

    short = clip.finish(tokens, layer)
    whole = clip.tower.with_position(tokens) if layer == 0 else tokens
    full = clip.tower.image_vectors(clip.tower.transform(whole, first=layer))
    torch.testing.assert_close(short, full, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient(short), gradient(full), rtol=0, atol=1e-5)
    torch.testing.assert_close(short.norm(dim=-1), torch.ones(2), rtol=0, atol=1e-5)


def test_every_layer_finishes_to_the_same_image_vector(clip, image):
    expected = clip.encode_images([image])
    for layer in range(len(clip.tower.blocks)):
        vectors = clip.finish(clip.image_state(image, layer).tokens, layer)
        np.testing.assert_allclose(vectors.detach().numpy(), expected, rtol=0, atol=1e-5)


def test_the_seed_fixes_the_map(clip, image, text):
    first = m2ib(clip, image, text, settings=SETTINGS, seed=5)
    np.testing.assert_array_equal(m2ib(clip, image, text, settings=SETTINGS, seed=5), first)
    torch.manual_seed(99)  # the global generator plays no part
    torch.rand(7)
    np.testing.assert_array_equal(m2ib(clip, image, text, settings=SETTINGS, seed=5), first)
    assert np.abs(m2ib(clip, image, text, settings=SETTINGS, seed=6) - first).max() > 1e-4


def test_global_random_state_is_left_alone(clip, image, text):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    m2ib(clip, image, text, settings=replace(SETTINGS, steps=1), seed=5)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [-1, 4, 9])
def test_a_layer_that_does_not_exist_is_refused(clip, image, text, layer):
    with pytest.raises(InputError, match=f"layer {layer}: the lite image tower has layers 0 to 3"):
        m2ib(clip, image, text, settings=replace(SETTINGS, layer=layer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least one step and one copy"),
        ({"copies": 0}, "at least one step and one copy"),
        ({"map": "mean"}, "no map 'mean'; choose 'capacity' or 'lambda'"),
        ({"map": "lambda", "steps": 1}, "take at least two steps"),
    ],
)
def test_settings_without_meaning_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(SETTINGS, **change)


def test_no_gradient_reaches_the_weights(clip, image, text):
    """Also where a caller left the weights trainable."""
    trainable = copy.copy(clip)
    trainable.tower = copy.deepcopy(clip.tower).requires_grad_(True)
    m2ib(trainable, image, text, settings=replace(SETTINGS, steps=2))
    assert all(weight.grad is None for weight in trainable.tower.parameters())
    assert not any(weight.requires_grad for weight in clip.tower.parameters())
    assert not any(weight.requires_grad for weight in clip.encoder.encoder.parameters())


def test_more_beta_leaves_less_information(clip, image, text):
    tokens = clip.image_state(image, 0).tokens[0]
    left = []
    for beta in (0.0, 0.1, 1.0, 10.0):
        alpha = bottleneck(clip, tokens, torch.from_numpy(text), replace(SETTINGS, beta=beta), 0)
        left.append(float(information_nats(tokens, alpha).mean()))
    assert left == sorted(left, reverse=True) and left[-1] < 0.9 * left[0], left


class TestSmallTower:
    """What concerns every token-based tower, on one that takes no time."""

    SETTINGS = M2IBSettings(layer=1, beta=0.1, steps=6, copies=5)

    def run(self, tower: SmallVit, **change) -> np.ndarray:
        return m2ib(tower, random_picture(), random_text(), settings=replace(self.SETTINGS, **change), seed=2)

    def test_the_lambda_map_is_the_mean_of_lambda(self):
        """Read where the capacity is: before the last update."""
        tower, text = SmallVit(), torch.from_numpy(random_text())
        state = tower.image_state(random_picture(), 1)
        tokens = state.tokens[0]
        alpha = torch.full_like(tokens, 5.0).requires_grad_(True)
        optimiser = torch.optim.Adam([alpha], lr=1.0)
        generator = torch.Generator().manual_seed(2)
        for _ in range(6):
            keep = torch.sigmoid(alpha)
            disturbed = keep * tokens + (1 - keep) * torch.randn((5, *tokens.shape), generator=generator)
            reference, capacity = keep.detach().clone(), information_nats(tokens, alpha)
            optimiser.zero_grad()
            (0.1 * capacity.mean() - (tower.finish(disturbed, 1) @ text).mean()).backward()
            optimiser.step()
        got = self.run(SmallVit(), map="lambda")
        expected = reference.mean(dim=-1)[1:].reshape(6, 6).numpy()
        np.testing.assert_allclose(got, to_image(expected, state.frame), rtol=0, atol=1e-5)
        expected = capacity.detach().sum(dim=-1)[1:].reshape(6, 6).numpy()
        np.testing.assert_allclose(self.run(SmallVit()), to_image(expected, state.frame), rtol=0, atol=1e-5)
        assert np.abs(got - self.run(SmallVit())).max() > 0.05

    @pytest.mark.parametrize("memory_for", [4, 2, 1])
    def test_copies_in_smaller_batches_give_the_same_map(self, memory_for):
        tower = SmallVit()
        tower.memory_for = memory_for
        np.testing.assert_allclose(self.run(tower), self.run(SmallVit()), rtol=0, atol=1e-5)
        assert any("memory" in note for note in tower.memory.take_notes())
        assert max(tower.batches[-5:]) <= memory_for

    def test_at_last_on_the_cpu(self):
        tower = SmallVit(device="meta-gpu")
        tower.memory_for = 0
        np.testing.assert_allclose(self.run(tower), self.run(SmallVit()), rtol=0, atol=1e-5)
        assert tower.memory.device == "cpu"

    def test_other_errors_of_the_tower_are_not_hidden(self):
        tower = SmallVit()
        tower.finish = lambda tokens, layer: 1 / 0
        with pytest.raises(ZeroDivisionError):
            self.run(tower)

    def test_nothing_is_computed_for_the_update_that_no_map_shows(self):
        tower = SmallVit()
        self.run(tower)
        assert tower.batches == [5] * 5  # of six steps

    def test_the_plane_is_the_map_before_interpolation(self):
        plane, frame = m2ib_plane(SmallVit(), random_picture(), random_text(), settings=self.SETTINGS, seed=2)
        assert plane.shape == (6, 6) and plane.dtype == np.float32
        np.testing.assert_array_equal(to_image(plane, frame), self.run(SmallVit()))


@pytest.mark.slow
@pytest.mark.parametrize("layer", [7, 8, 9])
def test_biomedclip_equals_the_whole_tower_at_every_step(layer):
    """At full size with random weights, against open_clip's own model.

    The lambda map is made by the optimisation alone; the capacity of random tokens is mostly their size.
    """
    from full_models import biomedclip_model

    model, image, text = biomedclip_model(), random_picture(3, (150, 220)), random_text(5, 512)
    settings = M2IBSettings(layer=layer, beta=0.02, steps=4, copies=2)
    planes = plain_m2ib(official_model(), official_pixels(image), torch.from_numpy(text), settings, seed=3)
    for kind, plane in planes.items():
        got = m2ib(model, image, text, settings=replace(settings, map=kind), seed=3)
        np.testing.assert_allclose(got, onto_image(plane, image.shape), rtol=0, atol=1e-4, err_msg=kind)
    other = m2ib(model, image, text, settings=replace(settings, map="lambda"), seed=4)
    assert np.abs(other - got).max() > 0.01


class TestInformation:
    def test_equals_the_divergence_of_two_normal_distributions(self):
        generator = torch.Generator().manual_seed(0)
        tokens = 3 * torch.randn(50, 20, generator=generator).double()
        alpha = 4 * torch.randn(50, 20, generator=generator).double()
        keep = torch.sigmoid(alpha)
        normal = torch.distributions.Normal
        reference = torch.distributions.kl_divergence(normal(keep * tokens, 1 - keep), normal(0.0, 1.0))
        torch.testing.assert_close(information_nats(tokens, alpha), reference, rtol=1e-9, atol=1e-12)
        assert (reference >= 0).all()

    def test_single_precision_is_exact_over_the_whole_range(self):
        """Against the closed form in double precision, log(1 - lambda) = -log(1 + exp(alpha))."""
        alpha, tokens = np.meshgrid(np.linspace(-100, 100, 401), np.linspace(-4, 4, 9))
        keep = 1 / (1 + np.exp(-alpha))
        lost = np.exp(-np.logaddexp(0, alpha))
        exact = 0.5 * (keep**2 * tokens**2 + lost**2 - 1) + np.logaddexp(0, alpha)
        got = information_nats(torch.from_numpy(tokens).float(), torch.from_numpy(alpha).float())
        np.testing.assert_allclose(got.numpy(), exact, rtol=2e-6, atol=2e-6)

    @pytest.mark.parametrize("value", [-100.0, 100.0])
    def test_values_and_gradients_stay_finite_at_the_ends(self, value):
        alpha = torch.full((5,), value, requires_grad=True)
        information = information_nats(torch.linspace(-3, 3, 5), alpha)
        (gradient,) = torch.autograd.grad(information.sum(), alpha)
        assert torch.isfinite(information).all() and torch.isfinite(gradient).all()
