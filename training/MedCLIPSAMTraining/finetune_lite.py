"""The lite model in training: the two projections into the common space of its images and its texts.

Everything below them is frozen: LiteMedSAM's encoder, MiniLM, and the tower between encoder and projections, whose
patches serve the saliency; pairs of whole images and captions say nothing of patches. (Training the tower's last layer
too took 13 times as long and gained nothing on our pairs.) What the frozen part makes of an image is computed once and
kept on the disk under a key of the image's content, 9 kB an image, so that later epochs, resumed runs and other runs
read it; an embedding is kept in memory. Each is computed alone: its bits then do not depend on the rest of the batch.

The text projection also serves the patches' similarity to a text, which makes the saliency. A term beside the loss
keeps that similarity for the texts that the shipped model has learnt (captions.py), while others may move: the mean
square of its change, over patches p and these texts, is E[(p . d)^2] = d' C d, where d is the change of a text's unit
vector and C = E[p p'] the second moment of the patches' unit vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from MedCLIPSAMLib.clip.lite import CARD, load_tower
from MedCLIPSAMLib.clip.minilm import MiniLM
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.recipe import LITE_ALIGNMENT
from MedCLIPSAMLib.sam.embedding_cache import content_digest
from MedCLIPSAMLib.sam.lite_medsam import LiteMedSAM
from MedCLIPSAMLib.weights import verified
from MedCLIPSAMTraining.captions import CONCEPTS
from MedCLIPSAMTraining.finetune_models import FINETUNED, pixels
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings
from MedCLIPSAMTraining.finetune_towers import Trainee, base_checkpoint, lock, own_base

CAPTIONS_KEPT = 100_000  # embeddings in memory, 1.5 kB each
PATCHES_KEPT = 16  # of an image's 1024, for their second moment
_TRAINED = ("image_head", "text_head")


@dataclass(frozen=True)
class KeptToken:
    """An image -> the CLS token that the frozen tower makes of it, (width,) float32, from the disk.

    Attributes:
        folder: Where they are kept.
    """

    folder: Path

    def __call__(self, image: Path | np.ndarray) -> Tensor:
        return self.read(self.place(pixels(image)))["token"]

    def read(self, path: Path) -> dict[str, Tensor]:
        """Return "token", and "patches", (PATCHES_KEPT, dimension) float16 unit vectors.

        Raises:
            InputError: The file is absent or damaged.
        """
        try:
            return load(path.read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"the features {path} cannot be read ({error}); delete the file and resume.") from error

    def place(self, image: np.ndarray) -> Path:
        """Return the file for an image, (H, W) or (H, W, 3) uint8."""
        digest = content_digest(image)
        return self.folder / digest[:2] / f"{digest[2:]}.safetensors"


class LiteTrainee(Trainee):
    """Implements :class:`~MedCLIPSAMTraining.finetune_models.TrainableClip`."""

    layouts = ("lite",)
    keeps_features = True

    def __init__(self, settings: FinetuneSettings, device: torch.device, features: Path):
        """Load the shipped alignment, or an earlier result; see :func:`finetune_models.load_trainable`."""
        alignment, self.base = _alignment(settings.model)
        tower = load_tower(alignment)
        super().__init__(tower, settings, device)
        for name, part in tower.named_children():
            part.requires_grad_(name in _TRAINED)
        for parameter in (tower.row, tower.column, tower.cls, tower.absent):
            parameter.requires_grad_(False)
        lock([], [], [tower.image_head], settings.locked_image_layers, "lite model's trained image")
        lock([], [], [tower.text_head], settings.locked_text_layers, "lite model's trained text")
        self._learnt: tuple[Tensor, Tensor, Tensor] | None = None
        self.image_input = KeptToken(features / _frozen_digest(tower.state_dict()))
        self._text = MiniLM(verified("minilm-l6-v2"), verified("minilm-l6-v2-tokenizer")).to(device)
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()

    def prepare(self, images: Iterable[np.ndarray | None]) -> Iterator[Tensor | None]:
        """See :class:`TrainableClip`."""
        encoder = None
        for image in images:
            if image is None:
                yield None
                continue
            path = self.image_input.place(image)
            if not path.exists():
                encoder = encoder or LiteMedSAM(verified("lite-medsam"), self._device).encoder
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as file:
                    file.write(save(self._frozen(encoder(image).tokens, path.stem)))
            yield self.image_input.read(path)["token"]

    @torch.no_grad()
    def _frozen(self, features: Tensor, key: str) -> dict[str, Tensor]:
        """Return what is kept of an image; ``key`` draws its patches, always the same."""
        tower = self.module
        features = tower.normalise(features.clone().to(self._device))  # the encoder may have moved to the CPU
        tokens = tower.transform(tower.with_position(tower.coarse_tokens(features)))
        patches = tower.patch_vectors(features, tokens).flatten(0, 2)
        chosen = np.random.default_rng(int(key[:8], 16)).choice(len(patches), PATCHES_KEPT, replace=False)
        return {"token": tokens[0, 0].cpu(), "patches": patches[torch.from_numpy(np.sort(chosen))].half().cpu()}

    def settle(self, images: Iterable[np.ndarray | None]) -> None:
        """See :class:`TrainableClip`: the patches' second moment, and the learnt texts with their vectors of now."""
        if not self._settings.keep_patches:
            return
        places = [self.image_input.place(image) for image in images if image is not None]
        if not places:
            raise InputError("none of the first images can be read; check --root and the table's files.")
        patches = torch.cat([self.image_input.read(path)["patches"] for path in places]).float()
        second_moment = (patches.T @ patches / len(patches)).to(self._device)
        texts = self._stacked([text for texts in CONCEPTS.values() for text in texts])
        start = load_tower(_alignment(self._settings.model)[0]).to(self._device)
        with torch.no_grad():
            self._learnt = texts, start.text_vectors(texts), second_moment

    def penalty(self) -> Tensor | None:
        """See :class:`TrainableClip`: the mean squared change of the similarity of patches and learnt texts."""
        if self._learnt is None:
            return None
        texts, before, second_moment = self._learnt
        with torch.autocast(self._device.type, enabled=False):
            change = self.module.text_vectors(texts) - before
            return self._settings.keep_patches * ((change @ second_moment) * change).sum(dim=-1).mean()

    def image_features(self, batch: Tensor) -> Tensor:
        """See :class:`TrainableClip`."""
        return self.module.image_head(batch.to(self._device, non_blocking=True))

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """See :class:`TrainableClip`."""
        return self.module.text_head(self._stacked(captions))

    def _stacked(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self._embedding(caption) for caption in captions])

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


def _frozen_digest(state: dict[str, Tensor]) -> str:
    """Return what tells one frozen tower from another."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        if not name.startswith(_TRAINED):
            digest.update(name.encode())
            digest.update(state[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _alignment(model: str) -> tuple[Path, dict[str, Any]]:
    """Return the alignment to begin with, and what identifies it."""
    if not model.startswith(FINETUNED):
        return base_checkpoint(model, "lite-alignment")
    return own_base(Path(model.removeprefix(FINETUNED)).expanduser() / LITE_ALIGNMENT)
