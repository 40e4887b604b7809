"""Regression scores: those of torchmetrics together, the ratio of performance to deviation, Q2 fold by fold."""

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score
from torchmetrics.utilities import dim_zero_cat


class RatioOfPerformanceToDeviation(Metric):
    """RPD: standard deviation of the true values (of n - 1) over the root mean squared error; 1 is a constant's."""

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    predicted: list[Tensor]
    true: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predicted", [], dist_reduce_fx="cat")
        self.add_state("true", [], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Takes predicted and true values, (B,) each."""
        self.predicted.append(predicted)
        self.true.append(true)

    def compute(self) -> Tensor:
        """RPD, 0 or more; infinite where nothing is wrong."""
        predicted, true = dim_zero_cat(self.predicted), dim_zero_cat(self.true)
        return true.std() / (predicted - true).square().mean().sqrt()


def regression_scores() -> MetricCollection:
    """R2 (``r2``), root mean squared and mean absolute error (``rmse``, ``mae``) and RPD (``rpd``), in float64."""
    scores = {
        "r2": R2Score(),
        "rmse": MeanSquaredError(squared=False),
        "mae": MeanAbsoluteError(),
        "rpd": RatioOfPerformanceToDeviation(),
    }
    return MetricCollection(scores, compute_groups=False).set_dtype(torch.float64)


def fold_q2(predicted: Tensor, true: Tensor, training: Tensor, folds: int) -> Tensor:
    """What one fold adds to Q2, so that the mean over the folds is Q2 of all out-of-fold predictions.

    Q2 = 1 - sum of squared errors over all folds / sum of squares around the mean of all rows. A fold
    gives 1 - ``folds`` times its own squared errors over that same sum of squares.

    Args:
        predicted: of the fold's rows, (b,).
        true: of the fold's rows, (b,).
        training: true values of all rows outside the fold, (n - b,).
        folds: how many there are.
    """
    every = torch.cat([true, training])
    return 1.0 - folds * (predicted - true).square().sum() / (every - every.mean()).square().sum()
