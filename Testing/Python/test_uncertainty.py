"""Entropy, mean and mutual information of probability maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.uncertainty import SampleMean, binary_entropy, entropy


def random_maps(number: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(0.3, 0.3, (number, *shape)).astype(np.float32)


def test_binary_entropy_equals_scipy() -> None:
    probability = random_maps(1, 40, 50)[0]
    got = binary_entropy(probability)
    pairs = np.stack([probability.astype(np.float64), 1 - probability.astype(np.float64)])
    np.testing.assert_allclose(got, stats.entropy(pairs, axis=0), rtol=1e-6)
    assert got.dtype == np.float32 and got.shape == (40, 50)


def test_entropy_of_classes_equals_scipy() -> None:
    classes = np.random.default_rng(1).dirichlet([0.2, 0.5, 1, 2], (7, 9)).transpose(2, 0, 1).astype(np.float32)
    got = entropy(classes)
    np.testing.assert_allclose(got, stats.entropy(classes.astype(np.float64), axis=0), rtol=0, atol=1e-6)
    assert got.dtype == np.float32 and got.shape == (7, 9)
    two = np.stack([classes[0], 1 - classes[0]])
    np.testing.assert_allclose(entropy(two), binary_entropy(classes[0]), atol=1e-6)


def test_the_ends_and_the_middle() -> None:
    np.testing.assert_array_equal(binary_entropy(np.array([0.0, 1.0])), [0, 0])
    np.testing.assert_array_equal(binary_entropy(np.array([True, False])), [0, 0])
    assert float(binary_entropy(np.float32(0.5))) == pytest.approx(math.log(2), rel=1e-7)
    assert binary_entropy(random_maps(1, 1000)).max() <= np.float32(math.log(2))
    np.testing.assert_array_equal(entropy(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])), [0, 0])
    assert float(entropy(np.full(3, 1 / 3))) == pytest.approx(math.log(3), rel=1e-6)


def test_running_sums_equal_the_whole_stack() -> None:
    maps = random_maps(30, 12, 15)
    samples = SampleMean()
    for probability in maps:
        samples.add(probability)
    assert samples.count == 30
    exact = maps.astype(np.float64)
    mean = exact.mean(axis=0)
    entropy_of_mean = stats.entropy(np.stack([mean, 1 - mean]), axis=0)
    mean_entropy = stats.entropy(np.stack([exact, 1 - exact]), axis=0).mean(axis=0)
    np.testing.assert_allclose(samples.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(samples.entropy(), entropy_of_mean, rtol=1e-6)
    np.testing.assert_allclose(samples.mutual_information(), entropy_of_mean - mean_entropy, rtol=0, atol=1e-6)
    assert {array.dtype for array in (samples.mean, samples.entropy(), samples.mutual_information())} == {
        np.dtype(np.float32)
    }


def test_running_sums_of_classes() -> None:
    maps = np.random.default_rng(4).dirichlet([0.3, 0.3, 0.3], (5, 6, 7)).transpose(0, 3, 1, 2)
    samples = SampleMean(classes=True)
    for probabilities in maps:
        samples.add(probabilities)
    mean_entropy = np.stack([stats.entropy(sample, axis=0) for sample in maps]).mean(axis=0)
    of_mean = stats.entropy(maps.mean(axis=0), axis=0)
    np.testing.assert_allclose(samples.mean, maps.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(samples.entropy(), of_mean, rtol=1e-6)
    np.testing.assert_allclose(samples.mutual_information(), of_mean - mean_entropy, atol=1e-6)


def test_one_sample_has_its_own_entropy_and_no_disagreement() -> None:
    probability = random_maps(1, 20, 20)[0]
    samples = SampleMean()
    samples.add(probability)
    np.testing.assert_array_equal(samples.mean, probability)
    np.testing.assert_array_equal(samples.entropy(), binary_entropy(probability))
    np.testing.assert_array_equal(samples.mutual_information(), 0)


def test_disagreement_and_indifference_differ() -> None:
    disagreement, indifference = SampleMean(), SampleMean()
    for value in (0.0, 1.0):
        disagreement.add(np.full((2, 2), value, np.float32))
        indifference.add(np.full((2, 2), 0.5, np.float32))
    np.testing.assert_allclose(disagreement.entropy(), indifference.entropy())
    np.testing.assert_allclose(disagreement.mutual_information(), math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(indifference.mutual_information(), 0)


def test_many_small_values_are_not_lost() -> None:
    samples = SampleMean()
    for value in [1.0] + [1e-8] * 999:
        samples.add(np.array([value], np.float32))
    exact = (1 + 999 * float(np.float32(1e-8))) / 1000
    assert float(samples._mean()[0]) == pytest.approx(exact, rel=1e-14)  # float32 sums would stay at 1


def test_the_caller_may_reuse_the_array() -> None:
    samples = SampleMean()
    buffer = np.full(3, 0.25)
    samples.add(buffer)
    buffer[:] = 0.75
    samples.add(buffer)
    np.testing.assert_allclose(samples.mean, 0.5)
    np.testing.assert_array_equal(buffer, 0.75)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-3, 1.001])
def test_values_outside_are_refused(value: float) -> None:
    probability = np.array([0.5, value])
    for function in (binary_entropy, entropy, SampleMean().add):
        with pytest.raises(InputError, match="1 of 2"):
            function(probability)


def test_other_mistakes() -> None:
    with pytest.raises(InputError, match="sum of 1"):
        entropy(np.full((2, 3), 0.6))
    with pytest.raises(InputError, match="no sample"):
        _ = SampleMean().mean
    with pytest.raises(InputError, match="no sample"):
        SampleMean().mutual_information()
    samples = SampleMean()
    samples.add(np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"\(3,\)"):
        samples.add(np.zeros(3))
    assert samples.count == 1
