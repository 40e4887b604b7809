"""Baselines: one regressor of scikit-learn on all training rows, without bins."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from components.refitted_estimator import RefittedEstimator
from lightning_modules.closed_form import ClosedFormModule
from lightning_modules.fish_toxicity_qsar.figures import predicted_figure
from lightning_modules.fish_toxicity_qsar.scores import LEAKY, MODEL, Protocol, ToxicityScores, stage_of


class RegressorModule(ClosedFormModule):
    """Fits a regressor at once. Batches: ``features (B, d)``, ``target (B,)`` -log10(LC50, mol/L), ``index``.

    Args:
        regressor: gives an unfitted one; fitting must be a function of the rows.
        protocol: ``leaky_paper`` names the scores so where the judged rows were trained on.
        split: kind of split of the data, for Q2.
        folds: of a split by folds.
    """

    def __init__(
        self,
        regressor: Callable[[], Any],
        protocol: Protocol,
        split: Literal["official", "repeated", "folds"],
        folds: int,
    ) -> None:
        super().__init__()
        self.protocol, self.split, self.folds = protocol, split, folds
        self.fitted = RefittedEstimator(regressor)

    def fit_closed_form(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Fits on all training rows."""
        if self.protocol == "leaky_paper":
            warnings.warn(LEAKY, stacklevel=2)
        self.fitted.fit(batch["features"], batch["target"])
        return {"rows": len(batch["target"])}

    def is_fitted(self) -> bool:
        """Whether there are rows to fit on."""
        return len(self.fitted.features) > 0

    def forward(self, features: Tensor) -> Tensor:
        """-log10(LC50, mol/L) of each row, (B,)."""
        return torch.from_numpy(self.fitted.estimator.predict(features.numpy())).double()

    def on_test_start(self) -> None:
        """Scores of this test alone."""
        self.scores = ToxicityScores([MODEL])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Judges rows."""
        self.scores.update({MODEL: self(batch["features"])}, batch["target"], self.fitted.wanted.mean())

    def on_test_epoch_end(self) -> None:
        """Logs the scores beside their floors."""
        stage = stage_of(self.protocol)
        self.log_dict(self.scores.compute({MODEL: f"{stage}/"}))
        if self.split == "folds":
            q2, floor = self.scores.q2(self.fitted.wanted, self.folds)
            self.log_dict({f"{stage}/q2": q2, "floor/q2": floor})

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Each row's name and toxicity, on both scales."""
        return toxicity_rows(batch, self(batch["features"]))

    def figures(self, stage: str) -> dict[str, Figure]:
        """Predicted against true."""
        if stage != "test":
            return {}
        return {"predicted": predicted_figure(self.scores.judged(), self.protocol)}


def toxicity_rows(batch: dict[str, Any], toxicity: Tensor) -> list[dict[str, Any]]:
    """Predictions as people read them: -log10(LC50, mol/L), larger is more toxic, and the LC50 in mol/L."""
    names = batch.get("name", batch["index"].tolist())
    return [
        {"name": name, "minus_log10_lc50_mol_per_l": value, "lc50_mol_per_l": 10.0**-value}
        for name, value in zip(names, toxicity.tolist(), strict=True)
    ]
