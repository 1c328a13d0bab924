"""Boxes and points for the components of a coarse mask."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from MedCLIPSAMLib.coarse import coarse_mask
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.results import CoarseMask, VisualPrompts
from MedCLIPSAMLib.visual_prompts import jitter_boxes, visual_prompts

HEIGHT, WIDTH = 50, 80


@pytest.fixture(scope="module")
def coarse() -> CoarseMask:
    """An L shape (its box holds foreign pixels), a square at the border, and a component of three pixels."""
    saliency = np.zeros((HEIGHT, WIDTH), np.float32)
    saliency[10:40, 10:14] = saliency[36:40, 10:40] = 0.9
    saliency[0:10, 70:80] = 0.8
    saliency[20, 20:23] = 0.7  # inside the box of the L
    return coarse_mask(saliency, method=0.5)


@pytest.fixture(scope="module")
def nothing() -> CoarseMask:
    return coarse_mask(np.zeros((HEIGHT, WIDTH), np.float32))


def test_boxes_of_the_components(coarse: CoarseMask) -> None:
    prompts = visual_prompts(coarse)
    assert len(prompts) == 3 and prompts.points is None and prompts.point_labels is None
    assert prompts.boxes.dtype == np.float32
    np.testing.assert_array_equal(prompts.boxes, [[10, 10, 40, 40], [70, 0, 80, 10], [20, 20, 23, 21]])


def test_padding_is_a_part_of_the_side_and_clipped(coarse: CoarseMask) -> None:
    boxes = visual_prompts(coarse, padding=0.5).boxes
    np.testing.assert_allclose(boxes, [[0, 0, 55, 50], [65, 0, 80, 15], [18.5, 19.5, 24.5, 21.5]])


def test_points_lie_inside_their_own_component(coarse: CoarseMask) -> None:
    prompts = visual_prompts(coarse, "points", points_per_component=10)
    assert prompts.boxes is None and len(prompts) == 3
    assert prompts.points.shape == (3, 10, 2) and prompts.points.dtype == np.float32
    assert prompts.point_labels.shape == (3, 10) and prompts.point_labels.dtype == np.int32
    for row in range(3):
        real = prompts.points[row][prompts.point_labels[row] == 1]
        assert len(np.unique(real, axis=0)) == len(real) == min(10, coarse.components[row].area)
        np.testing.assert_array_equal(real % 1, 0.5)
        x, y = real.astype(int).T
        assert (coarse.labels[y, x] == row + 1).all()
    np.testing.assert_array_equal(prompts.point_labels[2], [1, 1, 1] + [-1] * 7)


def test_negatives_lie_away_from_every_component(coarse: CoarseMask) -> None:
    prompts = visual_prompts(coarse, "both", points_per_component=4, negatives=30)
    assert prompts.boxes.shape == (3, 4) and prompts.points.shape == (3, 34, 2)
    distance = ndimage.distance_transform_edt(~coarse.mask)
    for row in range(3):
        negative = prompts.points[row][prompts.point_labels[row] == 0]
        assert len(np.unique(negative, axis=0)) == 30
        x, y = negative.astype(int).T
        assert (distance[y, x] > 1.6).all()  # 2 % of 80
    assert not np.array_equal(prompts.points[0, 4:], prompts.points[1, 4:])


def test_negatives_without_background() -> None:
    prompts = visual_prompts(coarse_mask(np.ones((16, 16), np.float32), method=0.5), "points", negatives=5)
    np.testing.assert_array_equal(prompts.point_labels, [[1] * 10 + [-1] * 5])


def test_the_seed_decides_the_points(coarse: CoarseMask) -> None:
    first, again, other = (visual_prompts(coarse, "points", negatives=2, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.points, again.points)
    assert not np.array_equal(first.points, other.points)


def test_points_spread_over_the_component(coarse: CoarseMask) -> None:
    prompts = visual_prompts(coarse, "points", points_per_component=60)
    np.testing.assert_allclose(prompts.points[1][:60].mean(axis=0), [75, 5], atol=1)


def test_empty_mask_gives_no_rows(nothing: CoarseMask) -> None:
    for kind in ("boxes", "points", "both"):
        assert len(visual_prompts(nothing, kind)) == 0
    prompts = visual_prompts(nothing, "both", points_per_component=3, negatives=1)
    assert prompts.boxes.shape == (0, 4) and prompts.points.shape == (0, 4, 2) and prompts.point_labels.shape == (0, 4)
    assert jitter_boxes(prompts, 0.1, np.random.default_rng(0), (HEIGHT, WIDTH)).boxes.shape == (0, 4)


def test_jitter_has_the_asked_spread() -> None:
    boxes = np.tile(np.float32([400, 500, 500, 700]), (4000, 1))
    moved = jitter_boxes(VisualPrompts(boxes=boxes), 0.05, np.random.default_rng(0), (1200, 1000)).boxes - boxes
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=0.6)
    np.testing.assert_allclose(moved.std(axis=0), [5, 10, 5, 10], rtol=0.05)
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.06  # each edge by itself


@pytest.mark.parametrize("strength", [0.1, 1.0, 50.0])
def test_jittered_boxes_stay_valid(strength: float) -> None:
    rng = np.random.default_rng(1)
    first = rng.uniform(0, [WIDTH - 1, HEIGHT - 1], (500, 2))
    last = first + 1 + rng.uniform(0, 1, (500, 2)) * ([WIDTH - 1, HEIGHT - 1] - first)
    prompts = VisualPrompts(boxes=np.concatenate([first, last], axis=1).astype(np.float32))
    boxes = jitter_boxes(prompts, strength, rng, (HEIGHT, WIDTH, 3)).boxes
    assert boxes.dtype == np.float32 and boxes.shape == (500, 4)
    assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= WIDTH).all() and (boxes[:, [1, 3]] <= HEIGHT).all()


def test_jitter_keeps_points_and_the_original(coarse: CoarseMask) -> None:
    prompts = visual_prompts(coarse, "both")
    before = prompts.boxes.copy()
    moved = jitter_boxes(prompts, 0.1, np.random.default_rng(2), coarse.mask.shape)
    assert not np.array_equal(moved.boxes, before)
    np.testing.assert_array_equal(prompts.boxes, before)
    np.testing.assert_array_equal(moved.points, prompts.points)
    again = jitter_boxes(prompts, 0.1, np.random.default_rng(2), coarse.mask.shape)
    np.testing.assert_array_equal(again.boxes, moved.boxes)
    still = jitter_boxes(prompts, 0.0, np.random.default_rng(2), coarse.mask.shape)
    np.testing.assert_array_equal(still.boxes, before)
    points = visual_prompts(coarse, "points")
    assert jitter_boxes(points, 0.1, np.random.default_rng(2), coarse.mask.shape) is points


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "circle"}, {"kind": "points", "points_per_component": 0}, {"kind": "points", "negatives": -1},
        {"kind": "boxes", "negatives": 2}, {"padding": -0.1}, {"padding": float("nan")},
    ],
)  # fmt: skip
def test_bad_settings(coarse: CoarseMask, settings: dict) -> None:
    with pytest.raises(InputError):
        visual_prompts(coarse, **settings)


def test_bad_jitter(coarse: CoarseMask) -> None:
    with pytest.raises(InputError, match="jitter"):
        jitter_boxes(visual_prompts(coarse), -1, np.random.default_rng(0), coarse.mask.shape)
