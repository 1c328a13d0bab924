"""An image as read from a file, and the one place where ITK's LPS geometry becomes an IJK-to-RAS matrix."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Swaps LPS and RAS millimetres, either way."""


@dataclass
class MedicalImage:
    """What a file holds.

    Attributes:
        array: (H, W) or (H, W, 3) for a 2D image, (K, J, I) for a volume; real, as stored (DICOM: after the rescale).
        ijk_to_ras: (4, 4) float64 from voxel indices (column, row, slice) to millimetres, right-anterior-superior.
            A 2D image without geometry lies in the plane z = 0 with its top left pixel at the origin.
        modality: DICOM's code ("CT", "MR", "US", "CR", "DX", ...), or None where the file does not say.
        window: (lower, upper) intensity that the file asks to be shown, or None.
        is_volume: True for a volume, also one with a single slice.
        path: Where it was read from.
        spacing_known: False when the file gives no pixel size; the matrix then says 1 mm.
        warnings: Sentences for the user.
    """

    array: np.ndarray
    ijk_to_ras: np.ndarray
    modality: str | None
    window: tuple[float, float] | None
    is_volume: bool
    path: Path
    spacing_known: bool
    warnings: list[str] = field(default_factory=list)


def matrix_of(image: sitk.Image) -> np.ndarray:
    """Return the (4, 4) IJK-to-RAS matrix of a 2D or 3D ITK image; a 2D image lies in the plane z = 0."""
    size = image.GetDimension()
    matrix = np.eye(4)
    matrix[:size, :size] = np.reshape(image.GetDirection(), (size, size)) * np.asarray(image.GetSpacing())
    matrix[:size, 3] = image.GetOrigin()
    return LPS_RAS @ matrix


def plane_matrix(spacing: tuple[float, ...] = (1.0, 1.0)) -> np.ndarray:
    """Return the (4, 4) IJK-to-RAS matrix of a 2D image without position, from its (column, row) spacing in mm."""
    return LPS_RAS @ np.diag([spacing[0], spacing[1], 1.0, 1.0])


def itk_reason(error: RuntimeError) -> str:
    """Return the last line of an ITK error, which is the one that tells the cause, without its stack of names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("sitk::ERROR: ")[:200] if lines else "unknown cause"


def file_label(path: Path) -> str:
    """Return the path for a message; bytes that are not text are replaced, so that it can always be printed."""
    return os.fsencode(path).decode("utf-8", "replace")
