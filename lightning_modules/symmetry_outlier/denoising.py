"""What method and baselines share: flags from degrees, clusters of what is kept, scores beside floors, predictions."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
)

from components.metrics.clustering import MatchedPrecisionRecall
from lightning_modules.closed_form import Batch, ClosedFormModule
from lightning_modules.symmetry_outlier.clustering import Clustering
from lightning_modules.symmetry_outlier.degree import quartiles, upper_bound
from lightning_modules.symmetry_outlier.figures import degree_figure, plane_figure
from lightning_modules.symmetry_outlier.search import search_of
from runs.errors import InputError, did_you_mean


class DenoisedClustering(ClosedFormModule):
    """Flags outliers among the training rows, divides the others, gives a flagged row its nearest kept row's cluster.

    Subclasses say how much of an outlier a row is. Batches: ``features`` (n, d) float64, ``index`` (n,), and ``label``
    (n,) where the classes are known: they count clusters and judge, nothing learns from them. All state is float64.
    All scores are 0..1.

    Args:
        r: of the cut Q3 + r IQR, 0 or more.
        threshold: ``iqr``: that cut; ``native``: the detector's own, where it has one.
        clustering: how the kept rows are divided.
        outlier_classes: names of classes whose rows are outliers; they judge the flags, and not the clusters.
    """

    points: Tensor  # (n, d) training rows
    index: Tensor  # (n,) their rows in the table
    degree: Tensor  # (n,)
    bound: Tensor  # (1,): what is above it is flagged
    kept: Tensor  # (n,) bool
    clusters: Tensor  # (n,) int64
    num_clusters: Tensor  # K; 0: nothing is divided

    def __init__(
        self, r: float, threshold: Literal["iqr", "native"], clustering: Clustering, outlier_classes: list[str]
    ) -> None:
        super().__init__()
        if r < 0:
            raise InputError(f"model.r={r} must be 0 or more")
        self.r, self.threshold, self.clustering, self.outlier_classes = r, threshold, clustering, outlier_classes
        for name, kind, axes in (
            ("points", torch.float64, 2),
            ("index", torch.int64, 1),
            ("degree", torch.float64, 1),
            ("bound", torch.float64, 1),
            ("kept", torch.bool, 1),
            ("clusters", torch.int64, 1),
        ):
            self.register_variable_buffer(name, kind, axes)
        self.register_buffer("num_clusters", torch.zeros((), dtype=torch.int64))

    # ---- what a detector adds --------------------------------------------------------------

    @abstractmethod
    def score_step(self) -> Mapping[str, Tensor | float]:
        """The next step of the detector on `points`; its last one calls `flag`. Returns numbers to log."""

    @abstractmethod
    def is_scored(self) -> bool:
        """Whether all training rows have a degree and are flagged or kept."""

    @abstractmethod
    def describe(self, x: Tensor, own: Tensor) -> dict[str, Tensor]:
        """Numbers (B,) of other rows x (B, d) by name, ``outlier_degree`` among them.

        ``own`` (B,) int64 is what `themselves` says of them, or -1 for rows that were not trained on.
        """

    def themselves(self, x: Tensor) -> Tensor:
        """Which of the searched training rows each row to predict for is and is not compared with, (B,); -1: none."""
        return torch.full((len(x),), -1, device=x.device)

    def describe_training(self) -> dict[str, Tensor]:
        """The same of the training rows, (n,) each."""
        return {"outlier_degree": self.degree}

    def ranking(self) -> Tensor:
        """How the training rows rank as outliers, (n,)."""
        return self.degree

    # ---- fit -------------------------------------------------------------------------------

    def fit_closed_form(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """The detector's steps, then the clusters."""
        if not len(self.points):
            self.take(batch)
        if not self.is_scored():
            return self.score_step()
        self.divide()
        return {"clusters": float(self.num_clusters)}

    def is_fitted(self) -> bool:
        return self.is_scored() and (not self.num_clusters or len(self.clusters) > 0)

    def take(self, batch: Batch) -> None:
        """The training rows, and how many clusters they are to make.

        Raises:
            InputError: the clusters are to be as many as the classes, and no class is known, or a class is not there.
        """
        names = self.class_names
        for name in self.outlier_classes:
            if name not in names:
                raise InputError(f"model.outlier_classes: there is no class '{name}': {did_you_mean(name, names)}")
        wanted = self.clustering.clusters
        if wanted == "classes":
            if "label" not in batch or batch["label"].ndim != 1:
                raise InputError(
                    "model.clustering.clusters=classes needs rows with one class each: name their column by "
                    "data.reader.label, or give a number of clusters, 0 for outliers alone"
                )
            wanted = len(set(names) - set(self.outlier_classes))
        self.num_clusters.fill_(wanted)
        features = batch["features"]
        self.points = (features.to_dense() if features.layout != torch.strided else features).double()
        self.index = batch["index"]
        self.kept = torch.ones(len(self.points), dtype=torch.bool, device=self.points.device)

    def flag(self, degree: Tensor, native: Tensor | None) -> None:
        """Flags the rows whose degree (n,) is above the cut, strictly; Eq. 10. ``native``: the detector's own cut."""
        by_quartiles = self.threshold == "iqr" or native is None
        self.degree = degree
        self.bound = (upper_bound(degree, self.r) if by_quartiles else native.to(degree)).reshape(1)
        self.kept = degree <= self.bound

    def divide(self) -> None:
        """Clusters of the kept rows; a flagged row has that of its nearest kept one."""
        kept = self.points[self.kept]
        found = self.clustering.fit_predict(kept.cpu().numpy(), int(self.num_clusters))
        clusters = torch.empty(len(self.points), dtype=torch.int64, device=self.points.device)
        clusters[self.kept] = torch.from_numpy(found).to(clusters)
        if not self.kept.all():
            nearest, _ = search_of(kept, "auto").nearest(self.points[~self.kept])
            clusters[~self.kept] = clusters[self.kept][nearest]
        self.clusters = clusters

    # ---- rows to judge ---------------------------------------------------------------------

    @property
    def class_names(self) -> list[str]:
        """The datamodule's; position is the class."""
        return self.trainer.datamodule.class_names

    def place_of(self, batch: Batch) -> Tensor:
        """Which training row each row of a batch is, by its index and its numbers, (B,); -1 for another row."""
        index = batch["index"]
        place = torch.searchsorted(self.index, index).clamp(max=len(self.index) - 1)
        same = (self.index[place] == index) & (self.points[place] == _dense(batch)).all(dim=1)
        return torch.where(same, place, -1)

    def clusters_of(self, x: Tensor) -> Tensor:
        """The cluster of the nearest kept training row, (B,), for rows x (B, d)."""
        kept = self.points[self.kept]
        return self.clusters[self.kept][search_of(kept, "auto").nearest(x)[0]]

    def on_test_start(self) -> None:
        """Metrics for what is known of the rows."""
        self._check_fitted()
        self.to_judge_flags = bool(self.outlier_classes)
        classes = max(1, len(self.class_names))
        self.matched = MatchedPrecisionRecall(max(1, int(self.num_clusters)), classes)
        self.one_cluster = MatchedPrecisionRecall(1, classes)
        self.ranked = nn.ModuleDict({"auc": BinaryAUROC(), "average_precision": BinaryAveragePrecision()})
        self.hard = nn.ModuleDict({"precision": BinaryPrecision(), "recall": BinaryRecall(), "f1": BinaryF1Score()})
        self.to(self.device)
        self.counts = torch.zeros(3, dtype=torch.float64, device=self.device)  # rows, flagged, outliers

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Compares with classes and true outliers, where they are known; training rows are looked up, others scored."""
        place, x = self.place_of(batch), _dense(batch)
        flagged, rank = torch.zeros(len(x), dtype=torch.bool, device=x.device), torch.zeros_like(x[:, 0])
        known = place >= 0
        flagged[known], rank[known] = ~self.kept[place[known]], self.ranking()[place[known]]
        if not known.all():
            degree = self.describe(x[~known], place[~known])["outlier_degree"]  # places are -1
            flagged[~known], rank[~known] = degree > self.bound, degree
        rows = torch.tensor(len(x), device=x.device)
        if "label" not in batch or batch["label"].ndim != 1:
            self.counts += torch.stack([rows, flagged.sum(), 0 * rows])
            return
        places = [self.class_names.index(name) for name in self.outlier_classes]
        outlier = torch.isin(batch["label"], torch.tensor(places, dtype=torch.int64, device=x.device))
        self.counts += torch.stack([rows, flagged.sum(), outlier.sum()])
        for metric in self.ranked.values():  # a rising function keeps the ranks; outside 0..1 a sigmoid would make ties
            metric.update(0.5 + 0.5 * rank / (1 + rank.abs()), outlier.long())
        for metric in self.hard.values():
            metric.update(flagged.long(), outlier.long())
        if self.num_clusters:
            found = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            found[known] = self.clusters[place[known]]
            if not known.all():
                found[~known] = self.clusters_of(x[~known])
            self.matched.update(found[~outlier], batch["label"][~outlier])
            self.one_cluster.update(0 * found[~outlier], batch["label"][~outlier])

    def on_test_epoch_end(self) -> None:
        """Logs the cut, and each score beside its floor: all rows in one cluster, and as many flags at random."""
        rows, flagged, outliers = self.all_gather(self.counts).reshape(-1, 3).sum(dim=0)
        self.log("test/flagged_share", (flagged / rows).float())
        self.log("test/bound", self.bound[0].float())
        if self.num_clusters and self.matched.counts.sum() > 0:
            floors = self.one_cluster.compute()
            for name, value in self.matched.compute().items():
                self.log(f"test/{name}", value.float())
                self.log(f"floor/{name}", floors[name].float())
        if self.to_judge_flags and outliers > 0:
            share, by_chance = outliers / rows, flagged / rows
            chance = {
                "auc": 0.5 + 0 * share,
                "average_precision": share,
                "precision": torch.where(flagged > 0, share, 0.0),
                "recall": by_chance,
                "f1": 2 * share * by_chance / (share + by_chance),
            }
            for name, metric in (*self.ranked.items(), *self.hard.items()):
                self.log(f"test/outlier_{name}", metric.compute().float())
                self.log(f"floor/outlier_{name}", chance[name].float())

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Each row's degree, flag and cluster."""
        self._check_fitted()
        x = _dense(batch)
        numbers = self.describe(x, self.themselves(x))
        columns: dict[str, list[Any]] = {
            ("name" if "name" in batch else "row"): batch.get("name", batch["index"].tolist()),
            "outlier": ["yes" if flagged else "no" for flagged in (numbers["outlier_degree"] > self.bound).tolist()],
            **{name: values.tolist() for name, values in numbers.items()},
        }
        if self.num_clusters:
            columns["cluster"] = self.clusters_of(x).tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def outlier_table(self) -> list[dict[str, Any]]:
        """A line for each training row, by its name or its row of the table, as in a prediction."""
        names = self.trainer.datamodule.trained_names
        columns: dict[str, list[Any]] = {
            "row" if names is None else "name": self.index.tolist() if names is None else names,
            "outlier": ["no" if kept else "yes" for kept in self.kept.tolist()],
            **{name: values.tolist() for name, values in self.describe_training().items()},
        }
        if self.num_clusters:
            columns["cluster"] = self.clusters.tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def figures(self, stage: str) -> dict[str, Figure]:
        """Outliers and clusters in the plane, and the degrees with their cut."""
        if stage != "test":
            return {}
        points, degree, kept = (each.cpu().numpy() for each in (self.points, self.degree, self.kept))
        clusters = self.clusters.cpu().numpy() if self.num_clusters else None
        cuts = [*quartiles(self.degree), self.bound[0]]
        return {
            "outliers": plane_figure(points, degree, kept, clusters, self.trainer.datamodule.axis_names),
            "degrees": degree_figure(degree, *map(float, cuts)),
        }

    def _check_fitted(self) -> None:
        if not self.is_fitted():
            raise InputError("the checkpoint holds no answer yet: go on with its run, python train.py ckpt_path=<run>")


def _dense(batch: Batch) -> Tensor:
    features = batch["features"]
    return (features.to_dense() if features.layout != torch.strided else features).double()
