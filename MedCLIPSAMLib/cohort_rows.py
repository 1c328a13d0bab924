"""The table of a cohort, ``cohort.csv``: a row for each case and prompt."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.medical_image import file_label

TABLE_FILE = "cohort.csv"
DONE, FAILED, PENDING = "done", "failed", "pending"


@dataclass(frozen=True)
class CohortRow:
    """One line of ``cohort.csv``: a prompt on a case. None is an empty cell.

    Attributes:
        case: Name of the case and of its folder.
        file: Where the input is, relative to the source, with ``/`` between folders.
        patient: Pseudonym of the patient, where the input or a list tells.
        kind: "image" or "volume"; None where the input could not be read.
        prompt: The text.
        status: "done", "failed" or "pending".
        reason: Of a failure.
        presence: Score in [0, 1]; of a volume the largest of its slices; None without calibration.
        skipped: Whether the presence gate found no target; of a volume, in every slice.
        confidence: Largest confidence of the kept coarse components (Eq. 18); of a volume, the mean of that over the
            slices with a mask. None without components.
        entropy: Mean entropy in nats where the probability exceeds 0.05 (0 if nowhere), as `evaluate` reports it.
        mask_share: Part of all pixels or voxels that the mask covers, in [0, 1].
        seconds: Wall time of the case, all prompts together.
        digest: SHA-256 of the input's content.
    """

    case: str
    file: str
    patient: str | None = None
    kind: str | None = None
    prompt: str = ""
    status: str = PENDING
    reason: str | None = None
    presence: float | None = None
    skipped: bool | None = None
    confidence: float | None = None
    entropy: float | None = None
    mask_share: float | None = None
    seconds: float | None = None
    digest: str | None = None


COLUMNS = tuple(one.name for one in fields(CohortRow))
_NUMBERS = ("presence", "confidence", "entropy", "mask_share", "seconds")


def read_table(folder: Path) -> list[CohortRow]:
    """Return the rows of ``cohort.csv``, none where it is missing.

    Raises:
        InputError: It is damaged.
    """
    path = folder / TABLE_FILE
    if not path.is_file():
        return []
    rows = []
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise InputError(f"{file_label(path)} has no column {missing[0]!r}; delete it and run again.")
            for record in reader:
                rows.append(_row(record))
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file_label(path)} cannot be read ({error}); delete it and run again.") from error
    return rows


def write_table(folder: Path, rows: Iterable[CohortRow]) -> None:
    """Write ``cohort.csv``, whole or not at all.

    Raises:
        OutputError: Not writable, disk full.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])
    with replacing(folder / TABLE_FILE) as file:
        # names of files may hold bytes that are no text
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value) if isinstance(value, float) else str(value)


def _row(record: Mapping[str, str | None]) -> CohortRow:
    values: dict[str, Any] = {name: record[name] or None for name in COLUMNS}
    for name in _NUMBERS:
        values[name] = None if values[name] is None else float(values[name])
    values["skipped"] = None if values["skipped"] is None else values["skipped"] == "yes"
    if not values["case"] or values["status"] not in (DONE, FAILED, PENDING):
        raise ValueError(f"case {values['case']!r} with status {values['status']!r}")
    return CohortRow(**{**values, "file": values["file"] or "", "prompt": values["prompt"] or ""})
