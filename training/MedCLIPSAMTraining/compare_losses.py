"""Compare the four losses on measured captions: ``python -m MedCLIPSAMTraining.compare_losses DATA --output DIR``.

For every loss, batch size and seed (a *cell*) the lite model's alignment is fine-tuned from the shipped weights on the
training captions, with the same number of passes over the same pairs; then retrieval is measured on the test captions
and DSC on the test splits. The shipped weights are a cell of their own. A cell with a result is not computed again and
one that was stopped goes on, so the program may be ended and started again at any time.

DIR gets ``pairs/`` (see measured_captions.py), ``cells/NAME/result.json``, ``comparison.csv`` and ``comparison.md``.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from MedCLIPSAMLib import metrics, retrieval
from MedCLIPSAMLib.cases import find_cases, read_mask
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.file_output import check_output_folder, write_json
from MedCLIPSAMLib.pipeline import TextSegmenter
from MedCLIPSAMLib.retrieval_features import picture
from MedCLIPSAMLib.retrieval_ranks import DIRECTIONS, TOP
from MedCLIPSAMTraining.compare_losses_engine import EngineSource
from MedCLIPSAMTraining.compare_losses_report import write_report
from MedCLIPSAMTraining.finetune_settings import LOSSES
from MedCLIPSAMTraining.measured_captions import SPLITS, write_captions

logger = logging.getLogger(__name__)

PROMPTS = {
    "breast_ultrasound_tumour": "breast tumor",
    "brain_mri_tumour": "brain tumor",
    "chest_xray_lung": "lungs",
    "chest_ct_lung": "lungs",
}
SHIPPED = "shipped"
RESULT_FILE = "result.json"
_LOG_TAIL = 6  # lines of the trainer's log that an error shows


@dataclass(frozen=True)
class Budget:
    """What all cells share; a result of other settings is not taken.

    Attributes:
        epochs: Passes over the training pairs; so a smaller batch means more steps, each from fewer pairs.
        learning_rate, temperature: As for ``finetune``; 0 takes the model's own.
        schedule: Of the learning rate.
        keep_patches: As for ``finetune``; None takes the model's own.
        limit: At most so many images of a data set for DSC; None for all, 0 for no DSC.
    """

    epochs: int = 10
    learning_rate: float = 0.0
    temperature: float = 0.0
    schedule: str = "cosine"
    keep_patches: float | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Cell:
    """One training; ``loss`` is "shipped" for none."""

    loss: str
    batch: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """Its folder."""
        return self.loss if self.loss == SHIPPED else f"{self.loss}-batch{self.batch}-seed{self.seed}"


def cells(losses: Sequence[str], batches: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """Return all cells, seed by seed, so that an unfinished comparison is balanced."""
    trained = [Cell(loss, batch, seed) for seed in seeds for batch in batches for loss in losses]
    return [Cell(SHIPPED), *dict.fromkeys(trained)]


class Comparison:
    """Runs cells below one folder."""

    def __init__(self, data: Path, output: Path, budget: Budget, device: str = "auto", workers: int = 0) -> None:
        """Prepare the pairs if they are not there.

        Args:
            data: Folder with the four data sets.
            output: Folder for everything; created.
            budget: See :class:`Budget`.
            device: For training and evaluation.
            workers: Loader processes of the trainer; the features come from files, so none are needed.

        Raises:
            InputError: A data set is missing.
            OutputError: The folder cannot be written.
        """
        self.data, self.output, self.budget, self.device, self.workers = data, output, budget, device, workers
        self._engines = EngineSource(device)
        self.pairs = check_output_folder(output) / "pairs"
        if not all((self.pairs / f"{split}.csv").is_file() for split in SPLITS):
            write_captions(data, self.pairs)

    def run(self, wanted: Sequence[Cell]) -> Iterator[dict[str, Any]]:
        """Yield the result of every cell, computed where it is missing.

        Raises:
            InputError: A trainer failed, or a result was made with other settings.
        """
        for number, cell in enumerate(wanted, 1):
            result = self._finished(cell)
            if result is None:
                logger.info("%d of %d: %s", number, len(wanted), cell.name)
                result = self._compute(cell)
            yield result

    def _folder(self, cell: Cell) -> Path:
        return self.output / "cells" / cell.name

    def _settings(self, cell: Cell) -> dict[str, Any]:
        return {**asdict(cell), **({"limit": self.budget.limit} if cell.loss == SHIPPED else asdict(self.budget))}

    def _finished(self, cell: Cell) -> dict[str, Any] | None:
        path = self._folder(cell) / RESULT_FILE
        if not path.is_file():
            return None
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["settings"] != self._settings(cell):
            raise InputError(f"{path} was made with other settings; choose another --output, or delete {path.parent}.")
        return result

    def _compute(self, cell: Cell) -> dict[str, Any]:
        folder = self._folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        name = "lite" if cell.loss == SHIPPED else f"finetuned:{self._train(cell)}"
        trained = time.perf_counter()
        engine = self._engines(name)
        result = {
            "settings": self._settings(cell),
            "retrieval": self._retrieval(engine),
            "dsc": self._dsc(engine),
            "seconds": {"training": trained - begin, "evaluation": time.perf_counter() - trained},
        }
        write_json(folder / RESULT_FILE, result)
        shutil.rmtree(folder / "work", ignore_errors=True)  # checkpoints, which nothing needs any more
        return result

    def _train(self, cell: Cell) -> Path:
        """Fine-tune in a child process, which goes on where it was stopped; return the folder of the model."""
        folder = self._folder(cell)
        command = [
            *(sys.executable, "-m", "MedCLIPSAMTraining.finetune"),
            *("--data", self.pairs / "train.csv", "--validation", self.pairs / "val.csv", "--root", self.data),
            *("--output", folder / "model", "--work", folder / "work", "--features", self.output / "features"),
            *("--model", "lite", "--loss", cell.loss, "--batch", cell.batch, "--seed", cell.seed),
            *("--epochs", self.budget.epochs, "--schedule", self.budget.schedule),
            *("--learning-rate", self.budget.learning_rate, "--temperature", self.budget.temperature),
            *("--device", self.device, "--workers", self.workers, "--no-tensorboard"),
            *(() if self.budget.keep_patches is None else ("--keep-patches", self.budget.keep_patches)),
        ]
        training = Path(__file__).resolve().parents[1]
        known = os.environ.get("PYTHONPATH")
        search = os.pathsep.join([str(training), str(training.parent), *([known] if known else [])])
        with (folder / "log.txt").open("ab") as log:
            done = subprocess.run(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": search},
            )
        if done.returncode:
            tail = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL:]
            raise InputError(f"training {cell.name} ended with {done.returncode}: " + "\n".join(tail))
        return folder / "model"

    def _retrieval(self, engine: TextSegmenter) -> dict[str, Any]:
        """Return the report, and for every test pair the share of the runs that hit it."""
        pairs = retrieval.read_pairs(self.pairs / "test.csv", root=self.data)
        images = np.concatenate([engine.clip.encode_images([picture(file)]) for file in pairs.files])
        report = retrieval.evaluate(images, engine.clip.encode_texts(pairs.captions), pairs.captions)
        hits = {f"{name}_top{k}": report.hits(name, k).mean(axis=0) for name in DIRECTIONS for k in TOP}
        return {**report.as_dict(), "hits": hits}

    def _dsc(self, segmenter: TextSegmenter) -> dict[str, Any]:
        """Return per data set the mean and the DSC of every image with a target."""
        images: dict[str, dict[str, float]] = {}
        for folder, prompt in PROMPTS.items():
            cases = find_cases(self.data / folder, "test")
            for case in cases[: self.budget.limit]:
                image, truth = read_image(case.image_path), read_mask(case.mask_path)
                if truth.any():
                    segmenter.set_image(image.array, image.window)
                    found = metrics.dsc(segmenter.segment(prompt).mask, truth)
                    images.setdefault(case.dataset, {})[f"{folder}/{case.file}"] = found
        return {
            name: {"mean": float(np.mean(list(values.values()))), "n": len(values), "images": values}
            for name, values in images.items()
        }


def main(
    data: Annotated[Path, typer.Argument(help="Folder with the four data sets.")],
    output: Annotated[Path, typer.Option(help="Folder for pairs, results and the report; a stopped run goes on.")],
    loss: Annotated[list[str] | None, typer.Option(help="By default all four.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="By default 8, 16 and 64.")] = None,
    seeds: Annotated[int, typer.Option(help="So many seeds, from 0.")] = 3,
    epochs: Annotated[int, typer.Option(help="Passes over the training pairs.")] = Budget.epochs,
    learning_rate: Annotated[float, typer.Option(help="0: the model's own.")] = Budget.learning_rate,
    temperature: Annotated[float, typer.Option(help="0: the model's own.")] = Budget.temperature,
    schedule: Annotated[str, typer.Option(help="step, cosine, constant.")] = Budget.schedule,
    keep_patches: Annotated[float | None, typer.Option(help="As for finetune; by default the model's own.")] = None,
    limit: Annotated[int | None, typer.Option(help="Images of each data set folder for DSC; 0 for none.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    workers: Annotated[int, typer.Option(help="Loader processes of the trainer.")] = 0,
) -> None:
    """Fine-tune the lite alignment with each loss, batch size and seed, and report retrieval and DSC."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        unknown = [name for name in loss or () if name not in LOSSES]
        if unknown or seeds < 1 or any(one < 2 for one in batch or ()):
            raise InputError(
                f"losses {loss}, batches {batch}, seeds {seeds}: known losses are {', '.join(LOSSES)}, a batch "
                "has 2 or more, and there is 1 seed or more."
            )
        budget = Budget(epochs, learning_rate, temperature, schedule, keep_patches, limit)
        comparison = Comparison(data, output, budget, device, workers)
        wanted = cells(loss or list(LOSSES), batch or [8, 16, 64], range(seeds))
        results = []
        for result in comparison.run(wanted):
            results.append(result)
            write_report(results, output)  # after every cell: a stopped run has one too
    except MedCLIPSAMError as error:
        logger.error("Error: %s", error)
        raise SystemExit(2) from error
    logger.info("%s", (output / "comparison.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
