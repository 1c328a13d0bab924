"""OpenAI's CLIP ViT-B/16, the general model that BiomedCLIP is compared with.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from MedCLIPSAMLib.clip.biomedclip import load_strictly
from MedCLIPSAMLib.clip.checkpoint_layouts import read_checkpoint, unwrapped
from MedCLIPSAMLib.clip.image_tower import ImageTower
from MedCLIPSAMLib.clip.open_clip_import import import_open_clip
from MedCLIPSAMLib.clip.open_clip_model import OpenClipModel
from MedCLIPSAMLib.clip.text_tower import ClipTextTower
from MedCLIPSAMLib.clip.torchscript_archive import is_torchscript, read_torchscript
from MedCLIPSAMLib.errors import InputError

NAME = "CLIP ViT-B/16"
CONFIG: dict[str, Any] = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
"""The arguments of ``open_clip.CLIP``."""


def read_openai_clip(weights: Path) -> nn.Module:
    """Return the ``open_clip.CLIP`` of a file on the CPU, in single precision; its weights are the file's own.

    Args:
        weights: OpenAI's ``ViT-B-16.pt`` (a TorchScript archive, of which the weights alone are read), the same weights
            by their names in open_clip, as safetensors or ``.bin``, or a training checkpoint with them.

    Raises:
        InputError: The file is not CLIP ViT-B/16, or a package is not installed.
    """
    open_clip = import_open_clip(NAME)
    state = read_torchscript(weights) if is_torchscript(weights) else unwrapped(read_checkpoint(weights))[0]
    with torch.random.fork_rng(devices=[]):
        model = open_clip.CLIP(**CONFIG)
    # The archive also holds the attention mask and some sizes, which the model makes itself.
    known = model.state_dict()
    try:
        load_strictly(model, {key: value for key, value in state.items() if key in known}, NAME)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from error
    return model


def load_openai_clip(weights: Path, device: str, precision: str = "float32", name: str = NAME) -> OpenClipModel:
    """Load CLIP ViT-B/16, pre-trained or fine-tuned.

    Args:
        weights: See :func:`read_openai_clip`.
        device: torch's name of it.
        precision: See :class:`OpenClipModel`.
        name: For results and messages.

    Raises:
        InputError: See :func:`read_openai_clip`.
    """
    model = read_openai_clip(weights)
    scale = math.exp(float(model.logit_scale.detach()))
    return OpenClipModel(name, ImageTower(model.visual), ClipTextTower(model), scale, device, precision)
