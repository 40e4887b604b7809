"""Choosing gamma, delta_A, delta_I and lambda: a fixed choice, inner folds, or, to show its bias, the judged rows."""

import warnings
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor

from runs.errors import InputError


@dataclass(frozen=True)
class HyperParameters:
    """What is tuned.

    Attributes:
        gamma: of the kernel, above 0.
        delta_a: weight of the ambient norm, above 0.
        delta_i: weight of the intrinsic norm; 0 is a kernel SVM.
        lam: lambda of Eq. 10: 1 is the graph's Laplacian alone (LapSVM), 0 the hypergraph's (HGSVM).
    """

    gamma: float
    delta_a: float
    delta_i: float
    lam: float


@dataclass(frozen=True)
class Selection:
    """How the hyper-parameters are chosen.

    Attributes:
        rule: ``fixed``: those of the model; ``nested``: the best of the grid over inner folds of the labelled
            training rows; ``oracle``: the best on the rows that are judged, which cannot be an honest number.
        folds: inner folds of ``nested``.
        gamma: grid, as multiples of 1/d.
        delta_a: grid.
        delta_i: grid.
        lam: grid.
        tol: of the solver in the trials, see `Solver`.
        seed: of the inner folds.
    """

    rule: Literal["fixed", "nested", "oracle"]
    folds: int
    gamma: list[float]
    delta_a: list[float]
    delta_i: list[float]
    lam: list[float]
    tol: float
    seed: int

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise InputError(f"model.selection.folds={self.folds} must be 2 or more")
        if not 0 < self.tol < 1:
            raise InputError(f"model.selection.tol={self.tol} must be above 0 and below 1")
        for name in ("gamma", "delta_a", "delta_i", "lam"):
            if not getattr(self, name):
                raise InputError(f"model.selection.{name} is empty: list the values to try")

    def weights(self) -> list[tuple[float, float, float]]:
        """delta_A, delta_I and lambda of the grid's points for one gamma."""
        return list(product(self.delta_a, self.delta_i, self.lam))


@dataclass(frozen=True)
class Trial:
    """Rows to fit on and rows to score.

    Attributes:
        features: (m, d) of the rows that are fitted on, unlabelled ones among them.
        y: (m, C), 0 in rows without a label.
        judged: (n, d).
        wanted: (n, C) of -1 and 1.
    """

    features: Tensor
    y: Tensor
    judged: Tensor
    wanted: Tensor


def inner_trials(features: Tensor, y: Tensor, labelled: Tensor, selection: Selection, one_class: bool) -> list[Trial]:
    """The inner folds of the labelled rows; the unlabelled ones are fitted on in each, the judged ones in none.

    Args:
        features: (m, d).
        y: (m, C), 0 in rows without a label.
        labelled: (m,) bool.
        selection: number and seed of the folds.
        one_class: whether a row has one class; then the folds are stratified.

    Raises:
        InputError: there are too few labelled rows for the folds.
    """
    places = torch.nonzero(labelled)[:, 0].cpu().numpy()
    wanted = y[labelled].cpu().numpy()
    classes = wanted.argmax(axis=1) if wanted.shape[1] > 1 else (wanted[:, 0] > 0).astype(np.int64)
    most = int(np.bincount(classes).max()) if one_class else len(places)
    if most < selection.folds:
        raise InputError(
            f"model.selection.folds={selection.folds} is more than the {most} labelled rows of the largest class: "
            "label more rows, or set model.selection.rule=fixed"
        )
    splitter = StratifiedKFold if one_class else KFold
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # a rare class is in few folds
        parts = list(splitter(selection.folds, shuffle=True, random_state=selection.seed).split(places, classes))
    trials = []
    for _, judged in parts:
        out = torch.from_numpy(places[judged]).to(features.device)
        fitted = torch.ones(len(features), dtype=torch.bool, device=features.device)
        fitted[out] = False
        trials.append(Trial(features[fitted], y[fitted], features[out], y[out]))
    return trials


def share_right(scores: Tensor, wanted: Tensor, one_class: bool) -> Tensor:
    """How many answers are right: of classes, or of single labels where a row may have several.

    Args:
        scores: (n, P, C) decision values of P grid points.
        wanted: (n, C) of -1 and 1.
        one_class: whether a row has one class.

    Returns:
        (P,), 0..1.
    """
    if one_class and wanted.shape[1] > 1:
        return (scores.argmax(dim=2) == wanted.argmax(dim=1)[:, None]).double().mean(dim=0)
    right = torch.where(scores >= 0, 1.0, -1.0) == wanted[:, None]
    return right.double().mean(dim=(0, 2))
