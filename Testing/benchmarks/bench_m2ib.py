"""M2IB and gScoreCAM on a full-size BiomedCLIP with random weights, against the plain way to compute them.

    python Testing/benchmarks/bench_m2ib.py [--quick] [--layers 7 8 9] [--threads 2]

Plain is what the authors' program does: both towers at every step for every copy, with gradients of all weights; for
gScoreCAM, a run of the model for each channel. Operations are floating-point operations in matrix products,
convolutions and attention, a multiplication with its addition counted as two. The measurements of a kind alternate,
and their median is told.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing" / "Python")]

from full_models import biomedclip_files, biomedclip_model, official_biomedclip  # noqa: E402
from small_vit import random_picture  # noqa: E402
from tower_reference import (  # noqa: E402
    channel_masks,
    mask_scores,
    official_pixels,
    onto_image,
    plain_m2ib,
    tokens_and_gradients,
)

from MedCLIPSAMLib.clip.base import VisionLanguageModel  # noqa: E402
from MedCLIPSAMLib.saliency.gscorecam import gscorecam  # noqa: E402
from MedCLIPSAMLib.saliency.m2ib import M2IBSettings, m2ib  # noqa: E402

TEXT_TOKENS = 24
TOKENS, WIDTH, PATCHES, DEPTH = 197, 768, 196, 12
OPERATIONS_TARGET = 1.1
SHARE_TARGET = 0.7
GSCORECAM_TARGET = 0.75
LIMITS = {7: 6.3, 8: 9.2, 9: 16.6}
"""Plain operations over the minimum, for the time's target."""


def minimum_operations(layer: int, steps: int = 10, copies: int = 10) -> float:
    """Return what M2IB takes at least in the usual way to compute a block.

    The tower up to ``layer`` once; for every copy and step the blocks behind it forward, and backward to the tokens
    alone; the last block with keys and values for all tokens and the rest for the CLS token.
    """
    block = 12 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH
    last = 2 * TOKENS * WIDTH**2 + 10 * WIDTH**2 + 2 * TOKENS * WIDTH
    prefix = PATCHES * WIDTH**2 + (layer + 1) * block
    return 2 * (prefix + 2 * steps * copies * ((DEPTH - 2 - layer) * block + last))


def operations(work: Callable[[], object]) -> int:
    """Count; by the attention that is made of matrix products, because the counter does not know the CPU's fast one."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def medians(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median wall time of each, in seconds, measured in turns."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, times in zip(works, taken, strict=True):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def m2ib_row(model: VisionLanguageModel, plain: nn.Module, layer: int, repeats: int) -> str:
    """Measure one layer."""
    image = random_picture(0, (300, 400))
    pixels = official_pixels(image)
    words = torch.arange(1000, 1000 + TEXT_TOKENS)[None]
    with torch.no_grad():
        text = nn.functional.normalize(plain.encode_text(words), dim=-1)[0].numpy()
    settings = M2IBSettings(layer=layer, beta=0.1)
    one = M2IBSettings(layer=layer, beta=0.1, steps=1)
    maps: dict[str, np.ndarray] = {}

    def ours() -> None:
        model._states.clear()
        maps["ours"] = m2ib(model, image, text, settings=settings)

    def theirs(settings: M2IBSettings = settings) -> None:
        plain.zero_grad(set_to_none=True)
        maps["plain"] = onto_image(plain_m2ib(plain, pixels, words, settings)["capacity"], image.shape)

    ours()  # also warms up
    plain_operations = settings.steps * operations(lambda: theirs(one))
    our_operations = operations(ours)
    plain_time, our_time = medians([theirs, ours], repeats)
    difference = float(np.abs(maps["plain"] - maps["ours"]).max())
    minimum = minimum_operations(layer)
    limit = LIMITS.get(layer, plain_operations / minimum)
    return (
        f"M2IB layer {layer}: {plain_operations / 1e12:.2f} / {our_operations / 1e12:.3f} TFLOP = "
        f"{plain_operations / our_operations:.1f}; of the minimum {minimum / 1e12:.2f}: {our_operations / minimum:.2f} "
        f"(target at most {OPERATIONS_TARGET}); {plain_time:.1f} s / {our_time:.2f} s = {plain_time / our_time:.1f} "
        f"(target at least {SHARE_TARGET * limit:.1f}); maps differ by {difference:.0e}"
    )


def gscorecam_rows(model: VisionLanguageModel, plain: nn.Module, channels: int, repeats: int) -> list[str]:
    """Measure gScoreCAM with ``channels`` channels; the plain form is given the channels and their masks."""
    image = random_picture(0, (300, 400))
    pixels = official_pixels(image)
    words = torch.arange(1000, 1000 + TEXT_TOKENS)[None]
    with torch.no_grad():
        text = nn.functional.normalize(plain.encode_text(words), dim=-1)[0]
    values, gradients = tokens_and_gradients(plain, plain.visual.trunk.blocks[-1].norm1, pixels, text)
    kept = gradients[1:].mean(dim=0).topk(channels).indices
    masks = channel_masks(values[1:].T.reshape(-1, 14, 14)[kept].numpy(), 224, 224)

    def ours() -> None:
        model._states.clear()
        gscorecam(model, image, text.numpy(), channels=channels)

    image_alone, with_text, batched = medians(
        [lambda: mask_scores(plain, pixels, text, masks), lambda: mask_scores(plain, pixels, words, masks), ours],
        repeats,
    )
    return [
        f"gScoreCAM, {channels} channels in batches: {batched:.1f} s",
        f"  / one by one, both towers, as the original program {with_text:.1f} s = {batched / with_text:.2f} "
        f"(target at most {GSCORECAM_TARGET})",
        f"  / one by one, image tower alone {image_alone:.1f} s = {batched / image_alone:.2f}",
    ]


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one measurement each, and fewer channels")
    parser.add_argument("--layers", type=int, nargs="*", default=[7, 8, 9])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    repeats = 1 if arguments.quick else 3
    model = biomedclip_model()
    plain = official_biomedclip(torch.load(biomedclip_files()["biomedclip"], weights_only=True))
    for line in gscorecam_rows(model, plain, 32 if arguments.quick else 300, repeats):
        print(line, flush=True)
    plain.requires_grad_(True)
    for layer in arguments.layers:
        print(m2ib_row(model, plain, layer, repeats), flush=True)


if __name__ == "__main__":
    main()
