"""What a user would otherwise take: classifiers of scikit-learn on the same rows, folds and hidden labels."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from components.refitted_estimator import RefittedEstimator
from lightning_modules.closed_form import Batch
from lightning_modules.hypergraph_svm.judging import TableClassifier
from runs.errors import InputError


class LibraryClassifier(TableClassifier):
    """A scikit-learn classifier of one class a row.

    Args:
        make: gives a fresh estimator.
        uses_unlabelled: whether it takes unlabelled rows, as class -1.
    """

    def __init__(self, make: Callable[[], Any], uses_unlabelled: bool) -> None:
        super().__init__()
        self.uses_unlabelled = uses_unlabelled
        self.fitted = RefittedEstimator(make)

    def fit_closed_form(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """Fits at once.

        Raises:
            InputError: rows have several labels.
        """
        if batch["label"].ndim == 2:
            raise InputError("the baselines of scikit-learn take one class a row: choose another model for label sets")
        labelled = batch["labelled"]
        self.take_labels(batch["label"], labelled)
        rows = torch.ones_like(labelled) if self.uses_unlabelled else labelled
        self.fitted.fit(batch["features"][rows], batch["label"][rows])
        return {"labelled": float(labelled.sum())}

    def is_fitted(self) -> bool:
        return len(self.fitted.features) > 0

    def forward(self, features: Tensor) -> Tensor:
        """1 for the class that the estimator names, -1 for the others."""
        said = torch.from_numpy(self.fitted.estimator.predict(features.cpu().numpy()))
        return self.signs(said.to(features.device))
