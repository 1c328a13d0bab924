"""Image-text pairs: the paper's cleaning, and the split by patient."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from pair_sets import index_of, write_shard

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.image_text_data import CleaningSettings, PairIndex, clean, clean_caption, split


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  CT of the\tchest,\n  axial  ", "CT of the chest, axial"),
        ("mass* [arrow] in the liver{#}", "mass arrow in the liver"),
        ('3.5 cm (60%); T2/FLAIR + C-arm\'s "sign":', '3.5 cm (60%); T2/FLAIR + C-arm\'s "sign":'),
        ("Sjögren – 2×3 µm ‘x’", "Sjogren - 2x3 um 'x'"),
        ("腫瘍", ""),
    ],
)
def test_captions_are_cleaned(before: str, after: str):
    assert clean_caption(before) == after


def test_cleaning_counts_everything():
    captions = [
        "A lesion of the left lung.",
        "a lesion of  the left LUNG",
        "short",
        "****",
        "The heart is *enlarged*, yes",
    ]
    index = index_of([*captions, captions[0]], images=["a", "b", "c", "d", "e", "a"])
    cleaned, report = clean(index)
    assert [cleaned[row].caption for row in range(len(cleaned))] == [
        "A lesion of the left lung.",
        "a lesion of the left LUNG",
        "The heart is enlarged , yes",
        "A lesion of the left lung.",
    ]
    assert (report.read, report.kept, report.too_short, report.empty, report.changed) == (6, 4, 2, 1, 2)
    assert (report.repeated_captions, report.repeated_images, report.repeated_pairs) == (2, 1, 1)
    assert report.most_alike == 3 and "4 of 6 pairs kept" in report.text() and "lesion" not in report.text()
    json.dumps(report.as_dict())
    dropped, report = clean(index, CleaningSettings(drop_repeated=True))
    assert len(dropped) == report.kept == 3 and report.changed == 2
    assert cleaned.captions_key(0) == cleaned.captions_key(1) != cleaned.captions_key(2)
    with pytest.raises(InputError, match="no regular expression"):
        clean(index, CleaningSettings(special="["))
    with pytest.raises(InputError, match="no pair is left"):
        clean(index, CleaningSettings(shortest=200))


def test_exactly_twenty_characters_stay():
    cleaned, _ = clean(index_of(["x" * 19, "y" * 20]))
    assert [cleaned[row].caption for row in range(len(cleaned))] == ["y" * 20]


def test_equal_contents_under_different_names_are_one_image(tmp_path: Path):
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"diff"), ("d", b"longer")):
        (tmp_path / name).write_bytes(content)
    write_shard(tmp_path / "s.tar", [("k.png", b"same"), ("k.txt", b"")])
    shard = PairIndex.read(tmp_path / "s.tar")[0].file
    files = [*(str(tmp_path / name) for name in "abcd"), shard, str(tmp_path / "gone"), str(tmp_path / "a")]
    keys = index_of(range(7), images=files).with_compared_images().image_keys
    assert keys[0] == keys[1] == keys[4] == keys[6]
    assert len(set(keys.tolist())) == 4


def test_split_keeps_patients_and_images_together():
    rng = random.Random(1)
    images = [f"i{rng.randrange(150)}" for _ in range(400)]
    patients = [rng.choice([None, f"p{rng.randrange(80)}"]) for _ in images]
    index = index_of(range(400), images=images, patients=patients)
    train, validation = split(index, 0.15, seed=3)
    assert sorted([*train, *validation]) == list(range(400))
    for values in (images, patients):
        sides = [{values[row] for row in rows} - {None} for rows in (train, validation)]
        assert not sides[0] & sides[1]


def test_split_has_the_wanted_share_and_depends_on_names_not_order():
    patients = [f"p{row // 3}" for row in range(3000)]
    index = index_of(range(3000), patients=patients)
    _, validation = split(index, seed=0)
    assert len(validation) == 450
    assert not np.array_equal(validation, split(index, seed=1)[1])
    order = np.random.default_rng(0).permutation(3000)
    again = split(index.take(order), seed=0)[1]
    assert np.array_equal(np.sort(order[again]), validation)
    assert len(split(index, 0)[1]) == 0


def test_split_of_few_patients():
    train, validation = split(index_of(range(10), patients=["a"] * 8 + ["b"] * 2), 0.1)
    assert len(train) == 8 and len(validation) == 2  # rather too many than none
    with pytest.raises(InputError, match="one patient"):
        split(index_of(range(5), patients=["a"] * 5))
    with pytest.raises(InputError, match=r"1\.5"):
        split(index_of(range(5)), 1.5)
