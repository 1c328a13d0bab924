"""The folder of a trained nnU-Net with its kept checkpoints: what the engine ``weak:FOLDER`` reads.

    plans.json, dataset.json, dataset_fingerprint.json    nnU-Net's own
    fold_all/checkpoint_ep0199.pth ...                    the kept weights; nnU-Net's own predictor can use them, too
    weak.json                                             classes, prompts, window, origin, SHA-256 of every file

``weak.json`` is written last: a folder without it is not complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from MedCLIPSAMLib.errors import ChecksumError, InputError, OutputError
from MedCLIPSAMLib.file_output import check_output_folder, replacing, write_json
from MedCLIPSAMLib.medical_image import file_label
from MedCLIPSAMLib.reporting import versions

WEAK_FILE = "weak.json"
PLANS_FILE = "plans.json"
DATASET_FILE = "dataset.json"
FINGERPRINT_FILE = "dataset_fingerprint.json"  # nothing reads it again, but it belongs to an nnU-Net model
FORMAT = 1
KINDS = ("images", "volumes")
SUPERVISIONS = ("pseudo-labels", "true labels")
_PACKAGES = ("nnunetv2", "dynamic_network_architectures", "batchgeneratorsv2")
_CHECKPOINT = re.compile(r"fold_(all|\d+)/checkpoint_[A-Za-z0-9_]+\.pth")


@dataclass(frozen=True)
class ModelClass:
    """One class that the network tells from the background.

    Attributes:
        label: Its number in nnU-Net's label maps, 1 .. R - 1.
        name: As shown to a person.
        prompt: The text by which its training masks were made, or which stands for it.
    """

    label: int
    name: str
    prompt: str


@dataclass(frozen=True)
class ModelFolder:
    """What ``weak.json`` and nnU-Net's own files say; nothing of torch is loaded.

    Attributes:
        path: The folder.
        classes: In the order of their labels, 1 .. R - 1.
        kind: "images" for a network of 2D images, "volumes" for one of whole volumes.
        window: Intensities that became black and white in training; None where each image's own were taken.
        supervision: "pseudo-labels", or "true labels" for comparison.
        kept: The checkpoints in the order of training, relative to the folder.
        plans, dataset: nnU-Net's ``plans.json`` and ``dataset.json``.
        sha256: Hexadecimal, by file.
        pseudo_labels, schedule, versions: Of the training, as written by it.
    """

    path: Path
    classes: tuple[ModelClass, ...]
    kind: Literal["images", "volumes"]
    window: tuple[float, float] | None
    supervision: str
    kept: tuple[str, ...]
    plans: dict[str, Any]
    dataset: dict[str, Any]
    sha256: dict[str, str]
    pseudo_labels: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The classes' prompts, in order."""
        return tuple(one.prompt for one in self.classes)

    def verify(self, file: str) -> Path:
        """Return the path of one of the files after comparing its SHA-256.

        Raises:
            InputError: It is absent.
            ChecksumError: It is not the file that was trained.
        """
        path = self.path / file
        if (found := _sha256(path)) != self.sha256[file]:
            raise ChecksumError(
                f"{file_label(path)} is not the file that {WEAK_FILE} describes (SHA-256 {found[:12]}..., expected "
                f"{self.sha256[file][:12]}...); get the model folder again."
            )
        return path


def write_model_folder(
    output: str | Path,
    trained: str | Path,
    *,
    kept: Sequence[str],
    classes: Sequence[ModelClass],
    kind: str,
    supervision: str,
    window: tuple[float, float] | None = None,
    pseudo_labels: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
) -> ModelFolder:
    """Make a model folder of what nnU-Net has trained; done again with the same files it changes nothing.

    Args:
        output: The folder to make; an unfinished one is completed.
        trained: nnU-Net's ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``.
        kept: The checkpoints in the order of training, relative to ``trained``: "fold_all/checkpoint_ep0199.pth".
            Those of several folds become one ensemble.
        classes: Labels 1 .. R - 1.
        kind: "images" or "volumes".
        supervision: "pseudo-labels" or "true labels".
        window: Intensities that became black and white in training; None for each image's own.
        pseudo_labels: Where the training masks came from: engine, seed, counts.
        schedule: Of the training.

    Returns:
        What :func:`read_model_folder` says of it.

    Raises:
        InputError: A checkpoint is absent, the arguments do not fit the data set, or ``output`` holds another model.
        OutputError: Not writable, disk full.
    """
    output, trained = Path(output), Path(trained)
    for name in (PLANS_FILE, DATASET_FILE, *kept):
        if not (trained / name).is_file():
            raise InputError(f"{file_label(trained / name)} is absent; finish the training, then make the model of it.")
    files = [PLANS_FILE, DATASET_FILE, *kept]
    if (trained / FINGERPRINT_FILE).is_file():
        files.insert(2, FINGERPRINT_FILE)
    content = {
        "format": FORMAT,
        "classes": [asdict(one) for one in classes],
        "kind": kind,
        "window": None if window is None else [float(window[0]), float(window[1])],
        "supervision": supervision,
        "pseudo_labels": dict(pseudo_labels or {}),
        "schedule": dict(schedule or {}),
        "kept": list(kept),
        "sha256": {name: _sha256(trained / name) for name in files},
        "versions": versions() | {name: _version(name) for name in _PACKAGES},
    }
    dataset, plans = _read_object(trained / DATASET_FILE), _read_object(trained / PLANS_FILE)
    _parse(output, content, plans, dataset)  # raises before anything is written
    if (output / WEAK_FILE).is_file():
        existing = read_model_folder(output)
        if existing.sha256 == content["sha256"] and existing.kept == tuple(kept):
            return existing
        raise InputError(f"{file_label(output)} holds another model already; choose another folder.")
    check_output_folder(output)
    for name in files:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        _take(trained / name, output / name)
    write_json(output / WEAK_FILE, content)
    return read_model_folder(output)


def read_model_folder(folder: str | Path) -> ModelFolder:
    """Return what a model folder says of itself; its weights are not opened.

    Raises:
        InputError: No such folder, not complete, damaged, of a later format, or naming files outside it.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InputError(f"{file_label(path)} does not exist; pass the folder of a trained model (weak:FOLDER).")
    if not (path / WEAK_FILE).is_file():
        raise InputError(
            f"{file_label(path)} has no {WEAK_FILE}: it is not the folder of a trained model, or its training has not "
            "finished; pass the folder that the training was told to write (--output)."
        )
    content = _read_object(path / WEAK_FILE)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{file_label(path / WEAK_FILE)} has format {content.get('format')!r}, this version reads {FORMAT}; use "
            "the version of MedCLIPSAM that wrote it."
        )
    model = _parse(path, content, _read_object(path / PLANS_FILE), _read_object(path / DATASET_FILE))
    for name in model.kept:
        if not (path / name).is_file():
            raise InputError(f"{file_label(path / name)} is absent; get the model folder again.")
    return model


def _parse(path: Path, content: dict[str, Any], plans: dict[str, Any], dataset: dict[str, Any]) -> ModelFolder:
    """Check what a ``weak.json`` says, and return it."""
    try:
        classes = tuple(
            ModelClass(int(one["label"]), str(one["name"]), str(one["prompt"])) for one in content["classes"]
        )
        window = None if content["window"] is None else (float(content["window"][0]), float(content["window"][1]))
        kept = tuple(str(name) for name in content["kept"])
        sha256 = {str(name): str(value) for name, value in content["sha256"].items()}
        kind, supervision = content["kind"], content["supervision"]
        rest = {name: dict(content.get(name) or {}) for name in ("pseudo_labels", "schedule", "versions")}
        labels = sorted(int(value) for value in dataset["labels"].values())
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from error
    if not kept:
        raise _damaged(path, "no checkpoint is kept")
    if kind not in KINDS:
        raise _damaged(path, f"kind {kind!r}; known: {', '.join(KINDS)}")
    if supervision not in SUPERVISIONS:
        raise _damaged(path, f"supervision {supervision!r}; known: {', '.join(SUPERVISIONS)}")
    if [one.label for one in classes] != list(range(1, len(classes) + 1)) or labels != list(range(len(classes) + 1)):
        raise _damaged(path, f"classes {[one.label for one in classes]} for labels {labels}; both must be 1, 2, ...")
    if window is not None and not window[1] > window[0]:
        raise _damaged(path, f"window {window}")
    for name in kept:
        if not _CHECKPOINT.fullmatch(name):
            raise _damaged(path, f"checkpoint {name!r} is not of the form fold_all/checkpoint_ep0000.pth")
    for name in (PLANS_FILE, DATASET_FILE, *kept):
        if not re.fullmatch(r"[0-9a-f]{64}", sha256.get(name, "")):
            raise _damaged(path, f"no SHA-256 of {name}")
    return ModelFolder(path, classes, kind, window, supervision, kept, plans, dataset, sha256, **rest)


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{file_label(path)} does not describe a model ({what}); get the model folder again.")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise InputError(f"{file_label(path)} cannot be read ({reason}); get the model folder again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{file_label(path)} holds no JSON object; get the model folder again.")
    return content


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{file_label(path)} cannot be read ({error.strerror}); get the model folder again."
        ) from error


def _take(source: Path, target: Path) -> None:
    """Put a file into the model folder: as a second name where the disk allows it, else as a copy.

    The files of the training are only ever replaced, never written over, so a shared file stays as it is.
    """
    partial = target.with_name(f".linked-{target.name}")
    with suppress(OSError):
        partial.unlink(missing_ok=True)
        os.link(source, partial)
        os.replace(partial, target)
        if target.stat().st_ino == source.stat().st_ino:  # a replace between two names of one file does nothing
            partial.unlink(missing_ok=True)
            return
    try:
        with source.open("rb") as stream, replacing(target) as file:
            shutil.copyfileobj(stream, file, 1 << 22)
    except OutputError:
        raise
    except OSError as error:
        raise InputError(f"{file_label(source)} cannot be read ({error.strerror}); check the disk.") from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
