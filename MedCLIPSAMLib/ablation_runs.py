"""The runs behind the ablation tables: image by image, so that runs with the same models share its encoding.

What is measured is kept in one JSON file a run, by the content of image and mask: nothing is measured twice, whatever
stopped the run before.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.ablation_identity import run_identity
from MedCLIPSAMLib.ablation_rows import Run
from MedCLIPSAMLib.cases import Case
from MedCLIPSAMLib.errors import CancelledError, MedCLIPSAMError, OutputError
from MedCLIPSAMLib.file_output import write_json
from MedCLIPSAMLib.weak_recipe import WEAK

logger = logging.getLogger(__name__)

MEASURES = ("dsc", "nsd_2d", "nsd_paper")
SAVE_SECONDS = 15.0  # a killed run loses at most this
_FORMAT = 1
Loader = Callable[..., Any]


@dataclass
class Measured:
    """What is known of one run.

    Attributes:
        run: Which.
        stages: Whether all stages are wanted, not only the mask.
        file: Where it is kept.
        settings: What its numbers depend on, beside the images.
        entries: By :func:`case_key`: ``{"file", "dataset", "has_target", "mask": {measure: value}[, "stages": {stage:
            {measure: value}}]}``.
        reason: Why it could not be done; empty if it could.
    """

    run: Run
    stages: bool = False
    file: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""
    unsaved: bool = False

    def lacks(self, key: str) -> bool:
        """Whether a case is still to be measured."""
        entry = self.entries.get(key)
        return entry is None or (self.stages and entry["has_target"] and "stages" not in entry)

    def save(self) -> None:
        """Write what is new.

        Raises:
            OutputError: Not writable, disk full.
        """
        if self.unsaved:
            write_json(self.file, {"format": _FORMAT, "settings": self.settings, "cases": self.entries})
            self.unsaved = False


def case_key(case: Case) -> str:
    """Return a key that changes with the file's name and the content of image and mask."""
    digest = hashlib.blake2b(digest_size=12)
    for path in (case.image_path, case.mask_path):
        digest.update(hashlib.blake2b(path.read_bytes()).digest())
    return f"{case.file} {digest.hexdigest()}"


def prepare(runs: Sequence[tuple[Run, bool]], folder: Path, seed: int, device: str) -> list[Measured]:
    """Find what is known of the runs, and which of them cannot be done because files are missing.

    Args:
        runs: Each run, and whether it needs all stages.
        folder: Where they are kept.
        seed: The runs' seed.
        device: Where they run; numbers of a GPU's half precision are not mixed with others.

    Returns:
        For each run what is known of it; runs with equal settings share one object.
    """
    from MedCLIPSAMLib.engines import choose_device, choose_precision

    found: dict[str, Measured] = {}
    same = []
    precision = choose_precision(choose_device(device))
    format_ = {"format": _FORMAT, **({} if precision == "float32" else {"precision": precision})}
    for run, stages in runs:
        try:
            settings = {**run_identity(run), "seed": seed, **format_}
        except MedCLIPSAMError as error:
            same.append(Measured(run, reason=short_reason(error)))
            continue
        key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
        if key not in found:
            found[key] = Measured(run, file=folder / f"{key}.json", settings=settings)
            found[key].entries = _read(found[key].file)
        found[key].stages |= stages
        same.append(found[key])
    return same


def measure_all(
    measured: Sequence[Measured],
    cases: Mapping[str, Case],
    seed: int,
    device: str,
    load: Loader,
    progress: Callable[[int, int], None] | None = None,
    group_done: Callable[[], None] | None = None,
) -> None:
    """Measure what is lacking. A run that fails keeps its reason, and the others go on.

    Args:
        measured: From :func:`prepare`.
        cases: By :func:`case_key`.
        seed, device: Of the runs.
        load: Like :func:`MedCLIPSAMLib.engines.load_engine`.
        progress: Called with (measurements done, in all).
        group_done: Called when all runs with the same models are done, or one of them was interrupted.

    Raises:
        OutputError: The folder cannot be written.
        CancelledError: The user cancelled.
    """
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    for one in {id(one): one for one in measured}.values():
        if not one.reason and any(one.lacks(key) for key in cases):
            # A slow kind of saliency gets a round of its own, so that the rows of the quick ones are done before.
            saliency = one.run.recipe.saliency if one.run.recipe else ""
            groups.setdefault((one.run.engine, one.run.members, saliency), []).append(one)
    counter = _Counter(sum(one.lacks(key) for group in groups.values() for one in group for key in cases), progress)
    engines = list(dict.fromkeys(key[:2] for key in groups))
    loaded = _Loaded(device, load)
    for key in sorted(groups, key=lambda key: engines.index(key[:2])):
        try:
            _measure_group(groups[key], cases, seed, loaded, counter)
        finally:
            for one in groups[key]:
                one.save()
            if group_done is not None:
                group_done()


def short_reason(error: MedCLIPSAMError) -> str:
    """Return the first line of an error's message, for a table."""
    return " ".join(str(error).splitlines()[0].split())


class _Counter:
    """Counts measurements for a progress bar."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None):
        self._done, self._total, self._progress = 0, total, progress

    def add(self, count: int = 1) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Loaded:
    """Keeps the models that were loaded last."""

    def __init__(self, device: str, load: Loader):
        self._device, self._load = device, load
        self._name: tuple[str, str] | None = None
        self._engine: Any = None

    def engine(self, run: Run) -> Any:
        """Return the engine of a run, with settings of its own."""
        name = (run.engine, run.members)
        if name != self._name:
            self._name = self._engine = None  # two sets of large models do not fit into every memory
            changes = {"changes": {"members": run.members}} if run.engine.startswith(WEAK) else {}
            self._engine = self._load(run.engine, device=self._device, **changes)
            self._name = name
        return self._engine


class _Saver:
    """Writes what is new, but not after every image: the files grow with their number."""

    def __init__(self, group: Sequence[Measured]):
        self._group, self._last = group, time.monotonic()

    def save_at_times(self) -> None:
        if time.monotonic() - self._last > SAVE_SECONDS:
            for one in self._group:
                one.save()
            self._last = time.monotonic()


def _measure_group(
    group: list[Measured], cases: Mapping[str, Case], seed: int, loaded: _Loaded, counter: _Counter
) -> None:
    segmenters: list[tuple[Measured, Any]] = []
    try:
        base = loaded.engine(group[0].run)
    except MedCLIPSAMError as error:
        for one in group:
            _give_up(one, error, cases, counter)
        return
    for one in group:
        try:
            segmenters.append((one, _with_recipe(base, one.run)))
        except MedCLIPSAMError as error:
            _give_up(one, error, cases, counter)
    saver = _Saver([one for one, _ in segmenters])
    for key, case in cases.items():
        for one, segmenter in segmenters:
            if one.reason or not one.lacks(key):
                continue
            try:
                one.entries[key] = _measure(segmenter, case, one, seed)
                one.unsaved = True
                saver.save_at_times()
                counter.add()
            except (CancelledError, OutputError):
                raise
            except MedCLIPSAMError as error:
                _give_up(one, error, cases, counter)


def _give_up(one: Measured, error: MedCLIPSAMError, cases: Mapping[str, Case], counter: _Counter) -> None:
    logger.warning("%s cannot be measured: %s", one.run.engine, error)
    one.reason = short_reason(error)
    counter.add(sum(one.lacks(key) for key in cases))


def _measure(segmenter: Any, case: Case, one: Measured, seed: int) -> dict[str, Any]:
    """Return one case's entry; a report on a single image has its values as the means."""
    from MedCLIPSAMLib.evaluation import evaluate

    report = evaluate(segmenter, [case], one.run.prompt, seed=seed, stages=one.stages, uncertainty=False)
    (found,) = report["cases"]
    (summary,) = report["datasets"].values()
    entry = {name: found[name] for name in ("file", "dataset", "has_target", "seconds")}
    entry["mask"] = {name: found[name] for name in MEASURES}
    if one.stages and found["has_target"]:
        entry["stages"] = {
            stage: {name: values[name]["mean"] for name in MEASURES} for stage, values in summary["stages"].items()
        }
    return entry


def _with_recipe(base: Any, run: Run) -> Any:
    """Return the engine with the run's settings; the models, and the embeddings of texts, are shared.

    Raises:
        InputError: One of the models cannot do what the settings want.
    """
    if run.recipe is None:
        return base
    from MedCLIPSAMLib.model_checks import check_models

    own = copy.copy(base)
    own.recipe = run.recipe
    if hasattr(own, "clip"):
        check_models(own.recipe, own.clip, own.segmenter)
    return own


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Return what is kept of a run; a file that is damaged counts as none."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            key: entry
            for key, entry in content["cases"].items()
            if set(entry["mask"]) == set(MEASURES) and isinstance(entry["has_target"], bool)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read (%s); its images are measured again.", file.name, error)
        return {}
