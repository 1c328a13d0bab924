"""LiteMedSAM on real images and phantoms: boxes in, masks out, one encoding for all, official post-processing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from MedCLIPSAMLib.errors import ChecksumError, InputError
from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.metrics import dsc
from MedCLIPSAMLib.results import VisualPrompts
from MedCLIPSAMLib.sam.lite_encoder import REMEMBERED, model_input
from MedCLIPSAMLib.sam.lite_medsam import DECODER_BATCH, LiteMedSAM
from MedCLIPSAMLib.weights import registry, verified


@pytest.fixture(scope="module")
def segmenter(untrained_segmenter) -> LiteMedSAM:
    return untrained_segmenter.segmenter


@pytest.fixture
def encodings(segmenter, monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the batches that the encoder really works on, from an empty memory on."""
    worked = []
    real = segmenter.encoder.encoder.multi_scale

    def counting(batch: torch.Tensor):
        worked.append(tuple(batch.shape))
        return real(batch)

    monkeypatch.setattr(segmenter.encoder.encoder, "multi_scale", counting)
    segmenter.encoder._remembered.clear()
    return worked


def ellipse(height: int = 150, width: int = 210) -> tuple[np.ndarray, np.ndarray]:
    """A dark ellipse on a brighter, noisy ground, and its mask."""
    y, x = np.mgrid[:height, :width]
    mask = ((x - 120) / 45) ** 2 + ((y - 70) / 25) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 8, (height, width))
    return np.clip(np.where(mask, 60, 150) + noise, 0, 255).astype(np.uint8), mask


def box_of(mask: np.ndarray) -> VisualPrompts:
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return VisualPrompts(boxes=np.array([box], np.float32))


def test_box_around_an_ellipse(segmenter):
    image, mask = ellipse()
    segmenter.set_image(image)
    logits, scores = segmenter.predict(box_of(mask))
    assert logits.shape == (1, *image.shape) and logits.dtype == np.float32
    assert scores.shape == (1,) and scores.dtype == np.float32
    assert dsc(logits[0] > 0, mask) > 0.95
    segmenter.set_image(np.repeat(image[..., None], 3, axis=2))
    np.testing.assert_allclose(segmenter.predict(box_of(mask))[0], logits, atol=1e-3)


def test_true_boxes_of_real_images(segmenter, data_dir):
    folder = data_dir / "breast_ultrasound_tumour" / "val"
    scores = {}
    for path in sorted((folder / "images").glob("*.png")):
        mask = np.asarray(Image.open(folder / "masks" / path.name)) > 127
        if mask.any() and len(scores) < 3:
            segmenter.set_image(np.asarray(Image.open(path)))
            scores[path.name] = dsc(segmenter.predict(box_of(mask))[0][0] > 0, mask)
    assert len(scores) == 3 and min(scores.values()) > 0.9, scores


def test_a_batch_of_boxes_equals_one_by_one(segmenter):
    image, _ = ellipse()
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 100, (DECODER_BATCH + 1, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 50, corners.shape)], axis=1).astype(np.float32)
    segmenter.set_image(image)
    together, scores = segmenter.predict(VisualPrompts(boxes=boxes))
    assert len(together) == len(scores) == len(boxes)
    for row in (0, DECODER_BATCH - 1, DECODER_BATCH):
        alone, score = segmenter.predict(VisualPrompts(boxes=boxes[row : row + 1]))
        np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=1e-3)
        np.testing.assert_allclose(scores[row], score[0], rtol=0, atol=1e-4)


def test_points_inside_an_ellipse(segmenter):
    """LiteMedSAM was not trained for points: they find the ellipse, but not well."""
    image, mask = ellipse()
    segmenter.set_image(image)
    inside = np.random.default_rng(0).permutation(np.argwhere(mask))[:10, ::-1] + 0.5
    prompts = VisualPrompts(points=inside[None].astype(np.float32), point_labels=np.ones((1, 10), np.int32))
    logits, scores = segmenter.predict(prompts)
    assert logits.shape == (1, *image.shape) and scores.shape == (1,)
    assert dsc(logits[0] > 0, mask) > 0.6


def test_requests_without_image_or_prompts_are_refused(segmenter):
    fresh = LiteMedSAM(verified("lite-medsam"))
    _, mask = ellipse()
    with pytest.raises(InputError, match="call set_image first"):
        fresh.predict(box_of(mask))
    segmenter.set_image(ellipse()[0])
    for nothing in (VisualPrompts(), VisualPrompts(boxes=np.zeros((0, 4), np.float32))):
        with pytest.raises(InputError, match="no prompts"):
            segmenter.predict(nothing)


def test_an_image_is_encoded_once(segmenter, untrained_segmenter, encodings):
    """By the segmenter and by the image tower, in any order, also from an array of another memory layout."""
    image, _ = ellipse()
    segmenter.set_image(image)
    segmenter.set_image(image.copy())
    segmenter.set_image(np.asfortranarray(image))
    untrained_segmenter.clip.encode_images([image])
    untrained_segmenter.clip.patch_embeddings(image)
    untrained_segmenter.clip.image_state(image, 0)
    assert encodings == [(1, 3, 256, 256)]
    first = np.zeros((16, 32), np.uint8)
    first[4:9, 5:20] = 200
    others = [first, first.reshape(32, 16)]  # the same bytes in another shape are another image
    others += [np.roll(first, shift, axis=1) for shift in range(1, REMEMBERED - 2)]
    for other in (*others, image):
        segmenter.set_image(other)
    assert len(encodings) == REMEMBERED, "so many images are remembered"
    segmenter.set_image(first[::-1])
    segmenter.set_image(image)
    assert len(encodings) == REMEMBERED + 1, "the one not asked for the longest time is forgotten"
    segmenter.set_image(first)
    assert len(encodings) == REMEMBERED + 2


def test_remembered_features_are_bit_equal(segmenter, encodings):
    image, mask = ellipse()
    segmenter.set_image(image)
    first = segmenter.predict(box_of(mask))[0]
    segmenter.set_image(image)
    np.testing.assert_array_equal(segmenter.predict(box_of(mask))[0], first)
    segmenter.encoder._remembered.clear()
    segmenter.set_image(image)
    np.testing.assert_array_equal(segmenter.predict(box_of(mask))[0], first)
    assert len(encodings) == 2


@pytest.mark.parametrize("shape", [(150, 210), (300, 199), (256, 256), (17, 300), (300, 17), (600, 400, 3)])
def test_preprocessing_equals_the_official_one(shape):
    """Longest side to 256, rounded half up; minimum to 0 and maximum to 1; zeros below and to the right."""
    image = np.random.default_rng(2).integers(20, 200, shape, dtype=np.uint8)
    placed, frame = model_input(image)
    scale = 256 / max(shape[:2])
    height, width = (int(side * scale + 0.5) for side in shape[:2])
    assert frame.inner == (height, width) and placed.shape == (256, 256, 3)
    assert placed[:height, :width].min() == 0 and placed[:height, :width].max() == 1
    assert not placed[height:].any() and not placed[:, width:].any()
    if len(shape) == 2:
        assert (placed[..., 0] == placed[..., 1]).all() and (placed[..., 0] == placed[..., 2]).all()


@pytest.mark.parametrize("shape", [(150, 210), (301, 199), (256, 256), (17, 300), (640, 1)])
def test_postprocessing_equals_the_official_one(shape):
    """The official code cuts the 256 x 256 logits to the image's part and interpolates that to the image's size."""
    frame = Frame(*shape, 256)
    plane = np.random.default_rng(3).normal(0, 5, (256, 256)).astype(np.float32)
    height, width = frame.inner
    part = torch.from_numpy(plane).double()[None, None, :height, :width]
    official = torch.nn.functional.interpolate(part, shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    np.testing.assert_allclose(frame.restore(plane), official, rtol=0, atol=1e-4)


def test_logits_are_the_decoders_own(segmenter):
    """The whole of predict, step by step on segment_anything's modules, for a box that falls between the pixels."""
    image, _ = ellipse()
    segmenter.set_image(image)
    box = np.array([[75.3, 44.9, 166.2, 95.7]], np.float32)
    logits, score = segmenter.predict(VisualPrompts(boxes=box))
    scale = 256 / max(image.shape)
    with torch.inference_mode():
        sparse, dense = segmenter.prompt_encoder(
            points=None, boxes=torch.from_numpy((box * scale).astype(int)).float(), masks=None
        )
        low, quality = segmenter.mask_decoder(
            image_embeddings=segmenter.encoder(image).embedding,
            image_pe=segmenter.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        height, width = (int(side * scale + 0.5) for side in image.shape)
        official = torch.nn.functional.interpolate(
            low[..., :height, :width], image.shape, mode="bilinear", align_corners=False
        )
    np.testing.assert_allclose(logits[0], official[0, 0].numpy(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(score, quality[0].numpy(), rtol=0, atol=1e-5)


def test_a_damaged_checkpoint_is_never_loaded(segmenter, tmp_path: Path, monkeypatch):
    content = bytearray(verified("lite-medsam").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / registry()["lite-medsam"].file).write_bytes(content)
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(tmp_path))
    with pytest.raises(ChecksumError, match="SHA-256"):
        LiteMedSAM(verified("lite-medsam"))


def test_a_checkpoint_with_other_entries_is_refused(segmenter, tmp_path: Path):
    state = torch.load(verified("lite-medsam"), map_location="cpu", weights_only=True)
    removed = next(key for key in state if key.startswith("mask_decoder."))
    torch.save({key: value for key, value in state.items() if key != removed}, tmp_path / "less.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        LiteMedSAM(tmp_path / "less.pth")


def test_want_of_memory_moves_all_that_share_the_encoder(monkeypatch):
    """The device "cpu:0" is another one than "cpu" for the guard; its encoder fails as a GPU's would."""
    model = LiteMedSAM(verified("lite-medsam"), "cpu:0")
    moved, tried = [], []
    model.encoder.follow(moved.append)
    real, fits = model.encoder.encoder.multi_scale, {"cpu:0": 1, "cpu": 1}

    def small(batch: torch.Tensor):
        tried.append(len(batch))
        if len(batch) > fits[model.memory.device]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(batch)

    monkeypatch.setattr(model.encoder.encoder, "multi_scale", small)
    image, mask = ellipse()
    model.set_image(image)
    assert tried == [1] and moved == []
    before = model.predict(box_of(mask))[0]
    fits["cpu:0"] = 0
    model.set_image(image[::-1])
    assert tried[1:] == [1, 1] and moved == [torch.device("cpu")]
    assert model.device == torch.device("cpu") and model.memory.device == "cpu"
    assert "CPU" in model.memory.take_notes()[-1]
    model.set_image(image)
    assert len(tried) == 4, "what another device has encoded is not mixed in"
    np.testing.assert_allclose(model.predict(box_of(mask))[0], before, rtol=0, atol=1e-3)


def test_a_single_mask_offers_no_candidates(segmenter):
    assert segmenter.masks_per_prompt == 1 and segmenter.trained_kinds == {"boxes"}
    segmenter.set_image(ellipse()[0])
    with pytest.raises(InputError, match="single mask"):
        segmenter.predict_candidates(box_of(ellipse()[1]))
