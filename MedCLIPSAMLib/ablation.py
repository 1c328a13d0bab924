"""The paper's tables on a user's data: prompt designs, components, saliency methods, segmenters, supervision.

The parts: rows (ablation_rows.py) -> runs, image by image (ablation_runs.py) -> values and paired tests
(ablation_values.py) -> Markdown and CSV (ablation_tables.py). :func:`ablate` goes the whole way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from MedCLIPSAMLib.ablation_rows import DEFAULT_ENGINES, TABLES, TASKS, Models, Row, plan_rows
from MedCLIPSAMLib.ablation_runs import Loader, Measured, case_key, measure_all, prepare
from MedCLIPSAMLib.ablation_tables import Heading, csv_text, markdown
from MedCLIPSAMLib.ablation_values import Result, collect, read_labels
from MedCLIPSAMLib.cases import Case, find_cases, read_mask
from MedCLIPSAMLib.ensemble_folder import read_model_folder
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import check_output_folder, only_run_in, replacing
from MedCLIPSAMLib.prompt_sets import load_prompt_set
from MedCLIPSAMLib.prompts import SET_PREFIX, check_prompt, wordings
from MedCLIPSAMLib.weak_recipe import WEAK

__all__ = ["DEFAULT_ENGINES", "TABLES", "TASKS", "Models", "ablate"]

RUNS_FOLDER = "runs"


def ablate(
    data_dir: str | Path,
    task: str,
    output: str | Path,
    *,
    tables: Sequence[str] = tuple(TABLES),
    split: str | None = None,
    models: Models | None = None,
    prompt: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    load: Loader | None = None,
) -> Path:
    """Measure all rows of some of the paper's tables and write them into one Markdown and one CSV file.

    A row that cannot be run (weights or packages that are absent, a model that cannot do it) says so with the reason,
    and the others go on. What was measured is kept in ``runs``, image by image: the same call again only adds what is
    missing, also after a kill, with other tables, or with more images.

    Args:
        data_dir: See :func:`MedCLIPSAMLib.cases.find_cases`. Rows with each image's true subtype read the column
            ``label`` of its ``manifest.csv``.
        task: One of :data:`TASKS`: which prompt sets, and which preset of an engine.
        output: Folder for the results.
        tables: Keys of :data:`TABLES`.
        split: "test", "val", ...; None for a folder without splits.
        models: What is compared.
        prompt: For all tables but 3; None for the task's class name.
        seed: 0 or more.
        limit: At most this many images, spread evenly over the list.
        device: As for :func:`MedCLIPSAMLib.engines.load_engine`.
        progress: Called with (measurements done, in all), a measurement being one image in one run.
        load: In place of :func:`MedCLIPSAMLib.engines.load_engine`.

    Returns:
        The Markdown file; the CSV file lies beside it.

    Raises:
        InputError: Data, task, table, engine, prompt or folder of a model cannot be used.
        OutputError: ``output`` cannot be written.
        MedCLIPSAMError: surface-distance is not installed, or another run works in ``output``.
    """
    from MedCLIPSAMLib.engines import load_engine
    from MedCLIPSAMLib.evaluation import chosen_cases

    data_dir, models = Path(data_dir), models or Models()
    if seed < 0:
        raise InputError(f"seed {seed}: it must be 0 or more.")
    prompt = check_prompt(prompt) if prompt is not None else f"{SET_PREFIX}{task}-p0"
    _check_models(models)
    rows = plan_rows(tables, task, models, prompt, device)
    wordings(prompt, 1)  # raises for an unknown prompt set
    chosen = chosen_cases(find_cases(data_dir, split), limit)
    output = check_output_folder(output)
    check_output_folder(output / RUNS_FOLDER)
    cases = {case_key(case): case for case in chosen}
    heading = Heading(task, split, _shown(prompt), seed, tuple(models.engines), len(cases))
    with only_run_in(output):
        measured = _prepare(rows, output / RUNS_FOLDER, seed, device)
        write = _Writer(output / _name(task, tables), heading, rows, measured, cases, read_labels(data_dir, split))
        write()
        every = [one for group in measured for one in group]
        measure_all(every, cases, seed, device, load or load_engine, progress, write)
    return write.file


class _Writer:
    """Writes both files from what is known so far."""

    def __init__(
        self,
        file: Path,
        heading: Heading,
        rows: Sequence[Row],
        measured: Sequence[Sequence[Measured]],
        cases: Mapping[str, Case],
        labels: Mapping[str, str],
    ):
        self.file = file
        self._heading, self._rows, self._cases, self._labels = heading, rows, cases, labels
        self._measured = measured
        self._targets = {key: bool(read_mask(case.mask_path).any()) for key, case in cases.items()}

    def __call__(self) -> None:
        tables: dict[str, list[Result]] = {}
        for key in dict.fromkeys(row.table for row in self._rows):
            known = zip(self._rows, self._measured, strict=True)
            of_table = [(row, runs) for row, runs in known if row.table == key]
            tables[key] = collect(of_table, self._cases, self._targets, self._labels)
        for path, text in (
            (self.file, markdown(self._heading, tables)),
            (self.file.with_suffix(".csv"), csv_text(tables)),
        ):
            with replacing(path) as stream:
                stream.write(text.encode("utf-8", "backslashreplace"))


def _prepare(rows: Sequence[Row], folder: Path, seed: int, device: str) -> list[list[Measured]]:
    """Return what is known of each row's runs."""
    flat = prepare([(run, row.stage != "mask") for row in rows for run in row.runs], folder, seed, device)
    rest = iter(flat)
    return [[next(rest) for _ in row.runs] for row in rows]


def _name(task: str, tables: Sequence[str]) -> str:
    """Return the name of the Markdown file; some tables alone do not replace the file with all."""
    kept = [key for key in TABLES if key in tables]
    part = "" if len(kept) == len(TABLES) else f"-table-{'-'.join(kept)}"
    return f"ablation-{task}{part}.md"


def _shown(prompt: str) -> str:
    if not prompt.startswith(SET_PREFIX):
        return prompt
    first = load_prompt_set(prompt.removeprefix(SET_PREFIX)).prompts[0]
    return f"{prompt}: {first}"


def _check_models(models: Models) -> None:
    """Refuse what the user has named and is not there, or is not what it is said to be."""
    for option, folder, supervision in (
        ("--weak", models.weak, "pseudo-labels"),
        ("--supervised", models.supervised, "true labels"),
    ):
        if folder is None:
            continue
        found = read_model_folder(folder).supervision
        if found != supervision:
            other = "--supervised" if option == "--weak" else "--weak"
            raise InputError(f"{option} {folder}: the model was trained on {found}; pass it as {other}.")
    for name, path in [*models.reports.items(), *models.few_shot.items()]:
        if not Path(path).is_file():
            raise InputError(f"the report {name}={path} does not exist; `./medclipsam evaluate` writes one.")
    if any(engine.startswith(WEAK) for engine in models.engines):
        raise InputError("a trained nnU-Net is no engine of these tables; pass it as --weak or --supervised.")
