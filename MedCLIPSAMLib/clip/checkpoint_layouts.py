"""The three layouts in which BiomedCLIP's weights are passed around, and the way between them, bit by bit.

open_clip: ``visual.trunk...``, ``text.transformer...``, 351 tensors; what Microsoft publishes.
training checkpoint: the same in an entry ``state_dict``, each name with ``module.`` or ``model.`` in front.
Hugging Face: ``vision_model...``, ``text_model...``, 399 tensors, for queries, keys and values lie apart; what the
authors of MedCLIP-SAMv2 publish as ``pytorch_model.bin``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from MedCLIPSAMLib.checkpoint_file import read_checkpoint_file
from MedCLIPSAMLib.errors import InputError

OPEN_CLIP, TRAINING, HUGGING_FACE = "open_clip", "training checkpoint", "Hugging Face"
_PREFIXES = ("module.", "model.", "_orig_mod.")
_PARTS = ("q_proj", "k_proj", "v_proj")

# (open_clip, Hugging Face); "#" is a layer's number, and what follows the last name is the same in both.
_NAMES = (
    ("visual.trunk.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual.trunk.pos_embed", "vision_model.embeddings.position_embedding.weight"),
    ("visual.trunk.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual.trunk.blocks.#.norm1.", "vision_model.encoder.layers.#.layer_norm1."),
    ("visual.trunk.blocks.#.norm2.", "vision_model.encoder.layers.#.layer_norm2."),
    ("visual.trunk.blocks.#.attn.qkv.", "vision_model.encoder.layers.#.self_attn.qkv."),
    ("visual.trunk.blocks.#.attn.proj.", "vision_model.encoder.layers.#.self_attn.out_proj."),
    ("visual.trunk.blocks.#.mlp.", "vision_model.encoder.layers.#.mlp."),
    ("visual.trunk.norm.", "vision_model.post_layernorm."),
    ("visual.head.proj.", "visual_projection."),
    ("text.transformer.embeddings.word_embeddings.", "text_model.embeddings.token_embedding."),
    ("text.transformer.embeddings.position_embeddings.", "text_model.embeddings.position_embedding."),
    ("text.transformer.embeddings.token_type_embeddings.", "text_model.embeddings.token_type_embedding."),
    ("text.transformer.embeddings.LayerNorm.", "text_model.embeddings.layer_norm."),
    ("text.transformer.encoder.layer.#.attention.self.query.", "text_model.encoder.layers.#.self_attn.q_proj."),
    ("text.transformer.encoder.layer.#.attention.self.key.", "text_model.encoder.layers.#.self_attn.k_proj."),
    ("text.transformer.encoder.layer.#.attention.self.value.", "text_model.encoder.layers.#.self_attn.v_proj."),
    ("text.transformer.encoder.layer.#.attention.output.dense.", "text_model.encoder.layers.#.self_attn.out_proj."),
    ("text.transformer.encoder.layer.#.attention.output.LayerNorm.", "text_model.encoder.layers.#.layer_norm1."),
    ("text.transformer.encoder.layer.#.intermediate.dense.", "text_model.encoder.layers.#.mlp.fc1."),
    ("text.transformer.encoder.layer.#.output.dense.", "text_model.encoder.layers.#.mlp.fc2."),
    ("text.transformer.encoder.layer.#.output.LayerNorm.", "text_model.encoder.layers.#.layer_norm2."),
    ("text.proj.0.", "text_projection.fc1."),
    ("text.proj.2.", "text_projection.fc2."),
    ("logit_scale", "logit_scale"),
)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read named weights without running any code that the file may hold.

    Raises:
        InputError: See :func:`read_safely`, or the file holds something else.
    """
    content = read_safely(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__} and not named weights.")
    return dict(content)


def read_safely(path: Path) -> Any:
    """Return what a file holds, see :func:`MedCLIPSAMLib.checkpoint_file.read_checkpoint_file`.

    Raises:
        InputError: It is damaged, or holds more than numbers.
    """
    return read_checkpoint_file(path)


def to_open_clip(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Return BiomedCLIP's weights by their names in open_clip, and the layout that they were in.

    Args:
        state: What a checkpoint holds, see :func:`read_checkpoint`.

    Returns:
        The same tensors (views of them, or for joined queries, keys and values copies), and "open_clip",
        "training checkpoint" or "Hugging Face".

    Raises:
        InputError: None of the three; the message says what was found.
    """
    state, wrapped = unwrapped(state)
    # Buffers that older versions of transformers saved; they hold 0, 1, 2, ...
    state = {key: value for key, value in state.items() if not str(key).endswith(".position_ids")}
    if any(key.startswith("vision_model.") for key in state):
        return _from_hugging_face(state), HUGGING_FACE
    if "visual.trunk.cls_token" in state and any(key.startswith("text.transformer.") for key in state):
        return state, TRAINING if wrapped else OPEN_CLIP
    raise InputError(_unknown(state))


def unwrapped(state: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the weights of a training checkpoint by the model's own names, and whether there was anything around them.

    Args:
        state: What a checkpoint holds: named weights, or with them in the entry ``state_dict``, each name perhaps with
            ``module.``, ``model.`` or ``_orig_mod.`` in front.
    """
    nested = isinstance(state.get("state_dict"), Mapping)
    state = dict(state["state_dict"] if nested else state)
    prefixed = False
    while prefix := next((p for p in _PREFIXES if state and all(str(key).startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        prefixed = True
    return state, nested or prefixed


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return BiomedCLIP's weights by their names in the authors' Hugging Face layout: 399 tensors, bit by bit the same.

    Args:
        state: By their names in open_clip, 351 tensors.

    Raises:
        InputError: A name is not BiomedCLIP's.
    """
    result = {}
    for key, value in state.items():
        name = _renamed(key, 0, 1)
        if name is None:
            raise InputError(f"{key} is not a weight of BiomedCLIP in open_clip's layout.")
        if ".qkv." in name:
            for part, third in zip(_PARTS, value.chunk(3), strict=True):
                result[name.replace("qkv", part)] = third.contiguous()
        elif key == "visual.trunk.cls_token":
            result[name] = value[0, 0]
        else:
            result[name] = value[0] if key == "visual.trunk.pos_embed" else value
    return result


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    joined = dict(state)
    for key in [key for key in state if key.startswith("vision_model.") and ".q_proj." in key]:
        names = [key.replace("q_proj", part) for part in _PARTS]
        if all(name in joined for name in names):
            joined[key.replace("q_proj", "qkv")] = torch.cat([joined.pop(name) for name in names])
    result = {}
    for key, value in joined.items():
        name = _renamed(key, 1, 0)
        if name is None:
            raise InputError(
                f"{key} is not a weight of BiomedCLIP in the Hugging Face layout; is this another model's checkpoint?"
            )
        for _ in range({"visual.trunk.cls_token": 2, "visual.trunk.pos_embed": 1}.get(name, 0)):
            value = value.unsqueeze(0)
        result[name] = value
    return result


def _renamed(key: str, source: int, target: int) -> str | None:
    """Return a weight's name in the other layout (0 is open_clip, 1 Hugging Face), None if it has none."""
    number = re.search(r"\.(\d+)\.", key) if ".blocks." in key or ".layer" in key else None
    general = key[: number.start(1)] + "#" + key[number.end(1) :] if number else key
    for pair in _NAMES:
        if general == pair[source] or (pair[source].endswith(".") and general.startswith(pair[source])):
            name = pair[target] + general[len(pair[source]) :]
            return name.replace("#", number[1]) if number else name
    return None


def _unknown(state: Mapping[str, Any]) -> str:
    names = ", ".join(sorted(map(str, state))[:4]) or "nothing"
    return (
        f"these are not BiomedCLIP's weights: {len(state)} entries ({names}{', ...' if len(state) > 4 else ''}). Known "
        "are open_clip's layout (visual.trunk..., text.transformer...), a training checkpoint with it in 'state_dict', "
        "and the Hugging Face layout (vision_model..., text_model...)."
    )
