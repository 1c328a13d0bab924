"""Results out: maps and segmentations read back by ITK and by the format's own description, and failing disks."""

from __future__ import annotations

import errno
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from MedCLIPSAMLib.errors import InputError, OutputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.file_output import (
    Segment,
    check_output_folder,
    replacing,
    write_json,
    write_map_nrrd,
    write_mask_png,
    write_segmentation_nrrd,
)

RNG = np.random.default_rng(7)
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique(flip: int = 0) -> np.ndarray:
    """An oblique IJK-to-RAS matrix; bits of ``flip`` turn axes round."""
    signs = [-1.0 if flip >> axis & 1 else 1.0 for axis in range(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (11, -23, 37), degrees=True).as_matrix() @ np.diag((0.7, 0.85, 3.3))
    matrix[:3, :3] *= signs
    matrix[:3, 3] = (-101.25, 33.5, 7.125)
    return matrix


@pytest.mark.parametrize("flip", range(8))
def test_maps_keep_geometry_and_values(tmp_path, flip):
    array, matrix = RNG.random((5, 6, 7), dtype=np.float32), oblique(flip)
    path = tmp_path / "Bäckerei 頭部.nrrd"
    write_map_nrrd(path, array, matrix)
    image = read_image(path)
    np.testing.assert_array_equal(image.array, array)
    np.testing.assert_allclose(image.ijk_to_ras, matrix, rtol=0, atol=1e-12)
    assert image.array.dtype == np.float32 and image.is_volume
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_maps_of_real_volumes_2d_images_and_mapped_arrays(tmp_path, data_dir):
    for name in ("head_mr_t1_dicom", "chest_ct_01.nii.gz", "head_mr_t1ce_tumour_01.nrrd"):
        image = read_image(data_dir / "volumes" / name)
        write_map_nrrd(tmp_path / "m.nrrd", image.array, image.ijk_to_ras)
        again = read_image(tmp_path / "m.nrrd")
        np.testing.assert_array_equal(again.array, image.array.astype(np.float32))
        np.testing.assert_allclose(again.ijk_to_ras, image.ijk_to_ras, rtol=0, atol=1e-10)
    flat = RNG.random((4, 6))
    write_map_nrrd(tmp_path / "2.nrrd", flat, np.diag([-0.5, -0.25, 1, 1]))
    again = read_image(tmp_path / "2.nrrd")
    assert not again.is_volume
    np.testing.assert_array_equal(again.array, flat.astype(np.float32))
    np.testing.assert_array_equal(again.ijk_to_ras, np.diag([-0.5, -0.25, 1, 1]))
    write_map_nrrd(tmp_path / "2.nrrd", flat, oblique())  # one slice in space
    again = read_image(tmp_path / "2.nrrd")
    np.testing.assert_array_equal(again.array, flat[None].astype(np.float32))
    np.testing.assert_allclose(again.ijk_to_ras, oblique(), atol=1e-12)
    mapped = np.lib.format.open_memmap(tmp_path / "m.npy", mode="w+", dtype=np.float32, shape=(3, 4, 5))
    mapped[:] = RNG.random((3, 4, 5))
    write_map_nrrd(tmp_path / "m.nrrd", mapped, oblique())
    np.testing.assert_array_equal(read_image(tmp_path / "m.nrrd").array, mapped)
    with pytest.raises(InputError, match="shape"):
        write_map_nrrd(tmp_path / "x.nrrd", np.zeros((2, 3, 4, 5)), np.eye(4))
    with pytest.raises(InputError, match="invertible"):
        write_map_nrrd(tmp_path / "x.nrrd", np.zeros((2, 3)), np.zeros((4, 4)))
    assert not (tmp_path / "x.nrrd").exists()


def read_segmentation(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray], np.ndarray]:
    """Read a .seg.nrrd from the format's own description: header, masks by segment name, LPS matrix."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    lines = head.decode("utf-8").splitlines()
    assert lines[0].startswith("NRRD000")
    keys = dict(line.split(":=", 1) for line in lines[1:] if ":=" in line)
    fields = dict(line.split(": ", 1) for line in lines[1:] if ":=" not in line)
    sizes = [int(size) for size in fields["sizes"].split()]
    assert len(sizes) == int(fields["dimension"]) == len(fields["kinds"].split())
    data = np.frombuffer(gzip.decompress(body), np.uint8).reshape(sizes[::-1])
    directions = fields["space directions"].split()
    if len(sizes) == 4:
        assert fields["kinds"].split()[0] == "list" and directions.pop(0) == "none"
    layers = data[..., None] if len(sizes) == 3 else data
    masks = {}
    for number in range(sum(key.endswith("_ID") for key in keys)):
        prefix = f"Segment{number}_"
        layer = layers[..., int(keys[prefix + "Layer"])]
        masks[keys[prefix + "Name"]] = layer == int(keys[prefix + "LabelValue"])
    vectors = [[float(value) for value in text.strip("()").split(",")] for text in directions]
    matrix = np.eye(4)
    matrix[:3, :3] = np.transpose(vectors)
    matrix[:3, 3] = [float(value) for value in fields["space origin"].strip("()").split(",")]
    return keys, masks, matrix


def test_segmentation_without_and_with_overlap(tmp_path):
    shape, matrix = (6, 7, 8), oblique(2)
    one, two, both, empty = (np.zeros(shape, bool) for _ in range(4))
    one[1:3, 2:5, 0:4] = True
    two[4:6, 1:6, 3:7] = True
    both[2:5, 2:5, 2:5] = True
    tags = {"MedCLIPSAM.Prompt": "a|b: 腫瘍", "Segmentation.Status": "inprogress"}
    path = tmp_path / "Bäckerei 頭部.seg.nrrd"
    write_segmentation_nrrd(
        path,
        [Segment("lésion", one, (1, 0.5, 0), tags), Segment("two", two, (0, 0, 1)), Segment("no", empty, (0, 1, 0))],
        matrix,
    )
    keys, masks, lps = read_segmentation(path)
    assert {key: keys[f"Segment0_{key}"] for key in ("ID", "Color", "Extent", "LabelValue", "Layer", "Tags")} == {
        "ID": "Segment_1",
        "Color": "1 0.5 0",
        "Extent": "0 3 2 4 1 2",
        "LabelValue": "1",
        "Layer": "0",
        "Tags": "MedCLIPSAM.Prompt:a/b: 腫瘍|Segmentation.Status:inprogress|",
    }
    assert keys["Segment1_Layer"] == "0" and keys["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    assert keys["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert keys["Segmentation_MasterRepresentation"] == keys["Segmentation_SourceRepresentation"] == "Binary labelmap"
    np.testing.assert_allclose(LPS_RAS @ lps, matrix, atol=1e-14)
    for name, mask in (("lésion", one), ("two", two), ("no", empty)):
        np.testing.assert_array_equal(masks[name], mask)
    itk = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk), one + 2 * two.astype(np.uint8))

    write_segmentation_nrrd(path, [Segment(n, m, (1, 0, 0)) for n, m in (("1", one), ("2", two), ("3", both))], matrix)
    keys, masks, lps = read_segmentation(path)
    assert [keys[f"Segment{number}_Layer"] for number in range(3)] == ["0", "0", "1"]
    for name, mask in (("1", one), ("2", two), ("3", both)):
        np.testing.assert_array_equal(masks[name], mask)
    np.testing.assert_allclose(LPS_RAS @ lps, matrix, atol=1e-14)
    itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # ITK takes the list for channels
    assert itk.shape == (*shape, 2)
    np.testing.assert_array_equal(itk[..., 1] > 0, both)

    write_segmentation_nrrd(path, [Segment("a\\b\nc", one, (1, 0, 0))], matrix)
    assert read_segmentation(path)[0]["Segment0_Name"] == "a\\\\b\\nc"
    with pytest.raises(InputError, match="'x' has shape"):
        write_segmentation_nrrd(path, [Segment("1", one, (1, 0, 0)), Segment("x", one[1:], (1, 0, 0))], matrix)
    with pytest.raises(InputError, match="0 segments"):
        write_segmentation_nrrd(path, [], matrix)


def test_mask_png_and_json(tmp_path):
    mask = RNG.random((20, 30)) > 0.5
    write_mask_png(tmp_path / "頭.png", mask)
    np.testing.assert_array_equal(read_image(tmp_path / "頭.png").array, mask * np.uint8(255))
    with pytest.raises(InputError, match="shape"):
        write_mask_png(tmp_path / "x.png", np.zeros((2, 3, 4), bool))
    segment = Segment("a", mask[:1, :2], (0.5, 0, 0))
    content = {
        "prompt": "Läsion 腫瘍",
        "dsc": np.float32(0.5),
        "nsd": float("nan"),
        "boxes": np.array([[1, 2, 3, 4]]),
        "flags": (np.bool_(True), None),
        "path": Path("a") / "b",
        "segment": segment,
        "broken name": "\udcff",
    }
    write_json(tmp_path / "r.json", content)
    stored = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert stored["prompt"] == "Läsion 腫瘍" and "腫瘍" in (tmp_path / "r.json").read_text("utf-8")
    assert stored["dsc"] == 0.5 and stored["nsd"] is None and stored["boxes"] == [[1, 2, 3, 4]]
    assert stored["flags"] == [True, None] and stored["path"] == str(Path("a") / "b")
    assert stored["segment"]["mask"] == mask[:1, :2].tolist()
    with pytest.raises(InputError, match="object"):
        write_json(tmp_path / "r.json", {"x": object()})
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == stored  # what stood there still stands


def writers(path: Path) -> list:
    noise = RNG.random((20, 200, 200), dtype=np.float32)
    return [
        lambda: write_mask_png(path, noise.reshape(2000, 400) > 0.5),
        lambda: write_map_nrrd(path, noise, np.eye(4)),
        lambda: write_segmentation_nrrd(path, [Segment("a", noise > 0.5, (1, 0, 0))], np.eye(4)),
        lambda: write_json(path, {"noise": noise[0]}),
    ]


def test_a_file_that_cannot_grow_leaves_nothing_behind(tmp_path):
    """The kernel itself refuses to let files grow beyond 20 kB: a write fails half way, as on a full disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "result"
    path.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in writers(path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(OutputError, match=r"result cannot be written \(File too large\)"):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [one.name for one in tmp_path.iterdir()] == ["result"] and path.read_text() == "before"


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in writers(tmp_path / "result"):
        with pytest.raises(OutputError, match=r"the disk is full \(\d+ MB free\)"):
            write()
        assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for write in writers(tmp_path / "file" / "below" / "result"):
        with pytest.raises(OutputError, match="choose another output folder"):
            write()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"file.*cannot be written"):
            check_output_folder(folder)
    with pytest.raises(OutputError, match="cannot be written"):
        check_output_folder("/proc/none/such" if Path("/proc").is_dir() else tmp_path / "file")
    made = check_output_folder(str(tmp_path / "Bäckerei 頭部" / "deep"))
    assert made.is_dir() and not list(made.iterdir())
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="taken"):  # a folder stands where the file should go
        write_json(tmp_path / "taken", {})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["Bäckerei 頭部", "file", "taken"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x.bin") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
