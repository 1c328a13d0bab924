"""The samples: known truth, the same every time, and like the real images they stand for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import to_uint8
from MedCLIPSAMLib.phantoms import brain_mri, breast_ultrasound, chest_ct, chest_xray, shapes
from MedCLIPSAMLib.samples import Sample, load_sample, sample_names

FOLDERS = {
    "brain-mri": "brain_mri_tumour",
    "breast-ultrasound": "breast_ultrasound_tumour",
    "chest-ct": "chest_ct_lung",
    "chest-xray": "chest_xray_lung",
}


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    if importlib.util.find_spec("nilearn") is None:
        pytest.skip("nilearn is not installed; it carries the brain of the brain samples")
    return {name: load_sample(name) for name in sample_names()}


@pytest.mark.parametrize("name", sample_names())
def test_sample_is_whole_and_keeps_the_conventions(samples: dict[str, Sample], name: str) -> None:
    sample = samples[name]
    assert sample.truth.shape == sample.image.array.shape and sample.truth.dtype == bool
    assert sample.is_volume == (sample.image.array.ndim == 3)
    assert 0.002 < sample.truth.mean() < 0.6
    assert sample.image.ijk_to_ras.shape == (4, 4)
    spacing = np.linalg.norm(sample.image.ijk_to_ras[:3, :3], axis=0)
    assert (spacing > 0.05).all() and (spacing < 10).all()
    assert sample.prompt and sample.notice
    shown = to_uint8(sample.image.array, sample.image.window)
    assert (shown == 255).mean() < 0.05
    assert shown.std() > 25


@pytest.mark.parametrize(
    "draw", [brain_mri.slice_image, breast_ultrasound.breast_image, chest_ct.chest_slice, chest_xray.chest_film]
)
def test_same_seed_same_image_other_seed_other_image(draw: Callable[[int], tuple[np.ndarray, ...]]) -> None:
    if draw is brain_mri.slice_image and importlib.util.find_spec("nilearn") is None:
        pytest.skip("nilearn is not installed")
    first, second, third = draw(11), draw(11), draw(12)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(first[0], third[0])
    assert not np.array_equal(first[1], third[1])


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_target_differs_from_its_surroundings_as_in_real_images(
    samples: dict[str, Sample], data_dir: Path, name: str
) -> None:
    """The contrast of target against its surroundings has the sign, and the target the tone, of real images."""

    def contrast(image: np.ndarray, mask: np.ndarray) -> float:
        ring = ndimage.binary_dilation(mask, iterations=12) & ~ndimage.binary_dilation(mask, iterations=2)
        return float(image[mask].mean() - image[ring].mean())

    folder = data_dir / FOLDERS[name] / "train"
    contrasts, medians = [], []
    for path in sorted((folder / "images").glob("*.png"))[::12]:
        image = np.asarray(Image.open(path).convert("L"), float)
        mask = np.asarray(Image.open(folder / "masks" / path.name)) > 0
        if mask.any():
            medians.append(np.median(image[mask]))
            contrasts.append(contrast(image, mask))
    sample = samples[name]
    shown = to_uint8(sample.image.array, sample.image.window).astype(float)
    assert np.sign(contrast(shown, sample.truth)) == np.sign(np.median(contrasts))
    assert min(medians) <= np.median(shown[sample.truth]) <= max(medians)


def test_brain_volume_has_the_tumour_at_its_place(samples: dict[str, Sample]) -> None:
    sample = samples["brain-mri-volume"]
    assert sample.image.array.shape[0] == 24
    assert np.allclose(np.linalg.norm(sample.image.ijk_to_ras[:3, :3], axis=0), (1, 1, 5))
    k, j, i = (index.mean() for index in np.nonzero(sample.truth))
    position = sample.image.ijk_to_ras @ [i, j, k, 1]
    assert np.linalg.norm(position[:3] - brain_mri.TUMOUR_CENTRE) < 6
    with_tumour = np.flatnonzero(sample.truth.any(axis=(1, 2)))
    assert 5 <= len(with_tumour) <= 12 and with_tumour[0] > 0
    assert ndimage.label(sample.truth)[1] == 1


def test_brain_slice_and_volume_show_the_same_side(samples: dict[str, Sample]) -> None:
    for name in ("brain-mri", "brain-mri-volume"):
        sample = samples[name]
        index = np.array([n.mean() for n in np.nonzero(sample.truth)][::-1])
        full = np.array([*index, *([0] if len(index) == 2 else []), 1])
        right = (sample.image.ijk_to_ras @ full)[0]
        assert right > 20  # RAS: the tumour is on the patient's right
        assert index[0] < sample.image.array.shape[-1] / 2  # which is the left of the picture


def test_brain_notice_reproduces_the_terms(samples: dict[str, Sample]) -> None:
    notice = samples["brain-mri"].notice
    assert "Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre" in notice
    assert "Permission to use, copy, modify, and distribute" in notice
    assert "simulated" in notice


def test_missing_nilearn_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps nilearn"):
        load_sample("brain-mri")


def test_unknown_sample_lists_the_names() -> None:
    with pytest.raises(InputError, match=r"'liver'.*chest-ct"):
        load_sample("liver")


def test_ct_is_in_hounsfield_units(samples: dict[str, Sample]) -> None:
    sample = samples["chest-ct"]
    assert -800 < np.median(sample.image.array[sample.truth]) < -690
    assert sample.image.array.min() >= -1024 and sample.image.array.max() > 500
    assert ndimage.label(ndimage.binary_opening(sample.truth, iterations=3))[1] == 2


def test_fill_outline_agrees_with_the_area_of_a_polygon() -> None:
    outline = shapes.closed_spline([(40, 10), (70, 40), (40, 70), (10, 40)])
    x, y = outline.T
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    assert shapes.fill_outline(outline, (80, 80)).sum() == pytest.approx(area, rel=0.01)


def test_projection_keeps_the_mass() -> None:
    rng = np.random.default_rng(0)
    points, weights = rng.uniform(2, 28, (500, 2)), rng.uniform(0, 1, 500)
    assert shapes.project_points(points, weights, (30, 30)).sum() == pytest.approx(weights.sum())
