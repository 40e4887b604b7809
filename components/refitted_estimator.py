"""A scikit-learn estimator in a checkpoint: its training rows, not its pickle."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier
from torch import Tensor, nn

from components.variable_buffers import VariableBuffers
from runs.errors import InputError

TOLERANCE = 1e-6  # of refitted predictions; libraries for linear algebra differ in the last digits


class RefittedEstimator(VariableBuffers, nn.Module):
    """Keeps the rows that an estimator was fitted on, and fits it again where only a checkpoint is there.

    A checkpoint must hold tensors alone to be loaded safely. Fitting must be a function of the rows:
    an estimator that draws gets its ``random_state`` from the config. What the estimator says of its own
    training rows is kept too, so another version of it that fits differently is found out.

    Args:
        make: gives a fresh, unfitted estimator.
    """

    features: Tensor  # (n, d) float64
    wanted: Tensor  # (n,) float64, classes or numbers; empty for estimators that learn from rows alone
    said: Tensor  # (n,) float64, what the estimator says of its training rows

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.make = make
        self.register_variable_buffer("features", torch.float64, axes=2)
        self.register_variable_buffer("wanted", torch.float64)
        self.register_variable_buffer("said", torch.float64)
        self._estimator: Any = None

    def fit(self, features: Tensor, wanted: Tensor | None) -> None:
        """Fits on rows (n, d); ``wanted`` (n,) are classes or numbers, None where there are none."""
        self.features = features.double()
        self.wanted = torch.empty(0, dtype=torch.float64) if wanted is None else wanted.double()
        self._estimator = self._fitted()
        self.said = torch.as_tensor(self._says(self._estimator)).to(features.device)

    @property
    def estimator(self) -> Any:
        """The fitted estimator.

        Raises:
            InputError: fitted again it says something else of its training rows than it did.
        """
        if self._estimator is None:
            if not len(self.features):
                raise InputError("the checkpoint holds no training rows: its run was not finished, go on with it")
            self._estimator = self._fitted()
            if not np.allclose(self._says(self._estimator), self.said.cpu().numpy(), atol=TOLERANCE, rtol=TOLERANCE):
                raise InputError(
                    f"{type(self._estimator).__name__}, fitted again on the checkpoint's rows, predicts otherwise than "
                    "it did: judge it with the version of scikit-learn that the run's result.json names"
                )
        return self._estimator

    def _fitted(self) -> Any:
        rows = self.features.cpu().numpy()
        if not len(self.wanted):
            return self.make().fit(rows)
        estimator, wanted = self.make(), self.wanted.cpu().numpy()
        return estimator.fit(rows, wanted.astype(np.int64) if is_classifier(estimator) else wanted)

    def _says(self, estimator: Any) -> NDArray[np.float64]:
        rows = self.features.cpu().numpy()
        if hasattr(estimator, "predict"):
            return np.asarray(estimator.predict(rows), dtype=np.float64)
        return np.asarray(estimator.score_samples(rows), dtype=np.float64)
