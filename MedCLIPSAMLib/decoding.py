"""From the visual prompts of several samples to a probability map of each: all are decoded by the segmenter at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import expit

from MedCLIPSAMLib.results import VisualPrompts
from MedCLIPSAMLib.sam.base import PromptableSegmenter


def sample_probabilities(
    segmenter: PromptableSegmenter, samples: list[VisualPrompts], shape: tuple[int, int], candidates: str = "single"
) -> Iterator[np.ndarray]:
    """Yield the probability map of each sample: the union (maximum) over its prompts.

    Args:
        segmenter: Its image was set.
        samples: Prompts of the same kind; a sample may have none, which gives a map of zeros.
        shape: (H, W) of the image.
        candidates: "single", or the rule by which several candidate masks of a prompt become one, see
            :func:`MedCLIPSAMLib.sam.multimask.combine`.

    Yields:
        (H, W) float32 in [0, 1].
    """
    filled = [sample for sample in samples if len(sample)]
    if not filled:
        rows = None
    elif candidates == "single":
        rows, _ = segmenter.predict(_concatenate(filled))
    else:
        from MedCLIPSAMLib.sam.multimask import combine

        rows = combine(*segmenter.predict_candidates(_concatenate(filled)), candidates)
    start = 0
    for sample in samples:
        if len(sample) == 0:
            yield np.zeros(shape, np.float32)
            continue
        highest = rows[start : start + len(sample)].max(axis=0)
        start += len(sample)
        yield expit(highest) if candidates == "single" else highest


def _concatenate(samples: list[VisualPrompts]) -> VisualPrompts:
    """Join the rows of several samples of the same kind."""

    def join(name: str) -> np.ndarray | None:
        parts = [getattr(sample, name) for sample in samples]
        return None if parts[0] is None else np.concatenate(parts)

    return VisualPrompts(join("boxes"), join("points"), join("point_labels"))
