"""The weakly supervised training: its settings and stages, and whole runs on drawn sets that are killed and go on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from weak_sets import TINY, read_json, run, start, wait_for, wait_until, write_dicom_folder, write_images, write_volumes

from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.job_descriptions import WEAK_SUPERVISION
from MedCLIPSAMLib.job_folder import is_held
from MedCLIPSAMTraining import weak_stages
from MedCLIPSAMTraining.cyclical_schedule import CyclicalSettings
from MedCLIPSAMTraining.job_link import JobLink
from MedCLIPSAMTraining.nnunet_environment import NnunetFolders, environment, run_child, worker_counts
from MedCLIPSAMTraining.nnunet_plans import finished_plans
from MedCLIPSAMTraining.weak_run import run as run_stages
from MedCLIPSAMTraining.weak_settings import SelectionRules, WeakOptions, WeakSettings
from MedCLIPSAMTraining.weak_stages import Course, WeakWork

PROMPT = "bright spot"


# ---- Settings, stages, plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"configuration": "3d_lowres"}, "known: 2d, 3d_fullres"),
        ({"plans": "huge"}, "known: default, small"),
        ({"folds": ("5",)}, "known: all, 0, 1, 2, 3, 4"),
        ({"folds": ("all", "0")}, "has seen what the other folds keep apart"),
        ({"folds": ("0", "0")}, "each once"),
        ({"prompts": ("left  Lung", "Left lung")}, "given twice"),
        ({"prompts": ("lung", "Background")}, "no class"),
        ({"window": (5.0, 5.0)}, "the upper intensity must be above"),
    ],
)
def test_settings_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WeakSettings(data=Path("images"), **changes)


def test_rules_are_checked() -> None:
    for rules in ((1.5, None), (-0.1, None), (0.5, 0.0), (0.5, -1.0)):
        with pytest.raises(InputError, match="it must be"):
            SelectionRules(*rules)


def test_stages_are_done_once_and_belong_to_their_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WeakSettings(data=tmp_path, prompts=("a",), changes={"samples": "1"})
    calls = []

    def work() -> dict:
        calls.append(1)
        if len(calls) == 1:
            raise MedCLIPSAMError("the power went")
        return {"pixels": {1: 5}}

    with WeakWork(tmp_path / "work", replace(settings, prompts=("a mistake",))):
        pass  # it ended before anything was done, so the next may have other settings
    with WeakWork(tmp_path / "work", settings) as first:
        with pytest.raises(MedCLIPSAMError):
            first.stage("labels", work)
        assert not first.done("labels")
        assert first.stage("labels", work) == {"pixels": {"1": 5}}
        monkeypatch.setattr(weak_stages, "LOCK_PATIENCE", 0.1)
        with pytest.raises(InputError, match="another run works in"):
            WeakWork(tmp_path / "work", settings)
    with WeakWork(tmp_path / "work", settings) as again:
        assert again.done("labels") and again.stage("labels", work) == {"pixels": {"1": 5}} and len(calls) == 2
    other = WeakSettings(data=tmp_path, prompts=("b",), schedule=CyclicalSettings(epochs=6, kept_per_cycle=1))
    with pytest.raises(InputError, match=r"prompts a in place of b; choose another --work folder, or"):
        WeakWork(tmp_path / "work", other)
    with WeakWork(tmp_path / "work", replace(settings, schedule=other.schedule)) as planned:
        planned.stage("prepare", dict)  # before it, another schedule would still have been possible
    with pytest.raises(InputError, match="schedule epochs 6 in place of 600; schedule kept_per_cycle 1 in place of 10"):
        WeakWork(tmp_path / "work", settings)
    planned.again("prepare")
    with pytest.raises(InputError, match="changes samples 1 in place of None"):
        WeakWork(tmp_path / "work", WeakSettings(data=tmp_path, prompts=("a",)))
    (tmp_path / "work" / "stages" / "labels.json").write_text('{"pixels": ', encoding="utf-8")
    with WeakWork(tmp_path / "work", settings) as work_folder, pytest.raises(InputError, match="is damaged"):
        work_folder.stage("labels", work)


def test_options_of_an_existing_cohort_are_not_ignored(tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2")
    made = {"format": 1, "prompts": ["a"], "engine": "biomedclip", "preset": None, "changes": {}, "window": [0, 80]}
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "cohort.json").write_text(json.dumps(made))
    options = WeakOptions(tmp_path / "model", tmp_path / "work")
    for changes, message in (
        ({"engine": "clip-vit-b-16"}, "engine clip-vit-b-16: the cohort .* was made with biomedclip"),
        ({"window": (0.0, 90.0)}, "window .* was made with"),
        ({"changes": {"samples": "3"}}, "changes .* was made with"),
        ({"engine": "biomedclip", "window": (0.0, 80.0)}, "0 of 0 cases are left"),  # the same again
    ):
        with pytest.raises(InputError, match=message):
            run_stages(WeakSettings(tmp_path / "cohort", **changes), options, JobLink())


def test_progress_over_all_stages_only_grows() -> None:
    class Link:
        told: list[tuple[int, int, str]] = []  # noqa: RUF012
        active = True

        def progress(self, done: int, total: int, text: str) -> None:
            self.told.append((done, total, text))

    course = Course(Link())
    for stage in weak_stages.SHARES:
        for done in (0, 1, 3, 3):
            course.tell(stage, done, 3 if done else 0, f"{stage} {done}")
    course.beat()
    numbers = [done for done, _, _ in Link.told]
    assert numbers == sorted(numbers) and numbers[0] == 0 and numbers[-1] == 1000
    assert {total for _, total, _ in Link.told} == {1000} and Link.told[-1] == Link.told[-2]


def test_without_terminal_and_supervisor_a_stage_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    class Link:
        active = False

        def progress(self, *_: object) -> None:
            pass

    with caplog.at_level("INFO"), Course(Link()) as course:
        for stage, done in (("cohort", 0), ("cohort", 1), ("train", 0), ("train", 1), ("train", 2)):
            course.tell(stage, done, 2, f"{stage} {done} of 2")
    assert caplog.messages == ["cohort 0 of 2", "train 0 of 2"]  # one more only after a minute


def planned(median: list[float], spacing: list[float], batch: int) -> dict:
    """What of nnU-Net's plans is looked at."""
    architecture = {"network_class_name": "Net", "arch_kwargs": {"n_stages": 8, "conv_bias": True}}
    return {
        "spacing": spacing,
        "median_image_size_in_voxels": median,
        "batch_size": batch,
        "patch_size": [512] * len(spacing),
        "architecture": architecture,
        "data_identifier": "nnUNetPlans",
    }


@pytest.mark.parametrize(
    ("median", "spacing", "longest"),
    [
        ([480.0, 400.0], [1.0, 1.0], 192),
        ([48.0, 56.0], [1.0, 1.0], 56),
        ([3000.0, 250.0], [0.1, 0.1], 192),
        ([120.0, 512.0, 512.0], [2.5, 0.8, 0.8], 64),
        ([5.0, 40.0, 44.0], [3.0, 0.9, 0.8], 44),
        ([1.0, 512.0, 512.0], [999.0, 0.5, 0.5], 64),
    ],
)
def test_small_plans_cover_a_median_case(median: list[float], spacing: list[float], longest: int) -> None:
    topology = pytest.importorskip("nnunetv2.experiment_planning.experiment_planners.network_topology")
    name = "2d" if len(spacing) == 2 else "3d_fullres"
    plans = {"plans_name": "nnUNetPlans", "dataset_name": "D", "configurations": {name: planned(median, spacing, 12)}}
    schedule = CyclicalSettings(epochs=6, kept_per_cycle=1)
    made = finished_plans(plans, name, "small", schedule, topology.get_pool_and_conv_props)
    assert made["medclipsam"] == schedule.to_plans() and CyclicalSettings.from_plans(made) == schedule
    assert plans["configurations"][name]["batch_size"] == 12, "what was passed in stays"
    chosen = made["configurations"][name]
    network = chosen["architecture"]["arch_kwargs"]
    size = chosen["median_image_size_in_voxels"]
    in_plane = size if name == "2d" else size[1:]
    assert max(in_plane) == longest
    for length, step, now, new in zip(median, spacing, size, chosen["spacing"], strict=True):
        assert now * new >= length * step * 0.999, "the whole extent is covered"
        assert new >= step
    strides = np.prod(network["strides"], axis=0)
    for edge, have, step in zip(chosen["patch_size"], size, strides, strict=True):
        assert edge >= have and edge % step == 0
    stages = network["n_stages"]
    assert stages == len(network["strides"]) == len(network["features_per_stage"]) == len(network["kernel_sizes"])
    assert len(network["n_conv_per_stage"]) == stages == len(network["n_conv_per_stage_decoder"]) + 1
    assert network["conv_bias"] is True and 2 <= chosen["batch_size"] <= 8
    with pytest.raises(InputError, match="does not fit the data"):
        finished_plans(plans, "3d_lowres", "small", schedule, topology.get_pool_and_conv_props)


def test_workers_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preparing, augmenting = worker_counts(None, "cpu")
    assert preparing >= 1 and augmenting == 0, "on the CPU the data come in the same order each time"
    assert worker_counts(0, "cuda") == (1, 0) and worker_counts(3, "cuda")[1] == 3
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    folders = NnunetFolders(tmp_path)
    found = environment(folders, 0, training=False)
    assert found["nnUNet_n_proc_DA"] == "1", "planning fails with 0"
    assert environment(folders, 0, training=True)["nnUNet_n_proc_DA"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert environment(folders, 0, True, "cuda:1")["CUDA_VISIBLE_DEVICES"] == "5", "nnU-Net takes the first it sees"
    assert environment(folders, 0, True, "cuda")["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert found["nnUNet_wandb_enabled"] == "0" and found["nnUNet_raw"] == str(tmp_path / "raw")


def test_the_command_takes_what_its_form_gives(tmp_path: Path) -> None:
    """Every option that the form's command has is one of the trainer's, with the same default."""
    import typer

    from MedCLIPSAMTraining.weak_supervision import main

    app = typer.Typer(add_completion=False)
    app.command()(main)
    command = typer.main.get_command(app)
    values = {"data": str(tmp_path), "prompt": "-a lung", "masks": str(tmp_path)}
    context = command.make_context("weak", WEAK_SUPERVISION.command(values, tmp_path))
    assert context.params["work"] == tmp_path / "work" and context.params["prompt"] == ["-a lung"]
    assert context.params["masks"] == tmp_path
    defaults = {parameter.name: parameter.default for parameter in command.params}
    for field in WEAK_SUPERVISION.fields:
        assert field.name in defaults
        if field.default not in (None, ""):
            assert defaults[field.name] == field.default, field.name


# ---- Whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and their masks in a folder beside it."""
    pytest.importorskip("nnunetv2")
    folder = tmp_path_factory.mktemp("images")
    return write_images(folder / "images", 6, folder / "truth")


@pytest.fixture(scope="module")
def trained(images: Path) -> Path:
    """The model of a run that nothing has stopped."""
    run(["--data", images, "--prompt", PROMPT, "--output", images.parent / "model", *TINY], images.parent / "log.txt")
    return images.parent / "model"


@pytest.mark.slow
def test_images_to_an_engine(images: Path, trained: Path, tmp_path: Path) -> None:
    from MedCLIPSAMLib.engines import load_engine

    said = read_json(trained / "weak.json")
    assert said["classes"] == [{"label": 1, "name": PROMPT, "prompt": PROMPT}] and said["kind"] == "images"
    assert said["supervision"] == "pseudo-labels" and said["pseudo_labels"]["cases"] == 6
    assert said["kept"] == ["fold_all/checkpoint_ep0001.pth", "fold_all/checkpoint_ep0003.pth"]
    for file in trained.rglob("*"):
        assert file.is_dir() or b"image_0" not in file.read_bytes().replace(b"-", b"_"), "no names of cases"
    segmenter = load_engine(f"weak:{trained}", device="cpu")
    pixels = np.asarray(Image.open(images / "image_0.png"))
    truth = np.asarray(Image.open(images.parent / "truth" / "image_0.png")) > 0
    segmenter.set_image(pixels)
    result = segmenter.segment(PROMPT)
    assert result.probability.shape == truth.shape
    assert result.probability[truth].mean() > result.probability[~truth].mean() + 0.1, "it has begun to learn"
    # The same call again has nothing to do; another prompt, or a model of another run, is refused.
    schedule = CyclicalSettings(4, 2, 1, 2, 1)
    settings = WeakSettings(images, prompts=(PROMPT,), plans="small", schedule=schedule)
    options = WeakOptions(trained, trained.with_name("model-work"), "cpu", 0)
    written = (trained / "weak.json").stat().st_mtime_ns
    assert run_stages(settings, options, JobLink()) == trained
    assert (trained / "weak.json").stat().st_mtime_ns == written
    with pytest.raises(InputError, match="belongs to a run with prompts bright spot in place of other"):
        run_stages(replace(settings, prompts=("other",)), options, JobLink())
    with pytest.raises(InputError, match="holds a model already"):
        run_stages(settings, replace(options, work=tmp_path), JobLink())
    # A model that was moved away, or is wanted elsewhere, is written again; another one's place is refused.
    elsewhere = replace(options, output=tmp_path / "elsewhere")
    run_stages(settings, elsewhere, JobLink())
    assert (tmp_path / "elsewhere" / "weak.json").read_bytes() == (trained / "weak.json").read_bytes()
    (tmp_path / "elsewhere" / "weak.json").write_text("{}")
    with pytest.raises(InputError, match="holds a model already"):
        run_stages(settings, elsewhere, JobLink())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_in_preparation_and_in_training(images: Path, trained: Path, tmp_path: Path) -> None:
    """The run that was killed ends with the very bytes of the one that was not, and leaves no process behind."""
    options = ["--data", images, "--prompt", PROMPT, "--output", tmp_path / "model", *TINY]
    nnunet = tmp_path / "model-work" / "nnunet"
    results = nnunet / "results" / "Dataset001_MedCLIPSAM" / "nnUNetTrainerCyclical__MedCLIPSAMSmallPlans__2d"
    moments = [
        lambda: (nnunet / "preprocessed" / "Dataset001_MedCLIPSAM" / "dataset_fingerprint.json").exists(),
        lambda: (results / "fold_all" / "checkpoint_latest.pth").exists(),
    ]
    for moment in moments:
        process = start(options, tmp_path / "log.txt")
        try:
            wait_until(moment, process)
        finally:
            process.kill()
            process.wait()
        assert not (tmp_path / "model" / "weak.json").exists()
    wait_for(lambda: not is_held(nnunet / "nnunet.lock"))  # nnU-Net's process has noticed that its owner is gone
    run(options, tmp_path / "log.txt")
    whole, again = read_json(trained / "weak.json"), read_json(tmp_path / "model" / "weak.json")
    kept = [name for name in whole["sha256"] if name.startswith("fold_all")]
    assert len(kept) == 2 and all(whole["sha256"][name] == again["sha256"][name] for name in kept)


@pytest.mark.slow
def test_volumes_and_dicom_to_predictions(tmp_path: Path) -> None:
    """NIfTI volumes and DICOM series together, with true masks of one patient's fold left out."""
    pytest.importorskip("nnunetv2")
    from MedCLIPSAMLib.engines import load_engine
    from MedCLIPSAMLib.ensemble_output import predict_to_folder
    from MedCLIPSAMLib.file_io import read_image

    data = tmp_path / "data"
    write_volumes(data / "nifti", 2)
    write_dicom_folder(data / "dicom", 2)
    options = ["--data", data, "--prompt", PROMPT, "--configuration", "3d_fullres", "--fold", "0", *TINY]
    run([*options, "--output", tmp_path / "model"], tmp_path / "log.txt")
    labels = read_json(tmp_path / "model-work" / "stages" / "labels.json")
    assert labels["kind"] == "volume" and len(labels["patients"]) == 4 and labels["excluded"] == {}
    assert sum(patient is not None for patient in labels["patients"].values()) == 2
    assert "secret" not in str(labels) + (tmp_path / "model" / "weak.json").read_text("utf-8")
    said = read_json(tmp_path / "model" / "weak.json")
    assert said["kind"] == "volumes" and said["kept"][0].startswith("fold_0/")
    segmenter = load_engine(f"weak:{tmp_path / 'model'}", device="cpu")
    for number, source in enumerate((data / "nifti" / "volume_0.nii.gz", data / "dicom" / "study1")):
        image = read_image(source)
        output = tmp_path / f"result{number}"
        output.mkdir()
        predict_to_folder(segmenter, image, output)
        entropy = sitk.ReadImage(str(next(output.glob("*entropy.nrrd"))))
        assert sitk.GetArrayFromImage(entropy).shape == image.array.shape
        expected = np.linalg.norm(image.ijk_to_ras[:3, :3], axis=0)
        np.testing.assert_allclose(entropy.GetSpacing(), expected, rtol=1e-5)


@pytest.mark.slow
def test_a_failing_child_says_why(tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2")
    folders = NnunetFolders(tmp_path)
    with pytest.raises(MedCLIPSAMError, match=r"KeyError.*nnunet\.log has the details"):
        run_child("prepare", {}, folders, environment(folders, 1, False), lambda event: None)
    assert "Traceback" in folders.log.read_text("utf-8")
