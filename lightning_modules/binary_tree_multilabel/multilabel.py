"""What BT-MA and its baselines share: labels in, label sets out, judged and predicted alike."""

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import SumMetric

from components.metrics.floors import beside_floors
from components.metrics.label_sets import LabelSetScores, Ties
from lightning_modules.closed_form import Batch, ClosedFormModule
from runs.errors import InputError


@dataclass(frozen=True)
class Answer:
    """What is said of n rows.

    Attributes:
        label: (n, L) int64 of 0 and 1.
        scores: (n, L) float64, confidences that rank the labels.
        columns: lists of n values to be written beside a prediction.
    """

    label: Tensor
    scores: Tensor
    columns: dict[str, list[Any]] = field(default_factory=dict)


class MultilabelModule(ClosedFormModule):
    """A method that learns from rows with several labels, ``label`` (n, L), and answers with label sets.

    Its test metrics are 0..1, as the papers print them; their floors are what always answering the most
    frequent label set of the training rows scores. ``fit_seconds`` are those of one process, as all of them compute
    the same; ``predict_seconds`` the sum over all, as each judges a share of the rows; ``cpu_seconds`` both together.

    Args:
        ties: which of equal scores ranks first in average precision.
    """

    common_set: Tensor  # (L,) int64, the most frequent label set of the training rows
    fit_seconds: Tensor

    def __init__(self, ties: Ties) -> None:
        super().__init__()
        self.ties: Ties = ties
        self.register_variable_buffer("common_set", torch.int64)
        self.register_buffer("fit_seconds", torch.zeros((), dtype=torch.float64))

    @abstractmethod
    def learn(self, X: Tensor, Y: Tensor) -> Mapping[str, Tensor | float]:
        """The next step of the method on all training rows, X (n, d) float64, Y (n, L) int64; numbers to log."""

    @abstractmethod
    def answer(self, X: Tensor) -> Answer:
        """Label sets of rows X (n, d)."""

    def fit_closed_form(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """Learns, and counts the seconds.

        Raises:
            InputError: the rows have no label columns, or none of them has a label.
        """
        if "label" not in batch or batch["label"].ndim != 2:
            raise InputError(
                "the table has no columns of labels: name columns of 0 and 1 by data.reader.labels=[a,b,…]"
            )
        X, Y = batch["features"], batch["label"]
        if not Y.any():
            raise InputError(f"none of the {len(Y)} training rows of this fold has a label: there is nothing to learn")
        started = time.perf_counter()
        found = self.learn(X, Y)
        self.fit_seconds += time.perf_counter() - started
        sets, count = torch.unique(Y, dim=0, return_counts=True)
        self.common_set = sets[count.argmax()]
        return found

    def forward(self, X: Tensor) -> Tensor:
        """Label sets (n, L) of rows X (n, d)."""
        return self.answer(X).label

    # -- scores -------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Metrics of as many labels as the checkpoint has."""
        self._check_fitted()
        self.judged = LabelSetScores(len(self.common_set), self.ties).to(self.device)
        self.predict_seconds = SumMetric().to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Answers, and compares with the true labels."""
        started = time.perf_counter()
        answer = self.answer(batch["features"])
        self.predict_seconds.update(time.perf_counter() - started)
        if "label" not in batch:
            raise InputError("the table has no labels to judge by: use mode=predict")
        self.judged.update(answer.label, answer.scores, self.common_set, batch["label"])
        self.note(answer, batch["label"])

    def note(self, answer: Answer, label: Tensor) -> None:
        """For what a method's figures show of a judged batch."""

    def on_test_epoch_end(self) -> None:
        """Logs scores beside floors, and the seconds of the paper's first column."""
        self.log_dict(beside_floors(self.judged.compute()))
        fit, predict = self.fit_seconds, self.predict_seconds.compute()
        self.log_dict({"test/fit_seconds": fit, "test/predict_seconds": predict, "test/cpu_seconds": fit + predict})

    # -- predictions --------------------------------------------------------------------------------

    def on_predict_start(self) -> None:
        """Nothing is answered by half a method."""
        self._check_fitted()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """A row for each row: its labels in words, what the method tells of it, each label's 0 or 1 and score."""
        answer, classes = self.answer(batch["features"]), self.class_names
        names = batch["name"] if "name" in batch else batch["index"].tolist()
        rows = []
        for place, (name, said, scores) in enumerate(
            zip(names, answer.label.tolist(), answer.scores.tolist(), strict=True)
        ):
            labels = "; ".join(label for label, yes in zip(classes, said, strict=True) if yes)
            row = {"name": name, "labels": labels, **{key: each[place] for key, each in answer.columns.items()}}
            row |= {f"label:{label}": yes for label, yes in zip(classes, said, strict=True)}
            row |= {f"score:{label}": score for label, score in zip(classes, scores, strict=True)}
            rows.append(row)
        return rows

    def _check_fitted(self) -> None:
        if not self.is_fitted():
            raise InputError("the checkpoint is of an unfinished run: go on with it, python train.py ckpt_path=<run>")

    @property
    def class_names(self) -> list[str]:
        """Names of the labels, which the datamodule knows."""
        return self.trainer.datamodule.class_names
