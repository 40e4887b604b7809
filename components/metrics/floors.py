"""Trivial scores on the same data, so that a number can be told from an achievement."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric


class MajorityFloor(Metric):
    """Accuracy in percent of always naming the k most frequent classes of the judged set itself.

    Args:
        num_classes: C.
        top_k: how many classes the constant predictor may name.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor

    def __init__(self, num_classes: int, top_k: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.top_k = top_k
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, labels: Tensor) -> None:
        """Counts labels, (B,) int64 in 0..C-1."""
        classes = torch.arange(self.num_classes, device=labels.device)
        self.counts += (labels[:, None] == classes).sum(dim=0)

    def compute(self) -> Tensor:
        """Accuracy of the constant prediction, 0-100."""
        named = self.counts.topk(min(self.top_k, self.num_classes)).values.sum()
        return 100.0 * named / self.counts.sum()


def beside_floors(scores: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Test scores under the names of the log, each beside its floor.

    Args:
        scores: each score ``<name>`` and its trivial one, ``floor_<name>``.
        prefix: of the names.

    Returns:
        ``test/<prefix><name>`` and ``floor/<prefix><name>`` of each.
    """
    logged = {}
    for name, score in scores.items():
        if not name.startswith("floor_"):
            logged[f"test/{prefix}{name}"] = score
            logged[f"floor/{prefix}{name}"] = scores[f"floor_{name}"]
    return logged
