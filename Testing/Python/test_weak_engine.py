"""The engine weak:FOLDER in everything that takes an engine: images, volumes, jobs, the background process."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny_nnunet
from PIL import Image
from typer.testing import CliRunner
from worker_support import run

from MedCLIPSAMLib import segment_job
from MedCLIPSAMLib.engines import check_choice, engine_weights, load_engine
from MedCLIPSAMLib.ensemble import IMAGE_SPACING, CheckpointEnsemble
from MedCLIPSAMLib.errors import CancelledError, InputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.images import to_uint8
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.segment_request import make_request
from MedCLIPSAMLib.volumes import segment_volume
from MedCLIPSAMLib.weak_recipe import load_weak_recipe
from MedCLIPSAMLib.worker_client import WorkerClient

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed (pip install nnunetv2)")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Of 2D images, one class."""
    return tiny_nnunet.write_model(tmp_path_factory.mktemp("images"), members=2)


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory) -> Path:
    """Of 2D images in colour, with two classes and a window of the training."""
    folder = tmp_path_factory.mktemp("colour")
    names = ("left tumour", "right tumour")
    return tiny_nnunet.write_model(folder, members=2, channels=3, classes=names, window=(-100.0, 300.0))


@pytest.fixture(scope="module")
def of_volumes(tmp_path_factory) -> Path:
    return tiny_nnunet.write_model(tmp_path_factory.mktemp("volumes"), members=2, volumes=True)


def picture(seed: int = 0) -> np.ndarray:
    return tiny_nnunet.drawn_image(seed, 48)[0]


def volume(path: Path = Path("volume.nii.gz"), count: int = 5) -> MedicalImage:
    """Slices 40 x 48 apart by 3 mm; one of them shows nothing."""
    array = np.stack([tiny_nnunet.drawn_image(number, 48)[0][:40] for number in range(count)]).astype(np.int16)
    array[2] = 0
    return MedicalImage(array, np.diag([-0.8, -1.0, 3.0, 1.0]), None, None, True, path, spacing_known=True)


def expected_of(model: Path, image: np.ndarray) -> np.ndarray:
    """Return the mean probabilities (R, H, W) of an image (H, W) uint8 or (H, W, 3)."""
    array = image[None, None] if image.ndim == 2 else image.transpose(2, 0, 1)[:, None]
    return CheckpointEnsemble(model).predict(array, IMAGE_SPACING).probabilities


def test_a_prompt_result_of_the_ensemble(model):
    engine = load_engine(f"weak:{model}", device="cpu")
    engine.set_image(picture())
    result = engine.segment("a disc", seed=4)
    probability = expected_of(model, picture())[1]
    np.testing.assert_array_equal(result.probability, probability)
    np.testing.assert_array_equal(result.saliency, probability)
    np.testing.assert_array_equal(result.mask, probability > 0.5)
    np.testing.assert_array_equal(result.coarse.mask, result.mask)
    assert 0 < result.mask.sum() < result.mask.size
    for number, component in enumerate(result.coarse.components, start=1):
        inside = result.coarse.labels == number
        assert component.confidence == pytest.approx(probability[inside].mean(), abs=1e-6)
        assert component.area == inside.sum()
    p = probability.astype(np.float64)
    np.testing.assert_allclose(result.entropy, -p * np.log(p) - (1 - p) * np.log(1 - p), atol=1e-5)
    assert result.mutual_information.max() > 0
    assert (result.presence.score, result.presence.accepted, result.skipped) == (None, True, False)
    assert (len(result.prompts), result.seed, result.saliency_method) == (0, 4, "nnU-Net ensemble")
    assert result.warnings == []
    assert [one.sha256 for one in engine.weights] == [
        json.loads((model / "weak.json").read_text())["sha256"][name] for name in engine.ensemble.files
    ]


def test_the_last_checkpoint_alone_and_other_settings(model):
    last = load_engine(f"weak:{model}", device="cpu", changes={"members": "last", "threshold": "0.3"})
    last.set_image(picture())
    result = last.segment("disc")
    alone = CheckpointEnsemble(model, members="last").predict(picture()[None, None], IMAGE_SPACING)
    np.testing.assert_array_equal(result.probability, alone.probabilities[1])
    np.testing.assert_array_equal(result.mask, result.probability > 0.3)
    assert result.saliency_method == "nnU-Net"
    assert result.mutual_information.max() < 1e-6  # one member does not disagree with itself
    assert last.recipe.as_dict()["checkpoints"] == ["fold_all/checkpoint_ep0019.pth"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": "some"}, "members is 'some'"),
        ({"mirroring": "perhaps"}, "mirroring is 'perhaps'"),
        ({"threshold": "1"}, "threshold is 1"),
        ({"threshold": "otsu"}, "threshold is 'otsu'"),
        ({"visual_prompt": "points"}, "no setting 'visual_prompt'"),
    ],
)
def test_settings_that_a_network_has_not_are_refused(model, changes, message):
    with pytest.raises(InputError, match=message):
        load_weak_recipe(f"weak:{model}").with_settings(changes)


def test_choices_are_checked_before_anything_is_loaded(model, tmp_path):
    recipe = check_choice(f"weak:{model}", None, "auto")
    assert recipe.prompts == ("a disc",)
    assert recipe.with_settings({"gate": False}) == recipe
    assert engine_weights(f"weak:{model}") == ()
    for engine, preset, device, message in (
        ("weak:", None, "auto", "no folder is named"),
        (f"weak:{tmp_path / 'nothing'}", None, "auto", "does not exist"),
        (f"weak:{tmp_path}", None, "auto", "no weak.json"),
        (f"weak:{model}", "one-lesion", "auto", "no preset 'one-lesion'"),
        (f"weak:{model}", None, "tpu", "device 'tpu'"),
    ):
        with pytest.raises(InputError, match=message):
            check_choice(engine, preset, device)


def test_a_prompt_chooses_the_class(model, two_classes):
    recipe = load_weak_recipe(f"weak:{two_classes}")
    for prompt, label in (
        ("left tumour", 1),
        ("Right  Tumor.", 2),
        ("A LEFT-TUMOUR", 1),
        ("a right tumour", 2),
    ):
        assert recipe.class_of(prompt).label == label
    with pytest.raises(InputError, match="'a left tumour' or 'a right tumour' and nothing else"):
        recipe.class_of("liver")
    with pytest.raises(InputError, match="so not 'liver'"):  # a mask of another thing must not bear its name
        load_weak_recipe(f"weak:{model}").class_of("liver")


def test_several_classes_share_one_entropy_and_do_not_overlap(two_classes):
    engine = load_engine(f"weak:{two_classes}", device="cpu")
    rng = np.random.default_rng(2)
    image = rng.uniform(-300, 500, (48, 52, 3)).astype(np.float32)
    engine.set_image(image, window=(0.0, 1.0))  # the training's own window is taken
    left, right = engine.segment("left tumour"), engine.segment("right tumour")
    probabilities = expected_of(two_classes, to_uint8(image, (-100.0, 300.0)))
    np.testing.assert_array_equal(left.probability, probabilities[1])
    np.testing.assert_array_equal(right.mask, probabilities.argmax(axis=0) == 2)
    assert not (left.mask & right.mask).any()
    np.testing.assert_array_equal(left.entropy, right.entropy)
    p = probabilities.astype(np.float64)
    np.testing.assert_allclose(left.entropy, -(p * np.log(p)).sum(axis=0), atol=1e-5)
    assert left.entropy.max() <= np.log(3) + 1e-6


def test_colour_and_grey_come_together(model, two_classes):
    grey, colour = picture(), np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    of_grey, of_colour = (load_engine(f"weak:{one}", device="cpu") for one in (model, two_classes))
    of_grey.set_image(np.repeat(grey[..., None], 3, axis=2))
    result = of_grey.segment("disc")
    np.testing.assert_array_equal(result.probability, expected_of(model, grey)[1])
    assert result.warnings == []
    of_grey.set_image(colour)
    assert any("without its colours" in text for text in of_grey.segment("disc").warnings)
    luma = np.asarray(Image.fromarray(colour).convert("L"), int)
    assert np.abs(of_grey._channels(colour)[0, 0] - luma).max() <= 1
    of_colour.set_image(grey, (0.0, 255.0))
    same = expected_of(two_classes, np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(of_colour.segment("left tumour").probability, same[1])


def test_refining_takes_another_threshold_of_the_probability(model):
    engine = load_engine(f"weak:{model}", device="cpu")
    engine.set_image(picture())
    probability = engine.segment("disc").probability
    refined = engine.refine(probability, prompt="disc", threshold=0.3)
    np.testing.assert_array_equal(refined.mask, probability > 0.3)
    np.testing.assert_array_equal(engine.refine(probability).mask, probability > 0.5)
    with pytest.raises(InputError, match="shape"):
        engine.refine(probability[1:])


def test_faults_of_a_request(model):
    engine = load_engine(f"weak:{model}", device="cpu")
    with pytest.raises(InputError, match="set_image"):
        engine.segment("disc")
    with pytest.raises(InputError, match="constant"):
        engine.set_image(np.zeros((20, 20)))
    engine.set_image(picture())
    with pytest.raises(InputError, match="seed -1"):
        engine.segment("disc", seed=-1)
    with pytest.raises(InputError, match="calibration"):
        engine.segment("disc", presence_score=0.5)
    with pytest.raises(CancelledError):
        engine.segment("disc", cancelled=lambda: True)
    assert engine.segment("disc").mask.shape == (48, 48)  # still usable


# ---- Volumes ---------------------------------------------------------------------------------------------------------


def test_a_network_of_images_takes_a_volume_slice_by_slice(model):
    engine, image = load_engine(f"weak:{model}", device="cpu"), volume()
    window = (0.0, 255.0)
    (result,) = segment_volume(engine, image, ["disc"], axis=0, window=window)
    for index, record in enumerate(result.slices):
        if index == 2:
            assert record.status == "blank" and not result.mask[2].any()
            continue
        assert record.status == "segmented" and record.presence is None
        probability = expected_of(model, to_uint8(image.array[index], window))[1]
        np.testing.assert_array_equal(result.saliency[index], probability)
        np.testing.assert_array_equal(result.mask[index], probability > 0.5)
    assert any("no presence calibration" in text for text in result.warnings)
    assert any("learnt from 2D images" in text for text in result.warnings)


def test_slices_made_ahead_are_the_same(model, monkeypatch):
    engine, image = load_engine(f"weak:{model}", device="cpu"), volume()
    (alone,) = segment_volume(engine, image, ["disc"], axis=0)
    opened = []
    read = engine.ensemble._read
    monkeypatch.setattr(engine.ensemble, "_read", lambda name: opened.append(name) or read(name))
    monkeypatch.setattr(type(engine), "batch", 3)  # as on a GPU
    engine._kept.clear()
    (ahead,) = segment_volume(engine, image, ["disc"], axis=0)
    for name in ("saliency", "mask", "entropy"):
        np.testing.assert_array_equal(getattr(ahead, name), getattr(alone, name))
    assert len(opened) == 2 * 2  # two checkpoints for slices 0, 1 (2 is blank) and for 3, 4


def test_a_network_of_volumes_takes_the_volume_at_once(of_volumes):
    engine, image = load_engine(f"weak:{of_volumes}", device="cpu"), volume()
    expected = CheckpointEnsemble(of_volumes).predict(image.array[None], (3.0, 1.0, 0.8))
    told = []
    (result,) = segment_volume(engine, image, ["disc"], axis="axial", progress=lambda *one: told.append(one))
    np.testing.assert_array_equal(result.saliency, expected.probabilities[1])
    np.testing.assert_array_equal(result.mask, expected.mask(1))
    np.testing.assert_array_equal(result.coarse, result.mask)
    np.testing.assert_array_equal(result.entropy, expected.entropy)
    assert told[-1] == (5, 5)
    assert {record.status for record in result.slices} == {"segmented"}
    (part,) = segment_volume(engine, image, ["disc"], axis=0, slice_range=(1, 3))
    np.testing.assert_array_equal(part.mask[1:4], expected.mask(1)[1:4])
    assert not part.mask[[0, 4]].any() and part.slices[0].status == "outside the range"


def test_a_network_of_volumes_says_what_it_cannot_do(of_volumes):
    engine = load_engine(f"weak:{of_volumes}", device="cpu")
    engine.set_image(picture())
    with pytest.raises(InputError, match="pass the volume"):
        engine.segment("disc")
    with pytest.raises(CancelledError):
        segment_volume(engine, volume(), ["disc"], cancelled=lambda: True)
    colour = replace(volume(), array=np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="in colour"):
        segment_volume(engine, colour, ["disc"])


# ---- Jobs, the command, the background process -----------------------------------------------------------------------


def test_a_segmentation_job_with_the_engine(model, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "image.png")
    request = make_request(tmp_path / "image.png", ["disc"], tmp_path / "out", engine=f"weak:{model}", device="cpu")
    (report,) = segment_job.run(request)
    mask = np.asarray(Image.open(tmp_path / "out" / "mask.png")) > 0
    np.testing.assert_array_equal(mask, expected_of(model, picture())[1] > 0.5)
    said = json.loads((tmp_path / "out" / "result.json").read_text())
    assert said["recipe"]["classes"] == [{"label": 1, "name": "disc", "prompt": "a disc"}]
    assert said["saliency_method"] == "nnU-Net ensemble" and len(said["weights"]) == 2
    assert report["presence"]["score"] is None


def test_a_job_knows_before_loading_that_the_network_has_not_learnt_a_prompt(two_classes, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "image.png")
    with pytest.raises(InputError, match="and nothing else, so not 'liver'"):
        make_request(tmp_path / "image.png", ["liver"], tmp_path / "out", engine=f"weak:{two_classes}")
    request = make_request(
        tmp_path / "image.png", [], tmp_path / "out", engine=f"weak:{two_classes}", window=(0.0, 9.0)
    )
    assert request.prompts == ("a left tumour",)
    assert request.window == (-100.0, 300.0)  # of the training


def weak_predict(*arguments: object) -> str:
    import typer

    from MedCLIPSAMLib.cli_weak import weak_predict as command

    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_writes_all_classes_of_an_image(two_classes, tmp_path):
    image = np.random.default_rng(0).integers(-300, 500, (40, 44)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "image.mha"))
    weak_predict(tmp_path / "image.mha", "--model", two_classes, "--output", tmp_path / "out", "--device", "cpu")
    probabilities = expected_of(two_classes, np.repeat(to_uint8(image, (-100.0, 300.0))[..., None], 3, axis=2))
    found = read_image(tmp_path / "out" / "2-right-tumour-probability.nrrd").array
    np.testing.assert_array_equal(np.squeeze(found), probabilities[2])
    labels = np.asarray(Image.open(tmp_path / "out" / "labels.png"))
    np.testing.assert_array_equal(labels, probabilities.argmax(axis=0))
    said = json.loads((tmp_path / "out" / "result.json").read_text())
    assert sorted(said["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert said["members"] == 2 and [one["label"] for one in said["classes"]] == [1, 2]


@pytest.mark.parametrize("kind", ["images", "volumes"])
def test_the_command_writes_a_volume_with_its_geometry(model, of_volumes, tmp_path, kind):
    folder, image = {"images": model, "volumes": of_volumes}[kind], volume()
    stored = sitk.GetImageFromArray(image.array)
    stored.SetSpacing((0.8, 1.0, 3.0))
    stored.SetOrigin((5.0, -7.0, 11.0))
    sitk.WriteImage(stored, str(tmp_path / "volume.nii.gz"))
    output = tmp_path / "out"
    told = weak_predict(tmp_path / "volume.nii.gz", "--model", folder, "--output", output, "--device", "cpu")
    assert "voxels" in told
    found = sitk.ReadImage(str(output / "probability.nrrd"))
    np.testing.assert_allclose(found.GetSpacing(), (0.8, 1.0, 3.0), atol=1e-6)
    np.testing.assert_allclose(found.GetOrigin(), (5.0, -7.0, 11.0), atol=1e-5)
    probability = sitk.GetArrayFromImage(found)
    if kind == "volumes":
        expected = CheckpointEnsemble(folder).predict(image.array[None], (3.0, 1.0, 0.8)).probabilities[1]
        np.testing.assert_allclose(probability, expected, atol=1e-5)  # NIfTI keeps the spacing in single precision
    else:
        assert not probability[2].any()  # nothing can be seen there
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "segmentation.seg.nrrd")))
    np.testing.assert_array_equal(mask > 0, probability > 0.5)
    assert (output / "mutual-information.nrrd").is_file()


def test_the_command_reads_a_dicom_series(of_volumes, tmp_path):
    image, folder = volume(), tmp_path / "series"
    folder.mkdir()
    series = "1.2.826.0.1.3680043.2.1125.1"
    for index, plane in enumerate(image.array):
        slice_ = sitk.GetImageFromArray(plane[None])
        slice_.SetSpacing((0.8, 1.0, 3.0))
        for tag, value in {
            "0008|0060": "CT",
            "0020|000d": f"{series}.1",
            "0020|000e": f"{series}.2",
            "0008|0018": f"{series}.3.{index}",
            "0020|0013": str(index),
            "0020|0032": f"0\\0\\{3 * index}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            slice_.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{index}.dcm"))
        writer.Execute(slice_)
    weak_predict(folder, "--model", of_volumes, "--output", tmp_path / "out", "--device", "cpu")
    found = sitk.ReadImage(str(tmp_path / "out" / "probability.nrrd"))
    np.testing.assert_allclose(found.GetSpacing(), (0.8, 1.0, 3.0), atol=1e-5)
    expected = CheckpointEnsemble(of_volumes).predict(image.array[None], (3.0, 1.0, 0.8)).probabilities[1]
    np.testing.assert_allclose(sitk.GetArrayFromImage(found), expected, atol=1e-5)


@pytest.mark.slow
def test_the_background_process_keeps_the_engine(model, of_volumes, tmp_path):
    np.save(tmp_path / "slice.npy", picture())
    image = volume()
    np.save(tmp_path / "volume.npy", image.array)
    common = {"device": "cpu", "samples": 5, "gate": True, "folder": str(tmp_path / "results")}
    client = WorkerClient()
    try:
        ask = partial(run, client)
        of_images = {"engine": f"weak:{model}", **common}
        slice_task = {"task": "segment_slice", "array": str(tmp_path / "slice.npy"), "prompts": ["disc"], **of_images}
        events = ask(slice_task)
        (result,) = [one for one in events if one["event"] == "result"]
        probability = expected_of(model, picture())[1]
        np.testing.assert_array_equal(np.load(result["files"]["mask"]), probability > 0.5)
        assert "samples" not in result["recipe"] and result["saliency_method"] == "nnU-Net ensemble"
        refine = {**slice_task, "task": "refine_slice", "saliency": result["files"]["saliency"], "threshold": 0.3}
        (refined,) = [one for one in ask(refine) if one["event"] == "result"]
        np.testing.assert_array_equal(np.load(refined["files"]["mask"]), probability > 0.3)
        whole = {
            "task": "segment_volume",
            "array": str(tmp_path / "volume.npy"),
            "ijk_to_ras": image.ijk_to_ras.tolist(),
            "axis": 0,
            "prompts": ["disc"],
            **common,
            "engine": f"weak:{of_volumes}",
        }
        (found,) = [one for one in ask(whole) if one["event"] == "result"]
        expected = CheckpointEnsemble(of_volumes).predict(image.array[None], (3.0, 1.0, 0.8)).mask(1)
        np.testing.assert_array_equal(np.load(found["files"]["mask"]), expected)
        assert [one["event"] for one in ask({**slice_task, "engine": f"weak:{tmp_path}"})][-1] == "error"
    finally:
        client.close()
