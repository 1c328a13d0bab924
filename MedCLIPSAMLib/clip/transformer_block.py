"""One transformer block for all CLIP towers, run on the weights that timm or open_clip hold.

timm and open_clip keep the same block (normalise, attend, add; normalise, perceptron, add) under different names. Here
it is computed in one way, which offers what the libraries do not: the block for the first token alone, and the
attention as a function of the normalised tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from MedCLIPSAMLib.errors import InputError


class TransformerBlock(nn.Module):
    """A pre-norm block on (B, N, C) tokens.

    The normalisations and the sums stay in single precision whatever the matrices are in, as in automatic mixed
    precision: the difference of a few bits in the sums is what M2IB's gradients live on.
    """

    def __init__(self, norm1: nn.Module, attention: nn.Module, norm2: nn.Module, mlp: nn.Module, heads: int):
        """Take over the parts of a block.

        Args:
            norm1, norm2: Before the attention and before the perceptron.
            attention: timm's ``Attention`` (``qkv``, ``proj``) or torch's ``MultiheadAttention`` (``in_proj_weight``).
            mlp: The perceptron.
            heads: Attention heads.
        """
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = norm1, attention, norm2, mlp
        self.heads = heads

    @classmethod
    def of(cls, block: nn.Module) -> TransformerBlock:
        """Return the block of timm's vision transformer or of open_clip's transformer, sharing its weights.

        Raises:
            InputError: The block does something that this one does not (normalised queries, layer scale, ...).
        """
        extras = ("ls1", "ls2", "ls_1", "ls_2", "drop_path1", "drop_path2")
        inner = ("q_norm", "k_norm", "norm")
        odd = [name for name in extras if not isinstance(getattr(block, name, nn.Identity()), nn.Identity)]
        odd += [name for name in inner if not isinstance(getattr(block.attn, name, nn.Identity()), nn.Identity)]
        if odd:
            raise InputError(f"a transformer block with {', '.join(odd)} is not supported.")
        if hasattr(block, "ln_1"):
            return cls(block.ln_1, block.attn, block.ln_2, block.mlp, block.attn.num_heads)
        return cls(block.norm1, block.attn, block.norm2, block.mlp, block.attn.num_heads)

    def forward(self, tokens: Tensor, causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C); ``causal`` lets each token see only itself and those before it."""
        tokens = tokens + self._attend(self.norm1(tokens), causal)
        return tokens + self.perceptron(tokens)

    def first_token(self, tokens: Tensor) -> Tensor:
        """Return the block's first token, (B, 1, C), without computing the others."""
        first = tokens[:, :1] + self.attend_first(self.norm1(tokens))
        return first + self.perceptron(first)

    def perceptron(self, tokens: Tensor) -> Tensor:
        """What the second half of the block adds to (B, N, C) tokens."""
        return self.mlp(self.norm2(tokens).to(self._weights()[0].dtype)).to(tokens.dtype)

    def attend_first(self, normalised: Tensor) -> Tensor:
        """Return what the attention adds to the first token, (B, 1, C), as a function of normalised (B, N, C) tokens.

        With one query the keys and values need not be made: q . (K x) = (K^T q) . x, and the mean of V x is V times
        the mean of x. The key's bias adds the same to every token's score, which the softmax does not see. That saves
        two matrix products over all N tokens.
        """
        weight, bias = self._weights()
        batch, _, width = normalised.shape
        inputs = normalised.to(weight.dtype)
        query_matrix, key_matrix, value_matrix = weight.unflatten(0, (3, self.heads, -1))
        query_bias, _, value_bias = bias.chunk(3)
        query = functional.linear(inputs[:, 0], query_matrix.flatten(0, 1), query_bias).unflatten(1, (self.heads, -1))
        query = query * query.shape[-1] ** -0.5
        # (heads, B, d) @ (heads, d, C), a matrix product for every head
        looked_for = (query.transpose(0, 1) @ key_matrix).transpose(0, 1)
        share = (looked_for @ inputs.transpose(1, 2)).float().softmax(dim=-1).to(weight.dtype)
        mean = share @ inputs
        value = (mean.transpose(0, 1) @ value_matrix.transpose(1, 2)).transpose(0, 1).reshape(batch, 1, width)
        return self._out(value + value_bias).to(normalised.dtype)

    def _attend(self, normalised: Tensor, causal: bool) -> Tensor:
        weight, bias = self._weights()
        joint = functional.linear(normalised.to(weight.dtype), weight, bias)
        query, key, value = joint.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self._out(mixed.transpose(1, 2).flatten(2)).to(normalised.dtype)

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Return the joint matrix of queries, keys and values, (3 C, C), and its bias, (3 C,)."""
        if isinstance(self.attention, nn.MultiheadAttention):
            return self.attention.in_proj_weight, self.attention.in_proj_bias
        return self.attention.qkv.weight, self.attention.qkv.bias

    def _out(self, mixed: Tensor) -> Tensor:
        out = self.attention.out_proj if isinstance(self.attention, nn.MultiheadAttention) else self.attention.proj
        return functional.linear(mixed, out.weight, out.bias)

    def set_precision(self, dtype: torch.dtype) -> None:
        """Keep the matrices in ``dtype``, the normalisations in single precision."""
        self.attention.to(dtype)
        self.mlp.to(dtype)
