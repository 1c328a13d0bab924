"""The image tower of a CLIP with a vision transformer: pixels -> tokens -> blocks -> a vector.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; Radford et al., "Learning Transferable Visual Models
From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from MedCLIPSAMLib.clip.transformer_block import TransformerBlock
from MedCLIPSAMLib.errors import InputError

GRADIENT_SCALE = 1024.0
"""In half precision the gradients on their way back are larger by this: float16 holds nothing below 6e-8."""


class ImageTower(nn.Module):
    """timm's or open_clip's vision transformer with a class token, cut open between its blocks; shares its weights.

    Attributes:
        blocks: The transformer blocks.
        size: Side of the square input in pixels.
        grid: Rows and columns of the patches.
    """

    def __init__(self, visual: nn.Module):
        """Take over ``visual``, the image tower of an open_clip model.

        Raises:
            InputError: It is not a vision transformer with a class token, learnt positions and plain blocks.
        """
        super().__init__()
        trunk = getattr(visual, "trunk", None)
        if trunk is not None:
            self._take_timm(visual, trunk)
        else:
            self._take_open_clip(visual)
        self._dtype = torch.float32

    def _take_timm(self, visual: nn.Module, trunk: nn.Module) -> None:
        if getattr(trunk, "cls_token", None) is None or trunk.pos_embed.shape[1] != 1 + trunk.patch_embed.num_patches:
            raise InputError(f"the image tower {type(trunk).__name__} is not a vision transformer with a class token.")
        self.patch, self.cls_token, self.position = trunk.patch_embed.proj, trunk.cls_token, trunk.pos_embed
        self.before, self.after, self.head = trunk.norm_pre, trunk.norm, visual.head
        self.blocks = nn.ModuleList(TransformerBlock.of(block) for block in trunk.blocks)
        self.size, self.grid = trunk.patch_embed.img_size[0], tuple(trunk.patch_embed.grid_size)

    def _take_open_clip(self, visual: nn.Module) -> None:
        if not hasattr(visual, "class_embedding") or visual.attn_pool is not None or visual.pool_type != "tok":
            raise InputError(f"the image tower {type(visual).__name__} is not a vision transformer with a class token.")
        self.patch, self.cls_token, self.position = visual.conv1, visual.class_embedding, visual.positional_embedding
        self.before, self.after, self.head = visual.ln_pre, visual.ln_post, _Projection(visual.proj)
        self.blocks = nn.ModuleList(TransformerBlock.of(block) for block in visual.transformer.resblocks)
        self.size, self.grid = visual.image_size[0], tuple(visual.grid_size)

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) normalised pixels -> (B, 1 + rows * columns, C) tokens before the first block."""
        patches = self.patch(pixels.to(self._dtype)).flatten(2).transpose(1, 2).float()
        first = self.cls_token.float().reshape(1, 1, -1).expand(len(patches), -1, -1)
        return self.before(torch.cat([first, patches], dim=1) + self.position.float())

    def run(self, tokens: Tensor, first: int, last: int) -> Tensor:
        """Run the blocks from ``first`` up to and without ``last`` on (B, N, C) tokens."""
        for block in self.blocks[first:last]:
            tokens = block(tokens)
        return tokens

    def vectors(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Run the blocks from ``first`` on, the last one for the class token alone: unit vectors (B, D)."""
        half = self._dtype == torch.float16
        if half:
            tokens = _ScaledGradient.apply(tokens, 1 / GRADIENT_SCALE)
        if first < len(self.blocks):
            tokens = self.blocks[-1].first_token(self.run(tokens, first, len(self.blocks) - 1))
        vectors = self.project(tokens)
        return _ScaledGradient.apply(vectors, GRADIENT_SCALE) if half else vectors

    def project(self, tokens: Tensor) -> Tensor:
        """(B, N, C) tokens after the last block, the class token first -> unit vectors (B, D) float32."""
        vector = self.head(self.after(tokens[:, 0]).to(self._dtype))
        return functional.normalize(vector.float(), dim=-1)

    def set_precision(self, dtype: torch.dtype) -> None:
        """Keep the matrices in ``dtype``; the tokens, their sums and normalisations stay in single precision."""
        self._dtype = dtype
        self.patch.to(dtype)
        self.head.to(dtype)
        for block in self.blocks:
            block.set_precision(dtype)


class _Projection(nn.Module):
    """open_clip's projection, a bare matrix, as a module."""

    def __init__(self, matrix: nn.Parameter):
        super().__init__()
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class _ScaledGradient(torch.autograd.Function):
    """Passes a tensor on, and its gradient back times a factor."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.factor, None
