"""all-MiniLM-L6-v2 sentence embeddings with torch's own transformer layers.

Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; Wang et al., "MiniLM", NeurIPS 2020. A BERT layer is exactly
``nn.TransformerEncoderLayer`` with the normalisation after the residual and GELU, so the checkpoint's matrices are
loaded into that and neither transformers nor sentence-transformers is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, MAXIMUM_TOKENS = 384, 6, 12, 256
_BATCH = 64  # of 256 tokens each: 100 MB in the widest layer


class MiniLM(nn.Module):
    """Text -> unit vector of 384 dimensions: token mean of the last layer, as the original model card defines it."""

    def __init__(self, checkpoint: Path, tokenizer: Path):
        """Load ``model.safetensors`` and ``tokenizer.json``."""
        super().__init__()
        state = load_file(checkpoint)
        self.words = nn.Embedding.from_pretrained(state["embeddings.word_embeddings.weight"], freeze=True)
        position = state["embeddings.position_embeddings.weight"] + state["embeddings.token_type_embeddings.weight"][0]
        self.register_buffer("position", position)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.norm.load_state_dict({key: state[f"embeddings.LayerNorm.{key}"] for key in ("weight", "bias")})
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.layers.load_state_dict(_torch_names(state))
        self.eval().requires_grad_(False)
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer.enable_truncation(MAXIMUM_TOKENS)
        self.tokenizer.enable_padding()

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return unit vectors (N, 384) float32; of many texts, those of similar length share a batch."""
        texts = list(texts)
        if len(texts) <= _BATCH:
            return self._encode(texts)
        vectors = np.empty((len(texts), WIDTH), np.float32)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), _BATCH):
            some = order[start : start + _BATCH]
            vectors[some] = self._encode([texts[place] for place in some])
        return vectors

    @torch.inference_mode()
    def _encode(self, texts: list[str]) -> np.ndarray:
        encodings = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([encoding.ids for encoding in encodings], device=self.position.device)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], device=self.position.device)
        hidden = self.norm(self.words(ids) + self.position[: ids.shape[1]])
        # An additive mask keeps torch off its fused path, whose result depends on the padding.
        padding = torch.zeros(mask.shape, device=mask.device).masked_fill_(mask == 0, float("-inf"))
        hidden = self.layers(hidden, src_key_padding_mask=padding)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return nn.functional.normalize(mean, dim=-1).cpu().numpy()


def _torch_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the BERT encoder's entries to those of ``nn.TransformerEncoder``."""
    single = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    renamed = {}
    for layer in range(LAYERS):
        source, target = f"encoder.layer.{layer}.", f"layers.{layer}."
        for kind in ("weight", "bias"):
            parts = [state[f"{source}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            renamed[f"{target}self_attn.in_proj_{kind}"] = torch.cat(parts)
            for ours, theirs in single.items():
                renamed[f"{target}{ours}.{kind}"] = state[f"{source}{theirs}.{kind}"]
    return renamed
