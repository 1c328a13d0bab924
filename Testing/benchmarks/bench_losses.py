"""One step of each loss, forward and backward, against open_clip's InfoNCE on the same features.

    python Testing/benchmarks/bench_losses.py [--quick] [--captions] [--pairs 4096] [--threads 2] [--rounds 5]

Features in single precision on the CPU. Every loss runs right after open_clip's, in turn with the other losses, and
what is told is the median of the ratios: other work on the machine then falls on both sides. --captions gives the
losses captions of which some are equal, as in training; open_clip's knows no such thing. Exit code 1 above the target.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "training")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

from MedCLIPSAMLib.torchvision_import import ensure_torchvision  # noqa: E402
from MedCLIPSAMTraining.losses import dcl_loss, dhn_nce_loss, hn_nce_loss, info_nce_loss  # noqa: E402

TARGET = 1.6
TEMPERATURE, BETA = 0.6, 0.15
LOSSES = {"info-nce": info_nce_loss, "dcl": dcl_loss, "hn-nce": hn_nce_loss, "dhn-nce": dhn_nce_loss}
Loss = Callable[[Tensor, Tensor], Tensor]


def candidates(captions: Tensor | None) -> dict[str, Loss]:
    """Return the losses by name."""
    settings = {"temperature": TEMPERATURE, "beta1": BETA, "beta2": BETA, "same_caption": captions}
    return {name: lambda images, texts, loss=loss: loss(images, texts, **settings) for name, loss in LOSSES.items()}


def open_clip_loss() -> Loss:
    """Return open_clip's InfoNCE, which takes unit vectors."""
    ensure_torchvision()
    from open_clip.loss import ClipLoss

    loss, scale = ClipLoss(), torch.tensor(1 / TEMPERATURE)
    return lambda images, texts: loss(normalize(images, dim=1), normalize(texts, dim=1), scale)


def seconds(loss: Loss, images: Tensor, texts: Tensor) -> float:
    """Return how long one step takes."""
    images, texts = (some.clone().requires_grad_() for some in (images, texts))
    begin = time.perf_counter()
    loss(images, texts).backward()
    return time.perf_counter() - begin


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,024 pairs and 3 rounds")
    parser.add_argument("--captions", action="store_true", help="with captions of which some are equal")
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pairs, rounds = (1024, 3) if options.quick else (options.pairs, options.rounds)
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(pairs, options.dimensions, generator=generator)
    texts = 0.7 * images + torch.randn(pairs, options.dimensions, generator=generator)
    captions = torch.randint(0, 4 * pairs, (pairs,), generator=generator)
    reference, losses = open_clip_loss(), candidates(captions if options.captions else None)
    times: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(1 + rounds):
        for name, loss in losses.items():
            begun = seconds(reference, images, texts)
            ratio = seconds(loss, images, texts) / begun
            if number:  # the first round warms up
                ratios[name].append(ratio)
                times.append(begun)
    print(f"{pairs} pairs, {options.dimensions} dimensions, {options.threads} threads, {rounds} rounds")
    print(f"open_clip's InfoNCE: {statistics.median(times):.3f} s a step")
    for name, some in ratios.items():
        spread = f"{min(some):.2f} to {max(some):.2f}"
        print(f"{name:<9} {statistics.median(some):.2f} times ({spread}); target {TARGET} at most")
    return int(any(statistics.median(some) > TARGET for some in ratios.values()))


if __name__ == "__main__":
    sys.exit(main())
