"""Scores of label maps over a whole data set, from one confusion matrix."""

import torch
from torch import Tensor
from torchmetrics import Metric

from components.voc import VOID


class SegmentationScores(Metric):
    """Mean intersection over union in percent, void pixels left out, beside what all-background scores.

    One confusion matrix over the data set. A class that occurs neither in the truth nor in the
    prediction does not count in a mean.

    Args:
        num_classes: C, background included as class 0.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Counts pixels; both are int64 of one shape, predictions 0..C-1, targets 0..C-1 or 255."""
        self.counts += confusion(predicted, target, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """``mean_iou`` and ``mean_iou_foreground`` (without class 0), 0-100, and the same of all-background."""
        nothing = torch.zeros_like(self.counts)
        nothing[:, 0] = self.counts.sum(dim=1)
        scores = {}
        for prefix, counts in (("", self.counts), ("floor_", nothing)):
            iou, occurs = intersection_over_union(counts)
            scores[f"{prefix}mean_iou"] = _mean(iou, occurs)
            scores[f"{prefix}mean_iou_foreground"] = _mean(iou[1:], occurs[1:])
        return scores


def confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Pixels by true class (rows) and predicted class, (C, C) int64; void ones are left out."""
    counted = target != VOID
    pairs = target[counted] * num_classes + predicted[counted]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def intersection_over_union(counts: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of each class, 0..1, and whether it occurs in truth or prediction; both (C,)."""
    union = counts.sum(dim=0) + counts.sum(dim=1) - counts.diagonal()
    return counts.diagonal() / union.clamp(min=1), union > 0


def mean_iou(counts: Tensor) -> float:
    """Mean IoU over the classes that occur, in percent, of a confusion matrix (C, C)."""
    return float(_mean(*intersection_over_union(counts)))


def _mean(iou: Tensor, occurs: Tensor) -> Tensor:
    return 100.0 * (iou * occurs).sum() / occurs.sum().clamp(min=1)
