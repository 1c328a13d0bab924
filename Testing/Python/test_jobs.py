"""Detached training jobs, with real processes: they outlive their starter, stop, resume, and are found again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from MedCLIPSAMLib import job_supervisor
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError, OutputError
from MedCLIPSAMLib.job_folder import FileLock, JobFolder, is_held
from MedCLIPSAMLib.job_form import search_path
from MedCLIPSAMLib.job_launch import python_path
from MedCLIPSAMLib.jobs import Field, Job, JobDescription, JobProgress, JobStore, descriptions

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and process groups as on POSIX")

ROOT = Path(__file__).resolve().parents[2]

TRAINER = '''
"""Sums the square numbers up to --steps; saves when it is asked to stop, every 10 steps, and at the end."""
import argparse, json, logging, os, signal, subprocess, sys, time
from pathlib import Path
from MedCLIPSAMTraining.job_link import JobLink

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int)
parser.add_argument("--delay", type=float)
parser.add_argument("--note", default="")
parser.add_argument("--mode", default="plain")
parser.add_argument("--device", default="auto")
parser.add_argument("--output", type=Path)
options = parser.parse_args()
logging.basicConfig(level=logging.INFO, format="%(message)s")
work = options.output
work.mkdir(exist_ok=True)
checkpoint = work / "checkpoint.json"

def save(state):
    part = checkpoint.with_suffix(".part")
    part.write_text(json.dumps(state))
    os.replace(part, checkpoint)

with JobLink() as link:
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "sum": 0}
    logging.info("note: %s; from step %d; in %s", options.note, state["step"], os.getcwd())
    print("a library prints")
    if options.mode == "fail":
        raise ValueError("the data are wrong")
    if options.mode == "told":
        link.send("error", message="Not enough images in the folder.")
        sys.exit(1)
    if options.mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        (work / "child").write_text(str(child.pid))
        time.sleep(300)
    with (work / "runs").open("a") as runs, link.saving():
        runs.write(f"start {time.time()}\\n")
        while state["step"] < options.steps:
            time.sleep(options.delay)
            state = {"step": state["step"] + 1, "sum": state["sum"] + (state["step"] + 1) ** 2}
            link.progress(state["step"], options.steps, f"step {state['step']}")
            if link.stop_code is not None or state["step"] % 10 == 0 or state["step"] == options.steps:
                save(state)
            if link.stop_code is not None:
                link.leave()
        runs.write(f"end {time.time()}\\n")
    (work / "result.json").write_text(json.dumps(state))
'''

TINY = JobDescription(
    name="tiny",
    title="Tiny",
    help="",
    module="tiny_trainer",
    fields=(
        Field("steps", "Steps", "int", 20, minimum=1, maximum=1000),
        Field("delay", "Delay", "float", 0.01, minimum=0.0, maximum=10.0),
        Field("note", "Note", "text", ""),
        Field("mode", "Mode", "choice", "plain", choices=("plain", "fail", "told", "deaf")),
        Field("device", "Device", "choice", "cpu", choices=("cpu", "auto")),
    ),
    resumable=True,
    gpu=True,
    outputs=(("--output", "work"),),
    grace=20.0,
)
EXPECTED = {"step": 60, "sum": sum(step * step for step in range(1, 61))}
LONG = {"steps": 60, "delay": 0.05}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobStore]:
    """A store in a folder with a space and letters beyond ASCII, and the trainer where Python finds it."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "tiny_trainer.py").write_text(TRAINER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(code))
    monkeypatch.setattr(JobDescription, "unavailable", lambda self: None)
    store = JobStore(tmp_path / "Übung läuft" / "jobs")
    yield store
    end_all(store)


def end_all(store: JobStore) -> None:
    """Leave no process behind, also after a test that failed."""
    for job in store.jobs():
        files = JobFolder(job.folder)
        for name, lock in (("supervisor", files.lock), ("trainer", files.trainer_lock)):
            if is_held(lock):
                os.kill(files.status()[name], signal.SIGKILL)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.02)


def until_ended(job: Job) -> str:
    until(lambda: job.state not in ("waiting", "running"))
    return job.state


def until_step(job: Job, step: int) -> None:
    until(lambda: job.progress.done >= step)


def result(job: Job) -> dict[str, int]:
    return json.loads((job.folder / "work" / "result.json").read_text())


def pid(job: Job, name: str) -> int:
    return JobFolder(job.folder).status()[name]


def exists(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{number}/stat")
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_start_progress_log_and_end(store: JobStore) -> None:
    before = time.time()
    job = store.start(TINY, {**LONG, "note": "größer --als 5"})
    assert job.state == "running" or job.progress.done == 0
    until_step(job, 3)
    assert job.progress.total == 60
    assert job.progress.text.startswith("step ")
    assert 0 < job.seconds < time.time() - before + 0.1
    assert until_ended(job) == "finished"
    assert result(job) == EXPECTED
    assert job.progress == JobProgress(60, 60, "step 60")
    assert job.error == ""
    assert before - 1 < job.started.timestamp() < time.time()
    assert job.seconds > 3.0
    tail = job.log_tail(10)
    assert f"note: größer --als 5; from step 0; in {job.folder}" in tail
    assert "a library prints" in tail
    assert not any('"event"' in line for line in tail)
    with pytest.raises(InputError, match="finished"):
        job.resume()
    job.cancel()
    assert job.state == "finished"


def test_cancel_saves_and_resume_ends_alike(store: JobStore) -> None:
    job = store.start(TINY, LONG)
    until_step(job, 13)
    job.cancel()
    assert until_ended(job) == "cancelled"
    saved = json.loads((job.folder / "work" / "checkpoint.json").read_text())
    assert saved["step"] >= 13
    first = job.seconds
    job.resume()
    with pytest.raises(InputError, match="already"):
        job.resume()
    assert until_ended(job) == "finished"
    assert result(job) == EXPECTED
    assert f"from step {saved['step']};" in "\n".join(job.log_tail(50))
    assert job.seconds > first
    assert len(store.jobs()) == 1


@pytest.mark.parametrize("victim", ["trainer", "supervisor"])
def test_killed_and_resumed(store: JobStore, victim: str) -> None:
    job = store.start(TINY, LONG)
    until_step(job, 12)
    trainer = pid(job, "trainer")
    os.kill(pid(job, victim), signal.SIGKILL)
    until(lambda: job.state in ("failed", "lost"))
    assert job.state == ("failed" if victim == "trainer" else "lost")
    assert ("signal 9" if victim == "trainer" else "without a word") in job.error
    job.resume()
    assert until_ended(job) == "finished"
    assert not exists(trainer)
    assert result(job) == EXPECTED
    assert job.error == ""


def test_orphaned_trainer_saves_and_ends_by_itself(store: JobStore) -> None:
    job = store.start(TINY, {"steps": 1000, "delay": 0.02})
    until_step(job, 3)
    trainer = pid(job, "trainer")
    os.kill(pid(job, "supervisor"), signal.SIGKILL)
    until(lambda: not exists(trainer))
    assert json.loads((job.folder / "work" / "checkpoint.json").read_text())["step"] >= 3
    assert not is_held(JobFolder(job.folder).trainer_lock)


def test_supervisor_that_is_told_to_end_lets_the_trainer_save(store: JobStore) -> None:
    job = store.start(TINY, LONG)
    until_step(job, 5)
    os.kill(pid(job, "supervisor"), signal.SIGTERM)
    assert until_ended(job) == "cancelled"
    assert json.loads((job.folder / "work" / "checkpoint.json").read_text())["step"] >= 5


def test_deaf_trainer_is_ended_with_its_children_after_the_grace(store: JobStore) -> None:
    job = store.start(replace(TINY, grace=0.5), {"mode": "deaf"})
    child = job.folder / "work" / "child"
    until(lambda: child.exists() and child.read_text())
    trainer = pid(job, "trainer")
    job.cancel()
    assert until_ended(job) == "cancelled"
    assert "was ended" in job.error
    until(lambda: not exists(int(child.read_text())) and not exists(trainer), 3)


def test_failures_say_why(store: JobStore) -> None:
    fails = store.start(TINY, {"mode": "fail"})
    told = store.start(TINY, {"mode": "told"})
    assert until_ended(fails) == until_ended(told) == "failed"
    assert fails.error == "ValueError: the data are wrong"
    assert told.error == "Not enough images in the folder."
    assert "Traceback (most recent call last):" in fails.log_tail()


def test_survives_its_starter_and_is_found_by_another_process(store: JobStore) -> None:
    start = textwrap.dedent(f"""
        import os, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
        from test_jobs import TINY, LONG
        from MedCLIPSAMLib.jobs import JobDescription, JobStore
        JobDescription.unavailable = lambda self: None
        print(JobStore({str(store.root)!r}).start(TINY, LONG).id, flush=True)
        os.killpg(0, 9)
    """)
    done = subprocess.run(
        [sys.executable, "-c", start], capture_output=True, text=True, start_new_session=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (job,) = store.jobs()
    assert job.id == done.stdout.strip()
    until(lambda: job.state == "running")
    assert job.values["steps"] == 60
    with pytest.raises(InputError, match="running"):
        store.remove(job.id)
    assert until_ended(job) == "finished"
    assert result(job) == EXPECTED
    store.remove(job.id)
    assert list(store.root.glob("*tiny*")) == []
    with pytest.raises(InputError, match="no job"):
        store.job(job.id)


def plant_ended_job(root: Path, name: str) -> Path:
    """A job as it lies on the disk after its end, with a trained model."""
    folder = root / name
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "model").write_bytes(b"weights")
    files = JobFolder(folder)
    files.write_description({"title": name, "created": 1.0})
    files.write_status({"state": "finished"})
    return folder


def contents(root: Path) -> dict[str, bytes | None]:
    paths = root.rglob("*")
    return {path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in paths}


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_refused_removal_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_ended_job(tmp_path, "one")
    before, store = contents(tmp_path), JobStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        for _ in range(3):
            with pytest.raises(OutputError, match="cannot be removed"):
                store.remove("one")
    assert contents(tmp_path) == before
    store.remove("one")
    store.deletion.join(30)
    assert contents(tmp_path) == {}


def test_what_a_removal_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_ended_job(tmp_path, "one")
    plant_ended_job(tmp_path, "two")
    (tmp_path / ".removed-by a program that was ended").mkdir()
    store = JobStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a file in it is open
        store.remove("one")
        store.deletion.join(30)
    assert [job.id for job in store.jobs()] == ["two"]
    assert sum(name.endswith("model") for name in contents(tmp_path)) == 2
    other = JobStore(tmp_path)  # of a later session
    other.remove("two")
    other.deletion.join(30)
    assert contents(tmp_path) == {}


def test_what_a_removal_left_goes_with_the_next_start(store: JobStore) -> None:
    left = store.root / ".removed-1" / "work"
    left.mkdir(parents=True)
    (left / "model").write_bytes(b"weights")
    job = store.start(TINY, {"steps": 1})
    store.deletion.join(30)
    assert not left.parent.exists()
    assert until_ended(job) == "finished"
    assert [path.name for path in store.root.iterdir() if path.is_dir()] == [job.id]


def test_removal_does_not_wait_for_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_ended_job(tmp_path, "one")
    plant_ended_job(tmp_path, "two")
    store, go, delete = JobStore(tmp_path), threading.Event(), shutil.rmtree

    def slow(folder: Path, **options: bool) -> None:
        assert go.wait(30)
        delete(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", slow)
    for name in ("one", "two"):
        began = time.monotonic()
        store.remove(name)
        assert time.monotonic() - began < 10  # not for the 30 s
        assert store.deletion.daemon  # nor does the end of the program wait
        assert name not in [job.id for job in store.jobs()]
    assert sum(name.endswith("model") for name in contents(tmp_path)) == 2
    go.set()
    store.deletion.join(30)
    assert contents(tmp_path) == {}


def test_one_job_at_a_time_on_the_gpu_in_the_order_of_asking(store: JobStore) -> None:
    first = store.start(TINY, {"steps": 1000, "delay": 0.1, "device": "auto"})
    until_step(first, 1)
    second, third, unwanted = (store.start(TINY, {"steps": 5, "device": "auto"}) for _ in range(3))
    on_cpu = store.start(TINY, {"steps": 5, "device": "cpu"})
    assert {second.state, third.state, unwanted.state} == {"waiting"}
    assert second.started is None
    assert second.seconds == 0
    unwanted.cancel()
    assert until_ended(unwanted) == "cancelled"
    assert not (unwanted.folder / "work").exists()
    assert until_ended(on_cpu) == "finished"
    assert first.state == "running"
    first.cancel()
    assert until_ended(third) == "finished"
    times = [
        float(line.split()[1])
        for job in (first, second, third)
        for line in (job.folder / "work" / "runs").read_text().splitlines()
    ]
    assert times == sorted(times)


def test_a_killed_gpu_job_does_not_block_the_next(store: JobStore) -> None:
    first = store.start(TINY, {"steps": 1000, "delay": 0.1, "device": "auto"})
    until_step(first, 1)
    second = store.start(TINY, {"steps": 5, "device": "auto"})
    os.kill(pid(first, "supervisor"), signal.SIGKILL)
    assert until_ended(second) == "finished"
    assert first.state == "lost"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "Steps: 0 is too small; the least is 1"),
        ({"steps": 1001}, "too large; the most is 1000"),
        ({"steps": 2.5}, "2.5 is not a whole number"),
        ({"steps": True}, "not a whole number"),
        ({"steps": None}, "a number is needed"),
        ({"delay": float("nan")}, "nan is not a number"),
        ({"delay": "fast"}, "'fast' is not a number"),
        ({"note": "a\nb"}, "line break"),
        ({"mode": "wild"}, "'wild' is not a choice; choose one of plain, fail"),
        ({"stpes": 3}, "no setting stpes; it has steps, delay"),
    ],
)
def test_refused_values_leave_nothing_behind(store: JobStore, values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        store.start(TINY, values)
    assert not store.root.exists()


def test_paths_and_required_values(tmp_path: Path) -> None:
    folder = Field("data", "Data", "folder")
    with pytest.raises(InputError, match="Data: a value is needed"):
        folder.checked(None)
    with pytest.raises(InputError, match="there is no folder"):
        folder.checked(str(tmp_path / "nowhere"))
    assert folder.checked(tmp_path) == str(tmp_path)
    with pytest.raises(InputError, match="there is no file"):
        Field("table", "Table", "file", "").checked(str(tmp_path))
    assert Field("table", "Table", "file", "").checked("") == ""
    with pytest.raises(InputError, match="neither yes nor no"):
        Field("all", "All", "bool", False).checked("no")


def test_start_that_fails_leaves_nothing_behind(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(OutputError, match="cannot be started"):
        store.start(TINY, {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MedCLIPSAMError, match="exit code 1"):
        store.start(TINY, {})
    assert store.jobs() == []
    assert list(store.root.iterdir()) == []


def test_store_in_a_file_and_damaged_jobs(tmp_path: Path, store: JobStore) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        JobStore(tmp_path / "file" / "jobs").start(TINY, {})
    job = store.start(TINY, {"steps": 1})
    assert until_ended(job) == "finished"
    (job.folder / "status.json").write_text('{"state": "fini')
    (store.root / "other").mkdir()
    (store.root / "other" / "job.json").write_text("[")
    (again,) = store.jobs()
    assert again.state == "lost"
    again.resume()
    assert until_ended(again) == "finished"


def test_a_reader_never_passes_for_a_living_supervisor(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    lock = FileLock(path)
    assert lock.acquire()
    assert is_held(path)
    assert not FileLock(path).acquire()
    lock.release()
    assert not is_held(path)


def test_log_is_bounded_and_progress_bars_leave_one_line(tmp_path: Path) -> None:
    files = JobFolder(tmp_path)
    log = job_supervisor.Log(files, limit=1000)
    log.write(b"bar 1\rbar 2\rbar 3\r\n")
    for number in range(200):
        log.write(b"line %d of the log\n" % number)
    log.close()
    assert files.log.stat().st_size + files.old_log.stat().st_size < 2200
    assert files.log_tail(3) == [f"line {number} of the log" for number in (197, 198, 199)]
    assert len(files.log_tail(80)) > files.log.read_text().count("\n")
    assert log.last == "line 199 of the log"
    other = JobFolder(tmp_path / "other")
    other.path.mkdir()
    log = job_supervisor.Log(other)
    log.write(b"bar 1\rbar 2\rbar 3\r\n")
    log.close()
    assert other.log_tail(5) == ["bar 3"]


def test_log_goes_on_while_it_cannot_be_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = JobFolder(tmp_path)
    log = job_supervisor.Log(files, limit=100)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)  # Windows: another program has it open
        for number in range(20):
            log.write(b"line %d of the log\n" % number)
    assert files.log_tail(50) == [f"line {number} of the log" for number in range(20)]
    assert not files.old_log.exists()
    log.write(b"after it\n")
    log.close()
    assert files.log.read_text().splitlines() == ["after it"]
    assert files.old_log.read_text().count("\n") == 20


@pytest.mark.parametrize("aside", [True, False])
def test_log_goes_on_after_a_disk_that_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aside: bool) -> None:
    """The file cannot be opened again after it was set aside, or after that failed too."""
    files = JobFolder(tmp_path)
    log = job_supervisor.Log(files, limit=10)
    log.write(b"the first line\n")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        if not aside:
            patch.setattr(os, "replace", refuse)
        log.write(b"lost\n")
        log.write(b"lost as well\n")
    log.write(b"the next line\n")
    log.close()
    assert files.log_tail(9) == ["the first line", "the next line"]
    assert log.last == "the next line"


def test_descriptions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    finetune, weak, align = descriptions()
    assert [job.title for job in (finetune, weak, align)] == [
        "DHN-NCE fine-tuning of CLIP",
        "Weakly supervised nnU-Net",
        "Alignment of the lite engine",
    ]
    nowhere = replace(align, module="MedCLIPSAMTraining.not_there")
    assert nowhere.unavailable() == "The command MedCLIPSAMTraining.not_there is not part of this version."
    poor = replace(align, packages=("json", "no_such_package"))
    assert "no_such_package" in poor.unavailable()
    assert "MedCLIPSAMTraining.align_lite" not in sys.modules or "torch" in sys.modules
    for job in (finetune, weak, align):
        assert len({field.name for field in job.fields}) == len(job.fields)
        for field in job.fields:
            assert field.default is None or field.checked(field.default) == field.default


def test_alignment_takes_what_its_form_gives() -> None:
    """Every option that the form's command has is one of the trainer's, with the same default."""
    pytest.importorskip("torch")
    import typer

    from MedCLIPSAMTraining.align_lite import main

    app = typer.Typer(add_completion=False)
    app.command()(main)
    command = typer.main.get_command(app)
    align = descriptions()[2]
    assert align.unavailable() is None
    values = {"data": str(ROOT), "half": "A"}
    context = command.make_context("align", align.command(values, ROOT))
    assert context.params["work"] == ROOT / "work"
    defaults = {parameter.name: parameter.default for parameter in command.params}
    for field in align.fields:
        if field.default is not None:
            assert defaults[field.name] == field.default, field.name
            assert field.name == "half" or context.params[field.name] == field.default


def plant_data_sets(folder: Path) -> Path:
    """Noise with a bright disc as the target, in the layout that the alignment reads: four sets and two volumes."""
    sitk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(0)

    def pair() -> tuple[np.ndarray, np.ndarray]:
        row, column = rng.integers(20, 44, 2)
        y, x = np.ogrid[:64, :64]
        mask = (y - row) ** 2 + (x - column) ** 2 < 150
        return np.clip(rng.normal(60, 20, (64, 64)) + 120 * mask, 0, 255).astype(np.uint8), mask

    for name in ("breast_ultrasound_tumour", "brain_mri_tumour", "chest_xray_lung", "chest_ct_lung"):
        rows = ["file,split,subject,label"]
        # One image of validation: the presence score is fitted on it with right and wrong prompts.
        for split, number in (("train", 0), *([("val", 1)] if name.startswith("breast") else [])):
            image, mask = pair()
            for kind, array in (("images", image), ("masks", mask.astype(np.uint8) * 255)):
                place = folder / name / split / kind
                place.mkdir(parents=True, exist_ok=True)
                sitk.WriteImage(sitk.GetImageFromArray(array), str(place / f"{number}.png"))
            rows.append(f"{number}.png,{split},{number},benign")
        (folder / name / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    (folder / "volumes").mkdir()
    for name, truth in (
        ("chest_ct_01.nii.gz", "chest_ct_01_lungs_threshold.nii.gz"),
        ("head_mr_t1ce_tumour_01.nrrd", "head_mr_t1ce_tumour_01_tumour.nrrd"),
    ):
        image, mask = pair()
        for file, array in ((name, image.astype(np.int16)), (truth, mask.astype(np.uint8))):
            sitk.WriteImage(sitk.GetImageFromArray(array[None]), str(folder / "volumes" / file))
    return folder


@pytest.mark.slow
def test_alignment_stopped_twice_equals_one_that_was_not(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    torch = pytest.importorskip("torch")
    align = descriptions()[2]
    if align.unavailable():
        pytest.skip(align.unavailable())
    data = plant_data_sets(tmp_path / "Daten für den Versuch")
    store = JobStore(tmp_path / "jobs")
    request.addfinalizer(lambda: end_all(store))
    job = store.start(align, {"data": str(data), "steps": 3, "device": "cpu"})
    until(lambda: ("Features" in job.progress.text and job.progress.done >= 3) or job.state == "failed", 600)
    job.cancel()
    until(lambda: job.state not in ("waiting", "running"), 600)
    assert job.state == "cancelled", job.error
    job.resume()
    until(lambda: (job.progress.text.startswith("Steps") and job.progress.done >= 1) or job.state == "failed", 600)
    job.cancel()
    until(lambda: job.state not in ("waiting", "running"), 600)
    assert job.state == "cancelled", job.error
    assert (job.folder / "work" / "checkpoint.pt").is_file()
    assert not (job.folder / "lite-alignment.safetensors").exists()
    job.resume()
    until(lambda: job.state not in ("waiting", "running"), 600)
    assert job.state == "finished", job.log_tail(20)

    from safetensors.torch import load_file

    # In a process of its own, too: what other tests have done to torch in this one may change the last bit of a sum.
    work, expected = tmp_path / "straight", tmp_path / "straight.safetensors"
    work.mkdir()
    (job.folder / "work" / "features").rename(work / "features")
    command = [sys.executable, "-m", "MedCLIPSAMTraining.align_lite", "--data", str(data), "--output", str(expected)]
    environment = os.environ | {"PYTHONPATH": python_path(search_path()), "PYTHONUTF8": "1"}
    subprocess.run([*command, "--work", str(work), "--steps", "3", "--device", "cpu"], env=environment, check=True)
    straight, written = load_file(expected), load_file(job.folder / "lite-alignment.safetensors")
    assert straight.keys() == written.keys()
    for name, value in straight.items():
        assert torch.equal(value, written[name]), name
