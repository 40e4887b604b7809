"""The value of a leaf: several regressors, and a statistic of what they predict (Eqs. 3-7, as they must be meant)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import KFold, LeaveOneOut, cross_val_predict
from torch import Tensor

Measure = Literal["mean", "cut_points", "mid_range", "interquartile_mean", "mid_hinge"]
LEAVE_ONE_OUT = 10  # rows up to which each is left out; larger leaves make folds; the paper is silent
FOLDS = 5  # of larger leaves
RIDGE = 1e-3  # of the regression in leaves with no more rows than columns, where least squares has no one answer
_EQUAL = 1e-12  # gaps and percentiles that differ by less are equal


def measure(predicted: Tensor, name: Measure) -> Tensor:
    """Reduces the predictions of m regressors, (..., m), to one value each, (...,)."""
    p = predicted.sort(dim=-1).values
    if name == "mean":  # Eq. 3
        return p.mean(dim=-1)
    if name == "cut_points":
        return _cut_point_mean(p)
    if name == "mid_range":  # Eq. 5; printed as a difference, which is near 0
        return (p[..., 0] + p[..., -1]) / 2
    first, middle, third = torch.quantile(p, torch.tensor([0.25, 0.5, 0.75], dtype=p.dtype), dim=-1)
    if name == "mid_hinge":  # Eq. 7; printed as a difference
        return (first + third) / 2
    inside = (p >= first[..., None] - _EQUAL) & (p <= third[..., None] + _EQUAL)  # Eq. 6
    count = inside.sum(dim=-1)
    return torch.where(count > 0, (p * inside).sum(dim=-1) / count.clamp(min=1), middle)


def _cut_point_mean(p: Tensor) -> Tensor:
    """Eq. 4: mean of what lies between the two largest gaps of ascending predictions; of all without such gaps."""
    if p.shape[-1] < 3:
        return p.mean(dim=-1)
    gaps = p.diff(dim=-1)
    two = gaps.argsort(dim=-1, descending=True, stable=True)[..., :2].sort(dim=-1).values
    place = torch.arange(p.shape[-1])
    between = (place > two[..., :1]) & (place <= two[..., 1:])
    cut = (p * between).sum(dim=-1) / between.sum(dim=-1)
    return torch.where(gaps.amax(dim=-1) - gaps.amin(dim=-1) > _EQUAL, cut, p.mean(dim=-1))


def regressor_for(make: Callable[[], Any], rows: int) -> Any:
    """An unfitted regressor for a leaf; one of nearest neighbours asks at most all other rows."""
    estimator = make()
    if "n_neighbors" in estimator.get_params():
        estimator.set_params(n_neighbors=min(estimator.n_neighbors, rows - 1))
    return estimator


def mean_predictions(
    features: NDArray[np.float64],
    targets: NDArray[np.float64],
    regressors: Mapping[str, Callable[[], Any]],
    seed: int,
) -> list[float]:
    """What each regressor predicts for a leaf's rows when they are left out, on average: p_1 .. p_m."""
    n = len(targets)
    folds = LeaveOneOut() if n <= LEAVE_ONE_OUT else KFold(FOLDS, shuffle=True, random_state=seed)
    estimators = (regressor_for(make, n) for make in regressors.values())
    return [float(cross_val_predict(estimator, features, targets, cv=folds).mean()) for estimator in estimators]


def linear_regression(features: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """E4, the regression that a leaf stores: d slopes and the intercept, (d + 1,)."""
    n, d = features.shape
    make = partial(Ridge, RIDGE, solver="cholesky") if n <= d else LinearRegression
    fitted = make().fit(features, targets)
    return np.append(fitted.coef_, fitted.intercept_)
