"""Retrieval from a table of pairs to the files that the command writes; vectors are computed once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from MedCLIPSAMLib import retrieval
from MedCLIPSAMLib.cli_retrieve import retrieve
from MedCLIPSAMLib.errors import InputError, MissingWeightsError
from MedCLIPSAMLib.resources import resource_path
from MedCLIPSAMLib.retrieval_features import FeatureFile, RetrievalModel, features


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
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(retrieve)
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.output


def test_command_writes_table_json_and_picture(tmp_path: Path, counted: dict[str, int]) -> None:
    source = write_pairs(tmp_path)
    output = tmp_path / "out"
    status, text = call(
        source, "--output", output, "--engine", "lite", "--batch", "3", "--runs", "2", "--device", "cpu"
    )
    assert status == 0, text
    assert "batches of 3, 2 run(s)" in text and "could exceed" in text
    result = json.loads((output / "retrieval.json").read_text())
    assert result["models"]["lite"]["examples"] == 6
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
