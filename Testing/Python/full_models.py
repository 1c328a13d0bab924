"""Full-size CLIP models with random weights, written as the official files: names, layouts, key names, sizes.

They are built with the original libraries alone, and nothing of MedCLIPSAMLib's model code, so that they can serve as
the reference for it. Nothing here is a fixture: call what you need. :func:`biomedclip_files` and
:func:`biomedclip_model` keep their result for the whole session.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from MedCLIPSAMLib.torchvision_import import ensure_torchvision

if TYPE_CHECKING:
    from MedCLIPSAMLib.clip.base import VisionLanguageModel

WORDS = ("breast", "tumor", "tumour", "ultrasound", "brain", "mri", "chest", "ray", "ct", "lung", "image", "dark", "of")
BERT = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
BIOMEDCLIP = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": {
        "hf_model_name": "",
        "hf_model_pretrained": False,
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}
CLIP_VIT_B_16 = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


def random_state(shapes: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of the given shapes whose activations neither vanish nor explode, with no bias at 0 or scale at 1.

    A library's own initialisation leaves biases at 0 and normalisations at 1, so a loader could mix them up unseen.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, like in shapes.items():
        value = torch.randn(like.shape, generator=generator)
        if "logit_scale" in name:
            value = torch.tensor(4.4454).expand(like.shape).clone()
        elif name.endswith("num_batches_tracked"):
            value = torch.zeros(like.shape, dtype=torch.long)
        elif name.endswith("running_var"):
            value = 1 + 0.1 * value.abs()
        elif "embed" in name or name.endswith("cls_token"):
            value *= 0.5
        elif like.ndim >= 2:
            value *= like[0].numel() ** -0.5
        elif name.endswith("weight"):
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        state[name] = value
    return state


def official_biomedclip(state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """open_clip's own BiomedCLIP in eval mode with the weights of ``state``; without, on the meta device."""
    open_clip = _open_clip()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(BERT))
        config = {**BIOMEDCLIP, "text_cfg": {**BIOMEDCLIP["text_cfg"], "hf_model_name": folder}}
        with torch.random.fork_rng(devices=[]), torch.device("meta" if state is None else "cpu"):
            model = open_clip.CustomTextCLIP(**config)
    return _filled(model, state)


def official_clip(state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """open_clip's own model of OpenAI's ViT-B/16; see :func:`official_biomedclip`."""
    open_clip = _open_clip()
    with torch.random.fork_rng(devices=[]), torch.device("meta" if state is None else "cpu"):
        model = open_clip.CLIP(**CLIP_VIT_B_16)
    return _filled(model, state)


def random_biomedclip(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write BiomedCLIP and its tokenizer under ``folder`` as the hub names them; return the files by registry name."""
    files = {
        "biomedclip": folder / "biomedclip" / "open_clip_pytorch_model.bin",
        "biomedclip-tokenizer": folder / "biomedclip" / "tokenizer.json",
    }
    files["biomedclip"].parent.mkdir(parents=True, exist_ok=True)
    torch.save(random_state(official_biomedclip().state_dict(), seed), files["biomedclip"])
    toy_tokenizer(files["biomedclip-tokenizer"])
    return files


def random_clip(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write ViT-B-16.pt under ``folder``: a TorchScript archive in half precision, as OpenAI publishes it."""
    state = random_state(official_clip().state_dict(), seed)
    state = {name: value.half() if value.ndim else value for name, value in state.items()}
    sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    state |= {name: torch.tensor(value) for name, value in sizes.items()}
    file = folder / "clip" / "ViT-B-16.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(_tree(state)).save(str(file))
    return {"clip-vit-b-16": file}


def random_pmc_clip(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write PMC-CLIP's three files and the tokenizer under ``folder``."""
    _open_clip()
    from open_clip.modified_resnet import ModifiedResNet
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        image = ModifiedResNet([3, 4, 6, 3], output_dim=768, heads=8, image_size=224, width=64).state_dict()
        text = BertModel(BertConfig(**{k: v for k, v in BERT.items() if k != "model_type"})).state_dict()
    home, tokenizer = folder / "pmc-clip", folder / "biomedclip" / "tokenizer.json"
    for place in (home, tokenizer.parent):
        place.mkdir(parents=True, exist_ok=True)
    parts = {
        "image_encoder(resnet50).pth": random_state(image, seed),
        "text_encoder.pth": random_state(text, seed + 1),
        "text_projection_layer.pth": random_state({"weight": torch.empty(768, 768)}, seed + 2)["weight"],
    }
    for name, content in parts.items():
        torch.save(content, home / name)
    toy_tokenizer(tokenizer)
    image_file, text_file, projection = (home / name for name in parts)
    return {
        "pmc-clip-image": image_file,
        "pmc-clip-text": text_file,
        "pmc-clip-projection": projection,
        "biomedclip-tokenizer": tokenizer,
    }


def toy_vocabulary() -> list[str]:
    """A small vocabulary whose first five entries are those of BiomedBERT's: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*letters, *(f"##{letter}" for letter in letters), *".,:;-()/'\""]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *WORDS]


def toy_tokenizer(path: Path) -> None:
    """Write a tokenizer.json that is BiomedBERT's in all but the vocabulary, its padding to 256 included."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(toy_vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=256)
    tokenizer.save(str(path))


@lru_cache(maxsize=1)
def biomedclip_files() -> dict[str, Path]:
    """:func:`random_biomedclip` in a folder that lives as long as this process; 784 MB."""
    folder = Path(tempfile.mkdtemp(prefix="full-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return random_biomedclip(folder)


@lru_cache(maxsize=1)
def biomedclip_model() -> VisionLanguageModel:
    """The model of :func:`biomedclip_files` behind our interface, on the CPU; shared, so leave its attributes alone."""
    from MedCLIPSAMLib.clip.registry import load_clip

    return load_clip("biomedclip", biomedclip_files(), "cpu", "float32")


def _open_clip() -> Any:
    ensure_torchvision()
    import open_clip

    return open_clip


def _filled(model: nn.Module, state: Mapping[str, Tensor] | None) -> nn.Module:
    if state is not None:
        model.load_state_dict(dict(state), assign=True)
    return model.eval().requires_grad_(False)


class _Branch(nn.Module):
    """A module that does nothing; it carries parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _tree(state: Mapping[str, Tensor]) -> nn.Module:
    """Modules whose state dict is ``state``."""
    root = _Branch()
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for step in path:
            if not hasattr(module, step):
                module.add_module(step, _Branch())
            module = getattr(module, step)
        if value.is_floating_point():
            module.register_parameter(last, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(last, value)
    return root
