"""BiomedCLIP at full size with random weights: what open_clip computes, offline, from every layout."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from full_models import biomedclip_files, biomedclip_model, official_biomedclip, toy_tokenizer
from hugging_face_layout import hugging_face
from PIL import Image
from torch import Tensor

from MedCLIPSAMLib.clip import biomedclip
from MedCLIPSAMLib.clip.image_tower import ImageTower
from MedCLIPSAMLib.clip.registry import TOKENIZER, load_clip, load_finetuned
from MedCLIPSAMLib.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "A medical breast ultrasound image showing a tumour, with a dark region.",
    "brain MRI",
    "Lungs in a chest x-ray &amp; a CT  scan (bright/dark)\u00a0\u2013 benign",
]
LAYERS = 12


@pytest.fixture(scope="module")
def model():
    return biomedclip_model()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return torch.load(biomedclip_files()["biomedclip"], weights_only=True)


@pytest.fixture(scope="module")
def official(state):
    return official_biomedclip(state)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Grey and wide, coloured and tall; smooth, since bicubic weights are no matter in pure noise."""
    y, x = np.mgrid[:150, :210]
    grey = (127 + 80 * np.sin(x / 17) * np.cos(y / 23)).astype(np.uint8)
    colour = np.random.default_rng(0).integers(0, 256, (120, 70, 3), dtype=np.uint8)
    return [grey, colour]


@pytest.fixture(scope="module")
def expected_images(official, images) -> np.ndarray:
    """open_clip's embeddings by its own preprocessing."""
    import open_clip

    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    transform = open_clip.image_transform(224, False, mean, deviation, resize_mode="squash", interpolation="bicubic")
    with torch.inference_mode():
        batch = torch.stack([transform(Image.fromarray(image)) for image in images])
        return official.encode_image(batch, normalize=True).numpy()


@pytest.fixture(scope="module")
def expected_texts(official, tmp_path_factory) -> np.ndarray:
    """open_clip's embeddings of the texts, cleaned and padded to 256 by its own tokenizer."""
    from open_clip.tokenizer import HFTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    toy_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"}')
    ids = HFTokenizer(str(folder), context_length=256)(TEXTS)
    assert ids.shape == (3, 256)
    with torch.inference_mode():
        return official.encode_text(ids, normalize=True).numpy()


def test_image_embeddings_are_those_of_open_clip(model, images, expected_images):
    vectors = model.encode_images(images)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected_images, atol=1e-6)
    assert np.linalg.norm(vectors[0] - vectors[1]) > 0.1  # otherwise the above would say nothing


def test_text_embeddings_are_those_of_open_clip_on_padded_text(model, expected_texts):
    vectors = model.encode_texts(TEXTS)
    np.testing.assert_allclose(vectors, expected_texts, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01
    assert max(len(row) for row in model.text.tokenize(TEXTS)) < 64  # so the above compares with much padding


def test_text_does_not_depend_on_its_neighbours(model):
    alone = np.concatenate([model.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, model.encode_texts(TEXTS), atol=1e-5)


@pytest.mark.parametrize("layer", [0, 6, 9, LAYERS - 2, LAYERS - 1])
def test_state_and_finish_are_the_whole_tower(model, images, expected_images, layer):
    state = model.image_state(images[0], layer)
    assert state.tokens.shape == (1, 197, 768) and state.grid == (14, 14)
    assert (state.frame.height, state.frame.width, state.frame.keep_aspect) == (150, 210, False)
    np.testing.assert_allclose(model.finish(state.tokens, layer).numpy(), expected_images[:1], atol=1e-6)


def test_state_holds_the_tokens_after_the_layer(model, official, images):
    seen = []
    handle = official.visual.trunk.blocks[7].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        official.visual(model.model_input(images[0])[0])
    handle.remove()
    np.testing.assert_allclose(model.image_state(images[0], 7).tokens.numpy(), seen[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_no_such_layer(model, images, layer):
    with pytest.raises(InputError, match="layers 0 to 11"):
        model.image_state(images[0], layer)


def test_gradients_flow_to_the_tokens_alone(model, official, images):
    tokens = model.image_state(images[0], 8).tokens
    tokens = (0.8 * tokens + 0.2 * torch.randn(2, *tokens.shape[1:], generator=torch.manual_seed(0))).requires_grad_()
    text = torch.from_numpy(model.encode_texts(TEXTS[:1])[0])
    (gradient,) = torch.autograd.grad((model.finish(tokens, 8) @ text).sum(), [tokens])
    rest = tokens
    for block in official.visual.trunk.blocks[9:]:
        rest = block(rest)
    pooled = torch.nn.functional.normalize(official.visual.head(official.visual.trunk.norm(rest)[:, 0]), dim=-1)
    (reference,) = torch.autograd.grad((pooled @ text).sum(), [tokens])
    assert (gradient - reference).abs().max() < 1e-3 * reference.abs().max()
    weights = [*model.image.parameters(), *model.text.parameters()]
    assert not any(weight.requires_grad or weight.grad is not None for weight in weights)


def test_last_block_for_the_class_token_alone(model, images):
    tokens = model.image_state(images[0], LAYERS - 2).tokens.clone().requires_grad_()
    last = model.image.blocks[-1]
    short, long = last.first_token(tokens), last(tokens)[:, :1]
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)
    weights = torch.randn(short.shape, generator=torch.manual_seed(1))
    for_short, for_long = (torch.autograd.grad((out * weights).sum(), [tokens])[0] for out in (short, long))
    torch.testing.assert_close(for_short, for_long, atol=1e-5, rtol=1e-4)


def test_activations_and_their_gradients(model, official, images):
    """Against timm's own blocks, with the gradient taken by a hook on the last block's first normalisation."""
    text = torch.from_numpy(model.encode_texts(TEXTS[:1])[0])
    found = model.activations(images[0], text)
    kept = []

    def keep(module, inputs, output):
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = official.visual.trunk.blocks[-1].norm1.register_forward_hook(keep)
    vector = official.encode_image(model.model_input(images[0])[0], normalize=True)[0]
    handle.remove()
    (gradient,) = torch.autograd.grad(official.logit_scale.exp() * (vector @ text), kept)
    assert found.values.shape == (196, 768) and found.grid == (14, 14)
    torch.testing.assert_close(found.values, kept[0][0, 1:].detach(), atol=1e-4, rtol=1e-4)
    assert (found.gradients - gradient[0, 1:]).abs().max() < 1e-3 * gradient[0, 1:].abs().max()
    assert gradient[0, 1:].abs().max() > 0


def test_patches_say_that_they_know_no_text(model, images):
    assert "patch_similarity" not in model.saliency_methods
    with pytest.raises(InputError, match="region captions"):
        model.patch_embeddings(images[0])


def write_layout(layout: str, state: dict[str, Tensor], folder: Path) -> None:
    if layout == "open_clip":
        from safetensors.torch import save_file

        save_file(state, folder / "open_clip_model.safetensors")
    elif layout == "training checkpoint":
        renamed = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": renamed}, folder / "epoch_3.pt")
    else:
        converted = hugging_face(state)
        assert len(converted) == 399
        torch.save(converted, folder / "pytorch_model.bin")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["open_clip", "training checkpoint", "Hugging Face"])
def test_every_layout_gives_the_same_model(layout, state, model, images, tmp_path, monkeypatch):
    built = []
    build = biomedclip.build_biomedclip
    monkeypatch.setattr(biomedclip, "build_biomedclip", lambda weights: built.append(build(weights)) or built[-1])
    write_layout(layout, state, tmp_path)
    loaded = load_finetuned(tmp_path, {TOKENIZER: biomedclip_files()[TOKENIZER]}, "cpu", "float32")
    for file in tmp_path.iterdir():
        file.unlink()
    found = built[0].state_dict()
    equal = [torch.equal(found[name], value) for name, value in state.items()]
    assert len(found) == 351 and sum(equal) == 351
    assert np.array_equal(loaded.encode_images(images), model.encode_images(images))
    assert np.array_equal(loaded.encode_texts(TEXTS), model.encode_texts(TEXTS))
    assert loaded.logit_scale == model.logit_scale


@pytest.mark.slow
def test_loads_without_any_network_and_without_a_hub_cache(tmp_path):
    """In a fresh process, where no variable says "offline" and every attempt at a connection is counted."""
    files = biomedclip_files()
    program = f"""
import sys
attempts = []
def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        attempts.append((event, arguments))
        raise OSError("no network here")
sys.addaudithook(watch)
from pathlib import Path
from MedCLIPSAMLib.clip.registry import load_clip
model = load_clip("biomedclip", {{k: Path(v) for k, v in { ({k: str(v) for k, v in files.items()})!r}.items()}}, "cpu",
                  "float32")
assert model.encode_texts(["brain mri"]).shape == (1, 512)
print("attempts", attempts)
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "attempts []"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.003), (torch.bfloat16, 0.02)])
def test_half_precision_is_close(model, images, dtype, tolerance):
    """On the CPU, where it is slow but the same arithmetic; the gradient is as small as M2IB's."""
    text = torch.from_numpy(model.encode_texts(TEXTS[:1])[0])
    tokens = model.image_state(images[0], 9).tokens
    tokens = (0.7 * tokens + 0.3 * torch.randn(tokens.shape, generator=torch.manual_seed(2))).requires_grad_()

    def run(tower: ImageTower) -> tuple[Tensor, Tensor]:
        vector = tower.vectors(tokens, 10)
        assert vector.dtype == torch.float32
        return vector.detach(), torch.autograd.grad(1e-3 * (vector @ text).mean(), [tokens])[0]

    tower = copy.deepcopy(model.image)
    tower.set_precision(dtype)
    (exact, exact_gradient), (vector, gradient) = run(model.image), run(tower)
    assert 0 < (vector - exact).norm() < tolerance
    assert (gradient - exact_gradient).norm() < tolerance * exact_gradient.norm()


def test_wrong_files(tmp_path, model):
    files = biomedclip_files()
    with pytest.raises(InputError, match=r"open_clip_pytorch_model.bin is not a tokenizer"):
        load_clip("biomedclip", {**files, TOKENIZER: files["biomedclip"]}, "cpu", "float32")
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(30600))]))
    with pytest.raises(InputError, match="knows 30522"):
        load_clip("biomedclip", {**files, TOKENIZER: other}, "cpu", "float32")
