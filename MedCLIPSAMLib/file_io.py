"""Images in: PNG, JPEG, TIFF, DICOM, NRRD, NIfTI and MetaImage, all as one :class:`MedicalImage`."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_dicom import read_dicom
from MedCLIPSAMLib.file_picture import read_picture
from MedCLIPSAMLib.images import check_finite
from MedCLIPSAMLib.medical_image import MedicalImage, file_label, itk_reason, matrix_of

__all__ = ["PICTURE_SUFFIXES", "VOLUME_SUFFIXES", "MedicalImage", "read_image"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
VOLUME_SUFFIXES = (".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd")
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def read_image(path: str | Path) -> MedicalImage:
    """Read an image or volume.

    Args:
        path: A PNG, JPEG, TIFF, NRRD, NIfTI, MetaImage or DICOM file (DICOM also without extension), or a folder that
            holds one DICOM series. One file of a DICOM series gives that slice alone.

    Returns:
        The image at its full bit depth. High values are bright: DICOM's MONOCHROME1 and TIFF's min-is-white are
        inverted. NRRD, NIfTI, MetaImage and positioned DICOM slices are volumes even with one slice; their 2D variants,
        one slice in RGB and picture files are 2D. The window is DICOM's first one (of the middle slice of a series).

    Raises:
        InputError: No such file, unknown extension, damaged, several series, frames or time points, a colour volume,
            NaN or infinite values, or a matrix that cannot be inverted; the message says what to do.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise InputError(f"{file_label(path)} does not exist; check the path.")
    if path.is_dir() or name.endswith(_DICOM_SUFFIXES):
        image = read_dicom(path)
    elif name.endswith(".seg.nrrd"):
        raise InputError(f"{file_label(path)} is a segmentation; pass the image that it belongs to.")
    elif name.endswith(PICTURE_SUFFIXES):
        image = read_picture(path)
    elif name.endswith(VOLUME_SUFFIXES):
        image = _read_volume(path)
    elif _looks_like_dicom(path):
        image = read_dicom(path)
    else:
        known = ", ".join((*PICTURE_SUFFIXES, *VOLUME_SUFFIXES, *_DICOM_SUFFIXES))
        raise InputError(
            f"{file_label(path)} is of no known type; pass one of {known}, or a folder with a DICOM series."
        )
    check_finite(image.array, file_label(path))
    if not np.isfinite(image.ijk_to_ras).all() or abs(np.linalg.det(image.ijk_to_ras[:3, :3])) < 1e-12:
        raise InputError(
            f"{file_label(path)} has a geometry that cannot be inverted (zero spacing or parallel axes); "
            "correct its header."
        )
    return image


def _looks_like_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise InputError(f"{file_label(path)} cannot be opened ({error.strerror}); check its permissions.") from error


def _read_volume(path: Path) -> MedicalImage:
    """Read NRRD, NIfTI or MetaImage by ITK."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        _check_nifti_is_complete(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if any(count > 1 for count in size[3:]):
            raise InputError(
                f"{file_label(path)} has {len(size)} dimensions ({' x '.join(map(str, size))}); extract one 3D frame "
                "(time point, echo or channel) and pass that."
            )
        image = reader.Execute()
        while image.GetDimension() > 3:
            image = image[(slice(None),) * (image.GetDimension() - 1) + (0,)]
    except RuntimeError as error:
        raise InputError(
            f"{file_label(path)} cannot be read ({itk_reason(error)}); it may be damaged, incomplete or without "
            "its data file: copy or export it again, for example as NRRD from 3D Slicer."
        ) from error
    array = sitk.GetArrayFromImage(image)
    volume = image.GetDimension() == 3
    channels = image.GetNumberOfComponentsPerPixel()
    if channels > 1:
        if channels != 3 or (volume and array.shape[0] > 1):
            raise InputError(
                f"{file_label(path)} has {channels} values per voxel ({' x '.join(map(str, size))} voxels); convert "
                "it to grey, or extract one channel or frame."
            )
        array, volume = (array[0] if volume else array), False
    if array.dtype.kind not in "iuf":
        raise InputError(f"{file_label(path)} holds {array.dtype} values; convert it to real numbers (its magnitude).")
    return MedicalImage(array, matrix_of(image), None, None, volume, path, True)


def _check_nifti_is_complete(path: Path) -> None:
    """Raise :class:`InputError` for a NIfTI file that ends too early or fails its checksum.

    ITK fills what is missing with whatever is in memory and says nothing.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            header = file.read(348)
            expected = _nifti_bytes(header)
            if zipped:
                found = len(header)
                while chunk := file.read(1 << 20):
                    found += len(chunk)
            else:
                found = path.stat().st_size
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file_label(path)} is damaged or incomplete ({error}); copy or export it again.") from error
    if expected is None or found < expected:
        detail = "no NIfTI-1 header" if expected is None else f"{found} bytes of {expected}"
        raise InputError(f"{file_label(path)} is damaged or incomplete ({detail}); copy or export it again as NIfTI-1.")


def _nifti_bytes(header: bytes) -> int | None:
    """Return how many bytes a NIfTI-1 file must have by its header, or None if it is none."""
    for order in "<>":
        if len(header) == 348 and struct.unpack_from(order + "i", header)[0] == 348:
            rank, *sides = struct.unpack_from(order + "8h", header, 40)
            (bits,) = struct.unpack_from(order + "h", header, 72)
            (offset,) = struct.unpack_from(order + "f", header, 108)
            return int(offset) + math.prod(max(1, side) for side in sides[: max(0, rank)]) * bits // 8
    return None
