"""From unlabelled images and a prompt to a trained nnU-Net, stage by stage; each is done once, see weak_stages.py."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.cohort import run_cohort
from MedCLIPSAMLib.cohort_rows import DONE
from MedCLIPSAMLib.cohort_table import SETTINGS_FILE, read_settings
from MedCLIPSAMLib.cohort_worker import release_engine
from MedCLIPSAMLib.engines import choose_device
from MedCLIPSAMLib.ensemble_folder import WEAK_FILE, ModelClass, write_model_folder
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import check_output_folder, replacing
from MedCLIPSAMLib.prompts import check_prompt
from MedCLIPSAMTraining.cyclical_schedule import checkpoint_name, kept_epochs
from MedCLIPSAMTraining.job_link import JobLink
from MedCLIPSAMTraining.nnunet_environment import TRAINER, check_installed, environment, run_child, worker_counts
from MedCLIPSAMTraining.nnunet_plans import NAMES
from MedCLIPSAMTraining.pseudo_folds import patient_folds
from MedCLIPSAMTraining.pseudo_labels import DATASET, DATASET_ID, RawDataset, dataset_json
from MedCLIPSAMTraining.weak_labels import make_labels, source_digest
from MedCLIPSAMTraining.weak_settings import ALL, FOLDS, WeakOptions, WeakSettings
from MedCLIPSAMTraining.weak_stages import Course, WeakWork

logger = logging.getLogger(__name__)


def run(settings: WeakSettings, options: WeakOptions, link: JobLink) -> Path:
    """Do all stages that are not done, and return the model folder.

    Raises:
        SystemExit: Asked to stop; the same call goes on.
        MedCLIPSAMError: What is wrong and what to do; what was done before is kept.
    """
    check_installed()
    for path in (settings.data, settings.masks):
        if path is not None and not path.exists():
            raise InputError(f"{path} does not exist; check the path.")
    with WeakWork(options.work, settings) as work, Course(link) as course:
        training = WeakTraining(settings, options, work, course)
        training.check()
        training.run()
    return options.output


class WeakTraining:
    """The stages of one run."""

    def __init__(self, settings: WeakSettings, options: WeakOptions, work: WeakWork, course: Course):
        self.settings, self.options, self.work, self.course = settings, options, work, course
        self.device = choose_device(options.device)
        self.preparing, self.augmenting = worker_counts(options.workers, self.device)

    def check(self) -> None:
        """Find what would make the run fail at its end.

        Raises:
            InputError: The output folder holds another model, or there are no prompts.
            OutputError: It cannot be written.
        """
        check_output_folder(self.options.output)
        model = self.options.output / WEAK_FILE
        written = self.work.found("model")
        own = written is not None and model.is_file() and written["sha256"] == _digest(model)
        half = written is None and all(self.work.done(f"train-{fold}") for fold in self.settings.folds)
        if model.exists() and not own and not half:
            raise InputError(f"{self.options.output} holds a model already; choose another --output folder.")
        if not self._existing_cohort():
            for name, folder in (("output", self.options.output), ("work", self.options.work)):
                if folder.is_relative_to(self.settings.data):
                    raise InputError(f"{folder} lies among the images of {self.settings.data}; pass another --{name}.")
        if self._existing_cohort():
            self._check_cohort_options()
        if not self.settings.prompts and not self._existing_cohort():
            raise InputError("there is no prompt; say what to segment: --prompt TEXT, for example --prompt 'lung'.")
        for prompt in self.settings.prompts:
            check_prompt(prompt)

    def run(self) -> None:
        """Do the stages."""
        if self.settings.masks is None and not self._existing_cohort():
            # What failed for a reason that has passed since is tried again, as long as nothing is built on it.
            if (self.work.found("cohort") or {}).get("failed") and not self.work.done("labels"):
                self.work.again("cohort")
            self.work.stage("cohort", self._make_cohort)
        labels = self.work.stage("labels", self._make_labels)
        if not self.work.done("model") and labels["source"] != source_digest(self.settings, self._cohort_folder()):
            raise InputError(
                f"the cohort {self._cohort_folder()} was changed since this training began (run again, or cases were "
                "rejected); pass it as --cohort with another --work folder, or undo the change."
            )
        self.work.stage("prepare", lambda: self._prepare(labels))
        for number, fold in enumerate(self.settings.folds):
            self.work.stage(f"train-{fold}", lambda number=number, fold=fold: self._train(number, fold))
        if not (self.options.output / WEAK_FILE).is_file():
            self.work.again("model")  # it was moved away, or is wanted in another folder
        self.work.stage("model", lambda: self._write_model(labels))

    def _check_cohort_options(self) -> None:
        """Refuse what was settled when the existing cohort was made, and would have no effect."""
        made = read_settings(self.settings.data) or {}
        asked, usual = self.settings, WeakSettings(self.settings.data)
        for name in ("engine", "preset", "changes", "window"):
            value = getattr(asked, name)
            value = list(value) if isinstance(value, tuple) else value
            if value != getattr(usual, name) and value != made.get(name):
                raise InputError(
                    f"{name} {value}: the cohort {asked.data} was made with {made.get(name)}; leave the option out, or "
                    "segment again."
                )

    # ---- Cohort ------------------------------------------------------------------------------------------------------

    def _existing_cohort(self) -> bool:
        return self.settings.masks is None and (self.settings.data / SETTINGS_FILE).is_file()

    def _cohort_folder(self) -> Path:
        return self.settings.data if self._existing_cohort() else self.work.cohort

    def _make_cohort(self) -> dict[str, Any]:
        """Segment all images; the engine's memory is given back before nnU-Net begins."""
        settings = self.settings
        self.course.tell("cohort", 0, 0, "Looking for images")
        workers = self.options.workers if self.device == "cpu" else None  # a GPU has room for one engine
        try:
            cohort = run_cohort(
                settings.data,
                settings.prompts,
                self.work.cohort,
                workers=None if workers is None else max(1, workers),
                engine=settings.engine,
                preset=settings.preset,
                device=self.device,
                seed=settings.seed,
                window=settings.window,
                changes=dict(settings.changes),
                progress=lambda done, total: self.course.tell("cohort", done, total, f"Segmenting, {done} of {total}"),
            )
        finally:
            release_engine()
        states = [result.status for case in cohort.cases for result in case.results]
        return {"cases": len(cohort.cases), "failed": len(states) - states.count(DONE)}

    def _make_labels(self) -> dict[str, Any]:
        def progress(done: int, total: int) -> None:
            self.course.tell("labels", done, total, f"Labels, {done} of {total}")

        work = self.work
        return make_labels(self.settings, self._cohort_folder(), work.nnunet.raw, work.excluded, progress)

    # ---- nnU-Net -----------------------------------------------------------------------------------------------------

    def _prepare(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Plan, preprocess, and divide the patients into folds."""
        made = RawDataset(labels["kind"], labels["patients"], labels["channels"], labels["modality"])
        folders, settings = self.work.nnunet, self.settings
        for folder in (folders.raw, folders.preprocessed, folders.results):
            folder.mkdir(parents=True, exist_ok=True)
        folds = patient_folds(labels["patients"], FOLDS, settings.seed)
        if settings.folds != (ALL,) and (missing := [fold for fold in settings.folds if int(fold) >= len(folds)]):
            raise InputError(f"fold {missing[0]}: the patients are enough for {len(folds)} folds, counted from 0.")
        request = {
            "preprocessed": str(folders.preprocessed / DATASET),
            "dataset_id": DATASET_ID,
            "configuration": settings.configuration,
            "size": settings.plans,
            "schedule": settings.schedule.to_plans(),
            "workers": min(self.preparing, len(labels["patients"])),
            "cases": len(labels["patients"]),
            "dataset_json": dataset_json(made, labels["prompts"], paths=False),
        }

        def told(event: dict[str, Any]) -> None:
            if event.get("event") == "progress":
                self.course.tell("prepare", event["done"], event["total"], event["text"])
            else:
                self.course.beat()

        self.course.tell("prepare", 0, 0, "Planning")
        run_child("prepare", request, folders, environment(folders, request["workers"], False), told)
        with replacing(folders.preprocessed / DATASET / "splits_final.json") as file:
            file.write(json.dumps(folds, indent=1).encode())
        return {"folds": len(folds)}

    def _trained(self) -> Path:
        """The folder of nnU-Net's results."""
        name = f"{TRAINER}__{NAMES[self.settings.plans]}__{self.settings.configuration}"
        return self.work.nnunet.results / DATASET / name

    def _train(self, number: int, fold: str) -> dict[str, Any]:
        """Train one fold, from its last epoch on."""
        settings, folders = self.settings, self.work.nnunet
        count = len(settings.folds)
        of_folds = f"fold {fold}: " if count > 1 else ""
        request = {
            "dataset_id": DATASET_ID,
            "configuration": settings.configuration,
            "size": settings.plans,
            "fold": fold,
            "device": self.device.partition(":")[0],
            "results": str(self._trained() / f"fold_{fold}"),
        }

        def told(event: dict[str, Any]) -> None:
            if event.get("event") == "progress":
                share = (number + event["done"] / max(1, event["total"])) / count
                self.course.tell("train", share, 1.0, of_folds + event["text"])
            else:
                self.course.beat()

        self.course.tell("train", number, count, f"{of_folds}Starting the training")
        run_child("train", request, folders, environment(folders, self.augmenting, True, self.device), told)
        return {"fold": fold}

    def _write_model(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Put together the model folder."""
        self.course.tell("model", 0, 0, "Writing the model")
        schedule = self.settings.schedule
        prompts: Sequence[str] = labels["prompts"]
        window = labels["window"] if labels["kind"] == "image" else None
        true_labels = self.settings.masks is not None
        model = write_model_folder(
            self.options.output,
            self._trained(),
            kept=[
                f"fold_{fold}/{checkpoint_name(epoch)}"
                for fold in self.settings.folds
                for epoch in kept_epochs(schedule)
            ],
            classes=[ModelClass(label, prompt, prompt) for label, prompt in enumerate(prompts, start=1)],
            kind=f"{labels['kind']}s",
            supervision="true labels" if true_labels else "pseudo-labels",
            window=tuple(window) if window else None,
            pseudo_labels={
                **labels["origin"],
                "cases": len(labels["patients"]),
                "patients": len({patient for patient in labels["patients"].values() if patient}) or None,
                "pixels": labels["pixels"],
                "excluded": labels["excluded"],
                "rules": None if true_labels else asdict(self.settings.rules),
            },
            schedule={
                **schedule.to_plans(),
                "configuration": self.settings.configuration,
                "plans": self.settings.plans,
                "folds": list(self.settings.folds),
                "device": self.device,
            },
        )
        self.course.tell("model", 1, 1, "Finished")
        return {"kept": len(model.kept), "sha256": _digest(self.options.output / WEAK_FILE)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
