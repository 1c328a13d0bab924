"""Vectors of images and captions by any CLIP, computed once and kept in a file beside the results."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedCLIPSAMLib.clip.registry import (
    CLIP_WEIGHTS,
    find_checkpoint,
    finetuned_kind,
    finetuned_weights,
    load_clip,
    load_finetuned,
    own_tokenizer,
)
from MedCLIPSAMLib.engines import choose_device, choose_precision, load_lite, paths
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.images import check_image, to_uint8
from MedCLIPSAMLib.recipe import LITE_ALIGNMENT, load_recipe, split_engine
from MedCLIPSAMLib.reporting import VERSION, weights_report
from MedCLIPSAMLib.retrieval_pairs import RetrievalPairs
from MedCLIPSAMLib.weights import resolve

if TYPE_CHECKING:
    from MedCLIPSAMLib.clip.base import VisionLanguageModel

logger = logging.getLogger(__name__)

_LITE_WEIGHTS = ("lite-medsam", "minilm-l6-v2", "minilm-l6-v2-tokenizer")
_FINETUNED = "finetuned:"
_CHUNK, _SAVE_EVERY = 16, 512  # images


class RetrievalModel:
    """A CLIP by its engine's name: found and checked at once, loaded when it is needed.

    Attributes:
        name: As given.
        fingerprint: Changes with the weights, the number format and the version of this program.
    """

    def __init__(self, name: str, device: str = "auto") -> None:
        """Find the weights.

        Args:
            name: "lite", "biomedclip", "clip-vit-b-16", "pmc-clip" or "finetuned:FOLDER"; a segmenter after "+" plays
                no part here.
            device: See :func:`MedCLIPSAMLib.engines.load_engine`.

        Raises:
            InputError: Unknown name or device, or a folder without a fine-tuned model.
            MissingWeightsError, ChecksumError: See :func:`MedCLIPSAMLib.weights.resolve`.
        """
        self.name = name
        self._device = choose_device(device)
        self._clip = name if name in CLIP_WEIGHTS else split_engine(name)[0]
        self._own: list[Path] = []  # files of the user's own, which no registry knows
        self._files = resolve(self._weights())
        self._precision = "float32" if self._is_lite else choose_precision(self._device)
        identity = [VERSION, self._precision, [[one.name, one.sha256] for one in self._files.values()]]
        identity += [[path.name, _sha256(path)] for path in self._own]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def load(self) -> VisionLanguageModel:
        """Return the model.

        Raises:
            InputError: A file is not what it should be, or a package is not installed.
        """
        if self._is_lite:
            alignment = self._own[0] if self._own else self._files["lite-alignment"].path
            return load_lite(load_recipe("lite"), self._device, alignment).clip
        files = paths(self._files.values())
        if self._clip.startswith(_FINETUNED):
            return load_finetuned(self._folder, files, self._device, self._precision)
        return load_clip(self._clip, files, self._device, self._precision)

    def describe(self) -> dict[str, Any]:
        """Return what a result says of the model's files and number format."""
        return {
            "weights": weights_report(tuple(self._files.values())),
            "own_files": [path.name for path in self._own],
            "precision": self._precision,
        }

    @property
    def _folder(self) -> Path:
        return Path(self._clip.removeprefix(_FINETUNED)).expanduser()

    @property
    def _is_lite(self) -> bool:
        if self._clip.startswith(_FINETUNED):
            return (self._folder / LITE_ALIGNMENT).is_file()
        return self._clip == "lite"

    def _weights(self) -> tuple[str, ...]:
        """Return the registered files that the CLIP alone needs, and note the user's own ones."""
        if self._clip == "lite":
            return (*_LITE_WEIGHTS, "lite-alignment")
        if not self._clip.startswith(_FINETUNED):
            if self._clip not in CLIP_WEIGHTS:
                known = ", ".join(["lite", *CLIP_WEIGHTS, f"{_FINETUNED}FOLDER"])
                raise InputError(f"engine {self.name!r} is unknown to retrieval; known: {known}.")
            return CLIP_WEIGHTS[self._clip]
        if self._is_lite:
            self._own = [self._folder / LITE_ALIGNMENT]
            return _LITE_WEIGHTS
        checkpoint = find_checkpoint(self._folder)
        tokenizer = own_tokenizer(checkpoint) if finetuned_kind(self._folder) == "biomedclip" else None
        self._own = [checkpoint, *([tokenizer] if tokenizer else [])]
        return finetuned_weights(self._folder)


class FeatureFile:
    """Vectors by what they are of, in one ``.npz`` file; a file of another model or a damaged one is begun anew."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Read what is there."""
        self.path, self._fingerprint = path, fingerprint
        self._vectors: dict[str, np.ndarray] = {}
        if not path.is_file():
            return
        try:
            with np.load(path, allow_pickle=False) as content:
                if str(content["fingerprint"]) == fingerprint:
                    self._vectors = dict(zip(content["keys"].tolist(), content["vectors"], strict=True))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s); its vectors are computed again.", path.name, error)

    def __contains__(self, key: str) -> bool:
        return key in self._vectors

    def add(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """Take vectors (K, D); :meth:`save` writes them."""
        self._vectors.update(zip(keys, np.asarray(vectors, np.float32), strict=True))

    def rows(self, keys: Sequence[str]) -> np.ndarray:
        """Return (K, D) float32."""
        return np.stack([self._vectors[key] for key in keys])

    def save(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: Not writable, disk full.
        """
        keys = list(self._vectors)
        with replacing(self.path) as file:
            np.savez(file, fingerprint=self._fingerprint, keys=np.array(keys), vectors=self.rows(keys))


def features(
    model: RetrievalModel,
    pairs: RetrievalPairs,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image and the text vectors, both (N, D) float32; what ``folder`` holds is not computed again.

    Every distinct image and caption is encoded once, and the model is loaded only if one is missing.

    Args:
        model: Which CLIP.
        pairs: N pairs.
        folder: For the file of vectors; created.
        progress: Called with (images done, images in all).

    Raises:
        InputError: An image cannot be used; the message names its file.
        OutputError: The folder cannot be written.
    """
    readable = re.sub(r"[^A-Za-z0-9.+-]+", "-", model.name).strip("-")[-60:]
    store = FeatureFile(folder / f"{readable}-{model.fingerprint[:12]}.npz", model.fingerprint)
    image_keys = _image_keys(pairs.files)
    text_keys = [f"text:{hashlib.sha256(caption.encode('utf-8', 'replace')).hexdigest()}" for caption in pairs.captions]
    files = {key: file for key, file in zip(image_keys, pairs.files, strict=True) if key not in store}
    texts = {key: text for key, text in zip(text_keys, pairs.captions, strict=True) if key not in store}
    if files or texts:
        folder.mkdir(parents=True, exist_ok=True)
        clip = model.load()
        if texts:
            store.add(list(texts), clip.encode_texts(list(texts.values())))
        _encode_images(clip, files, store, len(set(image_keys)), progress)
        store.save()
    elif progress is not None:
        progress(len(set(image_keys)), len(set(image_keys)))
    return store.rows(image_keys), store.rows(text_keys)


def _encode_images(
    clip: VisionLanguageModel,
    files: dict[str, Path],
    store: FeatureFile,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    keys = list(files)
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        store.add(chunk, clip.encode_images([picture(files[key]) for key in chunk]))
        if start and start % _SAVE_EVERY == 0:
            store.save()  # a run that is stopped goes on here
        if progress is not None:
            progress(total - len(keys) + start + len(chunk), total)


def picture(path: Path) -> np.ndarray:
    """Return a 2D image as a CLIP reads it, (H, W) or (H, W, 3) uint8.

    Raises:
        InputError: It cannot be read, or is a volume.
    """
    image = read_image(path)
    if image.is_volume:
        raise InputError(f"{path} is a volume; retrieval takes 2D images.")
    return to_uint8(check_image(image.array, path.name), image.window)


def _image_keys(files: Sequence[Path]) -> list[str]:
    """Return a key for every file that changes with its place, size and time of change."""

    def key(path: Path) -> str:
        state = path.stat()
        text = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
        return f"image:{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()}"

    known = {path: key(path) for path in dict.fromkeys(files)}
    return [known[path] for path in files]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
