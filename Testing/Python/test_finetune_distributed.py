"""Two gloo processes on halves of a batch do what one process does on the whole."""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from finetune_pairs import read_rows, run, shared_features, start, wait_until, write_pairs  # noqa: E402
from test_finetune import SETTINGS, TinyClip, tiny_batch, tiny_trainer  # noqa: E402
from torch import distributed, multiprocessing  # noqa: E402

from MedCLIPSAMLib.errors import MissingWeightsError  # noqa: E402
from MedCLIPSAMLib.weights import resolve  # noqa: E402
from MedCLIPSAMTraining.finetune_distributed import Processes, join_processes  # noqa: E402
from MedCLIPSAMTraining.finetune_loop import PairBatch, Trainer  # noqa: E402
from MedCLIPSAMTraining.finetune_settings import LOSSES, Course  # noqa: E402

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32" or not distributed.is_gloo_available(), reason="needs gloo"),
]
STEPS = 4
CASES = [(loss, chunk, dropout) for loss in LOSSES for chunk, dropout in ((0, 0.0), (2, 0.3))]


def half_by_half(rank: int, port: int, folder: str) -> None:
    """Train every case as one of two processes and keep the weights."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    with join_processes("cpu") as processes:
        assert (processes.rank, processes.count) == (rank, 2)
        assert processes.any(None) is None and processes.any(143 if rank else None) == 143
        assert processes.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
        found = {}
        for case in CASES:
            trainer = of_case(case, processes)
            losses = [trainer.train_step(half(rank)).loss for _ in range(STEPS)]
            found[case] = losses, dict(trainer.model.module.state_dict())
        torch.save(found, Path(folder, f"{rank}.pt"))


def of_case(case: tuple[str, int, float], processes: Processes) -> Trainer:
    loss, chunk, dropout = case
    settings = replace(SETTINGS, loss=loss)
    return Trainer(TinyClip(dropout), settings, Course.of(settings, 5), processes, chunk)


def half(rank: int) -> PairBatch:
    batch, part = tiny_batch(), slice(4 * rank, 4 * rank + 4)
    return PairBatch(batch.images[part], batch.captions[part], batch.keys[part])


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(half_by_half, args=(port, str(tmp_path)), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case in CASES:
        alone = tiny_trainer(replace(SETTINGS, loss=case[0]), *case[1:])
        losses = [alone.train_step(tiny_batch()).loss for _ in range(STEPS)]
        for values, weights in (found[case] for found in both):
            assert values == pytest.approx(losses, abs=1e-10), case
            for name, value in alone.model.module.state_dict().items():
                torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-9, msg=f"{case} {name}")


@pytest.mark.slow
def test_the_command_on_two_processes(tmp_path: Path) -> None:
    """From start to end, stopped once in between, against one process; the lite model, in chunks."""
    try:
        resolve(["lite-medsam", "minilm-l6-v2", "lite-alignment"])
    except MissingWeightsError as error:
        pytest.skip(str(error))
    options = ["--data", write_pairs(tmp_path, 24), "--model", "lite", "--batch", 8, "--steps", 6, "--chunk", 2]
    options += ["--validation-share", 0.25, "--features", shared_features(), "--device", "cpu", "--workers", 0]
    options += ["--no-tensorboard", "--validate-every", 3]
    one = [*options, "--output", tmp_path / "one"]
    two = [*options, "--output", tmp_path / "two"]
    log = tmp_path / "log.txt"
    process = start(two, processes=2, log=log)
    try:
        wait_until(lambda: len(read_rows(tmp_path / "two-work" / "steps.csv")) >= 2, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    stopped = torch.load(tmp_path / "two-work" / "checkpoint.pt", weights_only=True)["step"]
    assert stopped >= 2
    run(two, log, processes=2)
    run(one, log)
    first, second = (read_rows(tmp_path / f"{name}-work" / "steps.csv") for name in ("one", "two"))
    assert len(second) == 6
    for left, right in zip(first, second, strict=True):
        assert float(left["loss"]) == pytest.approx(float(right["loss"]), abs=2e-4)
    first, second = (read_rows(tmp_path / f"{name}-work" / "validation.csv") for name in ("one", "two"))
    assert [row["step"] for row in first] == [row["step"] for row in second] == ["0", "3", "6"]
    assert first[0] == second[0], "the very same features before the first step"
    assert (tmp_path / "two" / "lite-alignment.safetensors").is_file()
