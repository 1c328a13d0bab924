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
from MedCLIPSAMLib.prompt_sets import check_set_name, save_user_set, unusable_sets, user_sets, user_sets_folder
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


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own sets: an empty place of this test's, which is not made."""
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    assert not user_sets_folder().exists()
    return user_sets_folder()


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


def test_the_users_sets_stand_beside_those_of_the_software(own: Path) -> None:
    shipped = prompt_sets()
    assert not any(load_prompt_set(name).own for name in shipped)
    file = save_user_set("leber-läsion", {"task": "abdomen ct", "design": "P4", "prompts": ["a", "b"], "mine": 1})
    assert file == own / "leber-läsion.json" and [path.name for path in own.iterdir()] == [file.name]
    loaded = load_prompt_set("leber-läsion")
    assert loaded.own and loaded.is_ensemble and (loaded.task, loaded.prompts) == ("abdomen ct", ("a", "b"))
    assert wordings("set: leber-läsion", 1) == [("a", "b")]
    assert prompt_sets() == sorted([*shipped, "leber-läsion"])
    assert user_sets()["leber-läsion"]["mine"] == 1
    (own / "copied name.json").write_text('{"name": "brain-mri-p0", "prompts": ["a mass"]}')
    assert load_prompt_set("copied name").name == "copied name"  # the file's name counts
    with pytest.raises(InputError, match="did you mean leber-läsion"):
        load_prompt_set("leber-läsio")


def test_the_users_p2_has_an_ensemble_as_well(own: Path) -> None:
    save_user_set("liver-ct-p2", {"design": "P2", "prompts": ["first", "second"]})
    whole = load_prompt_set("liver-ct-p4")
    assert whole.own and whole.is_ensemble and whole.prompts == ("first", "second") and "liver-ct-p4" in prompt_sets()
    save_user_set("liver-ct-p4", {"design": "P4", "prompts": ["another"]})
    assert load_prompt_set("liver-ct-p4").prompts == ("another",)


@pytest.mark.parametrize("name", ["brain-mri-p0", "brain-mri-p4", "Brain-MRI-P4", "paper-brain-p2"])
def test_no_set_of_the_users_takes_the_place_of_a_shipped_one(own: Path, name: str) -> None:
    before = prompt_sets()
    own.mkdir(parents=True)
    file = own / f"{name}.json"
    file.write_text('{"prompts": ["mine"]}')
    assert prompt_sets() == before and user_sets() == {}
    assert list(unusable_sets()) == [file] and "rename" in unusable_sets()[file]
    if name in before:
        assert "mine" not in load_prompt_set(name).prompts and not load_prompt_set(name).own
    with pytest.raises(InputError, match="comes with the software"):
        save_user_set(name, {"prompts": ["mine"]})


def test_a_broken_set_of_the_users_spoils_nothing_else(own: Path) -> None:
    before = prompt_sets()
    own.mkdir(parents=True)
    (own / "folder.json").mkdir()
    (own / ".hidden.json").write_text('{"prompts": ["x"]}')
    for number, content in enumerate(("{", '{"prompts": [3]}', "[" * 100_000, "\x00")):
        (own / f"broken-{number}.json").write_text(content)
    assert prompt_sets() == before
    assert sorted(path.name for path in unusable_sets()) == [*(f"broken-{i}.json" for i in range(4)), "folder.json"]
    with pytest.raises(InputError, match=r"broken-0\.json is not JSON"):
        load_prompt_set("broken-0")
    with pytest.raises(InputError, match=r"broken-1\.json: the prompt is 3"):
        load_prompt_set("broken-1")


def test_what_cannot_be_loaded_is_not_saved(own: Path) -> None:
    for content in ({}, {"prompts": []}, {"prompts": [" "]}):
        with pytest.raises(InputError):
            save_user_set("mine", content)
    assert not own.exists()


@pytest.mark.parametrize("name", ["", "a b", "a--b", "-a", "a-", "../a", "a/b", "a.b", "a_b", "NUL", "com1", "x" * 81])
def test_names_that_no_file_should_have(name: str) -> None:
    with pytest.raises(InputError, match="letters, digits and single hyphens"):
        check_set_name(name)


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
    for file in (ROOT / "MedCLIPSAMLib").glob("*.py"):
        shutil.copy(file, package)
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
