"""Where image-text pairs come from: tables, JSON Lines, published layouts, shards, and the index of a million."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from pair_sets import LONG, index_of, picture, value_of, write_csv, write_pictures, write_shard

from MedCLIPSAMLib.errors import InputError, OutputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMTraining.image_text_data import Pair, PairIndex, clean, local_image


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables(tmp_path: Path, suffix: str, separator: str):
    separator = "\t" if suffix == ".tsv" else separator
    write_pictures(tmp_path / "images", 2)
    caption = 'Mass, 3 cm; "round"\nin the left lobe'
    rows = [["Patient_ID", "Caption", "FileName"], ["p1", caption, "000.png"], [], ["", "ödem", "001.png"]]
    index = PairIndex.read(write_csv(tmp_path / f"pairs{suffix}", rows, separator))
    assert len(index) == 2
    assert index[0] == Pair(str(tmp_path / "images" / "000.png"), caption, "p1")
    assert index[1] == Pair(str(tmp_path / "images" / "001.png"), "ödem", None)


def test_named_columns_and_root(tmp_path: Path):
    write_pictures(tmp_path / "elsewhere", 1)
    path = write_csv(tmp_path / "p.csv", [["file", "caption", "Bild", "Text"], ["x", "y", "000.png", "the right one"]])
    index = PairIndex.read(path, root=tmp_path / "elsewhere", file_column="Bild", caption_column="text")
    assert index[0].caption == "the right one" and Path(index[0].file).is_file() and index[0].patient is None
    with pytest.raises(InputError, match=r"no column 'subject'.*'file', 'caption', 'Bild', 'Text'"):
        PairIndex.read(path, patient_column="subject")


def test_json_lines_and_lists(tmp_path: Path):
    write_pictures(tmp_path, 2)
    records = [{"file": "000.png", "caption": "one", "subject": 7}, {"image": "-", "file": "001.png", "caption": None}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n", encoding="utf-8")
    (tmp_path / "pairs.json").write_text(json.dumps(records), encoding="utf-8")
    for name in ("pairs.jsonl", "pairs.json"):
        index = PairIndex.read(tmp_path / name)
        assert [(pair.caption, pair.patient) for pair in map(index.__getitem__, range(2))] == [("one", "7"), ("", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,text\n000.png,a\nb.png\n", "1 values for 2 columns"),
        (b"file,text\n,a\n", "names no image file"),
        (b"file,sentence\n000.png,a\n", "no column 'caption'"),
        (b"file,caption\n000.png,caf\xe9\n", "not UTF-8"),
        (b"file,caption\n", "no pairs"),
        (b"", "no column"),
        (b'file,caption\n000.png,"' + b"x" * 200_000 + b"\n", "quotation mark"),
        (b"file,caption\nnot-there.png,a\n", "none of 1 images.*not-there.png"),
    ],
)
def test_faulty_tables_say_what_is_wrong(tmp_path: Path, content: bytes, message: str):
    write_pictures(tmp_path, 1)
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"(?s){message}"):
        PairIndex.read(path)


def test_faulty_records_and_paths(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"file": "a", "caption": "b"}\n[1]\n', encoding="utf-8")
    with pytest.raises(InputError, match="record 2: list"):
        PairIndex.read(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"file": "a"', encoding="utf-8")
    with pytest.raises(InputError, match="no JSON object"):
        PairIndex.read(tmp_path / "b.jsonl")
    (tmp_path / "c.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"'\.xlsx'"):
        PairIndex.read(tmp_path / "c.xlsx")
    with pytest.raises(InputError, match="does not exist"):
        PairIndex.read(tmp_path / "d.csv")
    with pytest.raises(InputError, match="neither shards"):
        PairIndex.read(tmp_path)


def test_medpix_layout(tmp_path: Path):
    def record(case: str, image: str, caption: str | None) -> dict:
        about = {"ACR Codes": "8.-1", "Age": "73", "Caption": caption, "Modality": "CT - noncontrast", "Plane": "Axial"}
        return {"Type": "CT", "U_id": case, "image": image, "Description": about, "Location": "Chest"}

    images = tmp_path / "images"
    images.mkdir()
    for name in ("MPX1009_synpic1", "MPX1009_synpic2", "MPX1024_synpic3"):
        (images / f"{name}.png").write_bytes(picture())
    records = [
        record("MPX1009", "MPX1009_synpic1", "The prostate is enlarged."),
        record("MPX1009", "MPX1009_synpic2", None),
        record("MPX1009", "MPX1009_not_there", "An image that was never downloaded."),
        record("MPX1024", "MPX1024_synpic3", "An obstructing mass."),
    ]
    (tmp_path / "Descriptions.json").write_text(json.dumps(records), encoding="utf-8")
    splits = tmp_path / "splitted_dataset"
    splits.mkdir()
    (splits / "descriptions_train.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    for source in (tmp_path, tmp_path / "Descriptions.json", splits / "descriptions_train.jsonl"):
        index = PairIndex.read(source)
        assert len(index) == 3
        assert index[0].caption == "The prostate is enlarged." and index[0].patient == "MPX1009"
        assert index[1].caption == "" and index[2].patient == "MPX1024"
        assert read_image(Path(index[2].file)).array.shape == (4, 4)
    for image in images.iterdir():
        image.unlink()
    with pytest.raises(InputError, match=r"images of .*name their folder"):
        PairIndex.read(tmp_path)


def test_roco_layouts(tmp_path: Path):
    folder = tmp_path / "radiology"
    (folder / "images").mkdir(parents=True)
    captions = "ROCO_00001\t Axial MRI (coronal view).\nROCO_00006\t Coronal plain CT.\nROCO_00016\t An angiogram.\n"
    (folder / "captions.txt").write_text(captions, encoding="utf-8")
    archive = "wget -r ftp://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/8d/34/PMC{}.tar.gz -P /path/to/Dir"
    links = [("ROCO_00001", 4608653, "g01.jpg"), ("ROCO_00006", 4608653, "g02.jpg"), ("ROCO_00016", 5665693, "i01.jpg")]
    lines = ["\t".join((name, archive.format(number), figure)) for name, number, figure in links]
    (folder / "dlinks.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "images" / "ROCO_00001.jpg").write_bytes(picture())
    (folder / "images" / "PMC4608653_g02.jpg").write_bytes(picture())  # the name that older downloads have
    for source in (folder, folder / "captions.txt"):
        index = PairIndex.read(source)
        assert [Path(index[row].file).name for row in range(len(index))] == ["ROCO_00001.jpg", "PMC4608653_g02.jpg"]
        assert index[0] == Pair(index[0].file, "Axial MRI (coronal view).", "PMC4608653")

    (tmp_path / "train_images").mkdir()
    (tmp_path / "train_images" / "ROCOv2_2023_train_000001.jpg").write_bytes(picture())
    rows = [["ID", "Caption"], ["ROCOv2_2023_train_000001", "Head CT, axial"], ["ROCOv2_2023_train_000002", "gone"]]
    index = PairIndex.read(write_csv(tmp_path / "train_captions.csv", rows))
    assert len(index) == 1 and index[0].caption == "Head CT, axial" and Path(index[0].file).is_file()


def test_shards(tmp_path: Path):
    about = json.dumps({"caption": "from json", "patient_id": "p1"}).encode()
    long_name = "a" * 150
    write_shard(tmp_path / "part-0.tar", [("0.png", picture(10)), ("0.txt", b"from text"), ("1.png", picture(11))])
    write_shard(
        tmp_path / "part-1.tar",
        [
            ("d/2.json", about),
            ("d/2.seg.png", picture(9)),
            ("d/2.png", picture(12)),
            (f"{long_name}.txt", "ä".encode()),
        ],
    )
    with tarfile.open(tmp_path / "part-1.tar", "a") as tar:  # the long name needs a header of its own
        info = tarfile.TarInfo(f"{long_name}.png")
        info.size = len(picture(13))
        tar.addfile(info, io.BytesIO(picture(13)))
    for source in (tmp_path, tmp_path / "part-{0..1}.tar", tmp_path / "part-?.tar"):
        index = PairIndex.read(source)
        assert [index[row].caption for row in range(len(index))] == ["from text", "from json", "ä"]
        assert [index[row].patient for row in range(3)] == [None, "p1", None]
        assert [value_of(index[row])[0].item() for row in range(3)] == [10, 12, 13]
    with local_image(index[0].file) as path:
        assert path.suffix == ".png" and (os.name == "nt" or path.stat().st_mode & 0o077 == 0)
    assert not path.exists()
    with pytest.raises(InputError, match="1 of 3 shards"):
        PairIndex.read(tmp_path / "part-{0..2}.tar")
    (tmp_path / "part-0.tar").write_bytes((tmp_path / "part-0.tar").read_bytes()[:540])
    with pytest.raises(InputError, match="damaged"):
        PairIndex.read(tmp_path)
    with pytest.raises(OSError, match="too early"):
        value_of(index[0])
    with pytest.raises(InputError, match="uncompress"):
        PairIndex.read(tmp_path / "x.tar.gz")


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_chunks_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    from MedCLIPSAMTraining import caption_cleaning, pair_shards, pair_sources

    write_pictures(tmp_path, 7)
    rows = [[f"{row:03d}.png", f"{LONG}{row}"] for row in range(7)]
    table = write_csv(tmp_path / "a.csv", [["file", "caption"], *rows])
    lines = tmp_path / "b.jsonl"
    lines.write_text("\n".join(json.dumps({"file": f, "caption": c}) for f, c in rows), encoding="utf-8")
    members = [
        (f"{row}.{kind}", b"x" if kind == "png" else f"{LONG}{row}".encode())
        for row in range(7)
        for kind in ("png", "txt")
    ]
    write_shard(tmp_path / "c.tar", members)
    for module, name in ((pair_sources, "CHUNK"), (pair_shards, "CHUNK"), (caption_cleaning, "_CHUNK")):
        monkeypatch.setattr(module, name, size)
    for source in (table, lines, tmp_path / "c.tar"):
        cleaned, report = clean(PairIndex.read(source))
        assert report.read == report.kept == 7
        assert [cleaned[row].caption for row in range(7)] == [caption for _, caption in rows]


def test_saved_index_opens_equal(tmp_path: Path):
    index = index_of(["one", "zwei ö", "\ud800"], patients=["p", None, "q"])
    _ = index.caption_keys
    index.save(tmp_path / "saved")
    opened = PairIndex.read(tmp_path / "saved")
    assert [opened[row] for row in range(3)] == [index[row] for row in range(3)]
    assert np.array_equal(opened.caption_keys, index.caption_keys)
    with pytest.raises(OutputError, match="exists"):
        index.save(tmp_path / "saved")
    lengths = tmp_path / "saved" / "captions-lengths.npy"
    np.save(lengths, np.load(lengths) + 5)
    with pytest.raises(InputError, match="damaged"):
        PairIndex.read(tmp_path / "saved")
    lengths.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        PairIndex.read(tmp_path / "saved")


def test_a_large_index_goes_to_another_process_by_a_mapped_private_file():
    small, large = index_of(["x"]), index_of(["y" * 9_000_000])
    assert pickle.loads(pickle.dumps(small))[0] == small[0]
    assert pickle.loads(ForkingPickler.dumps(small))[0] == small[0]
    message = ForkingPickler.dumps(large)
    assert len(message) < 1000
    assert pickle.loads(message)[0] == large[0]
    folder = Path(large._spilled).parent
    assert os.name == "nt" or folder.stat().st_mode & 0o077 == 0
    del large
    assert not folder.exists()


@pytest.mark.slow
def test_a_million_pairs_open_in_little_time_and_memory(tmp_path: Path):
    """The bound has room for a machine that is busy; Testing/benchmarks/bench_pairs.py measures."""
    bench = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_pairs.py"
    command = [sys.executable, str(bench), "--open-only", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert figures["pairs"] == 1_000_000
    assert figures["open_seconds"] < 15 and figures["open_peak_megabytes"] < 500
