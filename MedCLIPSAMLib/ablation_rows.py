"""The rows of the ablation tables: what each one runs, before any of it is run.

The tables follow Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483: 1 supervision, 3 prompt designs, 4 components,
5 saliency methods, 6 models of the SAM family and visual prompts. Rows of several tables may share one :class:`Run`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from MedCLIPSAMLib.engines import check_choice, segmenter_names
from MedCLIPSAMLib.ensemble_folder import read_model_folder
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.prompt_sets import ENSEMBLES, load_prompt_set, prompt_sets
from MedCLIPSAMLib.prompts import SET_PREFIX
from MedCLIPSAMLib.recipe import Recipe, split_engine
from MedCLIPSAMLib.weak_recipe import WEAK

TABLES = {
    "1": "Supervision",
    "3": "Prompt designs",
    "4": "Components",
    "5": "Saliency methods",
    "6": "Models of the SAM family and visual prompts",
}
TASKS = ("breast-ultrasound", "brain-mri", "chest-xray", "chest-ct")
DEFAULT_ENGINES = ("lite", "biomedclip")
_LESIONS = ("breast-ultrasound", "brain-mri")
_METHODS = {"patch_similarity": "patch similarity", "m2ib": "M2IB", "gscorecam": "gScoreCAM", "gradcam": "GradCAM"}
_DESIGNS = {
    "p0": "P0: class name",
    "p1": "P1: class and subtype",
    "p2": "P2: sentence",
    "p3": "P3: sentence about the subtype",
    "p4": "P4: mean of the P2 sentences",
    "p5": "P5: mean of the P3 sentences",
}
_EVERY_COMPONENT = {
    "minimum_confidence": 0.0,
    "relative_confidence": 0.0,
    "minimum_area": 0.0,
    "maximum_components": None,
}
"""What switches the analysis of the connected components off."""


@dataclass(frozen=True)
class Run:
    """One way to segment all images.

    Attributes:
        engine: CLIP+SEGMENTER, or "weak:FOLDER".
        prompt: A text, or "set:" and the name of a prompt set.
        recipe: All settings; None takes those of the engine.
        members: For "weak:FOLDER", which checkpoints: "all" that were kept, or the "last" alone.
    """

    engine: str
    prompt: str
    recipe: Recipe | None = None
    members: Literal["all", "last"] = "all"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        table: A key of :data:`TABLES`.
        engine: As shown.
        label: As shown.
        run: Where its masks come from; None where there is none, see ``by_subtype``, ``report`` and ``reason``.
        stage: Whose masks are measured, of :data:`MedCLIPSAMLib.evaluation.STAGES`.
        by_subtype: For every image the run of its true subtype, by the subtype's name.
        report: A ``report.json`` that another program or run has made.
        uses_labels: Whether true labels of the test images, or of training images of the same data, were used.
        reason: Why there is nothing to run; empty where there is.
    """

    table: str
    engine: str
    label: str
    run: Run | None = None
    stage: str = "mask"
    by_subtype: Mapping[str, Run] = field(default_factory=dict)
    report: Path | None = None
    uses_labels: bool = False
    reason: str = ""

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs that the row needs."""
        return (*([self.run] if self.run else []), *self.by_subtype.values())


@dataclass(frozen=True)
class Models:
    """What is compared.

    Attributes:
        engines: Names as for :func:`MedCLIPSAMLib.engines.load_engine`.
        weak: Folder of a model trained on pseudo-labels, or None.
        supervised: Folder of a model trained on true labels, or None.
        reports: Further rows of Table 1 by name, from ``report.json`` files of methods that saw no true label.
        few_shot: The same, of methods that saw some.
    """

    engines: Sequence[str] = DEFAULT_ENGINES
    weak: Path | None = None
    supervised: Path | None = None
    reports: Mapping[str, Path] = field(default_factory=dict)
    few_shot: Mapping[str, Path] = field(default_factory=dict)


def plan_rows(tables: Sequence[str], task: str, models: Models, prompt: str, device: str = "auto") -> list[Row]:
    """Return the rows of the tables in the order in which they are shown.

    Args:
        tables: Keys of :data:`TABLES`.
        task: One of :data:`TASKS`; chooses the prompt sets, and an engine's preset of this name where it has one.
        models: What is compared.
        prompt: For all tables but 3, which asks the prompt designs.
        device: As for :func:`MedCLIPSAMLib.engines.load_engine`; only its spelling is checked here.

    Raises:
        InputError: An unknown table, task, engine or device.
    """
    for table in tables:
        if table not in TABLES:
            raise InputError(f"table {table!r} is unknown; there are {', '.join(TABLES)} and all.")
    if task not in TASKS:
        raise InputError(f"task {task!r} is unknown; known: {', '.join(TASKS)}.")
    if not models.engines:
        raise InputError("no engine is named; pass at least one (--engine lite).")
    recipes = {name: _recipe(name, task, device) for name in models.engines}
    planners = {"1": _supervision, "3": _designs, "4": _components, "5": _methods, "6": _segmenters}
    return [row for table in TABLES if table in tables for row in planners[table](task, models, prompt, recipes)]


def subtypes(task: str) -> list[str]:
    """Return the subtypes of a task that prompts exist for, such as "benign" and "malignant"."""
    start = f"{task}-p1-"
    return [name.removeprefix(start) for name in prompt_sets() if name.startswith(start)]


def full_name(engine: str, recipe: Recipe) -> str:
    """Return an engine's name with its segmenter, CLIP+SEGMENTER."""
    return f"{split_engine(engine)[0]}+{recipe.segmenter}"


def _recipe(engine: str, task: str, device: str) -> Recipe:
    """Return the settings of an engine for a task. The gate is off: the tables compare masks, not presence scores."""
    recipe = check_choice(engine, None, device)
    return recipe.with_preset(task if task in (recipe.presets or {}) else None).with_settings({"gate": False})


def _run(engine: str, recipe: Recipe, prompt: str, **changes: Any) -> Run:
    return Run(full_name(engine, recipe), prompt, recipe.with_settings(changes) if changes else recipe)


def _supervision(task: str, models: Models, prompt: str, recipes: Mapping[str, Recipe]) -> list[Row]:
    rows = [Row("1", name, "zero-shot", _run(name, recipe, prompt)) for name, recipe in recipes.items()]
    rows += [Row("1", name, "other program", report=path) for name, path in models.reports.items()]
    rows += _trained(models.weak, prompt, "weak supervision", "--weak MODEL", uses_labels=False)
    rows += [Row("1", name, "few-shot", report=path, uses_labels=True) for name, path in models.few_shot.items()]
    if not models.few_shot:
        how = "pass --few-shot NAME=REPORT, a report that `./medclipsam evaluate` made of such a program's masks"
        rows.append(Row("1", "", "few-shot", uses_labels=True, reason=how))
    rows += _trained(models.supervised, prompt, "full supervision", "--supervised MODEL", uses_labels=True)
    for name, recipe in recipes.items():
        rows.append(Row("1", name, "box around the whole image", _run(name, recipe, prompt), "box_whole_image"))
        rows.append(Row("1", name, "true boxes", _run(name, recipe, prompt), "box_true", uses_labels=True))
    return rows


def _asked_of(folder: Path, prompt: str) -> str:
    """Return what a network is asked for: its only class by the name that it knows, else the table's prompt."""
    classes = read_model_folder(folder).classes
    return classes[0].prompt if len(classes) == 1 else _first_text(prompt)


def _trained(folder: Path | None, prompt: str, label: str, option: str, *, uses_labels: bool) -> list[Row]:
    """Return the rows of an nnU-Net: its last checkpoint alone, and the ensemble of all that were kept (Eq. 21)."""
    rows = []
    for members, kind in (("last", "last checkpoint"), ("all", "ensemble of checkpoints")):
        shown = {"table": "1", "engine": "nnU-Net", "label": f"{label}, {kind}", "uses_labels": uses_labels}
        if folder is None:
            rows.append(Row(**shown, reason=f"pass {option}, the folder of a model from `./medclipsam weak-train`"))
        else:
            rows.append(Row(**shown, run=Run(f"{WEAK}{folder}", _asked_of(folder, prompt), members=members)))
    return rows


def _first_text(prompt: str) -> str:
    """Return a prompt, or of a set its first text: a trained model knows its classes by their names."""
    return load_prompt_set(prompt.removeprefix(SET_PREFIX)).prompts[0] if prompt.startswith(SET_PREFIX) else prompt


def _designs(task: str, models: Models, prompt: str, recipes: Mapping[str, Recipe]) -> list[Row]:
    known, kinds = prompt_sets(), subtypes(task)
    rows = []
    for name, recipe in recipes.items():
        for design, label in _DESIGNS.items():
            whole = f"{task}-{design}"
            if whole in known:
                rows.append(Row("3", name, label, _run(name, recipe, f"{SET_PREFIX}{whole}")))
            runs = {
                kind: _run(name, recipe, f"{SET_PREFIX}{whole}-{kind}") for kind in kinds if f"{whole}-{kind}" in known
            }
            rows += [Row("3", name, f"{label} ({kind}, for all images)", run) for kind, run in runs.items()]
            if design in ("p1", "p3", "p5"):
                reason = "" if runs else f"there are no prompts for subtypes of {task}"
                shown = f"{label} (each image's true one)"
                rows.append(Row("3", name, shown, by_subtype=runs, uses_labels=True, reason=reason))
    return rows


def _components(task: str, models: Models, prompt: str, recipes: Mapping[str, Recipe]) -> list[Row]:
    rows = []
    for name, recipe in recipes.items():
        main, one = _run(name, recipe, prompt), _run(name, recipe, prompt, samples=1)
        every = _run(name, recipe, prompt, samples=1, **_EVERY_COMPONENT)
        ensemble = f"{SET_PREFIX}{task}-{next(iter(ENSEMBLES)).lower()}"
        rows += [
            Row("4", name, "saliency above 0.5", main, "saliency_0.5"),
            Row("4", name, f"+ threshold ({recipe.threshold}), all components", every, "coarse"),
            Row("4", name, "+ component analysis (coarse mask)", main, "coarse"),
            Row("4", name, f"+ {recipe.segmenter}, 1 sample", one),
            Row("4", name, f"+ mean of {recipe.samples} samples", main),
            Row("4", name, "+ ensemble of prompts (P4)", _run(name, recipe, ensemble)),
        ]
    if not any(name.startswith("finetuned:") for name in recipes):
        how = "pass --engine finetuned:FOLDER too, a CLIP from `./medclipsam finetune`"
        rows.append(Row("4", "finetuned", "+ CLIP fine-tuned with DHN-NCE", reason=how))
    weak = _trained(models.weak, prompt, "+ nnU-Net on pseudo-labels", "--weak MODEL", uses_labels=False)[1]
    return [*rows, Row("4", weak.engine, weak.label, weak.run, reason=weak.reason)]


def _methods(task: str, models: Models, prompt: str, recipes: Mapping[str, Recipe]) -> list[Row]:
    rows = []
    for name, recipe in recipes.items():
        own_first = sorted(_METHODS, key=lambda method: method != recipe.saliency)
        for method in own_first:
            rows.append(Row("5", name, _METHODS[method], _run(name, recipe, prompt, saliency=method)))
            lesion = (recipe.presets or {}).get("m2ib-lesion")
            if method == "m2ib" and lesion and task in _LESIONS:
                changes = {key: value for key, value in lesion.items() if key != "about"}
                rows.append(Row("5", name, "M2IB, preset m2ib-lesion", _run(name, recipe, prompt, **changes)))
    return rows


def _segmenters(task: str, models: Models, prompt: str, recipes: Mapping[str, Recipe]) -> list[Row]:
    rows, done = [], set()
    for name, own in recipes.items():
        clip, _ = split_engine(name)
        if clip in done:
            continue
        done.add(clip)
        for segmenter in sorted(segmenter_names(), key=lambda one: one != own.segmenter):
            recipe = _recipe(f"{clip}+{segmenter}", task, "auto")
            for kind in ("boxes", "points", "both"):
                run = _run(f"{clip}+{segmenter}", recipe, prompt, visual_prompt=kind)
                rows.append(Row("6", clip, f"{segmenter}, {kind if kind != 'both' else 'boxes and points'}", run))
    return rows
