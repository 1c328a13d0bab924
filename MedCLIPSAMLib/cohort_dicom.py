"""DICOM files of one folder as inputs of a cohort: series of positioned slices, and single files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from MedCLIPSAMLib.medical_image import MedicalImage, file_label

SUFFIXES = (".dcm", ".dicom", ".ima")
_PATIENT, _POSITION, _ORIENTATION = "0010|0020", "0020|0032", "0020|0037"


@dataclass(frozen=True)
class DicomGroup:
    """DICOM files that are one input.

    Attributes:
        files: In the order of their names.
        is_whole_folder: Whether they are the only series of their folder, so that the folder stands for them.
        patient: Pseudonym, see :class:`MedCLIPSAMLib.cohort_inputs.CohortInput`.
    """

    files: tuple[Path, ...]
    is_whole_folder: bool
    patient: str | None


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name or its first bytes; a DICOMDIR is none, for it holds no image."""
    if path.name.upper() == "DICOMDIR":
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def group(folder: Path, files: Sequence[Path]) -> list[DicomGroup]:
    """Return the inputs among the DICOM files of a folder.

    Several slices of one series that have a position in space belong together. Other files, such as ultrasound and
    radiographs, are inputs by themselves, also those that cannot be read: the run then says why.
    """
    if not files:
        return []
    import SimpleITK as sitk

    said = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        identifiers = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        series = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), one) for one in identifiers]
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(said)
    groups, grouped = [], set()
    for names in series:
        paths = tuple(sorted(folder / Path(name).name for name in names))
        tags = _tags(paths[0])
        if len(paths) > 1 and tags.get(_POSITION) and tags.get(_ORIENTATION):
            groups.append(DicomGroup(paths, len(series) == 1, _pseudonym(tags)))
            grouped.update(paths)
    groups += [DicomGroup((file,), False, patient_of(file)) for file in files if file not in grouped]
    return groups


def patient_of(path: Path) -> str | None:
    """Return the pseudonym of a DICOM file's patient, or None where it names none or cannot be read."""
    return _pseudonym(_tags(path))


def read_series(path: Path, files: Sequence[Path]) -> MedicalImage:
    """Read one DICOM series of a folder that holds several.

    Args:
        path: How the series is called in messages.
        files: Its slices, in any order.

    Raises:
        InputError: As :func:`MedCLIPSAMLib.file_dicom.read_dicom`.
    """
    from MedCLIPSAMLib.file_dicom import read_dicom_slices
    from MedCLIPSAMLib.images import check_finite

    image = read_dicom_slices(path, files)
    check_finite(image.array, file_label(path))
    return image


def _tags(path: Path) -> dict[str, str]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return {}
    keys = (_PATIENT, _POSITION, _ORIENTATION)
    return {key: reader.GetMetaData(key).strip(" \0") for key in keys if reader.HasMetaDataKey(key)}


def _pseudonym(tags: dict[str, str]) -> str | None:
    patient = tags.get(_PATIENT, "")
    return hashlib.blake2b(patient.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest() if patient else None
