"""Volumes and pictures in: exact geometry, every depth, real volumes, and damaged files."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image
from scipy.spatial.transform import Rotation

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image

RNG = np.random.default_rng(7)
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32)


def oblique(flip: int = 0) -> np.ndarray:
    """An oblique IJK-to-RAS matrix; bits of ``flip`` turn axes round."""
    signs = [-1.0 if flip >> axis & 1 else 1.0 for axis in range(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (11, -23, 37), degrees=True).as_matrix() @ np.diag((0.7, 0.85, 3.3))
    matrix[:3, :3] *= signs
    matrix[:3, 3] = (-101.25, 33.5, 7.125)
    return matrix


def itk_image(array: np.ndarray, ijk_to_ras: np.ndarray) -> sitk.Image:
    lps = LPS_RAS @ ijk_to_ras
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(steps.tolist())
    image.SetDirection((lps[:3, :3] / steps).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def values(dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return (RNG.standard_normal(shape) * 1000).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


# Volumes


@pytest.mark.parametrize("flip", range(8))
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd"])
def test_oblique_and_flipped_geometry_is_exact(tmp_path, suffix, flip):
    array, matrix = values(np.int16, (5, 6, 7)), oblique(flip)
    path = tmp_path / f"Bäckerei 頭部 {flip}{suffix}"
    sitk.WriteImage(itk_image(array, matrix), str(path))
    image = read_image(path)
    np.testing.assert_array_equal(image.array, array)
    np.testing.assert_allclose(image.ijk_to_ras, matrix, rtol=0, atol=5e-6 if "nii" in suffix else 1e-12)
    assert image.is_volume and image.spacing_known and image.window is None and image.path == path


@pytest.mark.parametrize("dtype", [*INTEGERS, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_volumes_keep_their_type_and_single_slices_stay_volumes(tmp_path, suffix, dtype):
    for shape in ((3, 4, 5), (1, 4, 5)):
        array = values(dtype, shape)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"v{suffix}"))
        image = read_image(str(tmp_path / f"v{suffix}"))
        assert image.array.dtype == dtype and image.is_volume
        np.testing.assert_array_equal(image.array, array)


def test_nifti_agrees_with_nibabel(tmp_path, data_dir):
    for name in ("head_mr_t1_normal.nii.gz", "chest_ct_01.nii.gz", "abdomen_ct_3mm_part.nii.gz"):
        reference = nibabel.load(data_dir / "volumes" / name)
        image = read_image(data_dir / "volumes" / name)
        np.testing.assert_allclose(image.ijk_to_ras, reference.affine, rtol=0, atol=2e-5)
        np.testing.assert_allclose(image.array, np.asarray(reference.dataobj).T, rtol=1e-6)
    array = values(np.int16, (4, 5, 6))
    nibabel.save(nibabel.Nifti1Image(array, oblique(1)), tmp_path / "x.nii")
    image = read_image(tmp_path / "x.nii")
    np.testing.assert_array_equal(image.array, array.T)
    np.testing.assert_allclose(image.ijk_to_ras, oblique(1), rtol=0, atol=5e-6)
    nibabel.save(
        nibabel.Nifti1Image(array.astype(">i2"), oblique(1), nibabel.Nifti1Header(endianness=">")), tmp_path / "x.nii"
    )
    np.testing.assert_array_equal(read_image(tmp_path / "x.nii").array, array.T)
    nibabel.save(nibabel.Nifti2Image(array, oblique(1)), tmp_path / "x.nii")
    with pytest.raises(InputError, match="export it again as NIfTI-1"):
        read_image(tmp_path / "x.nii")
    sheared = oblique() @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(array, sheared), tmp_path / "x.nii")
    with pytest.raises(InputError, match=r"x\.nii"):  # ITK would need orthogonal axes
        read_image(tmp_path / "x.nii")


def test_nrrd_in_ras_space_and_2d_nrrd(tmp_path, data_dir):
    head = "NRRD0004\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 2 2\nencoding: raw\n"
    head += "space directions: (0,2,0) (0,0,3) (4,0,0)\nspace origin: (5,6,7)\nkinds: domain domain domain\n\n"
    (tmp_path / "ras.nrrd").write_bytes(head.encode() + bytes(range(8)))
    expected = [[0, 0, 4, 5], [2, 0, 0, 6], [0, 3, 0, 7], [0, 0, 0, 1]]
    np.testing.assert_array_equal(read_image(tmp_path / "ras.nrrd").ijk_to_ras, expected)
    plane = sitk.GetImageFromArray(values(np.int16, (4, 5)))
    plane.SetSpacing((0.5, 0.25))
    sitk.WriteImage(plane, str(tmp_path / "2d.nrrd"))
    image = read_image(tmp_path / "2d.nrrd")
    assert image.array.shape == (4, 5) and not image.is_volume and image.spacing_known
    np.testing.assert_array_equal(image.ijk_to_ras, np.diag([-0.5, -0.25, 1, 1]))
    tumour = read_image(data_dir / "volumes" / "head_mr_t1ce_tumour_01.nrrd")
    assert tumour.array.shape == (25, 256, 256)
    np.testing.assert_allclose(np.linalg.norm(tumour.ijk_to_ras[:3, :3], axis=0), (0.78125, 0.78125, 6.5), rtol=1e-6)


def test_series_colour_volumes_and_complex_values_are_refused(tmp_path):
    frame = sitk.GetImageFromArray(values(np.int16, (3, 4, 5)))
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        sitk.WriteImage(sitk.JoinSeries([frame] * 6), str(tmp_path / f"4d{suffix}"))
        with pytest.raises(InputError, match=r"5 x 4 x 3 x 6.*extract one 3D frame"):
            read_image(tmp_path / f"4d{suffix}")
        sitk.WriteImage(sitk.JoinSeries([frame]), str(tmp_path / f"one{suffix}"))
        assert read_image(tmp_path / f"one{suffix}").array.shape == (3, 4, 5)
    colour = values(np.uint8, (3, 4, 5, 3))
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(tmp_path / "c.nrrd"))
    with pytest.raises(InputError, match="3 values per voxel"):
        read_image(tmp_path / "c.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(colour[:1], isVector=True), str(tmp_path / "c1.nrrd"))
    one = read_image(tmp_path / "c1.nrrd")
    np.testing.assert_array_equal(one.array, colour[0])
    assert not one.is_volume
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((3, 4, 5), np.complex64)), str(tmp_path / "z.nii"))
    with pytest.raises(InputError, match="complex64"):
        read_image(tmp_path / "z.nii")


# Pictures


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colour", [False, True])
def test_pictures_keep_8_and_16_bits(tmp_path, suffix, dtype, colour):
    array = values(dtype, (20, 30, 3) if colour else (20, 30))
    path = tmp_path / f"Bäckerei 頭部{suffix}"
    if suffix == ".png":
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=colour), str(path))
    else:
        tifffile.imwrite(path, array, photometric="rgb" if colour else "minisblack")
    image = read_image(path)
    assert image.array.dtype == dtype
    np.testing.assert_array_equal(image.array, array)
    assert not image.is_volume and not image.spacing_known
    np.testing.assert_array_equal(image.ijk_to_ras, np.diag([-1, -1, 1, 1]))


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.int32, np.float32])
def test_tiff_keeps_signed_and_32_bit_values(tmp_path, dtype):
    array = values(dtype, (20, 30))
    tifffile.imwrite(tmp_path / "a.tif", array)
    image = read_image(tmp_path / "a.tif")
    assert image.array.dtype == dtype
    np.testing.assert_array_equal(image.array, array)


def test_tiff_min_is_white_float_colour_and_big_endian(tmp_path):
    array = values(np.uint16, (20, 30))
    tifffile.imwrite(tmp_path / "w.tif", array, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "w.tif").array, 65535 - array)
    tifffile.imwrite(tmp_path / "w8.tif", array.astype(np.uint8), photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "w8.tif").array, 255 - array.astype(np.uint8))
    tifffile.imwrite(tmp_path / "b.tif", array, byteorder=">")
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif").array, array)
    colour = values(np.float32, (20, 30, 3))
    tifffile.imwrite(tmp_path / "c.tif", colour, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "c.tif").array, colour)


@pytest.mark.parametrize(
    "array",
    [
        values(np.float64, (20, 30)),
        values(np.float16, (20, 30)),  # ITK reads its bits as integers
        np.stack([values(np.uint16, (20, 30))] * 3),
    ],
    ids=["float64", "float16", "three pages"],
)
def test_tiff_that_would_be_read_wrongly_is_refused(tmp_path, array):
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    with pytest.raises(InputError, match=r"export it as|holds 3 pages"):
        read_image(tmp_path / "a.tif")


def test_planar_16_bit_colour_tiff_is_refused_or_right(tmp_path):
    array = values(np.uint16, (3, 20, 30))
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig="separate")
    try:
        image = read_image(tmp_path / "a.tif")
    except InputError as error:
        assert "without loss" in str(error)
    else:
        np.testing.assert_array_equal(image.array, np.moveaxis(array, 0, 2))


def test_alpha_palette_and_bilevel_pictures(tmp_path):
    rgba = values(np.uint8, (20, 30, 4))
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png").array, rgba[..., :3])
    palette = Image.fromarray(rgba[..., :3]).quantize(17)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png").array, np.asarray(palette.convert("RGB")))
    grey_alpha = Image.fromarray(rgba[..., 0].copy())
    grey_alpha.putalpha(Image.fromarray(rgba[..., 1].copy()))
    grey_alpha.save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png").array, rgba[..., 0])
    Image.fromarray(rgba[..., 0] > 99).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_image(tmp_path / "1.png").array, (rgba[..., 0] > 99) * np.uint8(255))
    Image.fromarray(rgba[..., :3]).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg").array.shape == (20, 30, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    """EXIF says where the stored first row and column lie; the first pixel must come out in that corner."""
    top, left = ("", "tl", "tr", "br", "bl", "lt", "rt", "rb", "lb")[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    for name in ("Bäckerei 頭部.jpg", "c.png", "c.tif", "16.tif"):
        stored = np.zeros((40, 64), np.uint16 if name == "16.tif" else np.uint8)
        stored[:8] = 100  # the first row is grey,
        stored[:, :8] = 200  # the first column bright
        image = Image.fromarray(stored)
        if name == "16.tif":
            tifffile.imwrite(tmp_path / name, stored, extratags=[(274, "H", 1, orientation, True)])
        else:
            image.convert("RGB" if name.startswith("c") else "L").save(tmp_path / name, exif=exif, quality=95)
        array = read_image(tmp_path / name).array
        array = array[..., 0] if array.ndim == 3 else array
        assert array.shape == ((40, 64) if orientation < 5 else (64, 40))
        bands = {"t": array[2, 12:-12], "b": array[-3, 12:-12], "l": array[12:-12, 2], "r": array[12:-12, -3]}
        means = {side: round(float(band.mean()), -1) for side, band in bands.items()}
        assert means == {side: {top: 100, left: 200}.get(side, 0) for side in "tblr"}
    if orientation < 5:
        return
    colour = values(np.uint16, (20, 30, 3))  # ITK would give 8 bits for a turned one
    tifffile.imwrite(tmp_path / "deep.tif", colour, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    with pytest.raises(InputError, match="without loss"):
        read_image(tmp_path / "deep.tif")


# Faults in reading


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha", ".png", ".jpg", ".tif"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.97])
def test_truncated_files_are_refused(tmp_path, suffix, part):
    path = tmp_path / f"Bäckerei{suffix}"
    if suffix in (".png", ".jpg", ".tif"):
        Image.fromarray(values(np.uint8, (60, 60))).save(path)
    else:
        sitk.WriteImage(itk_image(values(np.int16, (9, 20, 20)), oblique()), str(path), suffix != ".nii")
    read_image(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match="Bäckerei"):
        read_image(path)


def test_a_flipped_bit_in_a_gzipped_nifti_is_found(tmp_path):
    path = tmp_path / "v.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(values(np.int16, (9, 20, 20))), str(path))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_image(path)


def test_unusable_paths_and_values(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / "missing.nrrd")
    for name in ("notes.docx", "noextension", "a.seg.nrrd", "a.nrrd", "a.png", "a.nii", "a.nii.gz", "a.dcm", "a.mhd"):
        (tmp_path / name).write_bytes(b"not an image " * 100)
        with pytest.raises(InputError, match=name.split(".")[0]):
            read_image(tmp_path / name)
    volume = np.zeros((3, 4, 5), np.float32)
    volume[1, 1, 1:3] = np.nan, np.inf
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "n.nrrd"))
    with pytest.raises(InputError, match="2 NaN or infinite values"):
        read_image(tmp_path / "n.nrrd")
