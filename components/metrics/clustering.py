"""How well clusters agree with classes, after the best one-to-one naming of clusters."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric


class _ClustersInClasses(Metric):
    """Counts which cluster has how many points of which class.

    Args:
        num_clusters: P; clusters are 0..P-1.
        num_classes: C; classes are 0..C-1.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor

    def __init__(self, num_clusters: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        zeros = torch.zeros(num_clusters, num_classes, dtype=torch.long)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, clusters: Tensor, classes: Tensor) -> None:
        """Counts clusters and classes, both (B,) int64."""
        pairs = clusters * self.num_classes + classes
        self.counts += torch.bincount(pairs, minlength=self.counts.numel()).view_as(self.counts)


class ClusteringAccuracy(_ClustersInClasses):
    """Accuracy in percent after matching clusters to classes by the Hungarian method, 0-100.

    Each cluster is named after at most one class and each class names at most one cluster; points of
    clusters without a class are wrong. Cluster and class counts may differ.
    """

    def compute(self) -> Tensor:
        """The accuracy in percent."""
        row, column = linear_sum_assignment(self.counts.cpu().numpy(), maximize=True)
        return 100.0 * self.counts[row, column].sum() / self.counts.sum()


class MatchedPrecisionRecall(_ClustersInClasses):
    """Precision, recall and F of clusters that are matched to classes one to one, 0..1.

    The matching is the one with the most points (Hungarian method). Of each class: precision is the share of its
    cluster that belongs to it, recall the share of it that is in its cluster, both 0 without a cluster. They are
    averaged over the classes that have points, and F is the harmonic mean of the two averages, not the
    average of each class's F.
    """

    def compute(self) -> dict[str, Tensor]:
        """``precision``, ``recall`` and ``f1``."""
        counts = self.counts.double()
        row, column = linear_sum_assignment(counts.cpu().numpy(), maximize=True)
        right = counts[row, column]
        present = (counts.sum(dim=0) > 0).sum().clamp(min=1)
        precision = (right / counts.sum(dim=1)[row].clamp(min=1)).sum() / present
        recall = (right / counts.sum(dim=0)[column].clamp(min=1)).sum() / present
        both = precision + recall
        f1 = torch.where(both > 0, 2 * precision * recall / both.clamp(min=torch.finfo(both.dtype).tiny), 0.0)
        return {"precision": precision, "recall": recall, "f1": f1}
