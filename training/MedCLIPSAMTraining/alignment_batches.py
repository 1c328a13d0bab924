"""What one training step of the lite alignment sees: views by task, patches inside and outside the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MedCLIPSAMTraining.alignment_data import FINE, MASK_GRID, FeatureStore
from MedCLIPSAMTraining.captions import CONCEPTS, NAMES, REGION_NAMES, description_matrix, draw_concepts

TASK_SHARES = {"breast": 0.37, "brain": 0.40, "xray": 0.13, "ct": 0.10}
"""How often each task is drawn; the tumours are harder to find than lungs."""

INSIDE, OUTSIDE = 12, 20
"""Patches drawn per view inside the target and outside it; half of each are those that fit worst so far."""


@dataclass
class Batch:
    """Views of one step.

    Attributes:
        features: (B, 1024, 736) float32.
        masks: (B, 32, 32), the covered share of each patch.
        valid: (B, 32, 32) bool, False on padding.
        kinds: (B, 2) region indices of the target and of its surroundings.
    """

    features: Tensor
    masks: Tensor
    valid: Tensor
    kinds: np.ndarray


class BatchSource:
    """Draws batches from a feature store, at random but as told by ``rng`` alone."""

    def __init__(self, store: FeatureStore, views: list[tuple[int, int]]):
        """Use the given (image, variant) pairs; views of a volume's slices without target are left out."""
        self.store = store
        self.by_task = {
            task: [
                (index, variant)
                for index, variant in views
                if store.images[index].task == task
                and (store.images[index].source != "volumes" or store.masks[variant][index].max() > 0)
            ]
            for task in TASK_SHARES
        }
        self.shares = np.array([share if self.by_task[task] else 0.0 for task, share in TASK_SHARES.items()])
        self.shares /= self.shares.sum()

    def draw(self, size: int, rng: np.random.Generator) -> Batch:
        """Return ``size`` views."""
        tasks = rng.choice(list(TASK_SHARES), size, p=self.shares)
        chosen = [self.by_task[task][rng.integers(len(self.by_task[task]))] for task in tasks]
        return self.batch(chosen)

    def batch(self, chosen: list[tuple[int, int]]) -> Batch:
        """Return the given views."""
        store = self.store
        features = np.stack([store.tokens[variant][index] for index, variant in chosen]).astype(np.float32)
        masks = np.stack([store.masks[variant][index] for index, variant in chosen]).astype(np.float32) / 255
        step = MASK_GRID // FINE
        masks = masks.reshape(-1, FINE, step, FINE, step).mean(axis=(2, 4))
        valid = np.stack([store.valid[variant][index] for index, variant in chosen]) > 200
        kinds = [[REGION_NAMES.index(name) for name in store.images[index].kind] for index, _ in chosen]
        return Batch(torch.from_numpy(features), torch.from_numpy(masks), torch.from_numpy(valid), np.array(kinds))


def draw_patches(batch: Batch, similarity: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, np.ndarray]:
    """Draw patches clearly inside and clearly outside every target, half of them the hardest so far.

    Args:
        batch: The views.
        similarity: (B, 1024) of every patch to its view's target caption, without gradient.
        rng: Source of every draw.

    Returns:
        Row and patch index of each drawn patch, and its region index.
    """
    rows, patches, regions = [], [], []
    masks, valid = batch.masks.flatten(1), batch.valid.flatten(1)
    for row in range(len(masks)):
        inside = torch.where((masks[row] > 0.6) & valid[row])[0]
        outside = torch.where((masks[row] < 0.1) & valid[row])[0]
        for pool, count, hardest_high, region in (
            (inside, INSIDE, False, batch.kinds[row, 0]),
            (outside, OUTSIDE, True, batch.kinds[row, 1]),
        ):
            if len(pool) == 0:
                continue
            hard = count // 2
            random = pool[torch.from_numpy(rng.integers(len(pool), size=count - hard))]
            # Drawn among three times as many, so that a few wrong mask pixels do not rule the step.
            worst = pool[torch.topk(similarity[row, pool], min(len(pool), 3 * hard), largest=hardest_high).indices]
            drawn = torch.cat([random, worst[torch.from_numpy(rng.integers(len(worst), size=hard))]])
            rows.append(torch.full((count,), row))
            patches.append(drawn)
            regions += [region] * count
    return torch.cat(rows), torch.cat(patches), np.array(regions)


class CaptionSource:
    """Sentence embeddings of all wordings, and captions drawn for regions."""

    def __init__(self, embed: object):
        """``embed`` maps a list of texts to (N, 384) unit vectors; every wording is embedded once."""
        self.embeddings = [torch.from_numpy(embed(CONCEPTS[name])) for name in NAMES]
        self.describes = torch.from_numpy(description_matrix())
        self.elsewhere = NAMES.index("something else")
        self.nothing = REGION_NAMES.index("nothing")

    def plain(self, kinds: np.ndarray) -> Tensor:
        """Return the first wording of each target region's most frequent concept, (B, 384)."""
        first = {"malignant breast tumour": "breast tumour", "benign breast tumour": "breast tumour"}
        names = [REGION_NAMES[kind] for kind in kinds]
        names = [first.get(name, "lungs" if name.startswith("lungs") else name) for name in names]
        return torch.stack([self.embeddings[NAMES.index(name)][0] for name in names])

    def draw(self, regions: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw a caption for every region, and behind them captions that belong to no region.

        Returns:
            Embeddings (N + M, 384), where the last M name nothing learnt, and (N + M, N + M) bool: whether caption j
            also describes region i, so that it must not count as its negative.
        """
        extra = max(8, len(regions) // 16)
        concepts = np.concatenate([draw_concepts(regions, rng), np.full(extra, self.elsewhere)])
        kinds = np.concatenate([regions, np.full(extra, self.nothing)])
        texts = torch.stack([self.embeddings[c][rng.integers(len(self.embeddings[c]))] for c in concepts])
        same = self.describes[torch.from_numpy(kinds)][:, torch.from_numpy(concepts)]
        return texts, same
