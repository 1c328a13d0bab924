"""A cohort on disk: its table ``cohort.csv``, what is kept of each case, and the person's list of rejected cases.

::

    COHORT/
      cohort.json            prompts, engine, settings, weights, source
      cohort.csv             a row for each case and prompt
      cases/CASE/            what `segment` writes for one input, and case.json, which is written last
      contact-sheet.html, thumbnails/
      rejected.txt           optional, by a person: one case name in a line
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib.cohort_rows import DONE, CohortRow, read_table
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.medical_image import file_label

if TYPE_CHECKING:
    from MedCLIPSAMLib.medical_image import MedicalImage

logger = logging.getLogger(__name__)

FORMAT = 1
SETTINGS_FILE, CASES, THUMBNAILS, REJECTED_FILE = "cohort.json", "cases", "thumbnails", "rejected.txt"
CASE_FILE = "case.json"


@dataclass(frozen=True)
class CohortResult:
    """One prompt on one case; the attributes of the same name are those of :class:`CohortRow`.

    Attributes:
        files: Path by kind: "mask", "coarse" (images) or "segmentation" (volumes), "saliency", "entropy", "result",
            and "overview" where one was made. Empty unless the case is done.
    """

    prompt: str
    status: str
    reason: str | None
    presence: float | None
    skipped: bool | None
    confidence: float | None
    entropy: float | None
    mask_share: float | None
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class CohortCase:
    """One input of a cohort.

    Attributes:
        name: Unique, and fit for a file name.
        source: The input, a file or a DICOM folder; see also :meth:`read_image`.
        patient: Pseudonym of the patient, or None.
        kind: "image" or "volume"; None where the input could not be read.
        folder: Where the results are.
        results: One for each prompt, in the order of the prompts.
        rejected: Whether a person has rejected it.
        digest: SHA-256 of the input's content, None where it is not done.
        parts: The files of a DICOM series that shares its folder with others; empty for all other inputs.
    """

    name: str
    source: Path
    patient: str | None
    kind: str | None
    folder: Path
    results: tuple[CohortResult, ...]
    rejected: bool
    digest: str | None = None
    parts: tuple[Path, ...] = ()

    def result(self, prompt: str) -> CohortResult:
        """Return the result of a prompt.

        Raises:
            InputError: The cohort has no such prompt.
        """
        for one in self.results:
            if one.prompt == prompt:
                return one
        known = ", ".join(repr(one.prompt) for one in self.results)
        raise InputError(f"the case {self.name} has no prompt {prompt!r}; it has: {known}.")

    def mask(self, prompt: str) -> np.ndarray:
        """Return the mask of a prompt, bool, (H, W) of an image or (K, J, I) of a volume.

        Raises:
            InputError: No such prompt, the case is not done, or its file is damaged.
        """
        result = self.result(prompt)
        if "mask" in result.files:
            from MedCLIPSAMLib.file_io import read_image

            return read_image(result.files["mask"]).array > 0
        if "segmentation" in result.files:
            return read_segment(result.files["segmentation"], 2 * self.results.index(result), prompt)
        raise InputError(
            f"the case {self.name} has no mask (status: {result.status}"
            f"{', ' + result.reason if result.reason else ''}); leave it out, or run segment-cohort again."
        )

    def read_image(self) -> MedicalImage:
        """Return the input itself.

        Raises:
            InputError: It is not there any more, or not readable.
        """
        from MedCLIPSAMLib.cohort_inputs import read_input

        return read_input(self.source, self.parts)


@dataclass(frozen=True)
class Cohort:
    """A cohort as it is on disk.

    Attributes:
        settings: The content of ``cohort.json``.
        cases: In the order of the table.
    """

    settings: dict[str, Any]
    cases: tuple[CohortCase, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of every case."""
        return tuple(self.settings["prompts"])


def read_cohort(folder: str | Path) -> Cohort:
    """Read a cohort that :func:`MedCLIPSAMLib.cohort.run_cohort` has made, finished or not.

    Args:
        folder: With ``cohort.json`` and ``cohort.csv``, and ``rejected.txt`` where a person has put one there. Names
            in it that the cohort does not have are told: the images may be gone since.

    Raises:
        InputError: No cohort, one of a newer version, or damaged.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if settings is None:
        raise InputError(
            f"{file_label(folder)} is no cohort: {SETTINGS_FILE} is missing; make one with segment-cohort."
        )
    rows = read_table(folder)
    names = dict.fromkeys(row.case for row in rows)
    rejected = read_rejected(folder)
    if unknown := sorted(rejected - set(names)):
        logger.warning(
            "%s names %s%s, which the cohort does not have.",
            file_label(folder / REJECTED_FILE),
            unknown[0],
            f" and {len(unknown) - 1} more" if len(unknown) > 1 else "",
        )
    by_case: dict[str, list[CohortRow]] = {name: [] for name in names}
    for row in rows:
        by_case[row.case].append(row)
    source = Path(settings.get("source") or ".")
    cases = tuple(_case(folder, source, of_case, name in rejected) for name, of_case in by_case.items())
    return Cohort(settings, cases)


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``cohort.json``, or None where there is none.

    Raises:
        InputError: It is damaged or of a newer version.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text("utf-8"))
        known = settings["format"] <= FORMAT and isinstance(settings["prompts"], list)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file_label(path)} is damaged ({error}); make the cohort in another folder.") from error
    if not known:
        raise InputError(
            f"{file_label(path)} has the format {settings['format']!r}, this version knows {FORMAT}; update MedCLIPSAM."
        )
    return settings


def read_rejected(folder: Path) -> set[str]:
    """Return the names in ``rejected.txt``; empty lines and lines that begin with ``#`` count as nothing.

    Raises:
        InputError: It cannot be read.
    """
    path = folder / REJECTED_FILE
    if not path.is_file():
        return set()
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{file_label(path)} cannot be read ({error}); save it as UTF-8 text.") from error
    return {line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")}


def read_case(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``case.json`` in a case's folder, or None where it is missing, damaged or not whole."""
    try:
        content = json.loads((folder / CASE_FILE).read_text("utf-8"))
        rows = [CohortRow(**row) for row in content["rows"]]
        files = [name for one in content["files"] for name in one]
        whole = content["format"] == FORMAT and rows and len(rows) == len(content["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if whole and all((folder / name).is_file() for name in files) else None


def read_segment(path: Path, number: int, name: str) -> np.ndarray:
    """Return one segment (K, J, I) bool of a ``.seg.nrrd`` file of ours.

    Args:
        path: The file.
        number: Of the segment, from 0.
        name: That it must have.

    Raises:
        InputError: The file is damaged or has no such segment.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        found = reader.GetMetaData(f"Segment{number}_Name")
        value = int(reader.GetMetaData(f"Segment{number}_LabelValue"))
        layer = int(reader.GetMetaData(f"Segment{number}_Layer"))
        labels = sitk.GetArrayFromImage(reader.Execute())
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{file_label(path)} cannot be read; it may be damaged: run segment-cohort again.") from error
    if found.encode("utf-8", "surrogateescape").decode("utf-8", "replace") != name:
        raise InputError(f"{file_label(path)}: segment {number + 1} is {found!r}, not {name!r}; it was changed.")
    return (labels[..., layer] if labels.ndim == 4 else labels) == value


def _case(folder: Path, source: Path, rows: list[CohortRow], rejected: bool) -> CohortCase:
    first = rows[0]
    place = folder / CASES / first.case
    done = any(row.status == DONE for row in rows)
    content = read_case(place) if done else None
    files = dict(zip((row["prompt"] for row in content["rows"]), content["files"], strict=True)) if content else {}
    results = tuple(
        CohortResult(
            row.prompt,
            row.status,
            row.reason,
            row.presence,
            row.skipped,
            row.confidence,
            row.entropy,
            row.mask_share,
            {_kind(name): place / name for name in files.get(row.prompt, ())} if row.status == DONE else {},
        )
        for row in rows
    )
    parts = tuple(source / part for part in (content or {}).get("parts", ()))
    return CohortCase(
        first.case, source / first.file, first.patient, first.kind, place, results, rejected, first.digest, parts
    )


def _kind(name: str) -> str:
    """Return "mask" for "mask.png" and "1-left-lung-mask.png"."""
    return name.partition(".")[0].rpartition("-")[2]
