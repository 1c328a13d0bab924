"""Masks and maps land on exactly the voxels that they were computed for, in any geometry."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed (pip install slicer-core)")

import vtk

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.mrml import ijk_to_ras, slice_position, volume_array, volume_view
from MedCLIPSAMLib.mrml_overlays import overlay_array, publish_overlay
from MedCLIPSAMLib.mrml_segments import (
    add_segment,
    new_segmentation,
    segment_array,
    segment_slice,
    set_segment,
    set_segment_slice,
)

if TYPE_CHECKING:
    from MedCLIPSAMLib.slicer_scene import SlicerScene

SHAPE = (5, 7, 6)
SPACING = (0.7, 1.3, 2.9)
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def _matrix(order: tuple[int, ...] = (0, 1, 2), signs: tuple[int, ...] = (1, 1, 1), angle: float = 0.0) -> np.ndarray:
    """An IJK-to-RAS matrix whose axes I, J, K run along the world axes ``order``, turned by ``angle`` degrees."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3)[:, list(order)] * signs * SPACING
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    about_s = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    about_r = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    matrix[:3, :3] = about_s @ about_r @ matrix[:3, :3]
    matrix[:3, 3] = (11.5, -42.25, 7.125)
    return matrix


def _mask(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE) > 0.6


def _volume(built: SlicerScene, matrix: np.ndarray, shape: tuple[int, ...] = SHAPE) -> Any:
    array = np.random.default_rng(1).integers(-900, 900, shape).astype(np.int16)
    return built.add_volume(array, matrix, "image")


def _world_points(mask: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """World positions of all set voxels, by plain arithmetic: what the eye would see."""
    indices = np.argwhere(mask)[:, ::-1]
    points = indices @ matrix[:3, :3].T + matrix[:3, 3]
    return points[np.lexsort(points.round(6).T)]


def _labelmap_points(segmentation: Any, segment_id: str) -> np.ndarray:
    """World positions of a segment's voxels as VTK itself reads them from the label map."""
    labelmap = segmentation.GetSegmentation().GetSegment(segment_id).GetRepresentation("Binary labelmap")
    to_world = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(to_world)
    i0, i1, j0, j1, k0, k1 = labelmap.GetExtent()
    points = [
        to_world.MultiplyPoint((i, j, k, 1))[:3]
        for i, j, k in product(range(i0, i1 + 1), range(j0, j1 + 1), range(k0, k1 + 1))
        if labelmap.GetScalarComponentAsDouble(i, j, k, 0)
    ]
    points = np.array(points).reshape(-1, 3)
    return points[np.lexsort(points.round(6).T)]


def test_all_48_orientations_and_oblique_ones_keep_every_voxel(slicer_scene: SlicerScene) -> None:
    for number, (order, signs) in enumerate(ORIENTATIONS):
        matrix = _matrix(order, signs, angle=0.0 if number % 3 else 17.0)
        volume = _volume(slicer_scene, matrix)
        segmentation = new_segmentation(slicer_scene.scene, volume, "result")
        segment = add_segment(segmentation, "mass", (1, 0, 0), {"MedCLIPSAM.Prompt": "mass"})
        mask = _mask(number)
        set_segment(segmentation, volume, segment, mask)
        assert (segment_array(segmentation, volume, segment) == mask).all()
        np.testing.assert_allclose(_labelmap_points(segmentation, segment), _world_points(mask, matrix), atol=1e-6)
        axis, index = number % 3, (0, 2, SHAPE[number % 3] - 1)[number // 3 % 3]
        plane = np.take(_mask(number + 100), index, axis)
        set_segment_slice(segmentation, volume, segment, axis, index, plane)
        mask[tuple(index if one == axis else slice(None) for one in range(3))] = plane
        assert (segment_array(segmentation, volume, segment) == mask).all()
        np.testing.assert_allclose(_labelmap_points(segmentation, segment), _world_points(mask, matrix), atol=1e-6)
        slicer_scene.scene.RemoveNode(segmentation)
        slicer_scene.scene.RemoveNode(volume)


def test_the_view_of_each_orientation_gives_the_slice_that_it_shows(slicer_scene: SlicerScene) -> None:
    world_axis = {"Red": 2, "Yellow": 0, "Green": 1}
    for order, signs in ORIENTATIONS:
        volume = _volume(slicer_scene, _matrix(order, signs))
        for name, world in world_axis.items():
            ijk_axis = order.index(world)
            for index in (0, SHAPE[2 - ijk_axis] // 2, SHAPE[2 - ijk_axis] - 1):
                ijk = [1.0, 1.0, 1.0]
                ijk[ijk_axis] = index
                point = ijk_to_ras(volume)[:3] @ [*ijk, 1.0]
                node = slicer_scene.slice_logics[name].GetSliceNode()
                node.JumpSliceByOffsetting(*point)
                position = slice_position(node, volume)
                assert (position.axis, position.index, position.inside) == (2 - ijk_axis, index, True)
                assert position.angle < 0.001
        slicer_scene.scene.RemoveNode(volume)


def test_a_sagittal_acquisition_is_cut_across_by_the_axial_view(slicer_scene: SlicerScene) -> None:
    """As MRHead: the array's first axis runs from right to left, the axial view shows slices along J."""
    volume = _volume(slicer_scene, _matrix(order=(1, 2, 0), signs=(-1, -1, -1)))
    node = slicer_scene.slice_logics["Red"].GetSliceNode()
    node.JumpSliceByOffsetting(*(ijk_to_ras(volume)[:3] @ [2, 4, 1, 1]))
    position = slice_position(node, volume)
    assert (position.axis, position.index) == (1, 4)
    segmentation = new_segmentation(slicer_scene.scene, volume, "result")
    segment = add_segment(segmentation, "x", (1, 0, 0), {"MedCLIPSAM.Prompt": "x"})
    plane = volume_view(volume)[:, 4, :] > 0
    set_segment_slice(segmentation, volume, segment, 1, 4, plane)
    expected = np.zeros(SHAPE, bool)
    expected[:, 4, :] = plane
    assert (segment_array(segmentation, volume, segment) == expected).all()


def test_an_oblique_view_says_how_oblique_it_is(slicer_scene: SlicerScene) -> None:
    volume = _volume(slicer_scene, _matrix())
    node = slicer_scene.slice_logics["Red"].GetSliceNode()
    cosine, sine = np.cos(np.radians(12)), np.sin(np.radians(12))
    x, y, z = ijk_to_ras(volume)[:3] @ [3, 3, 2, 1]
    node.SetSliceToRASByNTP(0, -sine, cosine, 1, 0, 0, x, y, z, 0)
    position = slice_position(node, volume)
    assert (position.axis, position.index) == (0, 2)
    assert position.angle == pytest.approx(12, abs=1e-6)
    node.RotateToVolumePlane(volume)
    assert slice_position(node, volume).angle < 1e-3


def test_a_view_beside_the_volume_is_outside_and_names_the_nearest_slice(slicer_scene: SlicerScene) -> None:
    volume = _volume(slicer_scene, _matrix())
    node = slicer_scene.slice_logics["Red"].GetSliceNode()
    for step, index in ((-3.0, 0), (SHAPE[0] + 2.0, SHAPE[0] - 1)):
        node.JumpSliceByOffsetting(*(ijk_to_ras(volume)[:3] @ [3, 3, step, 1]))
        position = slice_position(node, volume)
        assert (position.index, position.inside) == (index, False)
    node.JumpSliceByOffsetting(*(ijk_to_ras(volume)[:3] @ [3, 3, -0.45, 1]))
    assert slice_position(node, volume).inside


@pytest.mark.parametrize("sheared", [False, True])
def test_a_volume_under_a_linear_transform(
    slicer_scene: SlicerScene, add_transform: Callable[[np.ndarray], Any], sheared: bool
) -> None:
    moved = _matrix((1, 0, 2), (1, -1, 1), 31.0)
    moved[:3, :3] /= SPACING
    if sheared:
        moved[0, 1] += 0.3
    volume = _volume(slicer_scene, _matrix(angle=9.0))
    transform = add_transform(moved)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    segmentation = new_segmentation(slicer_scene.scene, volume, "result")
    assert segmentation.GetParentTransformNode() is transform
    segment = add_segment(segmentation, "x", (1, 0, 0), {"MedCLIPSAM.Prompt": "x"})
    mask = _mask(3)
    set_segment(segmentation, volume, segment, mask)
    np.testing.assert_allclose(_labelmap_points(segmentation, segment), _world_points(mask, ijk_to_ras(volume)))
    to_world = moved @ ijk_to_ras(volume)
    node = slicer_scene.slice_logics["Green"].GetSliceNode()
    for axis, index in ((0, 3), (1, 5), (2, 0)):
        ijk = [2.0, 2.0, 2.0]
        ijk[2 - axis] = index
        normal = np.linalg.inv(to_world)[2 - axis, :3]
        along = np.cross(normal, [0.3, 0.5, 0.9])
        node.SetSliceToRASByNTP(*normal, *along, *(to_world[:3] @ [*ijk, 1]), 0)
        position = slice_position(node, volume)
        assert (position.axis, position.index, position.inside) == (axis, index, True)
        assert position.angle < 1e-4

    # a segmentation of the user's that is not under the transform: the voxels stay where they are in the world
    elsewhere = slicer_scene.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "user's")
    other = add_segment(elsewhere, "x", (1, 0, 0), {"MedCLIPSAM.Prompt": "x"})
    set_segment(elsewhere, volume, other, mask)
    np.testing.assert_allclose(_labelmap_points(elsewhere, other), _world_points(mask, to_world), atol=1e-6)
    set_segment_slice(elsewhere, volume, other, 1, 2, ~mask[:, 2])
    mask[:, 2] ^= True
    assert (segment_array(elsewhere, volume, other) == mask).all()


def test_a_volume_under_a_non_linear_transform(slicer_scene: SlicerScene, add_bend: Callable[[], Any]) -> None:
    matrix = _matrix()
    matrix[:3, :3] *= 12
    volume = _volume(slicer_scene, matrix)
    bend = add_bend()
    volume.SetAndObserveTransformNodeID(bend.GetID())
    to_world = vtk.vtkGeneralTransform()
    bend.GetTransformToWorld(to_world)
    node = slicer_scene.slice_logics["Red"].GetSliceNode()
    shifts = []
    for index in range(SHAPE[0]):
        inside = matrix[:3] @ [3, 3, index, 1]
        world = to_world.TransformPoint(*inside)
        shifts.append(np.abs(np.subtract(world, inside)).max())
        node.SetSliceToRASByNTP(0, 0, 1, -1, 0, 0, *world, 0)
        position = slice_position(node, volume)
        assert (position.axis, position.index, position.inside) == (0, index, True)
        assert 0.5 < position.angle < 15  # the slices are bent, the view is not
    assert max(shifts) > 5

    segmentation = new_segmentation(slicer_scene.scene, volume, "result")
    segment = add_segment(segmentation, "x", (1, 0, 0), {"MedCLIPSAM.Prompt": "x"})
    set_segment(segmentation, volume, segment, _mask(4))
    assert (segment_array(segmentation, volume, segment) == _mask(4)).all()
    segmentation.SetAndObserveTransformNodeID(None)
    with pytest.raises(InputError, match="non-linear"):
        set_segment(segmentation, volume, segment, _mask(5))


def test_one_colour_frame_of_ultrasound(slicer_scene: SlicerScene) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (1, 9, 13, 3)).astype(np.uint8)
    matrix = np.diag([-0.2, -0.2, 1.0, 1.0])
    volume = slicer_scene.add_volume(frame, matrix, "frame")
    assert volume.GetClassName() == "vtkMRMLVectorVolumeNode"
    np.testing.assert_array_equal(volume_array(volume), frame)
    position = slice_position(slicer_scene.slice_logics["Red"].GetSliceNode(), volume)
    assert (position.axis, position.index, position.inside) == (0, 0, True)
    segmentation = new_segmentation(slicer_scene.scene, volume, "result")
    segment = add_segment(segmentation, "mass", (1, 0, 0), {"MedCLIPSAM.Prompt": "mass"})
    plane = frame[0, ..., 0] > 128
    set_segment_slice(segmentation, volume, segment, 0, 0, plane)
    np.testing.assert_array_equal(segment_array(segmentation, volume, segment)[0], plane)
    np.testing.assert_allclose(_labelmap_points(segmentation, segment), _world_points(plane[None], matrix))
    overlay = publish_overlay(slicer_scene.scene, volume, "saliency", "mass", plane.astype(np.float32), 0, 0)
    np.testing.assert_allclose(ijk_to_ras(overlay), matrix)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_one_slice_overlay_lies_exactly_on_its_slice(slicer_scene: SlicerScene, axis: int) -> None:
    matrix = _matrix((2, 0, 1), (-1, 1, -1), 23.0)
    volume = _volume(slicer_scene, matrix)
    index = SHAPE[axis] - 2
    plane = np.random.default_rng(axis).random([n for one, n in enumerate(SHAPE) if one != axis]).astype(np.float32)
    node = publish_overlay(slicer_scene.scene, volume, "entropy", "x", plane, axis, index)
    np.testing.assert_array_equal(overlay_array(node), plane)
    ijk = np.array([1.0, 1.0, 1.0])
    ijk[2 - axis] = 0
    in_volume = ijk.copy()
    in_volume[2 - axis] = index
    np.testing.assert_allclose(ijk_to_ras(node)[:3] @ [*ijk, 1], matrix[:3] @ [*in_volume, 1], rtol=1e-12)
    np.testing.assert_allclose(ijk_to_ras(node)[:3, :3], matrix[:3, :3])


@pytest.mark.parametrize("shape", [(1, 8, 9), (8, 1, 9), (8, 9, 1), (1, 1, 1), (2, 1, 1)])
def test_thin_volumes(slicer_scene: SlicerScene, shape: tuple[int, int, int]) -> None:
    volume = _volume(slicer_scene, _matrix(angle=5.0), shape)
    segmentation = new_segmentation(slicer_scene.scene, volume, "result")
    segment = add_segment(segmentation, "x", (1, 0, 0), {"MedCLIPSAM.Prompt": "x"})
    for axis in range(3):
        for fill in (True, False):
            plane = np.full([n for one, n in enumerate(shape) if one != axis], fill)
            set_segment_slice(segmentation, volume, segment, axis, shape[axis] - 1, plane)
            assert (segment_slice(segmentation, volume, segment, axis, shape[axis] - 1) == fill).all()
    assert not segment_array(segmentation, volume, segment).any()


def test_any_run_of_edits_equals_the_same_edits_of_an_array(slicer_scene: SlicerScene) -> None:
    """Two segments of ours and one of the user's in one node, whole and slice edits in random order."""
    rng = np.random.default_rng(11)
    volume = _volume(slicer_scene, _matrix((1, 2, 0), (1, -1, -1), 14.0))
    segmentation = new_segmentation(slicer_scene.scene, volume, "result")
    foreign = segmentation.GetSegmentation().AddEmptySegment("user", "user")
    mine = [add_segment(segmentation, name, (1, 0, 0), {"MedCLIPSAM.Prompt": name}) for name in "ab"]
    truth = {one: np.zeros(SHAPE, bool) for one in (*mine, foreign)}
    set_segment(segmentation, volume, foreign, _mask(50))
    truth[foreign] = _mask(50)
    for step in range(300):
        segment = mine[rng.integers(2)]
        density = rng.choice([0.0, 0.02, 0.5, 1.0])
        if step % 7 == 0:
            truth[segment] = rng.random(SHAPE) < density
            set_segment(segmentation, volume, segment, truth[segment])
        else:
            axis = int(rng.integers(3))
            index = int(rng.integers(SHAPE[axis]))
            place = tuple(index if one == axis else slice(None) for one in range(3))
            plane = rng.random(truth[segment][place].shape) < density
            truth[segment][place] = plane
            set_segment_slice(segmentation, volume, segment, axis, index, plane)
        if step % 37 == 0:  # layers shared by all, as after loading a file
            segmentation.GetSegmentation().CollapseBinaryLabelmaps(False)
        for one, expected in truth.items():
            assert (segment_array(segmentation, volume, one) == expected).all(), (step, one)
