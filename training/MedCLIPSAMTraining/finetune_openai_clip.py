"""OpenAI's CLIP ViT-B/16 in training, as the general model that a fine-tuned BiomedCLIP is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from MedCLIPSAMLib.clip.openai_clip import CONFIG, read_openai_clip
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings
from MedCLIPSAMTraining.finetune_towers import OpenClipTrainee, base_checkpoint, lock


class OpenAIClipTrainee(OpenClipTrainee):
    """Implements :class:`~MedCLIPSAMTraining.finetune_models.TrainableClip`.

    A caption of more than 77 tokens is cut off, as wherever this model is used.
    """

    without_decay = ("class_embedding", "positional_embedding")

    def __init__(self, settings: FinetuneSettings, device: torch.device):
        """Load the pre-trained model, or an earlier result; see :func:`finetune_models.load_trainable`.

        Raises:
            InputError: Also if dropout is asked for, which this model does not have.
        """
        if settings.dropout:
            raise InputError(f"dropout is {settings.dropout}, but clip-vit-b-16 has none; pass 0.")
        weights, self.base = base_checkpoint(settings.model, "clip-vit-b-16")
        model = read_openai_clip(weights)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # weights of a file that is mapped must not be trained in place
        super().__init__(model, settings, device, model.visual.image_size[0])
        from open_clip.tokenizer import SimpleTokenizer

        self._tokenizer = SimpleTokenizer(context_length=model.context_length)
        visual, text = model.visual, model.transformer
        image_start = [visual.conv1, visual.class_embedding, visual.positional_embedding, visual.ln_pre]
        lock(image_start, visual.transformer.resblocks, [visual], settings.locked_image_layers, "image")
        text_start, text_end = [model.token_embedding, model.positional_embedding], [model.ln_final]
        lock(text_start, text.resblocks, [*text_end, model.text_projection], settings.locked_text_layers, "text")

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """See :class:`TrainableClip`."""
        return self.module.encode_text(self._tokenizer(list(captions)).to(self._device))

    def open_clip_settings(self) -> dict[str, Any]:
        """See :class:`OpenClipTrainee`."""
        return CONFIG
