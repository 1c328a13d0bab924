"""What a run keeps in its work folder, so that it goes on after any kind of end, and the record of its steps.

``checkpoint.pt`` where it stands, ``best.pt`` the weights of the best validation so far, ``steps.csv`` one line a step,
``validation.csv`` one line a validation, ``run.json`` what is run. Each file is replaced whole or not at all.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor

from MedCLIPSAMLib.clip.checkpoint_layouts import read_safely
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing

if TYPE_CHECKING:
    from MedCLIPSAMTraining.finetune_loop import Trainer

CHECKPOINT, BEST, STEPS, VALIDATION = "checkpoint.pt", "best.pt", "steps.csv", "validation.csv"
_VERSION = 1


@dataclass(frozen=True)
class Best:
    """The best validation so far.

    Attributes:
        score: Mean top-1 of both directions, in [0, 1]; -1 for none yet.
        step: After which step.
    """

    score: float = -1.0
    step: int = 0


class WorkFolder:
    """The files of one run; only the first process writes.

    Attributes:
        path: The folder.
        identity: Settings, data and base of the run; one with another does not go on here.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path = path
        self.identity = json.loads(json.dumps(identity))  # as it will be read again
        self._files: dict[str, TextIO] = {}

    def save(self, trainer: Trainer, best: Best, validated: int) -> None:
        """Write everything that a resumed run needs.

        Raises:
            OutputError: Not writable, disk full; the checkpoint before is still there.
        """
        content = {
            "version": _VERSION,
            "identity": json.dumps(self.identity),
            "step": trainer.step,
            "best": asdict(best),
            "validated": validated,
            "state_dict": trainer.model.state(),
            "optimizer": trainer.optimiser.state_dict(),
        }
        with replacing(self.path / CHECKPOINT) as file:
            torch.save(content, file)

    def resume(self, trainer: Trainer) -> tuple[Best, int]:
        """Bring the trainer to the last checkpoint; without one it stays at the beginning.

        Returns:
            The best so far, and the step of the last validation, -1 for none.

        Raises:
            InputError: The checkpoint is damaged, or of a run with other settings, data or weights to begin with.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            return Best(), -1
        state = read_safely(path)
        if not isinstance(state, dict) or state.get("version") != _VERSION:
            raise InputError(f"{path} is not a checkpoint of this version; choose another --work folder.")
        before = json.loads(state["identity"])
        if before != self.identity:
            raise InputError(
                f"{path} was made with {_difference(before, self.identity)}; choose another --work folder, or delete "
                "this one."
            )
        trainer.model.load_state(state["state_dict"])
        trainer.optimiser.load_state_dict(state["optimizer"])
        trainer.step = state["step"]
        return Best(**state["best"]), state["validated"]

    def save_best(self, trainer: Trainer) -> None:
        """Write the weights as the best so far."""
        with replacing(self.path / BEST) as file:
            torch.save({"step": trainer.step, "state_dict": trainer.model.state()}, file)

    def load_best(self) -> dict[str, Tensor]:
        """Return the weights of :meth:`save_best`."""
        return read_safely(self.path / BEST)["state_dict"]

    def open_record(self, name: str, columns: list[str], step: int) -> list[dict[str, str]]:
        """Open :data:`STEPS` or :data:`VALIDATION` to go on; lines of steps after ``step`` are dropped.

        Returns:
            The lines that stay.
        """
        path = self.path / name
        kept = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                # The last line may have been cut when the process was killed.
                kept = [row for row in csv.DictReader(file) if _step(row) <= step and None not in row.values()]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        with replacing(path) as file:
            file.write(text.getvalue().encode())
        self._files[name] = path.open("a", newline="", encoding="utf-8")
        return kept

    def record(self, name: str, values: list[object]) -> None:
        """Add a line."""
        csv.writer(self._files[name]).writerow(values)
        self._files[name].flush()

    def close(self) -> None:
        """Close the records."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def _step(row: dict[str, str]) -> float:
    try:
        return int(row["step"])
    except (TypeError, ValueError, KeyError):
        return float("inf")


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Name the first things that differ."""
    found = []
    for group in now:
        old, new = before.get(group) or {}, now[group] or {}
        found += [
            f"{name} {old.get(name)!r} in place of {value!r}" for name, value in new.items() if old.get(name) != value
        ]
    return "; ".join(found[:3]) or "other settings"
