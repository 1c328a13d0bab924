"""Images that cannot be read: which they are, and when they are too many for a run to go on."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMTraining.pair_reading import Skipped

_SHOWN = 20


class BrokenImages:
    """Counts over all loaders of a run, so that a few validation pairs are not judged by themselves.

    A share of so few pairs that it allows less than one image still allows one; only a share of 0 allows none.

    Attributes:
        share: Part of the pairs whose image may be unreadable.
        total: All pairs that the share is of.
        skipped: File -> what could not be read there.
        seen: Pairs that were tried.
    """

    def __init__(self, share: float, total: int) -> None:
        """Count nothing yet.

        Raises:
            InputError: The share is out of range.
        """
        if not 0 <= share <= 1:
            raise InputError(f"the share of broken images is {share}; choose 0 to 1, for example 0.01.")
        self.share, self.total = share, total
        self.skipped: dict[str, Skipped] = {}
        self.seen = 0

    def allowed(self) -> float:
        """Return how many images may be broken by now.

        Of all pairs that is the share; before all were seen, no more than the share could give by chance.
        """
        if not self.share:
            return 0.0
        expected = self.share * self.seen
        return max(1.0, min(self.share * self.total, expected + 4 * math.sqrt(expected) + 3))

    def note(self, seen: int, skipped: Iterable[Skipped], stop: bool = False) -> None:
        """Count pairs that were seen for the first time, and those of them that could not be read.

        Args:
            seen: How many.
            skipped: Of these.
            stop: Stop in any case: a batch could not be filled.

        Raises:
            InputError: Too many; the message lists them.
        """
        self.seen += seen
        before = len(self.skipped)
        self.skipped |= {item.file: item for item in skipped}
        if stop or (len(self.skipped) > before and len(self.skipped) > self.allowed()):
            listed = sorted(self.skipped.values(), key=_by_row)
            lines = [f"  {item.file}: {item.reason}" for item in listed[:_SHOWN]]
            if len(listed) > _SHOWN:
                lines.append(f"  and {len(listed) - _SHOWN} more")
            raise InputError(
                f"{len(listed)} of {self.seen} images so far cannot be read, more than {100 * self.share:g} % of "
                f"{self.total}; correct or remove them, or allow a larger share:"
                + "".join(f"\n{line}" for line in lines)
            )


def write_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    """Write what could not be read as a CSV: row, file, reason.

    Raises:
        OutputError: Not writable.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("row", "file", "reason"))
    table.writerows((item.row, item.file, item.reason) for item in sorted(skipped, key=_by_row))
    with replacing(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def read_skipped(path: Path) -> list[Skipped]:
    """Return what :func:`write_skipped` wrote; nothing where the file is absent."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [Skipped(int(row["row"]), row["file"], row["reason"]) for row in csv.DictReader(file)]


def _by_row(item: Skipped) -> tuple[int, str]:
    return item.row, item.file
