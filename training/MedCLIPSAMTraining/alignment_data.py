"""Images, masks and augmented views for the lite alignment, and the encoder's features of them, computed once.

The features of every view are kept in float16 in memory-mapped files (1.5 MB a view), one set of files for each
variant: variant 0 is the image as the engine sees it, the others are random views of it. A stopped run goes on where it
was.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.images import robust_window, to_uint8
from MedCLIPSAMTraining.captions import IMAGE_KINDS

logger = logging.getLogger(__name__)

FINE, MASK_GRID, FEATURES = 32, 64, 736
FOLDERS = {
    "breast_ultrasound_tumour": "breast",
    "brain_mri_tumour": "brain",
    "chest_xray_lung": "xray",
    "chest_ct_lung": "ct",
}
VOLUMES = (  # folder-relative image and mask, task, window
    ("volumes/chest_ct_01.nii.gz", "volumes/chest_ct_01_lungs_threshold.nii.gz", "ct", (-1000.0, 400.0)),
    ("volumes/head_mr_t1ce_tumour_01.nrrd", "volumes/head_mr_t1ce_tumour_01_tumour.nrrd", "brain", None),
)
CHEST_CT = "chest_ct_lung"  # no licence stated: never in shipped weights
VIEWS = {"breast": 5, "brain": 4, "xray": 2, "ct": 2}
"""Views per image by task, the plain one included: more where the target is harder to find."""
MIRRORED = ("breast", "brain")  # tasks whose views may be mirrored; a mirrored thorax has its heart on the right


@dataclass(frozen=True)
class TrainingImage:
    """One image with its mask; ``slice_index`` picks a slice of a volume.

    Attributes:
        source: Data set folder, or "volumes".
        task: "breast", "brain", "xray" or "ct".
        label: "benign", "malignant", "normal" or "".
        split: "train" or "val".
        subject: Patient where known, else the file name.
    """

    source: str
    task: str
    label: str
    split: str
    subject: str
    image: Path
    mask: Path
    slice_index: int | None = None
    window: tuple[float, float] | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """Names of the target region and its surroundings, see :data:`captions.IMAGE_KINDS`."""
        return IMAGE_KINDS[self.task, self.label if self.task == "breast" else ""]


def find_images(data: Path) -> list[TrainingImage]:
    """List the train and val images of the four data sets, then the slices of the two volumes, in a fixed order.

    Raises:
        InputError: A data set is missing in ``data``.
    """
    found = []
    for folder, task in FOLDERS.items():
        manifest = data / folder / "manifest.csv"
        if not manifest.is_file():
            raise InputError(f"{manifest} is missing; --data must name the folder with {', '.join(FOLDERS)}.")
        with manifest.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["split"] in ("train", "val"):
                    place = data / folder / row["split"]
                    found.append(
                        TrainingImage(
                            folder,
                            task,
                            row["label"] if task == "breast" else "",
                            row["split"],
                            row["subject"] or row["file"],
                            place / "images" / row["file"],
                            place / "masks" / row["file"],
                        )
                    )
    for image, mask, task, window in VOLUMES:
        volume = read_image(data / image)
        window = window or robust_window(volume.array)
        found += [
            TrainingImage("volumes", task, "", "train", Path(image).name, data / image, data / mask, index, window)
            for index in range(len(volume.array))
        ]
    return found


def half_of_subjects(images: Sequence[TrainingImage], half: str, seed: int = 0) -> list[TrainingImage]:
    """Return the images of half "A" or "B" of the subjects of every data set; both halves together are all images.

    Subjects are shuffled once with ``seed``, so the halves are the same in every run and on every machine.
    """
    if half not in ("A", "B"):
        raise InputError(f"half {half!r}: choose A or B.")
    chosen: set[tuple[str, str]] = set()
    for source in sorted({image.source for image in images}):
        subjects = sorted({image.subject for image in images if image.source == source})
        order = np.random.default_rng(seed).permutation(len(subjects))
        middle = (len(subjects) + 1) // 2
        part = order[:middle] if half == "A" else order[middle:]
        chosen.update((source, subjects[index]) for index in part)
    return [image for image in images if (image.source, image.subject) in chosen]


def load_pair(image: TrainingImage) -> tuple[np.ndarray, np.ndarray]:
    """Return the image as (H, W) uint8 and its mask as (H, W) uint8 of 0 and 1."""
    pixels, mask = read_image(image.image).array, read_image(image.mask).array
    if image.slice_index is not None:
        pixels, mask = pixels[image.slice_index], mask[image.slice_index] > 0
    else:
        mask = mask > 127
    pixels = to_uint8(pixels, image.window)
    return (pixels if pixels.ndim == 2 else pixels[..., 0]), mask.astype(np.uint8)


def augment(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, mirror: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return a random view: rotation, scale, aspect, shift, mirror, gamma, contrast, blur and noise.

    Args:
        image: (H, W) uint8.
        mask: (H, W) uint8 of 0 and 1.
        rng: Source of every draw.
        mirror: Whether left and right may be swapped.
    """
    shape = np.array(image.shape)
    angle = np.deg2rad(rng.uniform(-20, 20))
    scale, aspect = np.exp(rng.uniform(np.log(0.7), np.log(1.35))), np.exp(rng.uniform(-0.15, 0.15))
    sign = -1.0 if mirror and rng.random() < 0.5 else 1.0
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([1 / (scale * aspect), sign * aspect / scale])
    shift = rng.uniform(-0.12, 0.12, 2) * shape
    centre = shape / 2 - 0.5
    offset = centre - matrix @ centre + shift
    mode = "constant" if rng.random() < 0.5 else "reflect"
    view = ndimage.affine_transform(image.astype(np.float32), matrix, offset, order=1, mode=mode, cval=image.min())
    view_mask = ndimage.affine_transform(mask, matrix, offset, order=0, mode=mode)
    gamma = np.exp(rng.uniform(-0.4, 0.4))
    view = np.clip(view / 255, 0, 1) ** gamma
    view = (view - 0.5) * rng.uniform(0.75, 1.25) + 0.5 + rng.uniform(-0.1, 0.1)
    if rng.random() < 0.3:
        view = ndimage.gaussian_filter(view, rng.uniform(0.3, 1.5))
    if rng.random() < 0.3:
        view = view + rng.normal(0, rng.uniform(0.01, 0.05), view.shape)
    return np.clip(view * 255, 0, 255).astype(np.uint8), view_mask


class FeatureStore:
    """Features, masks and padding of every view of every image, in files below ``folder``.

    Attributes:
        images: What :func:`find_images` listed; the first index everywhere.
        tokens: Per variant, (images, 1024, 736) float16.
        masks: Per variant, (images, 64, 64) uint8: 255 times the covered share of a cell.
        valid: Per variant, (images, 32, 32) uint8: 255 times the share of a cell that is not padding.
        done: Per variant, (images,) uint8: 1 where the above are filled in.
    """

    def __init__(self, folder: Path, images: list[TrainingImage], variants: int):
        """Open or create the files.

        Raises:
            InputError: The folder holds the features of another list of images.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.images = images
        listing = [[image.source, image.image.name, image.slice_index] for image in images]
        index = folder / "images.json"
        if index.exists() and json.loads(index.read_text(encoding="utf-8")) != listing:
            raise InputError(f"{folder} holds features of other images; choose another --work folder or delete it.")
        index.write_text(json.dumps(listing), encoding="utf-8")
        count = len(images)

        def files(name: str, kind: type, shape: tuple[int, ...]) -> list[np.ndarray]:
            opened = []
            for variant in range(variants):
                path = folder / f"{name}-{variant}.npy"
                mode = "r+" if path.exists() else "w+"
                opened.append(
                    np.load(path, mmap_mode="r+")
                    if mode == "r+"
                    else np.lib.format.open_memmap(path, mode, kind, (count, *shape))
                )
            return opened

        self.tokens = files("tokens", np.float16, (FINE * FINE, FEATURES))
        self.masks = files("masks", np.uint8, (MASK_GRID, MASK_GRID))
        self.valid = files("valid", np.uint8, (FINE, FINE))
        self.done = files("done", np.uint8, ())

    def fill(self, encoder: object, wanted: Sequence[tuple[int, int]]) -> None:
        """Compute what is missing of ``wanted``, pairs of (image, variant), with a :class:`LiteEncoder`."""
        missing = [(index, variant) for index, variant in wanted if not self.done[variant][index]]
        for index, variant in tqdm(missing, desc="Encoding views", unit="view", disable=not missing):
            image, mask = load_pair(self.images[index])
            if variant:
                rng = np.random.default_rng([variant, index])
                image, mask = augment(image, mask, rng, self.images[index].task in MIRRORED)
            features = encoder(image)
            self.tokens[variant][index] = features.tokens[0].cpu().numpy()
            covered = features.frame.place(mask.astype(np.float32))
            self.masks[variant][index] = np.rint(255 * _cell_means(covered, MASK_GRID))
            inside = features.frame.place(np.ones(mask.shape, np.float32))
            self.valid[variant][index] = np.rint(255 * _cell_means(inside, FINE))
            self.done[variant][index] = 1


def _cell_means(plane: np.ndarray, cells: int) -> np.ndarray:
    step = plane.shape[0] // cells
    return plane.reshape(cells, step, cells, step).mean(axis=(1, 3))
