"""DICOM files and series by GDCM: rescaled values, one exact matrix, the window, and what makes a series unfit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.medical_image import LPS_RAS, MedicalImage, file_label, itk_reason, plane_matrix

_MODALITY = "0008|0060"
_SERIES_DESCRIPTION = "0008|103e"
_SLICE_THICKNESS = "0018|0050"
_SLICE_DISTANCE = "0018|0088"
_DETECTOR_SPACING = "0018|1164"
_POSITION = "0020|0032"
_ORIENTATION = "0020|0037"
_PHOTOMETRIC = "0028|0004"
_FRAMES = "0028|0008"
_PIXEL_SPACING = "0028|0030"
_BITS_STORED = "0028|0101"
_PIXEL_REPRESENTATION = "0028|0103"
_WINDOW_CENTRE = "0028|1050"
_WINDOW_WIDTH = "0028|1051"
_INTERCEPT = "0028|1052"
_SLOPE = "0028|1053"
_KEPT = (
    *(_MODALITY, _SLICE_THICKNESS, _SLICE_DISTANCE, _DETECTOR_SPACING, _POSITION, _ORIENTATION, _PHOTOMETRIC, _FRAMES),
    *(_PIXEL_SPACING, _BITS_STORED, _PIXEL_REPRESENTATION, _WINDOW_CENTRE, _WINDOW_WIDTH, _INTERCEPT, _SLOPE),
)


@dataclass
class _Slice:
    """One DICOM image.

    Attributes:
        pixels: (H, W) or (H, W, C), rescaled.
        spacing: (column, row) distance in mm; 1 where unknown.
        spacing_known: Whether the file gives it.
        matrix: (4, 4) index-to-LPS matrix, or None for an image in colour or without a position.
        tags: The tags of ``_KEPT`` as text, "" where absent.
    """

    pixels: np.ndarray
    spacing: tuple[float, float]
    spacing_known: bool
    matrix: np.ndarray | None
    tags: dict[str, str]


def read_dicom(path: Path) -> MedicalImage:
    """Read a DICOM file, or a folder that holds one series; see :func:`MedCLIPSAMLib.file_io.read_image`.

    Raises:
        InputError: Not readable, several frames or series, or slices that do not make up one volume.
    """
    if path.is_dir():
        return read_dicom_slices(path, [Path(name) for name in _series_files(path)])
    return read_dicom_slices(path, [path])


def read_dicom_slices(path: Path, files: Sequence[Path]) -> MedicalImage:
    """Read the files of one series, in any order.

    Args:
        path: What messages call it.
        files: A single one may be a 2D image.

    Raises:
        InputError: As for :func:`read_dicom`.
    """
    return _assemble(path, [_read_slice(file) for file in files])


def _tag(reader: sitk.ImageFileReader, key: str) -> str:
    if not reader.HasMetaDataKey(key):
        return ""
    text = reader.GetMetaData(key).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text.strip(" \0")


def _read_slice(path: Path) -> _Slice:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        tags = {key: _tag(reader, key) for key in _KEPT}
        size = reader.GetSize()
        frames = max(int(_number(tags[_FRAMES]) or 1), size[2] if len(size) > 2 else 1)
        if frames > 1:
            raise InputError(
                f"{file_label(path)} holds {frames} frames ({tags[_MODALITY] or 'unknown modality'}, "
                f"{size[0]} x {size[1]} pixels); export the frame to segment as a file of its own, or convert the "
                "volume to NRRD or NIfTI."
            )
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"{file_label(path)} cannot be read as a DICOM image ({itk_reason(error)}); it may be damaged, "
            "incomplete or without pixels (a report, a DICOMDIR): export it again."
        ) from error
    array = sitk.GetArrayFromImage(image)
    if image.GetDimension() == 3:
        array = array[0]
    column, row = image.GetSpacing()[:2]  # GDCM knows the regions of ultrasound, but not every class's spacing tags
    given = _numbers(tags[_PIXEL_SPACING], 2) or _numbers(tags[_DETECTOR_SPACING], 2)
    if given and min(given) > 0:
        row, column = given
    known = bool(given and min(given) > 0) or (column, row) != (1.0, 1.0)
    matrix = _slice_matrix(tags, column, row) if array.ndim == 2 else None
    return _Slice(array, (column, row), known, matrix, tags)


def _slice_matrix(tags: dict[str, str], column: float, row: float) -> np.ndarray | None:
    """Return the index-to-LPS matrix of one slice (DICOM PS3.3 C.7.6.2.1.1), or None if it has no position."""
    position, axes = _numbers(tags[_POSITION], 3), _numbers(tags[_ORIENTATION], 6)
    if not position or not axes or not (any(axes[:3]) and any(axes[3:])):
        return None
    x, y = (np.array(axis) / np.linalg.norm(axis) for axis in (axes[:3], axes[3:]))
    thickness = _number(tags[_SLICE_DISTANCE]) or _number(tags[_SLICE_THICKNESS]) or 0.0
    matrix = np.eye(4)
    matrix[:3] = np.column_stack(
        (x * column, y * row, np.cross(x, y) * (thickness if thickness > 0 else 1.0), position)
    )
    return matrix


def _series_files(folder: Path) -> tuple[str, ...]:
    """Return the files of the only series in ``folder``."""
    said = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what is wrong is told below, in words for the user
    try:
        identifiers = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(said)
    series = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name) for name in identifiers]
    if not series:
        raise InputError(
            f"{file_label(folder)} holds no DICOM images; pass the folder in which the slices of one series lie "
            "(subfolders are not searched), or a single image file."
        )
    if len(series) > 1:
        listing = "; ".join(
            f"{len(files)} slices, {_description(files[0])}, first file {file_label(Path(Path(files[0]).name))}"
            for files in series
        )
        raise InputError(
            f"{file_label(folder)} holds {len(series)} DICOM series ({listing}); put the series to segment in a "
            "folder of its own, or pass one file to segment only that slice."
        )
    return series[0]


def _description(file: str) -> str:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return "not readable"
    return f"'{_tag(reader, _SERIES_DESCRIPTION) or 'no description'}'"


def _assemble(path: Path, slices: list[_Slice]) -> MedicalImage:
    """Make one image of slices in any order."""
    warnings: list[str] = []
    first = slices[0]
    if not first.tags[_PIXEL_SPACING] and first.tags[_DETECTOR_SPACING]:
        warnings.append("The pixel size is that of the detector; the anatomy is smaller by the magnification.")
    if len(slices) == 1 and first.matrix is None:
        array, matrix, volume = first.pixels, plane_matrix(first.spacing), False
        if array.ndim == 3 and array.shape[2] != 3:
            raise InputError(f"{file_label(path)} has {array.shape[2]} channels; export it as grey or RGB.")
    else:
        slices, matrix = _stack_geometry(path, slices, warnings)
        array, volume = np.stack([one.pixels for one in slices]), True
    middle = slices[len(slices) // 2]
    window = _window(middle.tags) if volume or array.ndim == 2 else None
    return MedicalImage(
        array, matrix, first.tags[_MODALITY] or None, window, volume, path, first.spacing_known, warnings
    )


def _stack_geometry(path: Path, slices: list[_Slice], warnings: list[str]) -> tuple[list[_Slice], np.ndarray]:
    """Sort slices along their normal and return them with the (4, 4) IJK-to-RAS matrix of the stack."""
    placed = [(one, one.matrix) for one in slices if one.matrix is not None]
    if len(placed) < len(slices):
        raise InputError(
            f"{file_label(path)} holds {len(slices)} images that are in colour or have no position in space, so they "
            "are no volume; pass one of the files."
        )
    plane = placed[0][1][:3, :2]
    if any(one.pixels.shape != slices[0].pixels.shape for one in slices) or any(
        np.abs(matrix[:3, :2] - plane).max() > 1e-3 * np.abs(plane).max() for _, matrix in placed
    ):
        raise InputError(
            f"{file_label(path)} mixes slices of different size, spacing or orientation (localiser images?); put "
            "the slices of one stack in a folder of their own, or pass one file."
        )
    normal = np.cross(plane[:, 0], plane[:, 1])
    normal /= np.linalg.norm(normal)
    placed.sort(key=lambda pair: float(normal @ pair[1][:3, 3]))
    matrix = placed[0][1].copy()
    if len(placed) > 1:
        steps = np.diff([normal @ one[:3, 3] for _, one in placed])
        step = float(np.median(steps))
        if steps.min() < max(1e-3, 1e-2 * step):
            raise InputError(
                f"{file_label(path)} holds several slices at the same position (phases, echoes or copies?); put one "
                "stack in a folder of its own."
            )
        if np.abs(steps - step).max() > 0.1 * step:
            warnings.append(
                f"The slices are not evenly spaced ({steps.min():.3g} to {steps.max():.3g} mm): one may be missing, "
                "and positions and volumes in mm are approximate."
            )
        matrix[:3, 2] = (placed[-1][1][:3, 3] - placed[0][1][:3, 3]) / (len(placed) - 1)
        cosine = float(normal @ matrix[:3, 2] / np.linalg.norm(matrix[:3, 2]))
        if cosine < np.cos(np.deg2rad(0.5)):
            angle = np.rad2deg(np.arccos(cosine))
            warnings.append(f"The stack is sheared by {angle:.1f} degrees (tilted gantry); the matrix keeps the shear.")
    return [one for one, _ in placed], LPS_RAS @ matrix


def _numbers(text: str, count: int) -> list[float] | None:
    """Return the first ``count`` of DICOM's backslash-separated numbers, or None if there are not so many."""
    try:
        values = [float(value) for value in text.split("\\")[:count]]
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def _number(text: str) -> float | None:
    values = _numbers(text, 1)
    return values[0] if values else None


def _window(tags: dict[str, str]) -> tuple[float, float] | None:
    """Return the first window as (centre - width / 2, centre + width / 2), as viewers do.

    DICOM PS3.3 C.11.2.1.2 shifts both ends by half an intensity, which no eye sees in a window of hundreds. Of
    MONOCHROME1, in which high values are dark, GDCM mirrors the stored values in their range; the window follows.
    """
    centre, width = _number(tags[_WINDOW_CENTRE]), _number(tags[_WINDOW_WIDTH])
    if centre is None or width is None or width <= 0:
        return None
    if tags[_PHOTOMETRIC] == "MONOCHROME1":
        signed = tags[_PIXEL_REPRESENTATION] == "1"
        mirrored_sum = -1.0 if signed else 2.0 ** (_number(tags[_BITS_STORED]) or 16) - 1
        slope = _number(tags[_SLOPE])
        slope = 1.0 if slope is None else slope
        centre = slope * mirrored_sum + 2 * (_number(tags[_INTERCEPT]) or 0.0) - centre
    return centre - width / 2, centre + width / 2
