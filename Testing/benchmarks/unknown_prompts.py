"""How often the presence score accepts prompts that the engine has not learnt: ``python unknown_prompts.py DATA``.

Right prompts are asked of validation images with their target, 30 held-out prompts of every validation image. Prints
the share of each that is accepted at the engine's threshold, and the unknown prompts' share at the threshold that
accepts exactly 90 % of the right ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "training")]

from MedCLIPSAMLib.engines import load_engine  # noqa: E402
from MedCLIPSAMTraining.alignment_data import find_images, load_pair  # noqa: E402
from MedCLIPSAMTraining.distractors import HELD_OUT  # noqa: E402

RIGHT = {"breast": "breast tumor", "brain": "brain tumor", "xray": "lungs", "ct": "lungs"}


def main(data: str) -> None:
    """Score every validation image and print the shares."""
    segmenter = load_engine("lite")
    right: dict[str, list[float]] = {task: [] for task in RIGHT}
    unknown: dict[str, list[float]] = {prompt: [] for prompt in HELD_OUT}
    for image in find_images(Path(data)):
        if image.split != "val":
            continue
        pixels, mask = load_pair(image)
        segmenter.set_image(pixels)
        if mask.any():
            right[image.task].append(segmenter.presence(RIGHT[image.task]))
        for prompt in HELD_OUT:
            unknown[prompt].append(segmenter.presence(prompt))
    accepted = np.concatenate([scores for scores in right.values() if scores])
    refused = np.concatenate(list(unknown.values()))
    threshold = segmenter.calibration.threshold
    at_90 = np.quantile(accepted, 0.1)
    print("| task | right prompt | n | accepted |\n| --- | --- | --- | --- |")
    for task, scores in right.items():
        print(f"| {task} | {RIGHT[task]} | {len(scores)} | {np.mean(np.array(scores) >= threshold):.1%} |")
    print(f"\nengine's threshold {threshold:.3f}: right {np.mean(accepted >= threshold):.1%}, ", end="")
    print(f"unknown {np.mean(refused >= threshold):.1%} of {refused.size} accepted")
    print(f"at 90 % acceptance of the right ones ({at_90:.3f}): unknown {np.mean(refused >= at_90):.1%} accepted")
    worst = sorted(unknown, key=lambda prompt: -np.mean(np.array(unknown[prompt]) >= threshold))[:5]
    print("most often accepted: " + ", ".join(f"{p} {np.mean(np.array(unknown[p]) >= threshold):.0%}" for p in worst))


if __name__ == "__main__":
    main(sys.argv[1])
