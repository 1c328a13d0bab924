"""Overlap, surface distance, AUROC, bootstrap: against references written here and against other implementations."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from MedCLIPSAMLib import metrics
from MedCLIPSAMLib.errors import InputError

surface_distance = pytest.importorskip(
    "surface_distance", reason="surface-distance is not installed (extra 'evaluate')"
)


ROOT = Path(__file__).resolve().parents[2]


def disc(size: int, row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def random_masks(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of ragged masks, some with holes, several parts, single pixels, or touching the image's edge."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    pairs = []
    while len(pairs) < count:
        height, width = random.integers(3, 60, 2)
        noise = gaussian_filter(random.normal(size=(2, height, width)), (0, *random.uniform(0, 4, 2)))
        other = noise[0] + random.uniform(0, 1) * noise[1]
        pair = noise[0] > np.quantile(noise[0], random.uniform(0.05, 0.98)), other > np.quantile(other, 0.7)
        if pair[0].any() and pair[1].any():
            pairs.append(pair)
    return pairs


def brute_force_nsd(prediction: np.ndarray, truth: np.ndarray, tolerance: float, spacing: tuple[float, float]) -> float:
    """Walk over every grid corner, give it the marching-squares contour length, measure every pair of corners."""

    def contour(mask: np.ndarray) -> list[tuple[float, float, float]]:
        def at(row: int, column: int) -> bool:
            return 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and bool(mask[row, column])

        elements = []
        half_diagonal = np.hypot(*spacing) / 2
        for row in range(mask.shape[0] + 1):
            for column in range(mask.shape[1] + 1):
                up_left, up_right = at(row - 1, column - 1), at(row - 1, column)
                down_left, down_right = at(row, column - 1), at(row, column)
                inside = up_left + up_right + down_left + down_right
                if inside in (0, 4):
                    continue
                if inside in (1, 3):
                    length = half_diagonal
                elif up_left == up_right:
                    length = spacing[1]
                elif up_left == down_left:
                    length = spacing[0]
                else:
                    length = 2 * half_diagonal
                elements.append((row * spacing[0], column * spacing[1], length))
        return elements

    first, second = contour(prediction), contour(truth)
    within = total = 0.0
    for this, other in ((first, second), (second, first)):
        for row, column, length in this:
            total += length
            if min(np.hypot(row - r, column - c) for r, c, _ in other) <= tolerance:
                within += length
    return within / total


def package_nsd(prediction: np.ndarray, truth: np.ndarray, tolerance: float, spacing: tuple[float, ...]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distances = surface_distance.compute_surface_distances(truth, prediction, spacing)
    return surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)


def test_dsc_by_hand():
    truth = np.zeros((4, 5), bool)
    truth[1:3, 1:4] = True  # 6 pixels
    prediction = np.zeros((4, 5), np.uint8)
    prediction[1:3, 2:5] = 255  # 6 pixels, 4 shared
    assert metrics.dsc(prediction, truth) == pytest.approx(8 / 12)
    assert metrics.dsc(truth, truth) == 1
    assert metrics.dsc(~truth, truth) == 0


@pytest.mark.parametrize("measure", [metrics.dsc, metrics.nsd_2d, metrics.nsd_paper])
def test_empty_mask_rule(measure):
    """The package itself fails on these with numpy 2."""
    empty, target = np.zeros((20, 20), bool), disc(20, 10, 10, 4)
    assert np.isnan(measure(empty, empty))
    assert np.isnan(measure(target, empty))
    assert measure(empty, target) == 0
    assert measure(target, target) == 1


@pytest.mark.parametrize("measure", [metrics.dsc, metrics.nsd_2d, metrics.nsd_paper])
def test_wrong_input_is_refused(measure):
    mask = disc(20, 10, 10, 4)
    with pytest.raises(InputError, match=r"\(20, 20\).*\(20, 19\)"):
        measure(mask, mask[:, :-1])
    with pytest.raises(InputError, match="float64"):
        measure(mask * 0.7, mask)
    with pytest.raises(InputError, match=r"\(20, 20, 1\)"):
        measure(mask[..., None], mask[..., None])
    with pytest.raises(InputError, match="tolerance -1"):
        metrics.nsd_2d(mask, mask, tolerance=-1)
    with pytest.raises(InputError, match="spacing"):
        metrics.nsd_2d(mask, mask, spacing=(1, 0))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.6)])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.0, 3.3])
def test_nsd_2d_equals_brute_force(spacing, tolerance):
    shapes = [
        (disc(24, 11, 12, 7), disc(24, 13, 10, 6)),
        (disc(20, 5, 5, 3) | disc(20, 14, 14, 4), disc(20, 14, 14, 4)),
        (disc(20, 10, 10, 8) & ~disc(20, 10, 10, 3), disc(20, 10, 10, 8)),
        (np.eye(12, dtype=bool), np.eye(12, k=2, dtype=bool)),
        (np.ones((9, 6), bool), disc(9, 4, 2, 2)[:, :6]),
    ]
    for prediction, truth in shapes:
        expected = brute_force_nsd(prediction, truth, tolerance, spacing)
        assert metrics.nsd_2d(prediction, truth, tolerance, spacing) == pytest.approx(expected, abs=1e-12)


def test_both_nsd_equal_the_package():
    """nsd_2d is the package in 2D; nsd_paper is the package in 3D on one slice, without its cost."""
    difference = []
    for prediction, truth in random_masks(150):
        flat, slab = metrics.nsd_2d(prediction, truth), metrics.nsd_paper(prediction, truth)
        assert flat == pytest.approx(package_nsd(prediction, truth, 2, (1, 1)), abs=1e-12)
        assert slab == pytest.approx(package_nsd(prediction[..., None], truth[..., None], 2, (1, 1, 1)), abs=1e-12)
        difference.append(slab - flat)
    assert np.mean(np.abs(difference)) > 0.01, "the two definitions must differ"


def test_nsd_on_real_masks(data_dir):
    """Real outlines, shifted: equal to the package, and the paper's variant is the larger one."""
    from PIL import Image

    files = sorted((data_dir / "breast_ultrasound_tumour/test/masks").glob("busi_benign*.png"))[:6]
    for path in files:
        truth = np.asarray(Image.open(path)) > 0
        prediction = np.roll(truth, (4, -3), (0, 1))
        flat, slab = metrics.nsd_2d(prediction, truth), metrics.nsd_paper(prediction, truth)
        assert flat == pytest.approx(package_nsd(prediction, truth, 2, (1, 1)), abs=1e-12)
        assert slab == pytest.approx(package_nsd(prediction[..., None], truth[..., None], 2, (1, 1, 1)), abs=1e-12)
        assert flat < slab < 1
    assert len(files) == 6


def test_nsd_does_not_depend_on_the_surroundings():
    prediction, truth = disc(40, 18, 20, 9), disc(40, 21, 19, 8)
    for measure in (metrics.nsd_2d, metrics.nsd_paper):
        assert measure(np.pad(prediction, ((0, 70), (33, 5))), np.pad(truth, ((0, 70), (33, 5)))) == measure(
            prediction, truth
        )


def test_missing_surface_distance_is_explained():
    code = (
        "import sys; sys.modules['surface_distance'] = None\n"
        "import numpy as np\n"
        "from MedCLIPSAMLib import metrics\n"
        "mask = np.eye(4, dtype=bool)\n"
        "assert metrics.dsc(mask, mask) == 1\n"
        "metrics.nsd_paper(mask, mask)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert child.returncode == 1
    assert (
        "MedCLIPSAMError: NSD needs the package surface-distance, which is not installed: pip install" in child.stderr
    )


def test_auroc_counts_pairs():
    random = np.random.default_rng(1)
    for _ in range(20):
        scores = random.integers(0, 6, 40) / 5  # many ties
        labels = random.random(40) < 0.3
        positive, negative = scores[labels][:, None], scores[~labels][None]
        expected = ((positive > negative) + 0.5 * (positive == negative)).mean()
        assert metrics.auroc(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert metrics.auroc([0.1, 0.2, 0.9], [False, False, True]) == 1
    assert metrics.auroc([1, 1, 1, 1], [True, False, True, False]) == 0.5


def test_auroc_without_two_classes_or_with_nan():
    assert np.isnan(metrics.auroc([0.1, 0.2], [True, True]))
    assert np.isnan(metrics.auroc([], []))
    with pytest.raises(InputError, match="3 scores and 2 labels"):
        metrics.auroc([1, 2, 3], [True, False])
    with pytest.raises(InputError, match="NaN"):
        metrics.auroc([1, np.nan], [True, False])


def test_error_auroc_on_pixels_and_on_a_sample_of_them():
    random = np.random.default_rng(2)
    error = disc(300, 100, 150, 60)
    entropy = (error + random.normal(size=error.shape)).astype(np.float32)
    whole = metrics.error_auroc(entropy, error)
    assert whole == pytest.approx(0.760, abs=0.01)  # Phi(1 / sqrt(2))
    sampled = metrics.error_auroc(entropy, error, pixels=20_000)
    assert sampled == metrics.error_auroc(entropy, error, pixels=20_000)
    assert sampled != whole
    assert sampled == pytest.approx(whole, abs=0.02)
    assert np.isnan(metrics.error_auroc(entropy, np.zeros_like(error)))
    with pytest.raises(InputError, match="same shape"):
        metrics.error_auroc(entropy[:-1], error)


def test_bootstrap_interval_against_a_plain_loop():
    values = np.random.default_rng(3).beta(4, 2, 60)
    lower, upper = metrics.bootstrap_interval(values)
    random = np.random.RandomState(9)
    means = [random.choice(values, values.size).mean() for _ in range(10_000)]
    assert (lower, upper) == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=3e-3)
    assert (lower, upper) == metrics.bootstrap_interval(values)
    assert (lower, upper) != metrics.bootstrap_interval(values, seed=1)
    narrow = metrics.bootstrap_interval(values, level=0.5)
    assert lower < narrow[0] < values.mean() < narrow[1] < upper


def test_bootstrap_interval_of_few_or_bad_values():
    assert np.isnan(metrics.bootstrap_interval([])).all()
    assert metrics.bootstrap_interval([0.25]) == (0.25, 0.25)
    assert metrics.bootstrap_interval([0.5] * 7) == (0.5, 0.5)
    with pytest.raises(InputError, match="1 NaN"):
        metrics.bootstrap_interval([0.5, np.nan])
    with pytest.raises(InputError, match="level 95"):
        metrics.bootstrap_interval([0.5, 0.6], level=95)


def test_correlation():
    x = np.array([1.0, 2.0, 3.0, 4.0, 50.0])
    pearson, spearman = metrics.correlation(x, x**3)
    assert pearson == pytest.approx(np.corrcoef(x, x**3)[0, 1])
    assert spearman == pytest.approx(1)
    assert metrics.correlation(x, -2 * x) == pytest.approx((-1, -1))
    assert np.isnan(metrics.correlation(x, np.ones(5))).all()
    assert np.isnan(metrics.correlation(x[:2], x[:2])).all()
    with pytest.raises(InputError, match="5 and 4"):
        metrics.correlation(x, x[:4])
