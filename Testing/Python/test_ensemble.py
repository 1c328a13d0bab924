"""Prediction with an nnU-Net checkpoint ensemble, and the folder that it is read from."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_nnunet
import torch

from MedCLIPSAMLib.ensemble import IMAGE_SPACING, CheckpointEnsemble
from MedCLIPSAMLib.ensemble_folder import ModelClass, read_model_folder, write_model_folder
from MedCLIPSAMLib.errors import ChecksumError, DeviceMemoryError, InputError, MedCLIPSAMError
from MedCLIPSAMLib.nnunet_network import build_network

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed (pip install nnunetv2)")
SIDES = (70, 52)  # neither a multiple of the network's strides nor a single patch


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_nnunet.write_model(tmp_path_factory.mktemp("images"), members=3)


@pytest.fixture(scope="module")
def volume_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    return tiny_nnunet.write_model(folder, members=2, volumes=True, classes=("organ", "lesion"))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """(1, 1, H, W) float32, as nnU-Net's reader of 2D images gives a grey one."""
    rng = np.random.default_rng(5)
    return rng.uniform(0, 255, (1, 1, *SIDES)).astype(np.float32)


def nnunet_probabilities(
    model: Path, file: str, array: np.ndarray, spacing: tuple[float, ...], mirroring: bool = False
):
    """Return labels and softmax of one checkpoint by nnU-Net's own predictor, from beginning to end."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    dataset = json.loads((model / "dataset.json").read_text())
    checkpoint = torch.load(model / file, weights_only=True)
    plans = json.loads((model / "plans.json").read_text())
    built = build_network(plans, dataset, checkpoint["init_args"]["configuration"])
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
        predictor.manual_initialization(
            built.network,
            built.plans,
            built.configuration,
            [checkpoint["network_weights"]],
            dataset,
            checkpoint["trainer_name"],
            checkpoint["inference_allowed_mirroring_axes"],
        )
        return predictor.predict_single_npy_array(array, {"spacing": list(spacing)}, None, None, True)


def entropy_in_nats(probabilities: np.ndarray) -> np.ndarray:
    safe = np.where(probabilities > 0, probabilities.astype(np.float64), 1)
    return -(safe * np.log(safe)).sum(axis=0)


@pytest.mark.parametrize("mirroring", [False, True])
def test_a_single_member_equals_nnunet_s_own_predictor(model, picture, mirroring):
    ensemble = CheckpointEnsemble(model, members="last", mirroring=mirroring)
    found = ensemble.predict(picture, IMAGE_SPACING)
    labels, expected = nnunet_probabilities(model, ensemble.files[0], picture, IMAGE_SPACING, mirroring)
    assert found.probabilities.shape == (2, *SIDES)
    np.testing.assert_allclose(found.probabilities, expected[:, 0], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(found.labels, labels[0])
    assert found.probabilities[1].std() > 0.01  # the comparison would mean little on a constant map


def test_the_ensemble_is_the_mean_of_probabilities_and_not_of_logits(model, picture):
    found = CheckpointEnsemble(model).predict(picture, IMAGE_SPACING)
    members = np.stack(
        [nnunet_probabilities(model, file, picture, IMAGE_SPACING)[1][:, 0] for file in read_model_folder(model).kept]
    ).astype(np.float64)
    mean = members.mean(axis=0)
    assert found.members == 3
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-6, rtol=0)
    np.testing.assert_allclose(found.entropy, entropy_in_nats(mean), atol=1e-5)
    disagreement = entropy_in_nats(mean) - np.mean([entropy_in_nats(one) for one in members], axis=0)
    np.testing.assert_allclose(found.mutual_information, disagreement, atol=1e-5)
    assert found.mutual_information.min() >= 0 and found.mutual_information.max() > 0.01
    assert found.entropy.max() <= np.log(2) + 1e-6
    logits = np.log(np.clip(members[:, 1], 1e-9, 1)) - np.log(np.clip(members[:, 0], 1e-9, 1))
    assert np.abs(1 / (1 + np.exp(-logits.mean(axis=0))) - found.probabilities[1]).max() > 0.02


def test_several_inputs_together_give_what_each_gives_alone(model, picture):
    ensemble = CheckpointEnsemble(model)
    other = picture[:, :, :40, 5:] * 0.5
    together = ensemble.predict_together([picture, other], [IMAGE_SPACING] * 2)
    for one, array in zip(together, (picture, other), strict=True):
        alone = ensemble.predict(array, IMAGE_SPACING)
        np.testing.assert_array_equal(one.probabilities, alone.probabilities)
        np.testing.assert_array_equal(one.mutual_information, alone.mutual_information)


def test_a_volume_with_its_own_spacing_equals_nnunet_s_own_predictor(volume_model):
    rng = np.random.default_rng(1)
    volume = rng.normal(100, 30, (1, 12, 21, 26)).astype(np.float32)
    spacing = (2.0, 0.8, 1.0)  # in the order of the array; the network works at 1 mm
    found = CheckpointEnsemble(volume_model).predict(volume, spacing)
    kept = read_model_folder(volume_model).kept
    expected = np.mean([nnunet_probabilities(volume_model, file, volume, spacing)[1] for file in kept], axis=0)
    assert found.probabilities.shape == (3, 12, 21, 26)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6, rtol=0)
    assert found.entropy.max() <= np.log(3) + 1e-6
    assert len(np.unique(found.labels)) > 1


def test_masks_by_the_most_probable_class_or_a_threshold(model, picture):
    found = CheckpointEnsemble(model).predict(picture, IMAGE_SPACING)
    np.testing.assert_array_equal(found.mask(1), found.probabilities[1] > found.probabilities[0])
    np.testing.assert_array_equal(found.mask(1, 0.25), found.probabilities[1] > 0.25)
    for label, threshold in ((2, None), (1, 1.0), (1, -0.1)):
        with pytest.raises(InputError):
            found.mask(label, threshold)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells the memory of a process at once")
def test_memory_does_not_grow_with_the_number_of_checkpoints(tmp_path, picture):
    def widen(plans: dict[str, Any]) -> None:
        plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 500, 500]

    model = tmp_path / "wide"
    kept = tiny_nnunet.write_trained(model, 1, change=widen)
    plans, dataset = (json.loads((model / name).read_text()) for name in ("plans.json", "dataset.json"))
    content = torch.load(model / kept[0], weights_only=True)
    weights = build_network(plans, dataset, "2d").network.state_dict()
    torch.save(content | {"network_weights": weights}, model / kept[0])
    size = (model / kept[0]).stat().st_size
    assert size > 25e6
    names = [f"fold_all/checkpoint_ep{number:04d}.pth" for number in range(12)]
    for name in names:
        if name != kept[0]:
            os.link(model / kept[0], model / name)
    classes = [ModelClass(1, "disc", "disc")]
    write_model_folder(
        tmp_path / "model", model, kept=names, classes=classes, kind="images", supervision="pseudo-labels"
    )
    resident: list[int] = []

    def measure(done: int, total: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE"))

    CheckpointEnsemble(tmp_path / "model").predict(picture[..., :32, :32], IMAGE_SPACING, progress=measure)
    assert len(resident) == 12
    # Kept weights would add ten times the size of a checkpoint between the second member and the last.
    assert max(resident[2:]) - resident[1] < 2.5 * size


def test_a_run_can_be_cancelled_between_the_checkpoints(model, picture):
    calls = []

    def cancelled() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise MedCLIPSAMError("stop")

    with pytest.raises(MedCLIPSAMError, match="stop"):
        CheckpointEnsemble(model).predict(picture, IMAGE_SPACING, cancelled=cancelled)
    assert len(calls) == 2


# ---- The model folder ------------------------------------------------------------------------------------------------


def test_a_model_folder_comes_back_as_it_was_written(model):
    found = read_model_folder(model)
    assert found.classes == (ModelClass(1, "disc", "a disc"),)
    assert found.kept == tuple(f"fold_all/checkpoint_ep{number:04d}.pth" for number in (9, 19, 29))
    assert (found.kind, found.supervision, found.window) == ("images", "pseudo-labels", None)
    assert found.pseudo_labels == {"engine": "lite", "cases": 6}
    assert set(found.sha256) == {"plans.json", "dataset.json", *found.kept}
    assert found.versions["nnunetv2"]


def test_writing_the_same_model_again_changes_nothing_and_another_one_is_refused(tmp_path):
    model = tiny_nnunet.write_model(tmp_path, members=2)
    arguments = {"classes": [ModelClass(1, "disc", "disc")], "kind": "images", "supervision": "pseudo-labels"}
    kept = list(read_model_folder(model).kept)
    before = (model / "weak.json").read_bytes()
    write_model_folder(model, tmp_path / "trained", kept=kept, **arguments)
    assert (model / "weak.json").read_bytes() == before
    with pytest.raises(InputError, match="another model"):
        write_model_folder(model, tmp_path / "trained", kept=kept[:1], **arguments)
    assert (model / "weak.json").read_bytes() == before


def test_an_interrupted_writing_leaves_no_model_and_is_completed_later(tmp_path, monkeypatch):
    import MedCLIPSAMLib.ensemble_folder as module

    kept = tiny_nnunet.write_trained(tmp_path / "trained", 2)
    arguments = {"classes": [ModelClass(1, "disc", "disc")], "kind": "images", "supervision": "pseudo-labels"}

    def full(path: Path, content: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(module, "write_json", full)
        write_model_folder(tmp_path / "model", tmp_path / "trained", kept=kept, **arguments)
    with pytest.raises(InputError, match=r"no weak\.json"):
        read_model_folder(tmp_path / "model")
    write_model_folder(tmp_path / "model", tmp_path / "trained", kept=kept, **arguments)
    shutil.rmtree(tmp_path / "trained")  # the model stands on its own
    assert CheckpointEnsemble(tmp_path / "model").files == tuple(kept)


def test_files_are_copied_where_links_are_not_possible(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    model = tiny_nnunet.write_model(tmp_path, members=1)
    found = read_model_folder(model)
    assert found.verify(found.kept[0]).stat().st_nlink == 1
    assert not [path.name for path in model.rglob(".*")]


def _edit(file: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        content = json.loads((model / file).read_text())
        change(content)
        (model / file).write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: (model / "weak.json").unlink(), "no weak.json"),
        (lambda model: (model / "weak.json").write_text("{"), "not JSON"),
        (lambda model: (model / "weak.json").write_text("[]"), "no JSON object"),
        (_edit("weak.json", lambda content: content.update(format=2)), "format 2"),
        (_edit("weak.json", lambda content: content.update(kind="films")), "films"),
        (_edit("weak.json", lambda content: content.update(kept=[])), "no checkpoint"),
        (_edit("weak.json", lambda content: content.update(kept=["../../etc/checkpoint_a.pth"])), "not of the form"),
        (_edit("weak.json", lambda content: content["classes"][0].update(label=2)), "must be 1, 2"),
        (_edit("weak.json", lambda content: content["sha256"].pop("plans.json")), "no SHA-256"),
        (_edit("weak.json", lambda content: content.pop("classes")), "classes"),
        (lambda model: (model / "fold_all/checkpoint_ep0009.pth").unlink(), "is absent"),
        (lambda model: (model / "plans.json").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_model_folder_is_refused_with_the_reason(model, tmp_path, spoil, message):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    spoil(copy)
    with pytest.raises(InputError, match=message):
        read_model_folder(copy)


def test_a_changed_checkpoint_or_plan_is_not_loaded(model, tmp_path):
    for file in ("fold_all/checkpoint_ep0019.pth", "plans.json"):
        copy = tmp_path / Path(file).name
        shutil.copytree(model, copy)
        (copy / file).write_bytes((copy / file).read_bytes() + b" ")
        with pytest.raises(ChecksumError, match=Path(file).name):
            CheckpointEnsemble(copy)


# ---- What a model folder must not do ---------------------------------------------------------------------------------


def resealed(model: Path) -> Path:
    """Write the SHA-256 of every file anew: who hands a model over can do so, too."""
    from hashlib import sha256

    content = json.loads((model / "weak.json").read_text())
    content["sha256"] = {name: sha256((model / name).read_bytes()).hexdigest() for name in content["sha256"]}
    (model / "weak.json").write_text(json.dumps(content))
    return model


def architecture(plans: dict[str, Any]) -> dict[str, Any]:
    return plans["configurations"]["2d"]["architecture"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plans: architecture(plans).update(network_class_name="planted.Network"), "planted.Network"),
        (
            lambda plans: architecture(plans).update(
                network_class_name="dynamic_network_architectures.architectures.unet.np"
            ),
            "does not exist",
        ),
        (lambda plans: architecture(plans)["arch_kwargs"].update(nonlin="planted.layer"), "planted.layer"),
        (
            lambda plans: architecture(plans)["arch_kwargs"].update(nonlin="torch.nn.modules.module.os.system"),
            "os.system",
        ),
        (lambda plans: architecture(plans)["arch_kwargs"].update(nonlin="torch.nn.Parameter"), "Parameter"),
        (lambda plans: architecture(plans)["arch_kwargs"].update(features_per_stage=[4, 8, 10**9]), "1000000000"),
        (lambda plans: plans["configurations"]["2d"].update(preprocessor_name="planted.thing"), "planted.thing"),
        (lambda plans: plans.update(label_manager="planted.thing"), "planted.thing"),
        (lambda plans: plans["configurations"].pop("2d"), "no configuration '2d'"),
        (lambda plans: architecture(plans).pop("arch_kwargs"), "do not describe a network"),
    ],
)
def test_plans_cannot_name_foreign_classes(model, tmp_path, monkeypatch, change, message):
    (tmp_path / "planted.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    _edit("plans.json", change)(copy)
    with pytest.raises(InputError, match=message):
        CheckpointEnsemble(resealed(copy))
    assert not (tmp_path / "imported").exists()


class _Touch:
    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, ("unpickled", "w")


def test_a_checkpoint_that_would_run_code_is_not_loaded(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    for name in ("fold_all/checkpoint_ep0009.pth", "fold_all/checkpoint_ep0029.pth"):  # the first one, and a later one
        content = torch.load(model / name, weights_only=True)
        torch.save(content | {"logging": _Touch()}, copy / name)
        with pytest.raises(InputError, match="more than numbers"):
            CheckpointEnsemble(resealed(copy)).predict(np.ones((1, 1, 32, 32), np.float32), IMAGE_SPACING)
        shutil.copy(model / name, copy / name)
    assert not (tmp_path / "unpickled").exists()


def test_weights_of_another_network_are_refused(model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    name = "fold_all/checkpoint_ep0019.pth"
    content = torch.load(model / name, weights_only=True)
    content["network_weights"].popitem()
    torch.save(content, copy / name)
    with pytest.raises(InputError, match="does not fit the network"):
        CheckpointEnsemble(resealed(copy)).predict(np.ones((1, 1, 32, 32), np.float32), IMAGE_SPACING)


def test_an_input_of_other_channels_is_refused(model):
    with pytest.raises(InputError, match="channel"):
        CheckpointEnsemble(model).predict(np.ones((3, 1, 32, 32), np.float32), IMAGE_SPACING)


def test_without_memory_it_goes_on_on_the_cpu_or_says_so(model, picture, monkeypatch):
    def exhausted(data, properties):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    ensemble = CheckpointEnsemble(model)
    expected = ensemble.predict(picture, IMAGE_SPACING).probabilities
    probabilities = ensemble._probabilities
    monkeypatch.setattr(ensemble, "_probabilities", exhausted)
    with pytest.raises(DeviceMemoryError, match="the memory ran out for an input of"):
        ensemble.predict(picture, IMAGE_SPACING)
    assert ensemble.take_notes() == []

    def exhausted_elsewhere(data, properties):
        if ensemble.device != "cpu":
            raise RuntimeError("CUDA out of memory")
        return probabilities(data, properties)

    ensemble.device = ensemble._memory.device = "cuda"  # what a GPU would be; the network itself stays where it is
    monkeypatch.setattr(ensemble, "_probabilities", exhausted_elsewhere)
    np.testing.assert_array_equal(ensemble.predict(picture, IMAGE_SPACING).probabilities, expected)
    assert ensemble.device == "cpu" and "runs on the CPU" in ensemble.take_notes()[0]


def test_without_nnunet_the_message_names_the_package(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "nnunetv2.inference.predict_from_raw_data", None)
    with pytest.raises(MedCLIPSAMError, match="pip install nnunetv2"):
        CheckpointEnsemble(model)


def test_nnunet_reads_the_folder_by_itself(model, picture, monkeypatch):
    """With the trainer's name exchanged for nnU-Net's own, whose search would import all of its trainers."""
    from nnunetv2.inference import predict_from_raw_data as nnunet
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    monkeypatch.setattr(nnunet, "recursive_find_trainer_class_by_name", lambda name: nnUNetTrainer)
    file = read_model_folder(model).kept[0]
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnunet.nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), ("all",), Path(file).name)
        _, probabilities = predictor.predict_single_npy_array(
            picture, {"spacing": list(IMAGE_SPACING)}, None, None, True
        )
    expected = nnunet_probabilities(model, file, picture, IMAGE_SPACING)[1]
    np.testing.assert_allclose(probabilities, expected, atol=1e-6, rtol=0)
