"""The loader of image-text pairs: workers, broken images and other faults."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pair_sets import LONG, index_of, value_of, write_csv, write_pictures
from PIL import Image

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMTraining.finetune_data import DataSettings, FinetuneData, joined
from MedCLIPSAMTraining.finetune_distributed import Processes
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings
from MedCLIPSAMTraining.image_text_data import (
    BatchPlan,
    BrokenImages,
    LoadedBatch,
    Pair,
    PairIndex,
    PairLoader,
    Skipped,
    clean,
    split,
)
from MedCLIPSAMTraining.pair_broken import write_skipped


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


# Broken images over all loaders of a run


@pytest.mark.parametrize(
    ("share", "total", "seen", "allowed"),
    [
        (0.01, 15, 15, 1),  # less than one image is rounded up to one
        (0.01, 10_000, 10_000, 100),
        (0.01, 10_000, 100, 8),  # 1 expected: chance gives no more than 4 standard deviations and 3
        (0.0, 10_000, 10_000, 0),
        (1.0, 20, 20, 20),
    ],
)
def test_how_many_images_may_be_broken(share: float, total: int, seen: int, allowed: int):
    broken = BrokenImages(share, total)
    items = [Skipped(row, f"{row}.png", "gone") for row in range(allowed + 1)]
    broken.note(seen, items[:allowed])
    broken.note(0, items[:allowed])  # the same files again
    with pytest.raises(InputError, match=f"{allowed + 1} of {seen} images.*{100 * share:g} % of {total}"):
        broken.note(0, items)
    with pytest.raises(InputError, match="1 of 0 images"):
        BrokenImages(0.5, 100).note(0, items[:1], stop=True)
    with pytest.raises(InputError, match=r"1\.5"):
        BrokenImages(1.5, 10)


def test_validation_pairs_are_not_judged_by_themselves(tmp_path: Path):
    """Three broken images among 40 validation pairs are fewer than 1.6 % of the 250 pairs of the run."""
    names = write_pictures(tmp_path, 250)
    marks = ["val"] * 40 + ["train"] * 210
    rows = [[name, f"{LONG}{row}", mark] for row, (name, mark) in enumerate(zip(names, marks, strict=True))]
    table = write_csv(tmp_path / "pairs.csv", [["file", "caption", "split"], *rows])
    model = SimpleNamespace(
        image_input=lambda path: torch.tensor([float(read_image(path).array[0, 0])]), keeps_features=False
    )
    settings = FinetuneSettings(model="lite", batch=8)
    alone = Processes(0, 1, torch.device("cpu"), None)

    def data() -> FinetuneData:
        return FinetuneData(DataSettings(table, broken_share=0.016), settings, alone)

    def validated(data: FinetuneData) -> list[int]:
        return [row for rows, _ in data.validation_batches(model, 0) for row in rows.tolist()]

    break_images(PairIndex.read(table), [2, 5, 30])
    run = data()
    for _ in range(3):  # the same three at each validation
        assert validated(run) == [row for row in range(40) if row not in (2, 5, 30)]
    run.next_batch(model, 0, 0)
    run.close()
    write_skipped(tmp_path / "skipped.csv", run.skipped)
    with (tmp_path / "skipped.csv").open(encoding="utf-8", newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["2", "5", "30"]
    break_images(PairIndex.read(table), [7, 8])
    with pytest.raises(InputError, match=r"5 of 32 images.*1\.6 % of 250"):
        validated(data())


def test_features_of_too_few_validation_pairs_are_told():
    one = (np.array([3]), np.ones((1, 2), np.float32), np.ones((1, 2), np.float32))
    none = (np.array([], int), np.empty((0,)), np.empty((0,)))
    two = (np.array([1, 0]), np.array([[1.0], [0.0]]), np.array([[3.0], [2.0]]))
    rows, images, texts = joined([(np.array([3]), np.array([[9.0]]), np.array([[9.0]])), none, two])
    assert rows.tolist() == [0, 1, 3] and images[:, 0].tolist() == [0, 1, 9] and texts[:, 0].tolist() == [2, 3, 9]
    for found in ([], [none], [one, none]):
        with pytest.raises(InputError, match="fewer than 2 images of the validation pairs"):
            joined(found)
