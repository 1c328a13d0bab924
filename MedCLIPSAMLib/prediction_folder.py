"""Segmentations that lie in a folder, made by this program or any other, found for the images of a data set."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from MedCLIPSAMLib.cases import Case, read_mask
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import PICTURE_SUFFIXES, VOLUME_SUFFIXES, read_image
from MedCLIPSAMLib.medical_image import file_label
from MedCLIPSAMLib.prediction import COARSE, ENTROPY, MASK, PROBABILITY, Prediction
from MedCLIPSAMLib.uncertainty import entropy as class_entropy

_RESULT = "result.json"


class PredictionFolder:
    """The predictions of a folder, one for each case.

    Three layouts are known, NAME being the image's file name without its suffix:

    - a cohort's folder, as `segment-cohort` writes it;
    - ``NAME/`` with the files of `segment` or of ``evaluate --keep``: ``mask.png`` and, where they exist,
      ``coarse.png``, ``probability.nrrd``, ``entropy.nrrd``, ``result.json``;
    - ``NAME.png`` (or another picture, NRRD, NIfTI), any program's, nnU-Net's among them; where they exist with
      ``NAME_probability.nrrd`` and ``NAME_entropy.nrrd``, or with ``NAME.npz`` as nnU-Net saves it: an array
      ``probabilities`` (R, 1, H, W) or (R, H, W).

    Attributes:
        folder: Where they lie.
        engine: What made them, by the first ``result.json``; else the folder's name.
        prompt: What was asked, by the same; else None.
        seed: The run's seed, by the same; else None.
    """

    def __init__(
        self, folder: str | Path, cases: Sequence[Case], prompt: str | None = None, label: int | None = None
    ) -> None:
        """Find every case's prediction, so that a missing one shows before anything is computed.

        Args:
            folder: One of the three layouts.
            cases: From :func:`MedCLIPSAMLib.cases.find_cases`.
            prompt: Which result to take where the folder holds those of several prompts.
            label: The target's value in masks of several classes; None takes every value above 0.

        Raises:
            InputError: No such folder, a case without a prediction, or several prompts of which none is chosen.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{file_label(self.folder)} is not a folder; pass the folder of the predictions.")
        if label is not None and label < 1:
            raise InputError(f"label {label} (--label): it must be 1 or more; 0 is the background.")
        self._prompt, self._label = prompt, label
        self._cohort = _cohort_folders(self.folder)
        self._found: dict[str, tuple[Path, dict[str, Any]]] = {}
        absent = []
        for case in cases:
            found = self._find(case)
            if found is None:
                absent.append(case.file)
            else:
                self._found[case.file] = found
        if absent:
            stem = Path(absent[0]).stem
            raise InputError(
                f"{file_label(self.folder)} has no prediction for {len(absent)} of {len(cases)} image(s), the first is "
                f"{absent[0]}: neither {stem}.png nor {stem}/{MASK} is there. Add them, or choose another --split."
            )
        facts = next((facts for _, facts in self._found.values() if facts), {})
        self.engine = str(facts.get("engine") or self.folder.resolve().name)
        self.prompt: str | None = facts.get("prompt")
        self.seed: int | None = facts.get("run_seed", facts.get("seed"))

    def read(self, case: Case) -> Prediction:
        """Return the prediction of one case.

        Raises:
            InputError: A damaged file, or one of another size than the case's image.
        """
        path, facts = self._found[case.file]
        mask = _mask(path, self._label)
        probability, entropy, coarse = self._maps(path)
        try:
            seconds = facts.get("seconds") or None
            prediction = Prediction(
                mask=mask,
                probability=probability,
                entropy=entropy,
                coarse=coarse,
                presence=(facts.get("presence") or {}).get("score"),
                skipped=bool(facts.get("skipped_by_gate")),
                seconds=sum(seconds.values()) if isinstance(seconds, dict) else None,
            )
        except InputError as error:
            raise InputError(f"the prediction of {case.file} in {file_label(self.folder)}: {error}") from error
        return prediction

    def _find(self, case: Case) -> tuple[Path, dict[str, Any]] | None:
        """Return the mask's file, and what ``result.json`` says; None where there is no mask."""
        stem = Path(case.file).stem
        for folder in (*self._cohort_matches(case), self.folder / case.file, self.folder / stem):
            if folder.is_dir() and (found := self._result(folder)):
                return found
        for suffix in (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES):
            path = self.folder / f"{stem}{suffix}"
            if path.is_file():
                return path, {}
        return None

    def _cohort_matches(self, case: Case) -> Iterator[Path]:
        """Yield the folders of a cohort's cases whose file is this image, the longest common path first."""
        parts = case.image_path.resolve().parts
        matching = [(file, folder) for file, folder in self._cohort if parts[-len(file) :] == file]
        yield from (folder for _, folder in sorted(matching, key=lambda one: -len(one[0])))

    def _result(self, folder: Path) -> tuple[Path, dict[str, Any]] | None:
        described = {path: _read_facts(path) for path in sorted(folder.glob(f"*{_RESULT}"))}
        if len(described) > 1:
            wanted = (self._prompt or "").strip().lower()
            chosen = {path: one for path, one in described.items() if str(one.get("prompt", "")).lower() == wanted}
            if len(chosen) != 1:
                known = ", ".join(repr(one.get("prompt")) for one in described.values())
                raise InputError(
                    f"{file_label(folder)} holds results of several prompts ({known}); choose one (--prompt)."
                )
            described = chosen
        path, facts = next(iter(described.items()), (folder / _RESULT, {}))
        mask = path.with_name(path.name.removesuffix(_RESULT) + MASK)
        return (mask, facts) if mask.is_file() else None

    def _maps(self, path: Path) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Return probability, entropy and coarse mask that belong to a mask's file; None for each that is not there."""
        if path.name.endswith(MASK):
            prefix = path.name.removesuffix(MASK)
            if path.parent != self.folder:
                files = [path.with_name(prefix + name) for name in (PROBABILITY, ENTROPY, COARSE)]
                probability, entropy = (_plane(file) if file.is_file() else None for file in files[:2])
                return probability, entropy, read_mask(files[2]) if files[2].is_file() else None
        stem = path.name[: -len(next(end for end in _suffixes() if path.name.lower().endswith(end)))]
        maps = [path.with_name(f"{stem}_{name}") for name in (PROBABILITY, ENTROPY)]
        probability, entropy = (_plane(file) if file.is_file() else None for file in maps)
        classes = path.with_name(f"{stem}.npz")
        if probability is None and classes.is_file():
            values = _class_probabilities(classes)
            if self._label is not None and self._label >= len(values):
                raise InputError(f"{file_label(classes)} has {len(values)} classes; there is no label {self._label}.")
            probability = values[1:].sum(axis=0) if self._label is None else values[self._label]
            probability = np.clip(probability, 0, 1)
            entropy = class_entropy(values) if entropy is None else entropy
        return probability, entropy, None


def _suffixes() -> tuple[str, ...]:
    return tuple(sorted((*PICTURE_SUFFIXES, *VOLUME_SUFFIXES), key=len, reverse=True))


def _cohort_folders(folder: Path) -> list[tuple[tuple[str, ...], Path]]:
    """Return the parts of each input's path within a cohort's source, with its folder; empty if it is no cohort."""
    table = folder / "cohort.csv"
    if not table.is_file():
        return []
    with table.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if rows and not {"case", "file"} <= set(rows[0]):
        raise InputError(f"{file_label(table)} has no columns 'case' and 'file'; it is no table of a cohort.")
    return [(PurePosixPath(row["file"]).parts, folder / "cases" / row["case"]) for row in rows]


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file_label(path)} cannot be read ({error}); segment its image again.") from error
    if not isinstance(facts, dict):
        raise InputError(f"{file_label(path)} is no description of a result; segment its image again.")
    return facts


def _mask(path: Path, label: int | None) -> np.ndarray:
    if label is not None:
        return _plane(path) == label
    return read_mask(path) if path.name.lower().endswith(PICTURE_SUFFIXES) else _plane(path) > 0


def _plane(path: Path) -> np.ndarray:
    """Return a map or mask (H, W); a volume of one slice is its slice, of colours the brightest counts."""
    image = read_image(path)
    array = image.array
    if array.ndim == 3 and image.is_volume and array.shape[0] == 1:
        array = array[0]
    elif array.ndim == 3 and not image.is_volume:
        array = array.max(axis=2)
    if array.ndim != 2:
        raise InputError(f"{file_label(path)} has shape {array.shape}; pass one value per pixel, (H, W).")
    return array


def _class_probabilities(path: Path) -> np.ndarray:
    """Return (R, H, W) from nnU-Net's ``.npz``."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = archive["probabilities"].astype(np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file_label(path)} cannot be read ({error}); it needs an array 'probabilities' of shape (R, 1, H, W)."
        ) from error
    values = values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values
    if values.ndim != 3 or len(values) < 2:
        raise InputError(f"{file_label(path)} holds probabilities of shape {values.shape}; (R, 1, H, W) is needed.")
    return values
