"""The extension's package: configured, built, installed and packed with a stub of Slicer's build tree, then used."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PANEL_TESTS = ROOT / "Testing" / "Panel"
STUB = ROOT / "Testing" / "CMakeStub"
MODULES = Path("lib/Slicer-5.12/qt-scripted-modules")


def load(name: str):
    """Import one of the scripts of Testing/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "Testing" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


package_files = load("package_files")


def cmake_program() -> str:
    beside = Path(sys.executable).parent / "cmake"
    found = shutil.which("cmake") or (str(beside) if beside.is_file() else None)
    if found is None:
        pytest.skip("cmake is not installed (pip install cmake)")
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang", "cl")):
        pytest.skip("there is no C compiler, which cmake's project() wants")
    return found


def run(
    *command: str | Path, cwd: Path | None = None, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """The build tree, built."""
    folder = tmp_path_factory.mktemp("package") / "build with blanks"
    cmake = cmake_program()
    succeeded(run(cmake, "-S", ROOT, "-B", folder, f"-DSlicer_DIR={STUB}", "-DBUILD_TESTING=ON"))
    succeeded(run(cmake, "--build", folder))
    return folder


@pytest.fixture(scope="module")
def installed(build) -> Path:
    """The folder qt-scripted-modules of the installed extension."""
    prefix = build.parent / "Änne's Slicer"
    succeeded(run(cmake_program(), "--install", build, "--prefix", prefix))
    return prefix / MODULES


def test_every_file_on_disk_is_listed_and_the_other_way_round():
    found = package_files.differences()
    assert found == [], "run: python Testing/package_files.py --write\n" + "\n".join(found)


def test_the_lists_are_complete_and_in_order():
    for one in package_files.LISTS:
        assert one.listed(ROOT) == one.on_disk(ROOT)
        assert one.listed(ROOT), one.name


def test_missing_and_unlisted_files_are_found_and_write_repairs_the_lists(tmp_path):
    for name in ("CMakeLists.txt", "MedCLIPSAM/CMakeLists.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("MedCLIPSAMLib", "Resources", "training"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "MedCLIPSAM", tmp_path / "MedCLIPSAM", dirs_exist_ok=True)
    for one in package_files.LISTS:
        one.write(tmp_path)
    assert package_files.differences(tmp_path) == []
    (tmp_path / "MedCLIPSAMLib" / "clip" / "new.py").touch()
    (tmp_path / "MedCLIPSAMLib" / "errors.py").unlink()
    (tmp_path / "Resources" / "MedCLIPSAM" / "Prompts" / ".hidden").touch()
    (tmp_path / "training" / "__pycache__").mkdir()
    (tmp_path / "training" / "__pycache__" / "x.pyc").touch()
    assert package_files.differences(tmp_path) == [
        "add to MedCLIPSAM_LIBRARY of CMakeLists.txt:\n  MedCLIPSAMLib/clip/new.py",
        "remove from MedCLIPSAM_LIBRARY of CMakeLists.txt:\n  MedCLIPSAMLib/errors.py",
    ]
    for one in package_files.LISTS:
        one.write(tmp_path)
    assert package_files.differences(tmp_path) == []


def test_installed_tree_is_what_is_listed_and_has_no_name_that_others_may_use(installed):
    listed = {file for one in package_files.LISTS for file in one.listed(ROOT)}
    notices = {f"Resources/MedCLIPSAM/{name}" for name in ("LICENSE", "NOTICE")}
    assert files_below(installed) == listed | notices
    # Every .py at this level is taken for a module by Slicer, and in a bundled application extensions share the folder.
    assert {path.name for path in installed.iterdir()} == {
        "MedCLIPSAM.py",
        "MedCLIPSAMLib",
        "MedCLIPSAMPanel",
        "Resources",
        "training",
    }
    assert {path.name for path in (installed / "training").iterdir()} <= {"MedCLIPSAMTraining", "nnunet_trainers"}
    assert {path.name for path in (installed / "Resources").iterdir()} == {"Icons", "MedCLIPSAM", "UI"}
    for folder in ("Icons", "UI"):
        assert all(path.name.startswith("MedCLIPSAM") for path in (installed / "Resources" / folder).iterdir())


def test_the_archive_holds_the_installed_tree(build, installed):
    succeeded(run(Path(cmake_program()).with_name("cpack"), "--config", build / "CPackConfig.cmake", cwd=build))
    (archive,) = build.glob("*.tar.gz")
    with tarfile.open(archive) as stream:
        names = {member.name.split("/", 1)[1] for member in stream.getmembers() if member.isfile()}
    assert {name.removeprefix("./") for name in names} == {f"{MODULES.as_posix()}/{n}" for n in files_below(installed)}
    assert archive.stat().st_size < 30e6


def test_slicer_is_given_the_modules_tests(build):
    listed = succeeded(run(Path(cmake_program()).with_name("ctest"), "-N", cwd=build))
    for name in ("py_MedCLIPSAM", "py_run_in_slicer", "py_nomainwindow_qSlicerMedCLIPSAMModuleGenericTest"):
        assert name in listed


CHECK = """
import sys, pathlib
tree = pathlib.Path(sys.argv[1])
sys.path.append(str(tree))
import numpy as np
import MedCLIPSAMLib
from MedCLIPSAMLib import coarse, dependencies, engines, job_descriptions, jobs, mrml, prompts, recipe, samples, session
from MedCLIPSAMLib import weights, worker_client
from MedCLIPSAMLib.resources import resource_path
for module in [m for n, m in sys.modules.items() if n.split(".")[0] == "MedCLIPSAMLib"]:
    assert pathlib.Path(module.__file__).is_relative_to(tree), module.__file__
assert "torch" not in sys.modules
assert resource_path("MedCLIPSAM", "NOTICE").is_file()
assert recipe.load_recipe("lite").with_preset(None)
assert weights.locate("lite-alignment").is_relative_to(tree) and weights.verified("lite-alignment")
assert len(dependencies.dependencies()) >= 7
assert "training" in [group.name for group in dependencies.groups()]
"""


def test_the_installed_library_works_on_its_own(installed, tmp_path):
    succeeded(run(sys.executable, "-I", "-c", CHECK, installed, cwd=tmp_path))


def test_an_installed_training_starts_as_the_panel_starts_it(installed, tmp_path):
    path = os.pathsep.join((str(installed), str(installed / "training")))
    done = run(sys.executable, "-P", "-m", "MedCLIPSAMTraining.align_lite", "--help", cwd=tmp_path, PYTHONPATH=path)
    assert "Usage" in succeeded(done)


ONLY_INSTALLED = """
import os, sys
def pytest_sessionfinish(session):
    tree = os.path.dirname(os.environ["MEDCLIPSAM_MODULE"]) + os.sep
    names = ("MedCLIPSAM", "MedCLIPSAMPanel", "MedCLIPSAMLib")
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in names]
    others = [m.__file__ for m in ours if not m.__file__.startswith(tree)]
    if others or not ours:
        sys.stdout.write("not from the installed tree: %s" % others)
        session.exitstatus = 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(PANEL_TESTS.glob("panel_test_*.py")), ids=lambda path: path.stem)
def test_the_panel_works_from_the_installed_tree(file, installed, tmp_path):
    for package in ("PySide6", "slicer_core"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    (tmp_path / "only_installed.py").write_text(ONLY_INSTALLED, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: slow\n", encoding="utf-8")
    options = [
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-p",
        "only_installed",
        "-c",
        "pytest.ini",
        "--rootdir",
        str(tmp_path),
    ]
    environment = {
        "MEDCLIPSAM_MODULE": str(installed / "MedCLIPSAM.py"),
        "PYTHONPATH": str(tmp_path),  # and not the checkout
        "PYTHONDONTWRITEBYTECODE": "1",
        "QT_QPA_PLATFORM": "offscreen",
    }
    done = run(sys.executable, "-P", "-m", "pytest", *options, file, cwd=tmp_path, timeout=600, **environment)
    succeeded(done)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slicerMacroBuildScriptedModule(NAME X SCRIPTS there.py absent.py)", "'absent.py', which is not a file"),
        ("slicerMacroBuildScriptedModule(NAME X SCRIPTS there.py RESSOURCES y)", None),
        ("slicerMacroBuildScriptedModule(NAME X WITH_TESTS SCRIPTS there.py)", "Unknown keywords"),
        ("slicerMacroBuildScriptedModule(SCRIPTS there.py)", "needs a NAME"),
        ("slicerMacroBuildScriptedModule(NAME X SCRIPTS ../there.py)", None),
        ("slicer_add_python_unittest(SCRIPT sub/there.py)", "bare name"),
        ("slicer_add_python_unittest(SCRIPT there.py ARGS x)", "Unknown keywords"),
        ("include(${Slicer_EXTENSION_CPACK})", "EXTENSION_HOMEPAGE is not set"),
    ],
)
def test_the_stub_refuses_what_slicer_would_refuse_or_lose(tmp_path, text, message):
    (tmp_path / "there.py").touch()
    lines = ["cmake_minimum_required(VERSION 3.16)", "project(X LANGUAGES NONE)", "find_package(Slicer REQUIRED)"]
    (tmp_path / "CMakeLists.txt").write_text("\n".join([*lines, "include(${Slicer_USE_FILE})", text]), encoding="utf-8")
    done = run(cmake_program(), "-S", tmp_path, "-B", tmp_path / "build", f"-DSlicer_DIR={STUB}")
    assert done.returncode != 0
    if message:
        assert message in " ".join(done.stderr.split())
