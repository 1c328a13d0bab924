"""The contact sheet of a cohort: one page to leaf through, least certain first, and to reject cases.

The page needs no network. What comes from file names and prompts is data in it, never markup.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.cohort_rows import DONE, CohortRow
from MedCLIPSAMLib.cohort_table import read_rejected
from MedCLIPSAMLib.cohort_worker import thumbnail_name
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.resources import resource_path

SHEET_FILE = "contact-sheet.html"
_DATA = "{{ data }}"
_SHOWN = ("case", "file", "prompt", "status", "reason", "presence", "skipped", "confidence", "entropy", "mask_share")


def write_sheet(folder: Path, settings: Mapping[str, Any], rows: Sequence[CohortRow]) -> None:
    """Write ``contact-sheet.html`` into the folder of a cohort; it shows the pictures in ``thumbnails/``.

    Args:
        folder: Of the cohort.
        settings: The content of ``cohort.json``.
        rows: Of ``cohort.csv``.

    Raises:
        OutputError: Not writable.
    """
    names = list(dict.fromkeys(row.case for row in rows))
    prompts = list(settings.get("prompts", ()))
    try:
        rejected = read_rejected(folder)
    except InputError:  # told where it matters, when the cohort is read
        rejected = set()
    entries = []
    for row in rows:
        entry = {name: value for name, value in dataclasses.asdict(row).items() if name in _SHOWN}
        picture = thumbnail_name(row.case, prompts.index(row.prompt) if row.prompt in prompts else 0)
        entries.append(entry | {"thumbnail": picture if row.status == DONE else None})
    engine = settings.get("engine", "")
    data = {
        "title": f"{', '.join(prompts)} ({engine}{f', {preset}' if (preset := settings.get('preset')) else ''})",
        "prompts": prompts,
        "names": names,
        "rejected": [name for name in names if name in rejected],
        "rows": entries,
    }
    template = resource_path("MedCLIPSAM", "Cohort", SHEET_FILE).read_text("utf-8")
    before, _, after = template.partition(_DATA)
    with replacing(folder / SHEET_FILE) as file:
        file.write((before + _script_data(data) + after).encode("utf-8", "replace"))


def _script_data(data: Mapping[str, Any]) -> str:
    """Return JSON that cannot end the script element which it stands in."""
    text = json.dumps(data, allow_nan=False)  # ASCII, so line separators are escaped too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
