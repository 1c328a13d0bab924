"""Results out: mask PNG, map NRRD, 3D Slicer segmentation and JSON, each written whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError, OutputError
from MedCLIPSAMLib.medical_image import LPS_RAS, file_label

LOCK_FILE = ".medclipsam.lock"
"""In a folder in which only one run may work."""
_GZIP_LEVEL = 1  # saliency maps shrink little; level 6 is several times slower for a few percent


@dataclass(frozen=True)
class Segment:
    """One segment of a segmentation file.

    Attributes:
        name: As shown in 3D Slicer, any text.
        mask: (K, J, I) bool, on the volume's own grid; may be memory-mapped.
        colour: Red, green, blue in [0, 1].
        tags: Key and value pairs, such as ``"TerminologyEntry"`` or ``"MedCLIPSAM.Prompt"``; 3D Slicer separates them
            with ``|``, which is therefore replaced by ``/``.
    """

    name: str
    mask: np.ndarray
    colour: tuple[float, float, float]
    tags: Mapping[str, str] = field(default_factory=dict)


def check_output_folder(path: str | Path) -> Path:
    """Create a folder and try to write into it, so that a long run does not fail at its end.

    Raises:
        OutputError: It cannot be created or written to.
    """
    folder = Path(path)
    if folder.is_file():
        raise OutputError(f"{file_label(folder)} cannot be written into: it is a file; name a folder (--output).")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".partial-{secrets.token_hex(8)}"
        try:
            probe.write_bytes(b"0")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise _output_error(folder, error) from error
    return folder


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder; the system opens the lock when the process ends in whatever way.

    Raises:
        MedCLIPSAMError: Another run works there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise MedCLIPSAMError(
            f"another run works in {file_label(folder)}; wait for its end, or name another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when the block ends without an error.

    Raises:
        OutputError: For any ``OSError`` in the block or here; what stood at ``path`` before still stands.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{secrets.token_hex(8)}")
    try:
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # a full disk may tell only now
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _output_error(path, error) from error


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            free = shutil.disk_usage(path.parent).free / 1e6
            return OutputError(
                f"{file_label(path)} cannot be written: the disk is full ({free:.0f} MB free); free some."
            )
        return OutputError(f"{file_label(path)} cannot be written: the disk is full; free some space.")
    reason = error.strerror or str(error)
    return OutputError(
        f"{file_label(path)} cannot be written ({reason}); choose another output folder, or change its permissions."
    )


def write_mask_png(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) bool as 8-bit grey PNG, 0 and 255.

    Raises:
        InputError: Not two-dimensional.
        OutputError: Not writable, disk full.
    """
    from PIL import Image

    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise InputError(f"a mask of shape {mask.shape} does not fit a PNG file; pass (H, W).")
    with replacing(path) as file:
        Image.fromarray(mask.astype(bool).astype(np.uint8) * 255).save(file, format="PNG")


def write_map_nrrd(path: str | Path, array: np.ndarray, ijk_to_ras: np.ndarray) -> None:
    """Write a map as compressed float32 NRRD with the geometry of its image.

    Args:
        path: File to write, ``.nrrd``.
        array: (H, W), or (K, J, I), which may be memory-mapped.
        ijk_to_ras: (4, 4) matrix of the image, mm. A 2D map whose matrix leaves the plane z = 0 becomes a volume of one
            slice, since a 2D NRRD file cannot say where it lies.

    Raises:
        InputError: Another shape, or not a matrix that can be inverted.
        OutputError: Not writable, disk full.
    """
    array, lps = np.asanyarray(array), _to_lps(ijk_to_ras)
    if array.ndim == 2:
        in_plane = np.array_equal(lps[2], (0, 0, 1, 0)) and not lps[:2, 2].any()
        space = ["space dimension: 2"] if in_plane else ["space: left-posterior-superior"]
        directions = lps[:2, :2] if in_plane else lps[:3, :3]
        sizes = array.shape[::-1] if in_plane else (*array.shape[::-1], 1)
        planes: Iterable[np.ndarray] = [array]
    elif array.ndim == 3:
        space, directions, sizes, planes = ["space: left-posterior-superior"], lps[:3, :3], array.shape[::-1], array
    else:
        raise InputError(f"a map of shape {array.shape} cannot be written; pass (H, W) or (K, J, I).")
    header = [
        "type: float",
        f"dimension: {len(sizes)}",
        *space,
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {' '.join(map(_vector, directions.T))}",
        f"kinds: {' '.join(['domain'] * len(sizes))}",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(lps[: len(directions), 3])}",
    ]
    with replacing(path) as file:
        _write_nrrd(file, header, (plane.astype("<f4", copy=False) for plane in planes))


def write_segmentation_nrrd(path: str | Path, segments: Sequence[Segment], ijk_to_ras: np.ndarray) -> None:
    """Write segments as a 3D Slicer segmentation (``.seg.nrrd``).

    Segments that do not overlap share one label volume; each overlap opens a further layer, along a first NRRD axis of
    kind ``list``. The keys are those that 3D Slicer's segmentation storage node reads and writes.

    Args:
        path: File to write, ``.seg.nrrd``.
        segments: At least one; masks of one shape (K, J, I).
        ijk_to_ras: (4, 4) matrix of the volume, mm.

    Raises:
        InputError: No segments, different shapes, or more than 255 segments.
        OutputError: Not writable, disk full.
    """
    if not 1 <= len(segments) <= 255:
        raise InputError(f"{len(segments)} segments cannot be written to one file; pass 1 to 255.")
    shape = np.shape(segments[0].mask)
    for segment in segments:
        if np.shape(segment.mask) != shape or len(shape) != 3:
            raise InputError(
                f"segment '{segment.name}' has shape {np.shape(segment.mask)}, the first one {shape}; all must have "
                "the volume's shape (K, J, I)."
            )
    lps = _to_lps(ijk_to_ras)
    layers: list[np.ndarray] = []
    keys: list[str] = []
    for number, segment in enumerate(segments):
        mask = np.asarray(segment.mask, dtype=bool)
        layer = next((index for index, labels in enumerate(layers) if not labels[mask].any()), len(layers))
        if layer == len(layers):
            layers.append(np.zeros(shape, np.uint8))
        layers[layer][mask] = number + 1
        keys += _segment_keys(number, segment, layer, _extent(mask))
    several = len(layers) > 1
    header = [
        "type: unsigned char",
        f"dimension: {4 if several else 3}",
        "space: left-posterior-superior",
        f"sizes: {f'{len(layers)} ' if several else ''}{' '.join(map(str, shape[::-1]))}",
        f"space directions: {'none ' if several else ''}{' '.join(map(_vector, lps[:3, :3].T))}",
        f"kinds: {'list ' if several else ''}domain domain domain",
        "encoding: gzip",
        f"space origin: {_vector(lps[:3, 3])}",
        *keys,
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_SourceRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    with replacing(path) as file:
        _write_nrrd(file, header, (np.stack(planes, axis=-1) for planes in zip(*layers, strict=True)))


def _segment_keys(number: int, segment: Segment, layer: int, extent: tuple[int, ...]) -> list[str]:
    tags = "".join(f"{_tag_text(key)}:{_tag_text(value)}|" for key, value in segment.tags.items())
    values = {
        "ID": f"Segment_{number + 1}",
        "Name": segment.name,
        "NameAutoGenerated": 0,
        "Color": " ".join(f"{channel:.6g}" for channel in segment.colour),
        "ColorAutoGenerated": 0,
        "Extent": " ".join(map(str, extent)),
        "LabelValue": number + 1,
        "Layer": layer,
        "Tags": tags,
    }
    return [f"Segment{number}_{key}:={_key_text(str(value))}" for key, value in values.items()]


def _tag_text(value: str) -> str:
    return str(value).replace("|", "/")


def _key_text(value: str) -> str:
    """Escape a value as NRRD asks: backslash and line end."""
    return value.replace("\\", "\\\\").replace("\r", "").replace("\n", "\\n")


def _extent(mask: np.ndarray) -> tuple[int, ...]:
    """Return the first and last index of ``mask`` (K, J, I) along I, J, K; 0 -1 where it is empty."""
    extent: list[int] = []
    for axis in (2, 1, 0):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        extent += [int(used[0]), int(used[-1])] if used.size else [0, -1]
    return tuple(extent)


def _to_lps(ijk_to_ras: np.ndarray) -> np.ndarray:
    matrix = np.asarray(ijk_to_ras, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise InputError(f"ijk_to_ras must be an invertible 4x4 matrix, not {np.array2string(matrix, precision=4)}.")
    return LPS_RAS @ matrix + 0.0  # no negative zeros in the file


def _vector(values: Iterable[float]) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


def _write_nrrd(file: BinaryIO, header: Sequence[str], planes: Iterable[np.ndarray]) -> None:
    """Write an NRRD file (https://teem.sourceforge.net/nrrd/format.html) plane by plane, the same bytes each time."""
    file.write("\n".join(("NRRD0004", *header, "", "")).encode("utf-8", "replace"))
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=_GZIP_LEVEL, mtime=0) as stream:
        for plane in planes:
            stream.write(np.ascontiguousarray(plane).data)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write UTF-8 JSON. Numpy numbers and arrays, dataclasses and paths are converted; NaN and infinity become null.

    Raises:
        InputError: A value that JSON cannot hold.
        OutputError: Not writable, disk full.
    """
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as file:
        file.write((text + "\n").encode("utf-8", "backslashreplace"))


def _plain(value: Any) -> Any:
    """Return ``value`` in JSON's own types."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no NaN
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    raise InputError(
        f"a value of type {type(value).__name__} ({value!r}) cannot be written to JSON; pass numbers or text."
    )
