"""Contrastive image-text losses: InfoNCE, DCL, HN-NCE and DHN-NCE, all with one signature.

With unit vectors I_i, T_j and s_ij = I_i . T_j / temperature, the four losses of anchor i (image to text) are

    InfoNCE   log(e^{s_ii} + sum_{j in N_i} e^{s_ij}) - s_ii
    DCL       log(sum_{j in N_i} e^{s_ij}) - s_ii
    HN-NCE    log(alpha e^{s_ii} + sum_{j in N_i} W_ij e^{s_ij}) - s_ii
    DHN-NCE   log(sum_{j in N_i} W_ij e^{s_ij}) - s_ii

where N_i are the negatives of i and W_ij = |N_i| softmax_{k in N_i}(beta s_ik)_j weighs the hard ones up. The text to
image direction is the same on the transpose with its own beta, and both are added without a factor of one half.
Everything is evaluated as log-sum-exp over selected entries, so nothing overflows at small temperatures.

Sources: Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483, Eqs. 7 and 9-13 (DHN-NCE); Yeh et al., Decoupled Contrastive
Learning, ECCV 2022 (DCL); Radenovic et al., Filtering, Distillation, and Hard Negatives, CVPR 2023 (HN-NCE); van den
Oord et al., arXiv 1807.03748 (InfoNCE).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.contrast import Contrast, contrastive_loss
from MedCLIPSAMTraining.gather import gather_pairs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Reduction = Literal["none", "mean", "sum"]


def dhn_nce_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    *,
    temperature: float | torch.Tensor,
    beta1: float = 0.0,
    beta2: float = 0.0,
    alpha: float = 1.0,
    same_caption: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    detach_weights: bool = False,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """Decoupled hard-negative noise contrastive estimation, Eqs. 9-13 of the paper.

    Args:
        image_features: (B, D), any float type; normalised here. Half precision is computed in float32, also under
            autocast; float64 stays float64.
        text_features: (B, D); row i describes image i.
        temperature: Divides the cosine similarities; above 0. A tensor keeps its gradient.
        beta1: Hardness of the negatives in the image to text direction, 0 (all equal) or more. The paper uses 0.15.
        beta2: The same in the text to image direction.
        alpha: Weight of the positive in the denominator; used by :func:`hn_nce_loss` only.
        same_caption: Pairs that are no negatives although they are off the diagonal: (B, B) bool, True at [i, j] where
            text j also describes image i (the text to image direction takes the transpose), or (B,) integers, equal
            where captions are equal. The B - 1 of the equations becomes the number of negatives that an anchor has
            left. An anchor with none left contributes 0: it has nothing to be pushed away from, and its loss (minus
            infinity for the decoupled ones) carries no information.
        reduction: "none" gives (B,), the two directions of each pair added; "sum" adds the pairs, as in Eq. 11 of the
            paper; "mean" divides that by B, so that the learning rate does not depend on the batch size.
        detach_weights: True keeps the gradient from flowing through the hardness weights.
        group: Gather features and captions of all processes of this group, with gradient: B is then the global batch.
            Every process returns the same, global loss, and its features receive the gradient times the number of
            processes, which the averaging in ``DistributedDataParallel`` undoes exactly. Every process must hold
            equally many pairs. None does not gather; ``torch.distributed.group.WORLD`` is the default group.

    Returns:
        A scalar, or (B,) for reduction "none".

    Raises:
        InputError: (a ``ValueError``) fewer than two pairs, shapes that do not fit, no negative in the whole batch, or
            a setting out of its range.
    """
    return _loss(
        image_features, text_features, temperature, (beta1, beta2), 0.0, same_caption, reduction, detach_weights, group
    )


def hn_nce_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    *,
    temperature: float | torch.Tensor,
    beta1: float = 0.0,
    beta2: float = 0.0,
    alpha: float = 1.0,
    same_caption: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    detach_weights: bool = False,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """Hard-negative NCE (Radenovic et al., 2023), with ``alpha`` times the positive in the denominator.

    Arguments, result and errors are those of :func:`dhn_nce_loss`; alpha = 1 and beta = 0 give InfoNCE, alpha = 0
    gives DHN-NCE.
    """
    if not 0 <= alpha < math.inf:
        raise InputError(f"alpha is {alpha}; the positive's weight must be a finite number of at least 0.")
    return _loss(
        image_features,
        text_features,
        temperature,
        (beta1, beta2),
        alpha,
        same_caption,
        reduction,
        detach_weights,
        group,
    )


def dcl_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    *,
    temperature: float | torch.Tensor,
    beta1: float = 0.0,
    beta2: float = 0.0,
    alpha: float = 1.0,
    same_caption: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    detach_weights: bool = False,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """Decoupled contrastive loss, Eq. 7 of the paper: InfoNCE without the positive in the denominator.

    Arguments, result and errors are those of :func:`dhn_nce_loss`; beta1, beta2, alpha and detach_weights are not used.
    """
    return _loss(image_features, text_features, temperature, (0.0, 0.0), 0.0, same_caption, reduction, False, group)


def info_nce_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    *,
    temperature: float | torch.Tensor,
    beta1: float = 0.0,
    beta2: float = 0.0,
    alpha: float = 1.0,
    same_caption: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    detach_weights: bool = False,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    """The loss of CLIP; the two directions are added, so it is twice the value that open_clip prints.

    Arguments, result and errors are those of :func:`dhn_nce_loss`; beta1, beta2, alpha and detach_weights are not used.
    """
    return _loss(image_features, text_features, temperature, (0.0, 0.0), 1.0, same_caption, reduction, False, group)


def hardness_weights(similarity: torch.Tensor, beta: float, negatives: torch.Tensor) -> torch.Tensor:
    """Return the weights W of the negatives (Eqs. 12-13): softmax of beta s times the number of negatives, per row.

    Args:
        similarity: (A, B) similarities s of A anchors to B candidates, divided by the temperature.
        beta: Hardness, at least 0; 0 gives weights of 1.
        negatives: (A, B) bool, True where the candidate is a negative of the anchor.

    Returns:
        (A, B): 0 outside the negatives; each row adds up to its number of negatives.

    Raises:
        InputError: ``beta`` is negative or not finite, or the shapes differ.
    """
    if similarity.shape != negatives.shape or similarity.ndim != 2:
        raise InputError(
            f"similarity has shape {tuple(similarity.shape)} and negatives {tuple(negatives.shape)}; "
            "both must be (A, B)."
        )
    _check_beta(beta)
    any_negative = negatives.any(dim=1, keepdim=True)
    weights = _log_weights(similarity, beta, negatives | ~any_negative).exp()
    return torch.where(negatives, weights, 0.0)


def _loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    temperature: float | torch.Tensor,
    betas: tuple[float, float],
    alpha: float,
    same_caption: torch.Tensor | None,
    reduction: Reduction,
    detach_weights: bool,
    group: ProcessGroup | None,
) -> torch.Tensor:
    """Check, gather, and add the two directions; alpha = 0 leaves the positive out of the denominator."""
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise InputError(
            f"image features have shape {tuple(image_features.shape)} and text features {tuple(text_features.shape)}; "
            "both must be (B, D), row i of one belonging to row i of the other."
        )
    if reduction not in ("none", "mean", "sum"):
        raise InputError(f"reduction is {reduction!r}; choose 'none', 'mean' or 'sum'.")
    value = float(temperature.detach() if isinstance(temperature, torch.Tensor) else temperature)
    if not 0 < value < math.inf:
        raise InputError(f"temperature is {value}; it must be a finite number above 0.")
    for beta in betas:
        _check_beta(beta)
    captions = None if same_caption is None else torch.as_tensor(same_caption, device=image_features.device)
    if group is not None:
        image_features, text_features, captions = gather_pairs(image_features, text_features, captions, group)
    size = len(image_features)
    if size < 2:
        raise InputError(f"the batch holds {size} pair(s); contrast needs at least 2 (drop a last batch of one).")
    same = _no_negatives(captions, size)

    with torch.autocast(image_features.device.type, enabled=False):
        precision = torch.promote_types(torch.promote_types(image_features.dtype, text_features.dtype), torch.float32)
        images = functional.normalize(image_features.to(precision), dim=1) / temperature
        texts = functional.normalize(text_features.to(precision), dim=1)
        pairs = contrastive_loss(images @ texts.T, Contrast(betas, alpha, detach_weights, same))
    if reduction == "none":
        return pairs
    return pairs.sum() if reduction == "sum" else pairs.mean()


def _log_weights(similarity: torch.Tensor, beta: float, selected: torch.Tensor) -> torch.Tensor:
    """Return log W of the selected entries; entries that are not selected hold meaningless, finite values."""
    hardness = beta * similarity
    normaliser = hardness.masked_fill(~selected, -math.inf).logsumexp(dim=1, keepdim=True)
    return selected.sum(dim=1, keepdim=True).to(similarity.dtype).log() + hardness - normaliser


def _no_negatives(captions: torch.Tensor | None, size: int) -> torch.Tensor | None:
    """Return the same_caption of :class:`Contrast`, checked."""
    if captions is None:
        return None
    if captions.dtype == torch.bool and captions.shape == (size, size):
        none_left = bool((captions | torch.eye(size, dtype=torch.bool, device=captions.device)).all())
    elif captions.shape == (size,) and captions.dtype != torch.bool and not captions.is_floating_point():
        none_left = bool((captions == captions[0]).all())
    else:
        raise InputError(
            f"same_caption has shape {tuple(captions.shape)} and type {captions.dtype} for {size} pairs; "
            f"pass ({size}, {size}) bool, or ({size},) integers that are equal where captions are equal."
        )
    if none_left:
        raise InputError(f"all {size} pairs of the batch share one caption, so there is no negative; mix the captions.")
    return captions


def _check_beta(beta: float) -> None:
    if not 0 <= beta < math.inf:
        raise InputError(f"beta is {beta}; the hardness must be a finite number of at least 0.")
