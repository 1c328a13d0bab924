"""The cyclical schedule and the trainer that follows it, also after it was killed."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_nnunet
import torch

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.cyclical_schedule import CyclicalSettings, checkpoint_name, kept_epochs, learning_rate

SMALL = {
    "epochs": 6,
    "cycles": 2,
    "kept_per_cycle": 2,
    "iterations": 3,
    "validation_iterations": 1,
    "restart_rate": 0.02,
}


# ---- The schedule ----------------------------------------------------------------------------------------------------


def test_learning_rate_of_the_paper():
    settings = CyclicalSettings()
    curve = [learning_rate(epoch, settings) for epoch in range(600)]
    assert curve[0] == curve[200] == curve[400] == 0.01
    assert curve[1] == curve[201] == curve[401] == pytest.approx(0.01 * (599 / 600) ** 0.9, rel=1e-12)
    assert curve[100] == pytest.approx(0.01 * (5 / 6) ** 0.9, rel=1e-12)
    # From 0.8 of a cycle on the rate stays: 1 - 160 / 600 = 11 / 15.
    assert set(curve[160:200]) == set(curve[360:400]) == set(curve[560:600]) == {curve[160]}
    assert curve[160] == pytest.approx(0.01 * (11 / 15) ** 0.9, rel=1e-12)
    assert curve[160] == pytest.approx(0.00756, abs=5e-6)
    assert all(later < earlier for earlier, later in itertools.pairwise(curve[:161]))


def test_learning_rate_of_zhao_restarts_high():
    settings = CyclicalSettings(epochs=1200, restart_rate=0.1)
    assert [epoch for epoch in range(1200) if learning_rate(epoch, settings) == 0.1] == [0, 400, 800]
    assert learning_rate(401, settings) == pytest.approx(0.01 * (1 - 1 / 1200) ** 0.9, rel=1e-12)


def test_kept_epochs_are_the_last_of_each_cycle():
    assert kept_epochs(CyclicalSettings()) == [*range(190, 200), *range(390, 400), *range(590, 600)]
    assert kept_epochs(CyclicalSettings(epochs=6, cycles=3, kept_per_cycle=1)) == [1, 3, 5]
    assert kept_epochs(CyclicalSettings(epochs=4, cycles=2, kept_per_cycle=2)) == [0, 1, 2, 3]
    assert checkpoint_name(7) == "checkpoint_ep0007.pth"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 100}, "102"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": 6.0}, "epochs is 6.0"),
        ({"cycles": True}, "cycles is True"),
        ({"epochs": 30, "kept_per_cycle": 11}, "at most 10"),
        ({"initial_rate": 0}, "initial_rate is 0"),
        ({"restart_rate": float("nan")}, "restart_rate is nan"),
        ({"cycle_share": 1.2}, "cycle_share is 1.2"),
        ({"iterations": 0}, "iterations is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        CyclicalSettings(**values)


def test_settings_in_the_plans():
    assert CyclicalSettings.from_plans({}) == CyclicalSettings(600, 3, 10)
    settings = CyclicalSettings(**SMALL)
    assert CyclicalSettings.from_plans({"medclipsam": settings.to_plans()}) == settings
    with pytest.raises(InputError, match="epoch"):
        CyclicalSettings.from_plans({"medclipsam": {"epoch": 6}})  # misspelt: not the paper's 600 epochs
    with pytest.raises(InputError, match="there is no epoch 6"):
        learning_rate(6, settings)


# ---- The trainer -----------------------------------------------------------------------------------------------------


def lives(folder: Path, *points: str) -> list[tuple[str, int]]:
    """Let the training live through the points; return how each life ended."""
    script = Path(__file__).with_name("cyclical_lives.py")
    path = os.pathsep.join([str(script.parent), tiny_nnunet.variables(folder)["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *points],
        env=tiny_nnunet.variables(folder) | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"LIFE ([^:]+): (-?\d+)", done.stderr)
    assert len(found) == len(points), done.stderr[-3000:]
    return [(point, int(code)) for point, code in found]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed (pip install nnunetv2)")
    if not hasattr(os, "fork"):
        pytest.skip("the lives of a training are forked, which Windows cannot")
    folder = tmp_path_factory.mktemp("uninterrupted")
    tiny_nnunet.write_preprocessed(folder, SMALL)
    assert lives(folder, "find") == [("find", 0)]
    return folder


def fold(folder: Path) -> Path:
    return folder / f"results/{tiny_nnunet.DATASET}/nnUNetTrainerCyclical__{tiny_nnunet.PLANS}__2d" / "fold_all"


@pytest.mark.slow
def test_nnunet_finds_the_trainer_which_follows_the_schedule(uninterrupted):
    told = json.loads((uninterrupted / "told.json").read_text())
    assert told["trainer"] == "nnUNetTrainerCyclical"
    assert told["epochs"] == 6
    decayed = [0.01 * (1 - min(t, 2.4) / 6) ** 0.9 for t in (1, 2)]
    assert told["lrs"] == pytest.approx([0.02, *decayed, 0.02, *decayed], rel=1e-12)
    names = [path.name for path in sorted(fold(uninterrupted).glob("*.pth"))]
    assert names == [*(f"checkpoint_ep{epoch:04d}.pth" for epoch in (1, 2, 4, 5)), "checkpoint_final.pth"]
    assert json.loads((fold(uninterrupted).parent / "plans.json").read_text())["medclipsam"] == SMALL


@pytest.mark.slow
def test_kept_checkpoints_are_slim_and_plain(uninterrupted):
    final = torch.load(fold(uninterrupted) / "checkpoint_final.pth", weights_only=True)
    for epoch in (1, 2, 4, 5):
        kept = torch.load(fold(uninterrupted) / checkpoint_name(epoch), weights_only=True)
        assert set(kept) == {"network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"}
        assert kept["init_args"] == {"configuration": "2d", "fold": "all"}
        assert kept["inference_allowed_mirroring_axes"] == (0, 1)
    assert all(torch.equal(kept["network_weights"][name], one) for name, one in final["network_weights"].items())
    assert final["current_epoch"] == 6
    first = torch.load(fold(uninterrupted) / checkpoint_name(1), weights_only=True)
    assert any(not torch.equal(first["network_weights"][name], one) for name, one in final["network_weights"].items())


@pytest.mark.slow
def test_a_training_killed_anywhere_keeps_the_same_weights(uninterrupted, tmp_path):

    points = ("train 0 1", "train 1 2", "kept 2", "writing 3", "stop 4", "end")
    killed = -signal.SIGKILL
    tiny_nnunet.write_preprocessed(tmp_path, SMALL)
    assert [code for _, code in lives(tmp_path, *points)] == [killed, killed, killed, killed, 3, 0]
    told, reference = (json.loads((one / "told.json").read_text()) for one in (tmp_path, uninterrupted))
    assert told["resumed_at"] == 5
    assert told["lrs"] == reference["lrs"]
    names = sorted(path.name for path in fold(uninterrupted).glob("*.pth"))
    assert sorted(path.name for path in fold(tmp_path).glob("*.pth")) == names
    assert not list(fold(tmp_path).glob(".partial-*"))
    for name in names:
        expected, found = (torch.load(fold(one) / name, weights_only=True) for one in (uninterrupted, tmp_path))
        assert list(expected["network_weights"]) == list(found["network_weights"])
        for key, value in expected["network_weights"].items():
            assert torch.equal(value, found["network_weights"][key]), f"{name}: {key}"


@pytest.mark.slow
def test_what_a_training_cannot_go_on_from(uninterrupted, tmp_path, monkeypatch):
    base = uninterrupted / "preprocessed" / tiny_nnunet.DATASET
    for name, value in tiny_nnunet.variables(uninterrupted).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    shutil.copytree(uninterrupted / "results", tmp_path / "results")
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "training" / "nnunet_trainers")
    from cyclical_trainer import nnUNetTrainerCyclical

    def trainer(**changes: int) -> nnUNetTrainerCyclical:
        plans, dataset = (
            json.loads((base / name).read_text()) for name in (f"{tiny_nnunet.PLANS}.json", "dataset.json")
        )
        plans["medclipsam"] |= changes
        return nnUNetTrainerCyclical(plans, "2d", "all", dataset, torch.device("cpu"))

    with pytest.raises(InputError, match="state of a training"):
        trainer().load_checkpoint(str(fold(uninterrupted) / checkpoint_name(1)))
    with pytest.raises(InputError, match="other settings"):
        trainer(epochs=12).load_checkpoint(str(fold(uninterrupted) / "checkpoint_final.pth"))
    state = torch.load(fold(uninterrupted) / "checkpoint_final.pth", weights_only=True)
    (tmp_path / "damaged.pth").write_bytes((fold(uninterrupted) / "checkpoint_final.pth").read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged"):
        trainer().load_checkpoint(str(tmp_path / "damaged.pth"))
    torch.save(state | {"logging": Path("a class")}, tmp_path / "foreign.pth")
    with pytest.raises(InputError, match="more than numbers"):
        trainer().load_checkpoint(str(tmp_path / "foreign.pth"))
    finished = trainer()
    finished.load_checkpoint(str(fold(uninterrupted) / "checkpoint_final.pth"))
    (fold(tmp_path) / checkpoint_name(2)).unlink()
    with pytest.raises(InputError, match=r"1 of 4 kept .* checkpoint_ep0002\.pth"):
        finished.on_train_end()
