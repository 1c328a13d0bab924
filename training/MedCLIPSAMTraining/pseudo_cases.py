"""The cases that are trained on: an image and its labels 0..R-1, of a cohort or of a folder of true masks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from MedCLIPSAMLib import cohort_dicom
from MedCLIPSAMLib.cases import target_of
from MedCLIPSAMLib.cohort_table import CohortCase
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import PICTURE_SUFFIXES, VOLUME_SUFFIXES, read_image
from MedCLIPSAMLib.medical_image import MedicalImage, file_label, matrix_of

_OFF_GRID = 0.1  # voxels that a mask may lie beside the image's grid
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
        classes: R - 1; with one class a picture is cut as :func:`MedCLIPSAMLib.cases.target_of` does it for the
            evaluation, and of a volume every value but 0 is the target; with several the values are 1..R-1.
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
            InputError: A file is missing or damaged, mask and image differ in size or place, or the mask has other
                values.
        """
        from MedCLIPSAMLib.cohort_inputs import read_input

        image = read_input(self.source, self.parts)
        mask, mask_to_ras = read_mask(self.mask)
        shape = image.array.shape[: 3 if image.is_volume else 2]
        if image.is_volume and mask.ndim == 3 and not self.mask.name.lower().endswith(PICTURE_SUFFIXES):
            mask = onto_grid(mask, mask_to_ras, shape, image.ijk_to_ras, file_label(self.mask))
        if mask.shape != shape:
            raise InputError(
                f"{file_label(self.mask)} has the shape {mask.shape}, its image {shape}; pass masks of its size."
            )
        if self.classes == 1:
            return image, (mask > 0 if image.is_volume else target_of(mask)).astype(np.uint8)
        if mask.max() > self.classes or mask.min() < 0 or (mask != np.rint(mask)).any():
            raise InputError(
                f"{file_label(self.mask)} has values from {mask.min():g} to {mask.max():g}; with {self.classes} "
                f"prompts the masks must hold 0 to {self.classes}, in the order of the prompts."
            )
        return image, mask.astype(np.uint8)


def onto_grid(
    mask: np.ndarray, mask_to_ras: np.ndarray, shape: tuple[int, ...], image_to_ras: np.ndarray, name: str = "the mask"
) -> np.ndarray:
    """Return a mask on the grid of its image; nothing is interpolated.

    Programs store the same volume with axes in another order or direction, or cut to the part that is labelled; the
    voxels are the same ones then, and only their indices differ.

    Args:
        mask: (K, J, I) of any type.
        mask_to_ras, image_to_ras: (4, 4) IJK-to-RAS matrices.
        shape: (K, J, I) of the image.
        name: Of the mask, for messages.

    Returns:
        Array of ``shape``; 0 where the mask says nothing.

    Raises:
        InputError: The voxels are other ones, or some that are labelled lie outside the image.
    """
    to_mask = np.linalg.inv(mask_to_ras) @ image_to_ras  # IJK of the image to IJK of the mask
    turn, start = np.rint(to_mask[:3, :3]).astype(int), np.rint(to_mask[:3, 3]).astype(int)
    corners = np.array([*itertools.product(*((0, size - 1) for size in shape[::-1]), (1,))])
    exact = np.abs(corners @ to_mask[:3].T - corners @ np.column_stack([turn, start]).T).max() <= _OFF_GRID
    if not exact or not (np.abs(turn).sum(0) == 1).all() or not (np.abs(turn).sum(1) == 1).all():
        raise InputError(
            f"{name} does not lie on the voxels of its image (another spacing, orientation or origin); resample it "
            "onto the image, or store it with the image's geometry."
        )
    from_axis = np.abs(turn).argmax(axis=0)  # of the mask, for each axis of the image
    labels = mask.transpose(2, 1, 0).transpose(from_axis)
    found = np.zeros(shape[::-1], mask.dtype)
    of_image, of_mask = [], []
    for axis, size in enumerate(found.shape):
        first, extent = start[from_axis[axis]], labels.shape[axis]
        if turn[from_axis[axis], axis] < 0:
            labels, first = np.flip(labels, axis), extent - 1 - first
        low, high = max(0, -first), min(size, extent - first)
        of_image.append(slice(low, max(low, high)))
        of_mask.append(slice(low + first, max(low, high) + first))
    found[tuple(of_image)] = labels[tuple(of_mask)]
    if (found != 0).sum() < (mask != 0).sum():
        raise InputError(f"{name} has labelled voxels outside of its image; pass the mask of this image.")
    return found.transpose(2, 1, 0)


def read_mask(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask and its geometry.

    Returns:
        (H, W) or (K, J, I) as stored, of a picture with three equal channels one of them; and the (4, 4) IJK-to-RAS
        matrix.

    Raises:
        InputError: Not readable, or in colour.
    """
    if path.name.lower().endswith(".seg.nrrd"):
        import SimpleITK as sitk

        try:
            stored = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise InputError(f"{file_label(path)} cannot be read; it may be damaged.") from error
        array = sitk.GetArrayFromImage(stored)
        if array.ndim == 4:
            raise InputError(f"{file_label(path)} has segments that overlap; export it as a label map.")
        return array, matrix_of(stored)
    image = read_image(path)
    array = image.array
    if array.ndim == 3 and array.shape[2] == 3 and path.name.lower().endswith(PICTURE_SUFFIXES):
        if (array != array[..., :1]).any():
            raise InputError(f"{file_label(path)} is in colour; pass masks with one channel.")
        array = array[..., 0]
    return array, image.ijk_to_ras


def find_mask(masks: Path, relative: Path) -> Path | None:
    """Return the mask of an image: the file of the same relative path or name, with any extension that can be read.

    Args:
        masks: Folder of masks.
        relative: The image's path below its own folder; of one that lies elsewhere the name alone counts.
    """
    stem = relative.name
    for suffix in sorted((*_MASK_SUFFIXES, *cohort_dicom.SUFFIXES), key=len, reverse=True):
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
            break
    names = (relative.name, *(stem + suffix for suffix in _MASK_SUFFIXES))
    below = not relative.is_absolute() and ".." not in relative.parts
    for folder in (masks / relative.parent, masks) if below else (masks,):
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
