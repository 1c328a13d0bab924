"""A table's own split: rows marked test are never trained on, and those marked val validate."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from pair_sets import LONG, picture, write_csv, write_pictures

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining import pair_sources
from MedCLIPSAMTraining.finetune_data import DataSettings, FinetuneData
from MedCLIPSAMTraining.finetune_distributed import Processes
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings
from MedCLIPSAMTraining.image_text_data import PairIndex, clean, marked_rows

SETTINGS = FinetuneSettings(model="lite", batch=4, validation_share=0.25, seed=1)


def alone() -> Processes:
    import torch

    return Processes(0, 1, torch.device("cpu"), None)


def table(folder: Path, marks: list[str], name: str = "pairs.csv", patients: list[str] | None = None) -> Path:
    """Write pairs whose number is in image and caption; a mark of "-" leaves out the column."""
    names = write_pictures(folder, len(marks))
    patients = patients or [f"p{number}" for number in range(len(marks))]
    rows = [
        [file, f"{LONG}{number}", patient, mark]
        for number, (file, patient, mark) in enumerate(zip(names, patients, marks, strict=True))
    ]
    header = ["file", "caption", "patient", " Split "]
    width = 3 if marks[0] == "-" else 4
    return write_csv(folder / name, [header[:width], *(row[:width] for row in rows)])


def numbers(index: PairIndex) -> list[int]:
    return [int(index[row].caption.split()[-1]) for row in range(len(index))]


def data_of(path: Path, **changes: object) -> FinetuneData:
    return FinetuneData(DataSettings(path, **changes), SETTINGS, alone())


def test_marks_are_read_and_stay_with_their_rows(tmp_path: Path) -> None:
    path = table(tmp_path, ["train", "VAL", "test", "", "validation", " Testing", "dev", "training"])
    index = PairIndex.read(path)
    assert index.splits.tolist() == [0, 1, 2, 0, 1, 2, 1, 0]
    assert index.take(np.array([5, 1])).splits.tolist() == [2, 1]
    cleaned, _ = clean(index.with_compared_images())
    assert [rows.tolist() for rows in marked_rows(cleaned)] == [[0, 3, 7], [1, 4, 6], [2, 5]]
    index.save(tmp_path / "saved")
    assert PairIndex.read(tmp_path / "saved").splits.tolist() == index.splits.tolist()
    plain = PairIndex.read(table(tmp_path, ["-"] * 3))
    assert plain.splits is None and [len(rows) for rows in marked_rows(plain)] == [3, 0, 0]
    with pytest.raises(InputError, match="'holdout'; known are train, val"):
        PairIndex.read(table(tmp_path, ["train", "holdout"]))


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_records_may_be_marked_here_and_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(pair_sources, "CHUNK", chunk)
    write_pictures(tmp_path, 5)
    records = [{"file": f"{number:03d}.png", "caption": f"{LONG}{number}"} for number in range(5)]
    records[2]["split"], records[4]["split"] = "test", None
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    assert PairIndex.read(path).splits.tolist() == [0, 0, 2, 0, 0]


def test_test_rows_are_in_no_batch_and_val_rows_validate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = data_of(table(tmp_path, ["train"] * 9 + ["val"] * 5 + ["test"] * 6))
    assert numbers(data.training) == list(range(9)) and numbers(data.validation) == list(range(9, 14))
    for epoch in range(6):
        assert set(data._plan.epoch(epoch).ravel().tolist()) <= set(range(9))
    assert "9 rows for training, 5 for validation and 6 for testing" in caplog.text
    assert data.report()["marked"] == {"train": 9, "validation": 5, "test": 6}
    assert "among the training" not in caplog.text


def test_without_val_rows_a_share_of_the_training_rows_validates(tmp_path: Path) -> None:
    data = data_of(table(tmp_path, ["test", "train"] * 16))
    assert len(data.validation) == 4 and len(data.training) == 12
    assert sorted(numbers(data.training) + numbers(data.validation)) == list(range(1, 32, 2))


def test_pairs_of_their_own_for_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They take the place of the marked ones, which are not trained on either; and their own marks count."""
    caplog.set_level(logging.INFO)
    path = table(tmp_path / "a", ["train"] * 8 + ["val"] * 4 + ["test"] * 3)
    unmarked = table(tmp_path / "b", ["-"] * 6)
    data = data_of(path, validation=unmarked)
    assert numbers(data.training) == list(range(8)) and len(data.validation) == 6
    assert "rows marked val are left out too" in caplog.text
    same = data_of(path, validation=path)
    assert numbers(same.validation) == [8, 9, 10, 11]
    tests = table(tmp_path / "c", ["test"] * 6)
    with pytest.raises(InputError, match="6 rows marked test and none marked val"):
        data_of(path, validation=tests)


def test_validation_pairs_that_are_trained_on_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a table of their own: by the patient's name, and by the image's content, whatever its file is called."""
    path = table(tmp_path / "a", ["-"] * 8)
    others = table(tmp_path / "b", ["-"] * 6, patients=["p3", "p7", "q", "r", "s", "t"])
    images = [tmp_path / "b" / f"{number:03}.png" for number in range(6)]
    for number, image in enumerate(images):
        image.write_bytes(picture(20 + number))
    images[5].write_bytes((tmp_path / "a" / "002.png").read_bytes())
    data_of(path, validation=others)
    assert "2 patients and 1 images of the validation pairs are among the training pairs too" in caplog.text
    caplog.clear()
    images[5].write_bytes(picture(30))
    rows = [[image.name, f"{LONG}{number}"] for number, image in enumerate(images)]
    data_of(path, validation=write_csv(tmp_path / "b" / "new.csv", [["file", "caption"], *rows]))
    assert "among the training" not in caplog.text


def test_a_split_that_cannot_be_right(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="no row for training"):
        data_of(table(tmp_path, ["test"] * 4 + ["val"] * 4))
    patients = [f"p{number % 6}" for number in range(12)]
    data_of(table(tmp_path, ["train"] * 8 + ["test"] * 4, patients=patients))
    assert "4 patients and 0 images of the test pairs are among the training pairs too" in caplog.text
