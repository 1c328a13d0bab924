"""The labels of a training: a cohort's masks, or true masks for comparison, become nnU-Net's raw data set."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.cohort_inputs import find_inputs
from MedCLIPSAMLib.cohort_table import Cohort, read_cohort, read_rejected, read_table
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.medical_image import file_label
from MedCLIPSAMLib.prompts import check_prompt
from MedCLIPSAMTraining.pseudo_cases import LabelledCase, PseudoLabelledCase, TrueLabelledCase, find_mask, one_kind
from MedCLIPSAMTraining.pseudo_labels import write_raw_dataset
from MedCLIPSAMTraining.pseudo_selection import (
    PSEUDO_REMEDY,
    TRUE_REMEDY,
    Excluded,
    check_enough,
    select,
    write_excluded,
)
from MedCLIPSAMTraining.weak_settings import WeakSettings

logger = logging.getLogger(__name__)

_ORIGIN = ("engine", "preset", "seed", "changes", "recipe", "weights", "axis", "slices")
_CHOSEN_BY = ("case", "file", "prompt", "status", "digest", "skipped", "confidence", "entropy", "mask_share")


def make_labels(
    settings: WeakSettings,
    cohort_folder: Path,
    raw: Path,
    excluded_file: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Write nnU-Net's raw data set, and the list of what is left out.

    Args:
        settings: Of the training; with ``masks`` the true masks are taken.
        cohort_folder: The cohort, otherwise.
        raw: nnU-Net's raw folder.
        excluded_file: The list.
        progress: Called with (cases done, all).

    Returns:
        What the later stages need and the model tells, in JSON's types.

    Raises:
        InputError: Too few cases, images and volumes together, a class that no case shows, or a configuration that
            does not fit.
        OutputError: Not writable, disk full.
    """
    if settings.masks is None:
        cohort = read_cohort(cohort_folder)
        prompts = _prompts(settings, cohort)
        chosen, excluded = select(cohort.cases, prompts, settings.rules)
        cases: list[LabelledCase] = [PseudoLabelledCase(case, prompts) for case in chosen]
        origin = {name: cohort.settings.get(name) for name in _ORIGIN}
        window = cohort.settings.get("window")
    else:
        prompts = settings.prompts
        cases, excluded = _true_cases(settings, settings.masks)
        origin, window = {}, settings.window
    write_excluded(excluded_file, excluded)
    remedy = PSEUDO_REMEDY if settings.masks is None else TRUE_REMEDY
    check_enough(len(cases), excluded, remedy)
    one_kind([case.kind for case in cases if case.kind])
    made = write_raw_dataset(
        raw,
        cases,
        prompts,
        window=tuple(window) if window else None,
        empty=settings.masks is not None,
        progress=progress,
    )
    excluded += made.unreadable
    write_excluded(excluded_file, excluded)
    check_enough(len(made.patients), excluded, remedy)
    if made.kind == "image" and settings.configuration != "2d":
        raise InputError(f"configuration {settings.configuration!r} is for volumes; the data are 2D images.")
    logger.info("%d cases to train on, %d left out (see %s).", len(made.patients), len(excluded), excluded_file)
    for prompt, count in zip(prompts, made.pixels.values(), strict=True):
        if not count:
            raise InputError(f"no case shows {prompt!r}; leave this prompt out, or word it differently.")
    return {
        "prompts": list(prompts),
        "kind": made.kind,
        "patients": made.patients,
        "channels": made.channels,
        "modality": made.modality,
        "window": window,
        "pixels": made.pixels,
        "excluded": dict(Counter(one.reason for one in excluded)),
        "origin": origin,
        "source": source_digest(settings, cohort_folder),
    }


def source_digest(settings: WeakSettings, cohort_folder: Path) -> str:
    """Return a digest of what the cases are chosen by, so that a later change is noticed; empty for true masks.

    Times, reasons and the form of a file do not count: they change when a cohort is merely run again.
    """
    if settings.masks is not None:
        return ""
    rows = [[getattr(row, name) for name in _CHOSEN_BY] for row in read_table(cohort_folder)]
    content = json.dumps([sorted(rows, key=str), sorted(read_rejected(cohort_folder))])
    return hashlib.sha256(content.encode()).hexdigest()


def _prompts(settings: WeakSettings, cohort: Cohort) -> tuple[str, ...]:
    """Return the classes: the prompts given, which the cohort must have, or else all of the cohort."""
    known = {" ".join(prompt.split()).lower(): prompt for prompt in cohort.prompts}
    wanted = [check_prompt(prompt) for prompt in settings.prompts] or list(cohort.prompts)
    found = [known.get(" ".join(prompt.split()).lower()) for prompt in wanted]
    if missing := [prompt for prompt, one in zip(wanted, found, strict=True) if one is None]:
        raise InputError(f"the cohort has no prompt {missing[0]!r}; it has: {', '.join(map(repr, cohort.prompts))}.")
    return tuple(one for one in found if one is not None)


def _true_cases(settings: WeakSettings, masks: Path) -> tuple[list[LabelledCase], list[Excluded]]:
    if not masks.is_dir():
        raise InputError(f"{masks} is no folder; pass the folder of the true masks (--masks).")
    _, inputs = find_inputs(settings.data, masks)
    cases: list[LabelledCase] = []
    excluded = []
    of_mask: dict[Path, str] = {}
    for one in inputs:
        mask = find_mask(masks, Path(one.file))
        if mask is None or mask.resolve() == one.path.resolve():
            excluded.append(Excluded(one.name, "", "no mask", "no file of this name among the masks"))
        elif (other := of_mask.setdefault(mask, one.file)) != one.file:
            raise InputError(
                f"{file_label(mask)} would be the mask of {other!r} and of {one.file!r}; put the masks into folders "
                "like those of the images."
            )
        else:
            cases.append(TrueLabelledCase(one.name, one.patient, one.path, one.parts, mask, len(settings.prompts)))
    return cases, excluded
