"""Baselines: one regressor of scikit-learn on all training rows, without bins."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from sklearn.pipeline import Pipeline
from torch import Tensor

from components.refitted_estimator import RefittedEstimator
from lightning_modules.closed_form import ClosedFormModule
from lightning_modules.fish_toxicity_qsar.figures import predicted_figure
from lightning_modules.fish_toxicity_qsar.scores import LEAKY, MODEL, Protocol, ToxicityScores, stage_of

MINUS_LOG10_LC50 = "-log10(LC50, mol/L)"  # the name of a target that can be read as an LC50
ROW_FIELDS = ("name", "leaf", "leaf_from", "leaf_to")  # of predictions, beside the target


class RegressorModule(ClosedFormModule):
    """Fits a regressor at once. Batches: ``features (B, d)``, ``target (B,)`` by the datamodule's name, ``index``.

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
        """The target of each row, (B,)."""
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
        """Each row's name and its target; see `predicted_rows`."""
        return predicted_rows(batch, self(batch["features"]), self.target_name)

    def figures(self, stage: str) -> dict[str, Figure]:
        """Predicted against true."""
        if stage != "test":
            return {}
        titles = {MODEL: regressor_name(self.fitted.estimator)}
        return {"predicted": predicted_figure(self.scores.judged(), titles, self.target_name, self.protocol)}

    @property
    def target_name(self) -> str:
        """What is predicted, which the datamodule knows."""
        return self.trainer.datamodule.target_name


def predicted_rows(batch: dict[str, Any], values: Tensor, target_name: str) -> list[dict[str, Any]]:
    """Predictions under the target's name; of -log10(LC50, mol/L), larger is more toxic, the LC50 in mol/L too."""
    names = batch.get("name", batch["index"].tolist())
    rows = zip(names, values.tolist(), strict=True)
    if target_name == MINUS_LOG10_LC50:
        return [{"name": name, "minus_log10_lc50_mol_per_l": y, "lc50_mol_per_l": 10.0**-y} for name, y in rows]
    column = f"predicted_{target_name}" if target_name in ROW_FIELDS else target_name
    return [{"name": name, column: y} for name, y in rows]


def regressor_name(estimator: Any) -> str:
    """What scikit-learn calls a regressor; of a pipeline its last step."""
    return type(estimator[-1] if isinstance(estimator, Pipeline) else estimator).__name__
