"""How well a CLIP finds the caption of an image, and the image of a caption (the paper's Table 2).

The parts: pairs (retrieval_pairs.py) -> vectors (retrieval_features.py) -> ranks (retrieval_ranks.py) -> paired tests
(retrieval_significance.py) -> tables and picture (retrieval_output.py). :func:`run` goes the whole way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import check_output_folder, replacing, write_json
from MedCLIPSAMLib.reporting import versions
from MedCLIPSAMLib.retrieval_output import plot, table
from MedCLIPSAMLib.retrieval_pairs import RetrievalPairs, read_pairs
from MedCLIPSAMLib.retrieval_ranks import RetrievalReport, caption_key, evaluate
from MedCLIPSAMLib.retrieval_significance import PairedTest, compare

__all__ = [
    "PairedTest",
    "RetrievalPairs",
    "RetrievalReport",
    "caption_key",
    "compare",
    "evaluate",
    "plot",
    "read_pairs",
    "run",
    "table",
]

REPORT_FILE, TABLE_FILE, PICTURE_FILE, FEATURE_FOLDER = "retrieval.json", "retrieval.md", "retrieval.png", "features"

logger = logging.getLogger(__name__)


def run(
    pairs: RetrievalPairs,
    engines: Sequence[str],
    output: str | Path,
    *,
    batch: int = 50,
    runs: int = 5,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, RetrievalReport]:
    """Measure one or several CLIPs on the same pairs and write JSON, Markdown and, with matplotlib, a picture.

    Args:
        pairs: From :func:`read_pairs`.
        engines: Names, see :class:`MedCLIPSAMLib.retrieval_features.RetrievalModel`.
        output: Folder for the results and for the vectors, which are not computed again.
        batch, runs, seed: See :func:`evaluate`.
        device: See :func:`MedCLIPSAMLib.engines.load_engine`.
        progress: Called with (images done, images in all), all engines together.

    Raises:
        InputError: No engine, one named twice, or one that cannot be used; an image that cannot be; a setting out of
            its range.
        MissingWeightsError, ChecksumError: Before anything is computed.
        OutputError: Not writable, disk full.
    """
    from MedCLIPSAMLib.retrieval_features import RetrievalModel, features

    if not engines or len(set(engines)) < len(engines):
        raise InputError(f"engines {', '.join(engines) or '(none)'}: name at least one, and each only once.")
    if batch < 2 or runs < 1 or seed < 0:
        raise InputError(
            f"batch {batch}, runs {runs}, seed {seed}: pass a batch of 2 or more, 1 run or more, seed >= 0."
        )
    output = check_output_folder(output)
    models = [RetrievalModel(name, device) for name in engines]
    reports = {}
    for number, model in enumerate(models):

        def tell(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress(number * total + done, len(models) * total)

        images, texts = features(model, pairs, output / FEATURE_FOLDER, tell)
        reports[model.name] = evaluate(images, texts, pairs.captions, batch=batch, runs=runs, seed=seed)
    tests = compare(reports)
    write_json(
        output / REPORT_FILE,
        {
            "models": {model.name: {**reports[model.name].as_dict(), **model.describe()} for model in models},
            "tests": [asdict(test) for test in tests],
            "versions": versions(),
        },
    )
    with replacing(output / TABLE_FILE) as file:
        file.write(table(reports, tests).encode())
    try:
        plot(reports, output / PICTURE_FILE)
    except InputError as error:  # matplotlib is optional
        logger.warning("%s", error)
    return reports
