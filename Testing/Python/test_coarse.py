"""Thresholds and components of saliency maps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.cluster.vq import kmeans2
from skimage.filters import threshold_otsu
from skimage.io import imread

from MedCLIPSAMLib.coarse import coarse_mask, kmeans_threshold, otsu_threshold
from MedCLIPSAMLib.errors import InputError


def smooth_map(seed: int, shape: tuple[int, int] = (90, 120)) -> np.ndarray:
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 5)
    values = np.clip(values, 0, None) if seed % 2 else values
    return ((values - values.min()) / np.ptp(values)).astype(np.float32)


def blobs(*rectangles: tuple[int, int, int, int, float], shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Rectangles (x0, y0, x1, y1, value) on a background of 0."""
    saliency = np.zeros(shape, np.float32)
    for x0, y0, x1, y1, value in rectangles:
        saliency[y0:y1, x0:x1] = value
    return saliency


@pytest.mark.parametrize("seed", range(8))
def test_otsu_equals_scikit_image_on_the_8_bit_map(seed: int) -> None:
    saliency = smooth_map(seed)
    levels = np.rint(saliency * 255).astype(np.uint8)
    level = int(threshold_otsu(levels))
    assert otsu_threshold(saliency) == pytest.approx((level + 0.5) / 255, abs=1e-12)
    np.testing.assert_array_equal(saliency > otsu_threshold(saliency), levels > level)
    np.testing.assert_array_equal(coarse_mask(saliency, minimum_confidence=0).mask, levels > level)


@pytest.mark.parametrize("task", ["breast_ultrasound_tumour", "brain_mri_tumour", "chest_xray_lung", "chest_ct_lung"])
def test_otsu_on_real_grey_values(data_dir, task: str) -> None:
    for file in sorted((data_dir / task / "test" / "images").iterdir())[:3]:
        levels = imread(file)
        mask = levels > threshold_otsu(levels)
        np.testing.assert_array_equal(levels / 255.0 > otsu_threshold(levels / 255.0), mask)
        np.testing.assert_array_equal((levels / 255).astype(np.float32) > otsu_threshold(levels / 255.0), mask)


def test_otsu_takes_the_lowest_of_equal_splits() -> None:
    saliency = blobs((5, 5, 20, 30, 200 / 255)) + np.float32(20 / 255) * (blobs((5, 5, 20, 30, 1)) == 0)
    assert otsu_threshold(saliency) == pytest.approx(20.5 / 255)


@pytest.mark.parametrize("seed", range(6))
def test_kmeans_equals_lloyd_of_scipy(seed: int) -> None:
    saliency = smooth_map(seed)
    start = np.array([[saliency.min()], [saliency.max()]], np.float64)
    centres, _ = kmeans2(saliency.reshape(-1, 1).astype(np.float64), start, iter=200, minit="matrix")
    assert kmeans_threshold(saliency) == pytest.approx(float(centres.mean()), abs=1e-7)
    assert abs(kmeans_threshold(saliency) - otsu_threshold(saliency)) < 2.5 / 255


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("method", ["otsu", "kmeans"])
def test_constant_map_gives_an_empty_mask(value: float, method: str) -> None:
    coarse = coarse_mask(np.full((20, 30), value, np.float32), method=method)
    assert coarse.components == () and not coarse.mask.any() and not coarse.labels.any()
    assert coarse.mask.shape == (20, 30) and coarse.mask.dtype == bool and coarse.labels.dtype == np.int32
    assert 0 <= coarse.threshold <= 1


def test_a_nearly_constant_map_does_not_fail() -> None:
    saliency = np.full((20, 20), 0.6, np.float32)
    saliency[3, 4] = np.nextafter(np.float32(0.6), np.float32(1))
    assert coarse_mask(saliency).mask.sum() == 0
    assert coarse_mask(saliency.astype(np.float64), method="kmeans").mask.sum() <= 1


def test_components_carry_box_area_and_mean() -> None:
    saliency = blobs((2, 3, 10, 8, 0.6), (30, 10, 50, 35, 0.9), (40, 20, 45, 25, 0.7))
    coarse = coarse_mask(saliency, method=0.4)
    large, small = coarse.components
    assert (large.box, large.area) == ((30, 10, 50, 35), 500)
    assert large.confidence == pytest.approx((475 * 0.9 + 25 * 0.7) / 500, abs=1e-6)
    assert (small.box, small.area) == ((2, 3, 10, 8), 40)
    assert coarse.threshold == 0.4 and coarse.dropped == 0
    np.testing.assert_array_equal(coarse.labels == 1, saliency > 0.65)
    np.testing.assert_array_equal(coarse.labels == 2, (saliency > 0.4) & (saliency < 0.65))
    np.testing.assert_array_equal(coarse.mask, coarse.labels > 0)


def test_diagonal_neighbours_are_connected() -> None:
    saliency = blobs((5, 5, 10, 10, 0.9), (10, 10, 15, 15, 0.9))
    assert [component.area for component in coarse_mask(saliency, method=0.5).components] == [50]


def test_confidence_must_exceed_the_limit() -> None:
    saliency = blobs((0, 0, 5, 5, 0.75), (10, 0, 15, 5, 0.5), (20, 0, 25, 5, 0.25))
    coarse = coarse_mask(saliency, method=0.1)  # 0.5 does not exceed 0.5
    assert [component.confidence for component in coarse.components] == [0.75] and coarse.dropped == 2
    assert coarse.mask.sum() == 25
    relative = coarse_mask(saliency, method=0.1, minimum_confidence=0, relative_confidence=0.6)
    assert [component.confidence for component in relative.components] == [0.75, 0.5]


def test_never_empty() -> None:
    saliency = blobs((0, 0, 5, 5, 0.4), (10, 0, 15, 5, 0.45), (20, 0, 21, 1, 0.49))
    alone = coarse_mask(saliency, method=0.1)
    assert [component.area for component in alone.components] == [1] and alone.dropped == 2
    large = coarse_mask(saliency, method=0.1, minimum_area=20)
    assert [component.box for component in large.components] == [(10, 0, 15, 5)]
    assert len(coarse_mask(saliency, method=0.1, minimum_area=1000).components) == 1


def test_largest_or_most_confident() -> None:
    saliency = blobs((0, 0, 10, 10, 0.6), (20, 0, 24, 4, 0.8), (40, 0, 60, 20, 0.7))
    kept = {
        order: [c.area for c in coarse_mask(saliency, method=0.5, maximum_components=2, order=order).components]
        for order in ("confidence", "area")
    }
    assert kept == {"confidence": [16, 400], "area": [400, 100]}  # listed by confidence both times
    assert [c.area for c in coarse_mask(saliency, method=0.5).components] == [16, 400, 100]
    assert coarse_mask(saliency, method=0.5, maximum_components=1, order="area").dropped == 2


def test_equal_confidence_goes_by_area() -> None:
    saliency = blobs((0, 0, 4, 4, 0.75), (20, 0, 30, 10, 0.75), (40, 20, 44, 24, 0.75))
    assert [c.box[0] for c in coarse_mask(saliency, method=0.5).components] == [20, 0, 40]


def test_a_whole_foreground_is_one_component() -> None:
    coarse = coarse_mask(np.full((16, 16), 0.8, np.float32), method=0.2)
    assert coarse.components[0].box == (0, 0, 16, 16) and coarse.mask.all()


@pytest.mark.parametrize(
    ("saliency", "message"),
    [
        (np.zeros((3, 4, 5), np.float32), "shape"),
        (np.zeros((0, 4), np.float32), "shape"),
        (np.zeros((4, 4), complex), "type"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.array([[0.0, 1.5]]), "1.5"),
        (np.array([[-0.1, 0.5]]), "-0.1"),
    ],
)
def test_bad_maps(saliency: np.ndarray, message: str) -> None:
    for function in (otsu_threshold, kmeans_threshold, coarse_mask):
        with pytest.raises(InputError, match=message):
            function(saliency)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "crf"}, {"method": 1.0}, {"method": -0.1}, {"method": float("nan")}, {"method": True},
        {"minimum_confidence": 1.1}, {"relative_confidence": -1}, {"minimum_area": -1}, {"maximum_components": 0},
        {"order": "size"},
    ],
)  # fmt: skip
def test_bad_settings(settings: dict) -> None:
    with pytest.raises(InputError):
        coarse_mask(smooth_map(0), **settings)
