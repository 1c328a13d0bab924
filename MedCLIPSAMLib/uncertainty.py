"""Mean probability, entropy (Eq. 22 of Koleilat et al., arXiv 2409.19483) and mutual information of several samples.

All in nats: the entropy of R classes lies in [0, ln R]. Mutual information (Houlsby et al., arXiv 1112.5745) is the
part of the entropy that comes from the samples' disagreement.
"""

from __future__ import annotations

import numpy as np
from scipy.special import entr

from MedCLIPSAMLib.errors import InputError


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """Return -p ln p - (1 - p) ln(1 - p), with 0 ln 0 = 0: Eq. 22 for two classes.

    Args:
        probability: Any shape, in [0, 1].

    Returns:
        float32 of the same shape, in [0, ln 2].

    Raises:
        InputError: A value is NaN or outside [0, 1].
    """
    return _binary(_checked(probability)).astype(np.float32)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Return -sum_r p_r ln p_r over the classes, with 0 ln 0 = 0: Eq. 22.

    Args:
        probabilities: (R, ...) in [0, 1]; the R classes of each pixel add up to 1.

    Returns:
        float32 of shape (...), in [0, ln R].

    Raises:
        InputError: A value is NaN or outside [0, 1], or the classes of a pixel do not add up to 1 within 0.001.
    """
    return _over_classes(_checked_classes(probabilities)).astype(np.float32)


class SampleMean:
    """Probability maps of several samples, kept as running sums: the memory does not grow with their number.

    >>> samples = SampleMean()
    >>> samples.add(np.array([0.0, 0.25]))
    >>> samples.add(np.array([1.0, 0.25]))
    >>> samples.mean
    array([0.5 , 0.25], dtype=float32)

    Args:
        classes: False for maps of one probability per pixel; True for (R, ...) maps whose R classes add up to 1.
    """

    def __init__(self, classes: bool = False) -> None:
        self.count = 0
        self._classes = classes
        self._sum: np.ndarray | None = None
        self._entropy_sum: np.ndarray | None = None

    def add(self, probability: np.ndarray) -> None:
        """Take in one sample.

        Args:
            probability: In [0, 1], of the same shape at every call.

        Raises:
            InputError: See :func:`binary_entropy` and :func:`entropy`, or the shape differs from the first sample's.
        """
        probability = _checked_classes(probability) if self._classes else _checked(probability)
        if self._sum is None or self._entropy_sum is None:
            self._sum = probability.copy()
            self._entropy_sum = self._entropy(probability)
        elif probability.shape != self._sum.shape:
            raise InputError(
                f"the sample has shape {probability.shape}, the ones before {self._sum.shape}; they must agree."
            )
        else:
            self._sum += probability
            self._entropy_sum += self._entropy(probability)
        self.count += 1

    @property
    def mean(self) -> np.ndarray:
        """Mean probability of the samples, float32 in [0, 1] (Eq. 21)."""
        return self._mean().astype(np.float32)

    def entropy(self) -> np.ndarray:
        """Return the entropy of the mean, float32 in nats (Eq. 22); (R, ...) samples give (...)."""
        return self._entropy(self._mean()).astype(np.float32)

    def mutual_information(self) -> np.ndarray:
        """Return the entropy of the mean less the mean entropy, float32 in nats, at least 0; 0 for one sample."""
        entropy_of_mean = self._entropy(self._mean())
        return np.maximum(entropy_of_mean - self._entropy_sum / self.count, 0).astype(np.float32)

    def _mean(self) -> np.ndarray:
        if self._sum is None:
            raise InputError("there is no sample yet; add one before asking for the mean.")
        return np.clip(self._sum / self.count, 0, 1)

    def _entropy(self, probability: np.ndarray) -> np.ndarray:
        return _over_classes(probability) if self._classes else _binary(probability)


def _binary(probability: np.ndarray) -> np.ndarray:
    return entr(probability) + entr(1 - probability)


def _over_classes(probabilities: np.ndarray) -> np.ndarray:
    return entr(probabilities).sum(axis=0)


def _checked(probability: np.ndarray) -> np.ndarray:
    """Return float64, so that sums of many samples and differences of entropies keep float32's precision."""
    probability = np.asarray(probability, np.float64)
    outside = int(probability.size - ((probability >= 0) & (probability <= 1)).sum())  # NaN counts as outside
    if outside:
        raise InputError(
            f"{outside} of {probability.size} probabilities are NaN or outside [0, 1]; apply sigmoid or softmax first."
        )
    return probability


def _checked_classes(probabilities: np.ndarray) -> np.ndarray:
    probabilities = _checked(probabilities)
    if probabilities.ndim == 0:
        raise InputError("class probabilities need a first axis of classes: (R, ...).")
    error = float(np.abs(probabilities.sum(axis=0) - 1).max(initial=0))
    if error > 1e-3:
        raise InputError(f"the class probabilities of a pixel miss a sum of 1 by {error:.3g}; apply the softmax first.")
    return probabilities
