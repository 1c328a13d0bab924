"""Cohorts in this process with a stand-in engine: the table's numbers, going on, what cannot be used, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cohort_support
import numpy as np
import pytest
import typer
from cohort_support import counted, draw_inputs, leftovers, loaded, outputs
from PIL import Image
from typer.testing import CliRunner

from MedCLIPSAMLib import cohort_cluster, cohort_worker
from MedCLIPSAMLib.cli_cohort import segment_cohort
from MedCLIPSAMLib.cohort import run_cohort
from MedCLIPSAMLib.cohort_inputs import find_inputs
from MedCLIPSAMLib.cohort_measures import measures, notes_of_files
from MedCLIPSAMLib.cohort_table import read_cohort
from MedCLIPSAMLib.errors import CancelledError, InputError, MedCLIPSAMError, OutputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.file_output import LOCK_FILE, write_map_nrrd
from MedCLIPSAMLib.geometry import SliceGeometry
from MedCLIPSAMLib.images import to_uint8
from MedCLIPSAMLib.worker_engines import ENGINE_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "bright disc"


@pytest.fixture
def count(tmp_path, monkeypatch) -> Path:
    """The stand-in engine in place of the real ones; returns the file in which it counts."""
    monkeypatch.setenv(ENGINE_VARIABLE, cohort_support.ENGINE)
    monkeypatch.setenv(cohort_support.COUNT, str(tmp_path / "count"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(cohort_support, "spare_the_disk", lambda: None)
    yield tmp_path / "count"
    cohort_worker.release_engine()


def run(source: Path, output: Path, *prompts: str, **settings):
    return run_cohort(source, prompts or [PROMPT], output, workers=1, **settings)


def write_volume(path: Path, array: np.ndarray, spacing=(1.0, 1.5, 3.0)) -> Path:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def disc_volume() -> np.ndarray:
    """Five slices, a bright disc in the middle three, nothing at all in the first."""
    y, x = np.mgrid[:40, :32]
    rng = np.random.default_rng(3)
    slices = [np.where((x - 15) ** 2 + (y - 20) ** 2 < r * r, 180, rng.normal(30, 6, x.shape)) for r in (0, 6, 8, 7, 0)]
    slices[0][:] = -5
    return np.stack(slices).astype(np.int16)


def test_table_tells_of_an_image_what_evaluate_would(tmp_path, count):
    source = draw_inputs(tmp_path / "in", 3)
    cohort = run(source, tmp_path / "out")
    assert [case.source for case in cohort.cases] == sorted(source.iterdir())
    segmenter = cohort_support.load()
    for case in cohort.cases:
        image = read_image(case.source)
        segmenter.set_image(image.array, (0.0, 255.0))
        expected = segmenter.segment(PROMPT)
        possible = expected.probability > 0.05
        result = case.result(PROMPT)
        assert result.status == "done" and result.reason is None and result.skipped is False and case.kind == "image"
        assert result.entropy == pytest.approx(float(np.mean(expected.entropy[possible], dtype=float)), abs=1e-9)
        assert result.confidence == max(one.confidence for one in expected.coarse.components)
        assert result.mask_share == np.mean(expected.mask) and result.presence == pytest.approx(0.9)
        np.testing.assert_array_equal(case.mask(PROMPT), expected.mask)
        np.testing.assert_array_equal(read_image(result.files["entropy"]).array, expected.entropy)
        assert set(result.files) == {"mask", "coarse", "saliency", "entropy", "result"}
        np.testing.assert_array_equal(case.read_image().array, image.array)
        assert len(case.digest) == 64 and not case.rejected and case.patient is None
    with pytest.raises(InputError, match=r"no prompt 'other'; it has: 'bright disc'"):
        cohort.cases[0].mask("other")
    settings = json.loads((tmp_path / "out" / "cohort.json").read_text())
    assert settings["prompts"] == [PROMPT] and settings["engine"] == "lite" and settings["seed"] == 0
    assert settings["source"] == str(source.resolve()) and settings["recipe"]["samples"] == 5


def test_table_tells_of_a_volume_the_mean_over_its_slices(tmp_path, count):
    (tmp_path / "in").mkdir()
    path = write_volume(tmp_path / "in" / "scan.nii.gz", disc_volume())
    prompts = (PROMPT, "bright disc again", "absent")
    cohort = run(tmp_path / "in", tmp_path / "out", *prompts, window=(0.0, 200.0), axis="axial")
    case = cohort.cases[0]
    image = read_image(path)
    geometry = SliceGeometry.of(image.array.shape, image.ijk_to_ras, "axial")
    segmenter = cohort_support.load()
    entropy, confidences, masks = [], [], np.zeros(image.array.shape, bool)
    for index in range(geometry.count):
        plane = to_uint8(geometry.extract(image.array, index), (0.0, 200.0))
        if plane.min() == plane.max():
            continue
        segmenter.set_image(plane, (0.0, 255.0))
        found = segmenter.segment(PROMPT)
        geometry.insert(masks, index, found.mask)
        entropy.append(found.entropy[found.probability > 0.05])
        if found.mask.any():
            confidences.append(max(one.confidence for one in found.coarse.components))
    result = case.result(PROMPT)
    assert case.kind == "volume" and masks.any()
    assert result.entropy == pytest.approx(float(np.concatenate(entropy).mean(dtype=float)), abs=1e-9)
    assert result.confidence == pytest.approx(np.mean(confidences)) and result.mask_share == masks.mean()
    # two prompts with the same mask lie in two layers of one file
    for prompt in prompts[:2]:
        np.testing.assert_array_equal(case.mask(prompt), masks)
    absent = case.result("absent")
    assert absent.skipped and absent.confidence is None and absent.entropy == 0 and absent.mask_share == 0
    assert not case.mask("absent").any() and case.mask("absent").shape == image.array.shape
    assert set(absent.files) == {"segmentation", "saliency", "entropy", "result"}


def test_a_volume_that_the_engine_takes_at_once_is_measured_from_its_files(tmp_path):
    rng = np.random.default_rng(0)
    image = read_image(write_volume(tmp_path / "scan.nii.gz", disc_volume()))
    probability = rng.uniform(0, 1, image.array.shape).astype(np.float32)
    probability[rng.uniform(size=probability.shape) < 0.5] = 0.01
    entropy = -(probability * np.log(probability) + (1 - probability) * np.log1p(-probability))
    mask = probability > 0.5
    mask[3] = True
    for name, values in (("saliency", probability), ("entropy", entropy)):
        write_map_nrrd(tmp_path / f"{name}.nrrd", values, image.ijk_to_ras)
    notes = notes_of_files(tmp_path / "saliency.nrrd", tmp_path / "entropy.nrrd", mask, image, (0.0, 200.0))
    status = ["segmented", "segmented", "outside the range", "segmented", "blank"]
    found = [[0.9, 0.4], [], [0.8], [0.6], []]
    slices = [
        {"status": one, "components": [{"confidence": value} for value in values]}
        for one, values in zip(status, found, strict=True)
    ]
    report = {
        "slices": slices,
        "presence": {"score": None},
        "volume": {"mask": {"voxels": int(mask.sum())}},
        "input": {"shape": list(mask.shape)},
    }
    numbers = measures(report, notes)
    assert numbers["entropy"] == pytest.approx(float(entropy[probability > 0.05].mean(dtype=float)), rel=1e-6)
    assert numbers["confidence"] == pytest.approx((0.9 + 0.6) / 2) and numbers["mask_share"] == mask.mean()
    assert numbers["skipped"] is False and notes.shown[1].all()  # the slice with the largest mask


def test_what_is_done_is_not_done_again(tmp_path, count):
    source, out = draw_inputs(tmp_path / "in", 6), tmp_path / "out"
    steps = []
    run(source, out, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 6) for done in range(7)]
    before = outputs(out)
    first = (out / "cohort.csv").read_text()
    run(source, out)
    assert sum(counted(count).values()) == 6 and (out / "cohort.csv").read_text() == first
    # moved elsewhere: the content counts
    source = source.rename(tmp_path / "moved")
    cohort = run(source, out)
    assert sum(counted(count).values()) == 6 and cohort.cases[0].source.parent == tmp_path / "moved"
    # another content, a result that is gone, and one whose description is damaged
    Image.fromarray(255 - np.array(Image.open(source / "image 0001.png"))).save(source / "image 0001.png")
    cohort.cases[2].result(PROMPT).files["entropy"].unlink()
    (cohort.cases[3].folder / "case.json").write_text("{")
    (out / "thumbnails" / f"{cohort.cases[4].name}.jpg").unlink()
    cohort = run(source, out)
    assert sum(counted(count).values()) == 10
    after = outputs(out)
    changed = {name for name in after if after[name] != before[name]}
    assert changed and all(cohort.cases[1].name in name for name in changed) and set(after) == set(before)
    assert leftovers(out) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 0, now 1"),
        ({"changes": {"threshold": "0.4"}}, "threshold otsu, now 0.4"),
        ({"gate": False}, "gate True, now False"),
        ({"window": (0.0, 100.0)}, "window None, now"),
        ({"prompts": ("another",)}, "prompts"),
    ],
)
def test_other_settings_do_not_overwrite_a_cohort(tmp_path, count, change, named):
    source, out = draw_inputs(tmp_path / "in", 2), tmp_path / "out"
    run(source, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="other settings") as caught:
        run(source, out, *change.pop("prompts", ()), **change)
    assert named in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_bad_input_is_entered_and_the_rest_goes_on(tmp_path, count):
    source, out = draw_inputs(tmp_path / "in", 3), tmp_path / "out"
    (source / "cut.png").write_bytes((source / "image 0000.png").read_bytes()[:60])
    (source / "text.jpg").write_text("no picture")
    Image.new("L", (30, 30), 7).save(source / "flat.png")
    Image.new("L", (8, 8), 7).save(source / "tiny.png")
    write_volume(source / "nan.nrrd", np.full((3, 20, 20), np.nan, np.float32))
    odd = np.array(Image.open(source / "image 0001.png"))
    odd[0, 0] = 251
    Image.fromarray(odd).save(source / "injected.png")
    cohort = run(source, out)
    failed = {case.source.name: case.results[0].reason for case in cohort.cases if case.results[0].status == "failed"}
    assert set(failed) == {"cut.png", "text.jpg", "flat.png", "tiny.png", "nan.nrrd", "injected.png"}
    assert "constant" in failed["flat.png"] and "16 x 16" in failed["tiny.png"] and "NaN" in failed["nan.nrrd"]
    assert failed["injected.png"] == "ValueError: injected"
    assert [case.results[0].status for case in cohort.cases].count("done") == 3
    with pytest.raises(InputError, match=r"no mask \(status: failed, "):
        next(case for case in cohort.cases if case.source.name == "cut.png").mask(PROMPT)
    assert not any(case.folder.exists() for case in cohort.cases if case.results[0].status == "failed")
    # repaired, it is done by the next run, and only it
    (source / "cut.png").write_bytes((source / "image 0000.png").read_bytes())
    before = sum(counted(count).values())
    cohort = run(source, out)
    assert sum(counted(count).values()) == before + 1
    assert [case.results[0].status for case in cohort.cases].count("done") == 4


def test_a_disk_that_cannot_be_written_stops_the_run(tmp_path, count):
    source, out = draw_inputs(tmp_path / "in", 3), tmp_path / "out"
    names = [one.name for one in find_inputs(source)[1]]
    (out / "cases").mkdir(parents=True)
    (out / "cases" / names[1]).write_text("in the way")
    with pytest.raises(OutputError, match=names[1]):
        run(source, out)
    assert [case.results[0].status for case in read_cohort(out).cases] == ["done", "pending", "pending"]
    (out / "cases" / names[1]).unlink()
    assert {case.results[0].status for case in run(source, out).cases} == {"done"}


def test_cancel_keeps_what_is_done(tmp_path, count):
    source, out = draw_inputs(tmp_path / "in", 5), tmp_path / "out"
    with pytest.raises(CancelledError):
        run(source, out, cancelled=lambda: len(counted(count)) >= 2)
    states = [case.results[0].status for case in read_cohort(out).cases]
    assert states.count("pending") == 5 - states.count("done") > 0 and leftovers(out) == []
    assert (out / "contact-sheet.html").is_file()
    run(source, out)
    again = draw_inputs(tmp_path / "in", 5)
    assert outputs(out) == outputs_of_clean_run(again, tmp_path / "clean")


def outputs_of_clean_run(source: Path, out: Path) -> dict[str, bytes]:
    run(source, out)
    return outputs(out)


def test_limit_is_spread_and_keeps_earlier_rows(tmp_path, count):
    source, out = draw_inputs(tmp_path / "in", 10), tmp_path / "out"
    cohort = run(source, out, limit=3)
    done = [case.source.name for case in cohort.cases if case.results[0].status == "done"]
    assert done == ["image 0000.png", "image 0003.png", "image 0006.png"] and len(cohort.cases) == 10
    cohort = run(source, out, limit=1)
    assert sum(case.results[0].status == "done" for case in cohort.cases) == 3


def test_overviews_are_drawn_where_they_are_wanted(tmp_path, count):
    pytest.importorskip("matplotlib")
    source = draw_inputs(tmp_path / "in", 1)
    files = run(source, tmp_path / "out", overview=True).cases[0].result(PROMPT).files
    assert Image.open(files["overview"]).width > 300


def test_rejected_cases(tmp_path, count, caplog):
    source, out = draw_inputs(tmp_path / "in", 3), tmp_path / "out"
    names = [case.name for case in run(source, out).cases]
    (out / "rejected.txt").write_bytes(f"\ufeff{names[1]}\r\n\r\n# why: motion\r\n".encode())
    assert [case.rejected for case in read_cohort(out).cases] == [False, True, False]
    run(source, out)
    assert [case.rejected for case in read_cohort(out).cases] == [False, True, False]
    (out / "rejected.txt").write_text("nobody\n")
    # the image may have been deleted since it was rejected
    assert not any(case.rejected for case in read_cohort(out).cases)
    assert "names nobody, which the cohort does not have" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers 0"),
        ({"limit": 0}, "limit 0"),
        ({"seed": -1}, "seed -1"),
        ({"engine": "nothing"}, "engine 'nothing'"),
        ({"window": (5.0, 5.0)}, "window"),
        ({"colour": "red"}, "no setting 'colour'"),
        ({"changes": {"nothing": 1}}, "nothing"),
    ],
)
def test_settings_that_cannot_be_are_told_first(tmp_path, count, settings, message):
    source = draw_inputs(tmp_path / "in", 1)
    with pytest.raises(InputError, match=message):
        run_cohort(source, [PROMPT], tmp_path / "out", **{"workers": 1, **settings})
    with pytest.raises(InputError, match="given twice"):
        run_cohort(source, [PROMPT, PROMPT.upper()], tmp_path / "out", workers=1)
    assert loaded(count) == []


def test_without_inputs_no_folder_is_made(tmp_path, count):
    source, empty = draw_inputs(tmp_path / "in", 1), tmp_path / "empty"
    empty.mkdir()
    for wrong, message in ((tmp_path / "nothing", "does not exist"), (empty, "holds no images")):
        with pytest.raises(InputError, match=message):
            run_cohort(wrong, [PROMPT], tmp_path / "out", workers=1)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="is the folder of the inputs"):
        run_cohort(source, [PROMPT], source, workers=1)
    assert loaded(count) == []


def test_a_second_run_in_the_same_folder_waits_for_nobody(tmp_path, count):
    from filelock import FileLock

    source = draw_inputs(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / LOCK_FILE), pytest.raises(MedCLIPSAMError, match="another run works in"):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out")


def test_several_processes_without_dask_say_what_to_install(tmp_path, count, monkeypatch):
    find = cohort_cluster.importlib.util.find_spec
    monkeypatch.setattr(
        cohort_cluster.importlib.util, "find_spec", lambda name: None if name == "distributed" else find(name)
    )
    source = draw_inputs(tmp_path / "in", 2)
    with pytest.raises(InputError, match="pip install distributed"):
        run_cohort(source, [PROMPT], tmp_path / "out", workers=2)
    # by default it then works in this process
    assert run_cohort(source, [PROMPT], tmp_path / "out").cases[1].results[0].status == "done"
    assert set(loaded(count)) == {os.getpid()}


def test_read_cohort_of_something_else(tmp_path):
    with pytest.raises(InputError, match="is no cohort"):
        read_cohort(tmp_path)
    (tmp_path / "cohort.json").write_text('{"format": 99, "prompts": []}')
    with pytest.raises(InputError, match="format 99"):
        read_cohort(tmp_path)
    (tmp_path / "cohort.json").write_text('{"format": 1, "prompts": ["x"]}')
    (tmp_path / "cohort.csv").write_text("case,file\nx,y\n")
    with pytest.raises(InputError, match="no column 'patient'"):
        read_cohort(tmp_path)


def test_importing_is_light():
    code = (
        "import sys, MedCLIPSAMLib.cohort, MedCLIPSAMLib.cli_cohort\n"
        "heavy = {'torch', 'dask', 'distributed', 'nnunetv2', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- The command -----------------------------------------------------------------------------------------------------


def command(*arguments: object):
    app = typer.Typer()
    app.command()(segment_cohort)
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_command(tmp_path, count):
    source, out = draw_inputs(tmp_path / "in", 2), tmp_path / "out"
    Image.new("L", (30, 30), 7).save(source / "flat.png")
    done = command(source, "--prompt", PROMPT, "--output", out, "--workers", 1, "--set", "samples=3")
    assert done.exit_code == 0, done.output
    assert "2 done, 1 failed" in done.stdout and "contact-sheet.html" in done.stdout and "constant" in done.stderr
    assert json.loads((out / "cohort.json").read_text())["recipe"]["samples"] == 3
    done = command(source, "--prompt", PROMPT, "--output", out, "--workers", 1)
    assert done.exit_code == 2 and "samples 3, now 5" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_command_in_good_order(tmp_path, count, number, code):
    source, out = draw_inputs(tmp_path / "in", 400), tmp_path / "out"
    program = (
        "import signal, sys, typer\n"
        "from MedCLIPSAMLib.cli import _terminate\n"
        "from MedCLIPSAMLib.cli_cohort import segment_cohort\n"
        "signal.signal(signal.SIGTERM, _terminate)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # in the background it may be inherited as ignored
        "typer.run(segment_cohort)"
    )
    arguments = [str(source), "--prompt", PROMPT, "--output", str(out), "--workers", "1"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "Testing" / "Python")])
    child = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while len(counted(count)) < 5 and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(number)
    assert child.wait(30) == code, child.stderr.read()
    states = [case.results[0].status for case in read_cohort(out).cases]
    assert 4 <= states.count("done") < 400 and states.count("pending") == 400 - states.count("done")
    assert leftovers(out) == [] and (out / "contact-sheet.html").is_file()
    if number == signal.SIGINT:
        assert "goes on with the rest" in child.stderr.read()


def test_a_cohort_of_other_inputs_is_refused(tmp_path):
    out, first, second = tmp_path / "out", tmp_path / "first", tmp_path / "second"
    run_cohort(draw_inputs(first, 2), [PROMPT], out, workers=1)
    table = (out / "cohort.csv").read_text()
    second.mkdir()
    for path in first.iterdir():
        path.rename(second / f"another-{path.name}")
    with pytest.raises(InputError, match=r"holds a cohort of other inputs, none of which is in .*second"):
        run_cohort(second, [PROMPT], out, workers=1)
    assert (out / "cohort.csv").read_text() == table
