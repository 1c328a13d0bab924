"""Image-text pairs of any number, in little memory: what names an image, its caption, and the patient where known."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np

from MedCLIPSAMLib.errors import InputError, OutputError
from MedCLIPSAMTraining.pair_marks import joined_marks, split_marks
from MedCLIPSAMTraining.pair_sources import find_rows
from MedCLIPSAMTraining.text_column import TextBuilder, TextColumn, column_of, text_key

logger = logging.getLogger(__name__)

SAVED = "pairs.json"  # marks a folder that holds a saved index
_VERSION = 1
_COLUMNS = ("files", "captions", "patients")
_KEYS = ("caption_keys", "image_keys", "splits")
_SMALL = 8_000_000  # bytes; a larger index goes to another process by a file that both map


@dataclass(frozen=True)
class Pair:
    """One image and what is said of it.

    Attributes:
        file: Path of the image, or of a member of a webdataset shard (see :mod:`pair_shards`); ``local_image`` opens
            both.
        caption: In the index's state: as read, or cleaned.
        patient: What holds pairs of one patient together, or None where that is not known.
    """

    file: str
    caption: str
    patient: str | None


class PairIndex:
    """All pairs of a set, read-only. A million of them take about 250 MB.

    Use :meth:`read`, or :meth:`of` for pairs at hand. A loader's processes share it: forked ones as it is, others by a
    file that is mapped.

    Attributes:
        files, captions, patients: The columns; files are relative to ``root`` where they were given so, and the patient
            is "" where unknown.
        root: Folder of relative files.
        splits: (N,) uint8 marks of :mod:`pair_marks`, None where the source gives no split.
    """

    def __init__(self, files: TextColumn, captions: TextColumn, patients: TextColumn, root: str = "") -> None:
        """Keep three columns of equal length."""
        if not len(files) == len(captions) == len(patients):
            raise InputError(f"{len(files)} files, {len(captions)} captions and {len(patients)} patients do not match.")
        self.files, self.captions, self.patients, self.root = files, captions, patients, root
        self._caption_keys: np.ndarray | None = None
        self._image_keys: np.ndarray | None = None
        self._splits: np.ndarray | None = None
        self._spilled: str | None = None

    @classmethod
    def read(
        cls,
        source: Path,
        *,
        root: Path | None = None,
        file_column: str = "file",
        caption_column: str = "caption",
        patient_column: str = "patient",
        check_files: bool = True,
    ) -> PairIndex:
        """Read pairs from any of these.

        - CSV (comma, semicolon or tab) or TSV with a header, JSON Lines, or a JSON list of objects: ``file``,
          ``caption`` and optionally ``patient``; the usual other names of the columns are found as well. A column
          ``split`` marks rows as train, val or test.
        - MedPix 2.0 as published: its folder, ``Descriptions.json`` or one of ``descriptions_*.jsonl``. Its clinical
          case stands for the patient.
        - ROCO as published: the folder with ``captions.txt`` (its article stands for the patient), or ROCOv2's
          ``*_captions.csv``. Images that were not downloaded are left out.
        - webdataset shards: a ``.tar``, a folder of them, or a pattern (``data/part-{000..012}.tar``, ``data/*.tar``).
        - A folder written by :meth:`save`.

        Args:
            source: File, folder or pattern.
            root: Folder of relative image files; by default that of ``source``, or ``images`` beside it.
            file_column, caption_column, patient_column: Names of the columns or JSON keys.
            check_files: Look whether at least some of the images are there.

        Raises:
            InputError: Nothing there that can be read, a column or value is missing, the text is not UTF-8, or no image
                is where the source says; the message says what was found.
        """
        source = Path(source)
        if (source / SAVED).is_file():
            return cls.open(source)
        rows = find_rows(source, root, (file_column, caption_column, patient_column))
        columns = [TextBuilder() for _ in _COLUMNS]
        marks = []
        for chunk in rows.chunks:
            for column, values in zip(columns, chunk[:3], strict=True):
                column.add(values)
            marks.append((len(chunk[0]), split_marks(chunk[3], source) if len(chunk) > 3 else None))
        index = cls(*(column.column() for column in columns), root=str(rows.roots[0]))
        index._splits = joined_marks(marks)
        if not len(index):
            raise InputError(f"{source} holds no pairs; it needs one row per image with its file and its caption.")
        if check_files and rows.check:
            index.root = _root_with_files(index, rows.roots, source)
        return index

    @classmethod
    def of(cls, pairs: Iterable[Pair], root: str = "") -> PairIndex:
        """Return an index of pairs at hand."""
        pairs = list(pairs)
        columns = (
            [pair.file for pair in pairs],
            [pair.caption for pair in pairs],
            [pair.patient or "" for pair in pairs],
        )
        return cls(*map(column_of, columns), root=root)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.files)

    def __getitem__(self, row: int) -> Pair:
        """Return one pair, its file joined to the root."""
        return Pair(os.path.join(self.root, self.files[row]), self.captions[row], self.patients[row] or None)

    def __repr__(self) -> str:
        """Return its size; not the contents, which may be patients' data."""
        return f"<PairIndex of {len(self)} pairs>"

    @property
    def nbytes(self) -> int:
        """Bytes of all columns and keys."""
        keys = (getattr(self, "_" + name) for name in _KEYS)
        return sum(getattr(self, name).nbytes for name in _COLUMNS) + sum(key.nbytes for key in keys if key is not None)

    @property
    def splits(self) -> np.ndarray | None:
        """See the class."""
        return self._splits

    @property
    def caption_keys(self) -> np.ndarray:
        """(N,) int64: equal captions have equal keys; case, white space and a full stop at the end do not count."""
        if self._caption_keys is None:
            keys = (text_key(_plain(caption).encode("utf-8", "replace")) for caption in self.captions)
            self._caption_keys = np.fromiter(keys, np.int64, len(self))
        return self._caption_keys

    @property
    def image_keys(self) -> np.ndarray:
        """(N,) int64: equal images have equal keys; told by the file's name, or see :meth:`with_compared_images`."""
        if self._image_keys is None:
            self._image_keys = self.files.keys()
        return self._image_keys

    def captions_key(self, row: int) -> int:
        """Return the key of one pair's caption; the losses take it as ``same_caption``."""
        return int(self.caption_keys[row])

    def take(self, rows: np.ndarray) -> PairIndex:
        """Return the index of these rows, in their order; it shares the text with this one."""
        rows = np.asarray(rows)
        taken = PairIndex(*(getattr(self, name).take(rows) for name in _COLUMNS), root=self.root)
        for name in _KEYS:
            if (keys := getattr(self, "_" + name)) is not None:
                setattr(taken, "_" + name, keys[rows])
        return taken

    def with_captions(self, captions: TextColumn) -> PairIndex:
        """Return an index with other captions for the same images and patients."""
        changed = PairIndex(self.files, captions, self.patients, self.root)
        changed._image_keys, changed._splits = self._image_keys, self._splits
        return changed

    def with_compared_images(self) -> PairIndex:
        """Return an index that knows equal images by their files' contents, whatever they are called.

        Only files of equal size are read; a file that is not there counts as an image of its own.
        """
        from MedCLIPSAMTraining.pair_contents import content_keys

        compared = PairIndex(self.files, self.captions, self.patients, self.root)
        compared._caption_keys, compared._image_keys = self._caption_keys, content_keys(self)
        compared._splits = self._splits
        return compared

    def save(self, folder: Path) -> None:
        """Write the index as a folder that :meth:`read` opens at once, at any size.

        Raises:
            OutputError: The folder is there already, or cannot be written.
        """
        folder = Path(folder)
        part = folder.with_name(folder.name + ".part")
        try:
            if folder.exists():
                raise OutputError(f"{folder} exists; name a folder that does not, or delete it.")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name in _COLUMNS:
                column = getattr(self, name)
                for kind in ("blob", "starts", "lengths"):
                    np.save(part / f"{name}-{kind}.npy", getattr(column, kind))
            for name in _KEYS:
                if (keys := getattr(self, "_" + name)) is not None:
                    np.save(part / f"{name}.npy", keys)
            about = {"version": _VERSION, "pairs": len(self), "root": self.root}
            (part / SAVED).write_text(json.dumps(about), encoding="utf-8")
            os.replace(part, folder)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{folder} cannot be written ({error}); choose another folder.") from error

    @classmethod
    def open(cls, folder: Path | str) -> PairIndex:
        """Open what :meth:`save` wrote; the text stays in the file and is read as it is needed.

        Raises:
            InputError: The folder is damaged or from another version.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / SAVED).read_text(encoding="utf-8"))
            if about.get("version") != _VERSION:
                raise InputError(f"{folder} was saved by another version; make it again from the pairs' own source.")
            columns = []
            for name in _COLUMNS:
                parts = (_mapped(folder / f"{name}-{kind}.npy") for kind in ("blob", "starts", "lengths"))
                columns.append(TextColumn(*parts))
            index = cls(*columns, root=about["root"])
            for name in _KEYS:
                with suppress(FileNotFoundError):
                    setattr(index, "_" + name, _mapped(folder / f"{name}.npy"))
            damaged = len(index) != about["pairs"] or any(
                len(column) and int(column.starts[-1]) + int(column.lengths[-1]) > len(column.blob)
                for column in columns
            )
        except (OSError, ValueError, KeyError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder} cannot be read ({error}); make it again from the pairs' own source.") from error
        if damaged:
            raise InputError(f"{folder} is damaged; make it again from the pairs' own source.")
        return index


def _plain(caption: str) -> str:
    return " ".join(caption.casefold().split()).rstrip(" .")


def _mapped(path: Path) -> np.ndarray:
    """Open an array; a small one is read, because an empty one cannot be mapped."""
    return np.load(path, mmap_mode="r" if path.stat().st_size > 1 << 16 else None, allow_pickle=False)


def _root_with_files(index: PairIndex, roots: tuple[Path, ...], source: Path) -> str:
    """Return the root below which a sample of the files is found, at least in part."""
    sample = [index.files[row] for row in np.unique(np.linspace(0, len(index) - 1, 50).astype(int))]
    for root in roots:
        if any(os.path.exists(os.path.join(root, name)) for name in sample):
            return str(root)
    places = " or ".join(map(str, dict.fromkeys(roots)))
    raise InputError(
        f"none of {len(sample)} images that {source} names is there, for example {sample[0]!r} in {places}; name the "
        "images' folder as root."
    )


def _for_another_process(index: PairIndex) -> tuple:
    """Say how a started (not forked) process gets the index: a large one by a private folder that both map."""
    if index.nbytes < _SMALL:
        return index.__reduce_ex__(4)
    if index._spilled is None:
        parent = tempfile.mkdtemp(prefix="medclipsam-pairs-")
        weakref.finalize(index, shutil.rmtree, parent, ignore_errors=True)
        index.save(Path(parent) / "index")
        index._spilled = os.path.join(parent, "index")
    return PairIndex.open, (index._spilled,)


ForkingPickler.register(PairIndex, _for_another_process)
