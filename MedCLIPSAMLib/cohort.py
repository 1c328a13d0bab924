"""Many inputs with the same prompts: thousands of images, volumes and DICOM series, resumable, on several processes.

See cohort_table.py for what is written, cohort_inputs.py for what counts as an input, cohort_worker.py for what is done
to one of them, and cohort_cluster.py for the processes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedCLIPSAMLib import reporting
from MedCLIPSAMLib.cohort_cluster import check_cancelled, processes
from MedCLIPSAMLib.cohort_inputs import CohortInput, find_inputs
from MedCLIPSAMLib.cohort_rows import CohortRow, read_table, write_table
from MedCLIPSAMLib.cohort_sheet import write_sheet
from MedCLIPSAMLib.cohort_table import (
    CASE_FILE,
    CASES,
    FORMAT,
    SETTINGS_FILE,
    THUMBNAILS,
    Cohort,
    read_cohort,
    read_settings,
)
from MedCLIPSAMLib.cohort_worker import digest_of
from MedCLIPSAMLib.engines import check_choice, choose_device
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import check_output_folder, only_run_in, write_json
from MedCLIPSAMLib.medical_image import file_label
from MedCLIPSAMLib.prompts import check_prompt, wordings
from MedCLIPSAMLib.weak_recipe import WEAK
from MedCLIPSAMLib.worker_engines import describe_device

logger = logging.getLogger(__name__)

_TABLE_EVERY = 30.0  # seconds between two writings of the table
_MEMORY = 4e9  # bytes for a process with the models of a middling engine


@dataclass(frozen=True)
class CohortRequest:
    """What is to be done to every input; the attributes are those of :func:`run_cohort`."""

    prompts: tuple[str, ...]
    engine: str = "lite"
    preset: str | None = None
    device: str = "auto"
    seed: int = 0
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    axis: int | str | None = None
    slice_range: tuple[int, int] | None = None
    window: tuple[float, float] | None = None
    overview: bool = False


def run_cohort(
    source: str | Path,
    prompts: Sequence[str],
    output: str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    limit: int | None = None,
    gate: bool = True,
    changes: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **settings: Any,
) -> Cohort:
    """Segment every input of a folder; a run that ended early goes on where it was.

    An input is done when its content and the settings are those of its result; such a one is not segmented again. What
    cannot be used is entered as failed with the reason, and tried again by the next run. The masks and maps are the
    same for any number of processes.

    Args:
        source: See :func:`MedCLIPSAMLib.cohort_inputs.find_inputs`.
        prompts: Texts; none for the first of the preset's own.
        output: Folder of the cohort, see cohort_table.py.
        workers: Processes on this machine, each with its own models and one thread; 1 is this process, which needs no
            Dask. None takes as many as there are cores and memory, on a GPU one.
        scheduler: Address of a running Dask scheduler, whose workers are taken instead.
        limit: At most so many inputs, spread evenly over all.
        gate: False segments also where the target seems to be absent.
        changes: Settings of the engine to replace, see :meth:`MedCLIPSAMLib.recipe.Recipe.with_settings`.
        progress: Called with (inputs done or failed, inputs in all).
        cancelled: Asked between steps.
        settings: "engine", "preset", "seed", "device"; "axis" and "slice_range" for volumes, "window" for all, as for
            :func:`MedCLIPSAMLib.segment_request.make_request`; "overview" True also draws the overview.png of each case
            that this run segments.

    Returns:
        The cohort, as :func:`MedCLIPSAMLib.cohort_table.read_cohort` reads it.

    Raises:
        InputError: No inputs, settings that cannot be used, or the folder holds a cohort with other settings.
        OutputError: Results cannot be written; the run stops.
        CancelledError: ``cancelled`` said so.
        MedCLIPSAMError: As raised when the engine is loaded; or no scheduler, or another run works in this folder.
    """
    request = _checked(prompts, {**(changes or {}), **({} if gate else {"gate": False})}, settings)
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit} (--limit): it must be 1 or more.")
    if workers is not None and workers < 1:
        raise InputError(f"workers {workers} (--workers): it must be 1 or more.")
    if Path(output).resolve() == Path(source).resolve():
        raise InputError(f"{file_label(output)} is the folder of the inputs; name another one for the results.")
    root, inputs = find_inputs(source, output)
    output = check_output_folder(output)
    chosen = inputs
    if limit is not None and limit < len(inputs):
        chosen = [inputs[index * len(inputs) // limit] for index in range(limit)]
    if scheduler is None and workers is None:
        workers = default_workers(request.device)
    table: _Table | None = None
    with only_run_in(output):
        _tidy(output)
        try:
            with processes(min(workers or 1, len(chosen)), scheduler) as engine:
                described = engine.describe(dataclasses.asdict(request), cancelled)
                common = _begin(output, root, [one.name for one in inputs], request, described)
                table = _Table(output, inputs, request.prompts)
                if progress is not None:
                    progress(0, len(chosen))
                tasks = ({**common, "case": _plain_case(one)} for one in chosen)
                for done, rows in enumerate(engine.segment(tasks, cancelled), 1):
                    table.enter(rows)
                    check_cancelled(cancelled)
                    if progress is not None:
                        progress(done, len(chosen))
        finally:  # also on Ctrl+C and SIGTERM
            _tidy(output)
            if table is not None:
                table.write()
                write_sheet(output, read_settings(output) or {}, table.rows())
    return read_cohort(output)


def default_workers(device: str) -> int:
    """Return how many processes suit this machine: one on a GPU, else by cores and by memory for the models.

    Raises:
        InputError: The machine does not have the device.
    """
    if importlib.util.find_spec("distributed") is None or choose_device(device) != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = describe_device("cpu")["memory_free"]
    return max(1, min(cores, int((free or _MEMORY) // _MEMORY)))


class _Table:
    """The rows of all inputs; until this run has come to a case, those of an earlier one."""

    def __init__(self, folder: Path, inputs: Sequence[CohortInput], prompts: Sequence[str]):
        self._folder = folder
        earlier: dict[str, list[CohortRow]] = {}
        for row in read_table(folder):
            earlier.setdefault(row.case, []).append(row)
        self._cases: dict[str, list[CohortRow]] = {}
        for one in inputs:
            rows = earlier.get(one.name, [])
            if [row.prompt for row in rows] != list(prompts):
                rows = [CohortRow(one.name, one.file, one.patient, prompt=prompt) for prompt in prompts]
            self._cases[one.name] = rows
        self._written = time.monotonic()

    def enter(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the rows of a case, and write the table if that was long ago."""
        found = [CohortRow(**row) for row in rows]
        self._cases[found[0].case] = found
        if time.monotonic() - self._written > _TABLE_EVERY:
            self.write()

    def rows(self) -> list[CohortRow]:
        """Return all rows, by file and prompt."""
        return [row for rows in self._cases.values() for row in rows]

    def write(self) -> None:
        """Write ``cohort.csv``."""
        write_table(self._folder, self.rows())
        self._written = time.monotonic()


def _checked(prompts: Sequence[str], changes: dict[str, Any], settings: Mapping[str, Any]) -> CohortRequest:
    """Return the request, with what can be told before any input is read."""
    known = {one.name for one in dataclasses.fields(CohortRequest)} - {"prompts", "changes"}
    if unknown := sorted(set(settings) - known):
        raise InputError(f"there is no setting {unknown[0]!r}; known: {', '.join(sorted(known))}.")
    request = CohortRequest((), changes=changes, **settings)
    recipe = check_choice(request.engine, request.preset, request.device).with_settings(changes)
    texts = tuple(check_prompt(prompt) for prompt in prompts or recipe.prompts[:1])
    if not texts:
        raise InputError("there is no prompt; say what to segment: --prompt TEXT, for example --prompt 'breast tumor'.")
    for number, text in enumerate(texts):
        wordings(text, 1)  # raises for an unknown prompt set
        if text.lower() in map(str.lower, texts[:number]):
            raise InputError(f"the prompt {text!r} is given twice; leave one of the two out.")
    if request.seed < 0:
        raise InputError(f"seed {request.seed}: it must be 0 or more.")
    if request.window is not None and not request.window[1] > request.window[0]:
        low, high = request.window
        raise InputError(f"window ({low:g}, {high:g}): the upper intensity must be above the lower one.")
    return dataclasses.replace(request, prompts=texts)


def _begin(
    output: Path, root: Path, names: Collection[str], request: CohortRequest, described: Mapping[str, Any]
) -> dict[str, Any]:
    """Write ``cohort.json`` and return what all tasks have in common.

    Raises:
        InputError: The folder holds results of other settings or of other inputs, which would be lost.
    """
    weak = request.engine.startswith(WEAK)
    deciding = {
        "prompts": list(request.prompts),
        "seed": request.seed,
        "axis": request.axis,
        "slices": list(request.slice_range) if request.slice_range else None,
        "window": list(request.window) if request.window else None,
        # an engine that was trained by a user is known by its weights, wherever it lies
        "engine": WEAK if weak else described["name"] if described["weights"] else request.engine,
        "recipe": {**described["recipe"], "name": WEAK} if weak else described["recipe"],
        "weights": described["weights"],
    }
    if described.get("precision", "float32") != "float32":  # a GPU's numbers are not mixed with those of a CPU
        deciding["precision"] = described["precision"]
    earlier = read_settings(output)
    before = (earlier or {}).get("deciding") or {}
    if earlier is not None and before != deciding and any((output / CASES).glob(f"*/{CASE_FILE}")):
        raise InputError(
            f"{file_label(output)} holds a cohort with other settings ({_differences(before, deciding)}); "
            "name another folder, or pass the same settings to go on with it."
        )
    known = {path.parent.name for path in (output / CASES).glob(f"*/{CASE_FILE}")}
    if known and known.isdisjoint(names):  # a folder that was only moved has the same names
        raise InputError(
            f"{file_label(output)} holds a cohort of other inputs, none of which is in {root}; name another folder."
        )
    run = secrets.token_hex(8)
    (output / CASES).mkdir(exist_ok=True)
    (output / THUMBNAILS).mkdir(exist_ok=True)
    write_json(
        output / SETTINGS_FILE,
        {
            "format": FORMAT,
            **{name: getattr(request, name) for name in ("prompts", "engine", "preset", "seed", "changes")},
            **{name: deciding[name] for name in ("axis", "slices", "window", "recipe", "weights")},
            "device": request.device,
            "source": str(root.resolve()),
            "versions": reporting.versions(),
            "note": reporting.RESEARCH_NOTE,
            "deciding": deciding,
            "run": run,
        },
    )
    return {
        "root": str(root.resolve()),
        "output": str(output.resolve()),
        "settings": dataclasses.asdict(request),
        "settings_digest": digest_of(deciding),
        "engine": described,
        "run": run,
    }


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in now if before.get(name) != now[name]]

    def short(value: Any) -> str:
        return text if len(text := str(value)) <= 60 else f"{text[:57]}..."

    recipe = [
        f"{name} {short(before['recipe'].get(name))}, now {short(value)}"
        for name, value in now["recipe"].items()
        if "recipe" in names and "recipe" in before and before["recipe"].get(name) != value
    ]
    rest = [f"{name} {short(before.get(name))}, now {short(now[name])}" for name in names if name != "recipe"]
    return "; ".join([*rest, *recipe]) or "the engine's settings"


def _plain_case(case: CohortInput) -> dict[str, Any]:
    parts = [str(part.resolve()) for part in case.parts]
    return {**dataclasses.asdict(case), "path": str(case.path.resolve()), "parts": parts}


def _tidy(output: Path) -> None:
    """Take away what processes that were killed have left half written."""
    for pattern in (f"{CASES}/*/.partial-*", f"{THUMBNAILS}/.partial-*", ".partial-*"):
        for path in output.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
