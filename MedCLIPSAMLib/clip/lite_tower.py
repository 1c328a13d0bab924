"""The trainable part of the lite engine: a small image tower on LiteMedSAM's frozen features, and a text projection.

The image tower reads the frozen encoder's features on a 32 x 32 grid. A transformer with a CLS token works on the
16 x 16 means; its output, brought back to 32 x 32 and mixed with the fine features, gives one vector per patch.
Training replaces coarse tokens by noise (M2IB's bottleneck does the same), so a noisy token carries no information.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

FEATURES, FINE, COARSE = 736, 32, 16
TEXT_WIDTH = 384


class MixBlock(nn.Module):
    """Depthwise convolution and a perceptron with a residual (ConvNeXt; Liu et al., CVPR 2022)."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.project = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        y = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.project(functional.gelu(self.expand(self.norm(y))))


class LiteTower(nn.Module):
    """Image tower and projections; everything of the lite engine that this project trains."""

    def __init__(self, width: int = 192, depth: int = 4, heads: int = 6, dimension: int = 256, dropout: float = 0.0):
        """Build an untrained tower.

        Args:
            width: Channels of the tokens.
            depth: Transformer blocks on the 16 x 16 grid.
            heads: Attention heads.
            dimension: Of the common image-text space.
            dropout: In the transformer blocks, while training.
        """
        super().__init__()
        self.settings = {"width": width, "depth": depth, "heads": heads, "dimension": dimension}
        self.register_buffer("feature_mean", torch.zeros(FEATURES))
        self.register_buffer("feature_scale", torch.ones(FEATURES))
        self.embed = nn.Linear(FEATURES, width)
        self.row = nn.Parameter(torch.randn(COARSE, 1, width) * 0.02)
        self.column = nn.Parameter(torch.randn(1, COARSE, width) * 0.02)
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        for block in self.blocks:
            block.self_attn.dropout = 0.0  # torch's fast attention on CPUs knows no dropout
        self.image_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dimension))
        self.fine = nn.Linear(FEATURES, width)
        self.mix = nn.ModuleList(MixBlock(width) for _ in range(2))
        self.patch_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dimension))
        self.text_head = nn.Sequential(
            nn.Linear(TEXT_WIDTH, 2 * dimension), nn.GELU(), nn.Linear(2 * dimension, dimension)
        )
        # The vector that texts naming none of the learnt targets are drawn to.
        self.absent = nn.Parameter(torch.randn(dimension))

    def normalise(self, features: Tensor) -> Tensor:
        """Standardise (B, 1024, 736) encoder features with the training set's statistics."""
        return (features - self.feature_mean) * self.feature_scale

    def coarse_tokens(self, features: Tensor) -> Tensor:
        """(B, 1024, 736) normalised features -> (B, 256, width) tokens of unit variance, without position."""
        grid = features.unflatten(1, (FINE, FINE))
        pooled = grid.unflatten(1, (COARSE, 2)).unflatten(3, (COARSE, 2)).mean(dim=(2, 4)).flatten(1, 2)
        tokens = self.embed(pooled)
        return functional.layer_norm(tokens, tokens.shape[-1:])

    def with_position(self, tokens: Tensor) -> Tensor:
        """Add the positions and put the CLS token in front: (B, 257, width)."""
        position = (self.row + self.column).flatten(0, 1)
        return torch.cat([self.cls.expand(len(tokens), -1, -1), tokens + position], dim=1)

    def transform(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Run the transformer blocks from ``first`` on (B, 257, width)."""
        for block in self.blocks[first:]:
            tokens = block(tokens)
        return tokens

    def image_vectors(self, tokens: Tensor) -> Tensor:
        """Transformed tokens (B, 257, width) -> unit vectors (B, dimension) from the CLS token."""
        return functional.normalize(self.image_head(tokens[:, 0]), dim=-1)

    def patch_vectors(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Normalised features and transformed tokens -> unit vectors (B, 32, 32, dimension)."""
        context = tokens[:, 1:].unflatten(1, (COARSE, COARSE)).permute(0, 3, 1, 2)
        context = functional.interpolate(context, scale_factor=FINE // COARSE, mode="bilinear", align_corners=False)
        grid = self.fine(features).unflatten(1, (FINE, FINE)) + context.permute(0, 2, 3, 1)
        for block in self.mix:
            grid = block(grid)
        return functional.normalize(self.patch_head(grid), dim=-1)

    def text_vectors(self, embeddings: Tensor) -> Tensor:
        """MiniLM embeddings (N, 384) -> unit vectors (N, dimension)."""
        return functional.normalize(self.text_head(embeddings), dim=-1)
