"""The sums behind all contrastive losses, of a matrix of similarities, in both directions at once and block by block.

Autograd would keep a matrix of B x B values for every step of the equations, and making and reading those takes longer
than computing them. Here blocks of rows in memory that is used again are read twice for the values and once for the
gradient, and the gradient is written out by hand. With the anchor's negatives N_i, d_ij = s_ij - max_{k in N_i}
s_ik, beta the hardness and p_i = s_ii the positive,

    D_i     = log(sum_j W_ij e^{s_ij}) = log|N_i| + max + log(sum_j e^{(1 + beta) d_ij}) - log(sum_j e^{beta d_ij})
    loss    = log(alpha e^{p_i} + e^{D_i}) - p_i
    share_i = e^{D_i} / (alpha e^{p_i} + e^{D_i})
    dloss / ds_ij = share_i ((1 + beta) softmax_j((1 + beta) s_ij) - beta softmax_j(beta s_ij))
    dloss / dp_i  = -share_i

Without gradient through the weights W, dloss / ds_ij is share_i softmax_j((1 + beta) s_ij).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CPU_BLOCK, _OTHER_BLOCK = 1 << 22, 1 << 26
"""Entries of a block: 16 MB in single precision on the CPU. Blocks of 1 MB would lie in a core's own cache, but with so
many short steps the threads wait for each other: measured, three times as slow where other programs run beside."""


@dataclass(frozen=True)
class Contrast:
    """What is contrasted, and how.

    Attributes:
        betas: Hardness of the rows' direction and of the columns'.
        alpha: Weight of the positive in the denominator; 0 leaves it out.
        detach_weights: Whether the hardness weights count as constants in the gradient.
        same: Entries off the diagonal that are no negatives: (B, B) bool, (B,) integers that are equal where entries
            are none, or None for no such entries.
    """

    betas: tuple[float, float]
    alpha: float
    detach_weights: bool
    same: Tensor | None


def contrastive_loss(similarity: Tensor, contrast: Contrast) -> Tensor:
    """Return (B,): the losses of every row's anchor and of the column's with its number, added.

    An anchor without negatives adds 0, and has no gradient.

    Args:
        similarity: (B, B), divided by the temperature; the diagonal holds the positives.
        contrast: The loss.
    """
    return _ContrastiveLoss.apply(similarity, contrast)


class _ContrastiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, similarity: Tensor, contrast: Contrast) -> Tensor:
        positive = similarity.diagonal().clone()
        sides = _sides(similarity, contrast)
        losses, shares = zip(*(side.loss(positive, contrast.alpha) for side in sides), strict=True)
        ctx.save_for_backward(similarity, *(part for side in sides for part in side.kept()), *shares)
        ctx.contrast = contrast
        return losses[0] + losses[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        similarity, *kept = ctx.saved_tensors
        contrast = ctx.contrast
        shares = [gradient * share for share in kept[-2:]]
        factors = []
        for number, (share, beta) in enumerate(zip(shares, contrast.betas, strict=True)):
            top, hard, soft = kept[3 * number : 3 * number + 3]
            through = not contrast.detach_weights
            factors.append((top, (1 + beta * through) * share / hard, -beta * through * share / soft))
        result = torch.empty_like(similarity)
        buffers: dict[str, Tensor] = {}
        for rows, block in _blocks(similarity, contrast.same):
            out = result[rows]
            for number, ((top, hard, soft), beta) in enumerate(zip(factors, contrast.betas, strict=True)):
                shape = (-1, 1) if number == 0 else (1, -1)
                part = slice(None) if number else rows
                top, hard, soft = (one[part].reshape(shape) for one in (top, hard, soft))
                d = torch.sub(block, top, out=_buffer(buffers, "d", block))
                if beta:
                    q = torch.mul(d, beta, out=_buffer(buffers, "q", block)).exp_()
                    d.exp_().mul_(hard)
                    if not contrast.detach_weights:
                        d.add_(soft)
                    d.mul_(q)
                else:
                    d.exp_().mul_(hard)
                if number == 0:
                    out.copy_(d)
                else:
                    out.add_(d)
        result.diagonal().sub_(shares[0] + shares[1])
        return result, None


@dataclass
class _Side:
    """One direction's sums.

    Attributes:
        beta: Hardness.
        top: (B,) largest similarity to a negative; 0 where there is none.
        count: (B,) number of negatives.
        hard, soft: (B,) sums of e^{(1 + beta) d} and e^{beta d}.
    """

    beta: float
    top: Tensor
    count: Tensor
    hard: Tensor
    soft: Tensor

    def loss(self, positive: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Return the loss of every anchor and its share, both (B,)."""
        some = self.count > 0
        value = self.top + self.hard.log()
        if self.beta:
            value = value + (self.count.log() - self.soft.log())
        denominator, share = value, torch.ones_like(value)
        if alpha:
            own = positive + math.log(alpha)
            denominator = torch.logaddexp(value, own)
            share = torch.sigmoid(value - own)
        return torch.where(some, denominator - positive, 0.0), torch.where(some, share, 0.0)

    def kept(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the gradient needs; sums of nothing are 1, for they divide a share of 0."""
        some = self.count > 0
        return self.top, torch.where(some, self.hard, 1.0), torch.where(some, self.soft, 1.0)


def _sides(similarity: Tensor, contrast: Contrast) -> tuple[_Side, _Side]:
    size = len(similarity)
    row_top = similarity.new_empty(size)
    column_top = similarity.new_full((size,), -math.inf)
    for rows, block in _blocks(similarity, contrast.same):
        torch.amax(block, dim=1, out=row_top[rows])
        torch.maximum(column_top, block.amax(dim=0), out=column_top)
    sides = []
    counts = _counts(similarity, contrast.same)
    for top, count, beta in zip((row_top, column_top), counts, contrast.betas, strict=True):
        top = top.masked_fill(top == -math.inf, 0.0)
        sides.append(_Side(beta, top, count, similarity.new_zeros(size), similarity.new_zeros(size)))
    buffers: dict[str, Tensor] = {}
    for rows, block in _blocks(similarity, contrast.same):
        for number, side in enumerate(sides):
            top = side.top if number else side.top[rows, None]
            d = torch.sub(block, top, out=_buffer(buffers, "d", block))
            part = slice(None) if number else rows
            if side.beta:
                q = torch.mul(d, side.beta, out=_buffer(buffers, "q", block)).exp_()
                side.soft[part] += q.sum(dim=1 - number)
                d.exp_().mul_(q)
            else:
                d.exp_()
            side.hard[part] += d.sum(dim=1 - number)
    return sides[0], sides[1]


def _blocks(similarity: Tensor, same: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows, -inf where an entry is no negative; a block is overwritten by the next one."""
    size = len(similarity)
    entries = _CPU_BLOCK if similarity.device.type == "cpu" else _OTHER_BLOCK
    step = max(1, min(size, entries // size))
    buffers: dict[str, Tensor] = {}
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        block = _buffer(buffers, "block", similarity[rows])
        block.copy_(similarity[rows])
        if same is not None:
            block.masked_fill_(same[rows, None] == same if same.ndim == 1 else same[rows], -math.inf)
        block[:, rows].diagonal().fill_(-math.inf)
        yield rows, block


def _counts(similarity: Tensor, same: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the number of negatives of every row and column."""
    size = len(similarity)
    if same is None:
        counts = similarity.new_full((size,), size - 1)
        return counts, counts
    if same.ndim == 1:
        _, inverse, equal = same.unique(return_inverse=True, return_counts=True)
        counts = (size - equal[inverse]).to(similarity.dtype)
        return counts, counts
    same = same | torch.eye(size, dtype=torch.bool, device=same.device)
    return (size - same.sum(dim=1)).to(similarity.dtype), (size - same.sum(dim=0)).to(similarity.dtype)


def _buffer(buffers: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Return memory of the shape of ``like``, the same again at each call: new memory costs more than the sums."""
    if name not in buffers:
        buffers[name] = torch.empty_like(like, memory_format=torch.contiguous_format)
    return buffers[name][: len(like)]
