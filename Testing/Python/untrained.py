"""The lite engine with random weights in the part that this project trains: every stage runs, and means nothing."""

from __future__ import annotations

import torch

from MedCLIPSAMLib.clip.lite import LiteClip
from MedCLIPSAMLib.clip.lite_tower import LiteTower
from MedCLIPSAMLib.clip.minilm import MiniLM
from MedCLIPSAMLib.pipeline import TextSegmenter
from MedCLIPSAMLib.recipe import Recipe
from MedCLIPSAMLib.sam.lite_medsam import LiteMedSAM
from MedCLIPSAMLib.weights import verified

RECIPE = Recipe(
    name="untrained",
    saliency="patch_similarity",
    m2ib={"layer": 0, "beta": 0.1, "steps": 3, "copies": 2},
    maximum_components=2,  # a random map falls into many, and each costs a run of the mask decoder
    samples=3,
)


def untrained_segmenter(seed: int = 0, recipe: Recipe = RECIPE) -> TextSegmenter:
    """Return real LiteMedSAM and MiniLM under a random alignment, without presence calibration, on the CPU.

    Raises:
        MissingWeightsError: One of the two packages is not installed.
    """
    segmenter = LiteMedSAM(verified("lite-medsam"))
    text = MiniLM(verified("minilm-l6-v2"), verified("minilm-l6-v2-tokenizer"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = LiteTower()
    return TextSegmenter(LiteClip(segmenter.encoder, text, tower), segmenter, recipe)
