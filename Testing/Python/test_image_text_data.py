"""Image-text pairs: every kind of source, cleaning, the split by patient, batches and the loader that reads them."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from MedCLIPSAMLib.errors import InputError, OutputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMTraining.image_text_data import (
    BatchPlan,
    CleaningSettings,
    LoadedBatch,
    Pair,
    PairIndex,
    PairLoader,
    clean,
    clean_caption,
    local_image,
    split,
)
from MedCLIPSAMTraining.pair_groups import random_ranks

LONG = "a caption that is long enough to stay, number "


def picture(value: int = 0, side: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03d}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number))
    return names


def write_csv(path: Path, rows: list[list[str]], separator: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


def index_of(captions: list, images: list | None = None, patients: list | None = None) -> PairIndex:
    images = images or list(range(len(captions)))
    patients = patients or [None] * len(captions)
    return PairIndex.of(Pair(str(i), str(c), p) for i, c, p in zip(images, captions, patients, strict=True))


def value_of(pair: Pair) -> tuple[torch.Tensor, str]:
    """The loader's ``load`` of these tests: the first pixel."""
    with local_image(pair.file) as path:
        return torch.tensor([float(read_image(path).array[0, 0])]), pair.caption


# Sources


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables(tmp_path: Path, suffix: str, separator: str):
    separator = "\t" if suffix == ".tsv" else separator
    write_pictures(tmp_path / "images", 2)
    caption = 'Mass, 3 cm; "round"\nin the left lobe'
    rows = [["Patient_ID", "Caption", "FileName"], ["p1", caption, "000.png"], [], ["", "ödem", "001.png"]]
    index = PairIndex.read(write_csv(tmp_path / f"pairs{suffix}", rows, separator))
    assert len(index) == 2
    assert index[0] == Pair(str(tmp_path / "images" / "000.png"), caption, "p1")
    assert index[1] == Pair(str(tmp_path / "images" / "001.png"), "ödem", None)


def test_named_columns_and_root(tmp_path: Path):
    write_pictures(tmp_path / "elsewhere", 1)
    path = write_csv(tmp_path / "p.csv", [["file", "caption", "Bild", "Text"], ["x", "y", "000.png", "the right one"]])
    index = PairIndex.read(path, root=tmp_path / "elsewhere", file_column="Bild", caption_column="text")
    assert index[0].caption == "the right one" and Path(index[0].file).is_file() and index[0].patient is None
    with pytest.raises(InputError, match=r"no column 'subject'.*'file', 'caption', 'Bild', 'Text'"):
        PairIndex.read(path, patient_column="subject")


def test_json_lines_and_lists(tmp_path: Path):
    write_pictures(tmp_path, 2)
    records = [{"file": "000.png", "caption": "one", "subject": 7}, {"image": "-", "file": "001.png", "caption": None}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n", encoding="utf-8")
    (tmp_path / "pairs.json").write_text(json.dumps(records), encoding="utf-8")
    for name in ("pairs.jsonl", "pairs.json"):
        index = PairIndex.read(tmp_path / name)
        assert [(pair.caption, pair.patient) for pair in map(index.__getitem__, range(2))] == [("one", "7"), ("", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,text\n000.png,a\nb.png\n", "1 values for 2 columns"),
        (b"file,text\n,a\n", "names no image file"),
        (b"file,sentence\n000.png,a\n", "no column 'caption'"),
        (b"file,caption\n000.png,caf\xe9\n", "not UTF-8"),
        (b"file,caption\n", "no pairs"),
        (b"", "no column"),
        (b'file,caption\n000.png,"' + b"x" * 200_000 + b"\n", "quotation mark"),
        (b"file,caption\nnot-there.png,a\n", "none of 1 images.*not-there.png"),
    ],
)
def test_faulty_tables_say_what_is_wrong(tmp_path: Path, content: bytes, message: str):
    write_pictures(tmp_path, 1)
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"(?s){message}"):
        PairIndex.read(path)


def test_faulty_records_and_paths(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"file": "a", "caption": "b"}\n[1]\n', encoding="utf-8")
    with pytest.raises(InputError, match="record 2: list"):
        PairIndex.read(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"file": "a"', encoding="utf-8")
    with pytest.raises(InputError, match="no JSON object"):
        PairIndex.read(tmp_path / "b.jsonl")
    (tmp_path / "c.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"'\.xlsx'"):
        PairIndex.read(tmp_path / "c.xlsx")
    with pytest.raises(InputError, match="does not exist"):
        PairIndex.read(tmp_path / "d.csv")
    with pytest.raises(InputError, match="neither shards"):
        PairIndex.read(tmp_path)


def test_medpix_layout(tmp_path: Path):
    def record(case: str, image: str, caption: str | None) -> dict:
        about = {"ACR Codes": "8.-1", "Age": "73", "Caption": caption, "Modality": "CT - noncontrast", "Plane": "Axial"}
        return {"Type": "CT", "U_id": case, "image": image, "Description": about, "Location": "Chest"}

    images = tmp_path / "images"
    images.mkdir()
    for name in ("MPX1009_synpic1", "MPX1009_synpic2", "MPX1024_synpic3"):
        (images / f"{name}.png").write_bytes(picture())
    records = [
        record("MPX1009", "MPX1009_synpic1", "The prostate is enlarged."),
        record("MPX1009", "MPX1009_synpic2", None),
        record("MPX1009", "MPX1009_not_there", "An image that was never downloaded."),
        record("MPX1024", "MPX1024_synpic3", "An obstructing mass."),
    ]
    (tmp_path / "Descriptions.json").write_text(json.dumps(records), encoding="utf-8")
    splits = tmp_path / "splitted_dataset"
    splits.mkdir()
    (splits / "descriptions_train.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    for source in (tmp_path, tmp_path / "Descriptions.json", splits / "descriptions_train.jsonl"):
        index = PairIndex.read(source)
        assert len(index) == 3
        assert index[0].caption == "The prostate is enlarged." and index[0].patient == "MPX1009"
        assert index[1].caption == "" and index[2].patient == "MPX1024"
        assert read_image(Path(index[2].file)).array.shape == (4, 4)
    for image in images.iterdir():
        image.unlink()
    with pytest.raises(InputError, match=r"images of .*name their folder"):
        PairIndex.read(tmp_path)


def test_roco_layouts(tmp_path: Path):
    folder = tmp_path / "radiology"
    (folder / "images").mkdir(parents=True)
    captions = "ROCO_00001\t Axial MRI (coronal view).\nROCO_00006\t Coronal plain CT.\nROCO_00016\t An angiogram.\n"
    (folder / "captions.txt").write_text(captions, encoding="utf-8")
    archive = "wget -r ftp://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/8d/34/PMC{}.tar.gz -P /path/to/Dir"
    links = [("ROCO_00001", 4608653, "g01.jpg"), ("ROCO_00006", 4608653, "g02.jpg"), ("ROCO_00016", 5665693, "i01.jpg")]
    lines = ["\t".join((name, archive.format(number), figure)) for name, number, figure in links]
    (folder / "dlinks.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "images" / "ROCO_00001.jpg").write_bytes(picture())
    (folder / "images" / "PMC4608653_g02.jpg").write_bytes(picture())  # the name that older downloads have
    for source in (folder, folder / "captions.txt"):
        index = PairIndex.read(source)
        assert [Path(index[row].file).name for row in range(len(index))] == ["ROCO_00001.jpg", "PMC4608653_g02.jpg"]
        assert index[0] == Pair(index[0].file, "Axial MRI (coronal view).", "PMC4608653")

    (tmp_path / "train_images").mkdir()
    (tmp_path / "train_images" / "ROCOv2_2023_train_000001.jpg").write_bytes(picture())
    rows = [["ID", "Caption"], ["ROCOv2_2023_train_000001", "Head CT, axial"], ["ROCOv2_2023_train_000002", "gone"]]
    index = PairIndex.read(write_csv(tmp_path / "train_captions.csv", rows))
    assert len(index) == 1 and index[0].caption == "Head CT, axial" and Path(index[0].file).is_file()


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_shards(tmp_path: Path):
    about = json.dumps({"caption": "from json", "patient_id": "p1"}).encode()
    long_name = "a" * 150
    write_shard(tmp_path / "part-0.tar", [("0.png", picture(10)), ("0.txt", b"from text"), ("1.png", picture(11))])
    write_shard(
        tmp_path / "part-1.tar",
        [
            ("d/2.json", about),
            ("d/2.seg.png", picture(9)),
            ("d/2.png", picture(12)),
            (f"{long_name}.txt", "ä".encode()),
        ],
    )
    with tarfile.open(tmp_path / "part-1.tar", "a") as tar:  # the long name needs a header of its own
        info = tarfile.TarInfo(f"{long_name}.png")
        info.size = len(picture(13))
        tar.addfile(info, io.BytesIO(picture(13)))
    for source in (tmp_path, tmp_path / "part-{0..1}.tar", tmp_path / "part-?.tar"):
        index = PairIndex.read(source)
        assert [index[row].caption for row in range(len(index))] == ["from text", "from json", "ä"]
        assert [index[row].patient for row in range(3)] == [None, "p1", None]
        assert [value_of(index[row])[0].item() for row in range(3)] == [10, 12, 13]
    with local_image(index[0].file) as path:
        assert path.suffix == ".png" and (os.name == "nt" or path.stat().st_mode & 0o077 == 0)
    assert not path.exists()
    with pytest.raises(InputError, match="1 of 3 shards"):
        PairIndex.read(tmp_path / "part-{0..2}.tar")
    (tmp_path / "part-0.tar").write_bytes((tmp_path / "part-0.tar").read_bytes()[:540])
    with pytest.raises(InputError, match="damaged"):
        PairIndex.read(tmp_path)
    with pytest.raises(OSError, match="too early"):
        value_of(index[0])
    with pytest.raises(InputError, match="uncompress"):
        PairIndex.read(tmp_path / "x.tar.gz")


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_chunks_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    from MedCLIPSAMTraining import caption_cleaning, pair_shards, pair_sources

    write_pictures(tmp_path, 7)
    rows = [[f"{row:03d}.png", f"{LONG}{row}"] for row in range(7)]
    table = write_csv(tmp_path / "a.csv", [["file", "caption"], *rows])
    lines = tmp_path / "b.jsonl"
    lines.write_text("\n".join(json.dumps({"file": f, "caption": c}) for f, c in rows), encoding="utf-8")
    members = [
        (f"{row}.{kind}", b"x" if kind == "png" else f"{LONG}{row}".encode())
        for row in range(7)
        for kind in ("png", "txt")
    ]
    write_shard(tmp_path / "c.tar", members)
    for module, name in ((pair_sources, "CHUNK"), (pair_shards, "CHUNK"), (caption_cleaning, "_CHUNK")):
        monkeypatch.setattr(module, name, size)
    for source in (table, lines, tmp_path / "c.tar"):
        cleaned, report = clean(PairIndex.read(source))
        assert report.read == report.kept == 7
        assert [cleaned[row].caption for row in range(7)] == [caption for _, caption in rows]


def test_saved_index_opens_equal(tmp_path: Path):
    index = index_of(["one", "zwei ö", "\ud800"], patients=["p", None, "q"])
    _ = index.caption_keys
    index.save(tmp_path / "saved")
    opened = PairIndex.read(tmp_path / "saved")
    assert [opened[row] for row in range(3)] == [index[row] for row in range(3)]
    assert np.array_equal(opened.caption_keys, index.caption_keys)
    with pytest.raises(OutputError, match="exists"):
        index.save(tmp_path / "saved")
    lengths = tmp_path / "saved" / "captions-lengths.npy"
    np.save(lengths, np.load(lengths) + 5)
    with pytest.raises(InputError, match="damaged"):
        PairIndex.read(tmp_path / "saved")
    lengths.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        PairIndex.read(tmp_path / "saved")


def test_a_large_index_goes_to_another_process_by_a_mapped_private_file():
    small, large = index_of(["x"]), index_of(["y" * 9_000_000])
    assert pickle.loads(pickle.dumps(small))[0] == small[0]
    assert pickle.loads(ForkingPickler.dumps(small))[0] == small[0]
    message = ForkingPickler.dumps(large)
    assert len(message) < 1000
    assert pickle.loads(message)[0] == large[0]
    folder = Path(large._spilled).parent
    assert os.name == "nt" or folder.stat().st_mode & 0o077 == 0
    del large
    assert not folder.exists()


# Cleaning


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


# Split


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


# Batches


def collisions(values: list, batches: np.ndarray) -> int:
    return sum(count - 1 for batch in batches for count in Counter(values[row] for row in batch).values())


def test_every_row_once_an_epoch_and_other_batches_in_the_next():
    plan = BatchPlan(index_of(range(103)), batch=10, seed=5)
    assert len(plan) == 10
    epochs = [plan.epoch(number) for number in range(3)]
    for batches in epochs:
        assert batches.shape == (10, 10) and len(set(batches.ravel().tolist())) == 100
    assert not np.array_equal(epochs[0], epochs[1])
    left_over = [frozenset(range(103)) - set(batches.ravel().tolist()) for batches in epochs]
    assert len(set(left_over)) == 3
    assert not np.array_equal(epochs[0], BatchPlan(index_of(range(103)), batch=10, seed=6).epoch(0))


def test_no_equal_captions_or_images_in_a_batch():
    rng = random.Random(0)
    captions = [f"c{rng.randrange(200)}" for _ in range(600)] + ["frequent"] * 40  # as often as there are batches
    images = [f"i{rng.randrange(400)}" for _ in captions]
    plan = BatchPlan(index_of(captions, images=images), batch=16, seed=0)
    assert len(plan) == 40
    for epoch in range(3):
        batches = plan.epoch(epoch)
        assert collisions(captions, batches) == 0 == collisions(images, batches)
        assert plan.collisions(epoch) == (0, 0)
    shuffled = np.random.default_rng(0).permutation(640).reshape(40, 16)
    assert collisions(captions, shuffled) > 20  # so the above is no accident


def test_a_caption_too_frequent_is_spread_evenly():
    captions = ["normal"] * 500 + list(range(500))
    plan = BatchPlan(index_of(captions), batch=50)
    counts = [Counter(captions[row] for row in batch)["normal"] for batch in plan.epoch(0)]
    assert sum(counts) == 500 and set(counts) == {25}
    assert plan.collisions(0) == (500 - 20, 0)


def test_equal_images_part_where_captions_overlap_widely():
    """Each image with three of few captions: all pairs hang together, and dealing by caption leaves equal images."""
    rng = random.Random(2)
    images = [row // 3 for row in range(900)]
    captions = [f"c{rng.randrange(100)}" for _ in images]
    plan = BatchPlan(index_of(captions, images=images), batch=9)
    assert plan.collisions(0) == (0, 0)
    assert collisions(images, plan.epoch(0)) == 0


def test_turns_resume_anywhere_to_the_same_batches():
    index = index_of([number % 30 for number in range(70)])
    rows = np.arange(5, 70)
    every = list(BatchPlan(index, rows, batch=8, seed=2).turns(epochs=3))
    assert len(every) == 24 and set(every[0].rows.tolist()) <= set(rows.tolist())
    for begin in (0, 3, 8, 17, 24):
        plan = BatchPlan(index, rows, batch=8, seed=2)
        again = list(plan.turns(*divmod(begin, 8), epochs=3))
        assert [(turn.epoch, turn.position) for turn in again] == [
            (turn.epoch, turn.position) for turn in every[begin:]
        ]
        assert all(np.array_equal(one.rows, other.rows) for one, other in zip(again, every[begin:], strict=True))
    assert [turn.epoch for turn in BatchPlan(index, rows, batch=8).turns(1, 8, epochs=3)] == [2] * 8


def test_processes_share_the_same_global_batches():
    plan = BatchPlan(index_of(range(48)), batch=12)
    batch = plan.epoch(0)[0]
    for processes in (1, 2, 3, 4):
        parts = [batch[plan.share(rank, processes)] for rank in range(processes)]
        assert np.array_equal(np.concatenate(parts), batch)
    with pytest.raises(InputError, match="divided among 5"):
        plan.share(0, 5)
    with pytest.raises(InputError, match="rank"):
        plan.share(2, 2)


def test_order_is_the_same_on_every_machine_and_version():
    assert random_ranks(np.array([0, 1, -1]), 0, 1).tolist() == RANKS
    captions = [number % 7 for number in range(40)]
    assert BatchPlan(index_of(captions), batch=4, seed=9).epoch(2)[0].tolist() == FIRST_BATCH
    assert split(index_of(range(20)), 0.15, seed=4)[1].tolist() == HELD_OUT


RANKS = [8284541392817767351, 13432591998026913473, 9694852586279466229]
FIRST_BATCH = [1, 27, 10, 4]
HELD_OUT = [7, 8, 18]


def test_fingerprint_and_faulty_plans():
    index = index_of(range(10))
    prints = {
        BatchPlan(index, batch=4).fingerprint,
        BatchPlan(index, batch=4, seed=1).fingerprint,
        BatchPlan(index, batch=5).fingerprint,
        BatchPlan(index, np.arange(9), batch=4).fingerprint,
        BatchPlan(index_of([*range(9), "other"]), batch=4).fingerprint,
    }
    assert len(prints) == 5 and BatchPlan(index_of(range(10)), batch=4).fingerprint in prints
    with pytest.raises(InputError, match="no negatives"):
        BatchPlan(index, batch=1)
    with pytest.raises(InputError, match="10 pairs are fewer"):
        BatchPlan(index, batch=11)
    with pytest.raises(InputError, match="no place"):
        next(BatchPlan(index, batch=4).turns(0, 3))


# Loader


@pytest.fixture
def pictures(tmp_path: Path) -> PairIndex:
    """Forty images whose pixels are their row; every caption occurs twice."""
    names = write_pictures(tmp_path, 40)
    return PairIndex.of((Pair(name, f"{LONG}{row // 2}", None) for row, name in enumerate(names)), root=str(tmp_path))


def break_images(index: PairIndex, rows: list[int]) -> None:
    for number, row in enumerate(rows):
        path = Path(index[row].file)
        kinds = (path.unlink, lambda p=path: p.write_bytes(b""), lambda p=path: p.write_bytes(p.read_bytes()[:40]))
        kinds[number % 3]()


def same(one: list[LoadedBatch], other: list[LoadedBatch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(
        torch.equal(a.images, b.images)
        and a.captions == b.captions
        and torch.equal(a.keys, b.keys)
        and (a.epoch, a.position) == (b.epoch, b.position)
        for a, b in pairs
    )


def test_loader_gives_the_planned_pairs_with_any_number_of_workers(pictures: PairIndex):
    plan = BatchPlan(pictures, batch=8)
    random_state = torch.get_rng_state()
    alone = list(PairLoader(pictures, plan, value_of, workers=0).batches(epochs=2))
    assert len(alone) == 10
    for batch, turn in zip(alone, plan.turns(epochs=2), strict=True):
        assert batch.images[:, 0].tolist() == batch.rows.tolist() == turn.rows.tolist()
        assert batch.captions == [f"{LONG}{row // 2}" for row in turn.rows]
        assert batch.keys.tolist() == [pictures.captions_key(row) for row in turn.rows]
    assert same(alone, list(PairLoader(pictures, plan, value_of, workers=2).batches(epochs=2)))
    assert same(alone[7:], list(PairLoader(pictures, plan, value_of, workers=1, ahead=1).batches(1, 2, epochs=2)))
    assert torch.equal(torch.get_rng_state(), random_state)  # else resuming would change the training's own numbers


@pytest.mark.slow  # the started process imports torch
def test_started_instead_of_forked_workers(pictures: PairIndex):
    plan = BatchPlan(pictures, batch=20)
    here = list(PairLoader(pictures, plan, value_of, workers=0).batches(epochs=1))
    assert same(here, list(PairLoader(pictures, plan, value_of, workers=1, context="spawn").batches(epochs=1)))


def test_broken_images_are_listed_and_replaced_the_same_way(pictures: PairIndex, tmp_path: Path):
    break_images(pictures, [3, 17, 30])
    plan = BatchPlan(pictures, batch=8)
    loader = PairLoader(pictures, plan, value_of, workers=2, broken_share=0.1)
    found = list(loader.batches(epochs=1))
    assert sorted(loader.skipped) == [3, 17, 30]
    assert all(len(batch.rows) == 8 for batch in found)
    replaced = 0
    for batch, turn in zip(found, plan.turns(epochs=1), strict=True):
        assert not {3, 17, 30} & set(batch.rows.tolist())
        assert batch.images[:, 0].tolist() == batch.rows.tolist()
        assert len(set(batch.keys.tolist())) == 8  # a replacement brings no caption that is there already
        replaced += sum(one != other for one, other in zip(batch.rows.tolist(), turn.rows.tolist(), strict=True))
    assert replaced == 3
    again = list(PairLoader(pictures, plan, value_of, workers=0, broken_share=0.1).batches(0, 2, epochs=1))
    assert same(again, found[2:])
    halves = [
        list(
            PairLoader(pictures, plan, value_of, workers=0, broken_share=0.1, rank=rank, processes=2).batches(epochs=1)
        )
        for rank in range(2)
    ]
    for whole, first, second in zip(found, *halves, strict=True):
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))
    loader.write_skipped(tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["3", "17", "30"] and rows[0]["reason"].startswith("InputError")


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_images_stop_the_run_with_the_list(pictures: PairIndex, workers: int):
    break_images(pictures, [3, 17])
    loader = PairLoader(pictures, BatchPlan(pictures, batch=8), value_of, workers=workers, broken_share=0.04)
    with pytest.raises(InputError, match=r"(?s)2 of \d+ images.*4 % of 40.*003\.png.*017\.png"):
        list(loader.batches(epochs=1))


def test_all_images_broken_ends_soon():
    index = index_of([f"{LONG}{row}" for row in range(5000)])
    loader = PairLoader(index, BatchPlan(index, batch=64), value_of, workers=0)
    with pytest.raises(InputError, match="cannot be read"):
        next(loader.batches())
    assert len(loader.skipped) < 64


def test_in_order_leaves_broken_images_out(pictures: PairIndex):
    break_images(pictures, [2, 8, 9])
    loader = PairLoader(pictures, None, value_of, workers=2, broken_share=0.2)
    found = list(loader.in_order(range(20), 8))
    assert [batch.rows.tolist() for batch in found] == [[0, 1, 3, 4, 5, 6, 7], list(range(10, 16)), [16, 17, 18, 19]]
    assert sorted(loader.skipped) == [2, 8, 9]
    assert [batch.position for batch in loader.in_order([8, 9, 10], 2)] == [1]


def of_row_shape(pair: Pair) -> tuple[torch.Tensor, str]:
    return torch.zeros(1 + int(Path(pair.file).stem) % 2), pair.caption


def no_memory(pair: Pair) -> tuple[torch.Tensor, str]:
    raise OSError(28, "No space left on device")


class UnsendableError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def unsendable(pair: Pair) -> tuple[torch.Tensor, str]:
    raise UnsendableError("what happened", "")


def killed(pair: Pair) -> tuple[torch.Tensor, str]:
    os._exit(137)


@pytest.mark.parametrize(
    ("load", "kind", "message"),
    [
        (of_row_shape, InputError, "^the images of a batch have different shapes"),
        (no_memory, OSError, "No space left"),
        (unsendable, RuntimeError, "what happened"),
        (killed, InputError, "^a process that loads images was ended"),
    ],
)
def test_other_faults_are_no_broken_images(pictures: PairIndex, load, kind: type, message: str):
    loader = PairLoader(pictures, BatchPlan(pictures, batch=8), load, workers=1)
    with pytest.raises(kind, match=message):
        next(loader.batches())
    if load is no_memory:
        with pytest.raises(OSError) as caught:
            next(loader.batches())
        assert "in no_memory" in caught.value.__notes__[0]


def test_captions_may_be_tokens(pictures: PairIndex):
    def tokens(pair: Pair) -> tuple[torch.Tensor, list[int]]:
        return value_of(pair)[0], [ord(letter) for letter in pair.caption]

    loader = PairLoader(
        pictures, BatchPlan(pictures, batch=8), tokens, workers=0, collate=lambda rows: [len(r) for r in rows]
    )
    assert all(length > 20 for length in next(loader.batches()).captions)


def test_little_shared_memory_means_fewer_workers(pictures: PairIndex, monkeypatch: pytest.MonkeyPatch, caplog):
    from MedCLIPSAMTraining import pair_loader

    monkeypatch.setattr(pair_loader, "_SHARED", Path(pictures.root))
    usage = type("Usage", (), {"free": 100})  # bytes; a batch has 32
    monkeypatch.setattr(pair_loader.shutil, "disk_usage", lambda path: usage)
    loader = PairLoader(pictures, BatchPlan(pictures, batch=8), value_of, workers=2)
    assert len(list(loader.batches(epochs=1))) == 5
    assert "--shm-size" in caplog.text


def test_real_images(data_dir: Path):
    """Pairs of a real set: labels in, batches out, patients apart."""
    folder = data_dir / "breast_ultrasound_tumour"
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"][:60]
    pairs = [Pair(row["file"], f"breast ultrasound, {row['label']} tumour", row["subject"] or None) for row in rows]
    index, report = clean(PairIndex.of(pairs, root=str(folder / "train" / "images")).with_compared_images())
    assert report.kept == 60 and report.repeated_captions >= 50

    def load(pair: Pair) -> tuple[torch.Tensor, str]:
        with Image.open(pair.file) as image:
            return torch.from_numpy(np.array(image.convert("L").resize((32, 32)))), pair.caption

    train, _ = split(index)
    loader = PairLoader(index, BatchPlan(index, train, batch=8), load, workers=2)
    batches = list(loader.batches(epochs=1))
    assert len(batches) == len(train) // 8 and batches[0].images.shape == (8, 32, 32) and not loader.skipped


@pytest.mark.slow
def test_a_million_pairs_open_in_little_time_and_memory(tmp_path: Path):
    """The bound has room for a machine that is busy; Testing/benchmarks/bench_pairs.py measures."""
    bench = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_pairs.py"
    command = [sys.executable, str(bench), "--open-only", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert figures["pairs"] == 1_000_000
    assert figures["open_seconds"] < 15 and figures["open_peak_megabytes"] < 500
