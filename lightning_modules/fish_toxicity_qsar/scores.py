"""Scores of toxicity predictions, each beside its floor: what the training rows' mean scores on the same rows."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics import CatMetric

from components.metrics.regression import fold_q2, regression_scores
from runs.errors import InputError

Protocol = Literal["honest", "leaky_paper"]
MODEL, REFERENCE = "model", "reference"  # the prediction without a prefix, and the one that figures set beside it
LEAKY = (
    "protocol=leaky_paper: the judged rows are trained on, as in the paper; what is logged under leaky/ shows where "
    "its numbers come from and says nothing about new chemicals"
)


def stage_of(protocol: Protocol, oracle: bool = False) -> str:
    """First part of the scores' names: nothing that saw the answer is called a test."""
    if protocol == "leaky_paper":
        return "leaky_oracle" if oracle else "leaky"
    return "oracle" if oracle else "test"


class ToxicityScores(nn.Module):
    """R2, RMSE, MAE and RPD of several predictions of the same rows; RMSE and MAE in the target's unit.

    Args:
        predictions: names of the predictions, `MODEL` among them.
    """

    def __init__(self, predictions: Sequence[str]) -> None:
        super().__init__()
        self.scores = nn.ModuleDict({name: regression_scores() for name in predictions})
        self.floor = regression_scores()
        shown = {MODEL, *({REFERENCE} & set(predictions))}
        self.kept = nn.ModuleDict({name: CatMetric().set_dtype(torch.float64) for name in (*sorted(shown), "true")})

    def update(self, predictions: Mapping[str, Tensor], true: Tensor, training_mean: Tensor) -> None:
        """Takes predictions (B,) by name and the true targets (B,)."""
        for name, scores in self.scores.items():
            scores.update(predictions[name], true)
        self.floor.update(training_mean.expand_as(true).clone(), true)
        for name, values in self.kept.items():
            values.update(true if name == "true" else predictions[name])

    def judged(self) -> dict[str, Tensor]:
        """The true targets (``true``) and predictions of all processes' rows, (n,) each."""
        return {name: values.compute().reshape(-1) for name, values in self.kept.items()}

    def compute(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Scores under the names of the log, each beside its floor.

        Args:
            names: for each prediction what stands before ``r2``, ``rmse``, ``mae`` and ``rpd``.

        Raises:
            InputError: fewer than two rows were judged.
        """
        if len(self.judged()["true"]) < 2:
            raise InputError("R2 needs 2 judged rows or more: judge more rows")
        floor, logged = self.floor.compute(), {}
        for prediction, prefix in names.items():
            for score, value in self.scores[prediction].compute().items():
                logged[f"{prefix}{score}"] = value
                logged[f"floor/{prefix.partition('/')[2]}{score}"] = floor[score]
        return logged

    def q2(self, training: Tensor, folds: int) -> tuple[Tensor, Tensor]:
        """The fold's part of Q2, and that of the training rows' mean; see `fold_q2`."""
        predicted, true = self.judged()[MODEL], self.judged()["true"]
        constant = training.mean().expand_as(true)
        return fold_q2(predicted, true, training, folds), fold_q2(constant, true, training, folds)
