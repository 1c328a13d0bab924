"""One case of a cohort, from its file to its folder of results: what every process of a cohort does.

A process loads the engine at its first case and keeps it. A case that is done is recognised by the digests in its
``case.json``, which is written last; so a case that is asked for twice is segmented once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedCLIPSAMLib import reporting, segment_job
from MedCLIPSAMLib.cohort_inputs import content_digest, read_input
from MedCLIPSAMLib.cohort_measures import ListenedTo, Notes, measures, notes_of_files, write_thumbnail
from MedCLIPSAMLib.cohort_rows import DONE, FAILED, CohortRow
from MedCLIPSAMLib.cohort_table import CASE_FILE, CASES, FORMAT, THUMBNAILS, read_case, read_segment, read_settings
from MedCLIPSAMLib.errors import CancelledError, InputError, MedCLIPSAMError, OutputError
from MedCLIPSAMLib.file_output import write_json
from MedCLIPSAMLib.memory import free_device_memory, is_out_of_memory
from MedCLIPSAMLib.segment_request import make_request
from MedCLIPSAMLib.worker_engines import ENGINE_VARIABLE, describe_error, spoils_process

if TYPE_CHECKING:
    from MedCLIPSAMLib.pipeline import TextSegmenter

logger = logging.getLogger(__name__)

ATTEMPTS = 4
"""So often a case is begun in one run: processes also end for reasons that are not the case's fault."""
_ATTEMPTS_FILE = "attempts.txt"

_engine_lock = threading.Lock()  # a cluster's worker may have several threads, an engine serves one at a time
_engine: tuple[str, TextSegmenter] | None = None


def describe_engine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Load the engine and return what decides about its numbers: "name", "recipe" and "weights", as JSON has them.

    Raises:
        MedCLIPSAMError: As :func:`MedCLIPSAMLib.engines.load_engine`.
    """
    with _engine_lock:
        return _description(_kept_engine(settings))


def release_engine() -> None:
    """Let go of the engine that this process keeps."""
    global _engine
    with _engine_lock:
        _engine = None
    free_device_memory()


def segment_case(task: Mapping[str, Any], cancelled: Callable[[], bool] | None = None) -> list[dict[str, Any]]:
    """Segment one case, unless it is done.

    Args:
        task: From :func:`MedCLIPSAMLib.cohort.run_cohort`: "case" (name, file, path, parts, patient), "root", "output",
            "settings", "settings_digest", "engine" (from :func:`describe_engine`) and "run".
        cancelled: Asked between steps.

    Returns:
        Its rows of the table, one for each prompt, as dictionaries; "failed" with the reason where it cannot be
        segmented.

    Raises:
        CancelledError: ``cancelled`` said so.
        OutputError: Results cannot be written.
        MedCLIPSAMError: This process cannot do its part at all, such as one with other weights.
    """
    began = time.perf_counter()
    case, output = task["case"], Path(task["output"])
    folder = output / CASES / case["name"]
    path, parts = Path(case["path"]), tuple(map(Path, case["parts"]))
    row = CohortRow(case=case["name"], file=case["file"], patient=case["patient"])
    try:
        digest = content_digest(path, parts)
        if finished := finished_rows(folder, digest, task["settings_digest"]):
            return [{**one, "file": case["file"], "patient": case["patient"]} for one in finished]
        with _attempt(folder, task["run"]):
            row = dataclasses.replace(row, digest=digest)
            rows = _segment(task, row, folder, began, cancelled)
    except (CancelledError, OutputError, _UnfitProcessError):
        raise
    except Exception as error:
        return _failed(task, row, error, time.perf_counter() - began)
    return rows


def finished_rows(folder: Path, digest: str, settings_digest: str) -> list[dict[str, Any]] | None:
    """Return the rows of a case that is done with this content and these settings, else None."""
    known = read_case(folder)
    if known is None or known.get("digest") != digest or known.get("settings_digest") != settings_digest:
        return None
    return known["rows"] if all((folder.parents[1] / name).is_file() for name in known["thumbnails"]) else None


def check_process(output: str, run: str) -> None:
    """Raise :class:`MedCLIPSAMError` unless this process sees the cohort's folder as the one that began the run."""
    settings = read_settings(Path(output))
    if settings is None or settings.get("run") != run:
        raise MedCLIPSAMError(
            f"the worker on {socket.gethostname()} does not see the folder {output}; the images and the output must "
            "lie in folders that all machines of the cluster share, under the same path."
        )


def dask_setup(worker: object) -> None:
    """Called by Dask as a worker process starts: Ctrl+C at the terminal is for the process that has started it."""
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _UnfitProcessError(MedCLIPSAMError):
    """This process cannot go on."""


def _segment(
    task: Mapping[str, Any], row: CohortRow, folder: Path, began: float, cancelled: Callable[[], bool] | None
) -> list[dict[str, Any]]:
    settings, case = task["settings"], task["case"]
    reading = time.perf_counter()
    image = read_input(Path(case["path"]), tuple(map(Path, case["parts"])))
    reading = time.perf_counter() - reading
    of_volumes = ("axis", "slice_range") if image.is_volume else ()
    request = make_request(
        image,
        settings["prompts"],
        folder,
        window=_as_pair(settings["window"]),
        **{name: _as_pair(settings[name]) for name in of_volumes},
        **{name: settings[name] for name in ("engine", "preset", "device", "seed", "changes", "overview")},
    )
    request = dataclasses.replace(request, reading_seconds=reading, output_is_new=False)
    with suppress(OSError):
        (folder / CASE_FILE).unlink()  # from here on it is not done
    with _engine_lock:
        try:
            engine = _kept_engine(settings)
        except MedCLIPSAMError as error:
            raise _UnfitProcessError(str(error)) from error
        _check_same(_description(engine), task["engine"])
        listened = ListenedTo(engine, image.is_volume)
        reports = segment_job.run(request, listened, cancelled=cancelled)
    rows, thumbnails = [], []
    for number, report in enumerate(reports):
        notes = listened.notes.get(report["prompt"], Notes())
        if getattr(engine, "takes_whole_volumes", False) and image.is_volume:
            saliency, entropy = (folder / _ending(report["files"], kind) for kind in ("saliency.nrrd", "entropy.nrrd"))
            mask = read_segment(folder / segment_job.SEGMENTATION_FILE, 2 * number, report["prompt"])
            notes = notes_of_files(saliency, entropy, mask, image, request.window)
        thumbnails.append(thumbnail_name(row.case, number))
        write_thumbnail(folder.parents[1] / thumbnails[-1], notes)
        kind = "volume" if image.is_volume else "image"
        found = measures(report, notes)
        rows.append(dataclasses.replace(row, kind=kind, prompt=report["prompt"], status=DONE, **found))
    seconds = time.perf_counter() - began
    content = {
        "format": FORMAT,
        "digest": row.digest,
        "settings_digest": task["settings_digest"],
        "parts": [Path(os.path.relpath(part, task["root"])).as_posix() for part in case["parts"]],
        "rows": [dataclasses.asdict(dataclasses.replace(one, seconds=seconds)) for one in rows],
        "files": [report["files"] for report in reports],
        "thumbnails": thumbnails,
    }
    write_json(folder / CASE_FILE, content)
    return content["rows"]


def _ending(names: list[str], end: str) -> str:
    return next(name for name in names if name.endswith(end))


def _as_pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def thumbnail_name(case: str, number: int) -> str:
    """Return the path of a small picture in the cohort's folder, of a case and the number of its prompt from 0."""
    return f"{THUMBNAILS}/{case}{f'-{number + 1}' if number else ''}.jpg"


def _failed(task: Mapping[str, Any], row: CohortRow, error: Exception, seconds: float) -> list[dict[str, Any]]:
    if spoils_process(error):
        raise _UnfitProcessError(
            f"the GPU of {socket.gethostname()} reports an error ({error}); the run stops, start it again: what is "
            "done is kept."
        ) from error
    if is_out_of_memory(error):
        free_device_memory()
    kind, reason = describe_error(error)
    if kind == "InternalError":
        logger.exception("The case %s failed.", row.case)
        text = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
    failed = dataclasses.replace(row, status=FAILED, reason=" ".join(reason.split()), seconds=seconds)
    return [dataclasses.asdict(dataclasses.replace(failed, prompt=one)) for one in task["settings"]["prompts"]]


@contextmanager
def _attempt(folder: Path, run: str) -> Iterator[None]:
    """Count how often the case was begun in this run; a count that stays tells of a process that ended meanwhile."""
    path = folder / _ATTEMPTS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        said, count = (path.read_text("ascii").split() if path.is_file() else []), 0
        if len(said) == 2 and said[0] == run and said[1].isdigit():
            count = int(said[1])
        if count < ATTEMPTS:
            path.write_text(f"{run} {count + 1}", "ascii")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{folder} cannot be written ({reason}); free some space, or change permissions.") from error
    try:
        if count >= ATTEMPTS:
            raise InputError(
                f"{ATTEMPTS} times the process that worked on it ended without a word, perhaps for lack of memory; "
                "try it by itself with segment."
            )
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        with suppress(OSError):
            folder.rmdir()  # where it is empty


def _kept_engine(settings: Mapping[str, Any]) -> TextSegmenter:
    global _engine
    names = ("engine", "preset", "device", "changes")
    key = json.dumps([settings[name] for name in names] + [os.environ.get(ENGINE_VARIABLE)], sort_keys=True)
    if _engine is None or _engine[0] != key:
        _engine = None
        free_device_memory()
        _engine = (key, _load(*(settings[name] for name in names)))
    return _engine[1]


def _load(engine: str, preset: str | None, device: str, changes: Mapping[str, Any]) -> TextSegmenter:
    if stand_in := os.environ.get(ENGINE_VARIABLE):
        module, _, function = stand_in.partition(":")
        segmenter = getattr(importlib.import_module(module), function)(engine, preset, device)
        segmenter.recipe = segmenter.recipe.with_settings(changes)
        return segmenter
    from MedCLIPSAMLib.engines import load_engine

    return load_engine(engine, preset, device, changes)


def _description(segmenter: TextSegmenter) -> dict[str, Any]:
    recipe = segmenter.recipe
    weights = sorted((one["name"], one["sha256"]) for one in reporting.weights_report(segmenter.weights))
    told = {"name": recipe.name, "recipe": recipe.as_dict(), "weights": weights}
    told["precision"] = getattr(segmenter, "precision", "float32")
    return json.loads(json.dumps(told, default=str))


def _check_same(own: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if own != wanted:
        different = sorted(name for name in wanted if own.get(name) != wanted[name])
        raise _UnfitProcessError(
            f"the worker on {socket.gethostname()} has another {' and '.join(different)} than the first one; install "
            "the same version and weights on all machines."
        )


def digest_of(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of settings, the same for equal ones."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
