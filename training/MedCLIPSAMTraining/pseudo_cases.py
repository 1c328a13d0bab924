"""The cases that are trained on: an image and its labels 0..R-1, of a cohort or of a folder of true masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from MedCLIPSAMLib.cohort_table import CohortCase
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import PICTURE_SUFFIXES, VOLUME_SUFFIXES, read_image
from MedCLIPSAMLib.medical_image import MedicalImage, file_label

_MASK_SUFFIXES = (".seg.nrrd", *VOLUME_SUFFIXES, *PICTURE_SUFFIXES)


class LabelledCase(Protocol):
    """What the raw data set is written from."""

    name: str
    patient: str | None
    kind: str | None

    def read(self) -> tuple[MedicalImage, np.ndarray]:
        """Return the image and its labels: (H, W) or (K, J, I) uint8, 0 for background."""


@dataclass(frozen=True)
class PseudoLabelledCase:
    """A case of a cohort.

    Attributes:
        case: What the cohort holds of it.
        prompts: The classes 1..R-1.
    """

    case: CohortCase
    prompts: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def patient(self) -> str | None:
        return self.case.patient

    @property
    def kind(self) -> str | None:
        return self.case.kind

    def read(self) -> tuple[MedicalImage, np.ndarray]:
        """Return the image and its pseudo-labels.

        Raises:
            InputError: A file is missing or damaged, or mask and image differ in size.
        """
        image = self.case.read_image()
        found = [prompt for prompt in self.prompts if not self.case.result(prompt).skipped]
        masks = {self.prompts.index(prompt) + 1: self.case.mask(prompt) for prompt in found}
        entropies = {}
        if len(masks) > 1:
            files = (self.case.result(prompt).files for prompt in found)
            entropies = {label: read_image(one["entropy"]).array for label, one in zip(masks, files, strict=True)}
        return image, merge_masks(masks, entropies, image.array.shape[: 3 if image.is_volume else 2], self.name)


def merge_masks(
    masks: Mapping[int, np.ndarray], entropies: Mapping[int, np.ndarray], shape: tuple[int, ...], name: str = "case"
) -> np.ndarray:
    """Make one label map of the masks of several classes.

    Where masks overlap, the class with the higher probability p takes the pixel. A cohort keeps the entropy (Eq. 22)
    in place of p; within a mask p is above 0.5, and there the entropy falls as p rises, so the lower entropy decides.
    Of equal ones the lower label wins, which is the prompt that was named first.

    Args:
        masks: bool, by label.
        entropies: In nats, by label; needed where masks overlap.
        shape: Of the image.
        name: Of the case, for messages.

    Returns:
        uint8 array of ``shape``.

    Raises:
        InputError: An array has another shape.
    """
    labels = np.zeros(shape, np.uint8)
    least = np.full(shape, np.inf, np.float32)
    for label in sorted(masks):
        mask = masks[label]
        entropy = np.reshape(entropies[label], shape) if label in entropies else np.zeros(shape, np.float32)
        if mask.shape != shape:
            raise InputError(f"{name}: the mask has the shape {mask.shape}, the image {shape}; segment it again.")
        wins = mask & (entropy < least)
        labels[wins] = label
        least[wins] = entropy[wins]
    return labels


@dataclass(frozen=True)
class TrueLabelledCase:
    """An image with a mask that a person has drawn.

    Attributes:
        name, patient: See :class:`LabelledCase`.
        source: The image, a file or a DICOM folder.
        parts: Files of a DICOM series that shares its folder with others.
        mask: Its mask.
        classes: R - 1; with one class every value but 0 is the target, with several the values are 1..R-1.
        kind: "image" or "volume"; None until it is read.
    """

    name: str
    patient: str | None
    source: Path
    parts: tuple[Path, ...]
    mask: Path
    classes: int
    kind: str | None = None

    def read(self) -> tuple[MedicalImage, np.ndarray]:
        """Return the image and its labels.

        Raises:
            InputError: A file is missing or damaged, mask and image differ in size, or the mask has other values.
        """
        from MedCLIPSAMLib.cohort_inputs import read_input

        image, mask = read_input(self.source, self.parts), read_mask(self.mask)
        shape = image.array.shape[: 3 if image.is_volume else 2]
        if mask.shape != shape:
            raise InputError(
                f"{file_label(self.mask)} has the shape {mask.shape}, its image {shape}; pass masks of its size."
            )
        if self.classes == 1:
            return image, (mask > 0).astype(np.uint8)
        if mask.max() > self.classes or mask.min() < 0 or (mask != np.rint(mask)).any():
            raise InputError(
                f"{file_label(self.mask)} has values from {mask.min():g} to {mask.max():g}; with {self.classes} "
                f"prompts the masks must hold 0 to {self.classes}, in the order of the prompts."
            )
        return image, mask.astype(np.uint8)


def read_mask(path: Path) -> np.ndarray:
    """Return a mask (H, W) or (K, J, I) as stored; of a picture with three equal channels, one of them.

    Raises:
        InputError: Not readable, or in colour.
    """
    if path.name.lower().endswith(".seg.nrrd"):
        import SimpleITK as sitk

        try:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        except RuntimeError as error:
            raise InputError(f"{file_label(path)} cannot be read; it may be damaged.") from error
        if array.ndim == 4:
            raise InputError(f"{file_label(path)} has segments that overlap; export it as a label map.")
        return array
    array = read_image(path).array
    if array.ndim == 3 and array.shape[2] == 3 and path.name.lower().endswith(PICTURE_SUFFIXES):
        if (array != array[..., :1]).any():
            raise InputError(f"{file_label(path)} is in colour; pass masks with one channel.")
        array = array[..., 0]
    return array


def find_mask(masks: Path, relative: Path) -> Path | None:
    """Return the mask of an image: the file of the same relative path or name, with any extension that can be read.

    Args:
        masks: Folder of masks.
        relative: The image's path below its own folder.
    """
    stem = relative.name
    for suffix in sorted(_MASK_SUFFIXES, key=len, reverse=True):
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
            break
    names = (relative.name, *(stem + suffix for suffix in _MASK_SUFFIXES))
    for folder in (masks / relative.parent, masks):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def one_kind(kinds: Sequence[str]) -> str:
    """Return "image" or "volume", whichever all cases are.

    Raises:
        InputError: Both are among them.
    """
    found = sorted(set(kinds))
    if len(found) > 1:
        counts = " and ".join(f"{kinds.count(kind)} {kind}s" for kind in found)
        raise InputError(f"the data holds {counts}; one network learns one of them: put them into two folders.")
    return found[0] if found else "image"
