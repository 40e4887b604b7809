"""The mean IoU that Keras computes when it is handed probabilities, not classes: about 47.6 whatever the model."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from components.voc import VOID


class KerasMeanIoURaw(Metric):
    """``MeanIoU(num_classes=21)`` fed with one-hot truth and softmax output, 0-100, as an artefact to know.

    It casts both to whole numbers, so that every probability below 1 becomes class 0, and takes the entries of the
    one-hot truth, 0 and 1, for classes too. Of K planes a share of (K - 1) / K is 0: the result is close to
    100 (K - 1) / (2 K), 47.6 for K = 21. The published 44.66 and 47.07 are near it.

    Args:
        num_planes: K, background included.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor

    def __init__(self, num_planes: int) -> None:
        super().__init__()
        self.num_planes = num_planes
        self.add_state("counts", torch.zeros(2, 2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Counts entries; probability (B, K, H, W), target (B, H, W) int64 of 0..K-1 or 255, which is left out."""
        counted = target != VOID
        truth = F.one_hot(target[counted], self.num_planes)
        cast = probability.movedim(1, -1)[counted].long()
        self.counts += torch.bincount((2 * truth + cast).flatten(), minlength=4).view(2, 2)

    def compute(self) -> dict[str, Tensor]:
        """``keras_miou_raw``, and the same of probabilities that are all below 1 as its floor."""
        nothing = torch.stack([self.counts.sum(dim=1), torch.zeros_like(self.counts[:, 0])], dim=1)
        return {"keras_miou_raw": _mean_iou(self.counts), "floor_keras_miou_raw": _mean_iou(nothing)}


def _mean_iou(counts: Tensor) -> Tensor:
    union = counts.sum(dim=0) + counts.sum(dim=1) - counts.diagonal()
    return 100.0 * (counts.diagonal() / union.clamp(min=1)).sum() / (union > 0).sum().clamp(min=1)
