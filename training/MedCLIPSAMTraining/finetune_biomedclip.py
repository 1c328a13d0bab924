"""BiomedCLIP in training: both towers of open_clip's model, its tokenizer, and the three layouts of its checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from MedCLIPSAMLib.clip.biomedclip import CONTEXT, build_biomedclip, model_config
from MedCLIPSAMLib.clip.checkpoint_layouts import read_checkpoint, to_hugging_face, to_open_clip
from MedCLIPSAMLib.clip.open_clip_model import DEVIATION, MEAN, squashed
from MedCLIPSAMLib.clip.registry import TOKENIZER, find_checkpoint
from MedCLIPSAMLib.clip.text_tower import BertTower, padded
from MedCLIPSAMLib.clip.wordpiece import WordPiece
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing, write_json
from MedCLIPSAMLib.weights import resolve
from MedCLIPSAMTraining.finetune_models import FINETUNED, decay_groups, pixels
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings

LAYOUT_FILES = {
    "open_clip": "open_clip_pytorch_model.bin",
    "training": "training_checkpoint.pt",
    "hugging_face": "pytorch_model.bin",
}
_NO_DECAY = ("cls_token", "pos_embed")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True)
class SquashedInput:
    """An image as BiomedCLIP reads it, (3, size, size) float32."""

    size: int

    def __call__(self, image: Path | np.ndarray) -> Tensor:
        return squashed(pixels(image), self.size)[0]


class BiomedClipTrainee:
    """Implements :class:`~MedCLIPSAMTraining.finetune_models.TrainableClip`."""

    layouts = tuple(LAYOUT_FILES)
    keeps_features = False

    def __init__(self, settings: FinetuneSettings, device: torch.device):
        """Load the pre-trained model, or an earlier result; see :func:`finetune_models.load_trainable`."""
        weights, tokenizer, self.base = _files(settings.model)
        state, _ = to_open_clip(read_checkpoint(weights))
        # Copies: weights of a file that is mapped into memory must not be trained in place.
        model = build_biomedclip({name: value.clone() for name, value in state.items()})
        self.image_input = SquashedInput(model.visual.trunk.patch_embed.img_size[0])
        self.module = model.to(device).eval()
        self._settings, self._device, self._tokenizer_file = settings, device, tokenizer
        self._tokens = BertTower(model.text, WordPiece(tokenizer, CONTEXT))
        for part in model.text.modules():
            if isinstance(part, nn.Dropout):
                part.p = settings.dropout
        self._lock()

    def _lock(self) -> None:
        model, settings = self.module, self._settings
        model.logit_scale.requires_grad_(False)  # the loss has a temperature of its own
        visual, text = model.visual, model.text.transformer
        trunk = visual.trunk
        image_start = [trunk.patch_embed, trunk.cls_token, trunk.pos_embed]
        lock(visual, image_start, trunk.blocks, settings.locked_image_layers, "image")
        lock(model.text, [text.embeddings], text.encoder.layer, settings.locked_text_layers, "text")

    def prepare(self, images: Iterable[np.ndarray | None], progress: Callable[[int], None]) -> None:
        """See :class:`TrainableClip`: nothing of this model is frozen for good."""

    def image_features(self, batch: Tensor) -> Tensor:
        """See :class:`TrainableClip`."""
        return self.module.encode_image(batch.to(self._device, non_blocking=True))

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """See :class:`TrainableClip`."""
        return self.module.encode_text(padded(self._tokens.tokenize(captions), str(self._device)))

    def set_training(self, training: bool) -> None:
        """See :class:`TrainableClip`; without dropout both are the same."""
        self.module.train(training and bool(self._settings.dropout))

    def parameters_to_train(self) -> list[dict[str, Any]]:
        """See :class:`TrainableClip`."""
        return decay_groups(self.module, self._settings.weight_decay or 0.0, _NO_DECAY)

    def state(self) -> dict[str, Tensor]:
        """See :class:`TrainableClip`; by the names of open_clip."""
        return dict(self.module.state_dict())

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See :class:`TrainableClip`."""
        self.module.load_state_dict(state)

    def export(self, folder: Path, layouts: Sequence[str], training: dict[str, Any]) -> list[Path]:
        """See :class:`TrainableClip`; also the tokenizer, and open_clip's own settings for other programs."""
        # position_ids are 0, 1, 2, ...; the published file does not have them.
        state = {
            name: value.detach().cpu().contiguous()
            for name, value in self.state().items()
            if not name.endswith(".position_ids")
        }
        written = []
        for layout in layouts:
            content: dict[str, Any] = state
            if layout == "hugging_face":
                content = {name: value.clone() for name, value in to_hugging_face(state).items()}
            elif layout == "training":
                content = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "name": "finetune"}
                content["epoch"] = training.get("epoch", 0)
            with replacing(folder / LAYOUT_FILES[layout]) as file:
                torch.save(content, file)
            written.append(folder / LAYOUT_FILES[layout])
        own = folder / self._tokenizer_file.name
        if not (own.exists() and own.samefile(self._tokenizer_file)):
            with replacing(own) as target, self._tokenizer_file.open("rb") as source:
                shutil.copyfileobj(source, target)
        config = model_config()
        config["text_cfg"] |= {name: _BIOMEDBERT for name in ("hf_model_name", "hf_tokenizer_name")}
        mean_std = {"mean": MEAN, "std": DEVIATION}
        write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": mean_std})
        return [*written, own, folder / "open_clip_config.json"]


_BIOMEDBERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"


def lock(tower: nn.Module, start: Sequence[Any], blocks: Sequence[nn.Module], count: int, name: str) -> None:
    """Let the beginning of a tower and its first ``count`` blocks stay as they are; -1: the whole tower.

    Raises:
        InputError: It has fewer blocks.
    """
    if count > len(blocks):
        raise InputError(f"the {name} tower has {len(blocks)} layers, so {count} cannot be locked; -1 locks all of it.")
    for part in [tower] if count < 0 else [*start, *blocks[:count]] if count else []:
        part.requires_grad_(False)


def _files(model: str) -> tuple[Path, Path, dict[str, Any]]:
    """Return checkpoint, tokenizer, and what identifies the checkpoint."""
    if not model.startswith(FINETUNED):
        found = resolve(["biomedclip", TOKENIZER])
        weights = found["biomedclip"]
        return weights.path, found[TOKENIZER].path, {"name": weights.name, "sha256": weights.sha256}
    weights = find_checkpoint(Path(model.removeprefix(FINETUNED)).expanduser())
    own = [weights.parent / name for name in _TOKENIZER_FILES if (weights.parent / name).is_file()]
    tokenizer = own[0] if own else resolve([TOKENIZER])[TOKENIZER].path
    return weights, tokenizer, {"name": str(weights.resolve()), "bytes": weights.stat().st_size}
