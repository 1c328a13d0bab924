"""Retrieval: ranks, ceiling and chance against references written here; paired tests; the way from pairs to files."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from MedCLIPSAMLib import retrieval
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.retrieval_features import FeatureFile, RetrievalModel, features
from MedCLIPSAMLib.retrieval_output import ceiling_text
from MedCLIPSAMLib.retrieval_ranks import DIRECTIONS, shuffled_batches
from MedCLIPSAMLib.retrieval_significance import holm, paired_t, wilcoxon_signed_rank


def vectors(count: int, noise: float, seed: int = 0, dimension: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Captions at random, and images around them."""
    rng = np.random.default_rng(seed)
    texts = rng.standard_normal((count, dimension))
    return texts + noise * rng.standard_normal((count, dimension)), texts


def reference_accuracy(images, texts, captions, batch, runs, seed, k, direction) -> list[float]:
    """The definition, one question after the other: is a candidate with the right caption among the best k?"""
    found = []
    for run in range(runs):
        order = np.random.default_rng([seed, run]).permutation(len(captions))
        hits = 0
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            for asked in chosen:
                question = images[asked] if direction == "image_to_text" else texts[asked]
                answers = texts if direction == "image_to_text" else images
                cosine = [
                    float(question @ answers[j] / np.linalg.norm(question) / np.linalg.norm(answers[j])) for j in chosen
                ]
                best = sorted(range(len(chosen)), key=lambda j: (-round(cosine[j], 12), j))[:k]
                hits += any(captions[chosen[j]] == captions[asked] for j in best)
        found.append(hits / len(captions))
    return found


@pytest.mark.parametrize("direction", list(DIRECTIONS))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_accuracy_is_that_of_the_definition(direction: str, k: int) -> None:
    images, texts = vectors(107, 1.5)
    captions = [f"caption {index % 60}" for index in range(107)]
    texts = texts[[int(caption.split()[1]) for caption in captions]]  # equal captions have equal vectors
    report = retrieval.evaluate(images, texts, captions, batch=25, runs=3, seed=4)
    expected = reference_accuracy(images, texts, captions, 25, 3, 4, k, direction)
    assert report.accuracy(direction, k) == pytest.approx(expected, abs=1e-12)
    assert report.mean(direction, k) == pytest.approx(np.mean(expected))
    assert report.sd(direction, k) == pytest.approx(np.std(expected, ddof=1))
    assert 0.1 < report.mean(direction, k) < 0.95  # neither trivial nor hopeless, so that the comparison says something


def test_equal_captions_count_as_hits_and_the_ceiling_says_what_they_would_cost() -> None:
    captions = ["A mass", "a  MASS ", "b", "c", "c", "c"]
    texts = np.eye(6)[[0, 0, 1, 2, 2, 2]]
    report = retrieval.evaluate(texts, texts, captions, batch=6, runs=2)
    for direction in DIRECTIONS:
        assert report.mean(direction, 1) == 1.0
        # Of two equal ones the first alone finds its own partner at once, of three one, or two among the first two.
        assert report.accuracy(direction, 1, own=True) == pytest.approx([3 / 6] * 2)
        assert report.accuracy(direction, 2, own=True) == pytest.approx([5 / 6] * 2)
    assert report.ceiling(1) == pytest.approx(3 / 6)
    assert report.ceiling(2) == pytest.approx(5 / 6)
    assert "83.3 % of the examples share their caption" in ceiling_text(report)
    assert "could exceed 50.0 % (top-1) and 83.3 % (top-2)" in ceiling_text(report)


def test_ties_keep_the_order_of_the_batch() -> None:
    report = retrieval.evaluate(np.ones((4, 3)), np.ones((4, 3)), list("abcd"), batch=4, runs=1, seed=2)
    (order,) = shuffled_batches(4, 4, 2, 0)
    for direction in DIRECTIONS:
        assert report.ranks[direction][0, order].tolist() == [0, 1, 2, 3]


def test_chance_is_that_of_random_orders() -> None:
    images, texts = vectors(10, 0.0)
    captions = [*"aabcdefghi"]
    report = retrieval.evaluate(images, texts, captions, batch=10, runs=1)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(10), (40_000, 1)), axis=1)
    for k in (1, 2):
        single = (orders[:, :k] == 5).any(axis=1).mean()
        double = np.isin(orders[:, :k], (0, 1)).any(axis=1).mean()
        assert report.chance(k) == pytest.approx((8 * single + 2 * double) / 10, abs=0.005)
    assert retrieval.evaluate(images, texts, list("abcdefghij"), batch=5).chance(1) == pytest.approx(0.2)


def test_batches_hold_every_example_once_and_never_a_single_one() -> None:
    for count, sizes in ((7042, [50] * 140 + [42]), (101, [50, 51]), (100, [50, 50]), (38, [38]), (2, [2])):
        batches = shuffled_batches(count, 50, 0, 3)
        assert [len(one) for one in batches] == sizes
        assert sorted(np.concatenate(batches)) == list(range(count))
    first, second = (np.concatenate(shuffled_batches(100, 50, 0, run)) for run in (0, 1))
    assert not np.array_equal(first, second)


def test_runs_do_not_depend_on_how_many_there_are_and_length_does_not_matter() -> None:
    images, texts = vectors(60, 1.0)
    captions = [str(index) for index in range(60)]
    few, many = (retrieval.evaluate(images, texts, captions, batch=20, runs=runs) for runs in (2, 5))
    longer = retrieval.evaluate(images * 7, texts / 3, captions, batch=20, runs=2)
    for direction in DIRECTIONS:
        assert np.array_equal(few.ranks[direction], many.ranks[direction][:2])
        assert np.array_equal(few.ranks[direction], longer.ranks[direction])
    assert retrieval.evaluate(images, texts, captions, runs=1).sd("image_to_text", 1) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": ["a"] * 5}, "there are 5 captions"),
        ({"image_vectors": np.zeros((4, 3))}, "4 image vector(s) are of length 0"),
        ({"text_vectors": np.full((4, 3), np.nan)}, "4 text vector(s) are not finite"),
        ({"text_vectors": np.ones(4)}, r"text vectors have shape (4,)"),
        ({"batch": 1}, "batch 1"),
        ({"runs": 0}, "runs 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_evaluated_is_said(change: dict, message: str) -> None:
    given = {"image_vectors": np.ones((4, 3)), "text_vectors": np.ones((4, 3)), "captions": list("abcd")} | change
    with pytest.raises(InputError) as caught:
        retrieval.evaluate(**given)
    assert message in str(caught.value)


def test_one_pair_is_too_few() -> None:
    with pytest.raises(InputError, match="at least 2"):
        retrieval.evaluate(np.ones((1, 3)), np.ones((1, 3)), ["a"])


# --- paired tests ---


def test_holm_agrees_with_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    values = np.random.default_rng(0).uniform(0, 0.3, 9)
    for level in (0.05, 0.2):  # rejected one after the other, from the smallest, until one is not
        rejected = set()
        for place, index in enumerate(np.argsort(values)):
            if values[index] > level / (len(values) - place):
                break
            rejected.add(int(index))
        assert {index for index, value in enumerate(holm(values.tolist())) if value <= level} == rejected


def test_signed_rank_test_counts_all_signs() -> None:
    rng = np.random.default_rng(1)
    for size in (5, 9, 12):
        first, second = rng.normal(0.4, 1, size), rng.normal(0, 1, size)
        expected = stats.wilcoxon(first, second, method="exact").pvalue
        assert wilcoxon_signed_rank(first, second) == pytest.approx(expected, rel=1e-9)
    # Ties and zeros, which scipy's older versions only approximate: count all signs here.
    difference = np.array([0.02, 0.02, -0.02, 0.04, 0.0, 0.06])
    ranks = stats.rankdata(np.abs(difference[difference != 0]))
    observed = abs(float((ranks * np.sign(difference[difference != 0])).sum()))
    sums = [abs(float(np.dot(ranks, signs))) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    expected = np.mean([one >= observed - 1e-9 for one in sums])
    assert wilcoxon_signed_rank(difference, np.zeros(6)) == pytest.approx(expected)
    large = rng.normal(0.1, 1, 200)
    expected = stats.wilcoxon(large, correction=False, method="approx").pvalue
    assert wilcoxon_signed_rank(large, np.zeros(200)) == pytest.approx(expected, rel=1e-6)
    assert wilcoxon_signed_rank(np.ones(5), np.ones(5)) == 1.0
    assert wilcoxon_signed_rank(np.arange(1, 6), np.zeros(5)) == pytest.approx(0.0625)


def test_t_test_knows_when_it_says_nothing() -> None:
    first, second = np.array([0.4, 0.5, 0.45]), np.array([0.3, 0.45, 0.32])
    assert paired_t(first, second) == pytest.approx(float(stats.ttest_rel(first, second).pvalue))
    assert paired_t(first, first) == 1.0
    assert paired_t(first + 0.1, first) is None
    assert paired_t(first[:1], second[:1]) is None


def reports(**noise: float) -> dict[str, retrieval.RetrievalReport]:
    captions = [str(index) for index in range(200)]
    return {
        name: retrieval.evaluate(*vectors(200, level, seed=3), captions, batch=20, runs=5)
        for name, level in noise.items()
    }


def test_paired_tests_tell_a_difference_from_none() -> None:
    found = reports(good=0.8, same=0.8, poor=2.0)
    rows = {(row.first, row.second, row.direction, row.k): row for row in retrieval.compare(found)}
    assert len(rows) == 3 * 4
    clear, none = rows["good", "poor", "image_to_text", 1], rows["good", "same", "image_to_text", 1]
    assert clear.difference == pytest.approx(
        found["good"].mean("image_to_text", 1) - found["poor"].mean("image_to_text", 1)
    )
    assert clear.ci95[0] < clear.difference < clear.ci95[1]
    assert clear.p_mcnemar < 1e-6 and clear.p_t < 0.01
    assert (none.difference, none.p_mcnemar, none.p_t, none.p_wilcoxon) == (0.0, 1.0, 1.0, 1.0)
    # McNemar by its definition, from the hits in most of the runs; the correction multiplies by 12 at most.
    usual = [found[name].hits("image_to_text", 1).sum(axis=0) >= 3 for name in ("good", "poor")]
    only = [int((usual[a] & ~usual[1 - a]).sum()) for a in (0, 1)]
    assert [clear.only_first, clear.only_second] == only
    one_tail = sum(math.comb(sum(only), count) for count in range(min(only) + 1)) / 2 ** sum(only)
    assert 2 * one_tail <= clear.p_mcnemar * (1 + 1e-9) <= 24 * one_tail * (1 + 1e-6)


def test_only_answers_to_the_same_questions_are_compared() -> None:
    images, texts = vectors(20, 0.5)
    captions = [str(index) for index in range(20)]
    one = retrieval.evaluate(images, texts, captions, batch=10)
    others = {
        "captions": retrieval.evaluate(images, texts, captions[::-1], batch=10),
        "batch": retrieval.evaluate(images, texts, captions, batch=5),
        "seed": retrieval.evaluate(images, texts, captions, batch=10, seed=1),
        "runs": retrieval.evaluate(images, texts, captions, batch=10, runs=4),
    }
    for other in others.values():
        with pytest.raises(InputError, match="the same questions"):
            retrieval.compare({"a": one, "b": other})
    assert retrieval.compare({"a": one}) == []


# --- tables and picture ---


def test_table_is_markdown_with_the_best_in_bold() -> None:
    found = reports(**{"good|one": 0.8, "poor": 2.0})
    text = retrieval.table(found, retrieval.compare(found))
    lines = [line.replace("\\|", "/") for line in text.splitlines()]
    widths = {line.count("|") for line in lines[2:6]}
    assert widths == {6}
    good = next(line for line in lines if line.startswith("| good/one |"))
    assert good.count("**") == 8
    one = found["good|one"]
    assert f"**{100 * one.mean('image_to_text', 1):.1f} ± {100 * one.sd('image_to_text', 1):.1f}**" in good
    assert any(line.startswith("| chance | 5.0 | 10.0 |") for line in lines)
    assert "could exceed 100.0 % (top-1)" in text
    assert "< 0.001" in text and "p (McNemar)" in text


def test_picture_is_written_whole_and_without_pyplot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    retrieval.plot(reports(**{"_hidden$": 0.8, "poor": 2.0}), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert picture.width > 600 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    with pytest.raises(InputError):
        retrieval.plot({}, tmp_path / "none.png")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


# --- pairs ---


def write_pairs(folder: Path, count: int = 6, name: str = "pairs.csv") -> Path:
    """Random pictures below ``images``, and a table of them with two splits."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = [["file", "caption", "split"]]
    for index in range(count):
        Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(folder / "images" / f"{index}.png")
        rows.append([f"images/{index}.png", f"finding number {index % 4}, seen", "test" if index % 2 else "val"])
    with (folder / name).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter="\t" if name.endswith(".tsv") else ",").writerows(rows)
    return folder / name


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv"])
def test_pairs_are_read_by_split(tmp_path: Path, name: str) -> None:
    source = write_pairs(tmp_path, name=name)
    assert len(retrieval.read_pairs(source).files) == 6
    pairs = retrieval.read_pairs(source, split="test")
    assert [path.name for path in pairs.files] == ["1.png", "3.png", "5.png"]
    assert pairs.captions[0] == "finding number 1, seen"
    with pytest.raises(InputError, match="splits that exist: test, val"):
        retrieval.read_pairs(source, split="train")


def test_other_column_names_json_lines_and_root(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    table = tmp_path / "elsewhere" / "pairs.jsonl"
    table.parent.mkdir()
    rows = [{"filename": f"{index}.png", "Caption": f"  a \n b {index}"} for index in range(3)]
    table.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    pairs = retrieval.read_pairs(table, root=tmp_path / "images")
    assert pairs.captions == ["a b 0", "a b 1", "a b 2"]
    with pytest.raises(InputError, match=r"3 image\(s\) .* do not exist, the first is .*0\.png; .*--root"):
        retrieval.read_pairs(table)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "file,words\na.png,b\n", "a column 'caption' is needed"),
        ("a.csv", "file,caption\na.png,\nb.png,c\n", "line 2: the column 'caption' is empty"),
        ("a.csv", "file,caption\n", "holds 0 pair"),
        ("a.jsonl", '{"file": "a.png", "caption": "b"\n', "line 1 is not JSON"),
        ("a.jsonl", "[1, 2]\n", "line 1 is list"),
        ("a.xlsx", "file", "is of no known type"),
        ("a.csv", b"file,caption\na.png,\xff\xfe\n", "UTF-8"),
    ],
)
def test_tables_that_cannot_be_used_are_explained(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        retrieval.read_pairs(tmp_path / name)
    assert message in str(caught.value)


# --- vectors and the whole way ---


def test_vectors_are_kept_and_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"
    store = FeatureFile(path, "one")
    store.add(["a", "b"], np.arange(6).reshape(2, 3))
    store.save()
    again = FeatureFile(path, "one")
    assert "a" in again and again.rows(["b", "a", "b"]).tolist() == [[3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert "a" not in FeatureFile(path, "other weights")
    path.write_bytes(path.read_bytes()[:-40])
    assert "a" not in FeatureFile(path, "one")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, untrained_segmenter) -> dict[str, int]:
    """The real towers under a random alignment in place of the shipped one; counts what is encoded."""
    clip, counts = untrained_segmenter.clip, {"images": 0, "texts": 0, "loads": 0}

    class Counting:
        def encode_images(self, images):
            counts["images"] += len(images)
            return clip.encode_images(images)

        def encode_texts(self, texts):
            counts["texts"] += len(texts)
            return clip.encode_texts(texts)

    def load(self):
        counts["loads"] += 1
        return Counting()

    monkeypatch.setattr(RetrievalModel, "load", load)
    return counts


def test_everything_is_encoded_once(tmp_path: Path, counted: dict[str, int], untrained_segmenter) -> None:
    pairs = retrieval.read_pairs(write_pairs(tmp_path))
    model = RetrievalModel("lite", "cpu")
    seen: list[tuple[int, int]] = []
    images, texts = features(model, pairs, tmp_path / "kept", lambda *step: seen.append(step))
    assert counted == {"images": 6, "texts": 4, "loads": 1}  # four captions differ
    assert seen[-1] == (6, 6)
    again = features(model, pairs, tmp_path / "kept")
    assert counted["loads"] == 1
    assert np.array_equal(images, again[0]) and np.array_equal(texts, again[1])
    assert np.array_equal(texts, untrained_segmenter.clip.encode_texts(sorted(set(pairs.captions)))[[0, 1, 2, 3, 0, 1]])
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(pairs.files[2])  # a changed image is not the kept one
    changed, _ = features(model, pairs, tmp_path / "kept")
    assert counted["images"] == 7
    assert [not np.array_equal(a, b) for a, b in zip(images, changed, strict=True)] == [
        index == 2 for index in range(6)
    ]


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, counted: dict[str, int]) -> None:
    pairs = retrieval.read_pairs(write_pairs(tmp_path))
    pairs.files[3].write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"3\.png"):
        features(RetrievalModel("lite", "cpu"), pairs, tmp_path / "kept")


def call(*arguments: object) -> tuple[int, str]:
    import typer

    from MedCLIPSAMLib.cli_retrieve import retrieve

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(retrieve)
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.output


def test_command_writes_table_json_and_picture(tmp_path: Path, counted: dict[str, int]) -> None:
    source = write_pairs(tmp_path, 12)
    output = tmp_path / "out"
    status, text = call(
        source, "--output", output, "--engine", "lite", "--batch", "5", "--runs", "2", "--device", "cpu"
    )
    assert status == 0, text
    assert "batches of 5, 2 run(s)" in text and "could exceed" in text
    result = json.loads((output / "retrieval.json").read_text())
    assert result["models"]["lite"]["examples"] == 12
    assert 0 <= result["models"]["lite"]["image_to_text"]["top1"]["mean"] <= 1
    assert {one["name"] for one in result["models"]["lite"]["weights"]} >= {"lite-medsam", "lite-alignment"}
    assert (output / "retrieval.md").read_text() in text
    assert len(list((output / "features").glob("lite-*.npz"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "tiny"], "engine 'tiny' is unknown to retrieval; known: lite, biomedclip"),
        (["--engine", "lite", "--engine", "lite"], "each only once"),
        (["--engine", "finetuned:/nowhere"], "/nowhere does not exist"),
        (["--batch", "1"], "batch 1"),
        (["--split", "test"], "splits that exist"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_command_explains_what_is_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    source = write_pairs(tmp_path, 4)
    if "--split" in arguments:
        source.write_text(source.read_text().replace("test", "other"))
    status, text = call(source, "--output", tmp_path / "out", *arguments)
    assert status == 2
    assert text.startswith("Error: ") and message in text
    assert not (tmp_path / "out" / "retrieval.json").exists()


@pytest.mark.parametrize("name", ["lite", "finetuned", "biomedclip", "pmc-clip"])
def test_models_are_found_by_engine_name_and_no_segmenter_is_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CLIP's own files decide; another alignment in the folder has another fingerprint."""
    from MedCLIPSAMLib.errors import MissingWeightsError
    from MedCLIPSAMLib.resources import resource_path

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if name in ("biomedclip", "pmc-clip"):
        with pytest.raises(MissingWeightsError) as caught:
            RetrievalModel(name, "cpu")
        assert name in str(caught.value) and "sam-vit" not in str(caught.value)
        return
    shipped = resource_path("MedCLIPSAM", "Models", "lite-alignment.safetensors")
    if name == "finetuned":
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "lite-alignment.safetensors").write_bytes(shipped.read_bytes())
        name = f"finetuned:{folder}+sam-vit-h"
    try:
        model = RetrievalModel(name, "cpu")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    vector = model.load().encode_texts(["a brain tumor"])
    assert vector.shape == (1, 256) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    if name.startswith("finetuned"):
        assert model.describe()["own_files"] == ["lite-alignment.safetensors"]
        content = (tmp_path / "mine" / "lite-alignment.safetensors").read_bytes()
        (tmp_path / "mine" / "lite-alignment.safetensors").write_bytes(content + b"\0")
        assert RetrievalModel(name, "cpu").fingerprint != model.fingerprint


@pytest.mark.slow
def test_shipped_model_finds_captions_of_real_images(data_dir: Path, tmp_path: Path, lite) -> None:
    """Labels as captions on a few images of each kind: far above chance, and wrong captions are not."""
    kinds = {
        "brain_mri_tumour": "a brain MRI with a tumor",
        "chest_xray_lung": "a chest X-ray showing the lungs",
        "breast_ultrasound_tumour": "a breast ultrasound with a mass",
        "chest_ct_lung": "an axial CT slice showing the lungs",
    }
    files, captions = [], []
    for folder, caption in kinds.items():
        chosen = sorted((data_dir / folder / "val" / "images").iterdir())[:5]
        files += chosen
        captions += [caption] * len(chosen)
    pairs = retrieval.RetrievalPairs(files, captions)
    images, texts = features(RetrievalModel("lite", "cpu"), pairs, tmp_path)
    report = retrieval.evaluate(images, texts, captions, batch=20, runs=1)
    assert report.mean("image_to_text", 1) > 0.7
    assert report.ceiling(1) == pytest.approx(0.2)
    shifted = retrieval.evaluate(images, np.roll(texts, 5, axis=0), captions, batch=20, runs=1)
    assert shifted.mean("image_to_text", 1) < 0.3
