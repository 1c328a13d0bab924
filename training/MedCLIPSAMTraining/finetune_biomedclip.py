"""BiomedCLIP in training: both towers of open_clip's model, its tokenizer, and the three layouts of its checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from MedCLIPSAMLib.clip.biomedclip import CONTEXT, build_biomedclip, model_config
from MedCLIPSAMLib.clip.checkpoint_layouts import read_checkpoint, to_hugging_face, to_open_clip
from MedCLIPSAMLib.clip.registry import TOKENIZER, own_tokenizer
from MedCLIPSAMLib.clip.text_tower import BertTower, padded
from MedCLIPSAMLib.clip.wordpiece import WordPiece
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.weights import resolve
from MedCLIPSAMTraining.finetune_models import FINETUNED
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings
from MedCLIPSAMTraining.finetune_towers import LAYOUT_FILES, OpenClipTrainee, base_checkpoint, lock

_BIOMEDBERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"


class BiomedClipTrainee(OpenClipTrainee):
    """Implements :class:`~MedCLIPSAMTraining.finetune_models.TrainableClip`."""

    layouts = tuple(LAYOUT_FILES)
    without_decay = ("cls_token", "pos_embed")

    def __init__(self, settings: FinetuneSettings, device: torch.device):
        """Load the pre-trained model, or an earlier result; see :func:`finetune_models.load_trainable`."""
        weights, self.base = base_checkpoint(settings.model, "biomedclip")
        own = own_tokenizer(weights) if settings.model.startswith(FINETUNED) else None
        self._tokenizer_file = own or resolve([TOKENIZER])[TOKENIZER].path
        state, _ = to_open_clip(read_checkpoint(weights))
        # Copies: weights of a file that is mapped into memory must not be trained in place.
        model = build_biomedclip({name: value.clone() for name, value in state.items()})
        super().__init__(model, settings, device, model.visual.trunk.patch_embed.img_size[0])
        self._tokens = BertTower(model.text, WordPiece(self._tokenizer_file, CONTEXT))
        for part in model.text.modules():
            if isinstance(part, nn.Dropout):
                part.p = settings.dropout
        visual, trunk, text = model.visual, model.visual.trunk, model.text.transformer
        image_start = [trunk.patch_embed, trunk.cls_token, trunk.pos_embed]
        lock(image_start, trunk.blocks, [visual], settings.locked_image_layers, "image")
        lock([text.embeddings], text.encoder.layer, [model.text], settings.locked_text_layers, "text")

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """See :class:`TrainableClip`."""
        return self.module.encode_text(padded(self._tokens.tokenize(captions), str(self._device)))

    def set_training(self, training: bool) -> None:
        """See :class:`TrainableClip`; BERT's attention has a dropout that does not follow the settings."""
        self.module.train(training and bool(self._settings.dropout))

    def export(self, folder: Path, layouts: Sequence[str], training: dict[str, Any]) -> list[Path]:
        """See :class:`TrainableClip`; also the tokenizer, and open_clip's own settings for other programs."""
        written = super().export(folder, layouts, training)
        own = folder / self._tokenizer_file.name
        if not (own.exists() and own.samefile(self._tokenizer_file)):
            with replacing(own) as target, self._tokenizer_file.open("rb") as source:
                shutil.copyfileobj(source, target)
        return [*written, own]

    def published(self) -> dict[str, Tensor]:
        """See :class:`OpenClipTrainee`."""
        # position_ids are 0, 1, 2, ...; the published file does not have them.
        return {name: value for name, value in self.state().items() if not name.endswith(".position_ids")}

    def in_layout(self, layout: str, state: dict[str, Tensor], training: dict[str, Any]) -> dict[str, Any]:
        """See :class:`OpenClipTrainee`."""
        if layout == "hugging_face":
            return {name: value.clone() for name, value in to_hugging_face(state).items()}
        return super().in_layout(layout, state, training)

    def open_clip_settings(self) -> dict[str, Any]:
        """See :class:`OpenClipTrainee`."""
        config = model_config()
        config["text_cfg"] |= {name: _BIOMEDBERT for name in ("hf_model_name", "hf_tokenizer_name")}
        return config
