"""How good a mask, an uncertainty map or a score is: plain functions of arrays.

The rule for empty masks, the same in every measure of overlap: without a target in the reference there is nothing to
overlap with, so the value is NaN and the image counts towards specificity instead; an empty prediction on an image
with a target scores 0.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import numpy as np

from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError

_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # the four pixels that meet in a grid corner, highest bit first


def _pair(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both masks as bool (H, W), or raise :class:`InputError`."""
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.ndim != 2 or mask.dtype.kind not in "bui":
            raise InputError(
                f"{name} has shape {mask.shape} and type {mask.dtype}; pass a mask (H, W) of bool or integers."
            )
    if prediction.shape != truth.shape:
        raise InputError(f"prediction is {prediction.shape} and truth {truth.shape}; both masks need the same shape.")
    return prediction != 0, truth != 0


def dsc(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice similarity coefficient 2 |A and B| / (|A| + |B|).

    Args:
        prediction: (H, W) bool or integers, non-zero is foreground.
        truth: The reference, same shape.

    Returns:
        A number in [0, 1]; 0 for an empty prediction, NaN where the reference is empty.

    Raises:
        InputError: Masks of different shapes, or not masks.
    """
    prediction, truth = _pair(prediction, truth)
    if not truth.any():
        return float("nan")
    return float(2 * np.count_nonzero(prediction & truth) / (np.count_nonzero(prediction) + np.count_nonzero(truth)))


def nsd_2d(
    prediction: np.ndarray, truth: np.ndarray, tolerance: float = 2.0, spacing: tuple[float, float] = (1.0, 1.0)
) -> float:
    """Return the normalised surface distance of two contours: the share of both within ``tolerance`` of the other.

    The surface Dice of Nikolov et al. (Journal of Medical Internet Research 2021;23:e26151) in two dimensions, with
    the contour-length tables of the package surface-distance.

    Args:
        prediction: (H, W) bool or integers, non-zero is foreground.
        truth: The reference, same shape.
        tolerance: In the unit of ``spacing``.
        spacing: Height and width of a pixel; (1, 1) measures in pixels.

    Returns:
        A number in [0, 1]; 0 for an empty prediction, NaN where the reference is empty.

    Raises:
        InputError: Masks of different shapes, or not masks; a spacing that is not positive.
        MedCLIPSAMError: surface-distance is not installed.
    """
    spacing = tuple(float(size) for size in spacing)
    if len(spacing) != 2 or not all(0 < size < np.inf for size in spacing):
        raise InputError(f"spacing {spacing}: pass two positive numbers, the height and the width of a pixel.")
    return _surface_dice(prediction, truth, tolerance, spacing, _contour_lengths(spacing))


def nsd_paper(prediction: np.ndarray, truth: np.ndarray, tolerance: float = 2.0) -> float:
    """Return the NSD as the paper's numbers were made: a surface distance in 3D on masks of shape (H, W, 1).

    On a slab of one voxel every foreground pixel is a surface element, above and below, so the value is partly a
    measure of area and lies about 0.1 above :func:`nsd_2d`. Both faces of the slab are mirror images and have the same
    distances; that is why one plane is enough here. Only for comparison with the published tables.

    Args:
        prediction: (H, W) bool or integers, non-zero is foreground.
        truth: The reference, same shape.
        tolerance: In pixels.

    Returns:
        A number in [0, 1]; 0 for an empty prediction, NaN where the reference is empty.

    Raises:
        InputError: Masks of different shapes, or not masks.
        MedCLIPSAMError: surface-distance is not installed.
    """
    return _surface_dice(prediction, truth, tolerance, (1.0, 1.0), _slab_areas())


def _surface_dice(
    prediction: np.ndarray, truth: np.ndarray, tolerance: float, spacing: tuple[float, float], sizes: np.ndarray
) -> float:
    """Return the surface Dice of two masks.

    The distances of surface-distance 0.1 are not called: with empty masks it fails on numpy 2, it reads scipy
    namespaces that SciPy 2 removes, and it sorts what need not be sorted. Its tables are what matters.

    Args:
        prediction, truth: See :func:`nsd_2d`.
        tolerance, spacing: See :func:`nsd_2d`.
        sizes: (16,) length or area of the surface element at a grid corner, by which of its four pixels are
            foreground; NaN where there is no surface.
    """
    prediction, truth = _pair(prediction, truth)
    if not tolerance >= 0:
        raise InputError(f"tolerance {tolerance}: pass a distance of 0 or more.")
    if not truth.any():
        return float("nan")
    if not prediction.any():
        return 0.0
    from scipy.ndimage import distance_transform_edt

    rows, columns = (np.flatnonzero((prediction | truth).any(axis=axis)) for axis in (1, 0))
    crop = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # no surface lies outside
    elements = [sizes[_corner_codes(mask[crop])] for mask in (prediction, truth)]
    surfaces = [np.isfinite(element) for element in elements]
    within = total = 0.0
    for this, other in ((0, 1), (1, 0)):
        distance = distance_transform_edt(~surfaces[other], sampling=spacing)
        element = elements[this][surfaces[this]]
        within += element[distance[surfaces[this]] <= tolerance].sum()
        total += element.sum()
    return float(within / total)


def _corner_codes(mask: np.ndarray) -> np.ndarray:
    """Return for each of the (H + 1, W + 1) grid corners which of its four pixels are set, 0..15."""
    height, width = mask.shape[0] + 1, mask.shape[1] + 1
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros((height, width), np.uint8)
    for row, column in _CORNERS:
        codes = 2 * codes + padded[row : row + height, column : column + width]
    return codes


def _lookup_tables() -> ModuleType:
    try:
        from surface_distance import lookup_tables
    except ImportError as error:
        raise MedCLIPSAMError(
            'NSD needs the package surface-distance, which is not installed: pip install "surface-distance==0.1".'
        ) from error
    return lookup_tables


@lru_cache(maxsize=16)
def _contour_lengths(spacing: tuple[float, float]) -> np.ndarray:
    """Return (16,) contour lengths by corner code; the kernel of the table has our bit order."""
    lengths = np.array(_lookup_tables().create_table_neighbour_code_to_contour_length(spacing), float)
    lengths[[0, 15]] = np.nan
    return lengths


@lru_cache(maxsize=1)
def _slab_areas() -> np.ndarray:
    """Return (16,) areas of the surface element at a corner of a slab one voxel thick, on one of its two faces."""
    tables = _lookup_tables()
    areas = np.asarray(tables.create_table_neighbour_code_to_surface_area((1.0, 1.0, 1.0)), float)
    kernel = tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL[:, :, 0].ravel()
    bits = np.array([[code >> (3 - corner) & 1 for corner in range(4)] for code in range(16)])
    slab = areas[bits @ kernel]
    slab[0] = np.nan
    return slab


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative; ties count half.

    Args:
        scores: (N,) real.
        labels: (N,) bool, True is positive.

    Returns:
        A number in [0, 1], NaN when one of the classes is absent.

    Raises:
        InputError: Different lengths, or a score that is NaN.
    """
    scores, labels = np.asarray(scores).ravel(), np.asarray(labels, bool).ravel()
    if scores.shape != labels.shape or np.isnan(scores).any():
        raise InputError(f"{scores.size} scores and {labels.size} labels: pass as many of both, without NaN.")
    positives = int(labels.sum())
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ordered = np.sort(scores[~labels])
    below = np.searchsorted(ordered, scores[labels], "left")
    not_above = np.searchsorted(ordered, scores[labels], "right")
    return float((below.sum() + not_above.sum()) / (2.0 * positives * negatives))


def error_auroc(entropy: np.ndarray, error_mask: np.ndarray, pixels: int = 1_000_000) -> float:
    """Return how well the entropy finds the wrong pixels of one image: :func:`auroc` over its pixels.

    Args:
        entropy: (H, W) real.
        error_mask: (H, W) bool, True where the mask differs from the reference.
        pixels: Larger images are judged on this many of their pixels, drawn without replacement and always the same.

    Returns:
        A number in [0, 1]; 0.5 is chance; NaN when all pixels are right or all are wrong.

    Raises:
        InputError: Different shapes, or NaN.
    """
    entropy, error_mask = np.asarray(entropy), np.asarray(error_mask, bool)
    if entropy.shape != error_mask.shape:
        raise InputError(f"entropy is {entropy.shape} and error_mask {error_mask.shape}; both need the same shape.")
    if entropy.size > pixels:
        chosen = np.random.default_rng(0).choice(entropy.size, pixels, replace=False)
        entropy, error_mask = entropy.ravel()[chosen], error_mask.ravel()[chosen]
    return auroc(entropy, error_mask)


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: (N,) real, without NaN.
        seed: Of the resampling; the same values and seed give the same interval.
        resamples: How many means are drawn.
        level: Coverage, above 0 and below 1.

    Returns:
        Lower and upper bound; both NaN for no values, both the value itself for one.

    Raises:
        InputError: NaN among the values, or a level outside (0, 1).
    """
    values = np.asarray(values, float).ravel()
    if np.isnan(values).any() or not 0 < level < 1:
        raise InputError(f"{int(np.isnan(values).sum())} NaN values, level {level}: pass no NaN and a level in (0, 1).")
    if values.size == 0:
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // values.size)  # bounds the memory
    means = [
        values[random.integers(0, values.size, (min(rows, resamples - start), values.size))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    tail = (1 - level) / 2
    lower, upper = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(lower), float(upper)


def correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return Pearson's and Spearman's correlation of two samples.

    Args:
        x, y: (N,) real, without NaN.

    Returns:
        Pearson's r and Spearman's rho in [-1, 1]; both NaN for fewer than three pairs or a constant sample.

    Raises:
        InputError: Different lengths, or NaN.
    """
    x, y = np.asarray(x, float).ravel(), np.asarray(y, float).ravel()
    if x.shape != y.shape or np.isnan(x).any() or np.isnan(y).any():
        raise InputError(f"{x.size} and {y.size} values: pass as many of both, without NaN.")
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    from scipy.stats import pearsonr, spearmanr

    return float(pearsonr(x, y)[0]), float(spearmanr(x, y)[0])
