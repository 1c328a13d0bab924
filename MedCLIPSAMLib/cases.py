"""A data set on disk: which images there are, where their reference masks lie, and reading these."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import PICTURE_SUFFIXES, read_image

_EXIF_ORIENTATION = 274


@dataclass(frozen=True)
class Case:
    """One image with its reference mask.

    Attributes:
        file: File name of the image, unique within a run.
        image_path, mask_path: Where they are.
        dataset: The group that it is reported in.
    """

    file: str
    image_path: Path
    mask_path: Path
    dataset: str


def find_cases(data_dir: str | Path, split: str | None = None) -> list[Case]:
    """List the images of a data set with their masks, sorted by file name, and check them before a long run.

    Args:
        data_dir: Holds ``images`` and ``masks`` with the same file names, or these two in a folder per split, and
            optionally ``manifest.csv`` with a column ``file`` and, where wanted, ``dataset`` and ``split``. Without a
            ``dataset`` the group has the name of the folder.
        split: "test", "val", ...; None for a folder without splits. Where ``images`` and ``masks`` lie directly in
            ``data_dir``, the manifest must name the split.

    Raises:
        InputError: A split, a folder, an image's mask or a file of the manifest is missing, a file is no picture, a
            mask has not the size of its image, or there is no image at all.
    """
    data_dir = Path(data_dir)
    folder = _split_folder(data_dir, split)
    manifest = _read_manifest(data_dir / "manifest.csv", split, named=folder != data_dir)
    files = {path.name: path for path in (folder / "images").iterdir() if path.suffix.lower() in PICTURE_SUFFIXES}
    absent = sorted(set(manifest or ()) - set(files))
    of_split = "" if split is None else f" of split {split!r}"
    if absent:
        raise InputError(
            f"{data_dir / 'manifest.csv'} lists {len(absent)} file(s){of_split} that are not in "
            f"{folder / 'images'}, the first is {absent[0]}; complete the folder or correct the manifest."
        )
    if manifest is not None and folder == data_dir:  # one folder for every split
        files = {name: files[name] for name in manifest}
    if not files:
        raise InputError(f"no images ({', '.join(PICTURE_SUFFIXES)}){of_split} in {folder / 'images'}.")
    cases = []
    for name in sorted(files):
        mask_path = folder / "masks" / name
        if not mask_path.is_file():
            raise InputError(
                f"{name} has no mask: {mask_path} does not exist; an image without target needs a black one."
            )
        dataset = (manifest or {}).get(name, {}).get("dataset") or data_dir.resolve().name
        cases.append(Case(name, files[name], mask_path, dataset))
    for case in cases:
        _check_sizes(case)
    return cases


def read_mask(path: Path) -> np.ndarray:
    """Return a reference mask, (H, W) bool, see :func:`target_of`.

    Raises:
        InputError: The file is damaged; see :func:`MedCLIPSAMLib.file_io.read_image`.
    """
    mask = read_image(path).array
    return target_of(mask.max(axis=2) if mask.ndim == 3 else mask)


def target_of(mask: np.ndarray) -> np.ndarray:
    """Return where a mask of one target, (H, W) of any type, holds it: bool.

    Any value above zero is the target; an 8-bit mask that reaches 128, as pictures of masks do, is cut there, so that
    grey edges do not widen it.
    """
    return mask >= 128 if mask.dtype == np.uint8 and mask.max() >= 128 else mask > 0


def _read_manifest(path: Path, split: str | None, *, named: bool) -> dict[str, dict[str, str]] | None:
    """Return the rows of the split by file name, or None without a manifest.

    Args:
        path: The manifest.
        split: The split wanted; None for all rows.
        named: Whether the split has a folder of its own, so that the manifest need not name it.
    """
    nowhere = (
        f"there is no split {split!r}: {path.parent} holds images and masks itself, and no manifest.csv with a column "
        "'split'; leave --split out to take all images."
    )
    if not path.is_file():
        if split is not None and not named:
            raise InputError(nowhere)
        return None
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if "file" not in (reader.fieldnames or ()):
            columns = ", ".join(reader.fieldnames or ()) or "(none)"
            raise InputError(f"{path} has the columns {columns}; a column 'file' is needed.")
        rows = list(reader)
    splits = sorted({row["split"] for row in rows if row.get("split")})
    if split is not None and not splits and not named:
        raise InputError(nowhere)
    if split is None or not splits:
        return {row["file"]: row for row in rows}
    if split not in splits:
        raise InputError(f"{path} has no split {split!r}; splits that exist: {', '.join(splits)}.")
    return {row["file"]: row for row in rows if row["split"] == split}


def _split_folder(data_dir: Path, split: str | None) -> Path:
    """Return the folder that holds ``images`` and ``masks`` for the split."""

    def holds_both(folder: Path) -> bool:
        return (folder / "images").is_dir() and (folder / "masks").is_dir()

    if not data_dir.is_dir():
        raise InputError(f"{data_dir} is not a folder.")
    if split is not None and holds_both(data_dir / split):
        return data_dir / split
    if holds_both(data_dir):
        return data_dir
    looked = [data_dir] if split is None else [data_dir / split, data_dir]
    splits = sorted(folder.name for folder in data_dir.iterdir() if holds_both(folder))
    raise InputError(
        f"no folders 'images' and 'masks' in {' or '.join(str(folder) for folder in looked)}. "
        + (f"Splits that exist: {', '.join(splits)}." if splits else "No folder in it holds them either.")
    )


def _check_sizes(case: Case) -> None:
    """Compare the sizes in the two files' headers; nothing is decoded."""
    (width, height), (mask_width, mask_height) = _size(case.image_path), _size(case.mask_path)
    if (width, height) != (mask_width, mask_height):
        raise InputError(
            f"{case.file}: the image is {width} x {height} pixels, its mask {mask_width} x {mask_height}; "
            "both need the same size (resize the mask with nearest neighbour)."
        )


def _size(path: Path) -> tuple[int, int]:
    """Return width and height of a picture as it is shown."""
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(_EXIF_ORIENTATION, 1) >= 5
            return picture.size[::-1] if turned else picture.size
    except OSError as error:
        raise InputError(f"{path} cannot be read as a picture ({error}); copy or export it again.") from error
