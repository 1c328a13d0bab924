"""The lite model in training: its image tower and text projection, on LiteMedSAM's features and MiniLM's embeddings.

Encoder and MiniLM are frozen. The encoder's features of every image are computed once and kept on the disk under a key
of the image's content, 0.4 MB an image, so that later epochs, resumed runs and other runs read them; an embedding is
kept in memory. Each is computed alone: its bits then do not depend on what else was in the batch.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from MedCLIPSAMLib.clip.lite import CARD, load_tower, read_card
from MedCLIPSAMLib.clip.lite_tower import COARSE, FEATURES, FINE, LiteTower
from MedCLIPSAMLib.clip.minilm import MiniLM
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.recipe import LITE_ALIGNMENT
from MedCLIPSAMLib.sam.embedding_cache import content_digest
from MedCLIPSAMLib.sam.lite_medsam import LiteMedSAM
from MedCLIPSAMLib.weights import resolve, verified
from MedCLIPSAMTraining.finetune_models import FINETUNED, decay_groups, pixels
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings

CAPTIONS_KEPT = 100_000  # embeddings in memory, 1.5 kB each
_NO_DECAY = ("row", "column", "cls")


@dataclass(frozen=True)
class KeptFeatures:
    """An image -> its features, (256, 736) float16, from the disk.

    Attributes:
        folder: Where they are kept.
    """

    folder: Path

    def __call__(self, image: Path | np.ndarray) -> Tensor:
        path = self.place(pixels(image))
        try:
            return torch.from_numpy(np.load(path))
        except (OSError, ValueError) as error:
            raise InputError(f"the features {path} cannot be read ({error}); delete the file and resume.") from error

    def place(self, image: np.ndarray) -> Path:
        """Return the file for an image, (H, W) or (H, W, 3) uint8."""
        digest = content_digest(image)
        return self.folder / digest[:2] / f"{digest[2:]}.npy"


class LiteTrainee:
    """Implements :class:`~MedCLIPSAMTraining.finetune_models.TrainableClip`."""

    layouts = ("lite",)
    keeps_features = True

    def __init__(self, settings: FinetuneSettings, device: torch.device, features: Path):
        """Load the shipped alignment, or an earlier result; see :func:`finetune_models.load_trainable`."""
        alignment, self.base = _alignment(settings.model)
        card = read_card(alignment)
        trained = load_tower(alignment)
        self.module = LiteTower(**card["tower"], dropout=settings.dropout or 0.0)
        self.module.load_state_dict(trained.state_dict())
        self.module.to(device).eval()
        self.image_input = KeptFeatures(features)
        self._settings, self._device, self._card = settings, device, card
        self._text = MiniLM(verified("minilm-l6-v2"), verified("minilm-l6-v2-tokenizer")).to(device)
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()
        self._lock()

    def _lock(self) -> None:
        tower, settings = self.module, self._settings
        image = [tower.embed, tower.row, tower.column, tower.cls]
        for part in (tower.fine, tower.mix, tower.patch_head, tower.absent):
            part.requires_grad_(False)  # the patches: pairs of whole images and captions say nothing of them
        count = settings.locked_image_layers
        if count > len(tower.blocks):
            raise InputError(f"the lite image tower has {len(tower.blocks)} layers; lock as many at most, or -1.")
        if count:
            blocks = list(tower.blocks)
            for part in [*image, *blocks, tower.image_head] if count < 0 else [*image, *blocks[:count]]:
                part.requires_grad_(False)
        if settings.locked_text_layers:
            tower.text_head.requires_grad_(False)

    def prepare(self, images: Iterable[np.ndarray | None], progress: Callable[[int], None]) -> None:
        """See :class:`TrainableClip`."""
        encoder = None
        for done, image in enumerate(images, 1):
            if image is not None:
                path = self.image_input.place(image)
                if not path.exists():
                    encoder = encoder or LiteMedSAM(verified("lite-medsam"), self._device).encoder
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(path) as file:
                        np.save(file, _pooled(encoder(image).tokens)[0].half().cpu().numpy())
            progress(done)

    def image_features(self, batch: Tensor) -> Tensor:
        """See :class:`TrainableClip`."""
        tower = self.module
        features = tower.normalise(batch.to(self._device, non_blocking=True).float())
        tokens = tower.embed(features)
        tokens = nn.functional.layer_norm(tokens, tokens.shape[-1:])
        return tower.image_head(tower.transform(tower.with_position(tokens))[:, 0])

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """See :class:`TrainableClip`."""
        return self.module.text_head(torch.stack([self._embedding(caption) for caption in captions]))

    def _embedding(self, caption: str) -> Tensor:
        if caption in self._embeddings:
            self._embeddings.move_to_end(caption)
        else:
            with torch.autocast(self._device.type, enabled=False):
                vector = torch.from_numpy(self._text.encode([caption])[0])
            self._embeddings[caption] = vector.to(self._device)
            if len(self._embeddings) > CAPTIONS_KEPT:
                self._embeddings.popitem(last=False)
        return self._embeddings[caption]

    def set_training(self, training: bool) -> None:
        """See :class:`TrainableClip`."""
        self.module.train(training)

    def parameters_to_train(self) -> list[dict[str, Any]]:
        """See :class:`TrainableClip`."""
        return decay_groups(self.module, self._settings.weight_decay or 0.0, _NO_DECAY)

    def state(self) -> dict[str, Tensor]:
        """See :class:`TrainableClip`."""
        return dict(self.module.state_dict())

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See :class:`TrainableClip`."""
        self.module.load_state_dict(state)

    def export(self, folder: Path, layouts: Sequence[str], training: dict[str, Any]) -> list[Path]:
        """See :class:`TrainableClip`.

        The weights stay in single precision: they are what was validated. The calibration of the presence score is left
        out, since it does not hold for other weights and captions without masks cannot fit a new one; the engine then
        gates nothing, and says so.
        """
        card = {"tower": self.module.settings, "training": training, "trained_on": self.base}
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state().items()}
        path = folder / LITE_ALIGNMENT
        with replacing(path) as file:
            file.write(save(weights, {CARD: json.dumps(card)}))
        return [path]


def _pooled(tokens: Tensor) -> Tensor:
    """(B, 1024, 736) -> (B, 256, 736): the means that the coarse tokens are made of."""
    grid = tokens.unflatten(1, (FINE, FINE)).unflatten(1, (COARSE, 2)).unflatten(3, (COARSE, 2))
    return grid.mean(dim=(2, 4)).reshape(len(tokens), COARSE * COARSE, FEATURES)


def _alignment(model: str) -> tuple[Path, dict[str, Any]]:
    """Return the alignment to begin with, and what identifies it."""
    if not model.startswith(FINETUNED):
        found = resolve(["lite-alignment"])["lite-alignment"]
        return found.path, {"name": found.name, "sha256": found.sha256}
    path = Path(model.removeprefix(FINETUNED)).expanduser() / LITE_ALIGNMENT
    return path, {"name": str(path.resolve()), "bytes": path.stat().st_size}
