"""The ablation tables: what is run, that nothing is run twice, and that the numbers are those of an evaluation."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from scipy import ndimage, stats
from stand_in_engine import StandInSegmenter
from typer.testing import CliRunner

from MedCLIPSAMLib import cli_ablate
from MedCLIPSAMLib.ablation import Models, ablate
from MedCLIPSAMLib.ablation_rows import TABLES, plan_rows
from MedCLIPSAMLib.ablation_values import subtype_of
from MedCLIPSAMLib.cases import find_cases
from MedCLIPSAMLib.engines import engine_weights, load_engine
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError, MissingWeightsError
from MedCLIPSAMLib.evaluation import evaluate
from MedCLIPSAMLib.file_output import only_run_in
from MedCLIPSAMLib.results import PromptResult, VisualPrompts
from MedCLIPSAMLib.weights import resolve

pytest.importorskip("surface_distance", reason="surface-distance is not installed (extra 'evaluate')")

LITE = Models(engines=("lite",))
TASK = "breast-ultrasound"
IMAGES, TARGETS = 17, 16


class Boxes:
    """A segmenter of the SAM family that fills its boxes."""

    def __init__(self) -> None:
        self.shape = (0, 0)

    def predict(self, prompts: VisualPrompts) -> tuple[np.ndarray, np.ndarray]:
        logits = np.full((len(prompts), *self.shape), -5, np.float32)
        for row, (x0, y0, x1, y1) in zip(logits, prompts.boxes.astype(int), strict=True):
            row[y0:y1, x0:x1] = 5
        return logits, np.ones(len(prompts), np.float32)


class Bright(StandInSegmenter):
    """What is bright is the target; a prompt that says "malignant" finds less of it, one of P4 or P5 more."""

    calls = 0  # of all engines together
    stop_at: int | None = None

    def __init__(self, recipe) -> None:
        super().__init__(recipe)
        self.segmenter = Boxes()

    def encode(self) -> None:
        self.segmenter.shape = self._grey().shape

    def segment(self, prompt: str, seed: int = 0, **settings) -> PromptResult:
        if self.recipe.saliency == "gscorecam":
            raise InputError("this tower serves no gScoreCAM.\nA second line.")
        if Bright.calls == Bright.stop_at:
            raise KeyboardInterrupt
        Bright.calls += 1
        result = super().segment(prompt, seed, **settings)
        if "malignant" in prompt:
            result.mask = ndimage.binary_erosion(result.mask, iterations=2)
        if re.search(r"-p[45]", prompt):
            result.mask = ndimage.binary_dilation(result.mask, iterations=1)
        if self.recipe.samples == 1:
            result.mask = ndimage.binary_fill_holes(result.coarse.mask)
        return result


def load(name: str, preset: str | None = None, device: str = "auto", changes: dict | None = None) -> Bright:
    """Stand in for ``load_engine``."""
    from MedCLIPSAMLib.recipe import load_recipe

    assert name == "lite+lite-medsam"
    return Bright(load_recipe("lite"))


@pytest.fixture(autouse=True)
def only_installed_weights(monkeypatch, tmp_path):
    """The weights of the engine lite come with packages; no others are found."""
    for name in ("MEDCLIPSAM_WEIGHTS", "MEDCLIPSAM_OWN_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    try:
        resolve(engine_weights("lite"))
    except MissingWeightsError as error:
        pytest.skip(str(error))
    Bright.calls, Bright.stop_at = 0, None


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    """Two data sets: "one" (12 discs of known subtype, 1 image without), "two" (4 discs, subtype not told)."""
    folder = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    lines = ["file,split,dataset,label"]
    for part in ("images", "masks"):
        (folder / "test" / part).mkdir(parents=True)
    labels = ["benign"] * 6 + ["a malignant mass"] * 6 + ["normal"] + ["tumour"] * 4
    for number, label in enumerate(labels):
        rows, columns = np.mgrid[:64, :80]
        disc = np.hypot(rows - rng.uniform(20, 44), columns - rng.uniform(20, 60)) < rng.uniform(6, 16)
        disc &= label != "normal"
        image = 30 + 150 * disc + rng.normal(0, 12, disc.shape)
        image[2:5, 2 : 5 + 2 * (number % 11)] = 140  # something else that is bright
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"test/images/{number:02}.png")
        shown = ndimage.binary_dilation(disc, iterations=number % 3) if disc.any() else disc
        Image.fromarray(np.uint8(shown) * 255).save(folder / f"test/masks/{number:02}.png")
        lines.append(f"{number:02}.png,test,{'one' if number < 13 else 'two'},{label}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def read_csv(markdown: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """The CSV file's rows by table, data set and label, without those of BiomedCLIP."""
    with markdown.with_suffix(".csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows = [row for row in rows if row["engine"] != "biomedclip"]
    found = {(row["table"], row["dataset"], row["row"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def reference(folder: Path, dataset: str, prompt: str, stages: bool = False, **changes) -> list[dict]:
    """The cases with a target as :func:`evaluate` measures them, all at once."""
    recipe = load("lite+lite-medsam").recipe.with_settings({"gate": False, **changes})
    cases = [case for case in find_cases(folder, "test") if case.dataset == dataset]
    report = evaluate(Bright(recipe), cases, prompt, stages=stages)
    return [case for case in report["cases"] if case["has_target"]]


# ---- The plan --------------------------------------------------------------------------------------------------------


def test_every_table_has_its_rows():
    rows = plan_rows(tuple(TABLES), TASK, LITE, "breast tumor")
    labels = {table: [row.label for row in rows if row.table == table] for table in TABLES}
    assert len(labels["3"]) == 12
    assert labels["4"][:2] == ["saliency above 0.5", "+ threshold (otsu), all components"]
    assert labels["5"] == ["patch similarity", "M2IB", "M2IB, preset m2ib-lesion", "gScoreCAM", "GradCAM"]
    assert len(labels["6"]) == 18 and labels["6"][0] == "lite-medsam, boxes"
    marked = {row.label for row in rows if row.uses_labels}
    assert marked == {
        "P1: class and subtype (each image's true one)",
        "P3: sentence about the subtype (each image's true one)",
        "P5: mean of the P3 sentences (each image's true one)",
        "few-shot",
        "full supervision, last checkpoint",
        "full supervision, ensemble of checkpoints",
        "true boxes",
    }
    assert all(not run.recipe.gate for row in rows for run in row.runs)


def test_a_preset_of_the_task_is_the_base():
    """The paper's settings for chest X-ray ask with points; Table 6 still asks with all kinds."""
    models = Models(engines=("biomedclip", "biomedclip+medsam"))
    rows = plan_rows(("1", "6"), "chest-xray", models, "lungs")
    assert rows[0].run.recipe.visual_prompt == "points" and rows[0].run.recipe.m2ib["layer"] == 7
    kinds = [row.run.recipe.visual_prompt for row in rows if row.table == "6"]
    assert kinds == ["boxes", "points", "both"] * 6  # one CLIP, whatever its engines' segmenters
    assert rows[1].run.engine == "biomedclip+medsam"


def test_weak_models_are_asked_by_the_class_name(weak_model, tmp_path):
    shutil.copytree(weak_model, tmp_path / "s")
    rows = plan_rows(("1", "4"), TASK, replace(LITE, weak=weak_model, supervised=tmp_path / "s"), f"set:{TASK}-p0")
    runs = [(row.run.engine, row.run.members, row.run.prompt) for row in rows if row.engine == "nnU-Net"]
    weak, supervised = ((f"weak:{folder}", "last", "a disc") for folder in (weak_model, tmp_path / "s"))
    ensemble = [(engine, "all", prompt) for engine, _, prompt in (weak, supervised)]
    assert runs == [weak, ensemble[0], supervised, ensemble[1], ensemble[0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": ("2",)}, "table '2' is unknown; there are 1, 3, 4, 5, 6 and all"),
        ({"task": "liver"}, "task 'liver' is unknown; known: breast-ultrasound, "),
        ({"models": Models(engines=())}, "no engine is named"),
        ({"models": Models(engines=("heavy",))}, "engine 'heavy' is unknown"),
        ({"models": Models(engines=("weak:w",))}, "pass it as --weak or --supervised"),
        ({"models": replace(LITE, weak=Path("nowhere"))}, "nowhere"),
        ({"models": replace(LITE, few_shot={"a": Path("none.json")})}, "the report a=none.json does not exist"),
        ({"prompt": "set:none"}, "there is no prompt set 'none'"),
        ({"seed": -1}, "seed -1: it must be 0 or more"),
        ({"limit": 0}, "limit 0 (--limit): it must be 1 or more"),
        ({"split": "val"}, "Splits that exist: test"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(discs, tmp_path, changes, message):
    given = {"task": TASK, "tables": ("3",), "models": LITE, "split": "test", "load": load, **changes}
    with pytest.raises(InputError, match=re.escape(message)):
        ablate(discs, given.pop("task"), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists() and Bright.calls == 0


@pytest.fixture(scope="module")
def weak_model(tmp_path_factory) -> Path:
    """An nnU-Net of two checkpoints with random weights, said to be trained on pseudo-labels."""
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed (extra 'weak')")
    from tiny_nnunet import write_model

    return write_model(tmp_path_factory.mktemp("weak"), members=2)


def test_a_model_is_what_it_is_said_to_be(discs, tmp_path, weak_model):
    with pytest.raises(InputError, match=r"was trained on pseudo-labels; pass it as --weak"):
        ablate(discs, TASK, tmp_path / "out", split="test", models=replace(LITE, supervised=weak_model), load=load)


@pytest.mark.parametrize(
    ("label", "subtype"),
    [
        ("benign", "benign"),
        ("Lower-grade GLIOMA", "glioma"),
        ("viral pneumonia", "viral-pneumonia"),
        ("tuberculosis", None),
        ("benign or malignant", None),
        ("gliomatosis", None),
        ("", None),
    ],
)
def test_subtypes_in_labels(label, subtype):
    assert subtype_of(label, ["benign", "malignant", "glioma", "viral-pneumonia"]) == subtype


# ---- The numbers -----------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_an_evaluation_of_all_images(discs, tmp_path):
    found = read_csv(ablate(discs, TASK, tmp_path, tables=("3", "4"), split="test", models=LITE, load=load))
    for dataset in ("one", "two"):
        main = reference(discs, dataset, f"set:{TASK}-p0", stages=True)
        for label, stage in (
            ("+ mean of 5 samples", "mask"),
            ("saliency above 0.5", "saliency_0.5"),
            ("+ component analysis (coarse mask)", "coarse"),
        ):
            values = [case["stages"][stage] for case in main]
            row = found["4", dataset, label]
            assert float(row["dsc_mean"]) == pytest.approx(np.mean(values), abs=1e-12)
            assert float(row["dsc_sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)
            assert int(row["n"]) == len(values)
        mask = found["4", dataset, "+ mean of 5 samples"]
        assert float(mask["nsd_2d_mean"]) == pytest.approx(np.mean([case["nsd_2d"] for case in main]), abs=1e-12)
        every = {"minimum_confidence": 0, "relative_confidence": 0, "minimum_area": 0, "maximum_components": None}
        coarse = [case["stages"]["coarse"] for case in reference(discs, dataset, "x", stages=True, samples=1, **every)]
        row = found["4", dataset, "+ threshold (otsu), all components"]
        assert float(row["dsc_mean"]) == pytest.approx(np.mean(coarse), abs=1e-12)
        assert np.mean(coarse) != pytest.approx(float(found["4", dataset, "saliency above 0.5"]["dsc_mean"]))


def test_true_subtypes_are_each_images_own(discs, tmp_path):
    file = ablate(discs, TASK, tmp_path, tables=("3",), split="test", models=LITE, load=load)
    found = read_csv(file)
    label = "P1: class and subtype (each image's true one)"
    benign, malignant = (reference(discs, "one", f"set:{TASK}-p1-{kind}") for kind in ("benign", "malignant"))
    wanted = [case["dsc"] for case in benign[:6]] + [case["dsc"] for case in malignant[6:]]
    assert float(found["3", "one", label]["dsc_mean"]) == pytest.approx(np.mean(wanted), abs=1e-12)
    assert found["3", "one", label]["uses_labels"] == "yes"
    other = found["3", "two", label]
    assert (other["status"], other["n"], other["dsc_mean"]) == ("not run", "0", "")
    assert "for 4 of 4 images the manifest names none of the subtypes benign, malignant" in other["reason"]
    text = file.read_text(encoding="utf-8")
    assert f"| lite | {label} † |" in text and "uses true labels" in text


def test_paired_tests_against_the_first_row(discs, tmp_path):
    """Student and Wilcoxon by scipy; Holm by its definition, over rows, data sets and two measures of the table."""
    found = read_csv(ablate(discs, TASK, tmp_path, tables=("3",), split="test", models=LITE, load=load))
    prompts = {row["row"]: row["prompt"] for row in found.values() if "true one" not in row["row"]}
    raw = {}
    for dataset in ("one", "two"):
        first = reference(discs, dataset, f"set:{TASK}-p0")
        for label, prompt in prompts.items():
            cases = reference(discs, dataset, prompt)
            for measure in ("dsc", "nsd_2d"):
                raw[dataset, label, measure] = ([case[measure] for case in cases], [case[measure] for case in first])
    subtype = "P{}: {} (each image's true one)"
    for design, text in ((1, "class and subtype"), (3, "sentence about the subtype"), (5, "mean of the P3 sentences")):
        for measure in ("dsc", "nsd_2d"):
            parts = [
                raw["one", f"P{design}: {text} ({kind}, for all images)", measure] for kind in ("benign", "malignant")
            ]
            raw["one", subtype.format(design, text), measure] = (parts[0][0][:6] + parts[1][0][6:], parts[0][1])
    tests = {}
    for key, (own, first) in raw.items():
        if key[1] != "P0: class name":
            same = np.allclose(own, first, rtol=0, atol=1e-12)
            tests[key] = 1.0 if same else stats.ttest_rel(own, first).pvalue
    highest, corrected = 0.0, {}
    for place, key in enumerate(sorted(tests, key=tests.get)):
        highest = corrected[key] = max(highest, min(1.0, (len(tests) - place) * tests[key]))
    assert min(corrected.values()) < 0.05 < max(corrected.values())
    for (dataset, label, measure), value in corrected.items():
        row = found["3", dataset, label]
        assert float(row[f"{measure}_p_t"]) == pytest.approx(value, rel=1e-6)
        difference = np.mean(raw[dataset, label, measure][0]) - np.mean(raw[dataset, label, measure][1])
        assert float(row[f"{measure}_difference"]) == pytest.approx(difference, abs=1e-12)
    assert found["3", "one", "P0: class name"]["dsc_p_t"] == ""


def test_a_trained_network_alone_and_as_an_ensemble(discs, tmp_path, weak_model):
    def either(name: str, **settings):
        return load_engine(name, **settings) if name.startswith("weak:") else load(name, **settings)

    models = replace(LITE, weak=weak_model)
    file = ablate(
        discs, TASK, tmp_path, tables=("1", "4"), split="test", models=models, limit=4, device="cpu", load=either
    )
    found = read_csv(file)
    cases = find_cases(discs, "test")
    cases = [cases[index * len(cases) // 4] for index in range(4)]
    for label, members in (("last checkpoint", "last"), ("ensemble of checkpoints", "all")):
        engine = load_engine(f"weak:{weak_model}", device="cpu", changes={"members": members})
        wanted = evaluate(engine, cases, "disc", stages=False)["datasets"]["one"]
        row = found["1", "one", f"weak supervision, {label}"]
        assert (int(row["n"]), row["uses_labels"], row["prompt"]) == (wanted["n"], "no", "a disc")
        assert float(row["dsc_mean"]) == pytest.approx(wanted["dsc"]["mean"], abs=1e-12)
        assert float(row["nsd_paper_mean"]) == pytest.approx(wanted["nsd_paper"]["mean"], abs=1e-12)
    last, ensemble = (found["1", "one", f"weak supervision, {kind}"] for kind in ("last checkpoint", label))
    assert last["dsc_mean"] != ensemble["dsc_mean"]
    assert found["4", "one", "+ nnU-Net on pseudo-labels, ensemble of checkpoints"]["runs"] == ensemble["runs"]


def test_reports_of_other_programs_are_rows(discs, tmp_path):
    cases = find_cases(discs, "test")
    entries = [{"file": one.file, "dsc": 0.25, "nsd_2d": 0.5, "nsd_paper": None} for one in cases]
    for name, kept in (("whole", entries), ("part", entries[1:])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"cases": kept}), encoding="utf-8")
    models = replace(LITE, few_shot={"UniverSeg": tmp_path / "whole.json"}, reports={"SaLIP": tmp_path / "part.json"})
    file = ablate(discs, TASK, tmp_path / "out", tables=("1",), split="test", models=models, load=load)
    found = read_csv(file)
    row = found["1", "one", "few-shot"]
    assert (row["engine"], row["uses_labels"], row["n"], row["dsc_mean"]) == ("UniverSeg", "yes", "12", "0.25")
    assert row["nsd_paper_mean"] == "" and "| 0.250 ± 0.000 | 0.500 ± 0.000 | n/a |" in file.read_text(encoding="utf-8")
    assert found["1", "one", "other program"]["reason"] == "part.json lacks 1 of 12 images, the first is 00.png"
    assert found["1", "two", "other program"]["status"] == "done"
    assert float(found["1", "one", "true boxes"]["dsc_mean"]) > float(
        found["1", "one", "box around the whole image"]["dsc_mean"]
    )


# ---- What is absent --------------------------------------------------------------------------------------------------


def test_absent_weights_are_told_with_the_command_that_fetches_them(discs, tmp_path):
    models = Models(engines=("lite", "biomedclip"))
    file = ablate(discs, TASK, tmp_path / "out", tables=("1", "6"), split="test", models=models, load=load)
    found, text = read_csv(file), file.read_text(encoding="utf-8")
    row = found["6", "one", "sam-vit-b, boxes"]
    assert row["status"] == "not run"
    assert "`./medclipsam weights fetch sam-vit-b`" in text
    assert "`./medclipsam weights fetch biomedclip biomedclip-tokenizer sam-vit-h`" in text
    assert "--weak MODEL" in found["1", "one", "weak supervision, ensemble of checkpoints"]["reason"]
    assert re.search(r"\| lite \| zero-shot \| (\*\*)?0\.\d+ ±", text)
    assert str(tmp_path) not in text


def test_a_run_that_fails_does_not_stop_the_others(discs, tmp_path):
    found = read_csv(ablate(discs, TASK, tmp_path, tables=("5",), split="test", models=LITE, load=load))
    assert found["5", "one", "gScoreCAM"]["reason"].endswith("this tower serves no gScoreCAM.")
    assert [found["5", "two", label]["status"] for label in ("patch similarity", "M2IB", "GradCAM")] == ["done"] * 3


def test_two_runs_do_not_share_a_folder(discs, tmp_path):
    with only_run_in(tmp_path), pytest.raises(MedCLIPSAMError, match="another run works in"):
        ablate(discs, TASK, tmp_path, tables=("5",), split="test", models=LITE, load=load)


def test_a_folder_without_manifest(discs, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for part in ("images", "masks"):
        (data / part).symlink_to(discs / "test" / part)
    found = read_csv(ablate(data, "chest-ct", tmp_path / "out", tables=("3",), models=LITE, limit=3, load=load))
    assert {key[1] for key in found} == {"data"}
    reason = found["3", "data", "P3: sentence about the subtype (each image's true one)"]["reason"]
    assert reason == "there are no prompts for subtypes of chest-ct"
    assert found["3", "data", "P2: sentence"]["status"] == "done"


# ---- Nothing is done twice -------------------------------------------------------------------------------------------


def test_runs_are_shared_kept_and_continued(discs, tmp_path):
    def run(*tables: str, limit: int | None = None) -> Path:
        return ablate(discs, TASK, tmp_path, tables=tables, split="test", models=LITE, limit=limit, load=load)

    run("3", limit=4)
    assert Bright.calls == 9 * 4  # P0, P2, P4, and P1, P3, P5 with two subtypes each
    run("3")
    assert Bright.calls == 9 * IMAGES
    before = run("3").read_bytes()
    run("5")
    assert Bright.calls == (9 + 3) * IMAGES  # patch similarity is P0; M2IB twice, GradCAM; gScoreCAM fails
    run("3", "4")  # two more; and P0 once more, for the stages of the images with a target
    assert Bright.calls == (9 + 3 + 2) * IMAGES + TARGETS
    assert run("3").read_bytes() == before and Bright.calls == (9 + 3 + 2) * IMAGES + TARGETS


@pytest.mark.parametrize("stop_at", [0, 60])
def test_an_interrupted_run_goes_on(discs, tmp_path, stop_at):
    def run(folder: Path) -> Path:
        return ablate(discs, TASK, folder, tables=("3",), split="test", models=LITE, load=load)

    Bright.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a")
    (half,) = (tmp_path / "a").glob("*.md")
    assert "not finished: " in half.read_text(encoding="utf-8")
    Bright.stop_at = None
    assert run(tmp_path / "a").read_bytes() == run(tmp_path / "b").read_bytes()
    assert Bright.calls == 2 * 9 * IMAGES
    assert not list((tmp_path / "a").rglob(".partial-*"))


def test_a_killed_run_goes_on(discs, tmp_path):
    """The process ends without a word at its 41st image; the 40 before are not measured again."""
    program = (
        "import os, sys, test_ablation as tests\n"
        "from MedCLIPSAMLib import ablation_runs\n"
        "ablation_runs.SAVE_SECONDS = 0.0\n"
        "class Dying(tests.Bright):\n"
        "    def segment(self, *given, **settings):\n"
        "        return os._exit(9) if tests.Bright.calls == 40 else super().segment(*given, **settings)\n"
        "tests.ablate(sys.argv[1], tests.TASK, sys.argv[2], tables=('3',), split='test', models=tests.LITE,\n"
        "             load=lambda name, **settings: Dying(tests.load(name).recipe))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, discs, tmp_path], cwd=Path(__file__).parent, check=False)
    assert killed.returncode == 9
    file = ablate(discs, TASK, tmp_path, tables=("3",), split="test", models=LITE, load=load)
    assert Bright.calls == 9 * IMAGES - 40
    assert "not finished" not in file.read_text(encoding="utf-8")


def test_a_damaged_file_and_a_changed_image_are_measured_again(discs, tmp_path):
    shutil.copytree(discs, tmp_path / "data")
    run = lambda: ablate(tmp_path / "data", TASK, tmp_path / "out", tables=("3",), split="test", models=LITE, load=load)  # noqa: E731
    before = run().read_bytes()
    kept = sorted((tmp_path / "out/runs").iterdir())
    kept[0].write_bytes(kept[0].read_bytes()[:200])
    kept[1].write_text('{"cases": {"00.png x": {"mask": 1}}}', encoding="utf-8")
    calls = Bright.calls
    assert run().read_bytes() == before and Bright.calls == calls + 2 * IMAGES
    changed = tmp_path / "data/test/images/03.png"
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    assert run().read_bytes() != before and Bright.calls == calls + 2 * IMAGES + 9


def test_another_seed_or_prompt_is_another_run(discs, tmp_path):
    for prompt, seed in (("breast tumor", 0), (f"set:{TASK}-p0", 0), ("breast tumor", 1), ("a lesion", 0)):
        ablate(discs, TASK, tmp_path, tables=("1",), split="test", models=LITE, prompt=prompt, seed=seed, load=load)
    assert Bright.calls == 3 * IMAGES  # the set's text is the same as the first prompt


# ---- The command, and the real engine --------------------------------------------------------------------------------


def command(*arguments: object):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli_ablate.ablate)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_refuses(discs, tmp_path):
    usual = (discs, "--task", TASK, "--output", tmp_path / "out", "--engine", "lite", "--split", "test")
    for arguments, message in (
        (("--table", "7"), "table '7' is unknown"),
        (("--few-shot", "UniverSeg"), "--few-shot 'UniverSeg': pass NAME=FILE"),
        (("--report", "a=b", "--report", "a=c"), "--report 'a=c': pass NAME=FILE, each name once"),
    ):
        result = command(*usual, *arguments)
        assert result.exit_code == 2 and message in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_lite_as_in_an_evaluation(data_dir, tmp_path):
    """A real image through the command; the same numbers as :func:`evaluate` with an engine of its own."""
    data = data_dir / "breast_ultrasound_tumour"
    arguments = (data, "--task", TASK, "--output", tmp_path, "--engine", "lite", "--split", "test", "--device", "cpu")
    result = command(*arguments, "--limit", "1", "--table", "4", "--prompt", "breast tumor")
    assert result.exit_code == 0, result.output
    found = read_csv(tmp_path / f"ablation-{TASK}-table-4.md")
    cases = find_cases(data, "test")[:1]
    engine = load_engine("lite", device="cpu", changes={"gate": False, "samples": 1})
    report = evaluate(engine, cases, "breast tumor", stages=False)
    for dataset, summary in report["datasets"].items():
        row = found["4", dataset, "+ lite-medsam, 1 sample"]
        assert int(row["n"]) == summary["n"]
        if summary["n"]:
            assert float(row["dsc_mean"]) == pytest.approx(summary["dsc"]["mean"], abs=1e-9)
            assert float(row["nsd_paper_mean"]) == pytest.approx(summary["nsd_paper"]["mean"], abs=1e-9)
