"""The numbers of a run in TensorBoard's files, read back by TensorBoard; and a run without it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import ClassVar

import pytest

torch = pytest.importorskip("torch")

from finetune_pairs import read_rows, write_pairs  # noqa: E402
from test_finetune import ALONE  # noqa: E402

from MedCLIPSAMTraining import finetune_run  # noqa: E402
from MedCLIPSAMTraining.finetune_data import DataSettings  # noqa: E402
from MedCLIPSAMTraining.finetune_record import Scalars  # noqa: E402
from MedCLIPSAMTraining.finetune_run import RunOptions, run  # noqa: E402
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings  # noqa: E402
from MedCLIPSAMTraining.finetune_towers import SquashedInput, Trainee  # noqa: E402
from MedCLIPSAMTraining.job_link import JobLink  # noqa: E402

WRITER = "torch.utils.tensorboard"
SETTINGS = FinetuneSettings(model="lite", batch=4, steps=5, learning_rate=1e-2, validation_share=0.25, seed=2)


class Linear(Trainee):
    """Two linear towers behind the interface: images of 8 x 8 pixels, captions by their letters."""

    layouts = ("none",)
    base: ClassVar = {"name": "linear"}

    def __init__(self, settings, device, features):
        torch.manual_seed(0)
        super().__init__(torch.nn.ModuleList([torch.nn.Linear(192, 4), torch.nn.Linear(128, 4)]), settings, device)
        self.image_input = SquashedInput(8)

    def image_features(self, batch):
        return self.module[0](batch.flatten(1))

    def text_features(self, captions):
        counts = torch.tensor([[caption.count(chr(letter)) for letter in range(128)] for caption in captions])
        return self.module[1](counts.float())

    def export(self, folder, layouts, training):
        return []


def train(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunOptions:
    monkeypatch.setattr(finetune_run, "load_trainable", Linear)
    options = RunOptions(folder / "model", folder / "work", workers=0, validate_every=2)
    with JobLink() as link:
        run(SETTINGS, DataSettings(write_pairs(folder, 16)), options, ALONE, link)
    return options


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value), as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_the_numbers_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    work = train(tmp_path, monkeypatch).work
    found = scalars(work / "tensorboard")
    tables = [(work / "steps.csv", finetune_run.STEP_COLUMNS[2:5]), (work / "validation.csv", finetune_run.SCORES)]
    assert set(found) == {name for _, names in tables for name in names}
    for table, names in tables:
        rows = read_rows(table)
        assert len(rows) >= 4
        for name in names:
            assert [step for step, _ in found[name]] == [int(row["step"]) for row in rows]
            assert [value for _, value in found[name]] == pytest.approx([float(row[name]) for row in rows], rel=1e-6)


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = Scalars(tmp_path, 0)
    for step in range(1, 6):
        first.add(step, {"loss": float(step)})
    first.close()
    second = Scalars(tmp_path, 3)  # killed after step 5, with a checkpoint of step 3
    second.add(4, {"loss": 40.0})
    second.close()
    assert scalars(tmp_path) == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]}


def test_without_tensorboard_training_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, WRITER, None)  # as where the package is not installed
    work = train(tmp_path, monkeypatch).work
    said = [record for record in caplog.records if "pip install tensorboard" in record.getMessage()]
    assert len(said) == 1
    assert len(read_rows(work / "steps.csv")) == 5 and not (work / "tensorboard").exists()


def test_without_a_folder_nothing_is_written_or_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    none = Scalars(None, 0)
    none.add(1, {"loss": 1.0})
    none.close()
    assert not caplog.records
