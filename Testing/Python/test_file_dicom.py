"""DICOM in: files made for the purpose, a real series against pydicom, and series that are no volume."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image

RNG = np.random.default_rng(7)


def values(dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return (RNG.standard_normal(shape) * 1000).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def dicom(path: Path, pixels: np.ndarray, **tags) -> Path:
    """Write a DICOM file; ``tags`` override and, when None, remove elements."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    bits = pixels.dtype.itemsize * 8
    settings = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "PatientName": "Secret^Name",
        "Modality": "CT",
        "Rows": pixels.shape[-3 if colour else -2],
        "Columns": pixels.shape[-2 if colour else -1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelSpacing": [0.8, 0.7],
        "SliceThickness": 2.5,
        "ImagePositionPatient": [-10.0, 20.0, 30.0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelData": pixels.tobytes(),
        **({"PlanarConfiguration": 0} if colour else {}),
        **tags,
    }
    for name, value in settings.items():
        if value is not None:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def test_dicom_rescale_window_and_one_slice_geometry(tmp_path):
    pixels = values(np.uint16, (20, 30)) // 16
    path = dicom(
        tmp_path / "Bäckerei 頭部.dcm",
        pixels,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=[40, 600],
        WindowWidth=[400, 1500],
    )
    for name in (path, shutil.copy(path, tmp_path / "without extension")):
        image = read_image(name)
        np.testing.assert_array_equal(image.array, pixels[None].astype(int) - 1024)
        assert image.window == (-160, 240) and image.modality == "CT" and image.is_volume and image.spacing_known
        np.testing.assert_allclose(
            image.ijk_to_ras, [[-0.7, 0, 0, 10], [0, -0.8, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]], atol=1e-12
        )
    scaled = read_image(dicom(tmp_path / "f.dcm", pixels, RescaleSlope=0.25, RescaleIntercept=-3.5))
    np.testing.assert_allclose(scaled.array, pixels[None] * 0.25 - 3.5)
    assert scaled.window is None


@pytest.mark.parametrize(
    ("dtype", "bits", "slope", "intercept"),
    [
        (np.uint8, 8, 1, 0),
        (np.uint16, 12, 1, 0),
        (np.uint16, 16, 2, -1000),
        (np.uint16, 12, 0.5, 3),
        (np.int16, 16, 1, 0),
    ],
)
def test_monochrome1_becomes_bright_where_values_were_low(tmp_path, dtype, bits, slope, intercept):
    pixels = values(dtype, (20, 30)) >> (np.dtype(dtype).itemsize * 8 - bits)
    lower, upper = np.percentile(pixels * float(slope) + intercept, (20, 70)).astype(int)
    path = dicom(
        tmp_path / "x.dcm",
        pixels,
        PhotometricInterpretation="MONOCHROME1",
        BitsStored=bits,
        HighBit=bits - 1,
        Modality="DX",
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        ImagerPixelSpacing=[0.2, 0.1],
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        WindowCenter=float(lower + upper) / 2,
        WindowWidth=float(upper - lower),
    )
    image = read_image(path)
    given = pixels.astype(float) * slope + intercept
    total = given + image.array  # the same for every pixel: an exact mirror
    assert np.ptp(total) == 0
    shown = (image.array - image.window[0]) / (image.window[1] - image.window[0])
    np.testing.assert_allclose(shown, 1 - (given - lower) / (upper - lower), atol=1e-9)
    assert not image.is_volume and image.modality == "DX"
    assert image.spacing_known and "detector" in image.warnings[0]
    np.testing.assert_allclose(image.ijk_to_ras, np.diag([-0.1, -0.2, 1, 1]))


def test_ultrasound_single_frame_is_rgb_and_loops_are_refused(tmp_path):
    pixels = values(np.uint8, (1, 20, 30, 3))
    flat = {"Modality": "US", "ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    image = read_image(dicom(tmp_path / "one.dcm", pixels, NumberOfFrames=1, **flat))
    np.testing.assert_array_equal(image.array, pixels[0])
    assert not image.is_volume and not image.spacing_known and image.modality == "US"
    for frames in (np.repeat(pixels, 7, axis=0), np.repeat(pixels[..., 0], 7, axis=0)):
        with pytest.raises(InputError, match=r"7 frames \(US, 30 x 20 pixels\); export the frame"):
            read_image(dicom(tmp_path / "loop.dcm", frames, NumberOfFrames=7, **flat))


def test_real_dicom_series_is_exact(data_dir, tmp_path):
    folder = data_dir / "volumes" / "head_mr_t1_dicom"
    image = read_image(folder)
    slices = [pydicom.dcmread(path) for path in folder.iterdir() if path.suffix == ".dcm"]
    axes = np.reshape(slices[0].ImageOrientationPatient, (2, 3)).astype(float)
    normal = np.cross(*axes)
    slices.sort(key=lambda one: normal @ np.array(one.ImagePositionPatient, float))
    np.testing.assert_array_equal(image.array, np.stack([one.pixel_array for one in slices]))
    rows, columns = (float(value) for value in slices[0].PixelSpacing)
    for k, one in enumerate(slices):
        for i, j in ((0, 0), (273, 0), (0, 383), (273, 383)):
            lps = np.array(one.ImagePositionPatient, float) + i * columns * axes[0] + j * rows * axes[1]
            found = image.ijk_to_ras @ (i, j, k, 1)
            np.testing.assert_allclose(found[:3], lps * (-1, -1, 1), atol=1e-4)
    assert image.modality == "MR" and image.is_volume and not image.warnings
    single = read_image(folder / "N2D_0187.dcm")
    assert single.array.shape == (1, 384, 274) and single.is_volume
    assert (single.array[0] == image.array).all(axis=(1, 2)).sum() == 1


def test_series_faults(tmp_path):
    def series(name: str, positions, **tags) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for position in positions:
            file = folder / f"{tags.get('SeriesInstanceUID', '')}_{len(list(folder.iterdir()))}.dcm"
            dicom(file, values(np.int16, (20, 30)), ImagePositionPatient=list(position), **tags)
        return folder

    even = [(0, 0, 5 * k) for k in (3, 1, 0, 2)]
    good = read_image(series("頭部 even", even))
    np.testing.assert_allclose(good.ijk_to_ras[:3, 2], (0, 0, 5))
    assert not good.warnings
    missing = read_image(series("missing", [*even, (0, 0, 25)]))
    assert "not evenly spaced (5 to 10 mm)" in missing.warnings[0]
    tilted = read_image(series("tilted", [(0, 1.0 * k, 5 * k) for k in range(4)]))
    np.testing.assert_allclose(tilted.ijk_to_ras[:3, 2], (0, -1, 5))
    assert "sheared by 11.3 degrees" in tilted.warnings[0]
    with pytest.raises(InputError, match="same position"):
        read_image(series("twice", even + even))
    mixed = series("mixed", even)
    series("mixed", [(0, 0, 0)], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    with pytest.raises(InputError, match="localiser"):
        read_image(mixed)
    two = series("two", even, SeriesDescription="Thorax venös", SpecificCharacterSet="ISO_IR 100")
    series("two", even[:2], SeriesInstanceUID="1.2.3.5", SeriesDescription="Lung")
    with pytest.raises(
        InputError, match=r"2 DICOM series .*4 slices.*Thorax.*2 slices, 'Lung'.*folder of its own"
    ) as caught:
        read_image(two)
    str(caught.value).encode()  # can be printed whatever the tag's encoding
    assert "Secret" not in str(caught.value)
    assert read_image(two / "1.2.3.5_4.dcm").array.shape == (1, 20, 30)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="no DICOM images"):
        read_image(tmp_path / "empty")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.97])
def test_truncated_files_are_refused(tmp_path, part):
    path = dicom(tmp_path / "Bäckerei.dcm", values(np.int16, (60, 60)))
    read_image(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match="Bäckerei"):
        read_image(path)
    with pytest.raises(InputError, match=r"no DICOM images|cannot be read"):
        read_image(tmp_path)
