"""The losses' sums are computed block by block; how large the blocks are must not matter."""

from __future__ import annotations

import pytest
import torch
from test_losses import LOSSES, SETTINGS, features

from MedCLIPSAMTraining import contrast


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("same", ["none", "ids", "matrix"])
@pytest.mark.parametrize("entries", [1, 13, 20, 27])
def test_blocks_change_nothing(
    name: str, same: str, detach: bool, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of one, two, three (with a smaller one left) and four rows of seven, and one anchor without negatives."""
    images, texts = features(7)
    ids = torch.tensor([0, 1, 0, 2, 3, 3, 0])
    matrix = torch.rand(7, 7, generator=torch.Generator().manual_seed(3)) < 0.3
    matrix[2] = True
    mask = {"none": None, "ids": ids, "matrix": matrix}[same]
    weights = torch.linspace(0.5, 2, 7, dtype=torch.float64)

    def step() -> list[torch.Tensor]:
        pairs = LOSSES[name](images, texts, **SETTINGS, same_caption=mask, reduction="none", detach_weights=detach)
        return [pairs.detach(), *torch.autograd.grad((weights * pairs).sum(), (images, texts))]

    whole = step()
    monkeypatch.setattr(contrast, "_CPU_BLOCK", entries)
    for left, right in zip(step(), whole, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-13)
