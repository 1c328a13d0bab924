"""Fine-tuning of OpenAI's CLIP, a small one in the official file's layout, from the pairs to the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from MedCLIPSAMLib.torchvision_import import ensure_torchvision  # noqa: E402

ensure_torchvision()
pytest.importorskip("open_clip")

from finetune_pairs import read_rows, write_pairs  # noqa: E402
from full_models import random_clip  # noqa: E402
from PIL import Image  # noqa: E402
from test_finetune import ALONE, CPU  # noqa: E402

from MedCLIPSAMLib.clip import openai_clip  # noqa: E402
from MedCLIPSAMLib.clip.checkpoint_layouts import read_checkpoint, unwrapped  # noqa: E402
from MedCLIPSAMLib.clip.openai_clip import read_openai_clip  # noqa: E402
from MedCLIPSAMLib.clip.registry import finetuned_kind, finetuned_weights  # noqa: E402
from MedCLIPSAMLib.engines import engine_weights, load_engine  # noqa: E402
from MedCLIPSAMLib.errors import InputError, MissingWeightsError  # noqa: E402
from MedCLIPSAMLib.recipe import load_recipe  # noqa: E402
from MedCLIPSAMLib.retrieval_features import RetrievalModel, features  # noqa: E402
from MedCLIPSAMLib.retrieval_pairs import RetrievalPairs  # noqa: E402
from MedCLIPSAMTraining.finetune_data import DataSettings  # noqa: E402
from MedCLIPSAMTraining.finetune_models import load_trainable  # noqa: E402
from MedCLIPSAMTraining.finetune_run import RunOptions, run  # noqa: E402
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings  # noqa: E402
from MedCLIPSAMTraining.job_link import JobLink  # noqa: E402

SMALL = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}
SETTINGS = FinetuneSettings(
    model="clip-vit-b-16",
    batch=8,
    epochs=6,
    learning_rate=3e-3,
    temperature=0.1,
    schedule="cosine",
    validation_share=0.25,
)
TEXTS = ["A dark round spot", "a breast tumor"]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A small model as the published file is written, in a folder of the user's own weights."""
    monkeypatch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("weights")
    monkeypatch.setattr(openai_clip, "CONFIG", SMALL)
    monkeypatch.setattr("full_models.CLIP_VIT_B_16", SMALL)
    monkeypatch.setenv("MEDCLIPSAM_OWN_WEIGHTS", str(folder))
    yield SimpleNamespace(file=random_clip(folder)["clip-vit-b-16"])
    monkeypatch.undo()


@pytest.fixture(scope="module")
def finished(official: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A short run and its files."""
    folder = tmp_path_factory.mktemp("clip")
    pairs = write_pairs(folder, 32)
    options = RunOptions(folder / "model", folder / "work", workers=0, tensorboard=False)
    with JobLink() as link:
        files = run(SETTINGS, DataSettings(pairs), options, ALONE, link)
    images = [np.asarray(Image.open(folder / "images" / f"{number:03}.png")) for number in (0, 5)]
    return SimpleNamespace(files=files, folder=options.output, work=options.work, images=images, pairs=pairs)


def trained(finished: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the exported weights by open_clip itself, images and texts."""
    import open_clip

    model = open_clip.CLIP(**SMALL).eval()
    model.load_state_dict(torch.load(finished.folder / "open_clip_pytorch_model.bin", weights_only=True))
    trainee = load_trainable(replace(SETTINGS, dropout=0.0), CPU, finished.work)
    pixels = torch.stack([trainee.image_input(image) for image in finished.images])
    with torch.no_grad():
        ids = open_clip.tokenize(TEXTS, context_length=32)
        return model.encode_image(pixels, normalize=True).numpy(), model.encode_text(ids, normalize=True).numpy()


def test_it_learns_planted_pairs(finished: SimpleNamespace, official: SimpleNamespace) -> None:
    losses = [float(row["loss"]) for row in read_rows(finished.work / "steps.csv")]
    assert len(losses) == 18 and np.mean(losses[-3:]) < np.mean(losses[:3]) - 1.0
    card = json.loads((finished.folder / "finetune.json").read_text(encoding="utf-8"))
    assert card["base"]["name"] == "clip-vit-b-16" and card["settings"]["model"] == "clip-vit-b-16"
    before, after = (card["validation"][when]["text_to_image_top1"] for when in ("before", "after"))
    assert after > before
    begun = read_openai_clip(official.file).state_dict()
    state = read_checkpoint(finished.folder / "open_clip_pytorch_model.bin")
    assert state.keys() == begun.keys()
    same = {name for name, value in begun.items() if torch.equal(value, state[name])}
    assert same == {"logit_scale"}


def test_both_layouts_hold_the_same_and_open_clip_reads_the_folder(finished: SimpleNamespace) -> None:
    import open_clip

    first = read_checkpoint(finished.folder / "open_clip_pytorch_model.bin")
    second, wrapped = unwrapped(read_checkpoint(finished.folder / "training_checkpoint.pt"))
    assert wrapped and first.keys() == second.keys() and all(torch.equal(second[name], first[name]) for name in first)
    assert {path.name for path in finished.files} == {
        "open_clip_pytorch_model.bin",
        "training_checkpoint.pt",
        "open_clip_config.json",
        "finetune.json",
    }
    model = open_clip.create_model(f"local-dir:{finished.folder}").eval()
    with torch.no_grad():
        texts = model.encode_text(open_clip.tokenize(TEXTS, context_length=32), normalize=True).numpy()
    np.testing.assert_allclose(texts, trained(finished)[1], atol=1e-6)


def test_the_folder_opens_as_an_engine_and_for_retrieval(finished: SimpleNamespace, tmp_path: Path) -> None:
    name = f"finetuned:{finished.folder}"
    assert finetuned_kind(finished.folder) == "clip-vit-b-16" and finetuned_weights(finished.folder) == ()
    assert load_recipe(name).m2ib == load_recipe("clip-vit-b-16").m2ib
    assert engine_weights(f"{name}+lite-medsam") == ("lite-medsam",)
    images, texts = trained(finished)
    retrieved = RetrievalModel(name, "cpu")
    model = retrieved.load()
    assert model.name.startswith("CLIP ViT-B/16 fine-tuned")
    np.testing.assert_allclose(model.encode_images(finished.images), images, atol=1e-5)
    np.testing.assert_allclose(model.encode_texts(TEXTS), texts, atol=1e-5)
    files = [finished.pairs.parent / "images" / f"{number:03}.png" for number in (0, 5)]
    vectors = features(retrieved, RetrievalPairs(files, TEXTS), tmp_path)
    np.testing.assert_allclose(vectors[0], images, atol=1e-5)
    np.testing.assert_allclose(vectors[1], texts, atol=1e-5)
    try:
        engine = load_engine(f"{name}+lite-medsam", device="cpu")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    np.testing.assert_allclose(engine.clip.encode_images(finished.images), images, atol=1e-5)
    assert [one.name for one in engine.weights] == ["lite-medsam", "fine-tuned"]


def test_a_result_goes_on_with_the_vectors_that_it_had(finished: SimpleNamespace, tmp_path: Path) -> None:
    go_on = replace(SETTINGS, model=f"finetuned:{finished.folder}").filled("clip-vit-b-16")
    trainee = load_trainable(go_on, CPU, tmp_path)
    assert trainee.base["name"].endswith("open_clip_pytorch_model.bin")
    with torch.no_grad():
        pixels = torch.stack([trainee.image_input(image) for image in finished.images])
        found = [torch.nn.functional.normalize(trainee.image_features(pixels), dim=1).numpy()]
        found.append(torch.nn.functional.normalize(trainee.text_features(TEXTS), dim=1).numpy())
    for mine, expected in zip(found, trained(finished), strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_locked_layers_and_weight_decay(official: SimpleNamespace, tmp_path: Path) -> None:
    settings = replace(SETTINGS, locked_image_layers=2, locked_text_layers=-1).filled("clip-vit-b-16")
    trainee = load_trainable(settings, CPU, tmp_path)
    free = {name for name, value in trainee.module.named_parameters() if value.requires_grad}
    assert free and all(name.startswith("visual.") for name in free)
    assert {"visual.proj", "visual.ln_post.weight"} <= free
    assert {name.split(".")[3] for name in free if name.startswith("visual.transformer.resblocks")} == {"2"}
    assert not free & {"visual.class_embedding", "visual.conv1.weight", "visual.ln_pre.weight"}
    everything = load_trainable(SETTINGS.filled("clip-vit-b-16"), CPU, tmp_path)
    decayed, plain = everything.parameters_to_train()
    names = {id(value): name for name, value in everything.module.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {"text_projection", "visual.proj"} <= {names[id(value)] for value in decayed["params"]}
    tokens = {"positional_embedding", "visual.positional_embedding", "visual.class_embedding"}
    assert tokens <= {names[id(value)] for value in plain["params"]}
    for wrong, said in (({"locked_text_layers": 4}, "text tower has 3 layers"), ({"dropout": 0.1}, "has none")):
        with pytest.raises(InputError, match=said):
            load_trainable(replace(SETTINGS, **wrong).filled("clip-vit-b-16"), CPU, tmp_path)


def test_kinds_are_told_by_the_names_alone(official: SimpleNamespace, tmp_path: Path) -> None:
    """Also of safetensors and of what was saved around the weights; damaged files are left to the loader."""
    from safetensors.torch import save_file

    small = torch.zeros(2)
    for number, (names, kind) in enumerate(
        (
            (["visual.class_embedding", "text_projection"], "clip-vit-b-16"),
            (["module.visual.class_embedding"], "clip-vit-b-16"),
            (["visual.trunk.cls_token", "text.transformer.x"], "biomedclip"),
            (["vision_model.embeddings.class_embedding"], "biomedclip"),
        )
    ):
        for suffix, write in ((".safetensors", save_file), (".pt", torch.save)):
            path = tmp_path / f"{number}{suffix}"
            write({name: small.clone() for name in names}, str(path))
            assert finetuned_kind(path) == kind, path.name
            whole = path.read_bytes()
            for cut in (0, 4, 30, len(whole) // 2):
                path.write_bytes(whole[:cut])
                assert finetuned_kind(path) == "biomedclip"
    (tmp_path / "none").mkdir()
    assert finetuned_kind(tmp_path / "none") == "biomedclip"
    other = tmp_path / "other"
    other.mkdir()
    torch.save({"visual.class_embedding": small}, other / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: these are not the weights of CLIP ViT-B/16"):
        RetrievalModel(f"finetuned:{other}", "cpu").load()
