"""The pairs of all processes as one batch, with gradient, so that contrast sees the global batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import distributed

from MedCLIPSAMLib.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def gather_pairs(
    images: torch.Tensor, texts: torch.Tensor, captions: torch.Tensor | None, group: ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Concatenate the batches of all processes in rank order.

    Args:
        images: (B, D) features of this process; their gradient is kept.
        texts: (B, E), likewise.
        captions: (B,) integer caption ids of this process, gathered too; None or a matrix, which is taken to be of the
            global batch, is handed back as it is.
        group: The processes; each must hold equally many pairs.

    Raises:
        InputError: The processes hold different numbers of pairs, or the ids are not one for each pair.
    """
    local = torch.tensor([len(images)], device=images.device)
    sizes = [torch.empty_like(local) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(sizes, local, group=group)
    if len({int(size) for size in sizes}) > 1:
        raise InputError(
            f"the processes hold {[int(size) for size in sizes]} pairs; gathering needs equally many (drop the last, "
            "smaller batch)."
        )
    if captions is not None and captions.ndim == 1:
        if len(captions) != len(images):
            raise InputError(f"same_caption holds {len(captions)} ids for {len(images)} pairs on this process.")
        everyone = [torch.empty_like(captions) for _ in sizes]
        distributed.all_gather(everyone, captions.contiguous(), group=group)
        captions = torch.cat(everyone)
    return _GatherRows.apply(images, group), _GatherRows.apply(texts, group), captions


class _GatherRows(torch.autograd.Function):
    """Concatenate the rows of all processes, with gradient.

    Every process computes the same loss from the same gathered rows, so its own rows of the gradient are already whole
    and the backward pass needs no communication; the factor is what summing the equal gradients would give.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        ctx.rank, ctx.processes, ctx.size = distributed.get_rank(group), distributed.get_world_size(group), len(rows)
        everyone = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ctx.processes)]
        distributed.all_gather(everyone, rows.contiguous(), group=group)
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        first = ctx.rank * ctx.size
        return gradient[first : first + ctx.size] * ctx.processes, None
