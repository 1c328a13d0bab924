"""MRML volumes, segments, tags, snapshots and overlays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed (pip install slicer-core)")

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.mrml import displayed_window, is_colour, slice_position, volume_array, volume_view
from MedCLIPSAMLib.mrml_overlays import (
    colour_table,
    find_overlay,
    find_overlays,
    overlay_array,
    overlay_slice,
    publish_overlay,
    show_overlay,
)
from MedCLIPSAMLib.mrml_segments import (
    add_segment,
    find_segment,
    new_segmentation,
    own_segments,
    restore,
    segment_array,
    segment_slice,
    set_segment,
    set_segment_slice,
    set_tags,
    snapshot,
    tags,
    terminology_for,
    update_surfaces,
)

if TYPE_CHECKING:
    from MedCLIPSAMLib.slicer_scene import SlicerScene

SHAPE = (6, 10, 8)
LABELMAP, SURFACE = "Binary labelmap", "Closed surface"
NAUGHTY = "50% | of: \\n “tumour”\n\tλ ~ ^ 肿瘤 %41"


@pytest.fixture
def volume(slicer_scene: SlicerScene) -> Any:
    array = np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)
    return slicer_scene.add_volume(array, np.diag([-0.8, -0.8, 2.5, 1.0]), "image", (-100.0, 300.0))


@pytest.fixture
def segmentation(slicer_scene: SlicerScene, volume: Any) -> Any:
    return new_segmentation(slicer_scene.scene, volume, "result")


def _ball(radius: float = 2.5) -> np.ndarray:
    k, j, i = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return (k - 3) ** 2 + (j - 5) ** 2 + (i - 4) ** 2 < radius**2


def _add(segmentation: Any, prompt: str = "mass", role: str = "mask") -> str:
    return add_segment(segmentation, prompt, (0, 1, 0), {"MedCLIPSAM.Prompt": prompt, "MedCLIPSAM.Role": role})


def _node_ids(scene: Any) -> set[str]:
    return {scene.GetNthNode(number).GetID() for number in range(scene.GetNumberOfNodes())}


# Volumes


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_a_volume_gives_its_own_type_and_a_copy(slicer_scene: SlicerScene, kind: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    volume = slicer_scene.add_volume(array, np.eye(4), "x")
    copy = volume_array(volume)
    assert copy.dtype == array.dtype
    np.testing.assert_array_equal(copy, array)
    copy[:] = 0
    np.testing.assert_array_equal(volume_view(volume), array)


def test_alpha_is_dropped(slicer_scene: SlicerScene) -> None:
    array = np.random.default_rng(0).integers(0, 255, (1, 4, 5, 4)).astype(np.uint8)
    volume = slicer_scene.add_volume(array, np.eye(4), "x")
    assert is_colour(volume)
    np.testing.assert_array_equal(volume_array(volume), array[..., :3])
    assert displayed_window(volume) is None


def test_the_displayed_window_is_the_user_s(volume: Any) -> None:
    assert displayed_window(volume) == pytest.approx((-100, 300))
    volume.GetDisplayNode().SetWindowLevelMinMax(10, 20)
    assert displayed_window(volume) == pytest.approx((10, 20))


def test_unusable_volumes_are_refused_with_the_reason(slicer_scene: SlicerScene, volume: Any) -> None:
    scene, node = slicer_scene.scene, slicer_scene.slice_logics["Red"].GetSliceNode()
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    flat = slicer_scene.add_volume(np.zeros((2, 3, 4), np.uint8), np.diag([1.0, 1, 1, 1]), "flat")
    flat.SetIJKToRASDirections(1, 0, 0, 1, 0, 0, 0, 0, 1)
    series = slicer_scene.add_volume(np.zeros((2, 3, 4, 7), np.uint8), np.eye(4), "series")
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", "model")
    before = _node_ids(scene)
    for bad, reason in ((empty, "no image"), (flat, "inverted"), (series, "7 values"), (model, "not a volume")):
        with pytest.raises(InputError, match=reason):
            volume_array(bad)
        with pytest.raises(InputError, match=reason):
            slice_position(node, bad)
        with pytest.raises(InputError, match=reason):
            new_segmentation(scene, bad, "x")
        with pytest.raises(InputError, match=reason):
            publish_overlay(scene, bad, "saliency", "x", np.zeros((2, 3, 4), np.float32), 0)
    assert _node_ids(scene) == before
    scene.RemoveNode(volume)
    with pytest.raises(InputError, match="not in the scene"):
        volume_array(volume)
    with pytest.raises(InputError, match="no volume"):
        volume_array(None)


# Segments


def test_a_new_segmentation_stands_beside_its_volume(slicer_scene: SlicerScene, volume: Any) -> None:
    import slicer

    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer_scene.scene)
    study = tree.CreateStudyItem(tree.GetSceneItemID(), "study")
    tree.CreateItem(study, volume)
    transform = slicer_scene.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    volume.SetAndObserveTransformNodeID(transform.GetID())
    node = new_segmentation(slicer_scene.scene, volume, "result")
    overlay = publish_overlay(slicer_scene.scene, volume, "saliency", "x", np.zeros(SHAPE, np.float32), 0)
    for one in (node, overlay):
        assert tree.GetItemParent(tree.GetItemByDataNode(one)) == study
        assert one.GetParentTransformNode() is transform
    assert node.GetNodeReferenceID("referenceImageGeometryRef") == volume.GetID()


def test_a_user_s_segmentation_keeps_its_reference_geometry(slicer_scene: SlicerScene, volume: Any) -> None:
    other = slicer_scene.add_volume(np.zeros((3, 3, 3), np.uint8), np.diag([5.0, 5, 5, 1]), "other")
    users = new_segmentation(slicer_scene.scene, other, "user's")
    before = users.GetSegmentation().GetConversionParameter("Reference image geometry")
    segment = _add(users)
    set_segment(users, volume, segment, _ball())
    set_segment_slice(users, volume, segment, 0, 1, _ball()[3])
    expected = _ball()
    expected[1] = _ball()[3]
    assert (segment_array(users, volume, segment) == expected).all()
    assert users.GetSegmentation().GetConversionParameter("Reference image geometry") == before


def test_foreign_segments_are_never_touched(segmentation: Any, volume: Any) -> None:
    """Neither their voxels nor their closed surfaces, also when they share a layer with ours."""
    core = segmentation.GetSegmentation()
    foreign = core.AddEmptySegment("liver", "liver")
    users = _ball(4.0)
    set_segment(segmentation, volume, foreign, users)
    mine = _add(segmentation)
    set_segment(segmentation, volume, mine, ~users)
    core.CollapseBinaryLabelmaps(False)
    assert core.GetNumberOfLayers() == 1
    assert core.CreateRepresentation(SURFACE)
    surface = core.GetSegment(foreign).GetRepresentation(SURFACE)
    labelmap = core.GetSegment(foreign).GetRepresentation(LABELMAP)
    modified = core.GetSegment(foreign).GetMTime()

    for step, plane in enumerate((~users[2], users[2], np.ones(SHAPE[1:], bool))):  # the last two overlap the liver
        set_segment_slice(segmentation, volume, mine, 0, 2, plane)
        assert (segment_slice(segmentation, volume, mine, 0, 2) == plane).all()
        assert (segment_array(segmentation, volume, foreign) == users).all()
        assert core.GetNumberOfLayers() == (1 if step == 0 else 2)
    set_segment(segmentation, volume, mine, np.ones(SHAPE, bool))
    restore(segmentation, snapshot(segmentation))
    set_tags(segmentation, mine, {"MedCLIPSAM.Decision": "accepted"})
    assert core.GetSegment(foreign).GetRepresentation(SURFACE) is surface
    assert core.GetSegment(foreign).GetRepresentation(LABELMAP) is labelmap
    assert core.GetSegment(foreign).GetMTime() == modified
    assert (segment_array(segmentation, volume, foreign) == users).all()
    assert own_segments(segmentation) == [mine]


def test_an_outdated_surface_is_dropped_and_made_again(segmentation: Any, volume: Any) -> None:
    core = segmentation.GetSegmentation()
    mine, other = _add(segmentation), _add(segmentation, "other")
    for one in (mine, other):
        set_segment(segmentation, volume, one, _ball())
    assert not update_surfaces(segmentation)
    segmentation.CreateClosedSurfaceRepresentation()
    before = core.GetSegment(mine).GetRepresentation(SURFACE).GetNumberOfPoints()
    kept = core.GetSegment(other).GetRepresentation(SURFACE)
    set_segment_slice(segmentation, volume, mine, 0, 3, np.zeros(SHAPE[1:], bool))
    assert core.GetSegment(mine).GetRepresentation(SURFACE) is None
    assert update_surfaces(segmentation)
    assert not update_surfaces(segmentation)
    assert core.GetSegment(mine).GetRepresentation(SURFACE).GetNumberOfPoints() not in (0, before)
    assert core.GetSegment(other).GetRepresentation(SURFACE) is kept
    third = _add(segmentation, "third")
    set_segment(segmentation, volume, third, _ball())
    update_surfaces(segmentation)
    assert core.GetSegment(third).GetRepresentation(SURFACE).GetNumberOfPoints() > 0


def test_views_hear_of_a_changed_slice(segmentation: Any, volume: Any) -> None:
    import slicer

    mine = _add(segmentation)
    set_segment(segmentation, volume, mine, _ball())
    image = segmentation.GetSegmentation().GetSegment(mine).GetRepresentation(LABELMAP)
    time, heard = image.GetMTime(), []
    segmentation.AddObserver(slicer.vtkSegmentation.SourceRepresentationModified, lambda *_: heard.append(1))
    set_segment_slice(segmentation, volume, mine, 0, 3, _ball()[2])
    assert heard
    assert segmentation.GetSegmentation().GetSegment(mine).GetRepresentation(LABELMAP).GetMTime() > time


def test_what_does_not_fit_is_refused_and_changes_nothing(segmentation: Any, volume: Any) -> None:
    mine = _add(segmentation)
    set_segment(segmentation, volume, mine, _ball())
    for bad in (_ball().T, _ball()[None], _ball().astype(np.float32)):
        with pytest.raises(InputError):
            set_segment(segmentation, volume, mine, bad)
    for axis, index, plane in ((0, 6, _ball()[0]), (3, 0, _ball()[0]), (0, -1, _ball()[0]), (1, 0, _ball()[0])):
        with pytest.raises(InputError):
            set_segment_slice(segmentation, volume, mine, axis, index, plane)
    for call in (segment_array, lambda *one: set_segment(*one, _ball())):
        with pytest.raises(InputError, match="nope"):
            call(segmentation, volume, "nope")
    assert (segment_array(segmentation, volume, mine) == _ball()).all()
    assert list(segmentation.GetSegmentation().GetSegmentIDs()) == [mine]


def test_a_segmentation_of_surfaces_is_refused(segmentation: Any, volume: Any) -> None:
    segmentation.GetSegmentation().SetSourceRepresentationName(SURFACE)
    with pytest.raises(InputError, match="Closed surface"):
        _add(segmentation)


def test_integer_masks_count_as_yes_and_no(segmentation: Any, volume: Any) -> None:
    mine = _add(segmentation)
    set_segment(segmentation, volume, mine, _ball().astype(np.uint8) * 255)
    assert (segment_array(segmentation, volume, mine) == _ball()).all()
    set_segment_slice(segmentation, volume, mine, 0, 0, np.full(SHAPE[1:], 7, np.int64))
    assert segment_slice(segmentation, volume, mine, 0, 0).all()


def test_the_caller_s_mask_is_not_kept(segmentation: Any, volume: Any) -> None:
    mine, mask = _add(segmentation), _ball()
    set_segment(segmentation, volume, mine, mask)
    mask[:] = True
    assert (segment_array(segmentation, volume, mine) == _ball()).all()


def test_a_segment_painted_elsewhere_is_read_at_the_nearest_voxels(slicer_scene: SlicerScene, volume: Any) -> None:
    fine = slicer_scene.add_volume(np.zeros((12, 20, 16), np.uint8), np.diag([-0.4, -0.4, 1.25, 1.0]), "fine")
    node = new_segmentation(slicer_scene.scene, fine, "fine")
    segment = _add(node)
    mask = np.zeros((12, 20, 16), bool)
    mask[4:8, 6:10, 2:12] = True
    set_segment(node, fine, segment, mask)
    assert (segment_array(node, volume, segment) == mask[::2, ::2, ::2]).all()
    expected = mask[::2, ::2, ::2].copy()
    expected[5] = True
    set_segment_slice(node, volume, segment, 0, 5, np.ones(SHAPE[1:], bool))
    assert (segment_array(node, volume, segment) == expected).all()


# Tags


def test_tags_survive_a_file(slicer_scene: SlicerScene, segmentation: Any, volume: Any, tmp_path: Path) -> None:
    values = {
        "MedCLIPSAM.Prompt": NAUGHTY,
        "MedCLIPSAM.Seed": 0,
        "MedCLIPSAM.Own_word": "a:b|c",
        "MedCLIPSAM.Preset": "",
    }
    terminology = terminology_for("brain tumor").entry
    mine = add_segment(segmentation, "x\ny", (0.2, 0.4, 0.6), values, terminology)
    set_segment(segmentation, volume, mine, _ball())
    expected = {name: str(value) for name, value in values.items()}
    assert tags(segmentation, mine) == expected
    assert segmentation.GetSegmentation().GetSegment(mine).GetName() == "x y"
    path = slicer_scene.save_segmentation(segmentation, tmp_path / "x.seg.nrrd")
    node = slicer_scene.logics["Segmentations"].LoadSegmentationFromFile(str(path))
    (again,) = own_segments(node)
    assert tags(node, again) == expected
    assert find_segment(node, NAUGHTY, "mask") is None
    segment = node.GetSegmentation().GetSegment(again)
    assert segment.GetColor() == pytest.approx((0.2, 0.4, 0.6), abs=1e-5)
    assert segment.GetTerminology() == terminology
    assert (segment_array(node, volume, again) == _ball()).all()


def test_tags_are_replaced_removed_and_checked(segmentation: Any) -> None:
    mine = _add(segmentation)
    set_tags(segmentation, mine, {"MedCLIPSAM.Decision": "accepted", "MedCLIPSAM.Extra": 1})
    set_tags(segmentation, mine, {"MedCLIPSAM.Decision": "", "MedCLIPSAM.Extra": None})
    expected = {"MedCLIPSAM.Prompt": "mass", "MedCLIPSAM.Role": "mask", "MedCLIPSAM.Decision": ""}
    assert tags(segmentation, mine) == expected
    for name in ("Prompt", "MedCLIPSAM.", "MedCLIPSAM.a:b", "MedCLIPSAM.Keys"):
        with pytest.raises(InputError):
            set_tags(segmentation, mine, {name: "x"})
        with pytest.raises(InputError):
            add_segment(segmentation, "x", (1, 0, 0), {name: "x"})
    assert tags(segmentation, mine) == expected
    assert list(segmentation.GetSegmentation().GetSegmentIDs()) == [mine]


def test_segments_are_found_by_prompt_and_role(segmentation: Any) -> None:
    mask, coarse, other = _add(segmentation), _add(segmentation, role="coarse"), _add(segmentation, NAUGHTY)
    segmentation.GetSegmentation().GetSegment(mask).SetName("renamed by the user")
    assert find_segment(segmentation, "mass", "mask") == mask
    assert find_segment(segmentation, "mass", "coarse") == coarse
    assert find_segment(segmentation, NAUGHTY, "mask") == other
    assert find_segment(segmentation, "lung", "mask") is None


@pytest.mark.parametrize(
    ("prompt", "target", "region"),
    [
        ("brain tumor", "SCT^108369006^Neoplasm", "SCT^12738006^Brain"),
        ("Malignant breast tumours", "SCT^108369006^Neoplasm", "SCT^76752008^Breast"),
        ("A brain MRI slice with a heterogeneous glioma and edema", "SCT^108369006^Neoplasm", "SCT^12738006^Brain"),
        ("meningioma", "SCT^108369006^Neoplasm", "SCT^1231004^Meninges"),
        ("lungs", "SCT^39607008^Lung", "^^"),
        ("lung nodule", "SCT^27925004^Nodule", "SCT^39607008^Lung"),
        ("brain with no tumor", "SCT^12738006^Brain", "^^"),
        ("mass", "SCT^4147007^Mass", "^^"),
    ],
)
def test_terminology(prompt: str, target: str, region: str) -> None:
    entry = terminology_for(prompt).entry
    assert entry is not None
    parts = entry.split("~")
    assert len(parts) == 7
    assert all(part.count("^") == 2 for number, part in enumerate(parts) if number not in (0, 4))
    assert (parts[2], parts[5]) == (target, region)
    assert parts[3] == ("SCT^51440002^Right and left" if prompt == "lungs" else "^^")


def test_unknown_prompts_have_a_steady_colour_and_no_code(segmentation: Any) -> None:
    one, again = terminology_for("zebra crossing"), terminology_for("  Crossing ZEBRA ")
    assert one.entry is None
    assert one.colour == again.colour
    assert all(0 <= channel <= 1 for channel in one.colour)
    segment = add_segment(segmentation, "x", one.colour, {"MedCLIPSAM.Prompt": "x"}, one.entry)
    assert not segmentation.GetSegmentation().GetSegment(segment).HasTerminology()


# Undo


def test_restore_brings_back_voxels_names_colours_tags_order_and_display(segmentation: Any, volume: Any) -> None:
    core, display = segmentation.GetSegmentation(), segmentation.GetDisplayNode()
    first, second = _add(segmentation), _add(segmentation, "second")
    foreign = core.AddEmptySegment("user", "user")
    third = _add(segmentation, "third")
    set_segment(segmentation, volume, first, _ball())
    set_segment(segmentation, volume, second, ~_ball())
    set_segment(segmentation, volume, foreign, _ball(1.0))
    display.SetSegmentVisibility(second, False)
    display.SetSegmentOpacity3D(second, 0.3)
    order, before = list(core.GetSegmentIDs()), snapshot(segmentation)
    kept = {one: (segment_array(segmentation, volume, one), tags(segmentation, one)) for one in (first, second, third)}

    set_segment(segmentation, volume, first, np.ones(SHAPE, bool))
    set_segment_slice(segmentation, volume, first, 1, 1, np.zeros((SHAPE[0], SHAPE[2]), bool))
    core.GetSegment(first).SetName("renamed")
    core.GetSegment(first).SetColor(0, 0, 1)
    set_tags(segmentation, first, {"MedCLIPSAM.Decision": "rejected", "MedCLIPSAM.Prompt": "changed"})
    core.RemoveSegment(second)
    core.SetSegmentIndex(third, 0)
    set_segment(segmentation, volume, foreign, _ball(2.0))  # the user went on with this one
    _add(segmentation, "new")
    restore(segmentation, before)

    assert list(core.GetSegmentIDs()) == order
    for one, (mask, its_tags) in kept.items():
        assert (segment_array(segmentation, volume, one) == mask).all()
        assert tags(segmentation, one) == its_tags
    assert (segment_array(segmentation, volume, foreign) == _ball(2.0)).all()
    assert core.GetSegment(first).GetName() == "mass"
    assert core.GetSegment(first).GetColor() == (0, 1, 0)
    assert not display.GetSegmentVisibility(second)
    assert display.GetSegmentOpacity3D(second) == 0.3
    set_segment(segmentation, volume, first, ~_ball())
    restore(segmentation, before)  # a snapshot can be used twice
    assert (segment_array(segmentation, volume, first) == _ball()).all()


def test_a_snapshot_of_a_slice_restores_that_slice(segmentation: Any, volume: Any) -> None:
    mine = _add(segmentation)
    set_segment(segmentation, volume, mine, _ball())
    before = snapshot(segmentation, volume, axis=2, index=4)
    set_segment_slice(segmentation, volume, mine, 2, 4, np.ones(SHAPE[:2], bool))
    set_segment_slice(segmentation, volume, mine, 2, 5, np.ones(SHAPE[:2], bool))
    set_tags(segmentation, mine, {"MedCLIPSAM.Scope": "slice 4 of axis 2"})
    new = _add(segmentation, "new")
    restore(segmentation, before)
    expected = _ball()
    expected[:, :, 5] = True
    assert (segment_array(segmentation, volume, mine) == expected).all()
    assert "MedCLIPSAM.Scope" not in tags(segmentation, mine)
    assert segmentation.GetSegmentation().GetSegment(new) is None
    with pytest.raises(InputError):
        snapshot(segmentation, volume, axis=2, index=99)


# Overlays


def test_overlays_are_found_again_and_not_piled_up(slicer_scene: SlicerScene, volume: Any) -> None:
    scene, rng = slicer_scene.scene, np.random.default_rng(0)
    first = publish_overlay(scene, volume, "saliency", NAUGHTY, rng.random(SHAPE, np.float32), 0)
    first.GetDisplayNode().SetThreshold(0.5, 1.0)
    before = _node_ids(scene)
    for array, index in ((rng.random(SHAPE), None), (rng.random(SHAPE[1:]) > 0.5, 3), (rng.random(SHAPE) > 0.5, None)):
        node = publish_overlay(scene, volume, "saliency", NAUGHTY, array, 0, index)
        assert node is first
        assert overlay_slice(node) == (None if index is None else (0, index))
        np.testing.assert_array_equal(overlay_array(node), array.astype(np.float32))
        assert overlay_array(node).dtype == np.float32
    assert _node_ids(scene) == before
    assert first.GetDisplayNode().GetLowerThreshold() == 0.5  # the user's setting
    other = publish_overlay(scene, volume, "entropy", NAUGHTY, np.zeros(SHAPE, np.float32), 0)
    assert find_overlays(scene, volume) == [first, other]
    assert find_overlay(scene, volume, "entropy", NAUGHTY) is other
    assert find_overlay(scene, volume, "entropy", "x") is None
    elsewhere = slicer_scene.add_volume(np.zeros((2, 3, 4), np.uint8), np.eye(4), "other")
    assert find_overlays(scene, elsewhere) == []


def test_no_nan_reaches_a_node(slicer_scene: SlicerScene, volume: Any) -> None:
    array = np.full(SHAPE, 0.5, np.float32)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    node = publish_overlay(slicer_scene.scene, volume, "entropy", "x", array, 0)
    expected = array.copy()
    expected[0, 0, :3] = 0
    np.testing.assert_array_equal(overlay_array(node), expected)
    assert np.isnan(array[0, 0, 0])
    huge = np.full(SHAPE, 3e38, np.float32)  # sums beyond float32 are no reason to drop values
    np.testing.assert_array_equal(
        overlay_array(publish_overlay(slicer_scene.scene, volume, "entropy", "x", huge, 0)), huge
    )


def test_overlays_that_do_not_fit_leave_the_scene_alone(slicer_scene: SlicerScene, volume: Any) -> None:
    before = _node_ids(slicer_scene.scene)
    flat = np.zeros(SHAPE[1:], np.float32)
    for kind, array, axis, index in (
        ("saliency", flat, 1, 2),
        ("saliency", flat, 0, 6),
        ("saliency", flat, 0, None),
        ("mood", flat, 0, 1),
        ("saliency", flat.astype(complex), 0, 1),
    ):
        with pytest.raises(InputError):
            publish_overlay(slicer_scene.scene, volume, kind, "x", array, axis, index)
    assert _node_ids(slicer_scene.scene) == before


def test_the_display_is_set_up(slicer_scene: SlicerScene, volume: Any) -> None:
    scene = slicer_scene.scene
    for kind, top in (("saliency", 1.0), ("entropy", math.log(2))):
        display = publish_overlay(scene, volume, kind, "x", np.zeros(SHAPE, np.float32), 0).GetDisplayNode()
        assert display.GetColorNode() is colour_table(scene, kind)
        assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == pytest.approx((0, top))
        assert display.GetApplyThreshold()
        assert 0 < display.GetLowerThreshold() < 0.2
        assert display.GetUpperThreshold() > top
        assert not display.GetAutoWindowLevel()
        table = colour_table(scene, kind)
        assert table.GetHideFromEditors()
        assert table.GetNumberOfColors() == 256
        rgba = np.array([table.GetLookupTable().GetTableValue(number) for number in range(256)])
        assert (np.diff(rgba[:, :3] @ (0.2126, 0.7152, 0.0722)) > 0).all()  # lightness rises with the value
        assert (rgba[:, 3] == [0.0] + [1.0] * 255).all()


def test_the_user_s_foreground_comes_back(slicer_scene: SlicerScene, volume: Any) -> None:
    scene = slicer_scene.scene
    users = slicer_scene.add_volume(np.zeros((2, 3, 4), np.uint8), np.eye(4), "pet")
    red = slicer_scene.slice_logics["Red"].GetSliceCompositeNode()
    green = slicer_scene.slice_logics["Green"].GetSliceCompositeNode()
    red.SetForegroundVolumeID(users.GetID())
    red.SetForegroundOpacity(0.35)
    maps = [
        publish_overlay(scene, volume, kind, "x", np.zeros(SHAPE, np.float32), 0) for kind in ("saliency", "entropy")
    ]
    for node in maps:
        show_overlay(scene, node, 0.6)
        assert red.GetForegroundVolumeID() == green.GetForegroundVolumeID() == node.GetID()
        assert red.GetForegroundOpacity() == pytest.approx(0.6)
    show_overlay(scene, None, 0.6)
    assert (red.GetForegroundVolumeID(), red.GetForegroundOpacity()) == (users.GetID(), 0.35)
    assert (green.GetForegroundVolumeID(), green.GetForegroundOpacity()) == (None, 0.0)
    red.SetForegroundOpacity(0.9)
    show_overlay(scene, None, 0.6)
    assert red.GetForegroundOpacity() == 0.9
    show_overlay(scene, maps[0], 0.6)
    scene.RemoveNode(users)
    show_overlay(scene, None, 0.6)
    assert red.GetForegroundVolumeID() is None
