"""The floor of the ranking score."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multilabel_ranking_average_precision


class ConstantRanking(Metric):
    """Label ranking average precision, in percent, of ranking all images' classes by how often each occurs.

    Args:
        num_classes: C.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    labels: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, label: Tensor) -> None:
        """Keeps multi-hot labels, (B, C)."""
        self.labels.append(label.int())

    def compute(self) -> Tensor:
        """0-100."""
        labels = torch.cat(self.labels) if isinstance(self.labels, list) else self.labels
        ranking = labels.float().mean(dim=0).expand(labels.shape)
        return 100.0 * multilabel_ranking_average_precision(ranking, labels, self.num_classes)
