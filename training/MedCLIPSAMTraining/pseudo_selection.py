"""Which cases of a cohort become training cases, and why the others do not."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from MedCLIPSAMLib.cohort_table import CohortCase, CohortResult
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMTraining.weak_settings import SelectionRules

EXCLUDED_FILE = "excluded.csv"
MINIMUM_CASES = 3
"""Fewer cases teach a network nothing."""
PSEUDO_REMEDY = "pass more images, another prompt, or a lower --min-confidence and a higher --max-entropy"
TRUE_REMEDY = "pass more images with masks; a mask has the name of its image, with any ending that can be read"
_COLUMNS = ("case", "prompt", "reason", "detail")


@dataclass(frozen=True)
class Excluded:
    """A case that is left out.

    Attributes:
        case: Its name.
        prompt: At whose result it failed; empty where it is the case as a whole.
        reason: One of a few, to be counted: "rejected", "failed", "not segmented yet", "skipped by the gate",
            "no mask", "low confidence", "high entropy", "unreadable".
        detail: The value or the message.
    """

    case: str
    prompt: str
    reason: str
    detail: str = ""


def select(
    cases: Sequence[CohortCase], prompts: Sequence[str], rules: SelectionRules
) -> tuple[list[CohortCase], list[Excluded]]:
    """Divide the cases of a cohort into those that are trained on and those that are left out.

    A case is left out when a person has rejected it, when a prompt failed, when no prompt found anything, or when a
    finding of any prompt is not trusted: to take only the other prompts' masks would teach that what was found there
    is background. A prompt that found nothing is no reason where another prompt did find something.

    Args:
        cases: Of the cohort.
        prompts: The classes.
        rules: What is trusted.

    Returns:
        The cases to train on, and the others with their reason, both in the order of ``cases``.

    Raises:
        InputError: The cohort has no such prompt.
    """
    kept, excluded = [], []
    for case in cases:
        reason = _reason(case, [case.result(prompt) for prompt in prompts], rules)
        if reason is None:
            kept.append(case)
        else:
            excluded.append(reason)
    return kept, excluded


def _reason(case: CohortCase, results: list[CohortResult], rules: SelectionRules) -> Excluded | None:
    if case.rejected:
        return Excluded(case.name, "", "rejected", "by a person")
    for result in results:
        if result.status != "done":
            kind = "failed" if result.status == "failed" else "not segmented yet"
            return Excluded(case.name, result.prompt, kind, result.reason or "")
    found = [result for result in results if not result.skipped and (result.mask_share or 0) > 0]
    if not found:
        first = results[0]
        gated = all(result.skipped for result in results)
        detail = "" if first.presence is None else f"presence {first.presence:.3f}"
        return Excluded(case.name, first.prompt, "skipped by the gate" if gated else "no mask", detail)
    for result in found:
        if rules.minimum_confidence > 0 and (result.confidence or 0) < rules.minimum_confidence:
            value = "none" if result.confidence is None else f"{result.confidence:.4f}"
            return Excluded(case.name, result.prompt, "low confidence", value)
        if rules.maximum_entropy is not None and (result.entropy or 0) > rules.maximum_entropy:
            return Excluded(case.name, result.prompt, "high entropy", f"{result.entropy:.4f} nats")
    return None


def check_enough(
    kept: int, excluded: Sequence[Excluded], remedy: str = PSEUDO_REMEDY, minimum: int = MINIMUM_CASES
) -> None:
    """Make sure that there is enough to train on.

    Args:
        kept: Cases to train on.
        excluded: Those that are not.
        remedy: What to do otherwise.
        minimum: How many are enough.

    Raises:
        InputError: Fewer than ``minimum`` cases are left; the message counts the reasons.
    """
    if kept >= minimum:
        return
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(one.reason for one in excluded).most_common())
    raise InputError(
        f"{kept} of {kept + len(excluded)} cases are left to train on, at least {minimum} are needed"
        f"{f' (left out: {counts})' if counts else ''}; {remedy}."
    )


def write_excluded(path: Path, excluded: Sequence[Excluded]) -> None:
    """Write ``excluded.csv``.

    Raises:
        OutputError: Not writable, disk full.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([getattr(one, name) for name in _COLUMNS] for one in excluded)
    with replacing(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
