"""What fine-tuning asks of a model, and the models by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from MedCLIPSAMLib.clip.registry import finetuned_kind
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.images import check_image, to_uint8
from MedCLIPSAMLib.recipe import LITE_ALIGNMENT
from MedCLIPSAMTraining.finetune_settings import MODEL_DEFAULTS, FinetuneSettings

FINETUNED = "finetuned:"


class TrainableClip(Protocol):
    """A CLIP whose towers can be trained.

    Attributes:
        module: All weights; those that stay as they are need no gradient.
        base: Where the weights came from, as JSON-able values; a run resumes only with the same.
        image_input: Picklable, so that loader processes can run it: the file of an image, or its pixels (H, W) or
            (H, W, 3) of any real dtype -> what the image tower reads, with the model's own preprocessing.
        layouts: In which :meth:`export` can write it.
        keeps_features: Whether :meth:`prepare` has anything to do.
    """

    module: nn.Module
    base: dict[str, Any]
    image_input: Callable[[Path | np.ndarray], Tensor]
    layouts: tuple[str, ...]
    keeps_features: bool

    def prepare(self, images: Iterable[np.ndarray | None]) -> Iterator[Tensor | None]:
        """Compute what stays the same in every epoch and keep it on the disk.

        Args:
            images: None stands for one that cannot be read.

        Yields:
            For each image what ``image_input`` gives, None for one that cannot be read.
        """
        ...

    def settle(self, images: Iterable[np.ndarray | None]) -> None:
        """Take what :meth:`penalty` needs from some of the images; called after :meth:`prepare` of all processes."""
        ...

    def penalty(self) -> Tensor | None:
        """Return what is added to the loss, a function of the weights alone, with gradient; None for nothing."""
        ...

    def image_features(self, batch: Tensor) -> Tensor:
        """(B, ...) of ``image_input`` -> (B, D), not normalised, with gradient."""
        ...

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, D), not normalised, with gradient."""
        ...

    def set_training(self, training: bool) -> None:
        """Switch dropout on or off."""
        ...

    def parameters_to_train(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups: all that is not locked, with and without weight decay."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return all weights by their names, on the model's device."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""
        ...

    def export(self, folder: Path, layouts: Sequence[str], training: dict[str, Any]) -> list[Path]:
        """Write the weights so that the folder opens as engine ``finetuned:<folder>``; return the files.

        Args:
            folder: Exists.
            layouts: Some of ``layouts``.
            training: What the files say of how they were made.
        """
        ...


def kind_of(model: str) -> str:
    """Return which of :data:`MODEL_DEFAULTS` a model's name means.

    Raises:
        InputError: The model is unknown.
    """
    if model.startswith(FINETUNED):
        folder = Path(model.removeprefix(FINETUNED)).expanduser()
        if not folder.exists():
            raise InputError(f"{folder} does not exist; pass finetuned:FOLDER with that of a fine-tuned CLIP.")
        return "lite" if (folder / LITE_ALIGNMENT).is_file() else finetuned_kind(folder)
    if model not in MODEL_DEFAULTS:
        raise InputError(f"model {model!r} is unknown; known: {', '.join(MODEL_DEFAULTS)}, finetuned:FOLDER.")
    return model


def load_trainable(settings: FinetuneSettings, device: torch.device, features: Path) -> TrainableClip:
    """Load the model of a run.

    Args:
        settings: Filled, see :meth:`FinetuneSettings.filled`.
        device: Where to train.
        features: Folder for what a frozen encoder makes of the images; only the lite model has one.

    Raises:
        InputError: The model is unknown, damaged, or lacks a package.
        MissingWeightsError, ChecksumError: Its weights are absent, or not the registered ones.
    """
    kind = kind_of(settings.model)
    if settings.keep_patches and kind != "lite":
        raise InputError(
            f"--keep-patches {settings.keep_patches:g}: only the lite model has such a term; leave it out."
        )
    if kind == "lite":
        from MedCLIPSAMTraining.finetune_lite import LiteTrainee

        return LiteTrainee(settings, device, features)
    if kind == "clip-vit-b-16":
        from MedCLIPSAMTraining.finetune_openai_clip import OpenAIClipTrainee

        return OpenAIClipTrainee(settings, device)
    from MedCLIPSAMTraining.finetune_biomedclip import BiomedClipTrainee

    return BiomedClipTrainee(settings, device)


def pixels(image: Path | np.ndarray) -> np.ndarray:
    """Return an image as the models read it, (H, W) or (H, W, 3) uint8, as the engines do.

    Raises:
        InputError: It cannot be read, is a volume, or cannot be used.
    """
    window = None
    if isinstance(image, Path):
        read = read_image(image)
        if read.is_volume:
            raise InputError(f"{image.name} is a volume; image-caption pairs are 2D images.")
        image, window = read.array, read.window
    return to_uint8(check_image(image), window)
