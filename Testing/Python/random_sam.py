"""Models of the SAM family with random weights, built with segment_anything alone, as the reference for ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MedCLIPSAMLib.sam.vit_encoder import VIT_B, VitShape
from MedCLIPSAMLib.torchvision_import import ensure_torchvision

TINY = VitShape(width=32, depth=3, heads=2, global_blocks=(1,))


def random_sam(shape: VitShape = VIT_B, image_size: int = 1024, seed: int = 0) -> nn.Module:
    """Return segment_anything's own model; its masks are meaningless, but vary with the image and the prompt."""
    ensure_torchvision()
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    side = image_size // 16
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        sam = Sam(
            ImageEncoderViT(
                img_size=image_size,
                embed_dim=shape.width,
                depth=shape.depth,
                num_heads=shape.heads,
                norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
                use_rel_pos=True,
                window_size=14,
                global_attn_indexes=shape.global_blocks,
            ),
            PromptEncoder(256, (side, side), (image_size, image_size), 16),
            MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
        )
        randomise(sam)
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(8)  # logits of the usual size
    return sam.eval().requires_grad_(False)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Draw all weights anew, also those that begin as zeros, so that every one of them counts."""
    for part in module.modules():
        is_norm = "Norm" in type(part).__name__
        for key, value in part.named_parameters(recurse=False):
            if key == "weight" and is_norm:
                mean, deviation = 1.0, 0.1
            elif key in ("weight", "pos_embed") and value.ndim > 1:
                fan_in = value[0].numel()
                mean, deviation = 0.0, 0.5 if isinstance(part, nn.Embedding) or key == "pos_embed" else fan_in**-0.5
            else:
                mean, deviation = 0.0, 0.1
            value.normal_(mean, deviation)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights, as a checkpoint would give them."""
    return {key: value.clone() for key, value in module.state_dict().items()}
