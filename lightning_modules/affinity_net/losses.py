"""The loss of AffinityNet (arXiv 1803.10464, Eq. 4 to 7)."""

from typing import NamedTuple

import torch
from torch import Tensor

from components.global_mean import global_mean
from components.random_walk import Offset, pairs_inside, partners

IGNORED = 255
EPSILON = 1e-5  # keeps log(1 - W) finite where two features are alike


class PairLabels(NamedTuple):
    """What is known of each pair, (B, P, h, w) bool each; a pair with an ignored pixel is in none."""

    background: Tensor  # both pixels are background
    foreground: Tensor  # both are of one class
    different: Tensor


def pair_labels(mask: Tensor, offsets: list[Offset]) -> PairLabels:
    """Affinity labels of a mask on the affinity map.

    Args:
        mask: (B, h, w) int64: 0 background, classes, 255 ignored.
        offsets: of the pairs.
    """
    other = torch.stack([partners(mask, offset) for offset in offsets], dim=1)
    this = mask[:, None].expand_as(other)
    known = (this != IGNORED) & (other != IGNORED) & pairs_inside(offsets, *mask.shape[-2:], mask.device)
    same = known & (this == other)
    return PairLabels(same & (this == 0), same & (this != 0), known & (this != other))


def affinity_losses(distance: Tensor, labels: PairLabels) -> tuple[Tensor, Tensor, Tensor]:
    """L_bg+, L_fg+ (Eq. 4, 5) and L_neg (Eq. 6): means of -log W, and of -log(1 - W), over the pairs of a kind.

    The means are over the global batch.

    Args:
        distance: -log W, (B, P, h, w).
        labels: of the pairs.

    Returns:
        Three numbers; 0 where the batch has no pair of the kind.
    """
    apart = -torch.log(EPSILON - torch.expm1(-distance))
    return (
        _mean(distance, labels.background),
        _mean(distance, labels.foreground),
        _mean(apart, labels.different),
    )


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return global_mean(torch.where(chosen, values, 0.0).sum(), chosen.sum())
