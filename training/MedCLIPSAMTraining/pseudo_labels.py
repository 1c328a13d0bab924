"""Labelled cases into nnU-Net's raw layout: 8-bit PNG for images, NIfTI for volumes.

::

    raw/Dataset001_MedCLIPSAM/
      dataset.json
      imagesTr/CASE_0000.png      grey, or RGB (three channels in one file); volumes CASE_0000.nii.gz
      labelsTr/CASE.png           0 for background, 1..R-1 for the prompts in their order
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from MedCLIPSAMLib.errors import InputError, OutputError
from MedCLIPSAMLib.file_output import replacing, write_json
from MedCLIPSAMLib.images import to_uint8
from MedCLIPSAMLib.medical_image import LPS_RAS, MedicalImage, file_label
from MedCLIPSAMTraining.pseudo_cases import LabelledCase, one_kind
from MedCLIPSAMTraining.pseudo_selection import Excluded
from MedCLIPSAMTraining.weak_settings import BACKGROUND

DATASET = "Dataset001_MedCLIPSAM"
DATASET_ID = 1
IMAGES, LABELS = "imagesTr", "labelsTr"
_ENDINGS = {"image": ".png", "volume": ".nii.gz"}


@dataclass
class RawDataset:
    """What was written.

    Attributes:
        kind: "image" or "volume".
        patients: Patient by case.
        channels: Of the images, 1 or 3.
        modality: "CT" where every file says so, else None.
        pixels: Labelled pixels or voxels by label, 1..R-1.
        unreadable: Cases that were left out since a file of theirs cannot be used.
    """

    kind: str = "image"
    patients: dict[str, str | None] = field(default_factory=dict)
    channels: int = 1
    modality: str | None = None
    pixels: dict[int, int] = field(default_factory=dict)
    unreadable: list[Excluded] = field(default_factory=list)


def write_raw_dataset(
    folder: Path,
    cases: Sequence[LabelledCase],
    classes: Sequence[str],
    *,
    window: tuple[float, float] | None = None,
    empty: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RawDataset:
    """Write ``folder/Dataset001_MedCLIPSAM`` anew.

    An image is windowed to 8 bit as the engines do it (``window``, else the file's own, else a robust one); a volume
    keeps its intensities, which nnU-Net normalises by itself, and its geometry. A case that cannot be read, or whose
    labels are empty, is left out with the reason.

    Args:
        folder: nnU-Net's raw folder.
        cases: What to write.
        classes: Name of the labels 1..R-1.
        window: Intensities that become 0 and 255.
        empty: Keep cases without any labelled pixel; for true masks, where that means "nothing there".
        progress: Called with (cases done, all).

    Raises:
        InputError: Images and volumes together, or no case can be used.
        OutputError: Not writable, disk full.
    """
    target = folder / DATASET
    made = RawDataset(pixels=dict.fromkeys(range(1, len(classes) + 1), 0))
    try:
        shutil.rmtree(target, ignore_errors=True)
        for name in (IMAGES, LABELS):
            (target / name).mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            f"{file_label(target)} cannot be written ({error.strerror}); choose another --work."
        ) from error
    kinds, grey, modalities = [], [], set()
    for number, case in enumerate(cases):
        if progress is not None:
            progress(number, len(cases))
        try:
            image, labels = case.read()
            pixels = None if image.is_volume else _pixels(image, window)
        except InputError as error:
            made.unreadable.append(Excluded(case.name, "", "unreadable", str(error)))
            continue
        counts = np.bincount(labels.ravel(), minlength=len(classes) + 1)
        if not empty and not counts[1:].any():
            made.unreadable.append(Excluded(case.name, "", "no mask"))
            continue
        kinds.append("volume" if image.is_volume else "image")
        one_kind(kinds)
        if pixels is None:
            _write_volume(target, case.name, image, labels)
        else:
            _write_picture(target, case.name, pixels, labels)
            if pixels.ndim == 2:
                grey.append(case.name)
        modalities.add(image.modality)
        made.patients[case.name] = case.patient
        for label in made.pixels:
            made.pixels[label] += int(counts[label])
    if not made.patients:
        reason = made.unreadable[0].detail if made.unreadable else "there are no images"
        raise InputError(f"none of the {len(cases)} cases can be trained on; the first: {reason}")
    made.kind = kinds[0]
    made.modality = "CT" if modalities == {"CT"} else None
    if made.kind == "image" and len(grey) < len(made.patients):
        made.channels = 3
        _to_colour(target, grey)
    write_json(target / "dataset.json", dataset_json(made, classes, paths=True))
    return made


def dataset_json(made: RawDataset, classes: Sequence[str], *, paths: bool) -> dict[str, object]:
    """Return nnU-Net's description of the data set.

    Args:
        made: The data set.
        classes: Name of the labels 1..R-1.
        paths: Name the file of every case. Without them nnU-Net looks into the folders with twelve processes; but they
            would go on into each trained model, where names of cases do not belong.
    """
    ending = _ENDINGS[made.kind]
    if made.kind == "volume":
        channels = {"0": made.modality or "zscore"}
    else:
        channels = {"0": "grey"} if made.channels == 1 else {"0": "red", "1": "green", "2": "blue"}
    content: dict[str, object] = {
        "channel_names": channels,
        "labels": {BACKGROUND: 0, **{name: label for label, name in enumerate(classes, start=1)}},
        "numTraining": len(made.patients),
        "file_ending": ending,
        "overwrite_image_reader_writer": "SimpleITKIO" if made.kind == "volume" else "NaturalImage2DIO",
    }
    if paths:
        content["dataset"] = {
            name: {"images": [f"{IMAGES}/{name}_0000{ending}"], "label": f"{LABELS}/{name}{ending}"}
            for name in sorted(made.patients)
        }
    return content


def _pixels(image: MedicalImage, window: tuple[float, float] | None) -> np.ndarray:
    """Return an image in 8 bit: (H, W), also of RGB with equal channels, or (H, W, 3)."""
    pixels = to_uint8(image.array, window or image.window)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return pixels


def _write_picture(target: Path, name: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    for path, array in ((IMAGES, pixels), (LABELS, labels)):
        file_name = f"{name}_0000.png" if path == IMAGES else f"{name}.png"
        with replacing(target / path / file_name) as file:
            Image.fromarray(np.ascontiguousarray(array)).save(file, format="PNG")


def _to_colour(target: Path, names: Iterable[str]) -> None:
    """Give grey pictures three equal channels, since others of the set are in colour."""
    for name in names:
        path = target / IMAGES / f"{name}_0000.png"
        with Image.open(path) as grey:
            colour = grey.convert("RGB")
        with replacing(path) as file:
            colour.save(file, format="PNG")


def _write_volume(target: Path, name: str, image: MedicalImage, labels: np.ndarray) -> None:
    for path, array in (
        (target / IMAGES / f"{name}_0000.nii.gz", _storable(image.array)),
        (target / LABELS / f"{name}.nii.gz", labels),
    ):
        volume = sitk.GetImageFromArray(array)
        set_geometry(volume, image.ijk_to_ras)
        partial = path.with_name(f".partial-{path.name}")
        try:
            sitk.WriteImage(volume, str(partial), useCompression=True)
            partial.replace(path)
        except (RuntimeError, OSError) as error:
            raise OutputError(
                f"{file_label(path)} cannot be written ({error}); make room, or choose another --work."
            ) from error


def _storable(array: np.ndarray) -> np.ndarray:
    """Return the intensities in a type that NIfTI readers know."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind in "iu" and array.dtype.itemsize < 4:
        return array
    return array.astype(np.float32)


def set_geometry(volume: sitk.Image, ijk_to_ras: np.ndarray) -> None:
    """Give an ITK volume the place of a (4, 4) IJK-to-RAS matrix in mm.

    NIfTI knows right angles only: the axes of a sheared stack (tilted gantry) are turned to the nearest ones, with
    their spacing kept. nnU-Net uses the spacing alone.
    """
    lps = LPS_RAS @ ijk_to_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    left, _, right = np.linalg.svd(lps[:3, :3] / spacing)
    volume.SetSpacing(spacing.tolist())
    volume.SetDirection((left @ right).ravel().tolist())
    volume.SetOrigin(lps[:3, 3].tolist())
