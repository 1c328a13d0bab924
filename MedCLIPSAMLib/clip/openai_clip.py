"""OpenAI's CLIP ViT-B/16, the general model that BiomedCLIP is compared with.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from MedCLIPSAMLib.clip.biomedclip import load_strictly
from MedCLIPSAMLib.clip.checkpoint_layouts import read_checkpoint
from MedCLIPSAMLib.clip.image_tower import ImageTower
from MedCLIPSAMLib.clip.open_clip_import import import_open_clip
from MedCLIPSAMLib.clip.open_clip_model import OpenClipModel
from MedCLIPSAMLib.clip.text_tower import ClipTextTower
from MedCLIPSAMLib.clip.torchscript_archive import is_torchscript, read_torchscript
from MedCLIPSAMLib.errors import InputError

_CONFIG = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


def load_openai_clip(weights: Path, device: str, precision: str = "float32") -> OpenClipModel:
    """Load CLIP ViT-B/16.

    Args:
        weights: OpenAI's ``ViT-B-16.pt`` (a TorchScript archive, of which the weights alone are read), or
            the same weights by their names in open_clip, as safetensors or ``.bin``.
        device: torch's name of it.
        precision: See :class:`OpenClipModel`.

    Raises:
        InputError: The file is not CLIP ViT-B/16, or a package is not installed.
    """
    name = "CLIP ViT-B/16"
    open_clip = import_open_clip(name)
    state = read_torchscript(weights) if is_torchscript(weights) else read_checkpoint(weights)
    with torch.random.fork_rng(devices=[]):
        model = open_clip.CLIP(**_CONFIG)
    # The archive also holds the attention mask and some sizes, which the model makes itself.
    known = model.state_dict()
    try:
        load_strictly(model, {key: value for key, value in state.items() if key in known}, name)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from error
    scale = math.exp(float(model.logit_scale.detach()))
    return OpenClipModel(name, ImageTower(model.visual), ClipTextTower(model), scale, device, precision)
