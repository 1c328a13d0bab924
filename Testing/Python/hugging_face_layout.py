"""BiomedCLIP's weights in the authors' Hugging Face layout, written from their names and not from ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor


def hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """351 tensors by their names in open_clip -> 399 by theirs."""
    result = {}
    layer = r"(visual\.trunk\.blocks|text\.transformer\.encoder\.layer)\.(\d+)\.(.*)\.(weight|bias)"
    inner = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "attention.self.query": "self_attn.q_proj",
        "attention.self.key": "self_attn.k_proj",
        "attention.self.value": "self_attn.v_proj",
        "attention.output.dense": "self_attn.out_proj",
        "attention.output.LayerNorm": "layer_norm1",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.LayerNorm": "layer_norm2",
    }
    single = {
        "visual.trunk.cls_token": "vision_model.embeddings.class_embedding",
        "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
        "visual.trunk.patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.trunk.patch_embed.proj.bias": "vision_model.embeddings.patch_embedding.bias",
        "visual.trunk.norm.weight": "vision_model.post_layernorm.weight",
        "visual.trunk.norm.bias": "vision_model.post_layernorm.bias",
        "visual.head.proj.weight": "visual_projection.weight",
        "text.transformer.embeddings.word_embeddings.weight": "text_model.embeddings.token_embedding.weight",
        "text.transformer.embeddings.position_embeddings.weight": "text_model.embeddings.position_embedding.weight",
        "text.transformer.embeddings.token_type_embeddings.weight": "text_model.embeddings.token_type_embedding.weight",
        "text.transformer.embeddings.LayerNorm.weight": "text_model.embeddings.layer_norm.weight",
        "text.transformer.embeddings.LayerNorm.bias": "text_model.embeddings.layer_norm.bias",
        "text.proj.0.weight": "text_projection.fc1.weight",
        "text.proj.2.weight": "text_projection.fc2.weight",
        "logit_scale": "logit_scale",
    }
    for name, value in state.items():
        found = re.fullmatch(layer, name)
        if not found:
            result[single[name]] = value.squeeze() if name.endswith(("cls_token", "pos_embed")) else value
            continue
        place = f"{'vision' if found[1].startswith('visual') else 'text'}_model.encoder.layers.{found[2]}"
        if found[3] == "attn.qkv":
            for part, rows in zip("qkv", (slice(768), slice(768, 1536), slice(1536, None)), strict=True):
                result[f"{place}.self_attn.{part}_proj.{found[4]}"] = value[rows].clone()
        else:
            result[f"{place}.{inner[found[3]]}.{found[4]}"] = value
    return result
