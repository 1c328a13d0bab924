"""The other CLIP models, and what all of them share: memory, choices, refusals."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from full_models import (
    official_clip,
    random_clip,
    random_pmc_clip,
)
from torch import Tensor
from torch.nn import functional

from MedCLIPSAMLib.clip.image_tower import ImageTower
from MedCLIPSAMLib.clip.open_clip_import import import_open_clip
from MedCLIPSAMLib.clip.open_clip_model import REMEMBERED, OpenClipModel, squashed
from MedCLIPSAMLib.clip.registry import CLIP_WEIGHTS, TOKENIZER, load_clip, load_finetuned
from MedCLIPSAMLib.clip.text_tower import ClipTextTower
from MedCLIPSAMLib.clip.wordpiece import WordPiece
from MedCLIPSAMLib.errors import InputError

TEXTS = ["A medical breast ultrasound image showing a tumour, with a dark region.", "brain MRI", "chest x-ray &amp; CT"]


def picture(seed: int = 0, shape: tuple[int, ...] = (90, 130)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def official_small():
    """open_clip's CLIP, small: 4 x 4 patches, three blocks in each tower."""
    open_clip = import_open_clip("the test")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(
            24,
            {"image_size": 32, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8},
            {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
            quick_gelu=True,
        )
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.data += 0.1 * torch.randn_like(weight)
            elif "text_projection" in name:
                weight.data = torch.randn_like(weight)
    return model.eval().requires_grad_(False)


@pytest.fixture
def small(official_small) -> OpenClipModel:
    return OpenClipModel("small", ImageTower(official_small.visual), ClipTextTower(official_small), 10.0, "cpu")


class TestSmallClip:
    """open_clip's own vision transformer and causal text transformer, cut open."""

    def test_embeddings(self, small, official_small):
        import open_clip

        images = [picture(0), picture(1, (50, 40, 3))]
        with torch.inference_mode():
            expected = official_small.encode_image(torch.cat([small.model_input(i)[0] for i in images]), normalize=True)
            ids = open_clip.tokenize(TEXTS, context_length=40)
            texts = official_small.encode_text(ids, normalize=True)
        np.testing.assert_allclose(small.encode_images(images), expected.numpy(), atol=1e-6)
        np.testing.assert_allclose(small.encode_texts(TEXTS), texts.numpy(), atol=1e-5)
        assert (texts[0] - texts[1]).norm() > 0.1

    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_state_and_finish(self, small, layer):
        state = small.image_state(picture(), layer)
        np.testing.assert_allclose(
            small.finish(state.tokens, layer).numpy(), small.encode_images([picture()]), atol=1e-6
        )

    def test_gradients_of_the_activations(self, small, official_small):
        """Against open_clip's blocks, with the gradient taken by a hook on the last block's first normalisation."""
        text = torch.from_numpy(small.encode_texts(TEXTS[:1])[0])
        found = small.activations(picture(), text)
        kept = []

        def keep(module, inputs, output):
            kept.append(output.detach().requires_grad_())
            return kept[-1]

        handle = official_small.visual.transformer.resblocks[-1].ln_1.register_forward_hook(keep)
        vector = official_small.encode_image(small.model_input(picture())[0], normalize=True)[0]
        handle.remove()
        (gradient,) = torch.autograd.grad(10.0 * (vector @ text), kept)
        torch.testing.assert_close(found.values, kept[0][0, 1:].detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.gradients, gradient[0, 1:], atol=1e-6, rtol=1e-3)
        assert found.values.shape == (16, 64) and gradient.abs().max() > 1e-3

    def test_states_of_few_images_are_kept(self, small):
        first = small.image_state(picture(0), 1).tokens
        assert small.image_state(picture(0), 1).tokens is first
        for seed in range(1, REMEMBERED + 1):
            small.image_state(picture(seed), 1)
        again = small.image_state(picture(0), 1).tokens
        assert again is not first and torch.equal(again, first)
        assert len(small._states) == REMEMBERED

    def test_a_transposed_image_is_another(self, small):
        square = picture(0, (64, 64))
        assert not torch.equal(small.image_state(square, 1).tokens, small.image_state(square.T, 1).tokens)

    def test_memory_runs_out(self, official_small):
        """First the batch is halved; where even one image fails, the model goes to the CPU, in single precision."""
        tower = ImageTower(official_small.visual)
        model = OpenClipModel("small", tower, ClipTextTower(official_small), 10.0, "cpu:0", "bfloat16")
        images = [picture(seed) for seed in range(10)]
        batches = []
        real = tower.embed

        def embed(pixels: Tensor) -> Tensor:
            batches.append(len(pixels))
            if model.memory.device != "cpu" and len(pixels) > model.limit:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return real(pixels)

        tower.embed = embed
        model.limit = 3
        halved = model.encode_images(images)
        assert batches == [10, 5, 2, 2, 2, 2, 2]
        model.limit = 0
        on_cpu = model.encode_images(images)
        assert model.memory.device == "cpu"
        assert next(tower.blocks[0].mlp.parameters()).dtype == torch.float32
        np.testing.assert_allclose(on_cpu, halved, atol=0.02)
        notes = model.memory.take_notes()
        assert any("batches of 2" in note for note in notes) and "CPU" in notes[-1]

    def test_unknown_precision(self, official_small):
        with pytest.raises(InputError, match=r"float8.*bfloat16"):
            OpenClipModel("small", ImageTower(official_small.visual), ClipTextTower(official_small), 1, "cpu", "float8")

    def test_a_tower_without_tokens(self):
        import_open_clip("the test")
        from open_clip.modified_resnet import ModifiedResNet

        with pytest.raises(InputError, match="ModifiedResNet"):
            ImageTower(ModifiedResNet([1, 1, 1, 1], 16, 2, 32, 8))


def test_squashing_keeps_the_whole_image():
    """A mark in each corner of a wide image is in each corner of the input; grey and RGB are the same."""
    image = np.zeros((40, 160), np.uint8)
    for rows in (slice(0, 8), slice(-8, None)):
        for columns in (slice(0, 32), slice(-32, None)):
            image[rows, columns] = 255
    pixels = squashed(image, 32)
    assert pixels.shape == (1, 3, 32, 32)
    for row in (1, -2):
        for column in (1, -2):
            assert pixels[0, 0, row, column] == pytest.approx((1 - 0.48145466) / 0.26862954, abs=0.05)
    assert torch.equal(pixels, squashed(np.repeat(image[..., None], 3, axis=2), 32))


class TestOpenAIClip:
    @pytest.fixture
    def files(self, tmp_path):
        return random_clip(tmp_path)

    @pytest.mark.slow
    def test_from_openais_archive_and_from_safetensors(self, files, tmp_path):
        import open_clip
        from safetensors.torch import save_file

        names = official_clip().state_dict().keys()
        archive = torch.jit.load(str(files["clip-vit-b-16"])).state_dict()
        state = {name: archive[name].float() for name in names}
        official = official_clip(state)
        model = load_clip("clip-vit-b-16", files, "cpu", "float32")
        with torch.inference_mode():
            expected = official.encode_image(model.model_input(picture())[0], normalize=True).numpy()
            texts = official.encode_text(open_clip.tokenize(TEXTS), normalize=True).numpy()
        np.testing.assert_allclose(model.encode_images([picture()]), expected, atol=1e-5)
        np.testing.assert_allclose(model.encode_texts(TEXTS), texts, atol=1e-5)
        layer_9 = model.image_state(picture(), 9)
        np.testing.assert_allclose(model.finish(layer_9.tokens, 9).numpy(), expected, atol=1e-5)
        assert model.logit_scale == pytest.approx(np.exp(4.4454), rel=1e-3)
        del official, archive
        path = tmp_path / "open_clip_model.safetensors"
        save_file({name: value.contiguous() for name, value in state.items()}, path)
        other = load_clip("clip-vit-b-16", {"clip-vit-b-16": path}, "cpu", "float32")
        assert np.array_equal(other.encode_texts(TEXTS[:1]), model.encode_texts(TEXTS[:1]))

    def test_other_weights(self, tmp_path):
        torch.save({"visual.conv1.weight": torch.zeros(3)}, tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"a\.pt.*not the weights of CLIP ViT-B/16"):
            load_clip("clip-vit-b-16", {"clip-vit-b-16": tmp_path / "a.pt"}, "cpu", "float32")


@pytest.fixture(scope="module")
def pmc_files(tmp_path_factory):
    return random_pmc_clip(tmp_path_factory.mktemp("pmc"))


@pytest.fixture(scope="module")
def pmc_clip(pmc_files):
    return load_clip("pmc-clip", pmc_files, "cpu", "float32")


class TestPmcClip:
    @pytest.mark.slow
    def test_embeddings_of_its_own_towers(self, pmc_clip, pmc_files):
        from open_clip.modified_resnet import ModifiedResNet
        from transformers import BertConfig, BertModel

        resnet = ModifiedResNet([3, 4, 6, 3], output_dim=768, heads=8, image_size=224, width=64).eval()
        resnet.load_state_dict(torch.load(pmc_files["pmc-clip-image"], weights_only=True))
        bert = BertModel(BertConfig(vocab_size=30522, layer_norm_eps=1e-12, pad_token_id=0)).eval()
        bert.load_state_dict(torch.load(pmc_files["pmc-clip-text"], weights_only=True))
        projection = torch.load(pmc_files["pmc-clip-projection"], weights_only=True)
        rows = WordPiece(pmc_files[TOKENIZER], 77)(TEXTS)
        ids = torch.tensor([[*row, *[0] * (77 - len(row))] for row in rows])
        images = [picture(0), picture(1, (60, 50, 3))]
        with torch.inference_mode():
            seen = functional.normalize(resnet(torch.cat([squashed(image, 224) for image in images])), dim=-1)
            pooled = bert(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
            read = functional.normalize(pooled @ projection, dim=-1)
        np.testing.assert_allclose(pmc_clip.encode_images(images), seen.numpy(), atol=1e-5)
        np.testing.assert_allclose(pmc_clip.encode_texts(TEXTS), read.numpy(), atol=1e-5)
        assert (seen[0] - seen[1]).norm() > 1e-3 and (read[0] - read[1]).norm() > 1e-2

    def test_it_serves_no_saliency(self, pmc_clip):
        assert pmc_clip.saliency_methods == frozenset()
        text = torch.zeros(768)
        for attempt in (
            lambda: pmc_clip.image_state(picture(), 9),
            lambda: pmc_clip.finish(torch.zeros(1, 197, 768), 9),
            lambda: pmc_clip.activations(picture(), text),
            lambda: pmc_clip.patch_embeddings(picture()),
        ):
            with pytest.raises(InputError, match="ResNet without tokens"):
                attempt()

    def test_swapped_files(self, pmc_files):
        swapped = {**pmc_files, "pmc-clip-projection": pmc_files["pmc-clip-text"]}
        with pytest.raises(InputError, match="768 x 768"):
            load_clip("pmc-clip", swapped, "cpu", "float32")


class TestChoices:
    def test_names(self):
        assert set(CLIP_WEIGHTS) == {"biomedclip", "clip-vit-b-16", "pmc-clip"}
        with pytest.raises(InputError, match=r"'clip-vit-l'.*biomedclip, clip-vit-b-16, pmc-clip"):
            load_clip("clip-vit-l", {}, "cpu", "float32")

    def test_a_package_that_is_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(InputError, match=r"BiomedCLIP needs the package timm; run: pip install timm"):
            import_open_clip("BiomedCLIP")

    def test_finetuned_folder_without_a_checkpoint(self, tmp_path):
        with pytest.raises(InputError, match="found: none"):
            load_finetuned(tmp_path, {}, "cpu", "float32")


class TestLite:
    """What the lite model serves since there are class-activation methods."""

    @pytest.fixture
    def clip(self, untrained_segmenter):
        return untrained_segmenter.clip

    def test_input_and_embedding_are_the_image(self, clip):
        image = picture(3, (70, 110))
        pixels, frame = clip.model_input(image)
        assert pixels.shape == (1, 3, 256, 256) and pixels.dtype == torch.float32
        assert float(pixels.min()) >= 0 and float(pixels.max()) == pytest.approx(1)
        assert (frame.height, frame.width, frame.keep_aspect) == (70, 110, True)
        vectors = clip.encode_input(torch.cat([pixels, pixels * 0.5]))
        np.testing.assert_allclose(vectors[:1].numpy(), clip.encode_images([image]), atol=1e-5)
        assert (vectors[0] - vectors[1]).norm() > 1e-4

    def test_activations(self, clip):
        """The gradient against autograd through the whole last block, as torch runs it."""
        image = picture(3)
        text = torch.from_numpy(clip.encode_texts(["brain tumour"])[0])
        found = clip.activations(image, text)
        assert found.values.shape == (256, 192) and found.grid == (16, 16)
        tokens = clip.image_state(image, len(clip.tower.blocks) - 1).tokens
        last = clip.tower.blocks[-1]
        normalised = last.norm1(tokens).requires_grad_()
        after = tokens + last.self_attn(normalised, normalised, normalised, need_weights=False)[0]
        after = after + last.linear2(functional.gelu(last.linear1(last.norm2(after))))
        score = clip.logit_scale * (clip.tower.image_vectors(after)[0] @ text)
        (gradient,) = torch.autograd.grad(score, [normalised])
        torch.testing.assert_close(found.gradients, gradient[0, 1:], atol=1e-6, rtol=1e-3)
        assert gradient.abs().max() > 1e-5

    def test_it_moves_with_its_encoder(self, clip):
        assert clip.memory is clip.encoder.memory
        assert {"m2ib", "patch_similarity", "gradcam", "gscorecam"} == clip.saliency_methods
