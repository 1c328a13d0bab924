"""Whether a probability means what it says, and whether an entropy points at the errors: figures over many images.

Both classes take one image after the other and keep counts per bin only, so the memory does not grow with the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from MedCLIPSAMLib.errors import InputError

BINS = 15
SMALLEST = float(np.finfo(np.float32).eps)  # of the true class, in the NLL: maps are float32, and ln 0 is infinite
_CHUNK = 1 << 21  # pixels looked at together: bounds the memory of a volume
_SHIFT = 12  # bits of a float32 that are left out of an entropy's bin: 11 of the mantissa stay, 0.05 %
_LEVELS = 1 << (31 - _SHIFT)


class Reliability:
    """ECE, Brier score and negative log-likelihood of class probabilities against a reference.

    The bins are those of Guo et al. (ICML 2017, arXiv 1706.04599): of equal width over [0, 1], open below and closed
    above.

    >>> figures = Reliability()
    >>> figures.add(np.array([0.9, 0.2]), np.array([True, False]))
    >>> round(figures.brier, 3)
    0.05
    """

    def __init__(self) -> None:
        self.pixels = 0
        self._brier = 0.0
        self._nll = 0.0
        self._largest = np.zeros((3, BINS))  # pixels, sum of the confidence, right ones
        self._target = np.zeros((3, BINS))  # pixels, sum of the target's probability, pixels of the target

    def add(self, probability: np.ndarray, truth: np.ndarray) -> None:
        """Take in one image.

        Args:
            probability: (H, W) probability of the target, or (R, H, W) of R classes whose first one is the background,
                in [0, 1]; any number of axes in the place of (H, W).
            truth: (H, W) the reference: bool, or the class 0..R-1.

        Raises:
            InputError: Shapes that do not fit, a value outside its range, or classes that do not add up to 1.
        """
        probability, truth = np.asarray(probability), np.asarray(truth)
        classes = probability if probability.ndim == truth.ndim + 1 else probability[None]
        if classes.shape[1:] != truth.shape or truth.dtype.kind not in "bui":
            raise InputError(
                f"probability is {probability.shape} and truth {truth.shape} of {truth.dtype}; pass a map (H, W), or "
                "(R, H, W) of R classes, with a reference (H, W) of bool or integers."
            )
        binary = probability.ndim == truth.ndim
        if truth.size and not 0 <= int(truth.min()) <= int(truth.max()) < (2 if binary else len(classes)):
            raise InputError(f"truth holds {truth.min()} to {truth.max()}; the classes are 0 to {len(classes) - 1}.")
        for values, reference in _chunks(classes.reshape(len(classes), -1), truth.ravel()):
            values = values.astype(np.float64)
            if not ((values >= 0) & (values <= 1)).all():
                raise InputError("a probability is NaN or outside [0, 1]; apply sigmoid or softmax first.")
            values = np.concatenate([1 - values, values]) if binary else values
            if np.abs(values.sum(axis=0) - 1).max() > 1e-3:
                raise InputError("the class probabilities of a pixel do not add up to 1; apply the softmax first.")
            self._count(values, reference.astype(np.intp))

    def merge(self, other: Reliability) -> None:
        """Take in what another one has counted."""
        self.pixels += other.pixels
        self._brier += other._brier
        self._nll += other._nll
        self._largest += other._largest
        self._target += other._target

    @property
    def ece(self) -> float:
        """Expected calibration error: mean distance of accuracy and largest class probability over 15 bins."""
        _, confidence, right = self._largest
        return float(np.abs(right - confidence).sum() / self.pixels) if self.pixels else float("nan")

    @property
    def brier(self) -> float:
        """Brier score (1950): squared error summed over the classes, mean over the pixels; in [0, 2]."""
        return self._brier / self.pixels if self.pixels else float("nan")

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood in nats; a probability below 1.2e-7 of the true class counts as that."""
        return self._nll / self.pixels if self.pixels else float("nan")

    @property
    def confidence_bins(self) -> dict[str, list[Any]]:
        """15 bins of the largest class probability: ``count``, mean ``predicted``, ``observed`` accuracy or None."""
        return _columns(self._largest)

    @property
    def target_bins(self) -> dict[str, list[Any]]:
        """15 bins of the target's probability (of all classes but the first): ``observed`` is how often it is there."""
        return _columns(self._target)

    def _count(self, values: np.ndarray, truth: np.ndarray) -> None:
        """Count (R, N) probabilities with their (N,) classes."""
        own = values[truth, np.arange(truth.size)]
        self.pixels += truth.size
        self._brier += float(((values**2).sum(axis=0) - 2 * own + 1).sum())
        self._nll -= float(np.log(np.clip(own, SMALLEST, 1)).sum())
        _fill(self._largest, values.max(axis=0), values.argmax(axis=0) == truth)
        _fill(self._target, np.clip(1 - values[0], 0, 1) if len(values) > 2 else values[1], truth > 0)


class RiskCoverage:
    """AURC and excess AURC: the error left when the least certain pixels are put aside (Geifman et al., ICLR 2019).

    The pixels are ordered by their entropy, the most certain first. The risk at coverage k / N is the share of errors
    among the first k; AURC is its mean over k = 1..N (arXiv 1805.08206, section 2). Entropies that agree to 0.05 %
    count as equal, and equal ones as shuffled: every order of theirs has the same part in the figure.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((2, _LEVELS), np.int64)  # pixels, errors

    def add(self, entropy: np.ndarray, error: np.ndarray) -> None:
        """Take in one image.

        Args:
            entropy: (H, W) at least 0, for example in nats; any measure of doubt will do.
            error: (H, W) bool, where the mask differs from the reference.

        Raises:
            InputError: Different shapes, or a value that is negative, infinite or NaN.
        """
        entropy, error = np.asarray(entropy), np.asarray(error, bool)
        if entropy.shape != error.shape:
            raise InputError(f"entropy is {entropy.shape} and error {error.shape}; both need the same shape.")
        for (values,), wrong in _chunks(entropy.reshape(1, -1), error.ravel()):
            values = values.astype(np.float32) + np.float32(0)  # no negative zero
            if not ((values >= 0) & np.isfinite(values)).all():
                raise InputError("an entropy is negative, infinite or NaN; pass values from 0 on.")
            level = values.view(np.uint32) >> _SHIFT  # positive floats are in the order of their bits
            self._counts[0] += np.bincount(level, minlength=_LEVELS)
            self._counts[1] += np.bincount(level[wrong], minlength=_LEVELS)

    def merge(self, other: RiskCoverage) -> None:
        """Take in what another one has counted."""
        self._counts += other._counts

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self._counts[0].sum())

    @property
    def error(self) -> float:
        """Share of the pixels that are wrong: the risk at full coverage."""
        return float(self._counts[1].sum() / self.pixels) if self.pixels else float("nan")

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve, in [0, 1]; lower is better."""
        if not self.pixels:
            return float("nan")
        counts, errors = self._counts[:, self._counts[0] > 0].astype(float)
        before, errors_before = np.cumsum(counts) - counts, np.cumsum(errors) - errors
        share = errors / counts
        # The sum over j = 1..count of (errors_before + share j) / (before + j), by harmonic numbers.
        areas = errors + (errors_before - share * before) * (_harmonic(before + counts) - _harmonic(before))
        return float(areas.sum() / self.pixels)

    @property
    def excess_aurc(self) -> float:
        """AURC less that of an order which puts every error last; 0 is as good as can be with these errors."""
        if not self.pixels:
            return float("nan")
        wrong, right = float(self._counts[1].sum()), float(self.pixels - self._counts[1].sum())
        best = (wrong - right * (_harmonic(right + wrong) - _harmonic(right))) / self.pixels
        return self.aurc - float(best)


def _chunks(values: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, labels.size, _CHUNK):
        yield values[:, start : start + _CHUNK], labels[start : start + _CHUNK]


def _fill(bins: np.ndarray, values: np.ndarray, hits: np.ndarray) -> None:
    """Add (N,) values in [0, 1] with their (N,) hits to (3, 15) bins."""
    index = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], values, "left")  # open below, closed above
    bins += [np.bincount(index, weights, BINS) for weights in (None, values, hits)]


def _columns(bins: np.ndarray) -> dict[str, list[Any]]:
    count, predicted, observed = bins
    known = count > 0
    return {
        "count": [int(value) for value in count],
        "predicted": [float(predicted[i] / count[i]) if known[i] else None for i in range(BINS)],
        "observed": [float(observed[i] / count[i]) if known[i] else None for i in range(BINS)],
    }


def _harmonic(number: np.ndarray | float) -> np.ndarray:
    """Return 1 + 1/2 + ... + 1/n, less a constant."""
    from scipy.special import digamma

    return digamma(np.asarray(number, float) + 1)
