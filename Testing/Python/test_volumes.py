"""Volumes slice by slice: geometry, gate and its smoothing, cancelling, and memory that does not grow."""

from __future__ import annotations

import copy
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from MedCLIPSAMLib.errors import CancelledError, InputError
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.pipeline import TextSegmenter
from MedCLIPSAMLib.presence import PresenceCalibration
from MedCLIPSAMLib.results import VolumeResult
from MedCLIPSAMLib.volumes import segment_volume

PROMPT, OTHER = "brain tumor", "both lungs"
WINDOW = (-200.0, 300.0)
MAPS = ("saliency", "coarse", "mask", "entropy")
VARIED = PresenceCalibration(weights=(30.0, 30.0, 0.0), bias=0.0, threshold=0.0)
REJECTS_ALL = PresenceCalibration(weights=(0.0, 0.0, 0.0), bias=0.0, threshold=0.9)


def slices(count: int, height: int = 48, width: int = 64, different: int = 3) -> np.ndarray:
    """(count, height, width) int16 with a bright ball that moves; every ``different``-th slice is the same.

    The encoder remembers the last few images, so that the same three slices over and over cost three encodings.
    """
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    planes = []
    for index in range(different):
        ball = (x - 20 - 9 * index) ** 2 + (y - 15 - 5 * index) ** 2 < (8 + index) ** 2
        planes.append(np.where(ball, 250, -50) + rng.normal(0, 30, ball.shape))
    return np.stack([planes[index % different] for index in range(count)]).astype(np.int16)


def volume(array: np.ndarray, matrix: np.ndarray | None = None, **changes) -> MedicalImage:
    matrix = np.diag([-1.0, -1.0, 4.0, 1.0]) if matrix is None else matrix
    image = MedicalImage(array, matrix, "MR", WINDOW, is_volume=True, path=Path("phantom"), spacing_known=True)
    return replace(image, **changes)


@pytest.fixture
def build(untrained_segmenter):
    """Return a function that makes a segmenter of its own, with one sample and one box, around the shared models."""

    def build(calibration: PresenceCalibration | None = None, **settings) -> TextSegmenter:
        recipe = replace(untrained_segmenter.recipe, **{"samples": 1, "maximum_components": 1, **settings})
        return TextSegmenter(untrained_segmenter.clip, untrained_segmenter.segmenter, recipe, calibration)

    return build


def segment(segmenter: TextSegmenter, image: MedicalImage, **settings) -> VolumeResult:
    (result,) = segment_volume(segmenter, image, [PROMPT], **settings)
    return result


def statuses(result: VolumeResult) -> list[str]:
    return [record.status for record in result.slices]


def test_every_slice_is_what_the_pipeline_gives_for_it(build):
    segmenter = build(samples=2)
    array = slices(4)
    result = segment(segmenter, volume(array), seed=3)
    assert result.axis == 0 and statuses(result) == ["segmented"] * 4
    for name in MAPS:
        kind = np.float32 if name in ("saliency", "entropy") else np.bool_
        assert getattr(result, name).shape == array.shape and getattr(result, name).dtype == kind
    for index in range(3):
        segmenter.set_image(array[index], WINDOW)  # columns run to the left, rows to the back: as displayed
        expected = segmenter.segment(PROMPT, seed=3)
        np.testing.assert_array_equal(result.saliency[index], expected.saliency)
        np.testing.assert_array_equal(result.coarse[index], expected.coarse.mask)
        np.testing.assert_array_equal(result.mask[index], expected.mask)
        np.testing.assert_array_equal(result.entropy[index], expected.entropy)
        record = result.slices[index]
        assert (record.index, record.components, record.threshold) == (
            index,
            expected.coarse.components,
            expected.coarse.threshold,
        )
        assert record.presence is None and record.seconds > 0
    assert result.mask.any() and any("no presence calibration" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("order", "flips", "angles"),
    [
        ((0, 1, 2), (True, True, False), (0, 0, 0)),
        ((2, 0, 1), (False, True, True), (0, 0, 0)),
        ((1, 2, 0), (True, False, True), (9, -7, 11)),
    ],
    ids=["flipped", "permuted", "oblique"],
)
def test_results_lie_where_the_voxels_lie(build, order, flips, angles):
    """The same anatomy stored in another order gives the same voxels, bit for bit."""
    segmenter = build()
    array = slices(5)
    rotation = np.eye(4)
    rotation[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix = rotation @ np.diag([-0.9, -0.8, 4.0, 1.0])
    reference = segment(segmenter, volume(array, matrix))

    def stored(one: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.flip(one.transpose(order), [axis for axis in range(3) if flips[axis]]))

    # the new array's index -> the old one's, for axes K, J, I; then the same for I, J, K with the matrix
    back = np.zeros((4, 4))
    back[3, 3] = 1
    for new, old in enumerate(order):
        back[2 - old, 2 - new] = -1 if flips[new] else 1
        back[2 - old, 3] = array.shape[old] - 1 if flips[new] else 0
    result = segment(segmenter, volume(stored(array), matrix @ back))
    assert result.axis == order.index(0), "slices follow the thick axis"
    for name in MAPS:
        np.testing.assert_array_equal(getattr(result, name), stored(getattr(reference, name)), err_msg=name)
    numbers = [record.components for record in reference.slices]
    assert [record.components for record in result.slices] == (numbers[::-1] if flips[result.axis] else numbers)


def test_several_prompts_equal_one_at_a_time(build):
    segmenter = build(VARIED, samples=2)
    image = volume(slices(3))
    both = segment_volume(segmenter, image, [PROMPT, OTHER], axis="axial")
    assert [result.prompt for result in both] == [PROMPT, OTHER]
    for result in both:
        (alone,) = segment_volume(segmenter, image, [result.prompt], axis=0)
        for name in MAPS:
            np.testing.assert_array_equal(getattr(result, name), getattr(alone, name))
        assert [record.presence for record in result.slices] == [record.presence for record in alone.slices]


def test_another_axis(build):
    array = np.ascontiguousarray(slices(20).transpose(1, 0, 2)[:20])  # (K 20, J 20, I 64)
    result = segment(build(), volume(array), axis="coronal", slice_range=(3, 3))
    assert result.axis == 1 and statuses(result).count("segmented") == 1
    assert result.saliency[:, 3].any() and not np.delete(result.saliency, 3, axis=1).any()


def test_slice_range(build):
    calls = []
    result = segment(build(), volume(slices(6)), slice_range=(2, 4), progress=lambda *done: calls.append(done))
    assert statuses(result) == ["outside the range"] * 2 + ["segmented"] * 3 + ["outside the range"]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for name in MAPS:
        assert not getattr(result, name)[[0, 1, 5]].any()
    assert result.mask[2:5].any()


def test_blank_slices(build):
    array = slices(5)
    array[1] = -1000  # nothing to see
    array[2] = np.where(array[2] > 0, 5000, 4000)  # all above the window
    result = segment(build(), volume(array))
    assert statuses(result) == ["segmented", "blank", "blank", "segmented", "segmented"]
    for name in MAPS:
        assert not getattr(result, name)[1:3].any()
    assert result.slices[1].presence is None and result.slices[1].components == ()


def test_single_slice(build):
    array = slices(1)
    result = segment(build(VARIED), volume(array, np.diag([-1.0, -1.0, 0.5, 1.0])))
    assert result.axis == 0 and statuses(result) == ["segmented"] and result.mask.shape == (1, 48, 64)


def test_window_of_the_request_then_the_files_then_a_robust_one(build):
    array = slices(1)
    wide = segment(build(), volume(array), window=(-2000.0, 2000.0))
    other = segment(build(), volume(array))
    assert np.abs(wide.saliency - other.saliency).max() > 0.01
    np.testing.assert_array_equal(
        segment(build(), volume(array, window=None)).saliency,
        segment(build(), volume(array), window=tuple(np.percentile(array, (0.5, 99.5)))).saliency,
    )


class TestPresence:
    def test_score_is_the_mean_over_the_neighbours(self, build):
        segmenter = build(VARIED)
        array = slices(6)
        array[3] = -1000
        own = []
        for plane in array[:3]:
            segmenter.set_image(plane, WINDOW)
            own.append(segmenter.presence(PROMPT))
        own += [0.0, own[1], own[2]]  # the blank slice shows no target; slices 4 and 5 repeat 1 and 2
        assert len(set(own)) == 4
        result = segment(segmenter, volume(array))
        for index, around in ((0, own[0:2]), (1, own[0:3]), (2, own[1:4]), (4, own[3:6]), (5, own[4:6])):
            assert result.slices[index].presence == pytest.approx(np.mean(around), abs=1e-12), index
        result = segment(segmenter, volume(array), slice_range=(1, 2))  # what lies outside is not looked at
        for index in (1, 2):
            assert result.slices[index].presence == pytest.approx(np.mean(own[1:3]), abs=1e-12)

    def test_gate_skips_by_the_smoothed_score(self, build):
        scored = segment(build(VARIED), volume(slices(3)), gate=False)
        scores = [record.presence for record in scored.slices]
        assert statuses(scored) == ["segmented"] * 3 and len(set(scores)) == 3
        middle = replace(VARIED, threshold=sorted(scores)[1])
        result = segment(build(middle), volume(slices(3)))
        assert statuses(result) == [
            "segmented" if score >= middle.threshold else "skipped by the gate" for score in scores
        ]
        lowest = scores.index(min(scores))
        assert result.saliency[lowest].any(), "the saliency is still shown"
        for name in ("coarse", "mask", "entropy"):
            assert not getattr(result, name)[lowest].any(), name
        assert result.slices[lowest].components == ()
        assert any("1 of 3 slices were skipped" in warning for warning in result.warnings)

    def test_gate_off(self, build):
        image = volume(slices(2))
        shut, opened = (segment(build(REJECTS_ALL), image, gate=gate) for gate in (None, False))
        assert statuses(shut) == ["skipped by the gate"] * 2 and not shut.mask.any()
        assert statuses(opened) == ["segmented"] * 2
        np.testing.assert_array_equal(opened.mask, segment(build(), image).mask)
        assert all(record.presence == 0.5 for record in opened.slices)
        assert any("does not seem to be in this image" in text for text in opened.warnings), "both slices say so"

    def test_each_slice_is_encoded_once(self, build, monkeypatch):
        """Although the encoder remembers no more than a slice and its two neighbours."""
        monkeypatch.setattr("MedCLIPSAMLib.sam.lite_encoder.REMEMBERED", 3)
        segmenter = build(VARIED)
        encoder = segmenter.segmenter.encoder
        worked = []
        real = encoder.encoder.multi_scale
        monkeypatch.setattr(encoder.encoder, "multi_scale", lambda batch: (worked.append(1), real(batch))[1])
        encoder._remembered.clear()
        segment_volume(segmenter, volume(slices(4, different=4)), [PROMPT, OTHER])
        assert len(worked) == 4


class TestCancel:
    def test_nothing_is_returned(self, build):
        done = []
        with pytest.raises(CancelledError):
            segment(
                build(), volume(slices(4)), progress=lambda *one: done.append(one), cancelled=lambda: len(done) == 2
            )
        assert done == [(1, 4), (2, 4)]

    def test_finished_slices_are_kept_on_request(self, build, tmp_path):
        image = volume(slices(4))
        whole = segment(build(), image)
        for folder in (None, tmp_path):
            done = []
            part = segment(
                build(),
                image,
                progress=lambda *one, done=done: done.append(one),
                cancelled=lambda done=done: len(done) == 2,
                keep_finished=True,
                folder=folder,
            )
            assert statuses(part) == ["segmented"] * 2 + ["outside the range"] * 2
            for name in MAPS:
                np.testing.assert_array_equal(getattr(part, name)[:2], getattr(whole, name)[:2])
                assert not getattr(part, name)[2:].any()

    def test_in_the_middle_of_a_slice(self, build):
        """Between the stages of the third slice, or of its second prompt: half a slice is never kept."""
        image = volume(slices(3))
        asked = []
        segment_volume(build(), image, [PROMPT, OTHER], cancelled=lambda: bool(asked.append(None)))
        for call in range(1, len(asked) + 1, 5):
            left = iter(range(call))
            results = segment_volume(
                build(),
                image,
                [PROMPT, OTHER],
                cancelled=lambda left=left, call=call: next(left) == call - 1,
                keep_finished=True,
            )
            for result in results:
                for record in result.slices:
                    assert (record.status == "segmented") == bool(result.saliency[record.index].any())
                    assert record.status in ("segmented", "outside the range")


class TestFolder:
    def test_mapped_files_equal_the_arrays_in_memory(self, build, tmp_path):
        image = volume(slices(3))
        inside = segment_volume(build(VARIED), image, [PROMPT, OTHER])
        mapped = segment_volume(build(VARIED), image, [PROMPT, OTHER], folder=tmp_path)
        assert len(list(tmp_path.iterdir())) == 2 * len(MAPS)
        for number, (one, other) in enumerate(zip(mapped, inside, strict=True)):
            for name in MAPS:
                assert isinstance(getattr(one, name), np.memmap)
                written = np.load(tmp_path / f"{number}-{name}.npy")
                np.testing.assert_array_equal(written, getattr(other, name))
                assert written.dtype == getattr(other, name).dtype

    def test_memory_does_not_grow_with_the_slices(self, build, tmp_path):
        segmenter = build()

        def peak(count: int, folder: Path | None) -> int:
            image = volume(slices(count, 96, 128))
            tracemalloc.start()
            try:
                segment(segmenter, image, folder=folder)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        peak(3, None)  # the three encodings, and what is built once
        growth = {}
        for folder in (tmp_path, None):
            growth[folder] = peak(16, folder) - peak(4, folder)
        voxels = 12 * 96 * 128
        assert growth[None] > 9 * voxels, "10 bytes for each voxel: the measurement sees the maps"
        assert growth[tmp_path] < voxels, growth


class TestBadRequests:
    @pytest.mark.parametrize(
        ("changes", "settings", "message"),
        [
            ({"is_volume": False}, {}, "is not a volume"),
            ({"array": np.zeros((20, 30))}, {}, "is not a volume"),
            ({}, {"prompts": []}, "there is no prompt"),
            ({}, {"prompts": [PROMPT, " "]}, "holds no word"),
            ({}, {"axis": "diagonal"}, "'diagonal' is unknown"),
            ({}, {"axis": 3}, "axis 3 is unknown"),
            ({}, {"axis": "coronal"}, "coronal slices of this volume are 64 x 3 pixels; at least 16 x 16"),
            ({}, {"slice_range": (0, 3)}, "slices 0:3 do not lie in 0:2 of the axial axis"),
            ({}, {"slice_range": (2, 1)}, "slices 2:1 do not lie"),
            ({}, {"slice_range": (-1, 1)}, "slices -1:1 do not lie"),
            ({}, {"window": (5.0, 5.0)}, "the upper intensity must be above the lower one"),
            ({"ijk_to_ras": np.zeros((4, 4))}, {}, "invertible"),
            ({"array": np.full((3, 20, 20), np.nan)}, {}, "the volume holds 1200 NaN"),
        ],
    )
    def test_is_refused_before_anything_is_written(self, build, tmp_path, changes, settings, message):
        image = replace(volume(slices(3)), **changes)
        settings = {"prompts": [PROMPT], "folder": tmp_path, **settings}
        with pytest.raises(InputError) as caught:
            segment_volume(build(), image, **settings)
        assert message in str(caught.value)
        assert not list(tmp_path.iterdir())


def test_slices_of_a_whole_volume_have_a_threshold_of_their_own(build) -> None:
    """A score of one half opens the gate for an image and for a range of slices, not for a whole volume."""
    segmenter = build(PresenceCalibration((0.0, 0.0, 0.0), 0.0, threshold=0.4, slice_threshold=0.6))
    image = volume(slices(3))
    whole = segment(segmenter, image)
    assert [(one.status, one.presence) for one in whole.slices] == [("skipped by the gate", 0.5)] * 3
    part = segment(segmenter, image, slice_range=(1, 2))
    assert [one.status for one in part.slices] == ["outside the range", "segmented", "segmented"]
    assert (whole.presence_threshold, part.presence_threshold) == (0.6, 0.4)
    segmenter.set_image(image.array[0], WINDOW)
    result = segmenter.segment(PROMPT)
    assert not result.skipped and result.presence.threshold == 0.4


def test_slices_are_encoded_together_where_the_segmenter_gains_by_it(build):
    """An engine without a gate tells its segmenter of the next slices, each once; the result is the same."""
    segmenter = build(samples=1)
    image = volume(slices(4, different=2))
    alone = segment(segmenter, image)
    told = []

    class Ahead:
        batch = 3

        def __getattr__(self, name):
            return getattr(segmenter.segmenter, name)

        def prepare(self, images):
            told.append(len(images))

    together = copy.copy(segmenter)
    together.segmenter = Ahead()
    assert (segment(together, image).mask == alone.mask).all() and told == [3, 1]
    together.calibration = PresenceCalibration((0.0, 0.0, 0.0), -9.0, 0.5)  # a gate that skips every slice
    assert set(statuses(segment(together, image))) == {"skipped by the gate"} and told == [3, 1]


def test_what_every_slice_says_of_the_models_is_said_once(build):
    segmenter = build(samples=1, visual_prompt="points")  # LiteMedSAM was trained for boxes
    result = segment(segmenter, volume(slices(3)))
    assert sum("was trained for boxes" in text for text in result.warnings) == 1
    assert not any("was trained for" in text for record in result.slices for text in record.warnings)
