"""Scores of multi-label predictions that torchmetrics lacks, and the five of multi-label papers beside their floors."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score, MultilabelHammingDistance

Ties = Literal["high_index", "low_index", "pessimistic"]


def average_precision(scores: Tensor, label: Tensor, ties: Ties) -> Tensor:
    """Average precision of each row's ranking of the labels, (n,), 0..1; NaN for rows without a label.

    The mean over a row's labels of the share of its labels among all that are ranked as high or higher.

    Args:
        scores: (n, L), higher is ranked first.
        label: (n, L) of 0 and 1.
        ties: which of equal scores comes first: the label of the ``high_index``, that of the ``low_index``,
            or, ``pessimistic``, each has the rank of the last of them.
    """
    relevant = label.bool()
    if ties == "pessimistic":
        # One label's rank is the number of labels that score as high or higher.
        reaches = scores[:, None, :] >= scores[:, :, None]
        rank, hits = reaches.sum(dim=2), (reaches & relevant[:, None, :]).sum(dim=2)
    else:
        flip = ties == "high_index"
        ordered = scores.flip(1) if flip else scores
        # A stable sort keeps equal scores in the order they stand in.
        order = ordered.argsort(dim=1, descending=True, stable=True)
        ranked = (relevant.flip(1) if flip else relevant).gather(1, order)
        rank = torch.arange(1, scores.shape[1] + 1, device=scores.device).expand_as(ranked)
        hits, relevant = ranked.cumsum(dim=1), ranked
    precision = torch.where(relevant, hits.double() / rank, 0.0).sum(dim=1)
    return precision / relevant.sum(dim=1)


class LabelRankingAveragePrecision(Metric):
    """Mean of `average_precision` over the rows that have a label; 0 where no row has.

    torchmetrics' `MultilabelRankingAveragePrecision` is this one with pessimistic ties, and counts a row
    without labels as 1.

    Args:
        ties: see `average_precision`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    total: Tensor
    rows: Tensor

    def __init__(self, ties: Ties) -> None:
        super().__init__()
        self.ties: Ties = ties
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, label: Tensor) -> None:
        """Adds rows: scores and labels, both (n, L)."""
        each = average_precision(scores, label, self.ties)
        self.total += each.nansum()
        self.rows += (~each.isnan()).sum()

    def compute(self) -> Tensor:
        """The mean, 0..1."""
        return self.total / self.rows.clamp(min=1)


class ExampleF1(Metric):
    """Mean over rows of 2|Y and P| / (|Y| + |P|), 0..1; a row without labels, true or predicted, counts 1."""

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    total: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Adds rows of 0 and 1, both (n, L)."""
        predicted, label = predicted.bool(), label.bool()
        both, sizes = (predicted & label).sum(dim=1), predicted.sum(dim=1) + label.sum(dim=1)
        self.total += torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0).sum(dtype=torch.float64)
        self.rows += len(label)

    def compute(self) -> Tensor:
        """The mean, 0..1."""
        return self.total / self.rows.clamp(min=1)


class HardAUC(Metric):
    """Area under the curve that 0/1 predictions give, (sensitivity + specificity) / 2, 0..1.

    The mean over the labels that have rows of both kinds; NaN where none has.

    Args:
        num_labels: L.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor  # (2, 2, L): true, predicted

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, 2, num_labels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Adds rows of 0 and 1, both (n, L)."""
        for truth in (0, 1):
            for said in (0, 1):
                self.counts[truth, said] += ((label == truth) & (predicted == said)).sum(dim=0)

    def compute(self) -> Tensor:
        """The mean over labels, 0..1."""
        counts = self.counts.double()
        rates = counts[[0, 1], [0, 1]] / counts.sum(dim=1)  # specificity, sensitivity
        return rates.mean(dim=0).nanmean()


class LabelSetScores(nn.Module):
    """The scores of multi-label papers, all 0..1, each beside what one constant answer has on the same rows.

    Names: ``exact_match``, ``hamming_loss`` (lower is better), ``macro_f1``, ``micro_f1`` (0 for a
    label that is neither true nor predicted), ``average_precision``; floors ``floor_<name>``.

    Args:
        num_labels: L.
        ties: of the ranking, see `average_precision`.
    """

    def __init__(self, num_labels: int, ties: Ties) -> None:
        super().__init__()

        def judged() -> nn.ModuleDict:
            settings = {"num_labels": num_labels, "validate_args": False}
            return nn.ModuleDict(
                {
                    "exact_match": MultilabelExactMatch(**settings),
                    "hamming_loss": MultilabelHammingDistance(average="micro", **settings),
                    "macro_f1": MultilabelF1Score(average="macro", **settings),
                    "micro_f1": MultilabelF1Score(average="micro", **settings),
                    "average_precision": LabelRankingAveragePrecision(ties),
                }
            )

        self.scores, self.floors = judged(), judged()

    def update(self, predicted: Tensor, scores: Tensor, constant: Tensor, label: Tensor) -> None:
        """Adds rows.

        Args:
            predicted: (n, L) of 0 and 1.
            scores: (n, L), confidences that rank the labels.
            constant: (L,) of 0 and 1, the same answer for each row.
            label: (n, L) of 0 and 1, the truth.
        """
        always = constant.expand_as(label)
        for metrics, said, ranked in ((self.scores, predicted, scores), (self.floors, always, always)):
            for name, metric in metrics.items():
                metric.update(ranked if name == "average_precision" else said.long(), label)

    def compute(self) -> dict[str, Tensor]:
        """All scores and floors over all rows and processes."""
        scores = {name: metric.compute() for name, metric in self.scores.items()}
        return scores | {f"floor_{name}": metric.compute() for name, metric in self.floors.items()}
