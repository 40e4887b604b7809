"""Scores of pictures that show several classes at once, each beside what a constant answer scores."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    binary_average_precision,
    multilabel_accuracy,
    multilabel_exact_match,
)
from torchmetrics.utilities import dim_zero_cat

from components.metrics.floors import MajorityFloor

PRESENT = 0.5  # probability above which a class counts as shown


class FirstLabelTop1(Metric):
    """Share of pictures, 0-100, whose most likely class is the first of their true ones.

    It is what Keras' ``metrics=["accuracy"]`` computes beside sigmoid outputs: arg-max of the prediction
    against arg-max of the multi-hot label, which is the first positive class in the order of the classes.
    A picture without any class counts as one of class 0, as it does there.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "total"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Counts; scores (B, C) of any kind that rises with the probability, labels (B, C) of 0 and 1."""
        self.right += (scores.argmax(dim=1) == first_label(labels)).sum()
        self.total += len(labels)

    def compute(self) -> Tensor:
        """Percent."""
        return 100.0 * self.right / self.total


def first_label(labels: Tensor) -> Tensor:
    """The first positive class of each row (B, C); 0 where there is none."""
    return (labels > 0).int().argmax(dim=1)


class MultilabelScores(Metric):
    """All scores of a multi-label classifier over a data set, 0-100, each with the floor of a constant answer.

    - ``mean_ap``: average precision, mean over the classes that the judged pictures show (the others have
      none; ``absent_classes`` counts them). Floor: one score for all pictures, whose precision is the class's share.
    - ``first_label_top1``: see `FirstLabelTop1`. Floor: always the most frequent first label.
    - ``subset_accuracy``: all classes right. Floor: always the most frequent set of classes.
    - ``hamming_accuracy``: right decisions on single classes. Floor: for each class what most pictures have, which is
      "no" to nearly all of them.

    A class counts as shown above a probability of 0.5.

    Args:
        num_classes: C, 2 or more.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    probabilities: list[Tensor]
    labels: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Keeps (B, C) probabilities, 0..1, and (B, C) labels of 0 and 1."""
        self.probabilities.append(probabilities.detach().float())
        self.labels.append((labels > 0).long())

    def compute(self) -> dict[str, Tensor]:
        """Each score, its floor as ``floor_<name>``, and ``absent_classes``."""
        probabilities, labels = dim_zero_cat(self.probabilities), dim_zero_cat(self.labels)
        classes = self.num_classes
        shown = labels.any(dim=0)
        share = labels.float().mean(dim=0)
        top1, majority = FirstLabelTop1().to(labels.device), MajorityFloor(classes).to(labels.device)
        top1.update(probabilities, labels)
        majority.update(first_label(labels))
        precision = [
            binary_average_precision(probabilities[:, c], labels[:, c]) for c in shown.nonzero().flatten().tolist()
        ]
        settings = {"num_labels": classes, "threshold": PRESENT}
        scores = {
            "mean_ap": torch.stack(precision).mean() if precision else share.new_tensor(torch.nan),
            "first_label_top1": top1.compute() / 100,
            "subset_accuracy": multilabel_exact_match(probabilities, labels, **settings),
            "hamming_accuracy": multilabel_accuracy(probabilities, labels, **settings, average="micro"),
            "floor_mean_ap": share[shown].mean(),
            "floor_first_label_top1": majority.compute() / 100,
            "floor_subset_accuracy": labels.unique(dim=0, return_counts=True)[1].max() / len(labels),
            "floor_hamming_accuracy": torch.maximum(share, 1 - share).mean(),
        }
        percent = {name: 100.0 * value for name, value in scores.items()}
        return percent | {"absent_classes": (~shown).sum()}
