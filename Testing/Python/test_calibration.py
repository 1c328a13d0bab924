"""Calibration figures against plain references: every pixel sorted, every order of the equal ones."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedCLIPSAMLib.calibration import BINS, SMALLEST, Reliability, RiskCoverage
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.uncertainty import entropy as class_entropy


def plain_ece(confidence: np.ndarray, right: np.ndarray) -> float:
    """Over the intervals (0, 1/15], (1/15, 2/15], ..."""
    total = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return total / confidence.size


def plain_aurc(entropy: np.ndarray, error: np.ndarray) -> float:
    """Without ties: sort, and average the risk over every coverage."""
    sorted_errors = error[np.argsort(entropy, kind="stable")]
    return float(np.mean(np.cumsum(sorted_errors) / np.arange(1, error.size + 1)))


def images(count: int, seed: int = 0, classes: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities of a badly calibrated model, with what is there."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        shape = tuple(random.integers(20, 40, 2))
        if classes is None:
            probability = random.beta(0.3, 0.5, shape).astype(np.float32)
            truth = random.random(shape) < probability**1.7
        else:
            probability = random.dirichlet([0.4] * classes, shape).transpose(2, 0, 1).astype(np.float32)
            truth = (random.random(shape) > np.cumsum(probability, axis=0)[:-1]).sum(axis=0)
            truth = np.where(random.random(shape) < 0.2, random.integers(0, classes, shape), truth)
        made.append((probability, truth))
    return made


def test_two_classes_agree_with_plain_references() -> None:
    made = images(5)
    figures = Reliability()
    for probability, truth in made:
        figures.add(probability, truth)
    p = np.concatenate([probability.ravel() for probability, _ in made]).astype(np.float64)
    y = np.concatenate([truth.ravel() for _, truth in made])
    assert figures.pixels == p.size
    assert figures.ece == pytest.approx(plain_ece(np.maximum(p, 1 - p), (p > 0.5) == y), abs=1e-12)
    assert figures.brier == pytest.approx(np.mean(2 * (p - y) ** 2), abs=1e-12)
    assert figures.nll == pytest.approx(-np.mean(np.log(np.clip(np.where(y, p, 1 - p), SMALLEST, 1))), abs=1e-12)


def test_several_classes_agree_with_plain_references() -> None:
    made = images(4, seed=1, classes=3)
    figures = Reliability()
    for probability, truth in made:
        figures.add(probability, truth)
    p = np.concatenate([probability.reshape(3, -1) for probability, _ in made], axis=1).astype(np.float64)
    y = np.concatenate([truth.ravel() for _, truth in made])
    assert figures.ece == pytest.approx(plain_ece(p.max(axis=0), p.argmax(axis=0) == y), abs=1e-12)
    assert figures.brier == pytest.approx(np.mean(((p - np.eye(3)[y].T) ** 2).sum(axis=0)), abs=1e-12)
    assert figures.nll == pytest.approx(-np.mean(np.log(np.maximum(p[y, np.arange(y.size)], SMALLEST))), abs=1e-12)
    bins = figures.target_bins
    assert sum(bins["count"]) == y.size
    target = sum(n * share for n, share in zip(bins["count"], bins["observed"], strict=True) if n)
    assert target == pytest.approx((y > 0).sum())


def test_two_classes_may_be_given_either_way() -> None:
    (probability, truth), *_ = images(1, seed=2)
    binary, both = Reliability(), Reliability()
    binary.add(probability, truth)
    both.add(np.stack([1 - probability, probability]), truth.astype(np.uint8))
    for name in ("ece", "brier", "nll"):
        assert getattr(binary, name) == pytest.approx(getattr(both, name), abs=1e-6)
    assert binary.target_bins["count"] == both.target_bins["count"]


def test_known_values() -> None:
    """A certain and right map has no error; a certain and wrong one has the largest; a bin's edge belongs below."""
    truth = np.array([[True, False], [False, False]])
    right, wrong = Reliability(), Reliability()
    right.add(truth.astype(np.float32), truth)
    assert (right.ece, right.brier, right.nll) == (0, 0, 0)
    wrong.add(1 - truth.astype(np.float32), truth)
    assert (wrong.ece, wrong.brier, wrong.nll) == (1, 2, pytest.approx(-np.log(SMALLEST)))
    half = Reliability()
    half.add(np.full((2, 2), 0.5), truth)  # the largest probability is 0.5, the class is the first: the background
    assert half.confidence_bins["count"][7] == 4 and half.confidence_bins["observed"][7] == 0.75
    assert half.nll == pytest.approx(np.log(2))
    edge = Reliability()
    edge.add(np.array([[0.0, 1 / 15, 0.2, 1.0]]), np.array([[False, True, False, True]]))
    assert [number for number, count in enumerate(edge.target_bins["count"]) if count] == [0, 2, BINS - 1]


def test_nothing_counted_gives_nan() -> None:
    figures, risk = Reliability(), RiskCoverage()
    assert all(np.isnan(value) for value in (figures.ece, figures.brier, figures.nll, risk.aurc, risk.excess_aurc))
    assert figures.target_bins["predicted"] == [None] * BINS


def test_aurc_agrees_with_sorting_every_pixel() -> None:
    random = np.random.default_rng(3)
    entropy = (1e-6 * 1.002 ** np.arange(6000)).astype(np.float32)  # further apart than a bin is wide: no ties
    error = random.random(6000) < np.linspace(0, 0.4, 6000)
    shuffled = random.permutation(6000)
    risk = RiskCoverage()
    for part in np.array_split(shuffled, 7):
        risk.add(entropy[part], error[part])
    assert risk.pixels == 6000
    assert risk.error == pytest.approx(error.mean())
    assert risk.aurc == pytest.approx(plain_aurc(entropy, error), abs=1e-12)
    best = plain_aurc(error.astype(float), error)  # every error last
    assert risk.excess_aurc == pytest.approx(plain_aurc(entropy, error) - best, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=5))
def test_equal_entropies_count_as_shuffled(pairs: list[tuple[int, bool]]) -> None:
    """The mean over all orders of the pixels, each sorted without touching the order of the equal ones."""
    orders = [np.array(order) for order in itertools.permutations(pairs)]
    expected = np.mean([plain_aurc(order[:, 0], order[:, 1]) for order in orders])
    risk = RiskCoverage()
    risk.add(np.array([level for level, _ in pairs], float), np.array([wrong for _, wrong in pairs]))
    assert risk.aurc == pytest.approx(expected, abs=1e-12)
    assert risk.excess_aurc >= -1e-12


def test_entropy_that_knows_the_errors_has_no_excess() -> None:
    error = np.random.default_rng(4).random((50, 60)) < 0.1
    knowing, blind, misled = RiskCoverage(), RiskCoverage(), RiskCoverage()
    knowing.add(error.astype(np.float32), error)
    blind.add(np.zeros((50, 60)), error)
    misled.add(1 - error.astype(np.float32), error)
    assert knowing.excess_aurc == pytest.approx(0, abs=1e-3)  # the certain ones are all right
    assert blind.aurc == pytest.approx(error.mean(), abs=1e-12)
    assert knowing.aurc < blind.aurc < misled.aurc


def test_a_large_image_in_few_bins_is_as_good_as_sorted() -> None:
    """Real entropies: bins of 0.05 % cost less than 0.001 of the figure."""
    random = np.random.default_rng(5)
    probability = random.beta(0.2, 0.4, (250, 300)).astype(np.float32)
    truth = random.random(probability.shape) < probability
    entropy = class_entropy(np.stack([1 - probability, probability]))
    error = (probability > 0.5) != truth
    risk = RiskCoverage()
    risk.add(entropy, error)
    assert risk.aurc == pytest.approx(plain_aurc(entropy.ravel(), error.ravel()), rel=1e-3)


def test_merged_counts_are_those_of_all_images() -> None:
    made = images(4, seed=6)
    together, merged = (Reliability(), RiskCoverage()), (Reliability(), RiskCoverage())
    for probability, truth in made:
        error, entropy = (probability > 0.5) != truth, probability * (1 - probability)
        parts = (Reliability(), RiskCoverage())
        for one, arguments in ((0, (probability, truth)), (1, (entropy, error))):
            together[one].add(*arguments)
            parts[one].add(*arguments)
            merged[one].merge(parts[one])
    for name in ("ece", "brier", "nll"):
        assert getattr(merged[0], name) == pytest.approx(getattr(together[0], name), rel=1e-12)
    assert merged[0].confidence_bins["count"] == together[0].confidence_bins["count"]
    assert (merged[1].aurc, merged[1].excess_aurc) == (together[1].aurc, together[1].excess_aurc)


def test_memory_does_not_grow_with_the_images() -> None:
    probability, truth = images(1, seed=7)[0]
    figures, risk = Reliability(), RiskCoverage()

    def take(count: int) -> None:
        for _ in range(count):
            figures.add(probability, truth)
            risk.add(probability, truth)

    take(2)
    tracemalloc.start()
    take(10)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < probability.nbytes, f"{kept} bytes kept of 10 images of {probability.nbytes} bytes"


@pytest.mark.parametrize(
    ("probability", "truth", "message"),
    [
        (np.full((4, 4), 1.5), np.ones((4, 4), bool), "NaN or outside"),
        (np.full((4, 4), np.nan), np.ones((4, 4), bool), "NaN or outside"),
        (np.full((4, 5), 0.5), np.ones((4, 4), bool), r"probability is \(4, 5\) and truth \(4, 4\)"),
        (np.full((4, 4), 0.5), np.ones((4, 4), float), "bool or integers"),
        (np.full((3, 4, 4), 0.5), np.ones((4, 4), int), "do not add up to 1"),
        (np.full((4, 4), 0.5), np.full((4, 4), 2), "truth holds 2 to 2"),
    ],
)
def test_probabilities_that_are_none_are_refused(probability: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reliability().add(probability, truth)


@pytest.mark.parametrize(
    ("entropy", "message"),
    [
        (np.full((4, 4), -0.1), "negative, infinite or NaN"),
        (np.full((4, 4), np.inf), "negative"),
        (np.zeros((4, 5)), r"entropy is \(4, 5\) and error \(4, 4\)"),
    ],
)
def test_entropies_that_are_none_are_refused(entropy: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RiskCoverage().add(entropy, np.zeros((4, 4), bool))
