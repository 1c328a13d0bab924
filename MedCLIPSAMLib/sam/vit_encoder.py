"""The ViT image encoder of the SAM family, with fused attention, in the precision of the device.

Kirillov et al., "Segment Anything", ICCV 2023; Li et al., "Exploring Plain Vision Transformer Backbones for Object
Detection", ECCV 2022; the adapter: Cheng et al., "SAM-Med2D", arXiv 2308.16184.

Written for inference from the published description. Attribute names follow the checkpoints, so that their state
dictionaries load strictly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from MedCLIPSAMLib.sam.tiny_vit import ChannelNorm

PATCH = 16
WINDOW = 14
CHANNELS = 256
BIAS_BYTES = 256 << 20
"""The most that the position bias of one attention may take at a time; for all heads of a ViT-H it is 1 GiB."""


@dataclass(frozen=True)
class VitShape:
    """Size of an encoder: its width, blocks, heads, and which blocks see the whole image and not a window."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


VIT_B = VitShape(768, 12, 12, (2, 5, 8, 11))
VIT_L = VitShape(1024, 24, 16, (5, 11, 17, 23))
VIT_H = VitShape(1280, 32, 16, (7, 15, 23, 31))


class Attention(nn.Module):
    """Self-attention over a grid, with a position bias that is the sum of one for the rows and one for the columns."""

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, S, C) to the same shape; B may be images or windows."""
        batch, side, _, width = x.shape
        qkv = self.qkv(x).view(batch, side * side, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # Contiguous, so that their sum is laid out as the kernels need it.
        grid = query.reshape(batch, self.heads, side, side, -1)
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, _by_distance(self.rel_pos_h, side)).flatten(2, 3).contiguous()
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, _by_distance(self.rel_pos_w, side)).flatten(2, 3).contiguous()
        # As an additive mask the bias lets the fused kernels run: no matrix of attention weights is ever stored.
        chunk = max(1, BIAS_BYTES // (batch * side**4 * x.element_size()))
        parts = []
        for start in range(0, self.heads, chunk):
            some = slice(start, start + chunk)
            bias = (rows[:, some, :, :, None] + columns[:, some, :, None, :]).flatten(3)
            parts.append(
                functional.scaled_dot_product_attention(query[:, some], key[:, some], value[:, some], attn_mask=bias)
            )
        merged = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return self.proj(merged.transpose(1, 2).reshape(batch, side, side, width))


def _by_distance(table: Tensor, side: int) -> Tensor:
    """Return the (side, side, C) entries of a (2 side - 1, C) table: query i and key j read entry i - j + side - 1."""
    index = torch.arange(side, device=table.device)
    return table[index[:, None] - index + side - 1]


class Mlp(nn.Module):
    """Two-layer perceptron."""

    def __init__(self, width: int):
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(functional.gelu(self.lin1(x)))


class Adapter(nn.Module):
    """SAM-Med2D's adapter: a gate for each channel, then features at half the resolution, added and normalised."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, width // 4, bias=False),
            nn.ReLU(),
            nn.Linear(width // 4, width, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, S, C) to the same shape, float32."""
        gated = self.channel(x.mean(dim=(1, 2)))[:, None, None] * x
        spatial = self.spatial(gated.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm((x + spatial).float())


class Block(nn.Module):
    """Attention within windows or over the whole grid (``window`` 0), then the perceptron."""

    def __init__(self, width: int, heads: int, side: int, window: int, adapter: bool):
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, window or side)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        if adapter:
            self.Adapter = Adapter(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, S, C) float32 to the same; the sum stays in float32, only what is added has the precision."""
        dtype = self.mlp.lin1.weight.dtype
        x = x + self._attend(self.norm1(x).to(dtype))
        normalised = self.norm2(x).to(dtype)
        x = x + self.mlp(normalised)
        return x + self.Adapter(normalised) if hasattr(self, "Adapter") else x

    def _attend(self, x: Tensor) -> Tensor:
        if not self.window:
            return self.attn(x)
        batch, side, _, width = x.shape
        padded = functional.pad(x, (0, 0, 0, -side % self.window, 0, -side % self.window))
        number = padded.shape[1] // self.window
        windows = padded.view(batch, number, self.window, number, self.window, width).transpose(2, 3)
        windows = self.attn(windows.reshape(-1, self.window, self.window, width))
        windows = windows.view(batch, number, number, self.window, self.window, width).transpose(2, 3)
        return windows.reshape(batch, *padded.shape[1:])[:, :side, :side]


class VitEncoder(nn.Module):
    """SAM's image encoder: (B, 3, S, S) float32 -> (B, 256, S / 16, S / 16) float32."""

    def __init__(self, shape: VitShape, image_size: int = 1024, adapter: bool = False):
        """Build the encoder with PyTorch's initial weights.

        Args:
            shape: See :class:`VitShape`.
            image_size: S, in pixels.
            adapter: Whether every block has SAM-Med2D's adapter.
        """
        super().__init__()
        side = image_size // PATCH
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, shape.width, PATCH, stride=PATCH)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, shape.width))
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, side, 0 if number in shape.global_blocks else WINDOW, adapter)
            for number in range(shape.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(shape.width, CHANNELS, 1, bias=False),
            ChannelNorm(CHANNELS),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
            ChannelNorm(CHANNELS),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed.proj(images).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))

    def cast(self, dtype: torch.dtype) -> VitEncoder:
        """Let the matrix products of the blocks run in ``dtype``; norms, sums, first and last layer stay in float32."""
        for block in self.blocks:
            block.attn.to(dtype)
            block.mlp.to(dtype)
            if hasattr(block, "Adapter"):
                block.Adapter.channel.to(dtype)
                block.Adapter.spatial.to(dtype)
        return self
