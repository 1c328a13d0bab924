"""Image-text retrieval in small batches, as the paper measures it: ranks of the right candidate, and what they add to.

The examples are shuffled, cut into batches, and in each batch every image is matched with all of its captions and
every caption with all of its images. Several runs differ in the shuffle alone. A last batch that is smaller is easier;
its examples count like all others (paper, section 4.4: batches of 50, five runs, pooled over the examples).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from MedCLIPSAMLib.errors import InputError

DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}
TOP = (1, 2)


@dataclass(frozen=True)
class RetrievalReport:
    """Ranks of every example in every run, and the shares of hits.

    Attributes:
        ranks: By direction, (runs, N): how many wrong candidates come before the first right one; every candidate with
            the example's own caption is right.
        own_ranks: The same where the example's own partner alone is right.
        group_sizes: (runs, N): how many examples of the batch have the example's caption, itself included.
        batch_sizes: (runs, N): how many candidates there were.
        batch, seed: The settings; the number of runs is that of the rows.
        captions_digest: Tells whether two reports are of the same captions in the same order.
    """

    ranks: dict[str, np.ndarray]
    own_ranks: dict[str, np.ndarray]
    group_sizes: np.ndarray
    batch_sizes: np.ndarray
    batch: int
    seed: int
    captions_digest: str

    @property
    def runs(self) -> int:
        """Number of shuffles."""
        return len(self.batch_sizes)

    @property
    def examples(self) -> int:
        """N, the number of image-caption pairs."""
        return self.batch_sizes.shape[1]

    def hits(self, direction: str, k: int) -> np.ndarray:
        """Return (runs, N) bool: whether a right candidate is among the first ``k``."""
        return self.ranks[direction] < k

    def accuracy(self, direction: str, k: int, *, own: bool = False) -> np.ndarray:
        """Return (runs,): the share of hits among the first ``k``, in [0, 1], over all examples of a run.

        Args:
            direction: "image_to_text" or "text_to_image".
            k: How many candidates may be named.
            own: Count the example's own partner alone as right, although another has the same caption.
        """
        return ((self.own_ranks if own else self.ranks)[direction] < k).mean(axis=1)

    def mean(self, direction: str, k: int) -> float:
        """Return the mean of :meth:`accuracy` over the runs."""
        return float(self.accuracy(direction, k).mean())

    def sd(self, direction: str, k: int) -> float | None:
        """Return the sample standard deviation of :meth:`accuracy` over the runs; None for one run."""
        return float(self.accuracy(direction, k).std(ddof=1)) if self.runs > 1 else None

    def ceiling(self, k: int) -> float:
        """Return what a perfect model reaches where an example's own partner alone counts, in either direction.

        m examples with one caption cannot be told apart: all get the same ranking, which has only k of the m among its
        first k. Where equal captions count as hits the ceiling is 1.
        """
        return float(np.minimum(1.0, k / self.group_sizes).mean())

    def chance(self, k: int) -> float:
        """Return what guessing reaches: the expected share of hits of a random order, equal captions counting."""
        return float(_chance(self.batch_sizes, self.group_sizes, k).mean())

    def as_dict(self) -> dict[str, Any]:
        """Return the report without the ranks of single examples, ready for JSON; shares in [0, 1]."""
        return {
            "examples": self.examples,
            "batch": self.batch,
            "runs": self.runs,
            "seed": self.seed,
            "chance": {f"top{k}": self.chance(k) for k in TOP},
            "ceiling_own_partner": {f"top{k}": self.ceiling(k) for k in TOP},
            **{
                direction: {
                    f"top{k}": {
                        "mean": self.mean(direction, k),
                        "sd": self.sd(direction, k),
                        "runs": self.accuracy(direction, k).tolist(),
                        "own_partner_mean": float(self.accuracy(direction, k, own=True).mean()),
                    }
                    for k in TOP
                }
                for direction in DIRECTIONS
            },
        }


def evaluate(
    image_vectors: np.ndarray,
    text_vectors: np.ndarray,
    captions: list[str],
    *,
    batch: int = 50,
    runs: int = 5,
    seed: int = 0,
) -> RetrievalReport:
    """Rank the captions of a batch for each of its images, and the images for each caption, by cosine similarity.

    Candidates of equal similarity keep the order of the shuffled batch. A last batch of a single example would be a
    certain hit, so that example joins the batch before.

    Args:
        image_vectors: (N, D), any length above 0.
        text_vectors: (N, D); row i describes image i.
        captions: N texts. Two are equal if they differ at most in case and white space.
        batch: Candidates per question, 2 or more; the paper takes 50.
        runs: Shuffles, 1 or more.
        seed: Of the shuffles; run r is the same whatever the number of runs.

    Raises:
        InputError: Shapes that do not fit, fewer than two pairs, values that are not finite, vectors of length 0, or a
            setting out of its range.
    """
    images, texts = _unit(image_vectors, "image"), _unit(text_vectors, "text")
    if images.shape != texts.shape or len(captions) != len(images):
        raise InputError(
            f"image vectors are {images.shape}, text vectors {texts.shape}, and there are {len(captions)} captions; "
            "pass (N, D), (N, D) and N captions."
        )
    if len(images) < 2:
        raise InputError(f"{len(images)} pair(s): retrieval needs at least 2 to choose from.")
    if batch < 2 or runs < 1 or seed < 0:
        raise InputError(
            f"batch {batch}, runs {runs}, seed {seed}: pass a batch of 2 or more, 1 run or more, seed >= 0."
        )
    keys = [caption_key(caption) for caption in captions]
    _, groups = np.unique(keys, return_inverse=True)
    shape = (runs, len(images))
    ranks, own = ({name: np.empty(shape, np.int32) for name in DIRECTIONS} for _ in range(2))
    group_sizes, batch_sizes = np.empty(shape, np.int32), np.empty(shape, np.int32)
    for run in range(runs):
        for chosen in shuffled_batches(len(images), batch, seed, run):
            similarity = np.round(images[chosen] @ texts[chosen].T, 12)  # equal vectors give equal numbers everywhere
            same = groups[chosen][:, None] == groups[chosen]
            for name, scores in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
                ranks[name][run, chosen] = _ranks(scores, same)
                own[name][run, chosen] = _ranks(scores, np.eye(len(chosen), dtype=bool))
            group_sizes[run, chosen], batch_sizes[run, chosen] = same.sum(axis=1), len(chosen)
    digest = hashlib.sha256("\n".join(keys).encode("utf-8", "replace")).hexdigest()
    return RetrievalReport(ranks, own, group_sizes, batch_sizes, batch, seed, digest)


def caption_key(caption: str) -> str:
    """Return what two captions share that count as equal: the text without case and with single spaces."""
    return " ".join(caption.split()).casefold()


def shuffled_batches(count: int, batch: int, seed: int, run: int) -> list[np.ndarray]:
    """Return the examples of every batch of a run, in their shuffled order."""
    order = np.random.default_rng([seed, run]).permutation(count)
    starts = [*range(0, count, batch)]
    if count - starts[-1] == 1 and len(starts) > 1:
        del starts[-1]
    return np.split(order, starts[1:])


def _ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (B,): the number of wrong candidates before the first right one, in descending order of score.

    Args:
        scores: (B, B); row i asks, column j is a candidate.
        right: (B, B) bool; every row has at least one.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(right, order, axis=1).argmax(axis=1)  # before the first right one all are wrong


def _chance(candidates: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """Return the probability that one of ``right`` is among the first ``k`` of ``candidates`` in random order."""
    missed = np.ones(candidates.shape)
    for place in range(k):
        missed *= np.maximum(candidates - right - place, 0) / np.maximum(candidates - place, 1)
    return 1 - missed


def _unit(vectors: np.ndarray, name: str) -> np.ndarray:
    """Return vectors as float64 of length 1."""
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2:
        raise InputError(f"{name} vectors have shape {vectors.shape}; pass (N, D).")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if wrong.size:
        value = float(lengths[wrong[0], 0])
        said = "not finite" if not math.isfinite(value) else "of length 0"
        raise InputError(f"{wrong.size} {name} vector(s) are {said}, the first is number {wrong[0]}; encode it again.")
    return vectors / lengths
