"""What belongs to a cohort: the pictures, volumes and DICOM series below a folder, or those of a list."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from MedCLIPSAMLib import cohort_dicom
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import PICTURE_SUFFIXES, VOLUME_SUFFIXES, read_image
from MedCLIPSAMLib.medical_image import MedicalImage, file_label

logger = logging.getLogger(__name__)

LIST_COLUMNS = ("file", "patient", "subject")
_OWN_RESULTS = re.compile(r"cohort\.json|(\d+-.+-)?result\.json")  # the number and the name of one of several prompts
_READABLE = 60  # characters of a case's name that are taken from the file's
_HEADERS = (".nhdr", ".mhd")  # their values lie in files of their own


@dataclass(frozen=True)
class CohortInput:
    """One image, volume or DICOM series.

    Attributes:
        name: Of the case, see :func:`case_name`.
        file: Where it is, relative to the root of the cohort, with ``/`` between folders.
        path: A file, or a folder with one DICOM series.
        parts: The files of a DICOM series that shares its folder with others; else empty.
        patient: Pseudonym of the patient: of a DICOM file 16 hexadecimal digits of the BLAKE2b hash of its PatientID
            (who knows the IDs can compute them again), of a list what it says.
    """

    name: str
    file: str
    path: Path
    parts: tuple[Path, ...] = ()
    patient: str | None = None


def find_inputs(source: str | Path, output: str | Path | None = None) -> tuple[Path, list[CohortInput]]:
    """List the inputs of a cohort, sorted by file; none is decoded.

    Args:
        source: A folder, which is searched with all its folders; one image or volume; or a list ``.csv`` with a column
            ``file`` (relative to the list's folder) and, where known, ``patient`` or ``subject``. In a folder, hidden
            files, segmentations (``.seg.nrrd``), results of this program, and ``masks`` beside ``images`` are left
            out. Of DICOM, a series of positioned slices is one input, and any other file is one by itself.
        output: Folder of the results, which is not searched.

    Returns:
        The root that the inputs' ``file`` is relative to, and the inputs.

    Raises:
        InputError: Nothing there, or a list without the column.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{file_label(source)} does not exist; check the path.")
    if source.is_file():
        root = source.parent
        inputs = _listed(source) if source.suffix.lower() == ".csv" else [_input(root, source)]
    else:
        root = source
        inputs = [one for folder, files in _walk(source, output) for one in _inputs_of(root, folder, files)]
    if not inputs:
        known = ", ".join((*PICTURE_SUFFIXES, *VOLUME_SUFFIXES))
        raise InputError(f"{file_label(source)} holds no images ({known}) and no DICOM files; pass another folder.")
    by_name: dict[str, CohortInput] = {}
    for one in inputs:
        if (other := by_name.setdefault(one.name, one)) is not one and other.file != one.file:
            raise InputError(
                f"{one.file!r} and {other.file!r} would have the same name {one.name}; rename one of them."
            )
    return root, sorted(by_name.values(), key=lambda one: one.file)


def case_name(file: str) -> str:
    """Return the name of a case: letters and digits of its path, and eight digits of the path's SHA-256.

    It depends on that path alone, so that other files never change it, and it is a valid and unique file name on every
    system, also where upper and lower case are the same.
    """
    plain = unicodedata.normalize("NFKD", _without_suffix(file)).encode("ascii", "ignore").decode()
    words = re.sub(r"[^A-Za-z0-9]+", "-", plain)[-_READABLE:].strip("-")
    digest = hashlib.sha256(file.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{words or 'case'}-{digest}"


def read_input(path: Path, parts: Sequence[Path] = ()) -> MedicalImage:
    """Read an input; see :func:`MedCLIPSAMLib.file_io.read_image`, which says what it raises."""
    return cohort_dicom.read_series(path, parts) if parts else read_image(path)


def content_digest(path: Path, parts: Sequence[Path] = ()) -> str:
    """Return the SHA-256 of an input's content; names of files and of folders make no difference.

    Raises:
        InputError: A file cannot be read.
    """
    if parts:
        files = list(parts)
    elif path.is_dir():
        files = [one for one in path.iterdir() if one.is_file() and not one.name.startswith(".")]
    else:
        files = [path, *_detached(path)]
    try:
        digests = []
        for file in files:
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    except OSError as error:
        raise InputError(f"{file_label(path)} cannot be read ({error.strerror or error}); check it.") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _detached(path: Path) -> list[Path]:
    """Return the files with the values of a NRRD or MetaImage header, or all files beside it where it lists several."""
    if path.suffix.lower() not in _HEADERS:
        return []
    try:
        text = path.read_bytes()[:65536].decode("utf-8", "surrogateescape")
    except OSError:
        return []  # told when the file itself is read
    found = re.search(r"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", text, re.MULTILINE | re.IGNORECASE)
    if found and (path.parent / found[1]).is_file():
        return [path.parent / found[1]]
    return sorted(one for one in path.parent.iterdir() if one.is_file() and one != path)


def _walk(source: Path, output: str | Path | None) -> Iterator[tuple[Path, list[Path]]]:
    """Yield every folder with its files; links to folders are followed, each folder comes once."""
    avoided = Path(output).resolve() if output is not None else None
    seen: set[Path] = set()
    for place, folders, files in os.walk(source, followlinks=True):
        folder = Path(place)
        real = folder.resolve()
        if real in seen or real == avoided or (folder != source and any(map(_OWN_RESULTS.fullmatch, files))):
            folders.clear()
            continue
        seen.add(real)
        if "images" in folders and "masks" in folders:
            logger.warning("%s holds images and masks: the masks are left out.", folder.name)
            folders.remove("masks")
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield folder, [folder / name for name in sorted(files) if not name.startswith(".")]


def _inputs_of(root: Path, folder: Path, files: list[Path]) -> Iterator[CohortInput]:
    dicom = []
    for file in files:
        name = file.name.lower()
        if name.endswith((*PICTURE_SUFFIXES, *VOLUME_SUFFIXES)):
            if not name.endswith(".seg.nrrd"):
                yield _input(root, file)
        elif cohort_dicom.is_dicom(file):
            dicom.append(file)
    for found in cohort_dicom.group(folder, dicom):
        whole = found.is_whole_folder
        anchor = folder if whole else found.files[0]
        parts = () if whole or len(found.files) == 1 else found.files
        yield _input(root, anchor, parts, found.patient)


def _listed(path: Path) -> list[CohortInput]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream)
            if "file" not in (reader.fieldnames or ()):
                columns = ", ".join(reader.fieldnames or ()) or "(none)"
                raise InputError(f"{file_label(path)} has the columns {columns}; a column 'file' is needed.")
            rows = [row for row in reader if (row["file"] or "").strip()]
    except (OSError, csv.Error) as error:
        raise InputError(f"{file_label(path)} cannot be read ({error}); save it as CSV in UTF-8.") from error
    inputs = []
    for row in rows:
        patient = (row.get("patient") or row.get("subject") or "").strip() or None
        inputs.append(_input(path.parent, path.parent / row["file"].strip(), (), patient))
    return inputs


def _input(root: Path, path: Path, parts: Sequence[Path] = (), patient: str | None = None) -> CohortInput:
    try:
        file = path.relative_to(root).as_posix()
    except ValueError:  # a list may name files elsewhere
        file = path.as_posix()
    name = case_name(root.resolve().name if file == "." else file)
    if patient is None and path.is_file() and cohort_dicom.is_dicom(path):
        patient = cohort_dicom.patient_of(path)
    return CohortInput(name, file, path, tuple(parts), patient)


def _without_suffix(file: str) -> str:
    for suffix in sorted((*PICTURE_SUFFIXES, *VOLUME_SUFFIXES, *cohort_dicom.SUFFIXES), key=len, reverse=True):
        if file.lower().endswith(suffix):
            return file[: -len(suffix)]
    return file
