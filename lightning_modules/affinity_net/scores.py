"""How well predicted affinities agree with true masks."""

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.affinity_net.losses import PairLabels

ALIKE = 0.5  # affinity from which a pair is said to be of one class


class PairScores(Metric):
    """Share of near pairs whose affinity tells rightly whether both pixels are of one class, in percent.

    Most pairs are alike, so a constant answer does well: the mean over both kinds stands beside it.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, 2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, affinity: Tensor, labels: PairLabels) -> None:
        """Counts pairs: affinities (B, P, h, w) in 0..1 and what is known of them."""
        alike = affinity >= ALIKE
        for row, kind in enumerate((labels.different, labels.background | labels.foreground)):
            total, named = kind.sum(), (kind & alike).sum()
            self.counts[row, 0] += total - named
            self.counts[row, 1] += named

    def compute(self) -> dict[str, Tensor]:
        """``pair_accuracy``, ``balanced_pair_accuracy`` and, with ``floor_`` before, the best constant answer's."""
        of_kind = self.counts.sum(dim=1)
        recall = self.counts.diagonal() / of_kind.clamp(min=1)
        kinds = (of_kind > 0).sum().clamp(min=1)
        total = of_kind.sum().clamp(min=1)
        return {
            "pair_accuracy": 100.0 * self.counts.diagonal().sum() / total,
            "balanced_pair_accuracy": 100.0 * recall.sum() / kinds,
            "floor_pair_accuracy": 100.0 * of_kind.max() / total,
            "floor_balanced_pair_accuracy": 100.0 / kinds,
        }
