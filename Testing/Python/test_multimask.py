"""One mask from several candidates: the four rules, against what can be computed by hand, and their dead ends."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.sam.multimask import RULES, combine


def candidates(number: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Discs of three sizes about different centres, as logits, and scores in no order."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :50]
    logits = np.empty((number, 3, 40, 50), np.float32)
    for row in range(number):
        for column, radius in enumerate((6, 10, 14)):
            centre = rng.uniform(15, 25, 2)
            logits[row, column] = radius - np.hypot(y - centre[0], x - centre[1])
    return logits, rng.uniform(0.3, 1, (number, 3)).astype(np.float32)


@pytest.mark.parametrize("rule", RULES)
def test_shape_range_and_rows_by_themselves(rule):
    logits, scores = candidates(3)
    together = combine(logits, scores, rule)
    assert together.shape == (3, 40, 50) and together.dtype == np.float32
    assert together.min() >= 0 and together.max() <= 1 and (together > 0.5).any()
    for row in range(3):
        np.testing.assert_array_equal(combine(logits[row : row + 1], scores[row : row + 1], rule)[0], together[row])


def test_best_is_the_sigmoid_of_the_highest_score():
    logits, _ = candidates()
    scores = np.array([[0.2, 0.9, 0.5], [0.7, 0.1, -3]], np.float32)
    combined = combine(logits, scores, "best")
    for row, column in ((0, 1), (1, 0)):
        np.testing.assert_allclose(combined[row], 1 / (1 + np.exp(-logits[row, column].astype(float))), atol=1e-6)
    assert np.isfinite(combine(np.full((1, 1, 2, 2), 1e4, np.float32), np.ones((1, 1)), "best")).all()


def test_average_is_the_majority():
    logits, scores = candidates()
    combined = combine(logits, scores, "average")
    np.testing.assert_allclose(combined, (logits > 0).sum(axis=1) / 3, atol=1e-6)
    np.testing.assert_array_equal(combined > 0.5, (logits > 0).sum(axis=1) >= 2)


def test_mrm_is_the_stretched_sum_by_scores():
    logits, scores = candidates()
    combined = combine(logits, scores, "mrm")
    for row in range(2):
        total = sum(scores[row, column].astype(float) * (logits[row, column] > 0) for column in range(3))
        np.testing.assert_allclose(combined[row], (total - total.min()) / (total.max() - total.min()), atol=1e-6)
    trusted = combine(logits, np.array([[5, 0.1, 0.1]] * 2, np.float32), "mrm")
    np.testing.assert_array_equal(trusted > 0.5, logits[:, 0] > 0)


def test_staple_is_simpleitks():
    logits, scores = candidates()
    combined = combine(logits, scores, "staple")
    for row in range(2):
        images = [sitk.GetImageFromArray((plane > 0).astype(np.int16)) for plane in logits[row]]
        np.testing.assert_allclose(combined[row], sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0)), atol=1e-6)


def test_staple_trusts_those_that_agree():
    """Four nearly equal discs against one that is elsewhere."""
    y, x = np.mgrid[:60, :60]
    centres = [(20, 20), (20, 21), (21, 20), (20, 20), (45, 45)]
    logits = np.stack([10 - np.hypot(y - row, x - column) for row, column in centres])[None].astype(np.float32)
    combined = combine(logits, np.ones((1, 5), np.float32), "staple")[0]
    assert combined[20, 20] > 0.99 and combined[45, 45] < 0.01


@pytest.mark.parametrize("rule", RULES)
def test_where_all_agree_that_is_the_mask(rule):
    """Also where all are empty, or full: there the two weighted rules have nothing to divide by."""
    scores = np.array([[0.2, 0.9, 0.5]], np.float32)
    disc = candidates(1)[0][:, :1]
    for plane in (np.full((1, 1, 8, 9), -5, np.float32), np.full((1, 1, 8, 9), 5, np.float32), disc):
        combined = combine(np.repeat(plane, 3, axis=1), scores, rule)
        assert np.isfinite(combined).all()
        np.testing.assert_array_equal(combined[0] > 0.5, plane[0, 0] > 0)


@pytest.mark.parametrize("rule", ["mrm", "staple", "average"])
@pytest.mark.parametrize("scores", [[0, 0, 0], [-1, -2, -3], [0, 0, 0.5]])
def test_useless_scores_and_disjoint_masks(rule, scores):
    masks = np.zeros((3, 12, 12), bool)
    masks[0, :4], masks[1, 4:8], masks[2, 8:9, :2] = True, True, True
    logits = np.where(masks, 3, -3)[None].astype(np.float32)
    combined = combine(logits, np.array([scores], np.float32), rule)
    assert np.isfinite(combined).all() and combined.min() >= 0 and combined.max() <= 1


def test_weightless_candidates_do_not_vote():
    """All weight is on a full mask, so the sum is constant although the masks differ."""
    logits = np.full((1, 2, 6, 6), 3, np.float32)
    logits[0, 1, :3] = -3
    assert (combine(logits, np.array([[0.9, 0]], np.float32), "mrm") > 0.5).all()
    assert not (combine(-logits, np.array([[0.9, 0]], np.float32), "mrm") > 0.5).any()


def test_what_does_not_fit_is_refused():
    logits, scores = candidates()
    with pytest.raises(InputError, match="'vote' is unknown; choose one of best, average, mrm, staple"):
        combine(logits, scores, "vote")
    for wrong in ((logits[:, 0], scores), (logits, scores[:, :2]), (logits[:, :0], scores[:, :0])):
        with pytest.raises(InputError, match="do not fit"):
            combine(*wrong, "best")
    assert combine(logits[:0], scores[:0], "average").shape == (0, 40, 50)
