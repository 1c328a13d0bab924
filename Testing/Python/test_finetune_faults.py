"""What can go wrong in a fine-tuning run and used to end it without a remedy, or to go on with other numbers."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from finetune_pairs import read_rows, write_pairs  # noqa: E402
from test_finetune import ALONE, LITE, kept_features, pairs, tiny_batch, tiny_trainer  # noqa: E402, F401
from test_finetune_record import SETTINGS, Linear  # noqa: E402

from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError  # noqa: E402
from MedCLIPSAMTraining import finetune, finetune_data, finetune_run  # noqa: E402
from MedCLIPSAMTraining.finetune_data import DataSettings, FinetuneData  # noqa: E402
from MedCLIPSAMTraining.finetune_loop import Trainer  # noqa: E402
from MedCLIPSAMTraining.finetune_models import load_trainable  # noqa: E402
from MedCLIPSAMTraining.finetune_run import SKIPPED, Run, RunOptions, run  # noqa: E402
from MedCLIPSAMTraining.finetune_settings import Course  # noqa: E402
from MedCLIPSAMTraining.finetune_towers import check_room, own_base  # noqa: E402
from MedCLIPSAMTraining.job_link import JobLink  # noqa: E402


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunOptions:
    """A run of a tiny model."""
    monkeypatch.setattr(finetune_run, "load_trainable", Linear)
    return RunOptions(tmp_path / "model", tmp_path / "work", workers=0, tensorboard=False)


def break_image(table: Path, row: int) -> str:
    """Make one image of a table unreadable; return its file."""
    file = table.parent / "images" / f"{row:03}.png"
    file.write_bytes(b"no image")
    return str(file)


# ---- Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "remedy"), [(0, "8 pairs at once; pass --chunk 2"), (1, "1 pairs at once; take a")])
def test_memory_that_runs_out_names_the_remedy(chunk: int, remedy: str) -> None:
    trainer = tiny_trainer(chunk=chunk)
    before = {name: value.clone() for name, value in trainer.model.module.state_dict().items()}

    def full(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    trainer.model.image_features = full
    for work in (trainer.train_step, trainer.encode):
        with pytest.raises(MedCLIPSAMError, match=remedy):
            work(tiny_batch())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.module.state_dict().items())
    trainer.model.image_features = lambda batch: batch @ torch.ones(2, 2)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|dtype"):  # another error stays what it is
        trainer.train_step(tiny_batch())


def test_validation_in_parts_gives_the_same_features() -> None:
    whole, parts = (tiny_trainer(chunk=chunk).encode(tiny_batch()) for chunk in (0, 3))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


# ---- Settings and data that cannot be right --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 2])
def test_a_locked_text_projection_trains(pairs: Path, kept_features: Path, chunk: int) -> None:  # noqa: F811
    """The term that keeps the texts' similarity to patches has then no gradient."""
    settings = replace(LITE, locked_text_layers=-1).filled("lite")
    model = load_trainable(settings, ALONE.device, kept_features)
    data = FinetuneData(DataSettings(pairs), settings, ALONE)
    data.prepare(model, lambda *_: None)
    before = {name: value.clone() for name, value in model.state().items()}
    trainer = Trainer(model, settings, Course.of(settings, data.epoch_steps), ALONE, chunk)
    trainer.train_step(data.next_batch(model, 0, 0))
    trainer.train_step(data.next_batch(model, 1, 0))
    data.close()
    changed = {name.partition(".")[0] for name, value in model.state().items() if not torch.equal(value, before[name])}
    assert changed == {"image_head"}


def test_captions_too_equal_for_the_batches_are_refused_at_the_start(tmp_path: Path) -> None:
    table = write_pairs(tmp_path, 20)
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    place = header.index("caption")

    def with_equal(count: int) -> DataSettings:
        texts = ["The same caption for many images."] * count + [row[place] for row in rows[count:]]
        path = tmp_path / f"equal-{count}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            changed = [[*row[:place], text, *row[place + 1 :]] for row, text in zip(rows, texts, strict=True)]
            csv.writer(file).writerows([header, *changed])
        return DataSettings(path)

    settings = replace(SETTINGS, validation_share=0.0)  # five batches of four
    with pytest.raises(InputError, match=r"16 of 20 training pairs have the caption 'The same"):
        FinetuneData(with_equal(16), settings, ALONE)
    data = FinetuneData(with_equal(15), settings, ALONE)
    keys = data.training.caption_keys
    for epoch in range(20):
        assert all(len(set(keys[batch])) > 1 for batch in data._plan.epoch(epoch))


def test_patches_come_from_all_parts_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are often sorted by modality."""
    monkeypatch.setattr(finetune_data, "SETTLING_IMAGES", 5)
    table = write_pairs(tmp_path, 17)
    seen = []
    model = SimpleNamespace(
        keeps_features=True,
        prepare=lambda images: (torch.zeros(1) for _ in images),
        settle=lambda images: seen.extend(image.tobytes() for image in images),
    )
    settings = replace(SETTINGS, validation_share=0.0)
    FinetuneData(DataSettings(table), settings, ALONE).prepare(model, lambda *_: None)
    every = [finetune_data._readable(str(table.parent / "images" / f"{row:03}.png")).tobytes() for row in range(17)]
    assert seen == [every[row] for row in (0, 4, 8, 12, 16)]


@pytest.mark.parametrize("option", [("--save-every", "0"), ("--chunk", "-1"), ("--validate-every", "-1")])
def test_numbers_out_of_range_are_refused_before_anything_is_read(tmp_path: Path, option: tuple[str, str]) -> None:
    app = typer.Typer()
    app.command()(finetune.main)
    given = ["--data", str(tmp_path / "absent.csv"), "--output", str(tmp_path / "model"), *option]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2 and f"Invalid value for '{option[0]}'" in result.output


# ---- Output and work folders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "lite-alignment.safetensors", "model.safetensors"])
def test_weights_that_would_win_over_the_new_ones_are_refused(tmp_path: Path, name: str) -> None:
    check_room(tmp_path, ("open_clip",))
    (tmp_path / name).write_bytes(b"earlier")
    with pytest.raises(InputError, match=f"holds {name}.*another --output"):
        check_room(tmp_path, ("open_clip",))
    assert (tmp_path / name).read_bytes() == b"earlier"
    (tmp_path / name).unlink()
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"earlier")
    check_room(tmp_path, ("open_clip", "hugging_face"))  # it is replaced


def test_the_start_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"first")
    _, before = own_base(path)
    path.write_bytes(b"other")
    assert own_base(path)[1] != before


def test_machines_that_do_not_share_the_work_folder_are_told(linear: RunOptions, tmp_path: Path) -> None:
    class Two:
        """The first of two processes, the other of which has found no checkpoint."""

        rank, count, device, group, first = 0, 1, ALONE.device, None, True

        def gather(self, value):
            return [value, 0]

    source = DataSettings(write_pairs(tmp_path, 16))
    with JobLink() as link:
        run(SETTINGS, source, linear, ALONE, link)
        with pytest.raises(InputError, match=r"after the steps 0, 5; .*all machines see"):
            Run(SETTINGS, source, linear, Two(), link)


# ---- Images that cannot be read --------------------------------------------------------------------------------------


def test_the_list_of_broken_images_lives_through_stop_and_resume(
    linear: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_pairs(tmp_path, 16)
    broken = break_image(table, 3)
    source = DataSettings(table, broken_share=0.2)
    settings = replace(SETTINGS, validation_share=0.0)
    for _ in range(4):  # an epoch, a step each time
        with JobLink() as link, monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(Run, "_record", lambda run, report: setattr(run.link, "stop_code", 143))
            run(settings, source, linear, ALONE, link)
    assert [row["file"] for row in read_rows(linear.work / SKIPPED)] == [broken]
    with JobLink() as link:
        run(settings, source, linear, ALONE, link)
    assert [row["file"] for row in read_rows(linear.work / SKIPPED)] == [broken]


def test_too_many_broken_images_are_listed_whole(linear: RunOptions, tmp_path: Path) -> None:
    table = write_pairs(tmp_path, 60)
    broken = {break_image(table, row) for row in range(30)}
    settings = replace(SETTINGS, validation_share=0.5, batch=8)
    with JobLink() as link, pytest.raises(InputError, match="images so far cannot be read"):
        run(settings, DataSettings(table), linear, ALONE, link)
    listed = [row["file"] for row in read_rows(linear.work / SKIPPED)]
    assert listed and set(listed) <= broken
