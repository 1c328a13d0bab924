"""The dense CRF against brute force over all pairs of pixels, where the optional package is installed."""

from __future__ import annotations

import builtins
import importlib.util

import numpy as np
import pytest

from MedCLIPSAMLib import crf
from MedCLIPSAMLib.crf import MEDCLIP_SAM_V2, CRFSettings, dense_crf
from MedCLIPSAMLib.errors import InputError

needs_crf = pytest.mark.skipif(
    not crf.is_available(), reason="pydensecrf2 is not installed (optional; pip compiles it)"
)


def scene(shape: tuple[int, int] = (36, 44)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a disc (bool), its picture (uint8) and a smooth saliency that misses its outline."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    disc = (x - 20) ** 2 + (y - 17) ** 2 < 9**2
    image = np.clip(np.where(disc, 170, 60) + rng.normal(0, 2, shape), 0, 255).astype(np.uint8)
    saliency = np.exp(-((x - 22) ** 2 + (y - 17) ** 2) / (2 * 9.0**2)).astype(np.float32)
    return disc, image, saliency


def brute_force(saliency: np.ndarray, image: np.ndarray, settings: CRFSettings) -> np.ndarray:
    """Probability of the foreground after one mean-field step with every pair of pixels; symmetric normalisation."""
    p = saliency.astype(np.float64).ravel()
    energies = np.stack(
        [
            -np.log(1 - p + 1e-8) * (1 + np.exp(-(1 - p))) / 1.05,
            -np.log(p + 1e-8) * (1 + np.exp(-p)) / 1.05,
        ]
    )
    start = np.exp(-energies) / np.exp(-energies).sum(axis=0)
    y, x = (axis.ravel().astype(np.float64) for axis in np.indices(saliency.shape))
    grey = image.reshape(len(p), -1).astype(np.float64)
    colours = np.repeat(grey, 3, axis=1) if grey.shape[1] == 1 else grey

    def distance(columns: np.ndarray, width: float) -> np.ndarray:
        return ((columns[:, None] - columns[None]) ** 2).sum(axis=-1) / (2 * width**2)

    place = np.stack([x, y], axis=1)
    message = np.zeros_like(start)
    for weight, exponent in (
        (3, distance(place, settings.gaussian)),
        (5, distance(place, settings.bilateral) + distance(colours, settings.colour)),
    ):
        kernel = np.exp(-exponent)
        norm = 1 / np.sqrt(kernel.sum(axis=1) + 1e-20)
        message += weight * (start * norm) @ kernel * norm
    after = np.exp(message - energies)
    return (after[1] / after.sum(axis=0)).reshape(saliency.shape)


@needs_crf
@pytest.mark.parametrize("settings", [CRFSettings(), MEDCLIP_SAM_V2], ids=["v1", "v2"])
def test_equals_brute_force_but_where_it_is_undecided(settings):
    """The package approximates the kernels on a lattice."""
    _, image, saliency = scene()
    exact = brute_force(saliency, image, settings)
    got = dense_crf(saliency, image, settings=settings)
    assert got.shape == saliency.shape and got.dtype == bool
    decided = np.abs(exact - 0.5) > 0.15
    assert decided.mean() > 0.9
    np.testing.assert_array_equal(got[decided], exact[decided] > 0.5)
    assert ((saliency > 0.5) != got).sum() > 20  # it is not the threshold that it starts from


@needs_crf
def test_the_first_papers_widths_are_the_default_and_find_the_edge():
    disc, image, saliency = scene()
    got = dense_crf(saliency, image)
    np.testing.assert_array_equal(got, dense_crf(saliency, image, settings=CRFSettings(3, 60, 5)))
    overlap = [2 * (mask & disc).sum() / (mask.sum() + disc.sum()) for mask in (saliency > 0.5, got)]
    assert overlap[1] > overlap[0] and overlap[1] > 0.95, overlap


@needs_crf
def test_grey_and_rgb_pictures_are_the_same():
    _, image, saliency = scene()
    np.testing.assert_array_equal(
        dense_crf(saliency, image), dense_crf(saliency, np.repeat(image[..., None], 3, axis=2))
    )


@needs_crf
def test_ends_of_the_range_are_no_trouble():
    _, image, _ = scene()
    for value in (0.0, 1.0):
        assert (dense_crf(np.full(image.shape, value, np.float32), image) == bool(value)).all()


@needs_crf
@pytest.mark.parametrize(
    "image", [np.zeros((36, 43), np.uint8), np.zeros((36, 44), np.float32), np.zeros((44, 36, 3), np.uint8)]
)
def test_a_picture_that_does_not_fit_is_refused(image):
    with pytest.raises(InputError, match="of its own size, in uint8"):
        dense_crf(scene()[2], image)


@pytest.mark.parametrize("width", [0, -1, np.inf])
def test_widths_out_of_range_are_refused(width):
    with pytest.raises(InputError, match="width colour"):
        CRFSettings(colour=width)


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydensecrf" else real(name))
    monkeypatch.setattr(builtins, "__import__", _refuse(builtins.__import__))
    assert not crf.is_available()
    with pytest.raises(InputError, match="pip install pydensecrf2"):
        dense_crf(scene()[2], scene()[1])


def _refuse(real):
    def importer(name, *arguments, **named):
        if name.startswith("pydensecrf"):
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **named)

    return importer
