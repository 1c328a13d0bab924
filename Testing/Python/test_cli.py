"""The command line's errors, the parsing of its options, and how results reach the output folder."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from MedCLIPSAMLib import cli, cli_options, reporting, segment_job, weights
from MedCLIPSAMLib.engines import engine_names, segmenter_names
from MedCLIPSAMLib.errors import InputError, MissingWeightsError, OutputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.file_output import write_map_nrrd, write_mask_png
from MedCLIPSAMLib.result_folder import collected
from MedCLIPSAMLib.samples import load_sample
from MedCLIPSAMLib.segment_request import make_request

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)).save(path)
    return path


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume.nrrd"
    values = np.arange(6 * 20 * 30, dtype=np.float32).reshape(6, 20, 30)
    write_map_nrrd(path, values, np.diag([-0.5, -0.5, 4.0, 1.0]))
    return path


def call(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, [str(one) for one in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "tumor"], "pass either an image or volume, or --sample NAME"),
        (["PICTURE", "--sample", "brain-mri", "--prompt", "tumor"], "pass either an image or volume, or --sample"),
        (["PICTURE"], "there is no prompt"),
        (["PICTURE", "--prompt", " "], "holds no word"),
        (["PICTURE", "--prompt", "liver", "--prompt", " Liver "], "is given twice"),
        (["missing.png", "--prompt", "tumor"], "missing.png does not exist"),
        (["PICTURE", "--prompt", "tumor", "--axis", "axial"], "is a 2D image; an axis or a slice range is for volumes"),
        (["VOLUME", "--prompt", "tumor", "--axis", "diagonal"], "'diagonal' is unknown"),
        (["VOLUME", "--prompt", "tumor", "--slices", "2-4"], "pass FIRST:LAST"),
        (["VOLUME", "--prompt", "tumor", "--slices", "3:1"], "the first lies after the last; did you mean 1:3?"),
        (["VOLUME", "--prompt", "tumor", "--slices", "2:6"], "slices 2:6 do not lie in the volume; along the axial"),
        (["VOLUME", "--prompt", "tumor", "--window", "wide"], "pass LOW,HIGH"),
        (["VOLUME", "--prompt", "tumor", "--window=400,-1000"], "the upper intensity must be above the lower one"),
        (["missing.png", "--prompt", "tumor", "--engine", "tiny"], "engine 'tiny' is unknown; known: lite"),
        (
            ["missing.png", "--prompt", "tumor", "--preset", "liver"],
            "engine 'lite' has no preset 'liver'",
        ),
        (["missing.png", "--prompt", "tumor", "--device", "gpu"], "device 'gpu' is unknown; pass auto, cpu, cuda"),
        (["missing.png", "--prompt", "tumor", "--seed=-1"], "seed -1: it must be 0 or more"),
        (["missing.png", "--prompt", "set:brain-mri-p9"], "did you mean brain-mri-p"),
    ],
)
def test_bad_requests_are_one_line_and_make_no_folder(
    arguments: list[str], message: str, picture: Path, volume: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    known = {"PICTURE": str(picture), "VOLUME": str(volume)}
    status, text = call("segment", *(known.get(one, one) for one in arguments), "--output", output)
    assert status == 2
    assert text.startswith("Error: ")
    assert message in text
    assert text.count("\n") == 1
    assert not output.exists()


def test_output_folder_is_tried_before_the_models_are_loaded(picture: Path) -> None:
    status, text = call("segment", picture, "--prompt", "tumor", "--output", picture / "out")
    assert status == 2
    assert "cannot be written" in text
    assert "torch" not in text


def test_evaluate_checks_its_folder_and_report_first(tmp_path: Path) -> None:
    status, text = call("evaluate", tmp_path / "nothing", "--prompt", "tumor", "--output", tmp_path / "report.json")
    assert status == 2
    assert text.startswith("Error: ")
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(np.eye(30, dtype=np.uint8) * 255).save(tmp_path / "data" / name / "a.png")
    status, text = call("evaluate", tmp_path / "data", "--prompt", "tumor", "--output", tmp_path)
    assert status == 2
    assert "is a folder; pass the name of the report" in text


def test_command_line_starts_without_torch_and_points_to_the_test_script() -> None:
    script = "import sys, MedCLIPSAMLib.cli; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "MedCLIPSAMLib", "test", "-k", "x"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "./medclipsam test" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed=-1"], "seed -1: it must be 0 or more"),
        (["--limit", "0"], "--limit 0: it must be 1 or more"),
        (["--engine", "tiny"], "engine 'tiny' is unknown"),
        (["--prompt", "set:nothing"], "there is no prompt set 'nothing'; `medclipsam prompts` lists the sets"),
    ],
)
def test_evaluate_checks_its_options_before_the_data(arguments: list[str], message: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    status, text = call("evaluate", tmp_path / "nothing", "--prompt", "tumor", "--output", report, *arguments)
    assert status == 2
    assert text.startswith("Error: ")
    assert message in text
    assert text.count("\n") == 1


def test_output_that_is_a_file(picture: Path, tmp_path: Path) -> None:
    file = tmp_path / "afile"
    file.write_text("kept")
    status, text = call("segment", picture, "--prompt", "tumor", "--output", file)
    assert status == 2
    assert "it is a file; name a folder (--output)" in text
    assert file.read_text() == "kept"


def test_folder_without_dicom_is_one_line_also_of_itk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "note.txt").write_text("no image")
    status, text = call("segment", tmp_path, "--prompt", "tumor", "--output", tmp_path / "out")
    assert status == 2
    assert "holds no DICOM images" in text
    assert capfd.readouterr().err == ""


def test_engines_are_listed_with_their_presets_sizes_and_licences() -> None:
    listed = CliRunner().invoke(cli.app, ["engines"], catch_exceptions=False).stdout
    for name in engine_names():
        settings = json.loads((ROOT / f"Resources/MedCLIPSAM/Engines/{name}.json").read_text("utf-8"))
        part = listed[listed.index(f"{name}  {settings['about']}") :].splitlines()
        assert "weights: " in part[1] and ("installed" in part[1] or " MB" in part[1])
        for line, (preset, changes) in zip(part[2:], settings["presets"].items(), strict=False):
            assert line.split()[:2] == ["--preset", preset]
            assert line.endswith(changes["about"])
            assert len(changes["about"]) > 20
    for name in segmenter_names():
        assert f"    {name} " in listed


def test_prompts_are_listed_by_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # without the sets of whoever runs the tests
    prompts = CliRunner().invoke(cli.app, ["prompts"], catch_exceptions=False).stdout.splitlines()
    tasks = [line for line in prompts if line and not line.startswith(" ")]
    assert tasks[:4] == ["brain mri", "breast ultrasound", "chest ct", "chest x-ray"]
    assert "    set:brain-mri-p0" in prompts


NO_NETWORK = """
import socket, sys
attempts = []
def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        attempts.append((event, arguments))
        raise OSError("the network is blocked")
sys.addaudithook(refuse)
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError as error:
    assert "blocked" in str(error), error
assert attempts
attempts.clear()
from MedCLIPSAMLib.cli import app
app(["segment", "--sample", "breast-ultrasound", "--no-gate", "--output", sys.argv[1]], standalone_mode=False)
assert not attempts, attempts
"""


def test_segmenting_needs_no_network(tmp_path: Path) -> None:
    """In a process in which every use of a socket fails, the lite engine segments a sample and tries none."""
    try:
        weights.verified("lite-alignment")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-c", NO_NETWORK, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result.json").is_file()


def test_option_texts() -> None:
    assert cli_options.parse_axis("2") == 2
    assert cli_options.parse_axis("coronal") == "coronal"
    assert cli_options.parse_slices("3:7") == (3, 7)
    assert cli_options.parse_window("-1000,400") == (-1000.0, 400.0)
    for text in ("1,nan", "1", "1,2,3"):
        with pytest.raises(InputError, match="LOW,HIGH"):
            cli_options.parse_window(text)


def test_request_takes_the_window_of_the_request_and_the_axis_of_acquisition(volume: Path, tmp_path: Path) -> None:
    request = make_request(volume, [" lung "], tmp_path / "out", window=(0, 99), slice_range=(1, 5), seed=4)
    assert request.prompts == ("lung",)
    assert (request.axis, request.window, request.slice_range, request.seed) == (0, (0, 99), (1, 5), 4)
    size = reporting.measure(request.image.array >= 0, request.image)
    assert size == {"voxels": 3600, "mm3": 3600.0, "ml": 3.6}


def test_several_prompts_get_distinct_names() -> None:
    prompts = ["Brain tumor!", "脳腫瘍", "x" * 80]
    names = [segment_job._prefix(prompts, number) for number in range(3)]
    assert names == ["1-brain-tumor-", "2-prompt-", f"3-{'x' * 40}-"]
    assert segment_job._prefix(prompts[:1], 0) == ""


def test_sample_is_segmented_by_the_lite_engine_into_a_whole_result(tmp_path: Path) -> None:
    try:
        weights.verified("lite-alignment")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    arguments = ["segment", "--sample", "breast-ultrasound", "--output", str(tmp_path), "--no-gate"]
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert str(tmp_path / "overview.png") in done.stdout
    report = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report["files"])
    assert (report["prompt"], report["engine"], report["run_seed"]) == ("breast tumor", "lite", 0)
    sample = load_sample("breast-ultrasound")
    with Image.open(tmp_path / "mask.png") as picture:
        mask = np.asarray(picture) > 0
    assert mask.shape == sample.truth.shape
    assert report["area"]["mask"]["pixels"] == mask.sum()
    saliency = read_image(tmp_path / "saliency.nrrd")
    assert saliency.array.shape == mask.shape
    assert np.allclose(saliency.ijk_to_ras, sample.image.ijk_to_ras)


def fill(output: Path, *names: str) -> None:
    with collected(output) as folder:
        for name in names:
            (folder / name).write_text("new")
        (folder / names[0]).write_text(json.dumps({"files": names}))


def test_results_replace_the_previous_ones_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, "1-liver-result.json", "1-liver-mask.png", "2-lung-result.json")
    for name in ("notes.txt", "coarse.png"):
        (tmp_path / name).write_text("the user's")
    fill(tmp_path, "result.json", "mask.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coarse.png", "mask.png", "notes.txt", "result.json"]
    # what a description names outside its folder, or that no run writes, is never deleted
    (tmp_path / "result.json").write_text(json.dumps({"files": ["../x/mask.png", "notes.txt", 3, "result.json"]}))
    fill(tmp_path, "result.json")
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("error", [InputError("no"), KeyboardInterrupt()])
def test_failed_run_leaves_the_previous_result(tmp_path: Path, error: BaseException) -> None:
    fill(tmp_path, "result.json", "mask.png")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(type(error)), collected(tmp_path) as folder:
        (folder / "mask.png").write_text("half")
        raise error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_full_disk_leaves_the_previous_result(tmp_path: Path) -> None:
    fill(tmp_path, "result.json", "mask.png")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    noise = np.random.default_rng(0).random((300, 300)) > 0.5
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"), collected(tmp_path) as folder:
            write_mask_png(folder / "coarse.png", np.zeros((20, 20), bool))
            write_mask_png(folder / "mask.png", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plant_results(output: Path) -> dict[str, bytes]:
    """An earlier result with a file that the next one lacks, and files of the user's."""
    names = ("result.json", "mask.png", "overview.png", "entropy.nrrd")
    fill(output, *names)
    for name in names[1:]:
        (output / name).write_text(f"old {name}")
    for name in ("notes.txt", "coarse.png"):
        (output / name).write_text("the user's")
    return contents(output)


NEW = ("result.json", "coarse.png", "mask.png", "overview.png", "saliency.nrrd")
MOVES = 5 + len(NEW)  # four of the earlier result and the user's coarse.png go aside, the new ones come


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
@pytest.mark.parametrize("position", range(MOVES))
def test_results_that_cannot_be_put_in_place_leave_the_previous_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int, error: BaseException
) -> None:
    before = plant_results(tmp_path)
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == position + 1:
            raise error
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
            fill(tmp_path, *NEW)
    assert len(calls) == position + 1
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".*"))
    fill(tmp_path, *NEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*NEW, "notes.txt"))
    assert (tmp_path / "mask.png").read_text() == (tmp_path / "coarse.png").read_text() == "new"


@pytest.mark.parametrize(
    ("name", "movable"),
    [*((name, False) for name in (*NEW[:-1], "entropy.nrrd")), *((name, True) for name in NEW)],
)
def test_file_that_is_refused_every_time_leaves_the_previous_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, movable: bool
) -> None:
    """As on Windows: a file that is open can be neither moved nor replaced, or its place cannot be taken."""
    before = plant_results(tmp_path)
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if tmp_path / name in ((target,) if movable else (source, target)):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError, match="cannot be written"):
        fill(tmp_path, *NEW)
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_previous_result_that_cannot_be_put_back_is_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plant_results(tmp_path)
    replace, move = os.replace, shutil.move

    def failing(source: Path, target: Path) -> None:
        if target == tmp_path / "overview.png":
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    def not_the_mask(source: Path, target: Path) -> None:
        if target == tmp_path / "mask.png":
            raise PermissionError(13, "Permission denied")
        move(source, target)

    monkeypatch.setattr(os, "replace", failing)
    monkeypatch.setattr(shutil, "move", not_the_mask)
    with pytest.raises(OutputError, match="could not be put back") as caught:
        fill(tmp_path, *NEW)
    (aside,) = tmp_path.glob(".*")
    assert aside.name in str(caught.value)
    assert contents(aside) == {"mask.png": before.pop("mask.png")}
    shutil.rmtree(aside)
    assert contents(tmp_path) == before


def test_folder_of_the_users_with_a_results_name_is_not_touched(tmp_path: Path) -> None:
    fill(tmp_path, "result.json", "mask.png")
    (tmp_path / "overview.png").mkdir()
    (tmp_path / "overview.png" / "notes.txt").write_text("the user's")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="Is a directory"):
        fill(tmp_path, "result.json", "mask.png", "overview.png")
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_packages_of_the_wheel_are_those_of_the_checkout() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {"MedCLIPSAMLib.Resources"}
    for base, top in (
        (ROOT, "MedCLIPSAMLib"),
        (ROOT / "training", "MedCLIPSAMTraining"),
        (ROOT / "training", "nnunet_trainers"),
    ):
        for path in (base / top).rglob("*.py"):
            found.add(".".join(path.parent.relative_to(base).parts))
    assert set(settings["packages"]) == found
