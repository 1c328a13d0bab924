"""The scene outside Slicer: loading as Slicer loads, saving, reading back, pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed (pip install slicer-core)")

import SimpleITK as sitk

from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError, OutputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.mrml import displayed_window, ijk_to_ras, is_colour, volume_array
from MedCLIPSAMLib.mrml_overlays import find_overlay, overlay_array, overlay_slice, publish_overlay, show_overlay
from MedCLIPSAMLib.mrml_segments import (
    add_segment,
    find_segment,
    new_segmentation,
    segment_array,
    segment_slice,
    set_segment,
    set_segment_slice,
    tags,
)
from MedCLIPSAMLib.slicer_render import contact_sheet, render_views, save_views

if TYPE_CHECKING:
    from MedCLIPSAMLib.slicer_scene import SlicerScene

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (12, 40, 36)
COSINE, SINE = np.cos(0.12), np.sin(0.12)
MATRIX = np.array([[-0.9, 0, 0, 20], [0, 0.9 * COSINE, -3 * SINE, -15], [0, 0.9 * SINE, 3 * COSINE, -18], [0, 0, 0, 1]])


def _image(shape: tuple[int, ...] = (5, 7, 9)) -> sitk.Image:
    array = np.random.default_rng(0).integers(-500, 500, shape).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.75, 1.25, 3.0))
    image.SetOrigin((-31.5, 12.25, 80.0))
    cosine, sine = np.cos(0.3), np.sin(0.3)
    image.SetDirection((cosine, -sine, 0, sine, cosine, 0, 0, 0, 1))
    return image


def _ball() -> np.ndarray:
    k, j, i = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return ((k - 6) * 3.3) ** 2 + (j - 20) ** 2 + (i - 18) ** 2 < 8**2


@pytest.fixture
def finished(slicer_scene: SlicerScene) -> tuple[Any, Any, Any]:
    return _finished(slicer_scene, MATRIX)


def _finished(slicer_scene: SlicerScene, matrix: np.ndarray) -> tuple[Any, Any, Any]:
    """A volume with a segmentation and a saliency overlay, as a run leaves them."""
    volume = slicer_scene.add_volume(np.full(SHAPE, 100, np.int16), matrix, "image", (0.0, 200.0))
    segmentation = new_segmentation(slicer_scene.scene, volume, "image segmentation")
    segment = add_segment(segmentation, "mass", (0, 1, 0), {"MedCLIPSAM.Prompt": "mass", "MedCLIPSAM.Role": "mask"})
    set_segment(segmentation, volume, segment, _ball())
    saliency = np.zeros(SHAPE, np.float32)
    saliency[:, :, 18:] = 1.0
    overlay = publish_overlay(slicer_scene.scene, volume, "saliency", "mass", saliency, 0)
    return volume, segmentation, overlay


@pytest.mark.parametrize("name", ["x.nrrd", "x.nii", "x.nii.gz", "x.mha"])
def test_volume_files_keep_voxels_and_geometry(slicer_scene: SlicerScene, tmp_path: Path, name: str) -> None:
    sitk.WriteImage(_image(), str(tmp_path / name))
    node = slicer_scene.load_volume(tmp_path / name)
    expected = read_image(tmp_path / name)
    assert node.GetName() == "x"
    np.testing.assert_array_equal(volume_array(node), expected.array)
    np.testing.assert_allclose(ijk_to_ras(node), expected.ijk_to_ras, atol=2e-6)
    red = slicer_scene.slice_logics["Red"].GetSliceCompositeNode()
    assert red.GetBackgroundVolumeID() == node.GetID()


def test_a_dicom_series_keeps_voxels_and_geometry(slicer_scene: SlicerScene, data_dir: Path) -> None:
    folders = sorted({file.parent for file in data_dir.rglob("*.dcm")})
    if not folders:
        pytest.skip(f"no DICOM series below {data_dir}")
    node = slicer_scene.load_volume(folders[0])
    expected = read_image(folders[0])
    np.testing.assert_array_equal(volume_array(node).squeeze(), expected.array.squeeze())


def test_a_written_dicom_series(slicer_scene: SlicerScene, tmp_path: Path) -> None:
    image = _image()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(image.GetDirection(), (3, 3))
    for number in range(image.GetSize()[2]):
        plane = image[:, :, number]
        position = image.TransformIndexToPhysicalPoint((0, 0, number))
        for key, value in {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.4.{number + 1}",
            "0020|000d": "1.2.3.5",
            "0020|000e": "1.2.3.6",
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{one:.8f}" for one in position),
            "0020|0037": "\\".join(f"{one:.10f}" for one in (*direction[:, 0], *direction[:, 1])),
        }.items():
            plane.SetMetaData(key, value)
        writer.SetFileName(str(tmp_path / f"{9 - number}.dcm"))  # the names run against the positions
        writer.Execute(plane)
    node = slicer_scene.load_volume(tmp_path)
    expected = read_image(tmp_path)
    np.testing.assert_array_equal(volume_array(node), expected.array)
    np.testing.assert_allclose(ijk_to_ras(node), expected.ijk_to_ras, atol=1e-5)


def test_pictures_load_as_in_slicer(slicer_scene: SlicerScene, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 255, (8, 11)), rng.integers(0, 255, (8, 11, 3))
    for number in range(3):  # numbered siblings are not a stack
        Image.fromarray(grey.astype(np.uint8)).save(tmp_path / f"grey{number}.png")
    Image.fromarray(colour.astype(np.uint8)).save(tmp_path / "colour.png")
    node = slicer_scene.load_volume(tmp_path / "grey1.png")
    np.testing.assert_array_equal(volume_array(node), grey[None])
    node = slicer_scene.load_volume(tmp_path / "colour.png")
    assert is_colour(node)
    np.testing.assert_array_equal(volume_array(node), colour[None])


def test_what_cannot_be_loaded_leaves_no_node(slicer_scene: SlicerScene, tmp_path: Path) -> None:
    before = slicer_scene.scene.GetNumberOfNodes()
    (tmp_path / "broken.nrrd").write_bytes(b"NRRD0004\ntype: short\n")
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "x.seg.nrrd").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("broken.nrrd", "text.txt", "x.seg.nrrd", "empty", "missing.nrrd"):
        with pytest.raises(InputError):
            slicer_scene.load_volume(tmp_path / name)
    assert slicer_scene.scene.GetNumberOfNodes() == before


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_scene_survives_saving_and_loading(slicer_scene: SlicerScene, tmp_path: Path, mirrored: bool) -> None:
    """Slicer reverses the slices of a left-handed volume when it reads it: voxels stay where they are in the world."""
    volume, _, overlay = _finished(slicer_scene, MATRIX if mirrored else MATRIX @ np.diag([-1, 1, 1, 1.0]))
    mask, saliency = _ball(), overlay_array(overlay)
    mask[2, 3:5] = True
    saliency[4, 5:7] = 0.25
    segmentation = slicer_scene.scene.GetFirstNodeByName("image segmentation")
    set_segment(segmentation, volume, find_segment(segmentation, "mass", "mask"), mask)
    publish_overlay(slicer_scene.scene, volume, "saliency", "mass", saliency, 0)
    planes = [np.random.default_rng(axis).random(np.delete(SHAPE, axis)).astype(np.float32) for axis in (0, 1)]
    publish_overlay(slicer_scene.scene, volume, "entropy", "mass", planes[0], 0, 5)
    publish_overlay(slicer_scene.scene, volume, "entropy", "cyst", planes[1], 1, 7)
    overlay.GetDisplayNode().SetThreshold(0.4, 1.5)
    show_overlay(slicer_scene.scene, overlay, 0.7)
    colours = _colours(overlay)
    path = slicer_scene.save_scene(tmp_path / "scene.mrb")
    assert [one.name for one in tmp_path.iterdir()] == ["scene.mrb"]
    slicer_scene.load_scene(path)

    scene = slicer_scene.scene
    again = scene.GetFirstNodeByName("image")
    assert again is not volume
    node = scene.GetFirstNodeByName("image segmentation")
    segment = find_segment(node, "mass", "mask")
    assert segment is not None
    assert tags(node, segment) == {"MedCLIPSAM.Prompt": "mass", "MedCLIPSAM.Role": "mask"}
    if mirrored:
        mask, saliency, planes[1] = mask[::-1].copy(), saliency[::-1], planes[1][::-1]
    assert (segment_array(node, again, segment) == mask).all()
    for index in range(SHAPE[0]):
        assert (segment_slice(node, again, segment, 0, index) == mask[index]).all()
    mask[2, 3:9] = True
    set_segment_slice(node, again, segment, 0, 2, mask[2])
    assert (segment_array(node, again, segment) == mask).all()
    found = find_overlay(scene, again, "saliency", "mass")
    np.testing.assert_array_equal(overlay_array(found), saliency)
    for prompt, plane, place in (("mass", planes[0], (0, 6 if mirrored else 5)), ("cyst", planes[1], (1, 7))):
        entropy = find_overlay(scene, again, "entropy", prompt)
        assert overlay_slice(entropy) == place
        np.testing.assert_array_equal(overlay_array(entropy), plane)
    display = found.GetDisplayNode()
    assert (display.GetLowerThreshold(), display.GetApplyThreshold()) == (0.4, 1)
    np.testing.assert_allclose(_colours(found), colours, atol=1 / 255)
    before = scene.GetNumberOfNodes()
    assert publish_overlay(scene, again, "saliency", "mass", saliency, 0) is found
    assert scene.GetNumberOfNodes() == before
    assert displayed_window(again) == pytest.approx((0, 200))
    red = slicer_scene.slice_logics["Red"].GetSliceCompositeNode()
    assert red.GetForegroundVolumeID() == found.GetID()
    show_overlay(scene, None, 0.0)
    assert red.GetForegroundVolumeID() is None


def _colours(overlay: Any) -> np.ndarray:
    table = overlay.GetDisplayNode().GetColorNode().GetLookupTable()
    return np.array([table.GetTableValue(number) for number in range(256)])


def test_nothing_half_written_remains(
    slicer_scene: SlicerScene, finished: tuple[Any, Any, Any], tmp_path: Path, vtk_errors: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for save in (
        lambda path: slicer_scene.save_scene(path.with_suffix(".mrb")),
        lambda path: slicer_scene.save_segmentation(finished[1], path.with_suffix(".seg.nrrd")),
    ):
        with pytest.raises(OutputError):
            save(tmp_path / "file" / "x")
    with pytest.raises(InputError):
        slicer_scene.save_scene(tmp_path / "x.zip")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_close_lets_go_of_everything() -> None:
    from MedCLIPSAMLib.slicer_scene import SlicerScene

    built, gone = SlicerScene(), []
    built.add_volume(np.zeros(SHAPE, np.uint8), np.eye(4), "x")
    folder = built._folder
    for name, one in {"scene": built.scene, "application": built.application, **built.logics}.items():
        one.AddObserver("DeleteEvent", lambda *_, name=name: gone.append(name))
    expected = {"scene", "application", *built.logics}
    del one
    built.close()
    built.close()
    assert set(gone) == expected
    assert not folder.exists()


# Pictures


def _drawn(slicer_scene: SlicerScene, *nodes: Any, **settings: Any) -> dict[str, np.ndarray]:
    volume, segmentation, overlay = nodes
    try:
        return render_views(slicer_scene, volume, overlay=overlay, segmentation=segmentation, size=200, **settings)
    except MedCLIPSAMError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def test_pictures_show_image_overlay_and_segment_where_they_are(
    slicer_scene: SlicerScene, finished: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    volume, segmentation, overlay = finished
    pictures = _drawn(slicer_scene, volume, segmentation, overlay, centre=tuple(MATRIX[:3] @ [18, 20, 6, 1]))
    assert list(pictures) == ["axial", "sagittal", "coronal", "3d"]
    axial = pictures["axial"].astype(int)
    assert axial.shape == (200, 200, 3)
    # I runs to the patient's left, so the overlay (I >= 18) is in the view's right half; 100 of 0 to 200 is mid grey
    plain, covered = axial[100, 30], axial[100, 170]
    assert np.abs(plain - 127).max() < 8
    assert covered[0] > plain[0] + 20
    assert covered[2] < covered[0] - 20  # the top of the ramp is yellow
    # the segment makes both sides of its middle greener
    for outside, inside in ((plain, axial[100, 85]), (covered, axial[100, 115])):
        assert (inside - outside)[1] - (inside - outside)[[0, 2]].max() > 10
    threed = pictures["3d"].reshape(-1, 3).astype(int)
    assert ((threed[:, 1] - threed[:, [0, 2]].max(axis=1)) > 40).mean() > 0.005  # the green surface
    paths = save_views(pictures, tmp_path / "new")
    assert {one.name for one in (tmp_path / "new").iterdir()} == {f"{name}.png" for name in (*pictures, "views")}
    assert paths["views"].read_bytes()[:4] == b"\x89PNG"


def test_a_single_slice_is_drawn_only_in_its_plane(slicer_scene: SlicerScene) -> None:
    frame = np.zeros((1, 40, 50, 3), np.uint8)
    frame[..., 0] = 255
    volume = slicer_scene.add_volume(frame, np.diag([-1.0, -1, 1, 1]), "frame")
    pictures = _drawn(slicer_scene, volume, None, None)
    assert list(pictures) == ["axial", "3d"]
    assert pictures["axial"][100, 100].tolist() == [255, 0, 0]
    assert contact_sheet(pictures).shape == (200, 404, 3)


def test_without_opengl_the_remedy_is_said(tmp_path: Path) -> None:
    code = (
        "from MedCLIPSAMLib import slicer_render\n"
        "from MedCLIPSAMLib.errors import MedCLIPSAMError\n"
        "try:\n    slicer_render._check_drawing()\n"
        "except MedCLIPSAMError as error:\n    raise SystemExit('remedy' if 'apt-get' in str(error) else 1)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["__EGL_VENDOR_LIBRARY_FILENAMES"] = str(tmp_path / "none.json")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "remedy" in done.stderr, done.stderr
