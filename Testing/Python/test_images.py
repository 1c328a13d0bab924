"""Windowing, resizing and the way into a model's input and back, against independent references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import Frame, check_image, resize, robust_window, to_rgb, to_uint8

sides = st.integers(1, 90)
frames = st.builds(
    Frame, height=st.integers(16, 300), width=st.integers(16, 300), size=st.integers(32, 256), keep_aspect=st.booleans()
)
fast = settings(max_examples=60, deadline=None)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def waves(height: int, width: int) -> np.ndarray:
    """A smooth image in [-1, 1] with half a wave along each axis."""
    y, x = (np.arange(size) + 0.5 for size in (height, width))
    return (np.sin(np.pi * y / height)[:, None] * np.cos(np.pi * x / width)).astype(np.float32)


def area_mean(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mean over the covered area, by brute force: every pixel is repeated until the cells fall on whole pixels."""
    rows, columns = np.lcm(image.shape[0], height), np.lcm(image.shape[1], width)
    fine = image.astype(np.float64).repeat(rows // image.shape[0], 0).repeat(columns // image.shape[1], 1)
    return fine.reshape(height, rows // height, width, columns // width).mean(axis=(1, 3))


def linear(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear look-up at continuous pixel positions (pixel i has its centre at i + 0.5), edges extended."""
    grid = np.meshgrid(rows - 0.5, columns - 0.5, indexing="ij")
    return ndimage.map_coordinates(image.astype(np.float64), grid, order=1, mode="nearest")


class TestResize:
    @fast
    @given(st.integers(1, 60), st.integers(1, 60), st.data())
    def test_shrinking_is_the_area_mean(self, height, width, data):
        target = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        image = noise(height, width)
        np.testing.assert_allclose(resize(image, *target), area_mean(image, *target), atol=2e-6)

    @fast
    @given(sides, sides, st.integers(0, 100), st.integers(0, 100))
    def test_growing_is_bilinear(self, height, width, more_rows, more_columns):
        image = noise(height, width)
        target = height + more_rows, width + more_columns
        rows, columns = ((np.arange(new) + 0.5) * old / new for new, old in zip(target, image.shape, strict=True))
        np.testing.assert_allclose(resize(image, *target), linear(image, rows, columns), atol=2e-6)

    @pytest.mark.parametrize(("shape", "target"), [((64, 48), (32, 24)), ((300, 120), (60, 40)), ((96, 35), (16, 35))])
    def test_shrinking_by_whole_factors_equals_pillow_box(self, shape, target):
        image = noise(*shape) * 255
        reference = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling.BOX))
        np.testing.assert_allclose(resize(image, *target), reference, atol=1e-3)

    @pytest.mark.parametrize(("shape", "target"), [((16, 21), (64, 47)), ((40, 40), (41, 200)), ((16, 16), (256, 256))])
    def test_growing_equals_pillow_bilinear(self, shape, target):
        image = noise(*shape) * 255
        reference = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling.BILINEAR))
        np.testing.assert_allclose(resize(image, *target), reference, atol=1e-3)

    def test_channels_are_resized_alone_and_the_range_is_kept(self):
        image = (noise(37, 53, 3) * 255).astype(np.uint8)
        for target in ((20, 30), (80, 60), (37, 53)):
            result = resize(image, *target)
            assert result.dtype == np.float32 and result.shape == (*target, 3)
            for channel in range(3):
                np.testing.assert_allclose(result[..., channel], resize(image[..., channel], *target), atol=1e-4)
            assert image.min() - 1e-3 <= result.min() and result.max() <= image.max() + 1e-3
        np.testing.assert_array_equal(resize(image, 37, 53), image.astype(np.float32))


class TestFrame:
    @fast
    @given(frames)
    def test_inner_keeps_the_aspect(self, frame):
        height, width = frame.inner
        if frame.keep_aspect:
            assert max(height, width) == frame.size
            # half a pixel of rounding, and never less than one pixel
            scale = frame.size / max(frame.height, frame.width)
            assert abs(height - frame.height * scale) <= max(0.5, 1 - frame.height * scale) + 1e-9
            assert abs(width - frame.width * scale) <= max(0.5, 1 - frame.width * scale) + 1e-9
        else:
            assert (height, width) == (frame.size, frame.size)

    @fast
    @given(frames, st.booleans())
    def test_placing_leaves_padding_zero(self, frame, colour):
        image = noise(frame.height, frame.width, *((3,) if colour else ())) + 1
        placed = frame.place(image)
        height, width = frame.inner
        assert placed.dtype == np.float32 and placed.shape == (frame.size, frame.size, *image.shape[2:])
        assert placed[:height, :width].min() > 0.999
        assert not placed[height:].any() and not placed[:, width:].any()

    @fast
    @given(frames)
    def test_restore_undoes_place(self, frame):
        image = waves(frame.height, frame.width)
        # a smooth function loses about (step * slope) at the cut edge of a coarser grid, far less inside
        coarsest = min(*frame.inner, frame.height, frame.width)
        np.testing.assert_allclose(frame.restore(frame.place(image)), image, atol=3.5 / coarsest)

    @fast
    @given(st.integers(16, 120), st.integers(16, 120))
    def test_without_resampling_the_way_there_and_back_is_exact(self, height, width):
        frame = Frame(height, width, max(height, width))
        image = np.rint(noise(height, width) * 255)
        assert frame.inner == (height, width)
        np.testing.assert_array_equal(frame.place(image)[:height, :width], image)
        # the share of the padding is a rounded fraction, which moves the look-up by some 1e-14 pixels
        np.testing.assert_allclose(frame.restore(frame.place(image)), image, rtol=0, atol=1e-4)

    @pytest.mark.parametrize(
        ("height", "width", "keep_aspect"), [(256, 256, True), (256, 256, False), (256, 128, True), (64, 256, True)]
    )
    def test_exact_identity_at_the_models_own_size(self, height, width, keep_aspect):
        image = (noise(height, width) * 255).astype(np.uint8)
        frame = Frame(height, width, 256, keep_aspect)
        np.testing.assert_array_equal(frame.restore(frame.place(image)), image)

    @fast
    @given(frames, st.integers(1, 70), st.floats(-1e3, 1e3, width=32))
    def test_a_constant_map_is_restored_constant(self, frame, cells, value):
        restored = frame.restore(np.full((cells, cells), value, np.float32))
        assert restored.shape == (frame.height, frame.width) and restored.dtype == np.float32
        np.testing.assert_allclose(restored, value, rtol=1e-6, atol=1e-6)

    @fast
    @given(frames, st.sampled_from([7, 14, 16, 32, 64, 256]))
    def test_padding_never_leaks(self, frame, cells):
        plane = np.full((cells, cells), 1e30, np.float32)
        rows, columns = (-(-inner * cells // frame.size) for inner in frame.inner)  # cells that touch the image
        plane[:rows, :columns] = noise(rows, columns)
        restored = frame.restore(plane)
        assert restored.min() >= 0 and restored.max() <= 1.0001

    @fast
    @given(frames, st.sampled_from([7, 16, 32, 64, 256]))
    def test_restoring_looks_up_the_pixel_centres(self, frame, cells):
        plane = noise(cells, cells)
        inner, shape = frame.inner, (frame.height, frame.width)
        rows, columns = (
            (np.arange(old) + 0.5) / old * new * cells / frame.size for old, new in zip(shape, inner, strict=True)
        )
        touched = plane[: -(-inner[0] * cells // frame.size), : -(-inner[1] * cells // frame.size)]
        np.testing.assert_allclose(frame.restore(plane), linear(touched, rows, columns), atol=2e-5)

    @fast
    @given(frames, st.data())
    def test_boxes_scale_exactly_and_stay_inside(self, frame, data):
        x = sorted(data.draw(st.lists(st.integers(0, frame.width), min_size=2, max_size=2)))
        y = sorted(data.draw(st.lists(st.integers(0, frame.height), min_size=2, max_size=2)))
        box = np.array([[x[0], y[0], x[1], y[1]]], np.float32)
        height, width = frame.inner
        scaled = frame.scale_boxes(box)
        expected = box.astype(np.float64) * np.array([width / frame.width, height / frame.height] * 2)
        assert scaled.dtype == np.float32 and scaled.shape == (1, 4)
        np.testing.assert_allclose(scaled, expected, rtol=1e-6)
        whole = frame.scale_boxes(np.array([[0, 0, frame.width, frame.height]]))
        np.testing.assert_allclose(whole, [[0, 0, width, height]], rtol=1e-6)
        assert (scaled >= 0).all() and (scaled <= whole[:, [2, 3, 2, 3]]).all()
        np.testing.assert_array_equal(frame.scale_points(box.reshape(2, 2)).reshape(1, 4), scaled)

    def test_a_box_frames_the_same_pixels_in_the_model_input(self):
        image = np.zeros((100, 200), np.float32)
        image[20:60, 40:120] = 1
        frame = Frame(100, 200, 256)
        x0, y0, x1, y1 = frame.scale_boxes(np.array([40, 20, 120, 60]))[0]
        placed = frame.place(image)
        covered = np.clip(np.minimum(y1, np.arange(256) + 1) - np.maximum(y0, np.arange(256)), 0, 1)[:, None] * np.clip(
            np.minimum(x1, np.arange(256) + 1) - np.maximum(x0, np.arange(256)), 0, 1
        )
        assert abs(float(covered.sum() - placed.sum())) < 0.02 * placed.sum()
        assert ((placed > 0.5) != (covered > 0.5)).sum() < 0.02 * placed.sum()


KINDS = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float16, np.float32, np.float64)


class TestEightBit:
    @fast
    @given(
        st.sampled_from(KINDS).flatmap(lambda kind: arrays.arrays(kind, (9, 7), elements=st.integers(0, 120))),
        st.integers(-100, 120),
        st.integers(1, 300),
    )
    def test_window_maps_linearly_rounds_and_clips(self, image, lower, width):
        result = to_uint8(image, (float(lower), float(lower + width)))
        exact = np.clip((image.astype(np.float64) - lower) * 255 / width, 0, 255)
        assert result.dtype == np.uint8 and result.shape == image.shape
        assert np.abs(result - exact).max() <= 0.5 + 1e-4, "rounded to the nearest, not cut off"

    def test_hounsfield_units_in_a_window(self):
        image = np.array([[-32768, -1000, -999, -300, 400, 401, 32767]], np.int16)
        expected = [[0, 0, 0, 128, 255, 255, 255]]  # 127.5 rounds to the even neighbour
        np.testing.assert_array_equal(to_uint8(image, (-1000.0, 400.0)), expected)

    def test_eight_bit_and_bool_images_are_taken_as_they_are(self):
        image = (noise(20, 20) * 90).astype(np.uint8)
        np.testing.assert_array_equal(to_uint8(image), image)
        np.testing.assert_array_equal(to_uint8(image > 40), (image > 40) * np.uint8(255))

    def test_offset_and_scale_of_the_intensities_do_not_matter(self):
        image = np.random.default_rng(0).integers(0, 4096, (64, 64))
        reference = to_uint8(image.astype(np.float64))
        for changed in (image.astype(np.uint16), image.astype(np.int32) * 100, image / 1e6, image.astype(np.float32)):
            np.testing.assert_array_equal(to_uint8(changed), reference)

    @pytest.mark.parametrize(
        "image",
        [
            np.float64(1e8) + noise(20, 20),
            (np.float64(2**30) + noise(20, 20) * 255).astype(np.int32),
            noise(20, 20) * np.float64(1e300),
        ],
        ids=["float64 offset", "int32 offset", "float64 scale"],
    )
    def test_intensities_beyond_single_precision(self, image):
        low, high = robust_window(image)
        exact = np.clip((image.astype(np.longdouble) - low) * 255 / (np.longdouble(high) - low), 0, 255)
        with np.errstate(all="raise"):
            assert np.abs(to_uint8(image) - exact).max() <= 0.51

    def test_robust_window_is_the_percentiles(self):
        image = np.random.default_rng(1).normal(100, 20, (200, 300))
        assert robust_window(image) == pytest.approx(tuple(np.percentile(image, (0.5, 99.5))))
        image[0, :3] = 1e9  # a few burnt-in pixels must not make the rest black
        assert robust_window(image)[1] < 200
        assert robust_window(image, 0, 100) == (image.min(), 1e9)

    def test_robust_window_of_a_mostly_empty_image_is_the_full_range(self):
        image = np.zeros((200, 200), np.float32)
        image[10:13, 10:13] = 7
        assert robust_window(image) == (0, 7)
        np.testing.assert_array_equal(to_uint8(image) == 255, image == 7)

    def test_robust_window_of_a_large_volume_needs_a_sample_only(self):
        volume = np.random.default_rng(2).normal(0, 1, (60, 400, 400)).astype(np.float32)
        np.testing.assert_allclose(robust_window(volume), np.percentile(volume, (0.5, 99.5)), atol=0.02)

    @pytest.mark.parametrize("window", [(5.0, 5.0), (5.0, 4.0), (0.0, float("nan"))])
    def test_window_without_width_is_refused(self, window):
        with pytest.raises(InputError, match="the upper intensity must be above the lower one"):
            to_uint8(noise(20, 20), window)

    def test_rgb(self):
        grey = (noise(20, 30) * 255).astype(np.uint8)
        rgb = to_rgb(grey)
        assert rgb.shape == (20, 30, 3) and rgb.dtype == np.uint8
        for channel in range(3):
            np.testing.assert_array_equal(rgb[..., channel], grey)
        np.testing.assert_array_equal(to_rgb(rgb), rgb)


class TestCheckImage:
    @pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int16, np.uint32, np.float16, np.float64])
    @pytest.mark.parametrize("shape", [(16, 16), (16, 400), (16, 16, 3)])
    def test_usable_images_come_back_as_they_are(self, kind, shape):
        image = (noise(*shape) * 2).astype(kind)
        image.flat[:2] = 0, 1
        assert check_image(image) is image

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (noise(15, 20), "scan is 20 x 15 pixels; at least 16 x 16"),
            (noise(20, 15), "scan is 15 x 20 pixels"),
            (np.zeros((0, 20)), "scan is 20 x 0 pixels"),
            (np.full((20, 20), 7), "scan is constant (every pixel is 7)"),
            (noise(20, 20).astype(complex), "scan has type complex64; pass real numbers"),
            (noise(20, 20).astype(str), "pass real numbers"),
            (noise(20, 20, 4), "scan has shape (20, 20, 4); pass (H, W) for grey or (H, W, 3) for RGB"),
            (noise(20, 20, 1), "scan has shape (20, 20, 1)"),
            (noise(20), "scan has shape (20,)"),
            (noise(2, 20, 20, 3), "scan has shape (2, 20, 20, 3)"),
        ],
    )
    def test_unusable_images_are_refused_with_the_reason(self, image, message):
        image = image.astype(np.complex64) if image.dtype.kind == "c" else image
        with pytest.raises(InputError) as caught:
            check_image(image, "scan")
        assert message in str(caught.value)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite_are_counted(self, value):
        image = noise(20, 20)
        image[3, 4:6] = value
        with pytest.raises(InputError, match="image holds 2 NaN or infinite values of 400"):
            check_image(image)
