"""What method and baselines share: classes from scores, the paper's metrics beside their floors, predictions."""

import warnings
from abc import abstractmethod
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MultilabelAUROC,
    MultilabelHammingDistance,
    MultilabelRankingAveragePrecision,
    MultilabelRankingLoss,
)
from torchmetrics.utilities.data import dim_zero_cat

from components.figures import confusion_matrix
from components.metrics.floors import MajorityFloor
from components.metrics.label_sets import ExampleF1, HardAUC
from lightning_modules.closed_form import Batch, ClosedFormModule

Task = Literal["binary", "multiclass", "multilabel"]
TASKS: tuple[Task, ...] = ("binary", "multiclass", "multilabel")


class TableClassifier(ClosedFormModule):
    """Judges a classifier of table rows; subclasses fit it and give its scores.

    The task is told from the training batch: ``label`` (n,) of two classes is binary, of more is
    multiclass, ``label`` (n, L) is multilabel. Accuracy is percent, as the paper prints it; the multi-label
    scores are 0..1.
    """

    task_place: Tensor
    share: Tensor  # (C,) float64, how often each class is among the labelled training rows

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("task_place", torch.zeros((), dtype=torch.int64))
        self.register_variable_buffer("share", torch.float64)

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Scores of rows (n, d): (n, 1) for a binary task, (n, C) otherwise; above 0 speaks for the class."""

    @property
    def task(self) -> Task:
        """What kind of classes there are."""
        return TASKS[int(self.task_place)]

    @property
    def class_names(self) -> list[str]:
        """The datamodule's; position is the class."""
        return self.trainer.datamodule.class_names

    def take_labels(self, label: Tensor, labelled: Tensor) -> Tensor:
        """Notes the task, and how frequent the classes are among labelled rows.

        Args:
            label: (m,) or (m, L); -1 in rows without a label.
            labelled: (m,) bool.

        Returns:
            y, (m, columns): see `signs`; 0 in rows without a label.
        """
        task: Task = "multilabel" if label.ndim == 2 else "binary" if len(self.class_names) == 2 else "multiclass"
        self.task_place.fill_(TASKS.index(task))
        signs = self.signs(label) * labelled[:, None]
        share = (signs[labelled] > 0).double().mean(dim=0)
        self.share = torch.cat([1 - share, share]) if task == "binary" else share
        return signs

    def signs(self, label: Tensor) -> Tensor:
        """1 for a class that a row has, -1 for others, (m, columns); a binary task has one column, that of class 1."""
        if self.task == "multilabel":
            return 2.0 * label.double() - 1
        if self.task == "binary":
            return 2.0 * (label == 1).double()[:, None] - 1
        classes = torch.arange(len(self.class_names), device=label.device)
        return 2.0 * (label[:, None] == classes).double() - 1

    def classes_of(self, scores: Tensor) -> Tensor:
        """Classes (n,), or label sets (n, L) of 0 and 1; a score of 0 counts as +1."""
        if self.task == "multiclass":
            return scores.argmax(dim=1)
        chosen = (scores >= 0).long()
        return chosen if self.task == "multilabel" else chosen[:, 0]

    # ---- scores ----------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Metrics of as many classes as the data have."""
        classes = len(self.class_names)
        if self.task == "multilabel":
            plain = {"num_labels": classes, "validate_args": False}
            self.hard = nn.ModuleDict(
                {
                    "hamming_loss": MultilabelHammingDistance(average="micro", **plain),
                    "f1": ExampleF1(),
                    "auc_hard": HardAUC(classes),
                }
            )
            self.ranked = nn.ModuleDict(
                {
                    "auc": AUC(average="none", **plain),
                    "ranking_loss": MultilabelRankingLoss(**plain),
                    "average_precision": MultilabelRankingAveragePrecision(**plain),
                }
            )
            # The constant answers: the labels that more than half the training rows have, and the labels by frequency.
            self.floor_of_hard = nn.ModuleDict({name: metric.clone() for name, metric in self.hard.items()})
            self.floor_of_ranked = nn.ModuleDict({name: metric.clone() for name, metric in self.ranked.items()})
        else:
            self.accuracy = BinaryAccuracy() if self.task == "binary" else MulticlassAccuracy(classes, average="micro")
            self.floor = MajorityFloor(classes)
            self.confusion = MulticlassConfusionMatrix(classes)
        self.to(self.device)  # the metrics too

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Compares with the true classes."""
        scores, label = self(batch["features"]), batch["label"]
        said = self.classes_of(scores)
        if self.task != "multilabel":
            for metric in (self.accuracy, self.confusion):
                metric.update(said, label)
            self.floor.update(label)
            return
        constant, by_frequency = (self.share > 0.5).long().expand_as(label), self.share.expand(len(label), -1)
        for metrics, answer in ((self.hard, said), (self.floor_of_hard, constant)):
            for metric in metrics.values():
                metric.update(answer, label)
        # Any rising function keeps the ranks; outside 0..1 torchmetrics would take a sigmoid, which makes ties.
        for metrics, ranking in ((self.ranked, ranks(scores)), (self.floor_of_ranked, by_frequency)):
            for metric in metrics.values():
                metric.update(ranking, label)

    def on_test_epoch_end(self) -> None:
        """Logs each score beside its floor."""
        if self.task != "multilabel":
            self.log("test/accuracy", 100 * self.accuracy.compute())
            self.log("floor/accuracy", self.floor.compute())
            return
        for prefix, hard, ranked in (
            ("test", self.hard, self.ranked), ("floor", self.floor_of_hard, self.floor_of_ranked)
        ):  # fmt: skip
            for name, metric in (*hard.items(), *ranked.items()):
                self.log(f"{prefix}/{name}", metric.compute().float())

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Each row's class, or labels, and the decision values: above 0 speaks for a class, at 1 is the margin."""
        scores = self(batch["features"])
        said, names = self.classes_of(scores).tolist(), self.class_names
        key = "name" if "name" in batch else "row"
        rows = []
        for place, (row, values) in enumerate(
            zip(batch.get("name", batch["index"].tolist()), scores.tolist(), strict=True)
        ):
            if self.task == "multilabel":
                found = {"labels": "; ".join(name for name, yes in zip(names, said[place], strict=True) if yes)}
            else:
                found = {"class": names[said[place]]}
            if self.task == "binary":
                found[f"score:{names[1]}"] = values[0]
            else:
                found |= {f"score:{name}": value for name, value in zip(names, values, strict=True)}
            rows.append({key: row, **found})
        return rows

    def figures(self, stage: str) -> dict[str, Figure]:
        """The confusion matrix of the judged rows, where each has one class."""
        if stage != "test" or self.task == "multilabel":
            return {}
        return {"confusion": confusion_matrix(self.confusion.compute().cpu().numpy(), self.class_names)}


class AUC(MultilabelAUROC):
    """Mean area under the curves of the labels that have rows of both kinds, 0..1; NaN where none has.

    torchmetrics' own mean counts the other labels as 0. Which they are is told from the rows of all processes.
    """

    def compute(self) -> Tensor:
        """The mean over labels; needs ``average="none"``."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No (positive|negative) samples")  # such labels are left out
            each = super().compute()
        truth = dim_zero_cat(self.target)
        return each[(truth == 0).any(dim=0) & (truth == 1).any(dim=0)].mean()


def ranks(scores: Tensor) -> Tensor:
    """Scores as x / (1 + |x|) in 0..1, (n, L) float64: a rising function, so the ranking is the same."""
    return 0.5 + 0.5 * scores / (1 + scores.abs())
