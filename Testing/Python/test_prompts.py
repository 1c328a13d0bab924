"""Text prompts: checks, ensembles, paraphrases, warnings, and the sets that come with the software."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.prompts import (
    check_prompt,
    ensemble_embedding,
    load_prompt_set,
    paraphrases,
    prompt_sets,
    unsupported_wording,
    wordings,
)
from MedCLIPSAMLib.resources import resource_path

ROOT = Path(__file__).resolve().parents[2]


def test_check_prompt_cleans() -> None:
    assert check_prompt("  brain\n\t tumor ") == "brain tumor"
    assert check_prompt("脑肿瘤") == "脑肿瘤"
    assert check_prompt("a" + " " * 5000 + "b") == "a b"  # the length counts after cleaning
    assert len(check_prompt("x" * 2000)) == 2000


@pytest.mark.parametrize("text", ["", "   \n", "\u200b", "?!", None, 3, "x" * 2001])
def test_check_prompt_refuses(text: object) -> None:
    with pytest.raises(InputError, match=r"such as|sentences"):
        check_prompt(text)


def test_ensemble_is_normalise_mean_normalise() -> None:
    embeddings = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32) * [[1], [2], [30], [0.1], [5]]
    expected = sum(row / np.sqrt((row**2).sum()) for row in embeddings)
    expected /= np.sqrt((expected**2).sum())
    got = ensemble_embedding(embeddings)
    assert got.dtype == np.float32 and got.shape == (8,)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(ensemble_embedding(embeddings, raw=True), embeddings.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(ensemble_embedding(embeddings[:1] * 7), got_unit(embeddings[0]), atol=1e-6)


def got_unit(row: np.ndarray) -> np.ndarray:
    return row / np.linalg.norm(row)


@pytest.mark.parametrize(
    "embeddings", [np.ones(4), np.ones((0, 4)), [[1, np.nan]], [[0, 0], [1, 0]], [[1, 0], [-1, 0]]]
)
def test_ensemble_refuses(embeddings: object) -> None:
    with pytest.raises(InputError):
        ensemble_embedding(np.asarray(embeddings))


def test_paraphrases() -> None:
    wordings = paraphrases(" breast  tumor ", 13)
    assert wordings[0] == "breast tumor" and len(set(wordings)) == 13
    assert all("breast tumor" in wording and "{" not in wording for wording in wordings)
    assert paraphrases("breast tumor", 13) == wordings
    assert paraphrases("breast tumor", 4) == wordings[:4]  # more samples keep the first ones
    other = paraphrases("breast tumor", 13, seed=1)
    assert other != wordings and sorted(other) == sorted(wordings)
    assert paraphrases("breast tumor", 15)[13:] == wordings[:2]
    assert paraphrases("mass {}", 2)[1].endswith("mass {}") or "mass {}" in paraphrases("mass {}", 2)[1]


def test_paraphrases_of_a_sentence() -> None:
    wordings = paraphrases("A brain MRI showing a glioma.", 13)
    assert wordings[0] == "A brain MRI showing a glioma."
    assert all("a brain MRI showing a glioma" in wording and "." not in wording for wording in wordings[1:])
    assert all("MRI slice" in wording for wording in paraphrases("MRI slice", 13))
    assert any("an image of X-ray" in wording for wording in paraphrases("X-ray", 13))


@pytest.mark.parametrize("count", [0, -3])
def test_paraphrases_refuse(count: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        paraphrases("lungs", count)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("tumor in the left breast", ["left"]),
        ("Upper lobe of the RIGHT lung", ["upper", "right"]),
        ("brain with no tumor", ["no"]),
        ("lungs without opacity", ["without"]),
        ("the image doesn't show a mass", ["doesn't"]),
        ("the image doesn’t show a mass", ["doesn’t"]),
        ("negative for tumor", ["negative for"]),
        ("the largest lesion", ["largest"]),
        ("a nodule of 3.5 mm", ["3.5 mm"]),
        ("second nodule", ["second"]),
    ],
)
def test_unsupported_wording_is_named(prompt: str, words: list[str]) -> None:
    warnings = unsupported_wording(prompt)
    assert len(warnings) == 1
    assert warnings[0].startswith(", ".join(f'"{word}"' for word in words))


def test_each_kind_of_wording_warns_once() -> None:
    warnings = unsupported_wording("the largest tumor of the left, left lung, not the heart")
    assert len(warnings) == 3 and sum('"left"' in warning for warning in warnings) == 1


@pytest.mark.parametrize(
    "prompt",
    ["brain tumor", "COVID-19 pneumonia", "T2-weighted image of a nodule", "non-enhancing core", "bright lesion",
     "notable mass", "a normal lung", "inferiority", "hypoechoic mass, wider than tall"],
)  # fmt: skip
def test_supported_wording_passes(prompt: str) -> None:
    assert unsupported_wording(prompt) == []


def test_every_shipped_set_loads() -> None:
    names = prompt_sets()
    assert names == sorted(set(names)) and not any("template" in name for name in names)
    for name in names:
        prompts = load_prompt_set(name)
        assert prompts.name == name and prompts.source and prompts.task and prompts.modality in ("US", "MR", "DX", "CT")
        assert f"-{prompts.design.lower()}" in name
        assert len(set(prompts.prompts)) == len(prompts.prompts) >= 1
        assert prompts.is_ensemble == (prompts.design in ("P4", "P5"))
        if not name.startswith("paper-"):
            assert not any(unsupported_wording(prompt) for prompt in prompts.prompts)
            assert not any("mammogra" in prompt.lower() for prompt in prompts.prompts)
            assert len(prompts.prompts) == (1 if prompts.design in ("P0", "P1") else 20)


@pytest.mark.parametrize(
    ("task", "subtypes"),
    [
        ("breast-ultrasound", ("benign", "malignant")),
        ("brain-mri", ("glioma", "meningioma", "pituitary")),
        ("chest-xray", ("normal", "covid", "viral-pneumonia", "lung-opacity")),
        ("chest-ct", ()),
    ],
)
def test_the_designs_of_a_task(task: str, subtypes: tuple[str, ...]) -> None:
    expected = {f"{task}-{design}" for design in ("p0", "p2", "p4")}
    expected |= {f"{task}-{design}-{subtype}" for design in ("p1", "p3", "p5") for subtype in subtypes}
    assert {name for name in prompt_sets() if name.startswith(task)} == expected
    assert load_prompt_set(f"{task}-p4").prompts == load_prompt_set(f"{task}-p2").prompts
    for subtype in subtypes:
        assert load_prompt_set(f"{task}-p5-{subtype}").prompts == load_prompt_set(f"{task}-p3-{subtype}").prompts
        word = subtype.split("-")[0]
        sentences = load_prompt_set(f"{task}-p3-{subtype}").prompts
        assert sum(word in sentence.lower() for sentence in sentences) >= 5


def test_a_set_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "liver.json"
    file.write_text(json.dumps({"design": "P2", "prompts": ["  liver  tumor ", "Läsion"]}), encoding="utf-8")
    prompts = load_prompt_set(file)
    assert (prompts.name, prompts.design, prompts.prompts) == ("liver", "P2", ("liver tumor", "Läsion"))
    assert prompts.source == str(file)


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"prompts": []}', '{"prompts": ["  "]}', '{"prompts": "one"}'])
def test_a_broken_set_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text(content)
    with pytest.raises(InputError):
        load_prompt_set(file)


def test_lists_of_a_python_file_are_read_not_run(tmp_path: Path) -> None:
    file = tmp_path / "text_prompts.py"
    file.write_text('open("ran", "w")\nbreast_P2_prompts = [\n "one mass",\n "another mass"]\nother = 3\n')
    prompts = load_prompt_set("breast_P2_prompts", path=file)
    assert (prompts.design, prompts.prompts) == ("P2", ("one mass", "another mass"))
    assert not (tmp_path / "ran").exists() and not Path("ran").exists()
    with pytest.raises(InputError, match="breast_P2_prompts"):
        load_prompt_set("missing", path=file)
    file.write_text("= nonsense")
    with pytest.raises(InputError, match="not a Python file"):
        load_prompt_set("breast_P2_prompts", path=file)


@pytest.mark.parametrize("name", ["nothing", "../templates", "templates", "breast-ultrasound-p5", "/absent.json", ""])
def test_unknown_sets_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        load_prompt_set(name)


def test_a_missing_resource_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"absent\.json.*install MedCLIPSAM again"):
        resource_path("MedCLIPSAM", "absent.json")


@pytest.mark.parametrize("layout", ["source", "slicer", "pip"])
def test_resources_are_found_in_every_layout(tmp_path: Path, layout: str) -> None:
    package = tmp_path / "MedCLIPSAMLib"
    package.mkdir()
    for name in ("__init__.py", "errors.py", "resources.py", "prompts.py"):
        shutil.copy(ROOT / "MedCLIPSAMLib" / name, package)
    shutil.copytree(
        ROOT / "Resources" / "MedCLIPSAM", (package if layout == "pip" else tmp_path) / "Resources/MedCLIPSAM"
    )
    if layout == "pip":
        (tmp_path / "Resources").mkdir()  # another package's
    if layout == "slicer":
        (tmp_path / "Resources" / "OtherExtension").mkdir()
    code = "import MedCLIPSAMLib.prompts as p; print(p.__file__); print(p.load_prompt_set('brain-mri-p0').prompts)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [str(package / "prompts.py"), "('brain tumor',)"]


def test_wordings_of_free_text_and_of_sets() -> None:
    assert wordings("breast tumor", 3)[0] == ("breast tumor",)
    ensemble = load_prompt_set("breast-ultrasound-p4")
    ways = wordings("set:breast-ultrasound-p4", 4, seed=1)
    assert ways[0] == ensemble.prompts
    assert len(ways) == 4
    assert all(len(way) == 1 and way[0] in ensemble.prompts for way in ways[1:])
    assert wordings("set:brain-mri-p0", 1) == [(load_prompt_set("brain-mri-p0").prompts[0],)]
    with pytest.raises(InputError, match="no-such-set"):
        wordings("set:no-such-set", 1)
