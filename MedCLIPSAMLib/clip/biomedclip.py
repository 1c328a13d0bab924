"""BiomedCLIP: pre-trained or fine-tuned, from files alone and in any of three layouts.

Zhang et al., "BiomedCLIP: a multimodal biomedical foundation model pretrained from fifteen million scientific
image-text pairs", arXiv 2303.00915. The settings are those of the official ``open_clip_config.json``, but the text
model's own settings are read from this installation; open_clip would ask the hub for them even when the weights lie
on the disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from MedCLIPSAMLib.clip.checkpoint_layouts import read_checkpoint, to_open_clip
from MedCLIPSAMLib.clip.image_tower import ImageTower
from MedCLIPSAMLib.clip.open_clip_import import import_open_clip
from MedCLIPSAMLib.clip.open_clip_model import OpenClipModel
from MedCLIPSAMLib.clip.text_tower import BertTower
from MedCLIPSAMLib.clip.wordpiece import WordPiece
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.resources import resource_path

CONTEXT = 256


def model_config() -> dict[str, Any]:
    """Return the arguments of ``open_clip.CustomTextCLIP``; the text model's settings come from a local folder."""
    return {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": str(resource_path("MedCLIPSAM", "Models", "biomedbert", "config.json").parent),
            "hf_model_pretrained": False,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": CONTEXT,
        },
    }


def build_biomedclip(state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return the ``open_clip.CustomTextCLIP`` of BiomedCLIP on the CPU, in single precision.

    Args:
        state: Weights by their names in open_clip, all 351; taken over without a copy where they are in single
            precision. None leaves the random initial weights.

    Raises:
        InputError: A weight is missing, of another shape, or not BiomedCLIP's; or a package is not installed.
    """
    open_clip = import_open_clip("BiomedCLIP")
    with torch.random.fork_rng(devices=[]):
        model = open_clip.CustomTextCLIP(**model_config())
    if state is not None:
        load_strictly(model, state, "BiomedCLIP")
    return model


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Put weights in single precision into a module without a second copy of them.

    Raises:
        InputError: A weight is missing, too many, or of another shape.
    """
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise InputError(f"these are not the weights of {name}: {', '.join(map(str, odd[:4]))} is not a tensor.")
    try:
        single = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        module.load_state_dict(single, assign=True)
    except RuntimeError as error:
        details = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise InputError(f"these are not the weights of {name}: {details[:400]}") from error


def load_biomedclip(
    weights: Path, tokenizer: Path, device: str, precision: str = "float32", name: str = "BiomedCLIP"
) -> OpenClipModel:
    """Load BiomedCLIP.

    Args:
        weights: A checkpoint in one of the layouts of :mod:`MedCLIPSAMLib.clip.checkpoint_layouts`.
        tokenizer: BiomedBERT's tokenizer.json or vocab.txt.
        device: torch's name of it.
        precision: See :class:`OpenClipModel`.
        name: For results and messages.

    Raises:
        InputError: The files are not BiomedCLIP's, or a package is not installed.
    """
    tokens = WordPiece(tokenizer, CONTEXT)
    try:
        state, _ = to_open_clip(read_checkpoint(weights))
        model = build_biomedclip(state)
    except InputError as error:
        raise InputError(f"{weights}: {error}" if str(weights) not in str(error) else str(error)) from error
    rows = model.text.transformer.embeddings.word_embeddings.num_embeddings
    if tokens.size > rows:
        raise InputError(
            f"{tokenizer} has {tokens.size} tokens, but the text model knows {rows}: it is another model's."
        )
    scale = math.exp(float(model.logit_scale.detach()))
    return OpenClipModel(name, ImageTower(model.visual), BertTower(model.text, tokens), scale, device, precision)
