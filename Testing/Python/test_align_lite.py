"""Training of the lite alignment on planted features: it learns, resumes exactly, and respects true captions."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from MedCLIPSAMLib.errors import InputError  # noqa: E402
from MedCLIPSAMTraining.align_lite import AlignmentSettings, Trainer  # noqa: E402
from MedCLIPSAMTraining.alignment_batches import BatchSource, CaptionSource  # noqa: E402
from MedCLIPSAMTraining.alignment_data import (  # noqa: E402
    FeatureStore,
    TrainingImage,
    augment,
    find_images,
    half_of_subjects,
)
from MedCLIPSAMTraining.alignment_export import (  # noqa: E402
    ACCEPTED,
    ACCEPTED_SLICES,
    fit_logistic,
    without_target,
)
from MedCLIPSAMTraining.captions import CONCEPTS, NAMES, REGION_NAMES, REGIONS, description_matrix  # noqa: E402
from MedCLIPSAMTraining.distractors import DISTRACTORS, HELD_OUT  # noqa: E402

SETTINGS = AlignmentSettings(steps=12, batch=6, width=64, depth=2, learning_rate=2e-3)
TASKS = [("breast", "benign"), ("breast", "malignant"), ("brain", ""), ("xray", ""), ("ct", "")]


def planted_store(folder: Path) -> FeatureStore:
    """Twenty images of noise in which a square target carries a direction of its task, its surroundings another."""
    rng = np.random.default_rng(0)
    images = [
        TrainingImage("planted", task, label, "train", f"case{n}", Path(f"{n}.png"), Path(f"{n}.png"))
        for n in range(20)
        for task, label in [TASKS[n % len(TASKS)]]
    ]
    store = FeatureStore(folder, images, variants=1)
    directions = rng.standard_normal((10, 736)) * 2
    for index, image in enumerate(images):
        mask = np.zeros((64, 64), np.uint8)
        top, left = rng.integers(8, 30, 2)
        mask[top : top + 20, left : left + 20] = 255
        inside = mask[::2, ::2].reshape(-1, 1) > 0
        kind = [task for task, _ in TASKS].index(image.task)
        signal = np.where(inside, directions[kind], directions[kind + 5])
        store.tokens[0][index] = signal + rng.standard_normal((1024, 736))
        store.masks[0][index] = mask
        store.valid[0][index] = 255
        store.done[0][index] = 1
    return store


def embed(texts: list[str]) -> np.ndarray:
    """A fixed vector per text: the hash of its words, so that equal words mean similar vectors."""
    out = np.zeros((len(texts), 384), np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            out[row] += np.random.default_rng(list(word.encode())).standard_normal(384)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def captions() -> CaptionSource:
    return CaptionSource(embed)


def new_trainer(store: FeatureStore, captions: CaptionSource, settings: AlignmentSettings = SETTINGS) -> Trainer:
    views = [(index, 0) for index in range(len(store.images))]
    return Trainer(settings, BatchSource(store, views), captions, torch.device("cpu"))


def test_finds_the_planted_target(tmp_path: Path, captions: CaptionSource) -> None:
    store = planted_store(tmp_path)
    trainer = new_trainer(store, captions, replace(SETTINGS, steps=60))
    while trainer.step < 60:
        trainer.train_step()
    tower = trainer.tower.eval()
    text = tower.text_vectors(torch.from_numpy(embed(["brain tumor"])))[0]
    index = 2
    features = tower.normalise(torch.from_numpy(store.tokens[0][index].astype(np.float32))[None])
    tokens = tower.transform(tower.with_position(tower.coarse_tokens(features)))
    with torch.no_grad():
        similarity = (tower.patch_vectors(features, tokens)[0] @ text).numpy()
    inside = store.masks[0][index][::2, ::2] > 0
    assert similarity[inside].min() > similarity[~inside].max()
    other = tower.text_vectors(torch.from_numpy(embed(["breast tumor"])))[0]
    with torch.no_grad():
        wrong = (tower.patch_vectors(features, tokens)[0] @ other).numpy()
    assert wrong.max() < similarity[inside].min()


def test_resumed_run_equals_uninterrupted(tmp_path: Path, captions: CaptionSource) -> None:
    store = planted_store(tmp_path)
    whole = new_trainer(store, captions)
    for _ in range(6):
        whole.train_step()
    first = new_trainer(store, captions)
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "checkpoint.pt")
    second = new_trainer(store, captions)
    second.resume(tmp_path / "checkpoint.pt")
    for _ in range(3):
        second.train_step()
    for key, value in whole.tower.state_dict().items():
        assert torch.equal(value, second.tower.state_dict()[key]), key


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path, captions: CaptionSource) -> None:
    store = planted_store(tmp_path)
    new_trainer(store, captions).save(tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="other settings"):
        new_trainer(store, captions, replace(SETTINGS, seed=1)).resume(tmp_path / "checkpoint.pt")


def test_store_of_other_images_is_refused(tmp_path: Path) -> None:
    store = planted_store(tmp_path)
    with pytest.raises(InputError, match="other images"):
        FeatureStore(tmp_path, store.images[:5], variants=1)


def test_captions_that_describe_a_region_are_never_its_negatives(captions: CaptionSource) -> None:
    rng = np.random.default_rng(0)
    regions = rng.integers(0, len(REGION_NAMES) - 1, 200)
    texts, same = captions.draw(regions, rng)
    assert texts.shape[0] == same.shape[0] == same.shape[1] > 200
    assert same.diagonal().all()
    malignant = np.flatnonzero(regions == REGION_NAMES.index("malignant breast tumour"))
    benign = np.flatnonzero(regions == REGION_NAMES.index("benign breast tumour"))
    block = same[malignant][:, benign]  # "breast tumour" of a benign case describes the malignant one, "benign" not
    assert block.any()
    assert not block.all()
    brain = np.flatnonzero(regions == REGION_NAMES.index("normal brain tissue"))
    assert not same[malignant][:, brain].any()
    assert not same[: len(regions), len(regions) :].any()  # what names nothing learnt describes no region


def test_caption_tables_fit_together() -> None:
    matrix = description_matrix()
    assert matrix.any(axis=1).all()
    for choices in REGIONS.values():
        assert set(choices) <= set(NAMES)
        assert sum(choices.values()) == pytest.approx(1)
    words = {text.lower() for texts in CONCEPTS.values() for text in texts}
    assert {"brain tumor", "breast tumor", "lungs"} <= words
    assert len(HELD_OUT) == 30
    for text in HELD_OUT:  # the presence test is honest only while nothing of it is in training
        assert not any(re.search(rf"\b{text}\b", caption.lower()) for caption in DISTRACTORS), text


def test_augment_moves_image_and_mask_together() -> None:
    image = np.full((120, 90), 20, np.uint8)
    mask = np.zeros((120, 90), np.uint8)
    mask[40:70, 30:60] = 1
    image[mask > 0] = 220
    for seed in range(8):
        view, view_mask = augment(image, mask, np.random.default_rng(seed), mirror=True)
        assert view.shape == view_mask.shape == image.shape
        inside, outside = view[view_mask > 0].mean(), view[view_mask == 0].mean()
        assert inside - outside > 60


def test_logistic_fit_separates_and_accepts_the_wanted_share() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.2
    rows = rng.standard_normal((2000, 3)) + labels[:, None] * np.array([2.0, 1.0, 0.0])
    # Rare examples of a kind of their own, which only the first feature tells apart, weigh as much as the many others.
    rows = np.concatenate([rows, rng.standard_normal((20, 3)) + np.array([-1.0, 2.0, 0.0])])
    labels = np.concatenate([labels, np.zeros(20, bool)])
    groups = np.where(labels, 0, 1)
    groups[-20:] = 2
    calibration = fit_logistic(rows, labels, groups)
    alike = fit_logistic(rows, labels, np.where(labels, 0, 1))
    assert calibration.weights[1] < alike.weights[1] - 0.2
    scores = np.array([calibration.score(row) for row in rows])
    assert np.mean(scores[labels] >= calibration.threshold) == pytest.approx(ACCEPTED, abs=0.01)
    assert np.mean(scores[labels] >= calibration.slice_threshold) == pytest.approx(ACCEPTED_SLICES, abs=0.01)
    assert np.mean(scores[~labels] >= calibration.threshold) < 0.6
    assert calibration.weights[0] > 0.3 and abs(calibration.weights[2]) < 0.3


def test_a_healthy_view_has_no_lesion() -> None:
    """A brain gets the other half's mirror image, a breast the part beside the lesion."""
    rng = np.random.default_rng(0)
    brain = np.zeros((80, 100), np.uint8)
    brain[10:70, 10:90] = rng.integers(40, 90, (60, 80))
    mask = np.zeros((80, 100), np.uint8)
    mask[30:45, 20:35] = 1
    brain[mask > 0] = 250
    twin = without_target(brain, mask, "brain")
    assert twin.max() < 250 and (twin[:, 50:] == brain[:, 50:]).all() and (twin == twin[:, ::-1]).all()
    mask[30:45, 20:60] = 1
    assert without_target(brain, mask, "brain") is None, "the lesion crosses the middle"
    mask[:] = 0
    mask[30:45, 20:35] = 1
    assert (without_target(brain, mask, "breast") == brain[:, 35:]).all()
    assert without_target(brain, np.zeros_like(mask), "breast") is None
    assert without_target(brain, mask, "xray") is None


def test_halves_of_the_real_subjects(data_dir: Path) -> None:
    images = [image for image in find_images(data_dir) if image.split == "train"]
    first, second = half_of_subjects(images, "A"), half_of_subjects(images, "B")
    assert len(first) + len(second) == len(images)
    subjects = {(image.source, image.subject) for image in first}
    assert not subjects & {(image.source, image.subject) for image in second}
    breast = [sum(image.task == "breast" for image in half) for half in (first, second)]
    assert abs(breast[0] - breast[1]) <= 1
    assert json.dumps([str(image.image) for image in half_of_subjects(images, "A")]) == json.dumps(
        [str(image.image) for image in first]
    )
    with pytest.raises(InputError, match="A or B"):
        half_of_subjects(images, "C")
