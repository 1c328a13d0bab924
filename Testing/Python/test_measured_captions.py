"""Captions measured on masks: what they say of drawn shapes, and the tables made of real data."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from drawn_data import ellipse, make_data

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.mask_measures import parts_of, perimeter
from MedCLIPSAMTraining.measured_captions import distinct_share, measured_captions, write_captions
from MedCLIPSAMTraining.measured_wording import describe, percent, shape_of


def captions_of(task: str, label: str, mask: np.ndarray, count: int = 60) -> list[str]:
    return [describe(task, label, parts_of(mask), np.random.default_rng(seed)) for seed in range(count)]


def test_measures_are_those_of_geometry() -> None:
    (part,) = parts_of(ellipse((300, 400), (75, 300), (20, 40), turn=30))
    assert part.area == pytest.approx(np.pi * 20 * 40 / (300 * 400), rel=0.01)
    assert (part.row, part.column) == pytest.approx((0.25, 0.75), abs=0.002)
    assert part.eccentricity == pytest.approx(np.sqrt(1 - 0.25), abs=0.01)
    assert part.axis == pytest.approx(30, abs=1)
    assert part.solidity > 0.97
    square = np.zeros((100, 200), bool)
    square[10:30, 40:60] = True
    (part,) = parts_of(square)
    assert (part.top, part.left, part.height, part.width) == (0.1, 0.2, 0.2, 0.1)
    assert part.solidity == 1.0


def test_measures_agree_with_scikit_image() -> None:
    measure = pytest.importorskip("skimage.measure")
    rng = np.random.default_rng(0)
    for _ in range(5):
        centre, axes = rng.uniform(80, 120, 2), rng.uniform(15, 50, 2)
        mask = ellipse((200, 200), tuple(centre), tuple(axes), rng.uniform(0, 180))
        mask &= ~ellipse((200, 200), tuple(centre + axes), (14, 14))  # a bite
        own = parts_of(mask)[0]
        other = max(measure.regionprops(measure.label(mask)), key=lambda region: region.area)
        assert own.area * mask.size == other.area
        assert own.eccentricity == pytest.approx(other.eccentricity, abs=1e-3)
        assert own.solidity == pytest.approx(other.solidity, abs=0.02)  # the hull by pixels there, by corners here
        assert perimeter(mask) == pytest.approx(measure.perimeter_crofton(mask, directions=4), rel=1e-3)


def test_small_specks_are_no_parts_and_odd_masks_are_measured() -> None:
    mask = ellipse((100, 100), (50, 30), (15, 15)) | ellipse((100, 100), (50, 75), (8, 8))
    mask[2:4, 2:4] = True
    assert [round(part.column, 1) for part in parts_of(mask)] == [0.3, 0.8]
    assert parts_of(np.zeros((20, 20), bool)) == []
    for odd in (np.ones((1, 1), bool), np.ones((1, 30), bool), np.ones((30, 1), bool), np.eye(30, dtype=bool)):
        (part,) = parts_of(odd)
        assert 0 <= part.eccentricity <= 1 and 0 < part.solidity <= 1 and 0 < part.compactness <= 1
        assert describe("breast", "benign", [part], np.random.default_rng(0))


def test_shapes_have_names() -> None:
    size = (300, 300)

    def name(mask: np.ndarray) -> str:
        return shape_of(parts_of(mask)[0])

    assert name(ellipse(size, (150, 150), (50, 52))) == "round"
    assert name(ellipse(size, (150, 150), (40, 70))) == "flat oval"
    assert name(ellipse(size, (150, 150), (70, 40))) == "upright oval"
    assert name(ellipse(size, (150, 150), (40, 70), turn=45)) == "oblique oval"
    assert name(ellipse(size, (150, 150), (15, 90))) == "flat elongated"
    three = [ellipse(size, centre, (40, 40)) for centre in ((118, 115), (118, 185), (180, 150))]
    assert name(np.logical_or.reduce(three)) == "lobulated"
    star = ellipse(size, (150, 150), (20, 110)) | ellipse(size, (150, 150), (110, 20))
    assert name(star) == "irregular"


def test_captions_say_where_how_large_and_how_many() -> None:
    upper_left = ellipse((200, 300), (70, 105), (12, 18))
    for caption in captions_of("breast", "malignant", upper_left):
        lower = caption.lower()
        assert "malignant" in lower or "cancer" in lower
        assert "ultrasound" in lower or "sonogram" in lower
        assert ("in the upper half, on the left" in lower) or "upper left" in lower
        assert "oval" in lower
        assert "right" not in lower.replace("upright", "") and "benign" not in lower
        assert percent(np.pi * 12 * 18 / 60_000) in lower or "small" in lower
    two = upper_left | ellipse((200, 300), (125, 240), (8, 8))
    for caption in captions_of("brain", "", two):
        assert "The largest of two; the second, 0.3 %, in the lower half, at the far right." in caption
    moved = [
        describe("brain", "", parts_of(np.roll(upper_left, shift, axis=1)), np.random.default_rng(0))
        for shift in (0, 100)
    ]
    assert moved[0] != moved[1]


def test_captions_of_lungs_say_sizes_symmetry_and_reach() -> None:
    left, right = ellipse((200, 200), (100, 60), (60, 20)), ellipse((200, 200), (100, 140), (60, 30))
    for caption in captions_of("xray", "tuberculosis", left | right):
        assert "tubercul" in caption.lower()
        assert "the one on the left is clearly smaller" in caption
    for caption in captions_of("xray", "normal", left | left[:, ::-1]):
        assert "both of about equal size" in caption.lower() and "tubercul" not in caption
    for caption in captions_of("ct", "", ellipse((200, 200), (100, 100), (50, 80))):
        assert "joined" in caption and "CT" in caption
        assert "25 % to 75 %" in caption
    shares = [part.area for part in parts_of(left | right)]
    assert any(percent(min(shares)) + " on its left" in one for one in captions_of("xray", "normal", left | right))


def test_an_image_without_target_is_said_to_be_normal() -> None:
    nothing = np.zeros((50, 50), bool)
    for task, organ in (("breast", ("breast", "sonogram")), ("flair", ("brain",)), ("brain", ("brain",))):
        for caption in captions_of(task, "", nothing, 20):
            assert any(word in caption.lower() for word in organ)
            assert any(word in caption.lower() for word in ("without a mass", "no tumour", "nothing found"))
            assert "breast" not in caption or task == "breast"


def test_tables_are_the_same_every_time_and_splits_do_not_meet(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    for name in ("one", "two"):
        write_captions(data, tmp_path / name, wordings=3, seed=5)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["README.md", "test.csv", "train.csv", "val.csv"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    tables = {}
    for split in ("train", "val", "test"):
        with (tmp_path / "one" / f"{split}.csv").open(newline="", encoding="utf-8") as stream:
            tables[split] = list(csv.DictReader(stream))
        assert all((data / row["file"]).is_file() and f"/{split}/images/" in row["file"] for row in tables[split])
        assert all(len(row["caption"]) >= 20 for row in tables[split])
    assert len(tables["test"]) == 12 and 24 < len(tables["train"]) <= 36
    assert {row["patient"] for row in tables["test"] if row["task"] == "brain"} == {
        f"figshare:test{i}" for i in range(3)
    }
    assert {row["patient"] for row in tables["test"] if row["task"] == "breast"} == {""}
    other = measured_captions(data, "test", seed=6)
    assert [row.caption for row in other] != [row["caption"] for row in tables["test"]]


def test_each_split_is_described_from_its_own_masks_alone(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    before = measured_captions(data, "train", wordings=2)
    for mask in data.glob("*/test/masks/*"):
        mask.unlink()
    assert measured_captions(data, "train", wordings=2) == before
    with pytest.raises(InputError):
        measured_captions(data, "test")


@pytest.mark.parametrize(("split", "wordings"), [("all", 1), ("train", 0)])
def test_wrong_settings_are_refused(tmp_path: Path, split: str, wordings: int) -> None:
    with pytest.raises(InputError):
        measured_captions(tmp_path, split, wordings=wordings)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.csv is missing"):
        measured_captions(tmp_path, "train")


@pytest.mark.slow
def test_real_captions_differ_from_each_other(data_dir: Path) -> None:
    rows = measured_captions(data_dir, "val")
    assert len(rows) == 151
    assert distinct_share(rows) > 0.9
    assert len({row.caption for row in rows if row.task == "ct"}) == 25
    patients = [{row.patient for row in measured_captions(data_dir, split) if row.patient} for split in ("val", "test")]
    assert patients[0] and not patients[0] & patients[1]
