"""A fine-tuning run that is killed or stopped goes on to the same bits; what it finds in its folder is checked."""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from finetune_pairs import read_rows, run, shared_features, start, wait_until, write_pairs  # noqa: E402
from test_finetune import tiny_batch, tiny_trainer  # noqa: E402

from MedCLIPSAMLib.errors import InputError, MissingWeightsError  # noqa: E402
from MedCLIPSAMLib.weights import resolve  # noqa: E402
from MedCLIPSAMTraining.finetune_checkpoints import CHECKPOINT, STEPS, Best, WorkFolder  # noqa: E402

STEP_COUNT = 14
IDENTITY = {"settings": {"seed": 0, "batch": 8}, "data": {"plan": "abc"}, "base": {"sha256": "0"}}


def test_work_folder_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class Saved:
        """What the tiny model of the other test lacks."""

        def __init__(self, trainer):
            trainer.model.state = lambda: dict(trainer.model.module.state_dict())
            trainer.model.load_state = trainer.model.module.load_state_dict

    whole, first, second = (tiny_trainer(dropout=0.3) for _ in range(3))
    for trainer in (whole, first, second):
        Saved(trainer)
    for _ in range(6):
        whole.train_step(tiny_batch())
    for _ in range(3):
        first.train_step(tiny_batch())
    work = WorkFolder(tmp_path, IDENTITY)
    work.save(first, Best(0.5, 2), 3)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert WorkFolder(tmp_path, IDENTITY).resume(second) == (Best(0.5, 2), 3)
    for _ in range(3):
        second.train_step(tiny_batch())
    for name, value in whole.model.module.state_dict().items():
        assert torch.equal(value, second.model.module.state_dict()[name]), name
    other = {**IDENTITY, "settings": {"seed": 1, "batch": 8}}
    with pytest.raises(InputError, match="seed 0 in place of 1; choose another --work"):
        WorkFolder(tmp_path, other).resume(second)
    whole_file = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        WorkFolder(tmp_path, IDENTITY).resume(second)


def test_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from MedCLIPSAMLib.errors import OutputError

    trainer = tiny_trainer()
    trainer.model.state = lambda: dict(trainer.model.module.state_dict())
    work = WorkFolder(tmp_path, IDENTITY)
    work.save(trainer, Best(), -1)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(content, file):
        file.write(b"part of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError):
        work.save(trainer, Best(), -1)
    assert (tmp_path / CHECKPOINT).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_records_lose_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / STEPS).write_text("step,loss\n1,2.5\n2,2.25\n3,2.0\n4,1.", encoding="utf-8")
    work = WorkFolder(tmp_path, IDENTITY)
    assert [row["loss"] for row in work.open_record(STEPS, ["step", "loss"], 2)] == ["2.5", "2.25"]
    work.record(STEPS, [3, 1.75])
    work.close()
    assert (tmp_path / STEPS).read_text(encoding="utf-8").split() == ["step,loss", "1,2.5", "2,2.25", "3,1.75"]
    (tmp_path / STEPS).write_bytes(b"step,loss\n1,2.5\n2")  # killed in the middle of a line
    assert len(work.open_record(STEPS, ["step", "loss"], 2)) == 1
    work.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_at_random_steps_and_stopped(tmp_path: Path) -> None:
    """Five SIGKILLs and one SIGTERM at random moments, with another number of loader processes each time."""
    try:
        resolve(["lite-medsam", "minilm-l6-v2", "lite-alignment"])
    except MissingWeightsError as error:
        pytest.skip(str(error))
    options = ["--data", write_pairs(tmp_path, 24), "--model", "lite", "--batch", 6, "--steps", STEP_COUNT]
    options += ["--validation-share", 0.25, "--features", shared_features(), "--save-every", 2, "--device", "cpu"]
    options += ["--no-tensorboard", "--seed", 3]

    def places(name: str) -> list[object]:
        return [*options, "--output", tmp_path / name, "--work", tmp_path / f"{name}-work"]

    run([*places("whole"), "--workers", 0], tmp_path / "log.txt")
    rng = random.Random()
    steps = sorted(rng.sample(range(1, STEP_COUNT), 6))
    work = tmp_path / "killed-work"
    for number, step in enumerate(steps):
        process = start([*places("killed"), "--workers", number % 2], log=tmp_path / "log.txt")
        try:
            # The last line may lie after the checkpoint, so a resumed run may have to pass it once more.
            wait_until(lambda step=step: len(read_rows(work / STEPS)) >= step, process)
            if number == 3:
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 143, f"steps {steps}"
                done = read_rows(work / STEPS)
                stopped = torch.load(work / CHECKPOINT, weights_only=True)["step"]
                assert stopped == len(done), "asked to stop, it saves the step that it has done"
        finally:
            process.kill()
            process.wait()
    assert not (tmp_path / "killed" / "finetune.json").exists()
    run([*places("killed"), "--workers", 1], tmp_path / "log.txt")

    def numbers(name: str, file: str) -> list[dict[str, str]]:
        rows = read_rows(tmp_path / f"{name}-work" / file)
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    for file in (STEPS, "validation.csv"):
        assert numbers("killed", file) == numbers("whole", file), f"steps {steps}"
    assert len(numbers("killed", STEPS)) == STEP_COUNT
    for file, part in (("checkpoint.pt", "state_dict"), ("checkpoint.pt", "optimizer"), ("best.pt", "state_dict")):
        whole, killed = (
            torch.load(tmp_path / f"{name}-work" / file, weights_only=True)[part] for name in ("whole", "killed")
        )
        assert equal(whole, killed), f"{file}, {part}; steps {steps}"
    name = "lite-alignment.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def equal(left: object, right: object) -> bool:
    """Bit by bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right
