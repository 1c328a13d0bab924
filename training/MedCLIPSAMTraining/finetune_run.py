"""One fine-tuning run from its pairs to the exported model; it goes on from its work folder where it was stopped."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from MedCLIPSAMLib import retrieval
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import check_output_folder, write_json
from MedCLIPSAMLib.job_folder import FileLock
from MedCLIPSAMLib.reporting import versions
from MedCLIPSAMTraining.finetune_checkpoints import STEPS, VALIDATION, Best, WorkFolder
from MedCLIPSAMTraining.finetune_data import DataSettings, FinetuneData, joined
from MedCLIPSAMTraining.finetune_distributed import Processes
from MedCLIPSAMTraining.finetune_loop import Trainer
from MedCLIPSAMTraining.finetune_models import TrainableClip, kind_of, load_trainable
from MedCLIPSAMTraining.finetune_record import Scalars
from MedCLIPSAMTraining.finetune_settings import Course, FinetuneSettings
from MedCLIPSAMTraining.finetune_towers import check_room
from MedCLIPSAMTraining.image_text_data import Skipped
from MedCLIPSAMTraining.job_link import JobLink
from MedCLIPSAMTraining.pair_broken import read_skipped, write_skipped

logger = logging.getLogger(__name__)

CARD, SKIPPED = "finetune.json", "skipped.csv"
STEP_COLUMNS = ["step", "epoch", "loss", "gradient", "learning_rate", "seconds"]
SCORES = ("image_to_text_top1", "text_to_image_top1", "image_to_text_top2", "text_to_image_top2")
VALIDATION_COLUMNS = ["step", "epoch", *SCORES]
VALIDATION_BATCH = 50
LOCK_PATIENCE = 15.0
"""Seconds; the loader processes of a run that was killed notice it within about five, and hold its lock until then."""


@dataclass(frozen=True)
class RunOptions:
    """What does not decide a run's numbers, or only their rounding; it may change between stop and resume.

    Attributes:
        output: Folder of the result.
        work: Folder of checkpoints and records.
        features: Folder for the features of frozen encoders; runs may share it. None for one in ``work``.
        chunk: Pairs computed at once on each process; 0 for all of its part of the batch.
        workers: Loader processes.
        save_every: Steps between two checkpoints.
        validate_every: Steps between two validations; 0 for once an epoch.
        layouts: Of the export; empty for all that the model has.
        tensorboard: Also write events for TensorBoard, if that is installed.
    """

    output: Path
    work: Path
    features: Path | None = None
    chunk: int = 0
    workers: int = 2
    save_every: int = 200
    validate_every: int = 0
    layouts: tuple[str, ...] = field(default=())
    tensorboard: bool = True


class Run:
    """The parts of a run together."""

    def __init__(
        self, settings: FinetuneSettings, source: DataSettings, options: RunOptions, processes: Processes, link: JobLink
    ):
        """Load data and model, and go to the last checkpoint.

        Raises:
            InputError, OutputError, MissingWeightsError, ChecksumError: See the parts.
        """
        self.options, self.processes, self.link = options, processes, link
        self._stack = ExitStack()
        check_output_folder(options.output)
        check_output_folder(options.work)
        self._lock()
        self.settings = settings.filled(kind_of(settings.model))
        self._say(0, 0, "Reading the pairs")
        self.data = FinetuneData(source, self.settings, processes)
        self._say(0, 0, "Loading the model")
        features = options.features or options.work / "features"
        self.model: TrainableClip = load_trainable(self.settings, processes.device, features)
        self.layouts = options.layouts or self.model.layouts
        if unknown := [one for one in self.layouts if one not in self.model.layouts]:
            raise InputError(f"layout {unknown[0]!r}: {settings.model} has {', '.join(self.model.layouts)}.")
        check_room(options.output, self.layouts)
        self.course = Course.of(self.settings, self.data.epoch_steps)
        self.trainer = Trainer(self.model, self.settings, self.course, processes, options.chunk)
        self.work = WorkFolder(
            options.work, {"settings": asdict(self.settings), "data": self.data.identity, "base": self.model.base}
        )
        self.best, self.validated = self.work.resume(self.trainer)
        if len(steps := set(processes.gather(self.trainer.step))) > 1:
            raise InputError(
                f"the processes would go on after the steps {', '.join(map(str, sorted(steps)))}; {options.work} must "
                "be one folder that all machines see."
            )
        self._saved = self.trainer.step
        self._skipped: list[Skipped] = []
        self._open_records()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _lock(self) -> None:
        """Keep a second run out of the work folder."""
        if not self.processes.first:
            return
        lock = FileLock(self.options.work / "lock")
        if not lock.acquire(patience=LOCK_PATIENCE):
            raise InputError(f"another run works in {self.options.work}; wait for its end, or pass another --work.")
        self._stack.callback(lock.release)

    def _open_records(self) -> None:
        self._scores: dict[int, dict[str, float]] = {}
        self._seconds = 0.0
        if not self.processes.first:
            self._scalars = Scalars(None, 0)
            return
        step = self.trainer.step
        done = self.work.open_record(STEPS, STEP_COLUMNS, step)
        self._seconds = float(done[-1]["seconds"]) if done else 0.0
        for row in self.work.open_record(VALIDATION, VALIDATION_COLUMNS, self.validated):
            self._scores[int(row["step"])] = {name: float(row[name]) for name in SCORES}
        self._stack.callback(self.work.close)
        self._scalars = Scalars(self.options.work / "tensorboard" if self.options.tensorboard else None, step)
        self._stack.callback(self._scalars.close)

    def _say(self, done: int, total: int, text: str) -> None:
        if self.processes.first:
            self.link.progress(done, total, text)

    # ---- Training ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the end of the course; asked to stop, save and leave by :class:`SystemExit`."""
        self.data.prepare(self.model, self._say)
        trainer, course = self.trainer, self.course
        begin, before, waited, began = time.monotonic(), self._seconds, 0.0, trainer.step
        with (
            self.link.saving(),
            tqdm(total=course.total, initial=began, unit="step", disable=None if self.processes.first else True) as bar,
        ):
            self._stack.callback(self._list_skipped)  # also when they are too many, and the run ends by that
            while True:
                self._validate_if_due()
                if trainer.step >= course.total:
                    break
                asked = time.monotonic()
                batch = self.data.next_batch(self.model, trainer.step, self.options.workers)
                waited += time.monotonic() - asked
                report = trainer.train_step(batch)
                self._seconds = before + time.monotonic() - begin
                bar.update()
                self._record(report)
                self._say(trainer.step, course.total, f"{self._where()}; loss {report.loss:.4f}{self._found()}")
                if trainer.step % self.options.save_every == 0 and not self._validation_is_due():
                    self._save()
                self._leave_if_asked()
        if self._saved != trainer.step:
            self._save()
        if trainer.step > began and self.processes.first:
            spent = time.monotonic() - begin
            logger.info("The training waited %.1f %% of its time for data.", 100 * waited / spent)
        self.data.close()

    def _where(self) -> str:
        return f"Epoch {(self.trainer.step - 1) // self.course.epoch_steps + 1}"

    def _found(self) -> str:
        return f"; best top-1 {100 * self.best.score:.1f} % after step {self.best.step}" if self.best.step else ""

    def _record(self, report: Any) -> None:
        if not self.processes.first:
            return
        step = self.trainer.step
        epoch = (step - 1) // self.course.epoch_steps + 1
        values = [report.loss, report.gradient, report.learning_rate]
        self.work.record(STEPS, [step, epoch, *values, round(self._seconds, 2)])
        self._scalars.add(step, dict(zip(STEP_COLUMNS[2:5], values, strict=True)))

    def _save(self) -> None:
        self._saved = self.trainer.step
        self._skipped = [one for several in self.processes.gather(self.data.skipped) for one in several]
        if self.processes.first:
            self.work.save(self.trainer, self.best, self.validated)
            self._list_skipped()

    def _list_skipped(self) -> None:
        """Add the images that could not be read to the list of them, which earlier parts of the run began."""
        if not self.processes.first:
            return
        found = [*read_skipped(self.options.work / SKIPPED), *self._skipped, *self.data.skipped]
        if found:
            write_skipped(self.options.work / SKIPPED, {one.file: one for one in found}.values())

    def _leave_if_asked(self) -> None:
        code = self.processes.any(self.link.stop_code)
        if code is not None:
            self._save()
            self.processes.wait()
            self.data.close()
            raise SystemExit(code)

    # ---- Validation --------------------------------------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        step = self.trainer.step
        every = self.options.validate_every or self.course.epoch_steps
        if self.validated >= step or not len(self.data.validation):
            return False
        return step % every == 0 or step >= self.course.total

    def _validate_if_due(self) -> None:
        """Validate, remember the best weights, and save."""
        if not self._validation_is_due():
            return
        step = self.trainer.step
        scores = self._validate()
        self.validated = step
        self._scores[step] = scores
        score = (scores[SCORES[0]] + scores[SCORES[1]]) / 2
        logger.info("After step %d: top-1 of the validation pairs %.1f %%.", step, 100 * score)
        if step and score > self.best.score:
            self.best = Best(score, step)
            if self.processes.first:
                self.work.save_best(self.trainer)
        if self.processes.first:
            epoch = step // self.course.epoch_steps
            self.work.record(VALIDATION, [step, epoch, *(scores[name] for name in SCORES)])
            self._scalars.add(step, scores)
        if step:
            self._save()

    def _validate(self) -> dict[str, float]:
        """Return the shares of hits in batches of 50; every process encodes its part of the chunks."""
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # rows, image and text features
        done, total = 0, len(self.data.validation)
        for rows, batch in self.data.validation_batches(self.model, self.options.workers):
            found.append((rows, *self.trainer.encode(batch)))
            done += len(rows) * self.processes.count
            self._say(self.trainer.step, self.course.total, f"Validation, {min(done, total)} of {total} pairs")
            if self.processes.group is None:
                self._leave_if_asked()  # several processes leave together, after a step
        rows, images, texts = joined(part for several in self.processes.gather(found) for part in several)
        captions = [self.data.validation.captions[int(row)] for row in rows]
        report = retrieval.evaluate(images, texts, captions, batch=VALIDATION_BATCH)
        return {
            f"{direction}_top{k}": float(report.accuracy(direction, k).mean())
            for k in (1, 2)
            for direction in ("image_to_text", "text_to_image")
        }

    # ---- The result --------------------------------------------------------------------------------------------------

    def export(self) -> list[Path]:
        """Write the best weights, or without validation the last, as a folder that opens as an engine."""
        if not self.processes.first:
            self.processes.wait()
            return []
        self._say(self.course.total, self.course.total, "Writing the model")
        used = self.trainer.step
        if self.best.step:
            self.model.load_state(self.work.load_best())
            used = self.best.step
        before, after = self._scores.get(0), self._scores.get(used)
        if before and after and sum(after.values()) <= sum(before.values()):
            logger.warning(
                "The validation found no gain over the model that the run began with; written are the best weights of "
                "the run, those after step %d.",
                used,
            )
        made = {
            "settings": asdict(self.settings),
            "base": self.model.base,
            "data": self.data.report(),
            "steps": self.trainer.step,
            "exported_step": used,
            "epoch": used // self.course.epoch_steps,
        }
        files = self.model.export(self.options.output, self.layouts, made)
        kind = self.processes.device.type
        made |= {
            "validation": {"before": before, "after": after, "batch": VALIDATION_BATCH},
            "seconds": round(self._seconds, 1),
            "processes": self.processes.count,
            "device": torch.cuda.get_device_name() if kind == "cuda" else kind,
            "files": [path.name for path in files],
            "versions": versions(),
        }
        write_json(self.options.output / CARD, made)
        self.processes.wait()
        return [*files, self.options.output / CARD]


def run(
    settings: FinetuneSettings, source: DataSettings, options: RunOptions, processes: Processes, link: JobLink
) -> list[Path]:
    """Train and export; return the files of the result.

    Raises:
        SystemExit: Asked to stop; the last checkpoint is whole.
        MedCLIPSAMError: See :class:`Run`, and :meth:`Trainer.train_step`.
    """
    with Run(settings, source, options, processes, link) as current:
        current.train()
        return current.export()
