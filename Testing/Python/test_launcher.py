"""The script ./medclipsam, run for real in copies of the checkout; only the package index is taken away from it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX script")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the script needs, at a path with blanks, quotes and letters beyond ASCII."""
    folder = tmp_path / "Änne's Kopie $HOME 医"
    folder.mkdir()
    for name in ("medclipsam", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "constraints", folder / "constraints")
    (folder / "MedCLIPSAMLib").symlink_to(ROOT / "MedCLIPSAMLib")
    return folder


def environment(**changes: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MEDCLIPSAM_", "PYTHON", "MALLOC_"))
    }
    return kept | {"MEDCLIPSAM_PYTHON": sys.executable} | changes


def call(script: Path, *arguments: str, cwd: Path | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), *arguments],
        cwd=cwd,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def no_index(empty: Path) -> dict[str, str]:
    """Settings with which pip finds nothing."""
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(empty)}


def install_by_hand(checkout: Path, *names: str) -> None:
    """Give the checkout the running Python's packages as its .venv, stamped as complete."""
    venv = checkout / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / "lib").symlink_to(Path(sys.prefix) / "lib")
    if (Path(sys.prefix) / "pyvenv.cfg").is_file():
        shutil.copy(Path(sys.prefix) / "pyvenv.cfg", venv)
    (venv / "medclipsam-torch").write_text("default\n")
    script = (
        "{ sed '/^\\[tool\\./,$d' pyproject.toml; cat constraints/constraints.txt constraints/no-deps.txt; } | cksum"
    )
    stamp = subprocess.run(["sh", "-c", script], cwd=checkout, capture_output=True, check=True).stdout
    for name in names:
        (venv / f"medclipsam-{name}.stamp").write_bytes(stamp)


def test_dry_run_tells_the_plan_and_touches_nothing(checkout: Path) -> None:
    done = call(checkout / "medclipsam", "segment", MEDCLIPSAM_DRY_RUN="1", MEDCLIPSAM_TORCH="cpu")
    assert done.returncode == 0
    assert str(checkout / ".venv") in done.stderr
    assert platform.python_version() in done.stderr
    assert "2 GB" in done.stderr
    assert done.stdout == ""
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MEDCLIPSAM_TORCH": "gpu"}, 'MEDCLIPSAM_TORCH=gpu is not known; use "cpu"'),
        ({"MEDCLIPSAM_PYTHON": "/no/such/python"}, "MEDCLIPSAM_PYTHON=/no/such/python cannot be used"),
    ],
)
def test_bad_settings_are_named(checkout: Path, changes: dict[str, str], message: str) -> None:
    done = call(checkout / "medclipsam", MEDCLIPSAM_DRY_RUN="1", **changes)
    assert done.returncode == 1
    assert message in done.stderr


def test_python_that_does_not_run_or_is_too_old_is_passed_over(checkout: Path, tmp_path: Path) -> None:
    shims = tmp_path / "shims"
    shims.mkdir()
    for name, body in {
        "python3": "echo 'pyenv: python3: command not found' >&2; exit 127",
        "python3.12": "echo 'Python 3.9 is not one of 3.11, 3.12, 3.13' >&2; exit 1",
        "python3.13": f'exec "{sys.executable}" "$@"',
    }.items():
        (shims / name).write_text(f"#!/bin/sh\n{body}\n")
        (shims / name).chmod(0o755)
    path = f"{shims}:/usr/bin:/bin"
    done = call(checkout / "medclipsam", MEDCLIPSAM_DRY_RUN="1", MEDCLIPSAM_PYTHON="", PATH=path)
    assert done.returncode == 0, done.stderr
    assert platform.python_version() in done.stderr
    (shims / "python3.13").write_text("#!/bin/sh\nexit 127\n")
    (shims / "python3.11").write_text("#!/bin/sh\nexit 127\n")
    (shims / "python3.11").chmod(0o755)
    done = call(checkout / "medclipsam", MEDCLIPSAM_DRY_RUN="1", MEDCLIPSAM_PYTHON="", PATH=path)
    assert done.returncode == 1
    assert "python3: pyenv: python3: command not found" in done.stderr
    assert "python3.12: Python 3.9 is not one of" in done.stderr


def test_complete_installation_starts_at_once_from_anywhere(checkout: Path, tmp_path: Path) -> None:
    install_by_hand(checkout, "run")
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "typer.py").write_text("raise SystemExit('a file of the caller was imported')\n")
    link = tmp_path / "link"
    link.symlink_to(checkout / "medclipsam")
    second = tmp_path / "bin"
    second.mkdir()
    (second / "medclipsam").symlink_to("../link")
    done = call(second / "medclipsam", "--version", cwd=elsewhere, PYTHONHOME="/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("medclipsam 0.")
    assert done.stderr == ""
    done = call(link, "segment", "a b.png", "--prompt", "x y", "--output", "o o", cwd=elsewhere)
    assert done.returncode == 2
    assert done.stderr == "Error: a b.png does not exist; check the path.\n"


def test_memory_settings_are_made_only_where_unset(checkout: Path) -> None:
    install_by_hand(checkout, "run")
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.write_text('#!/bin/sh\necho "$MALLOC_TRIM_THRESHOLD_ $MALLOC_MMAP_THRESHOLD_ $PYTHONPATH"\n')
    python.chmod(0o755)
    done = call(checkout / "medclipsam", MALLOC_TRIM_THRESHOLD_="123", PYTHONPATH="/not/ours")
    assert done.stdout == f"123 4000000000 {checkout}\n"


def test_changed_pins_ask_for_an_installation_but_changed_tool_settings_do_not(checkout: Path) -> None:
    install_by_hand(checkout, "run")
    project = checkout / "pyproject.toml"
    project.write_text(project.read_text().replace("line-length = 120", "line-length = 100"))
    assert "Everything is installed" in call(checkout / "medclipsam", MEDCLIPSAM_DRY_RUN="1").stderr
    pins = checkout / "constraints" / "constraints.txt"
    pins.write_text(pins.read_text() + "six==1.16.0\n")
    assert "Nothing was installed" in call(checkout / "medclipsam", MEDCLIPSAM_DRY_RUN="1").stderr


def test_slicers_libraries_are_installed_for_the_commands_that_need_them(checkout: Path) -> None:
    script = checkout / "medclipsam"
    install_by_hand(checkout, "run")
    assert "Everything is installed" in call(script, "segment", MEDCLIPSAM_DRY_RUN="1").stderr
    for command in ("slicer-run", "test"):
        done = call(script, command, MEDCLIPSAM_DRY_RUN="1")
        assert done.returncode == 0, done.stderr
        assert "3D Slicer's libraries" in done.stderr
        assert "installs its packages" not in done.stderr  # those are there
        assert "Nothing was installed" in done.stderr
    stamp = checkout / ".venv" / "medclipsam-run.stamp"
    shutil.copy(stamp, stamp.with_name("medclipsam-slicer.stamp"))
    assert "Everything is installed" in call(script, "slicer-run", MEDCLIPSAM_DRY_RUN="1").stderr
    done = call(script, "test", MEDCLIPSAM_DRY_RUN="1")
    assert "3D Slicer's libraries" not in done.stderr
    assert "Nothing was installed" in done.stderr


def test_nnunet_is_installed_for_the_commands_and_the_engine_that_need_it(checkout: Path) -> None:
    script = checkout / "medclipsam"
    install_by_hand(checkout, "run")
    for arguments in (
        ["weak-train"],
        ["segment-cohort", "folder"],
        ["segment", "a.png", "--engine", "weak:model"],
        ["evaluate", "data", "--engine=weak:model"],
        ["test"],
    ):
        done = call(script, *arguments, MEDCLIPSAM_DRY_RUN="1")
        assert done.returncode == 0, done.stderr
        assert "needs nnU-Net and Dask" in done.stderr
        assert ("3D Slicer's libraries" in done.stderr) == (arguments == ["test"])
    for arguments in (["segment", "a.png", "--prompt", "weakness"], ["finetune"]):
        assert "Everything is installed" in call(script, *arguments, MEDCLIPSAM_DRY_RUN="1").stderr
    stamp = checkout / ".venv" / "medclipsam-run.stamp"
    shutil.copy(stamp, stamp.with_name("medclipsam-weak.stamp"))
    assert "Everything is installed" in call(script, "weak-train", MEDCLIPSAM_DRY_RUN="1").stderr


def test_slicers_libraries_that_cannot_be_had_are_named(checkout: Path, tmp_path: Path) -> None:
    install_by_hand(checkout, "run")
    python = checkout / ".venv" / "bin" / "python"
    (checkout / ".venv" / "lib").unlink()  # the link to the running Python's packages, which must not be touched
    (checkout / ".venv" / "pyvenv.cfg").touch()
    python.unlink()
    python.write_text(  # everything but pip is real; the packages of the running Python are left alone
        f'#!/bin/sh\ncase " $* " in *" pip install "*) echo "No matching distribution found for $*"; exit 1;; esac\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    done = call(checkout / "medclipsam", "slicer-run", "--help")
    assert done.returncode == 1
    assert 'the step "3D Slicer\'s libraries" failed' in done.stderr
    assert "try another Python" in done.stderr
    wanted = (checkout / ".venv" / "medclipsam-slicer.txt").read_text()
    assert wanted.startswith("slicer-core")
    assert not (checkout / ".venv" / "medclipsam-slicer.stamp").exists()
    assert (checkout / ".venv" / "medclipsam-run.stamp").exists()


def test_the_first_installation_brings_every_engines_packages_and_no_weights_of_others(checkout: Path) -> None:
    """The lists that pip is given, up to a first start that fails; pip itself does nothing here."""
    install_by_hand(checkout)
    python = checkout / ".venv" / "bin" / "python"
    (checkout / ".venv" / "lib").unlink()  # the link to the running Python's packages, which must not be touched
    (checkout / ".venv" / "pyvenv.cfg").touch()
    python.unlink()
    python.write_text(
        f'#!/bin/sh\ncase " $* " in *" pip install "*) exit 0;; *"import numpy"*) echo "$*"; exit 1;; esac\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    done = call(checkout / "medclipsam", "--version", MEDCLIPSAM_TORCH="cpu")
    assert 'the step "First start" failed' in done.stderr
    assert "tokenizers, torch, typer" in (checkout / ".venv" / "medclipsam-install.log").read_text()
    wanted = (checkout / ".venv" / "medclipsam-core.txt").read_text().split()
    pins = (checkout / "constraints" / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in pins if not line.startswith("#")}
    names = {re.split("[<>=!]", line)[0].lower().replace("_", "-") for line in wanted}
    assert {"open-clip-torch", "transformers", "timm", "requests", "filelock", "matplotlib"} <= names
    assert names <= pinned


def test_environment_of_another_tool_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    done = call(checkout / "medclipsam")
    assert done.returncode == 1
    assert "was not made by this script; move it away" in done.stderr
    assert [path.name for path in (checkout / ".venv").iterdir()] == ["pyvenv.cfg"]


def test_failed_step_is_named_and_the_next_call_goes_on(checkout: Path, tmp_path: Path) -> None:
    changes = no_index(tmp_path)
    venv = checkout / ".venv"
    venv.mkdir()
    (venv / "medclipsam-torch").write_text("default\n")  # an installation that was cut off early ...
    lock = venv / "medclipsam-lock"
    lock.mkdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    (lock / "owner").write_text(f"{platform.node()} {gone.pid}\n")  # ... and whose process is no more
    first = call(checkout / "medclipsam", "--version", **changes)
    assert first.returncode == 1
    assert "Python environment: done" in first.stderr
    assert 'the step "PyTorch" failed' in first.stderr
    assert str(venv / "medclipsam-install.log") in first.stderr
    assert first.stdout == ""
    assert not lock.exists()
    assert not (venv / "tmp").exists()
    assert not list(venv.glob("*.stamp"))
    packages = next((venv / "lib").glob("python3*")) / "site-packages"
    (packages / "half-1.0.dist-info").mkdir()  # what pip leaves when it is killed while it copies a package
    second = call(checkout / "medclipsam", "--version", **changes)
    assert second.returncode == 1
    assert "Python environment" not in second.stderr
    assert not (packages / "half-1.0.dist-info").exists()
    shutil.rmtree(packages / "pip")  # an environment without pip is made anew
    third = call(checkout / "medclipsam", "--version", **changes)
    assert "Python environment: done" in third.stderr
    assert (packages / "pip").is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_pip_and_gives_the_lock_back(checkout: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # a package index that never answers
        index = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        changes = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": index,
            "PIP_FIND_LINKS": "",
            "PIP_EXTRA_INDEX_URL": "",
        }
        running = subprocess.Popen(
            [str(checkout / "medclipsam"), "--version"],
            env=environment(**changes),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A suite that runs in the background ignores SIGINT, and a shell that inherits that can never trap it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        server.settimeout(60)
        connection, _ = server.accept()  # pip is now waiting
        with connection:
            lock = checkout / ".venv" / "medclipsam-lock"
            assert (lock / "owner").read_text() == f"{platform.node()} {running.pid}\n"
            waiting = subprocess.Popen(
                [str(checkout / "medclipsam")], env=environment(**changes), stderr=subprocess.PIPE, text=True
            )
            assert waiting.stderr is not None
            assert any(f"process {running.pid} on" in line for line in waiting.stderr)
            waiting.terminate()
            waiting.wait(30)
            assert lock.exists()  # the one that waited took nothing with it
            began = time.monotonic()
            running.send_signal(number)
            _, message = running.communicate(timeout=30)
            assert time.monotonic() - began < 10
            assert connection.recv(1 << 16)  # pip's request
            connection.settimeout(10)
            assert connection.recv(1 << 16) == b""  # and its end
    assert running.returncode == 130
    assert "Run the same command again" in message
    assert not lock.exists()
    assert not list((checkout / ".venv").glob("*.stamp"))
