"""Slices in the radiological orientation: an anatomical marker, exact round trips, any of the 48 orientations."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.geometry import SliceGeometry, put_slice, slice_axis, spacing, take_slice

ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
SIDES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
EXPECTED = {  # plane -> what lies at the top and at the left of the picture
    "axial": ("A", "R"),
    "coronal": ("S", "R"),
    "sagittal": ("S", "A"),
}


def matrix(order=(0, 1, 2), signs=(1, 1, 1), steps=(1.0, 1.0, 1.0), angles=(0, 0, 0), origin=(0, 0, 0)) -> np.ndarray:
    """IJK-to-RAS in which index axis n runs along world axis order[n] with the sign and step of n, then rotated."""
    result = np.eye(4)
    result[:3, :3] = 0
    for index, (world, sign, step) in enumerate(zip(order, signs, steps, strict=True)):
        result[world, index] = sign * step
    result[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ result[:3, :3]
    result[:3, 3] = origin
    return result


def world_coordinates(shape: tuple[int, ...], ijk_to_ras: np.ndarray) -> np.ndarray:
    """RAS of every voxel, (K, J, I, 3)."""
    k, j, i = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return np.stack([i, j, k, np.ones_like(i)], axis=-1) @ ijk_to_ras.T[:, :3]


orientations = st.sampled_from(ORIENTATIONS)
steps = st.tuples(*[st.floats(0.2, 8)] * 3)
shapes = st.tuples(*[st.integers(1, 7)] * 3)
small_angles = st.tuples(*[st.floats(-12, 12)] * 3)  # the nearest axes stay the same


@pytest.mark.parametrize("plane", EXPECTED)
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_left_is_left_in_all_48_orientations(plane, order, signs):
    shape = (6, 7, 8)
    ijk_to_ras = matrix(order, signs, (0.7, 0.8, 3.0), angles=(8, -6, 7), origin=(-40, 12, 99))
    geometry = SliceGeometry.of(shape, ijk_to_ras, plane)
    world = world_coordinates(shape, ijk_to_ras)
    assert geometry.plane_name == plane
    for corner, along in ((EXPECTED[plane][0], "rows"), (EXPECTED[plane][1], "columns")):
        axis, sign = SIDES[corner]
        marker = sign * world[..., axis]
        middle = geometry.extract(np.ascontiguousarray(marker), geometry.count // 2)
        first, last = (middle[0], middle[-1]) if along == "rows" else (middle[:, 0], middle[:, -1])
        assert first.mean() > last.mean(), f"{corner} must lie at the {'top' if along == 'rows' else 'left'}"


@settings(max_examples=150, deadline=None)
@given(orientations, steps, shapes, small_angles, st.sampled_from(["axial", "coronal", "sagittal", 0, 1, 2, None]))
def test_extract_and_insert_are_exact_inverses(orientation, step, shape, angles, axis):
    ijk_to_ras = matrix(*orientation, step, angles, (5, 6, 7))
    geometry = SliceGeometry.of(shape, ijk_to_ras, axis)
    volume = np.arange(np.prod(shape)).reshape(shape)
    copy = np.full_like(volume, -1)
    for index in range(geometry.count):
        plane = geometry.extract(volume, index)
        assert plane.shape == geometry.plane_shape and plane.flags.c_contiguous
        stored = take_slice(volume, geometry.axis, index)
        np.testing.assert_array_equal(geometry.from_display(geometry.to_display(stored)), stored)
        geometry.insert(copy, index, plane)
    np.testing.assert_array_equal(copy, volume)


@settings(max_examples=150, deadline=None)
@given(orientations, steps, small_angles, st.sampled_from(["axial", "coronal", "sagittal", None]))
def test_pixel_spacing_is_the_distance_between_displayed_pixels(orientation, step, angles, axis):
    shape = (3, 4, 5)
    ijk_to_ras = matrix(*orientation, step, angles, (1, 2, 3))
    geometry = SliceGeometry.of(shape, ijk_to_ras, axis)
    world = world_coordinates(shape, ijk_to_ras)
    plane = np.stack([geometry.extract(np.ascontiguousarray(world[..., n]), 1) for n in range(3)], axis=-1)
    rows = np.linalg.norm(plane[1, 0] - plane[0, 0])
    columns = np.linalg.norm(plane[0, 1] - plane[0, 0])
    np.testing.assert_allclose(geometry.pixel_spacing, (rows, columns), rtol=1e-9)
    assert spacing(ijk_to_ras) == pytest.approx(step)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), shapes, st.sampled_from(["axial", "coronal", "sagittal"]))
def test_any_rotation_gives_each_plane_its_own_axis(seed, shape, plane):
    ijk_to_ras = np.eye(4)
    ijk_to_ras[:3, :3] = Rotation.random(random_state=seed).as_matrix() @ np.diag((1, 2, -3))
    geometry = SliceGeometry.of(shape, ijk_to_ras, plane)
    assert geometry.plane_name == plane
    axes = {SliceGeometry.of(shape, ijk_to_ras, name).axis for name in ("axial", "coronal", "sagittal")}
    assert axes == {0, 1, 2}
    assert SliceGeometry.of(shape, ijk_to_ras, geometry.axis) == geometry


@pytest.mark.parametrize(
    ("step", "shape", "expected"),
    [
        ((0.8, 0.8, 6.5), (25, 256, 256), 0),
        ((6.5, 0.8, 0.8), (256, 256, 25), 2),
        ((0.8, 5.0, 0.8), (256, 25, 256), 1),
        ((1.0, 1.0, 1.0), (100, 100, 100), 0),
        ((1.15, 1.0, 1.0), (100, 100, 100), 0),  # 1.15 is not clearly anisotropic
        ((1.25, 1.0, 1.0), (100, 100, 100), 2),
        ((2.0, 2.0, 1.0), (100, 100, 100), 0),  # two axes tie: the last one stored
        ((0.5, 0.5, 0.1), (1, 512, 512), 0),  # one slice, thinner than its pixels
        ((0.5, 0.5, 5.0), (40, 1, 512), 1),
    ],
)
def test_the_acquisition_axis(step, shape, expected):
    ijk_to_ras = matrix(steps=step, angles=(20, 10, -15))
    assert slice_axis(ijk_to_ras, shape) == expected
    assert SliceGeometry.of(shape, ijk_to_ras).axis == expected


def test_memory_mapped_volumes_are_written_in_place(tmp_path):
    shape = (4, 5, 6)
    volume = np.lib.format.open_memmap(tmp_path / "map.npy", mode="w+", dtype=np.float32, shape=shape)
    geometry = SliceGeometry.of(shape, matrix((2, 0, 1), (1, -1, 1)), "coronal")
    rng = np.random.default_rng(0)
    planes = [rng.random(geometry.plane_shape, dtype=np.float32) for _ in range(geometry.count)]
    for index, plane in enumerate(planes):
        geometry.insert(volume, index, plane)
    volume.flush()
    stored = np.load(tmp_path / "map.npy")
    for index, plane in enumerate(planes):
        np.testing.assert_array_equal(geometry.extract(stored, index), plane)
        extracted = geometry.extract(volume, index)
        assert type(extracted) is np.ndarray
        extracted[:] = -1  # a copy: the file keeps its values
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), stored)


def test_take_and_put_slice_work_on_the_stored_orientation():
    volume = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(take_slice(volume, 1, 2), volume[:, 2])
    put_slice(volume, 2, 0, np.zeros((2, 3), int))
    assert not volume[:, :, 0].any() and volume[:, :, 1].any()


def test_wrong_requests_are_refused():
    shape, volume = (3, 4, 5), np.zeros((3, 4, 5))
    geometry = SliceGeometry.of(shape, np.eye(4))
    with pytest.raises(InputError, match="slice 3 does not exist"):
        geometry.extract(volume, 3)
    with pytest.raises(InputError, match="slice -1 does not exist"):
        geometry.insert(volume, -1, np.zeros((4, 5)))
    with pytest.raises(InputError, match="does not fit"):
        geometry.insert(volume, 0, np.zeros((1, 5)))  # numpy would broadcast it
    with pytest.raises(InputError, match="this geometry is for"):
        geometry.extract(np.zeros((3, 5, 4)), 0)
    for axis in ("oblique", 3, -1, True):
        with pytest.raises(InputError, match="axis"):
            SliceGeometry.of(shape, np.eye(4), axis)
    with pytest.raises(InputError, match="invertible"):
        SliceGeometry.of(shape, np.diag([1.0, 0, 1, 1]))
    with pytest.raises(InputError, match="no slices"):
        SliceGeometry.of((0, 4, 5), np.eye(4))


def test_organs_of_a_real_ct_lie_on_their_sides(data_dir):
    folder = data_dir / "volumes"
    labels = read_image(folder / "abdomen_ct_3mm_part_labels.nii.gz")

    def centre(plane_name: str, label: int) -> np.ndarray:
        """Mean (row, column) of an organ over all displayed slices."""
        geometry = SliceGeometry.of(labels.array.shape, labels.ijk_to_ras, plane_name)
        pixels = [np.argwhere(geometry.extract(labels.array, index) == label) for index in range(geometry.count)]
        return np.concatenate(pixels).mean(axis=0)

    spleen, liver, lung_lobe, kidney = 1, 5, 10, 3
    for plane_name in ("axial", "coronal"):
        assert centre(plane_name, liver)[1] < centre(plane_name, spleen)[1], "the liver is at the image's left"
    assert centre("axial", kidney)[0] > centre("axial", liver)[0], "kidneys lie behind, which is below"
    assert centre("coronal", lung_lobe)[0] < centre("coronal", liver)[0], "lungs lie above"
    assert centre("sagittal", lung_lobe)[0] < centre("sagittal", liver)[0]
    assert centre("sagittal", liver)[1] < centre("sagittal", kidney)[1], "front is at the image's left"
