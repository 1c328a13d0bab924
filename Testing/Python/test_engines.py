"""Engines by name: what a name means, what it needs, and a whole run with full-size models of random weights."""

from __future__ import annotations

import json
import socket
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from MedCLIPSAMLib import weights
from MedCLIPSAMLib.engines import check_choice, engine_names, engine_weights, load_engine, segmenter_names
from MedCLIPSAMLib.errors import ChecksumError, InputError, MissingWeightsError
from MedCLIPSAMLib.model_checks import check_models
from MedCLIPSAMLib.prompt_sets import load_prompt_set
from MedCLIPSAMLib.recipe import Recipe, load_recipe, split_engine


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to connect fails the test that makes it."""

    def refuse(*arguments, **_):
        raise AssertionError(f"a connection was attempted: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def empty_places(tmp_path, monkeypatch) -> Path:
    """An empty offline folder and an empty user folder."""
    folder = tmp_path / "offline"
    folder.mkdir()
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(folder))
    monkeypatch.setattr(weights, "user_folder", lambda: tmp_path / "user")
    return folder


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("lite", ("lite", None)),
        ("biomedclip+medsam", ("biomedclip", "medsam")),
        ("finetuned:/a/b", ("finetuned:/a/b", None)),
        ("finetuned:/a/b+sam-vit-b", ("finetuned:/a/b", "sam-vit-b")),
        ("finetuned:/a/my+Model", ("finetuned:/a/my+Model", None)),
    ],
)
def test_a_name_falls_into_clip_and_segmenter(name, parts):
    assert split_engine(name) == parts


def test_a_folder_with_a_plus_sign_stays_whole(tmp_path):
    folder = tmp_path / "model+medsam"
    folder.mkdir()
    assert split_engine(f"finetuned:{folder}") == (f"finetuned:{folder}", None)
    assert split_engine(f"finetuned:{folder}+medsam") == (f"finetuned:{folder}", "medsam")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("biomedclap", r"'biomedclap' is unknown.*biomedclip"),
        ("biomedclip+samm", r"segmenter 'samm' is unknown.*sam-vit-b"),
        ("pmc-clip", r"no token-based image tower.*retrieve"),  # it cannot say where in the image a text is
        ("finetuned:/no/such/folder", r"/no/such/folder does not exist"),
    ],
)
def test_unknown_names_say_what_is_known(name, message):
    with pytest.raises(InputError, match=message):
        check_choice(name, None, "auto")


def test_every_preset_of_every_engine_can_be_used():
    """No typing error in the settings shows only when a clinician chooses them."""
    from MedCLIPSAMLib.saliency.m2ib import M2IBSettings
    from MedCLIPSAMLib.saliency.registry import SALIENCY_METHODS

    known = {one.name for one in fields(Recipe)}
    for name in engine_names():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.about and recipe.segmenter in segmenter_names()
        for preset in (None, *(recipe.presets or {})):
            chosen = recipe.with_preset(preset)
            assert set((recipe.presets or {}).get(preset, {})) <= known
            assert chosen.saliency in SALIENCY_METHODS
            M2IBSettings(**chosen.m2ib)
            for prompt in chosen.prompts:
                assert load_prompt_set(prompt.removeprefix("set:")).prompts
            json.dumps(chosen.as_dict())


def test_a_segmenter_in_the_name_replaces_the_recipes_own():
    assert load_recipe("biomedclip").segmenter == "sam-vit-h"
    recipe = check_choice("biomedclip+medsam", "brain-mri", "cpu")
    assert (recipe.name, recipe.segmenter, recipe.m2ib["beta"]) == ("biomedclip+medsam", "medsam", 2.0)
    assert engine_weights("biomedclip+medsam") == ("biomedclip", "biomedclip-tokenizer", "medsam")
    assert set(engine_weights("lite+sam-vit-b")) > {"lite-medsam", "lite-alignment", "sam-vit-b"}


@pytest.mark.parametrize("name", ["biomedclip", "biomedclip+medsam", "clip-vit-b-16+sam-vit-l", "biomedclip+sam-med2d"])
def test_offline_an_engine_names_all_that_is_missing(name, empty_places, no_network):
    with pytest.raises(MissingWeightsError) as caught:
        load_engine(name, device="cpu")
    for needed in engine_weights(name):
        assert weights.registry()[needed].file in str(caught.value)


def test_offline_the_lite_engine_loads(monkeypatch, empty_places, no_network):
    try:
        segmenter = load_engine("lite", device="cpu")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    assert {one.status for one in segmenter.weights} == {"verified"}


class _Model:
    """What :func:`check_models` asks of a model."""

    name = "a model"
    saliency_methods = frozenset({"m2ib", "gradcam"})
    prompt_kinds = trained_kinds = frozenset({"boxes"})
    masks_per_prompt = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"saliency": "patch_similarity"},
            "cannot serve the saliency method 'patch_similarity'; it serves: gradcam, m2ib",
        ),
        ({"visual_prompt": "points"}, "cannot take 'points'.*it takes: boxes"),
        ({"candidates": "staple"}, "gives one mask for each prompt"),
    ],
)
def test_what_a_model_cannot_do_is_said_before_it_runs(changes, message):
    recipe = load_recipe("biomedclip")
    check_models(recipe, _Model(), _Model())
    with pytest.raises(InputError, match=message):
        check_models(replace(recipe, **changes), _Model(), _Model())


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory) -> Path:
    """BiomedCLIP and SAM ViT-B in full size, random weights, as the official files are named and laid out."""
    import torch
    from full_models import biomedclip_files

    from MedCLIPSAMLib.torchvision_import import ensure_torchvision

    ensure_torchvision()
    from segment_anything import sam_model_registry

    folder = tmp_path_factory.mktemp("own")
    for name, path in biomedclip_files().items():
        target = folder / weights.registry()[name].file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(sam_model_registry["vit_b"]().state_dict(), folder / weights.registry()["sam-vit-b"].file)
    return folder


@pytest.mark.slow
def test_a_wrong_file_is_never_loaded_unless_the_user_says_that_it_is_his_own(random_folder, monkeypatch, no_network):
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(random_folder))
    monkeypatch.delenv("MEDCLIPSAM_OWN_WEIGHTS", raising=False)
    with pytest.raises(ChecksumError):
        load_engine("biomedclip+sam-vit-b", device="cpu")


@pytest.mark.slow
def test_the_papers_engine_from_end_to_end(random_folder, monkeypatch, no_network, tmp_path, data_dir):
    """A real image through full-size models; the mask means nothing, the result says so, and it is the same twice."""
    from typer.testing import CliRunner

    from MedCLIPSAMLib.cli import app
    from MedCLIPSAMLib.file_io import read_image

    monkeypatch.setenv("MEDCLIPSAM_OWN_WEIGHTS", str(random_folder))
    image = sorted((data_dir / "breast_ultrasound_tumour" / "test" / "images").glob("*.png"))[0]
    arguments = ["segment", str(image), "--engine", "biomedclip+sam-vit-b", "--device", "cpu"]
    arguments += ["--preset", "authors-breast-ultrasound", "--prompt", "breast tumor"]
    outcome = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
    assert outcome.exit_code == 0, outcome.output
    assert "not verified" in outcome.output
    report = json.loads((tmp_path / "out" / "result.json").read_text())
    assert report["engine"] == "biomedclip+sam-vit-b" and report["saliency_method"] == "m2ib"
    assert {one["name"]: one["status"] for one in report["weights"]} == {
        "biomedclip": "unverified",
        "biomedclip-tokenizer": "unverified",
        "sam-vit-b": "unverified",
    }
    assert report["presence"]["score"] is None
    assert {"saliency", "coarse mask", "image encoding", "mask"} <= set(report["seconds"])
    shape = read_image(image).array.shape[:2]
    entropy = read_image(tmp_path / "out" / "entropy.nrrd").array
    assert entropy.squeeze().shape == shape and 0 <= entropy.min() <= entropy.max() <= np.log(2) + 1e-6
    assert (tmp_path / "out" / "overview.png").stat().st_size > 10_000


def test_fetch_shows_all_that_an_engine_lacks_before_it_asks(empty_places, monkeypatch):
    from typer.testing import CliRunner

    from MedCLIPSAMLib.cli import app

    monkeypatch.delenv("MEDCLIPSAM_WEIGHTS")  # offline nothing can be fetched at all
    outcome = CliRunner().invoke(app, ["weights", "fetch", "--engine", "biomedclip+medsam"], input="n\n")
    assert outcome.exit_code == 1
    for name in engine_weights("biomedclip+medsam"):
        weight = weights.registry()[name]
        assert all(text in outcome.output for text in (weight.name, str(weight.bytes), weight.sha256, weight.licence))


def test_a_run_without_its_weights_leaves_no_new_folder(empty_places, tmp_path):
    from typer.testing import CliRunner

    from MedCLIPSAMLib.cli import app

    for folder, was_there in ((tmp_path / "new", False), (tmp_path / "old", True)):
        if was_there:
            folder.mkdir()
        arguments = ["segment", "--sample", "breast-ultrasound", "--engine", "biomedclip", "--output", str(folder)]
        outcome = CliRunner().invoke(app, arguments)
        assert outcome.exit_code == 2 and "sam_vit_h_4b8939.pth" in outcome.output
        assert folder.exists() == was_there


def test_a_folder_without_a_checkpoint_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(InputError, match="should hold one checkpoint"):
        check_choice(f"finetuned:{tmp_path}", None, "cpu")
    with pytest.raises(InputError, match="no folder is named"):
        check_choice("finetuned:", None, "cpu")


def test_a_result_names_the_fine_tuned_checkpoint(tmp_path):
    """By its SHA-256, so that another file in its place leaves a trace."""
    import hashlib

    try:
        shipped = weights.verified("lite-alignment")
    except MissingWeightsError as error:
        pytest.skip(str(error))
    (tmp_path / "lite-alignment.safetensors").write_bytes(shipped.read_bytes())
    segmenter = load_engine(f"finetuned:{tmp_path}", device="cpu")
    own = next(one for one in segmenter.weights if one.name == "fine-tuned")
    assert own.status == "unverified" and own.sha256 == hashlib.sha256(shipped.read_bytes()).hexdigest()
    rng = np.random.default_rng(0)
    segmenter.set_image(rng.integers(0, 255, (64, 64), np.uint8))
    segmenter.recipe = replace(segmenter.recipe, samples=1)
    assert any("fine-tuned weights" in text for text in segmenter.segment("breast tumor", gate=False).warnings)
