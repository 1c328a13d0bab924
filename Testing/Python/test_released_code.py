"""The behaviour of the authors' program: expected values worked out by hand or with other libraries."""

from __future__ import annotations

import numpy as np
import pytest

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.released_code import (
    outer_contours,
    released_coarse_mask,
    released_largest,
    released_saliency,
    released_visual_prompts,
)
from MedCLIPSAMLib.results import CoarseMask, Component
from MedCLIPSAMLib.saliency.normalise import to_image


def patches(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((14, 14)).astype(np.float32)


def coarse_of(mask: np.ndarray) -> CoarseMask:
    return CoarseMask(mask, 0.5, (Component((0, 0, 1, 1), 1, 0.5),), mask.astype(np.int32))


def blocks(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


class TestSaliency:
    @pytest.mark.parametrize("shape", [(224, 224), (448, 896), (300, 517), (112, 56)])
    def test_is_the_224_map_repeated_in_8_bit(self, shape):
        """The bilinear map by torch; nearest neighbour by the rule floor(i * source / target) in whole numbers."""
        torch = pytest.importorskip("torch")
        plane = patches()
        full = torch.nn.functional.interpolate(torch.from_numpy(plane)[None, None], size=224, mode="bilinear")
        full = full[0, 0].double().numpy()
        full = (full - full.min()) / (full.max() - full.min())
        rows, columns = (np.arange(side) * 224 // side for side in shape)
        expected = 255 * full[np.ix_(rows, columns)]
        got = released_saliency(plane, shape)
        assert got.shape == shape and got.dtype == np.float32 and got.min() >= 0 and got.max() <= 1
        levels = got.astype(np.float64) * 255
        np.testing.assert_allclose(levels, np.rint(levels), rtol=0, atol=1e-4)
        np.testing.assert_allclose(levels, expected, rtol=0, atol=0.5 + 1e-3)

    @pytest.mark.parametrize("shape", [(230, 310), (512, 512), (900, 700)])
    def test_from_the_finished_map_it_is_off_by_little(self, shape):
        """``plane`` may be the map over the image itself."""
        finished = to_image(patches(1), Frame(*shape, 224, keep_aspect=False))
        off = np.abs(released_saliency(finished) - released_saliency(patches(1), shape)) * 255
        assert off.mean() < 1 and off.max() < 14

    def test_a_constant_map_is_zero(self):
        assert not released_saliency(np.full((14, 14), 3.0, np.float32), (30, 40)).any()


class TestCoarseMask:
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_scikit_learns_k_means(self, seed):
        """To two grey levels: on whole numbers several thresholds stand still, and a random start ends at any."""
        cluster = pytest.importorskip("sklearn.cluster")
        picture = np.rint(255 * to_image(patches(seed) ** 2, Frame(300, 400, 224, keep_aspect=False)))
        small = picture[np.ix_(np.arange(256) * 300 // 256, np.arange(256) * 400 // 256)]
        means = cluster.KMeans(n_clusters=2, random_state=10, n_init=1).fit(small.reshape(-1, 1))
        got = released_coarse_mask((picture / 255).astype(np.float32), components=1000)
        level = 255 * got.threshold
        assert level == pytest.approx(means.cluster_centers_.mean(), abs=2)
        spread = sum(part.var() * part.size for part in (small[small > level], small[small <= level]))
        assert spread < 1.001 * means.inertia_
        enlarged = small[np.ix_(np.arange(300) * 256 // 300, np.arange(400) * 256 // 400)]
        np.testing.assert_array_equal(got.mask, enlarged > level)
        assert got.dropped == 0

    def test_keeps_the_largest_and_all_that_equal_the_last(self):
        """Also of components that touch at a corner: they are one."""
        boxes = [(0, 0, 8, 8), (8, 8, 10, 10), (20, 5, 30, 12), (40, 5, 50, 12), (20, 30, 23, 33)]
        mask = blocks(*boxes, shape=(256, 256))
        saliency = np.where(mask, 0.9, 0.1).astype(np.float32)
        saliency[5:12, 40:50] = 1.0
        kept = released_coarse_mask(saliency, 1)
        assert [c.box for c in kept.components] == [(40, 5, 50, 12), (20, 5, 30, 12)]  # the more confident first
        assert [c.area for c in kept.components] == [70, 70] and kept.dropped == 2
        assert (kept.labels[5:12, 40:50] == 1).all() and (kept.labels[5:12, 20:30] == 2).all()
        np.testing.assert_array_equal(kept.mask, blocks(*boxes[2:4], shape=(256, 256)))
        assert [c.confidence for c in kept.components] == pytest.approx([1.0, 230 / 255])
        assert [c.area for c in released_coarse_mask(saliency, 3).components] == [70, 70, 68]

    def test_the_picture_of_256_loses_detail(self):
        """A line one pixel wide vanishes from an image of 1024, or becomes wider."""
        saliency = np.zeros((1024, 1024), np.float32)
        saliency[100:300, 100:300] = 1
        saliency[:, 601] = 1
        np.testing.assert_array_equal(
            released_coarse_mask(saliency, 9).mask, blocks((100, 100, 300, 300), shape=(1024, 1024))
        )

    def test_a_constant_map_gives_nothing(self):
        assert released_coarse_mask(np.full((30, 40), 0.5, np.float32)).components == ()

    def test_no_component_is_refused(self):
        with pytest.raises(InputError, match="components is 0"):
            released_coarse_mask(np.eye(30, dtype=np.float32), 0)


class TestVisualPrompts:
    MASK = blocks((5, 5, 15, 20), (30, 10, 60, 40))

    def test_one_box_around_all(self):
        """Which ends one pixel before the image does."""
        prompts = released_visual_prompts(coarse_of(self.MASK))
        np.testing.assert_array_equal(prompts.boxes, [[5, 5, 59, 39]])
        assert prompts.boxes.dtype == np.float32 and prompts.points is None

    def test_or_one_around_each_outer_contour(self):
        mask = self.MASK.copy()
        mask[15:35, 35:55] = False
        mask[20:25, 40:45] = True  # an island in the hole
        boxes = released_visual_prompts(coarse_of(mask), merged=False).boxes
        np.testing.assert_array_equal(boxes, [[5, 5, 15, 20], [30, 10, 59, 39]])
        assert outer_contours(mask) == 2

    @pytest.mark.parametrize(("kind", "merged", "rows"), [("points", False, 1), ("both", True, 1), ("both", False, 2)])
    def test_ten_points_of_the_union_for_every_row(self, kind, merged, rows):
        prompts = released_visual_prompts(coarse_of(self.MASK), kind, seed=4, merged=merged)
        assert prompts.points.shape == (rows, 10, 2) and (prompts.point_labels == 1).all()
        assert (prompts.boxes is None) == (kind == "points")
        assert (prompts.points == prompts.points[:1]).all()
        x, y = prompts.points[0].astype(int).T
        assert self.MASK[y, x].all() and len(set(zip(x, y, strict=True))) == 10
        assert self.MASK[y, x][x < 20].any() and self.MASK[y, x][x >= 30].any()  # of both
        again = released_visual_prompts(coarse_of(self.MASK), kind, seed=4, merged=merged)
        np.testing.assert_array_equal(prompts.points, again.points)
        other = released_visual_prompts(coarse_of(self.MASK), kind, seed=5, merged=merged)
        assert (prompts.points != other.points).any()

    def test_fewer_pixels_than_points(self):
        prompts = released_visual_prompts(coarse_of(blocks((3, 3, 5, 5))), "points")
        assert prompts.point_labels[0].tolist() == [1] * 4 + [-1] * 6
        assert {tuple(point) for point in prompts.points[0, :4]} == {(3, 3), (4, 3), (3, 4), (4, 4)}

    @pytest.mark.parametrize("kind", ["boxes", "points", "both"])
    def test_an_empty_mask_asks_nothing(self, kind):
        assert len(released_visual_prompts(coarse_of(blocks()), kind)) == 0

    def test_unknown_kinds_are_refused(self):
        with pytest.raises(InputError, match="'circles'"):
            released_visual_prompts(coarse_of(self.MASK), "circles")


class TestLargest:
    def test_keeps_so_many_and_their_equals(self):
        small, large, corner = (0, 0, 3, 3), (10, 10, 20, 20), (20, 20, 23, 23)
        mask = blocks(small, large, corner, (30, 0, 33, 3))
        np.testing.assert_array_equal(released_largest(mask, 1), blocks(large, corner))
        np.testing.assert_array_equal(released_largest(mask, 2), mask)  # both of the small ones
        assert released_largest(mask, 1).dtype == bool

    def test_none(self):
        mask = blocks((0, 0, 3, 3))
        assert not released_largest(mask, 0).any()
        assert not released_largest(blocks(), 2).any()
