"""SAM and MedSAM against segment_anything's own model and predictor, with random weights; cache, memory, loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from random_sam import TINY, random_sam, state_of
from torch.nn import functional

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.results import VisualPrompts
from MedCLIPSAMLib.sam import segment_anything_model, vit_encoder
from MedCLIPSAMLib.sam.embedding_cache import EmbeddingCache
from MedCLIPSAMLib.sam.medsam import MedSAM, squash
from MedCLIPSAMLib.sam.prompt_rows import DECODER_BATCH
from MedCLIPSAMLib.sam.registry import SEGMENTER_WEIGHTS, load_segmenter
from MedCLIPSAMLib.sam.segment_anything_model import SIZES, SegmentAnything
from MedCLIPSAMLib.sam.vit_encoder import VIT_B, VIT_H, VIT_L, VitEncoder, VitShape
from MedCLIPSAMLib.weights import registry

SHAPES = [(150, 210), (300, 17, 3), (1100, 1500)]


@pytest.fixture(scope="module")
def original():
    """segment_anything's model, three blocks of width 32."""
    return random_sam(TINY)


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", ("SAM tiny", TINY))


def ours(original, **settings) -> SegmentAnything:
    settings = {"identity": "test", "cache": EmbeddingCache(limit=0), **settings}
    return SegmentAnything("tiny", state_of(original), **settings)


def picture(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def visual_prompts(shape: tuple[int, ...], number: int = 2, seed: int = 1) -> VisualPrompts:
    """Boxes and four points each, of which one is outside (label 0)."""
    rng = np.random.default_rng(seed)
    size = np.array([shape[1], shape[0]], np.float32)
    boxes = np.sort(rng.uniform(0, 1, (number, 2, 2)), axis=1) * size
    points = rng.uniform(0, 1, (number, 4, 2)) * size
    labels = np.tile(np.array([1, 1, 1, 0], np.int32), (number, 1))
    return VisualPrompts(boxes.reshape(-1, 4).astype(np.float32), points.astype(np.float32), labels)


def only(prompts: VisualPrompts, kind: str, rows: slice = slice(None)) -> VisualPrompts:
    boxes = None if kind == "points" else prompts.boxes[rows]
    if kind == "boxes":
        return VisualPrompts(boxes)
    return VisualPrompts(boxes, prompts.points[rows], prompts.point_labels[rows])


def official(predictor, prompts: VisualPrompts, row: int, multimask: bool) -> tuple[np.ndarray, np.ndarray]:
    """segment_anything's answer to one row, as logits."""
    masks, scores, _ = predictor.predict(
        point_coords=None if prompts.points is None else prompts.points[row],
        point_labels=None if prompts.points is None else prompts.point_labels[row],
        box=None if prompts.boxes is None else prompts.boxes[row],
        multimask_output=multimask,
        return_logits=True,
    )
    return masks, scores


def check_against_predictor(
    model: SegmentAnything, sam, image: np.ndarray, number: int, kinds: tuple[str, ...] = ("boxes", "points", "both")
) -> None:
    from segment_anything import SamPredictor

    predictor = SamPredictor(sam)
    predictor.set_image(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))
    model.set_image(image)
    every = visual_prompts(image.shape, number)
    for kind in kinds:
        prompts = only(every, kind)
        logits, scores = model.predict(prompts)
        candidates, qualities = model.predict_candidates(prompts)
        assert logits.shape == (number, *image.shape[:2]) and candidates.shape == (number, 3, *image.shape[:2])
        assert {part.dtype for part in (logits, scores, candidates, qualities)} == {np.dtype(np.float32)}
        for row in range(number):
            expected, quality = official(predictor, prompts, row, False)
            assert expected.std() > 1, "the masks vary"
            np.testing.assert_allclose(logits[row], expected[0], rtol=0, atol=1e-4)
            np.testing.assert_allclose(scores[row], quality[0], rtol=0, atol=1e-4)
            expected, quality = official(predictor, prompts, row, True)
            np.testing.assert_allclose(candidates[row], expected, rtol=0, atol=1e-4)
            np.testing.assert_allclose(qualities[row], quality, rtol=0, atol=1e-4)


def test_the_same_logits_as_the_official_predictor(original):
    check_against_predictor(ours(original), original, picture((150, 210)), 2)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_same_logits_on_other_shapes(original, shape):
    check_against_predictor(ours(original), original, picture(shape), 1, ("both",))


@pytest.mark.slow
def test_full_size_vit_b_from_a_file(tmp_path):
    """As the official checkpoint: its names, shapes and size, read from a file."""
    sam = random_sam(VIT_B)
    path = tmp_path / "sam_vit_b.pth"
    torch.save(sam.state_dict(), path)
    registered = registry()["sam-vit-b"].bytes
    assert abs(path.stat().st_size - registered) < 0.001 * registered
    model = load_segmenter("sam-vit-b", {"sam-vit-b": path}, "cpu", "float32")
    path.unlink()
    assert model.name == "SAM ViT-B" and model.masks_per_prompt == 3
    check_against_predictor(model, sam, picture((150, 210)), 1, ("boxes", "points"))
    model._cache.close()


@pytest.mark.parametrize(("size", "shape"), [("vit_h", VIT_H), ("vit_l", VIT_L), ("vit_b", VIT_B)])
def test_entries_and_bytes_of_the_large_models(size, shape):
    """Without memory: names and shapes are those of segment_anything, the bytes those of the official files."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        reference = sam_model_registry[size]().state_dict()
        encoder = VitEncoder(shape).state_dict()
    expected = {key: value.shape for key, value in reference.items() if key.startswith("image_encoder.")}
    assert {f"image_encoder.{key}": value.shape for key, value in encoder.items()} == expected
    total = sum(4 * value.numel() for value in reference.values())
    registered = registry()[f"sam-{size.replace('_', '-')}"].bytes
    assert 0 < registered - total < 0.001 * registered
    assert SIZES[f"sam-{size.replace('_', '-')}"][1] is shape


@pytest.mark.parametrize("bias_bytes", [1, 256 << 20])
@pytest.mark.parametrize("shape", [TINY, VitShape(48, 2, 3, (0,))])
def test_the_encoder_equals_the_original(monkeypatch, bias_bytes, shape):
    """In one piece and head by head, for a batch."""
    monkeypatch.setattr(vit_encoder, "BIAS_BYTES", bias_bytes)
    reference = random_sam(shape, 320, seed=3).image_encoder  # 20 x 20 patches: windows that have to be padded
    encoder = VitEncoder(shape, 320)
    encoder.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference(images)
        assert expected.std() > 0.5
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_inside_alone(original, precision):
    image, prompts = picture((150, 210)), visual_prompts((150, 210))
    full, half = ours(original), ours(original, precision=precision)
    assert {parameter.dtype for parameter in half.mask_decoder.parameters()} == {torch.float32}
    assert half.encoder.blocks[0].attn.qkv.weight.dtype == getattr(torch, precision)
    full.set_image(image)
    half.set_image(image)
    assert half._embedding.dtype == torch.float32
    difference = (half._embedding - full._embedding).abs()
    assert 0 < difference.max() < 0.1 * full._embedding.std()
    logits, scores = half.predict(prompts)
    assert logits.dtype == scores.dtype == np.float32
    expected = full.predict(prompts)[0]
    assert ((logits > 0) != (expected > 0)).mean() < 0.01
    with pytest.raises(InputError, match="int8"):
        ours(original, precision="int8")


def test_rows_with_fewer_points_are_not_changed_by_fillers(original):
    model = ours(original)
    model.set_image(picture((150, 210)))
    prompts = visual_prompts((150, 210), 3)
    labels = prompts.point_labels.copy()
    labels[1, 1] = labels[1, 3] = labels[2, 0] = -1
    points = prompts.points.copy()
    points[labels == -1] = 0
    together, _ = model.predict(VisualPrompts(None, points, labels))
    for row, kept in enumerate([[0, 1, 2, 3], [0, 2], [1, 2, 3]]):
        alone, _ = model.predict(VisualPrompts(None, points[row : row + 1, kept], labels[row : row + 1, kept]))
        np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=1e-4)
    box_alone, _ = model.predict(VisualPrompts(prompts.boxes[:1]))
    no_points, _ = model.predict(VisualPrompts(prompts.boxes[:1], points[:1], np.full((1, 4), -1, np.int32)))
    np.testing.assert_array_equal(no_points, box_alone)
    with pytest.raises(InputError, match="without any point"):
        model.predict(VisualPrompts(None, points[:1], np.full((1, 4), -1, np.int32)))


def test_many_rows_equal_one_by_one(original):
    model = ours(original)
    model.set_image(picture((150, 210)))
    prompts = visual_prompts((150, 210), DECODER_BATCH + 2)
    logits, scores = model.predict(prompts)
    for row in (0, DECODER_BATCH - 1, DECODER_BATCH, DECODER_BATCH + 1):
        alone, score = model.predict(only(prompts, "both", slice(row, row + 1)))
        np.testing.assert_allclose(logits[row], alone[0], rtol=0, atol=1e-4)
        np.testing.assert_allclose(scores[row], score[0], rtol=0, atol=1e-4)


# MedSAM


def medsam(original, **settings) -> MedSAM:
    return MedSAM(state_of(original), TINY, identity="test", cache=EmbeddingCache(limit=0), **settings)


@pytest.mark.parametrize("shape", SHAPES)
def test_medsam_follows_the_official_program(original, shape):
    """Step by step: scikit-image's resize, cut to whole numbers, 0 to 1, the box, the sigmoid, then interpolation."""
    transform = pytest.importorskip("skimage.transform")
    image = picture(shape)
    colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    resized = transform.resize(colour, (1024, 1024), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
    np.testing.assert_array_equal(squash(colour, 1024), resized)
    scaled = (resized - resized.min()) / np.clip(resized.max() - resized.min(), 1e-8, None)
    boxes = visual_prompts(shape).boxes
    height, width = shape[:2]
    box = torch.as_tensor(boxes / np.array([width, height, width, height]) * 1024).float()
    with torch.inference_mode():
        embedding = original.image_encoder(torch.tensor(scaled).float().permute(2, 0, 1)[None])
        sparse, dense = original.prompt_encoder(points=None, boxes=box[:, None], masks=None)
        low, quality = original.mask_decoder(
            image_embeddings=embedding,
            image_pe=original.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        official = functional.interpolate(torch.sigmoid(low), (height, width), mode="bilinear", align_corners=False)
    assert official.std() > 0.05
    model = medsam(original)
    model.set_image(image)
    logits, scores = model.predict(VisualPrompts(boxes))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), official[:, 0].numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(scores, quality[:, 0].numpy(), rtol=0, atol=1e-4)


def test_squashing_of_flat_parts():
    """There rounding errors decide between two whole numbers, in the official program too: one level, few pixels."""
    transform = pytest.importorskip("skimage.transform")
    image = picture((150, 210))
    image[:50], image[50:80] = 40, 0
    resized = transform.resize(image, (1024, 1024), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
    squashed = squash(image, 1024).astype(int)
    assert abs(squashed - resized).max() <= 1 and (squashed != resized).mean() < 0.01
    assert not squashed[400:520].any()


def test_medsam_refuses_what_it_cannot_do(original):
    model = medsam(original)
    model.set_image(picture((64, 64)))
    for kind in ("points", "both"):
        with pytest.raises(InputError, match=f"MedSAM cannot take visual prompts of kind '{kind}'; choose 'boxes'"):
            model.predict(only(visual_prompts((64, 64)), kind))
    with pytest.raises(InputError, match="single mask"):
        model.predict_candidates(only(visual_prompts((64, 64)), "boxes"))


def test_certain_pixels_have_finite_logits(original):
    planes = np.array([[[100, -100], [1000, -1000]]], np.float32)
    model = medsam(original)
    restored = model._restore(planes, model._frame_of(picture((40, 60))))
    assert np.isfinite(restored).all() and restored.max() > 10 and restored.min() < -10


# Cache, preparation and memory


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Sizes of the batches that encoders really work on."""
    sizes = []
    real = VitEncoder.forward

    def counting(self, images):
        sizes.append(len(images))
        return real(self, images)

    monkeypatch.setattr(VitEncoder, "forward", counting)
    return sizes


def test_an_image_is_encoded_once_for_all_models_with_its_weights(original, encoded):
    cache = EmbeddingCache(remembered=1)
    first, second = ours(original, cache=cache), ours(original, cache=cache)
    image, prompts = picture((64, 64)), visual_prompts((64, 64))
    first.set_image(image)
    expected = first.predict(prompts)[0]
    first.set_image(picture((64, 64), 1))
    second.set_image(image)
    assert encoded == [1, 1], "the third comes from the disk"
    np.testing.assert_array_equal(second.predict(prompts)[0], expected)
    ours(original, cache=cache, identity="other").set_image(image)
    ours(original, cache=cache, precision="bfloat16").set_image(image)
    ours(original, cache=cache, device="cpu:0").set_image(image)
    assert len(encoded) == 5, "other weights, precision or device"
    cache._file.truncate(0)
    second.set_image(picture((64, 64), 1))
    second.set_image(image)
    assert len(encoded) > 5, "a damaged file means encoding again"
    np.testing.assert_array_equal(second.predict(prompts)[0], expected)
    cache.close()


def test_preparing_encodes_what_is_missing_in_batches(original, encoded):
    images = [picture((64, 48 + number), number) for number in range(6)]
    for device, expected in (("cpu", [1] * 5), ("cpu:0", [4, 1])):
        cache = EmbeddingCache()
        model = ours(original, cache=cache, device=device)
        model.set_image(images[2])
        encoded.clear()
        model.prepare([*images, images[0]])
        assert encoded == expected
        prompts = visual_prompts((64, 48))
        for image in images:
            model.set_image(image)
        assert encoded == expected, "all are there"
        model.set_image(images[0])
        alone = ours(original)
        alone.set_image(images[0])
        np.testing.assert_allclose(model.predict(prompts)[0], alone.predict(prompts)[0], rtol=0, atol=1e-4)
        cache.close()


def test_no_more_is_prepared_than_can_be_kept(original, encoded):
    model = ours(original, cache=EmbeddingCache(limit=0, remembered=2))
    model.prepare([picture((64, 64), number) for number in range(5)])
    assert encoded == [1, 1]


def test_want_of_memory_means_smaller_batches_then_the_cpu(original, monkeypatch):
    """The device "cpu:0" is another one than "cpu" for the guard; its encoder fails as a GPU's would."""
    cache = EmbeddingCache()
    model = ours(original, cache=cache, device="cpu:0", precision="bfloat16")
    tried = []
    real = VitEncoder.forward
    fits = {"cpu:0": 2, "cpu": 99}

    def small(self, images):
        tried.append((model.memory.device, len(images)))
        if len(images) > fits[model.memory.device]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, images)

    monkeypatch.setattr(VitEncoder, "forward", small)
    images = [picture((64, 64), number) for number in range(5)]
    model.prepare(images[:4])
    assert tried == [("cpu:0", 4), ("cpu:0", 2), ("cpu:0", 2)]
    model.set_image(images[0])
    prompts = visual_prompts((64, 64))
    before = model.predict(prompts)[0]
    fits["cpu:0"] = 0
    model.set_image(images[4])
    assert model.memory.device == "cpu" and tried[3:] == [("cpu:0", 1), ("cpu", 1)]
    notes = model.memory.take_notes()
    assert "SAM tiny" in notes[0] and "batches of 2" in notes[0] and "CPU" in notes[-1]
    assert {parameter.dtype for parameter in model.encoder.parameters()} == {torch.float32}
    model.set_image(images[0])
    assert ((model.predict(prompts)[0] > 0) != (before > 0)).mean() < 0.01
    cache.close()


def test_want_of_memory_in_the_decoder_moves_the_image_too(original, monkeypatch):
    model = ours(original, device="cpu:0")
    model.set_image(picture((64, 64)))
    prompts = visual_prompts((64, 64), 3)
    expected = model.predict(prompts)[0]
    real, tried = model.mask_decoder.predict_masks, []

    def small(**settings):
        tried.append(len(settings["sparse_prompt_embeddings"]))
        if model.memory.device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(**settings)

    monkeypatch.setattr(model.mask_decoder, "predict_masks", small)
    np.testing.assert_allclose(model.predict(prompts)[0], expected, rtol=0, atol=1e-4)
    assert model.memory.device == "cpu" and tried == [3, 3, 3, 2, 1, 1, 1, 1]


def test_requests_without_image_or_prompts_are_refused(original, monkeypatch):
    model = ours(original)
    with pytest.raises(InputError, match="call set_image first"):
        model.predict(visual_prompts((64, 64)))
    model.set_image(picture((64, 64)))
    for nothing in (VisualPrompts(), VisualPrompts(np.zeros((0, 4), np.float32))):
        with pytest.raises(InputError, match="no prompts"):
            model.predict(nothing)
    monkeypatch.setattr(model.encoder, "forward", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.set_image(picture((64, 64), 1))
    with pytest.raises(InputError, match="call set_image first"):
        model.predict(visual_prompts((64, 64)))


# Loading


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.fixture
def tiny_weights(monkeypatch):
    """The tiny model under the name of a registered one."""
    monkeypatch.setitem(segment_anything_model.SIZES, "sam-vit-b", ("SAM ViT-B", TINY))


def test_files_of_other_forms_are_read(original, tmp_path, tiny_weights):
    from safetensors.torch import save_file

    state = state_of(original)
    files = [
        save({"model": state, "epoch": 3}, tmp_path / "training.pth"),
        save({f"module.{key}": value for key, value in state.items()}, tmp_path / "parallel.pt"),
        save({key: value.half() for key, value in state.items()}, tmp_path / "half.pth"),
        tmp_path / "tensors.safetensors",
    ]
    save_file(state, files[-1])
    image, prompts = picture((64, 64)), visual_prompts((64, 64))
    expected = ours(original)
    expected.set_image(image)
    for file in files:
        model = load_segmenter("sam-vit-b", {"sam-vit-b": file}, "cpu", "float32")
        model.set_image(image)
        tolerance = 0.3 if file.name == "half.pth" else 1e-5
        np.testing.assert_allclose(model.predict(prompts)[0], expected.predict(prompts)[0], rtol=0, atol=tolerance)
    model._cache.close()


class Harmful:
    """Runs something when it is unpickled without care."""

    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def test_wrong_files_are_refused(original, tmp_path, tiny_weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = state_of(original)
    less = dict(list(state.items())[:-1])
    whole = save(state, tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.pth").write_text("<html>Not found</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    cases = {
        save(less, tmp_path / "less.pth"): "1 entries are missing, such as mask_decoder",
        save({**state, "more": torch.ones(1)}, tmp_path / "more.pth"): "1 are unknown, such as more",
        save(state_of(random_sam(VitShape(48, 3, 2, (1,)))), tmp_path / "wide.pth"): "have another shape",
        save({"a": [1, 2]}, tmp_path / "list.pth"): "no dictionary of tensors",
        save(
            {**state, "harm": Harmful()}, tmp_path / "harmful.pth"
        ): "holds more than numbers.*could run code.*harmful.safetensors",
        tmp_path / "cut.pth": rf"damaged or incomplete \({len(whole) // 2} bytes\).*Get the file again",
        tmp_path / "page.pth": "cannot be read as a checkpoint",
        tmp_path / "empty.pth": "cannot be read as a checkpoint: it is empty",
        tmp_path / "bad.safetensors": "cannot be read as a checkpoint",
        tmp_path / "absent.pth": "cannot be read as a checkpoint",
    }
    for file, message in cases.items():
        with pytest.raises(InputError, match=message) as refusal:
            load_segmenter("sam-vit-b", {"sam-vit-b": file}, "cpu", "float32")
        assert "weights_only" not in str(refusal.value), "torch's advice is to run what is in the file"
        assert ("holds more than numbers" in str(refusal.value)) == ("more than numbers" in message)
    assert not (tmp_path / "harmed").exists()


def test_names_that_are_not_known():
    assert set(SEGMENTER_WEIGHTS) == {"lite-medsam", "sam-vit-h", "sam-vit-l", "sam-vit-b", "medsam", "sam-med2d"}
    with pytest.raises(InputError, match="'sam-vit-x' is unknown; known: lite-medsam"):
        load_segmenter("sam-vit-x", {}, "cpu", "float32")
    with pytest.raises(InputError, match="needs 'medsam'"):
        load_segmenter("medsam", {}, "cpu", "float32")
