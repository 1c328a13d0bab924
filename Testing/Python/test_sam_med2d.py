"""SAM-Med2D with random weights against its steps, written out on segment_anything's own layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from random_sam import TINY, random_sam, randomise, state_of
from torch import Tensor, nn
from torch.nn import functional

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.results import VisualPrompts
from MedCLIPSAMLib.sam import sam_med2d
from MedCLIPSAMLib.sam.embedding_cache import EmbeddingCache
from MedCLIPSAMLib.sam.registry import load_segmenter
from MedCLIPSAMLib.sam.sam_med2d import SamMed2D, nearest
from MedCLIPSAMLib.sam.vit_encoder import VIT_B, VitEncoder

ADAPTER = {
    "norm.weight": (768,),
    "norm.bias": (768,),
    "channel.0.weight": (192, 768),
    "channel.2.weight": (768, 192),
    "spatial.0.weight": (768, 768, 3, 3),
    "spatial.2.weight": (768, 768, 4, 4),
}


@pytest.fixture(scope="module")
def original():
    """segment_anything's model at 256 x 256, with weights for the adapters of its blocks."""
    sam = random_sam(TINY, 256)
    width = TINY.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for block in sam.image_encoder.blocks:
            adapter = nn.ParameterDict(
                {
                    "norm:weight": nn.Parameter(torch.rand(width) + 0.5),
                    "norm:bias": nn.Parameter(torch.randn(width) * 0.1),
                    "channel:0:weight": nn.Parameter(torch.randn(width // 4, width) * 0.3),
                    "channel:2:weight": nn.Parameter(torch.randn(width, width // 4) * 0.3),
                    "spatial:0:weight": nn.Parameter(torch.randn(width, width, 3, 3) * 0.1),
                    "spatial:2:weight": nn.Parameter(torch.randn(width, width, 4, 4) * 0.1),
                }
            )
            block.Adapter = adapter.requires_grad_(False)
    return sam


def checkpoint(original) -> dict[str, Tensor]:
    return {key.replace(":", "."): value for key, value in state_of(original).items()}


def adapted(x: Tensor, weights: nn.ParameterDict) -> Tensor:
    """The adapter, step by step, on (B, S, S, C)."""
    x = x.permute(0, 3, 1, 2)
    squeezed = functional.adaptive_avg_pool2d(x, 1).flatten(1)
    hidden = torch.relu(functional.linear(squeezed, weights["channel:0:weight"]))
    gate = torch.sigmoid(functional.linear(hidden, weights["channel:2:weight"]))
    down = torch.relu(functional.conv2d(gate[..., None, None] * x, weights["spatial:0:weight"], stride=2, padding=1))
    up = torch.relu(functional.conv_transpose2d(down, weights["spatial:2:weight"], stride=2, padding=1))
    total = (x + up).permute(0, 2, 3, 1)
    return functional.layer_norm(total, total.shape[-1:], weights["norm:weight"], weights["norm:bias"], 1e-5)


def encode(encoder: nn.Module, images: Tensor) -> Tensor:
    from segment_anything.modeling.image_encoder import window_partition, window_unpartition

    x = encoder.patch_embed(images) + encoder.pos_embed
    for block in encoder.blocks:
        y = block.norm1(x)
        if block.window_size:
            windows, padded = window_partition(y, block.window_size)
            y = window_unpartition(block.attn(windows), block.window_size, padded, x.shape[1:3])
        else:
            y = block.attn(y)
        x = x + y
        y = block.norm2(x)
        x = x + block.mlp(y) + adapted(y, block.Adapter)
    return encoder.neck(x.permute(0, 3, 1, 2))


def model_of(original) -> SamMed2D:
    return SamMed2D(checkpoint(original), TINY, identity="test", cache=EmbeddingCache(limit=0))


def prompts_on(shape: tuple[int, ...]) -> VisualPrompts:
    rng = np.random.default_rng(1)
    size = np.array([shape[1], shape[0]], np.float32)
    boxes = (np.sort(rng.uniform(0, 1, (3, 2, 2)), axis=1) * size).reshape(-1, 4).astype(np.float32)
    points = (rng.uniform(0, 1, (3, 2, 2)) * size).astype(np.float32)
    return VisualPrompts(boxes, points, np.tile(np.array([1, 0], np.int32), (3, 1)))


@pytest.mark.parametrize("shape", [(150, 210), (300, 199, 3), (600, 700)])
def test_all_steps_equal_the_official_ones(original, shape):
    """Colours, nearest neighbours, the adapters, per-axis prompts, the best of three masks, two interpolations."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    height, width = shape[:2]
    colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    normal = (colour - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    rows = [min(int(row * (1 / (256 / height))), height - 1) for row in range(256)]
    columns = [min(int(column * (1 / (256 / width))), width - 1) for column in range(256)]
    squashed = torch.from_numpy(normal[rows][:, columns]).permute(2, 0, 1)[None]
    prompts = prompts_on(shape)
    scale = np.array([256 / width, 256 / height])
    box = torch.from_numpy((prompts.boxes.reshape(-1, 2, 2) * scale).reshape(-1, 4)).float()
    points = torch.from_numpy(prompts.points * scale).float(), torch.from_numpy(prompts.point_labels)
    model = model_of(original)
    model.set_image(image)
    with torch.inference_mode():
        embedding = encode(original.image_encoder, squashed)
        assert embedding.shape == (1, 256, 16, 16) and embedding.std() > 0.5
        torch.testing.assert_close(model._embedding, embedding, rtol=0, atol=1e-4)
        for boxes, some in ((box, None), (None, points), (box, points)):
            sparse, dense = original.prompt_encoder(points=some, boxes=boxes, masks=None)
            low, quality = original.mask_decoder(
                image_embeddings=embedding,
                image_pe=original.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            middle = functional.interpolate(low, (256, 256), mode="bilinear", align_corners=False)
            official = functional.interpolate(middle, (height, width), mode="bilinear", align_corners=False).numpy()
            asked = VisualPrompts(
                None if boxes is None else prompts.boxes,
                None if some is None else prompts.points,
                None if some is None else prompts.point_labels,
            )
            candidates, qualities = model.predict_candidates(asked)
            assert official.std() > 1
            np.testing.assert_allclose(candidates, official, rtol=0, atol=1e-4)
            np.testing.assert_allclose(qualities, quality.numpy(), rtol=0, atol=1e-4)
            logits, scores = model.predict(asked)
            best = quality.argmax(dim=1).tolist()
            np.testing.assert_allclose(logits, official[[0, 1, 2], best], rtol=0, atol=1e-4)
            np.testing.assert_allclose(scores, quality.amax(dim=1).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("source", [186, 198, 210, 256, 300, 420, 512, 17])
def test_nearest_neighbours_are_those_of_opencv(source):
    """The last digit of the step counts: where a pixel falls on an edge exactly, OpenCV may take the one before."""
    found = nearest(source, 256)
    exact = np.arange(256) * source // 256
    assert set(np.unique(exact - found)) <= {0, 1}
    before = {186: [128], 198: [128], 210: [128]}  # recorded from OpenCV 5.0
    if source in before:
        assert (exact - found)[before[source]].all()
    if source in (256, 300, 512, 17):
        np.testing.assert_array_equal(found, exact)


def test_entries_of_the_full_size_encoder():
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in VitEncoder(VIT_B, 256, adapter=True).state_dict().items()}
    for block in range(12):
        prefix = f"blocks.{block}.Adapter."
        assert {key.removeprefix(prefix): shapes[key] for key in shapes if key.startswith(prefix)} == ADAPTER
    assert shapes["pos_embed"] == (1, 16, 16, 768)
    assert shapes["blocks.2.attn.rel_pos_h"] == (31, 64) and shapes["blocks.0.attn.rel_pos_h"] == (27, 64)


@pytest.mark.slow
def test_the_full_size_model_runs():
    """All 270 million weights, once."""
    sam = random_sam(VIT_B, 256)
    with torch.device("meta"):
        encoder = VitEncoder(VIT_B, 256, adapter=True)
    encoder.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        randomise(encoder)
    state = {f"image_encoder.{key}": value for key, value in encoder.state_dict().items()}
    state |= {key: value for key, value in sam.state_dict().items() if not key.startswith("image_encoder.")}
    model = SamMed2D(state, identity="test", cache=EmbeddingCache(limit=0))
    image = np.random.default_rng(0).integers(0, 256, (150, 210), dtype=np.uint8)
    model.set_image(image)
    logits, scores = model.predict(prompts_on(image.shape))
    assert logits.shape == (3, 150, 210) and np.isfinite(logits).all() and np.isfinite(scores).all()
    assert logits.std() > 0.1


class Other:
    """Any class that a checkpoint has no business with."""


def test_the_official_file_with_its_optimiser(original, tmp_path: Path, monkeypatch):
    """The program that made it saves {"model": weights, "optimizer": the torch.optim.Adam object}."""
    monkeypatch.setattr(sam_med2d, "VIT_B", TINY)
    monkeypatch.setattr(SamMed2D.__init__, "__defaults__", (TINY,))
    parameter = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.Adam([parameter], lr=1e-4)
    parameter.sum().backward()
    optimiser.step()
    path = tmp_path / "sam-med2d_b.pth"
    torch.save({"model": checkpoint(original), "optimizer": optimiser}, path)
    with pytest.raises(Exception, match="Adam"):
        torch.load(path, weights_only=True)
    model = load_segmenter("sam-med2d", {"sam-med2d": path}, "cpu", "float32")
    assert model.name == "SAM-Med2D"
    assert model.prompt_kinds == {"boxes", "points", "both"} and model.trained_kinds == {"boxes", "points"}
    with pytest.raises(InputError, match="not one of SAM ViT-B"):
        load_segmenter("sam-vit-b", {"sam-vit-b": save_model(original, tmp_path)}, "cpu", "float32")
    torch.save({"model": checkpoint(original), "optimizer": Other()}, path)
    with pytest.raises(InputError, match="holds more than numbers"):
        load_segmenter("sam-med2d", {"sam-med2d": path}, "cpu", "float32")


def save_model(original, folder: Path) -> Path:
    torch.save(checkpoint(original), folder / "weights.pth")
    return folder / "weights.pth"


def test_the_variant_without_adapters_is_refused(original):
    state = {key: value for key, value in checkpoint(original).items() if ".Adapter." not in key}
    with pytest.raises(InputError, match=r"18 entries are missing, such as image_encoder.blocks.0.Adapter"):
        SamMed2D(state, TINY, identity="test", cache=EmbeddingCache(limit=0))
