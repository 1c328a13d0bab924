"""Fine-tuning: steps with and without gradient caching, the course, locked layers, and both models from end to end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from finetune_pairs import read_rows, shared_features, write_pairs  # noqa: E402
from PIL import Image  # noqa: E402

from MedCLIPSAMLib.clip.lite import load_tower  # noqa: E402
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError, MissingWeightsError  # noqa: E402
from MedCLIPSAMTraining import finetune_run  # noqa: E402
from MedCLIPSAMTraining.finetune_data import DataSettings  # noqa: E402
from MedCLIPSAMTraining.finetune_distributed import Processes  # noqa: E402
from MedCLIPSAMTraining.finetune_loop import PairBatch, Trainer, use_bfloat16  # noqa: E402
from MedCLIPSAMTraining.finetune_models import kind_of, load_trainable  # noqa: E402
from MedCLIPSAMTraining.finetune_run import RunOptions, run  # noqa: E402
from MedCLIPSAMTraining.finetune_settings import LOSSES, Course, FinetuneSettings  # noqa: E402
from MedCLIPSAMTraining.finetune_towers import decay_groups  # noqa: E402
from MedCLIPSAMTraining.job_link import JobLink  # noqa: E402

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU, None)
SETTINGS = FinetuneSettings(
    model="lite", batch=8, epochs=2, temperature=0.3, learning_rate=1e-2, weight_decay=0.1, dropout=0.0
)


class TinyClip:
    """Two linear towers in double precision; a caption is its letters' codes. Large weights of the text's cost."""

    def __init__(self, dropout: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.module = torch.nn.ModuleDict(
            {
                name: torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Dropout(dropout), torch.nn.Linear(5, 4))
                for name in ("image", "text")
            }
        ).double()
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def image_features(self, batch):
        return self.module["image"](batch)

    def text_features(self, captions):
        codes = [[float(ord(letter)) / 100 for letter in caption] for caption in captions]
        return self.module["text"](torch.tensor(codes, dtype=torch.float64))

    def penalty(self):
        return 0.1 * (self.module["text"][0].weight ** 2).sum()

    def set_training(self, training):
        self.module.train(training)

    def parameters_to_train(self):
        return decay_groups(self.module, 0.1)


def tiny_batch(size: int = 8) -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    captions = [f"spot{number % 7:02}" for number in range(size)]  # the last one says the same as the first
    return PairBatch(images, captions, torch.tensor([number % 7 for number in range(size)]))


def tiny_trainer(settings: FinetuneSettings = SETTINGS, chunk: int = 0, dropout: float = 0.0) -> Trainer:
    return Trainer(TinyClip(dropout), settings, Course.of(settings, 5), ALONE, chunk)


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in trainer.model.module.parameters()]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_gradient_caching_equals_the_whole_batch(loss: str, chunk: int) -> None:
    settings = replace(SETTINGS, loss=loss, beta=0.5)
    whole, parts = tiny_trainer(settings), tiny_trainer(settings, chunk)
    expected, found = whole.backward(tiny_batch()), parts.backward(tiny_batch())
    assert found == pytest.approx(expected, abs=1e-12)
    for left, right in zip(gradients(whole), gradients(parts), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    # Not what the sum of the chunks' own losses would give.
    wrong = tiny_trainer(settings)
    size = max(chunk, 2)
    for start in range(0, 8 - size + 1, size):
        batch = tiny_batch()
        part = slice(start, start + size)
        wrong.backward(PairBatch(batch.images[part], batch.captions[part], batch.keys[part]))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(gradients(whole), gradients(wrong), strict=True))


def test_gradient_caching_repeats_the_dropout_of_its_first_pass() -> None:
    """The cached gradient must meet the very same activations; the reference does both passes in one graph."""
    trainer = tiny_trainer(chunk=4, dropout=0.5)
    trainer.model.set_training(True)
    loss = trainer.backward(tiny_batch())
    reference = tiny_trainer(dropout=0.5)
    reference.model.set_training(True)
    batch, images, texts = tiny_batch(), [], []
    for number in range(2):
        part = slice(4 * number, 4 * number + 4)
        reference._seed(number, 2)
        images.append(reference.model.image_features(batch.images[part]))
        texts.append(reference.model.text_features(batch.captions[part]))
    joint = LOSSES["dhn-nce"](torch.cat(images), torch.cat(texts), **SETTINGS.loss_arguments(), same_caption=batch.keys)
    (joint + reference.model.penalty()).backward()
    assert loss == pytest.approx(float(joint.detach()), abs=1e-12)
    for left, right in zip(gradients(trainer), gradients(reference), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    again = tiny_trainer(chunk=4, dropout=0.5)
    again.step = 1
    again.model.set_training(True)
    assert again.backward(tiny_batch()) != pytest.approx(loss, abs=1e-6), "another step draws another dropout"


def test_weight_decay_leaves_biases_alone_and_the_gradient_is_clipped() -> None:
    settings = replace(SETTINGS, learning_rate=1.0, warmup_steps=0, clip_gradient=1e-30)
    trainer = tiny_trainer(settings)
    before = {name: value.detach().clone() for name, value in trainer.model.module.named_parameters()}
    report = trainer.train_step(tiny_batch())
    assert report.gradient > 1e-3 and report.learning_rate == 1.0
    for name, value in trainer.model.module.named_parameters():
        factor = 0.9 if name.endswith("weight") else 1.0  # lr 1, decay 0.1; what is left of the gradient is below eps
        torch.testing.assert_close(value.detach(), factor * before[name], rtol=0, atol=1e-12)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    trainer = tiny_trainer()
    before = [value.detach().clone() for value in trainer.model.module.parameters()]
    batch = tiny_batch()
    batch.images[3, 2] = math.inf
    with pytest.raises(MedCLIPSAMError, match="step 1 is nan"):
        trainer.train_step(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.module.parameters(), strict=True))
    assert trainer.step == 0


def test_course_of_the_learning_rate() -> None:
    settings = replace(SETTINGS, learning_rate=1.0, epochs=6, decay_epochs=2, warmup_steps=4)
    course = Course.of(settings, epoch_steps=10)
    rates = [course.learning_rate(step) for step in range(60)]
    assert course.total == 60 and rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(rates[4:20]) == {1.0} and set(rates[20:40]) == {0.5} and set(rates[40:]) == {0.25}
    cosine = Course.of(replace(settings, schedule="cosine", steps=24), 10)
    assert cosine.total == 24 and cosine.learning_rate(4) == 1.0 and cosine.learning_rate(14) == pytest.approx(0.5)
    assert cosine.learning_rate(24) == pytest.approx(0)
    assert Course.of(replace(settings, warmup_steps=None), 100).warmup == 30  # 5 % of 600


def test_settings_and_the_models_own() -> None:
    paper = FinetuneSettings().filled("biomedclip")
    assert (paper.learning_rate, paper.temperature, paper.beta, paper.batch) == (1e-6, 0.6, 0.15, 64)
    assert (paper.loss, paper.validation_share, paper.minimum_characters) == ("dhn-nce", 0.15, 20)
    lite = FinetuneSettings(temperature=0.2, dropout=0.0).filled("lite")
    assert (lite.learning_rate, lite.temperature, lite.dropout) == (1e-3, 0.2, 0.0)
    for wrong, said in (({"loss": "clip"}, "dhn-nce, hn-nce"), ({"batch": 1}, "batch is 1"), ({"beta": -1}, "beta")):
        with pytest.raises(InputError, match=said):
            FinetuneSettings(**wrong)
    with pytest.raises(InputError, match="known: biomedclip, lite, clip-vit-b-16, finetuned:FOLDER"):
        kind_of("clip")
    with pytest.raises(InputError, match="does not exist"):
        kind_of("finetuned:/no/such/folder")
    with pytest.raises(InputError, match="divide"):
        Trainer(TinyClip(), SETTINGS, Course.of(SETTINGS, 5), Processes(0, 3, CPU, None))
    assert not use_bfloat16("auto", CPU) and use_bfloat16("bfloat16", CPU)


# ---- The lite model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 24)


@pytest.fixture(scope="module")
def kept_features() -> Path:
    return shared_features()


LITE = FinetuneSettings(
    model="lite", batch=6, epochs=5, learning_rate=1e-3, dropout=0.0, schedule="cosine", validation_share=0.25
)


@pytest.fixture(scope="module")
def finished(pairs: Path, kept_features: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A short run of the lite model, its result and what was said."""
    folder = tmp_path_factory.mktemp("lite")
    options = RunOptions(folder / "model", folder / "work", kept_features, workers=0, tensorboard=False)
    with JobLink() as link:
        try:
            files = run(LITE, DataSettings(pairs), options, ALONE, link)
        except MissingWeightsError as error:
            pytest.skip(str(error))
    return SimpleNamespace(files=files, options=options)


@pytest.mark.slow
def test_lite_learns_and_records(finished: SimpleNamespace) -> None:
    work = finished.options.work
    rows = read_rows(work / "steps.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 16)) and rows[-1]["epoch"] == "5"
    losses = [float(row["loss"]) for row in rows]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.5
    scores = read_rows(work / "validation.csv")
    assert [int(row["step"]) for row in scores] == [0, 3, 6, 9, 12, 15]
    card = json.loads((finished.options.output / "finetune.json").read_text(encoding="utf-8"))
    assert card["settings"]["loss"] == "dhn-nce" and card["data"]["training_pairs"] == 18
    best = max(scores[1:], key=lambda row: float(row["image_to_text_top1"]) + float(row["text_to_image_top1"]))
    assert card["exported_step"] == int(best["step"])
    assert card["validation"]["before"]["image_to_text_top1"] == float(scores[0]["image_to_text_top1"])


@pytest.mark.slow
def test_lite_result_opens_as_an_engine_with_the_trained_vectors(finished: SimpleNamespace, pairs: Path) -> None:
    from MedCLIPSAMLib.engines import load_engine

    engine = load_engine(f"finetuned:{finished.options.output}", device="cpu")
    assert engine.calibration is None, "the calibration of other weights is not kept"
    trained = load_trainable(
        replace(LITE, model=f"finetuned:{finished.options.output}").filled("lite"), CPU, finished.options.features
    )
    files = [pairs.parent / "images" / f"{number:03}.png" for number in (0, 5)]
    with torch.no_grad():
        images = trained.image_features(torch.stack([trained.image_input(file) for file in files]))
        texts = trained.text_features(["A dark round spot", "a breast tumor"])
    unit = [torch.nn.functional.normalize(some, dim=1).numpy() for some in (images, texts)]
    encoded = engine.clip.encode_images([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_allclose(encoded, unit[0], atol=1e-5)
    np.testing.assert_allclose(engine.clip.encode_texts(["A dark round spot", "a breast tumor"]), unit[1], atol=1e-5)
    shipped = load_trainable(LITE.filled("lite"), CPU, finished.options.features)
    with torch.no_grad():
        before = torch.nn.functional.normalize(shipped.text_features(["A dark round spot"]), dim=1).numpy()
    assert np.abs(before - unit[1][:1]).max() > 1e-2


@pytest.mark.slow
def test_only_the_projections_of_the_lite_model_are_trained(finished: SimpleNamespace, kept_features: Path) -> None:
    from safetensors.torch import load_file

    settings = replace(LITE, locked_text_layers=-1).filled("lite")
    model = load_trainable(settings, CPU, kept_features)
    free = {name.partition(".")[0] for name, value in model.module.named_parameters() if value.requires_grad}
    assert free == {"image_head"}
    with pytest.raises(InputError, match="has 0 layers"):
        load_trainable(replace(settings, locked_image_layers=2), CPU, kept_features)
    with pytest.raises(InputError, match="everything is locked"):
        load_trainable(replace(settings, locked_image_layers=-1), CPU, kept_features).parameters_to_train()
    shipped = dict(model.module.state_dict())
    trained = load_file(finished.options.output / "lite-alignment.safetensors")
    changed = {name.partition(".")[0] for name, value in trained.items() if not torch.equal(value, shipped[name])}
    assert changed == {"image_head", "text_head"}


@pytest.mark.slow
def test_the_similarity_of_patches_and_learnt_texts_is_kept(
    finished: SimpleNamespace, pairs: Path, kept_features: Path
) -> None:
    """The term against its definition on the engine's own patches, and what it does to a run."""
    from MedCLIPSAMLib.engines import load_engine
    from MedCLIPSAMTraining.captions import CONCEPTS

    learnt = [text for texts in CONCEPTS.values() for text in texts]
    shipped = load_engine("lite", device="cpu").clip
    files = sorted((pairs.parent / "images").glob("*.png"))
    images = [np.asarray(Image.open(file)) for file in files]
    patches = np.stack([shipped.patch_embeddings(image)[0].reshape(-1, 256) for image in images])
    before = shipped.encode_texts(learnt)
    judge = load_trainable(replace(LITE, keep_patches=1.0).filled("lite"), CPU, kept_features)
    judge.settle(images)
    assert float(judge.penalty().detach()) == pytest.approx(0, abs=1e-9)
    changes = {}
    for keep in (0.0, 30.0):
        settings = replace(LITE, keep_patches=keep, epochs=10, validation_share=0.0)
        output = finished.options.output.parent / f"kept-{keep:g}"
        options = replace(finished.options, output=output, work=output.with_name(f"kept-{keep:g}-work"))
        with JobLink() as link:
            run(settings, DataSettings(pairs), options, ALONE, link)
        after = load_engine(f"finetuned:{output}", device="cpu").clip.encode_texts(learnt)
        changes[keep] = float(((patches @ (after - before).T).astype(np.float64) ** 2).mean())
        judge.load_state(load_tower(output / "lite-alignment.safetensors").state_dict())
        # All 1024 patches of every image here; the term knows 16 of each.
        assert float(judge.penalty().detach()) == pytest.approx(changes[keep], rel=0.15)
    assert changes[30.0] < 0.2 * changes[0.0]


def test_a_term_that_a_model_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only the lite model"):
        load_trainable(FinetuneSettings(keep_patches=1.0).filled("biomedclip"), CPU, tmp_path)


@pytest.mark.slow
def test_what_cannot_be_run_is_told(
    pairs: Path, kept_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_run, "LOCK_PATIENCE", 0.1)
    options = RunOptions(tmp_path / "model", tmp_path / "work", kept_features, workers=0)
    with JobLink() as link:
        with pytest.raises(InputError, match="fewer than one batch of 64"):
            run(replace(LITE, batch=64), DataSettings(pairs), options, ALONE, link)
        with pytest.raises(InputError, match="layout 'open_clip': lite has lite"):
            run(LITE, DataSettings(pairs), replace(options, layouts=("open_clip",)), ALONE, link)
        lock = finetune_run.FileLock(options.work / "lock")
        assert lock.acquire()
        with pytest.raises(InputError, match="another run works in"):
            run(LITE, DataSettings(pairs), options, ALONE, link)
        lock.release()
        with pytest.raises(InputError, match="1 pair for validation"):
            run(replace(LITE, validation_share=0.05), DataSettings(pairs), options, ALONE, link)
    assert not list(options.output.iterdir())


# ---- BiomedCLIP ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_biomedclip_with_random_weights(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the last layers: locked ones keep their bits, and the three layouts hold one and the same model."""
    pytest.importorskip("open_clip")
    from full_models import biomedclip_files

    from MedCLIPSAMLib.clip.checkpoint_layouts import read_checkpoint, to_open_clip
    from MedCLIPSAMLib.clip.registry import load_finetuned

    files = biomedclip_files()
    monkeypatch.setenv("MEDCLIPSAM_OWN_WEIGHTS", str(files["biomedclip"].parents[1]))
    settings = FinetuneSettings(
        batch=4, steps=2, validation_share=0.0, locked_image_layers=11, locked_text_layers=11, learning_rate=1e-3
    )
    options = RunOptions(tmp_path / "model", tmp_path / "work", chunk=2, workers=0, save_every=100, tensorboard=False)
    with JobLink() as link:
        run(settings, DataSettings(pairs), options, ALONE, link)
    begun = read_checkpoint(files["biomedclip"])
    layouts = {"open_clip_pytorch_model.bin": "open_clip", "training_checkpoint.pt": "training checkpoint"}
    layouts["pytorch_model.bin"] = "Hugging Face"
    first = None
    for name, layout in layouts.items():
        state, found = to_open_clip(read_checkpoint(options.output / name))
        assert found == layout and len(state) == len(begun)
        first = first or state
        assert all(torch.equal(state[key], value) for key, value in first.items())
        del state
    changed = {key for key, value in first.items() if not torch.equal(value, begun[key])}
    assert {"visual.head.proj.weight", "text.proj.0.weight", "visual.trunk.blocks.11.attn.qkv.weight"} <= changed
    fixed = ("visual.trunk.blocks.10.", "visual.trunk.patch_embed", "text.transformer.embeddings", "logit_scale")
    assert not any(key.startswith(fixed) for key in changed)
    image = np.asarray(Image.open(pairs.parent / "images" / "000.png"))
    engine = load_finetuned(options.output, {}, "cpu", "float32")  # it brings its tokenizer
    model = load_trainable(
        replace(settings, model=f"finetuned:{options.output}").filled("biomedclip"), CPU, tmp_path / "none"
    )
    torch.testing.assert_close(model.image_input(image), engine.model_input(image)[0][0])
    with torch.no_grad():
        own = torch.nn.functional.normalize(model.image_features(model.image_input(image)[None]), dim=1)
        words = torch.nn.functional.normalize(model.text_features(["dark tumor in the breast", "ct"]), dim=1)
    np.testing.assert_allclose(engine.encode_images([image]), own.numpy(), atol=1e-5)
    np.testing.assert_allclose(engine.encode_texts(["dark tumor in the breast", "ct"]), words.numpy(), atol=1e-5)


# ---- The command line ----------------------------------------------------------------------------------------------


def test_processes_are_taken_out_of_the_arguments() -> None:
    from MedCLIPSAMLib.cli_training import take_processes

    assert take_processes(["--data", "a.csv"]) == (1, ["--data", "a.csv"])
    assert take_processes(["--processes", "4", "--data", "a"]) == (4, ["--data", "a"])
    assert take_processes(["--batch=8", "--processes=2"]) == (2, ["--batch=8"])
    for wrong in (["--processes"], ["--processes", "0"], ["--processes=two"], ["--processes=-1"]):
        with pytest.raises(ValueError, match="--processes"):
            take_processes(wrong)


@pytest.mark.slow
def test_help_and_errors_of_the_command(capfd: pytest.CaptureFixture, tmp_path: Path) -> None:
    """The command hands on everything, ``--help`` too, and the child's exit code comes back."""
    import typer
    from typer.testing import CliRunner

    from MedCLIPSAMLib.cli_training import add_training

    app = typer.Typer()
    app.command()(lambda: None)  # a second command, so that names are asked for
    add_training(app)
    assert CliRunner().invoke(app, ["finetune", "--help"]).exit_code == 0
    said = capfd.readouterr().out
    assert "medclipsam finetune" in said and "--locked-image-layers" in said and "dhn-nce" in said
    missing = ["finetune", "--data", str(tmp_path / "none.csv"), "--output", str(tmp_path / "out"), "--model", "lite"]
    assert CliRunner().invoke(app, missing).exit_code == 2
    said = capfd.readouterr().err
    assert "none.csv does not exist" in said and "Traceback" not in said


def test_the_form_of_the_panel_fits_the_command() -> None:
    """Every option of the form is one of the trainer's, with the same default."""
    import typer

    from MedCLIPSAMLib.jobs import descriptions
    from MedCLIPSAMTraining.finetune import main

    app = typer.Typer(add_completion=False)
    app.command()(main)
    command = typer.main.get_command(app)
    entry = descriptions()[0]
    assert entry.module == "MedCLIPSAMTraining.finetune" and entry.unavailable() is None
    here = Path(__file__)
    context = command.make_context("finetune", entry.command({"data": str(here), "validation": str(here)}, here.parent))
    assert context.params["output"] == here.parent / "model" and context.params["work"] == here.parent / "work"
    defaults = {parameter.name: parameter.default for parameter in command.params}
    for field in entry.fields:
        if field.default not in (None, ""):
            assert defaults[field.name] == field.default, field.name
