"""What counts as an input of a cohort, its name and the digest of its content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from cohort_support import draw_inputs
from pydicom.uid import generate_uid
from test_file_dicom import dicom

from MedCLIPSAMLib.cohort_inputs import case_name, content_digest, find_inputs, read_input
from MedCLIPSAMLib.errors import InputError

RNG = np.random.default_rng(11)


def series(folder: Path, slices: int, prefix: str = "IM", **tags) -> str:
    """Write a series of positioned slices; returns its UID."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid()
    for number in range(slices):
        position = [0.0, 0.0, 3.0 * (slices - number)]
        pixels = RNG.integers(0, 1000, (20, 24), dtype=np.uint16)
        settings = {"SeriesInstanceUID": uid, "ImagePositionPatient": position, "PatientID": "P1", **tags}
        dicom(folder / f"{prefix}{number}", pixels, **settings)
    return uid


def files_of(inputs) -> list[str]:
    return [one.file for one in inputs]


def test_pictures_and_volumes_below_a_folder(tmp_path):
    draw_inputs(tmp_path / "a" / "images", 2)
    draw_inputs(tmp_path / "a" / "masks", 2)
    draw_inputs(tmp_path / "out" / "cases" / "x", 1)
    draw_inputs(tmp_path / "earlier", 1)
    (tmp_path / "earlier" / "2-left-lung-result.json").write_text("{}")
    draw_inputs(tmp_path / ".hidden", 1)
    for name in ("v.nii.gz", "v.nrrd", "s.seg.nrrd", "notes.txt", "v.raw", "DICOMDIR", ".x.png", "B.PNG"):
        (tmp_path / name).write_bytes(b"0" * 128 + b"DICM" if name == "DICOMDIR" else b"")
    (tmp_path / "loop").symlink_to(tmp_path / "a")
    root, inputs = find_inputs(tmp_path, tmp_path / "out")
    assert root == tmp_path
    assert files_of(inputs) == ["B.PNG", "a/images/image 0000.png", "a/images/image 0001.png", "v.nii.gz", "v.nrrd"]
    root, inputs = find_inputs(tmp_path / "a" / "images" / "image 0001.png")
    assert (root, files_of(inputs)) == (tmp_path / "a" / "images", ["image 0001.png"])
    for source, message in ((tmp_path / "none", "does not exist"), (tmp_path / "earlier" / "result.json", None)):
        if message:
            with pytest.raises(InputError, match=message):
                find_inputs(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        find_inputs(tmp_path / "empty")


def test_names_are_unique_fit_for_files_and_do_not_depend_on_others():
    files = ["a.png", "a.jpg", "A.png", "a/b.png", "a-b.png", "a b.png", "頭部/肺.png", "<script>.png", "con.png", "."]
    files += ["x" * 300 + ".nii.gz", "../elsewhere/a.png", "a\udcff.png", ".png"]
    names = [case_name(file) for file in files]
    assert len({name.lower() for name in names}) == len(files)
    for name in names:
        assert name.replace("-", "").isalnum() and name.isascii() and len(name) < 80 and name[0] != "-"
    assert case_name("study 1/scan.nii.gz").startswith("study-1-scan-")
    assert case_name("a.png") == case_name("a.png") != case_name("b.png")


def test_dicom_series_and_single_files(tmp_path):
    series(tmp_path / "one", 3)
    (tmp_path / "one" / "readme.txt").write_text("x")
    series(tmp_path / "two", 2, "A", PatientID="P2")
    series(tmp_path / "two", 4, "B", PatientID="P2")
    (tmp_path / "us").mkdir()
    uid = generate_uid()
    for number in range(2):  # one series, no position: radiographs
        pixels = RNG.integers(0, 1000, (20, 24), dtype=np.uint16)
        loose = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "Modality": "DX"}
        dicom(tmp_path / "us" / f"{number}.dcm", pixels, SeriesInstanceUID=uid, PatientID="P1", **loose)
    (tmp_path / "us" / "broken.dcm").write_bytes(b"no dicom")
    _, inputs = find_inputs(tmp_path)
    assert files_of(inputs) == ["one", "two/A0", "two/B0", "us/0.dcm", "us/1.dcm", "us/broken.dcm"]
    by_file = {one.file: one for one in inputs}
    shapes = {"one": (3, 20, 24), "two/A0": (2, 20, 24), "two/B0": (4, 20, 24), "us/0.dcm": (20, 24)}
    for file, shape in shapes.items():
        one = by_file[file]
        image = read_input(one.path, one.parts)
        assert image.array.shape == shape and image.is_volume == (len(shape) == 3)
    positions = read_input(by_file["two/B0"].path, by_file["two/B0"].parts).ijk_to_ras
    np.testing.assert_allclose(positions[:3, 2], [0, 0, 3])
    with pytest.raises(InputError):
        read_input(by_file["us/broken.dcm"].path)
    # pseudonyms: the same for a patient, and not the ID
    assert by_file["one"].patient == by_file["us/0.dcm"].patient != by_file["two/A0"].patient
    assert by_file["two/A0"].patient == by_file["two/B0"].patient and "P" not in by_file["one"].patient
    assert by_file["us/broken.dcm"].patient is None
    # the folder of one series itself
    root, inputs = find_inputs(tmp_path / "one")
    assert files_of(inputs) == ["."] and inputs[0].name.startswith("one-") and root / inputs[0].file == tmp_path / "one"


def test_list_with_patients(tmp_path):
    draw_inputs(tmp_path / "pictures", 3)
    (tmp_path / "list.csv").write_text(
        "\ufefffile,subject,label\npictures/image 0002.png,anna,1\npictures/image 0000.png,,1\nmissing.png,bob,0\n\n",
        encoding="utf-8",
    )
    root, inputs = find_inputs(tmp_path / "list.csv")
    assert root == tmp_path
    assert [(one.file, one.patient) for one in inputs] == [
        ("missing.png", "bob"),
        ("pictures/image 0000.png", None),
        ("pictures/image 0002.png", "anna"),
    ]
    (tmp_path / "bad.csv").write_text("path\nx\n")
    with pytest.raises(InputError, match="a column 'file' is needed"):
        find_inputs(tmp_path / "bad.csv")


def test_digest_is_of_the_content_alone(tmp_path):
    series(tmp_path / "s", 3)
    digest = content_digest(tmp_path / "s")
    shutil.move(tmp_path / "s", tmp_path / "t")
    (tmp_path / "t" / "IM0").rename(tmp_path / "t" / "z")
    assert content_digest(tmp_path / "t") == digest
    assert content_digest(tmp_path, sorted((tmp_path / "t").iterdir())) == digest
    with (tmp_path / "t" / "z").open("ab") as file:
        file.write(b"0")
    assert content_digest(tmp_path / "t") != digest
    # the values of a header count as well, whatever the header calls them
    for name, text in (("a.mhd", "NDims = 3\nElementDataFile = v.raw\n"), ("b.nhdr", "NRRD0004\ndata file: v.raw\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / "v.raw").write_bytes(b"1234")
        first = content_digest(tmp_path / name)
        (tmp_path / "v.raw").write_bytes(b"1235")
        assert content_digest(tmp_path / name) != first
    (tmp_path / "c.mhd").write_text("ElementDataFile = LIST\nv.raw\n")
    first = content_digest(tmp_path / "c.mhd")
    (tmp_path / "v.raw").write_bytes(b"1236")
    assert content_digest(tmp_path / "c.mhd") != first
    with pytest.raises(InputError, match="cannot be read"):
        content_digest(tmp_path / "missing.png")


@pytest.mark.skipif(os.name == "nt", reason="Windows names are text")
def test_names_that_are_no_text(tmp_path):
    draw_inputs(tmp_path, 1)
    odd = os.path.join(os.fsencode(tmp_path), b"odd \xff.png")
    os.rename(os.fsencode(tmp_path / "image 0000.png"), odd)
    _, inputs = find_inputs(tmp_path)
    assert os.fsencode(inputs[0].path) == odd and inputs[0].name.isascii()
