"""What the trainable models have in common: the optimiser's groups, their state, and what of a tower stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from MedCLIPSAMLib.clip.open_clip_model import DEVIATION, MEAN, squashed
from MedCLIPSAMLib.clip.registry import FINETUNED_NAMES, find_checkpoint
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing, write_json
from MedCLIPSAMLib.recipe import LITE_ALIGNMENT
from MedCLIPSAMLib.weights import resolve
from MedCLIPSAMTraining.finetune_models import FINETUNED, pixels
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings

LAYOUT_FILES = {
    "open_clip": "open_clip_pytorch_model.bin",
    "training": "training_checkpoint.pt",
    "hugging_face": "pytorch_model.bin",
}


class Trainee:
    """The part of :class:`~MedCLIPSAMTraining.finetune_models.TrainableClip` that is the same for every model.

    Attributes:
        module: All weights.
        without_decay: Last parts of the names of tokens and positions: matrices that get no weight decay.
    """

    module: nn.Module
    without_decay: ClassVar[tuple[str, ...]] = ()
    keeps_features = False

    def __init__(self, module: nn.Module, settings: FinetuneSettings, device: torch.device):
        """Keep a model that was just loaded, on its device and without dropout."""
        self.module = module.to(device).eval()
        self._settings, self._device = settings, device

    def prepare(self, images: Iterable[np.ndarray | None]) -> Iterator[Tensor | None]:
        """See :class:`TrainableClip`; nothing, where no part of a model is frozen for good."""
        return iter(())

    def settle(self, images: Iterable[np.ndarray | None]) -> None:
        """See :class:`TrainableClip`; nothing."""

    def penalty(self) -> Tensor | None:
        """See :class:`TrainableClip`; none."""
        return None

    def set_training(self, training: bool) -> None:
        """See :class:`TrainableClip`."""
        self.module.train(training)

    def parameters_to_train(self) -> list[dict[str, Any]]:
        """See :class:`TrainableClip`."""
        return decay_groups(self.module, self._settings.weight_decay or 0.0, self.without_decay)

    def state(self) -> dict[str, Tensor]:
        """See :class:`TrainableClip`; by the names of the module."""
        return dict(self.module.state_dict())

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See :class:`TrainableClip`."""
        self.module.load_state_dict(state)


@dataclass(frozen=True)
class SquashedInput:
    """An image as the CLIPs of open_clip read it, (3, size, size) float32."""

    size: int

    def __call__(self, image: Path | np.ndarray) -> Tensor:
        return squashed(pixels(image), self.size)[0]


class OpenClipTrainee(Trainee):
    """A model of open_clip, and the layouts in which it is written."""

    layouts: tuple[str, ...] = ("open_clip", "training")

    def __init__(self, module: nn.Module, settings: FinetuneSettings, device: torch.device, size: int):
        """Keep a model whose images are squashed to ``size`` pixels; its scale of the similarities is not trained."""
        super().__init__(module, settings, device)
        self.image_input = SquashedInput(size)
        self.module.logit_scale.requires_grad_(False)  # the loss has a temperature of its own

    def image_features(self, batch: Tensor) -> Tensor:
        """See :class:`TrainableClip`."""
        return self.module.encode_image(batch.to(self._device, non_blocking=True))

    def export(self, folder: Path, layouts: Sequence[str], training: dict[str, Any]) -> list[Path]:
        """See :class:`TrainableClip`; also open_clip's own settings, for other programs."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.published().items()}
        written = []
        for layout in layouts:
            with replacing(folder / LAYOUT_FILES[layout]) as file:
                torch.save(self.in_layout(layout, state, training), file)
            written.append(folder / LAYOUT_FILES[layout])
        settings = {"model_cfg": self.open_clip_settings(), "preprocess_cfg": {"mean": MEAN, "std": DEVIATION}}
        write_json(folder / "open_clip_config.json", settings)
        return [*written, folder / "open_clip_config.json"]

    def published(self) -> dict[str, Tensor]:
        """Return the weights that the published file of the model has."""
        return self.state()

    def in_layout(self, layout: str, state: dict[str, Tensor], training: dict[str, Any]) -> dict[str, Any]:
        """Return what the file of a layout holds."""
        if layout == "open_clip":
            return state
        nested = {f"module.{name}": value for name, value in state.items()}
        return {"state_dict": nested, "name": "finetune", "epoch": training.get("epoch", 0)}

    def open_clip_settings(self) -> dict[str, Any]:
        """Return the settings from which open_clip builds the model."""
        raise NotImplementedError


def check_room(folder: Path, layouts: Sequence[str]) -> None:
    """Refuse a folder with weights that an engine would take in place of those that are going to be written there.

    Raises:
        InputError: It holds some.
    """
    names = {**LAYOUT_FILES, "lite": LITE_ALIGNMENT}
    written = {names.get(layout) for layout in layouts}
    if others := sorted(name for name in {*names.values(), *FINETUNED_NAMES} - written if (folder / name).is_file()):
        raise InputError(
            f"{folder} holds {others[0]}, which this run does not replace, and which the engine could take in place of "
            "the new weights; choose another --output, or move that file away."
        )


def base_checkpoint(model: str, published: str) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint that a run begins with, and what identifies it.

    Args:
        model: As in :class:`FinetuneSettings`.
        published: The registry's name of the pre-trained weights; taken unless ``model`` is an earlier result.

    Raises:
        InputError: There is no checkpoint in the folder of an earlier result, or there are several.
        MissingWeightsError, ChecksumError: See :func:`MedCLIPSAMLib.weights.resolve`.
    """
    if not model.startswith(FINETUNED):
        found = resolve([published])[published]
        return found.path, {"name": found.name, "sha256": found.sha256}
    return own_base(find_checkpoint(Path(model.removeprefix(FINETUNED)).expanduser()))


def own_base(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a user's own file, and what identifies it."""
    with path.open("rb") as file:
        return path, {"name": str(path.resolve()), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def decay_groups(module: nn.Module, weight_decay: float, without: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the parameters that need a gradient in two groups: matrices with weight decay, and the rest without.

    Args:
        module: The model.
        weight_decay: Of the matrices.
        without: Last parts of the names of tokens and positions, which are no matrices either.

    Raises:
        InputError: Everything is locked.
    """
    decayed, others = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.rpartition(".")[2] in without
            (others if plain else decayed).append(parameter)
    if not decayed and not others:
        raise InputError("everything is locked, so there is nothing to train; unlock a tower.")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


Part = nn.Module | nn.Parameter


def lock(start: Sequence[Part], blocks: Iterable[nn.Module], end: Sequence[Part], count: int, name: str) -> None:
    """Let the beginning of a tower and its first ``count`` blocks stay as they are.

    Args:
        start: What comes before the blocks.
        blocks: In their order.
        end: What comes after them.
        count: 0 locks nothing, -1 all three parts.
        name: Of the tower, for the message.

    Raises:
        InputError: It has fewer blocks.
    """
    blocks = list(blocks)
    if count > len(blocks):
        raise InputError(f"the {name} tower has {len(blocks)} layers, so {count} cannot be locked; -1 locks all of it.")
    for part in [*start, *blocks, *end] if count < 0 else [*start, *blocks[:count]] if count else []:
        part.requires_grad_(False)
