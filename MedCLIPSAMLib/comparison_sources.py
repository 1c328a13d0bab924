"""What a user names to be compared or shown: reports, folders of predictions, engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedCLIPSAMLib.cases import Case, read_mask
from MedCLIPSAMLib.comparison_figure import FigureRow
from MedCLIPSAMLib.engines import load_engine
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.evaluation import evaluate_predictions
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.medical_image import file_label
from MedCLIPSAMLib.prediction import Prediction
from MedCLIPSAMLib.prediction_folder import PredictionFolder

if TYPE_CHECKING:
    from MedCLIPSAMLib.engine_interface import Engine


def split_name(text: str) -> tuple[str | None, str]:
    """Return name and source of "NAME=SOURCE", or None and the text; a path with an equals sign is a path."""
    name, equals, source = text.partition("=")
    if not equals or Path(text).exists() or "/" in name or not name.strip():
        return None, text
    return name.strip(), source


def read_reports(
    texts: Sequence[str],
    cases: Sequence[Case] | None,
    prompt: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the reports by name, of report files and of folders of predictions.

    Args:
        texts: Each [NAME=]PATH of a report, or of a folder, which is evaluated now.
        cases: Images with reference masks for the folders; None where there are none.
        prompt: See :func:`MedCLIPSAMLib.evaluation.evaluate_predictions`.
        progress: Called with (cases done, cases in all) of a folder.

    Raises:
        InputError: A file that is no report, a folder without ``cases``, or two sources of one name.
    """
    named: list[tuple[str | None, Path, dict[str, Any]]] = []
    for text in texts:
        name, path = split_name(text)[0], Path(split_name(text)[1])
        if path.is_dir():
            if cases is None:
                raise InputError(
                    f"{file_label(path)} is a folder of predictions; pass the images and reference masks as well "
                    "(--data DATA_DIR), or the report of an evaluation."
                )
            report = evaluate_predictions(path, cases, prompt, progress)
        else:
            report = read_report(path)
        named.append((name, path, report))
    engines = [str(report["engine"]) for _, _, report in named]
    reports: dict[str, dict[str, Any]] = {}
    for name, path, report in named:
        engine = str(report["engine"])
        name = name or (engine if engines.count(engine) == 1 else path.stem)
        if name in reports:
            raise InputError(f"two evaluations are called {name!r}; name them: first={path} second=OTHER.")
        reports[name] = report
    return reports


def read_report(path: Path) -> dict[str, Any]:
    """Return a report of `evaluate`.

    Raises:
        InputError: No such file, or something else.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file_label(path)} cannot be read as a report ({error}); pass one of `evaluate`.") from error
    whole = isinstance(report, dict) and {"engine", "datasets", "cases"} <= set(report)
    cases = report["cases"] if whole else None
    if not isinstance(cases, list) or not all(
        isinstance(case, dict) and {"file", "dataset", "dsc", "has_target"} <= set(case) for case in cases
    ):
        raise InputError(f"{file_label(path)} is no report of an evaluation; pass one of `medclipsam evaluate`.")
    return report


def predictions_of(
    source: str,
    cases: Sequence[Case],
    prompt: str | None,
    settings: Mapping[str, Any],
    load: Callable[..., Engine] = load_engine,
) -> list[Prediction]:
    """Return the predictions of a few cases: read from a folder, or made by an engine.

    Args:
        source: A folder of predictions, a report whose evaluation kept its predictions, or the name of an engine.
        cases: The images.
        prompt: What to segment; for a folder which result to take.
        settings: ``preset``, ``device``, ``seed`` of an engine.
        load: Loads an engine, as :func:`MedCLIPSAMLib.engines.load_engine`.

    Raises:
        InputError: None of these, an engine without a prompt, or a report whose predictions were not kept.
        MedCLIPSAMError: As raised by the engine.
    """
    path = Path(source)
    if path.is_file():
        kept = read_report(path).get("predictions")
        if not kept:
            raise InputError(
                f"the evaluation of {file_label(path)} kept no predictions; evaluate again with --keep FOLDER."
            )
        path = path.parent / kept
    if path.is_dir():
        folder = PredictionFolder(path, cases, prompt)
        return [folder.read(case) for case in cases]
    if not prompt:
        raise InputError(f"{source!r} is no folder; for an engine of this name pass what to segment (--prompt TEXT).")
    try:
        segmenter = load(source, settings.get("preset"), settings.get("device", "auto"))
    except InputError as error:
        raise InputError(
            f"{source!r} is neither a folder of predictions nor a report nor an engine: {error}"
        ) from error
    found = []
    for case in cases:
        image = read_image(case.image_path)
        segmenter.set_image(image.array, image.window)
        found.append(Prediction.of(segmenter.segment(prompt, settings.get("seed", 0)), segmenter))
    return found


def shown_cases(cases: Sequence[Case], files: Sequence[str], rows: int) -> list[Case]:
    """Return the cases of a figure: those named, or ``rows`` spread evenly over the ones with a target.

    Raises:
        InputError: A file that is not among the cases, or no row.
    """
    if rows < 1:
        raise InputError(f"rows {rows} (--rows): it must be 1 or more.")
    if files:
        known = {case.file: case for case in cases}
        if absent := [file for file in files if file not in known]:
            raise InputError(f"{absent[0]!r} is not among the {len(cases)} images, for example {cases[0].file!r}.")
        return [known[file] for file in files]
    with_target = [case for case in cases if read_mask(case.mask_path).any()]
    if not with_target:
        raise InputError(f"none of the {len(cases)} images has a target in its mask; name images to show (--case).")
    count = min(rows, len(with_target))
    return [with_target[index * len(with_target) // count] for index in range(count)]


def figure_rows(
    sources: Sequence[str],
    cases: Sequence[Case],
    prompt: str | None,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
    load: Callable[..., Engine] = load_engine,
) -> list[FigureRow]:
    """Return the rows of :func:`MedCLIPSAMLib.comparison_figure.write_comparison_figure`.

    Args:
        sources: Each [NAME=]SOURCE, see :func:`predictions_of`; one engine after the other is loaded.
        cases: The images.
        prompt, settings, load: See :func:`predictions_of`.
        progress: Called with (sources done, sources in all).

    Raises:
        InputError: See :func:`predictions_of`, or two sources of one name.
    """
    columns: dict[str, list[Prediction]] = {}
    for number, text in enumerate(sources):
        name, source = split_name(text)
        name = name or (Path(source).stem if Path(source).exists() else source)
        if name in columns:
            raise InputError(f"two columns are called {name!r}; name them: --show first={source} --show second=OTHER.")
        columns[name] = predictions_of(source, cases, prompt, settings, load)
        if progress is not None:
            progress(number + 1, len(sources))
    drawn = []
    for number, case in enumerate(cases):
        image = read_image(case.image_path)
        predictions = {name: column[number] for name, column in columns.items()}
        drawn.append(FigureRow(case.file, image.array, read_mask(case.mask_path), predictions, image.window))
    return drawn
