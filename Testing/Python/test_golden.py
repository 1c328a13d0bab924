"""The lite engine, as it ships, on the simulated samples of known truth and on real validation images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from MedCLIPSAMLib.evaluation import evaluate, find_cases
from MedCLIPSAMLib.metrics import dsc
from MedCLIPSAMLib.pipeline import TextSegmenter
from MedCLIPSAMLib.resources import resource_path
from MedCLIPSAMLib.samples import load_sample
from MedCLIPSAMLib.weights import registry

SAMPLES = {"brain-mri": 0.90, "breast-ultrasound": 0.90, "chest-ct": 0.90, "chest-xray": 0.90}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_found(lite: TextSegmenter, name: str) -> None:
    sample = load_sample(name)
    lite.set_image(sample.image.array, sample.image.window)
    result = lite.segment(sample.prompt)
    assert result.presence.accepted
    assert dsc(result.mask, sample.truth) > SAMPLES[name]
    wrong = result.mask != sample.truth
    assert result.entropy[wrong].mean() > 5 * result.entropy[~wrong].mean()


def test_another_organ_is_not_found(lite: TextSegmenter) -> None:
    sample = load_sample("chest-xray")
    lite.set_image(sample.image.array, sample.image.window)
    for prompt in ("brain tumor", "breast tumor", "kidney", "a cat"):
        result = lite.segment(prompt)
        assert result.skipped, prompt
        assert not result.mask.any()
        assert any("does not seem to be in this image" in warning for warning in result.warnings)
    assert lite.segment("kidney", gate=False).mask.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "prompt", "golden"),
    [
        ("breast_ultrasound_tumour", "breast tumor", 0.925),
        ("brain_mri_tumour", "brain tumor", 0.895),
        ("chest_xray_lung", "lungs", 0.941),
    ],
)
def test_validation_images_give_the_golden_figure(
    lite: TextSegmenter, data_dir: Path, task: str, prompt: str, golden: float
) -> None:
    cases = find_cases(data_dir / task, "val")
    report = evaluate(lite, cases, prompt, stages=False, limit=8)
    (summary,) = report["datasets"].values()
    assert summary["dsc"]["mean"] == pytest.approx(golden, abs=0.02)


def test_shipped_alignment_is_the_registered_one_and_has_a_card() -> None:
    entry = registry()["lite-alignment"]
    path = resource_path("MedCLIPSAM", "Models", "lite-alignment.safetensors")
    assert entry.sha256 is not None
    assert path.stat().st_size == entry.bytes <= 12e6
    card = resource_path("MedCLIPSAM", "Models", "lite-alignment.md").read_text(encoding="utf-8")
    for word in ("BUSI", "figshare", "Shenzhen", "PyRadiomics", "Apache-2.0", "align_lite"):
        assert word in card


def test_recipe_names_a_known_saliency_method() -> None:
    from MedCLIPSAMLib.saliency.registry import SALIENCY_METHODS

    for path in resource_path("MedCLIPSAM", "Engines").glob("*.json"):
        recipe = json.loads(path.read_text(encoding="utf-8"))
        methods = {recipe["saliency"], *(p["saliency"] for p in recipe["presets"].values() if "saliency" in p)}
        assert methods <= set(SALIENCY_METHODS)
        assert np.isfinite(recipe["minimum_area"])
