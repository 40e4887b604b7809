"""Modularity-guided graph refinement on one page: cluster, cut the farthest clusters apart, again (Algorithm 1)."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torchmetrics.clustering import NormalizedMutualInfoScore
from torchmetrics.functional.clustering import normalized_mutual_info_score

from components.figures import principal_plane
from components.graph import component_count, edge_count, modularity, prune_pairs
from components.metrics.clustering import ClusteringAccuracy
from components.metrics.floors import MajorityFloor
from components.variable_buffers import VariableBuffers
from lightning_modules.modularity_graph_refinement.clustering import Clustering
from lightning_modules.modularity_graph_refinement.figures import graph_figure, rounds_figure
from lightning_modules.modularity_graph_refinement.graph_builders import NeighbourGraph
from runs.errors import InputError

ROUND_COLUMNS = ("round", "accuracy", "nmi", "modularity", "edges", "removed", "components", "seconds")
GRAPHS = ("first", "current", "best")  # A_0, A_t, and the graph of the highest modularity
LABELS = ("first", "current", "best", "final")  # c_0, c_t, those that made the best graph, and its own clusters
ROWS = {"": "best", "reclustered_": "final", "baseline_": "first"}  # test metrics by the labels they judge


@dataclass(frozen=True)
class Pruning:
    """Which pairs of clusters lose their edges in a round.

    Attributes:
        pairs: each cluster with the ``farthest`` (the paper), the ``nearest`` or a ``random`` other;
            ``all_inter``: all pairs, which the paper argues against; ``none``: the graph stays.
        space: where centroids are: the spectral ``embedding``, or the points' ``feature`` space.
    """

    pairs: Literal["farthest", "nearest", "random", "all_inter", "none"]
    space: Literal["embedding", "feature"]


@dataclass(frozen=True)
class Stopping:
    """When the rounds end, besides ``trainer.max_epochs`` and a round that removes no edge.

    Attributes:
        rule: ``strict`` ends at the first round whose modularity does not rise; ``best`` goes on.
        patience: rounds after the best one at which ``best`` ends.
        tol: what modularity must rise by to count.
    """

    rule: Literal["best", "strict"]
    patience: int
    tol: float


class ModularityRefinementModule(VariableBuffers, pl.LightningModule):
    """Learns a sparse graph of high modularity from points, without gradients and without labels.

    A round (`refine`) is called between epochs; the epoch that follows scores it with the true
    labels, for the log alone. All that the rounds found is in the module's state, so a checkpoint
    alone is judged and predicted from. Batches: ``{"index" (B,)}``, and ``label`` (B,) where it is
    known. Accuracies are percent, NMI is 0..1.

    Args:
        builder: called with points, graph settings and a function that clusters a graph; gives A_0.
        graph: settings of the k-NN graph.
        cluster: how a graph is divided.
        prune: which clusters lose their edges.
        stop: when the rounds end.
        num_classes: true classes, for the metrics.
    """

    rounds: Tensor  # (T, columns) float64

    def __init__(
        self,
        builder: Callable[..., sparse.csr_array],
        graph: NeighbourGraph,
        cluster: Clustering,
        prune: Pruning,
        stop: Stopping,
        num_classes: int,
    ) -> None:
        super().__init__()
        if cluster.p < 1:
            raise InputError(f"model.cluster.p={cluster.p} must be 1 cluster or more")
        if stop.patience < 1:
            raise InputError(f"model.stop.patience={stop.patience} must be 1 round or more")
        self.builder, self.graph_settings = builder, graph
        self.cluster, self.prune, self.stop = cluster, prune, stop
        self.num_classes = num_classes
        self.automatic_optimization = False
        self.unused = torch.nn.Parameter(torch.zeros(()))  # DistributedDataParallel refuses a module without any
        for name in GRAPHS:
            self.register_variable_buffer(f"{name}_indptr", torch.int32)
            self.register_variable_buffer(f"{name}_indices", torch.int32)
            self.register_variable_buffer(f"{name}_weights", torch.float64)
        for name in LABELS:
            self.register_variable_buffer(f"{name}_labels", torch.int64)
        self.register_variable_buffer("rounds", torch.float64, axes=2)
        self.register_variable_buffer("layout", torch.float64, axes=2)  # (n, 2), where figures show the points
        self.register_buffer("builder_seconds", torch.zeros((), dtype=torch.float64))
        self.register_buffer("clustering_seconds", torch.zeros((), dtype=torch.float64))

    # ---- the algorithm ---------------------------------------------------------------------

    def refine(self, points: NDArray[np.float64], last: bool) -> dict[str, Tensor]:
        """One round; returns the parts of the module's state that it changes (see `take`).

        Args:
            points: X, (n, d); nothing else about the data enters.
            last: whether no round may follow.

        Raises:
            InputError: too few points for k, or too few different ones for p.
        """
        found: dict[str, Any] = {}
        t = len(self.rounds)
        if t == 0:
            self._check(points)
            started = time.perf_counter()
            graph = self.builder(points, self.graph_settings, lambda A: self.divide(A, points)[0])
            found["builder_seconds"] = time.perf_counter() - started
            found.update(_graph_state("first", graph), layout=principal_plane(points)[0])
        else:
            graph = self.graph("current")

        started = time.perf_counter()
        labels, embedding = self.divide(graph, points)  # line 2: divide the latest graph into p clusters
        space = embedding if self.prune.space == "embedding" else points
        pairs = self.pairs_to_part(centroids(space, labels), t)  # lines 3-5: the farthest cluster of each
        pruned, removed = prune_pairs(graph, labels, pairs)  # line 6: remove the edges between them
        Q = modularity(pruned, labels)  # Eq. 1, on the pruned graph and the labels that caused the pruning
        seconds = time.perf_counter() - started

        row = dict.fromkeys(ROUND_COLUMNS, float("nan"))
        row |= {"round": t, "modularity": Q, "edges": edge_count(pruned), "removed": removed, "seconds": seconds}
        row["components"] = component_count(pruned)
        rounds = np.vstack([_numpy(self.rounds).reshape(t, len(ROUND_COLUMNS)), list(row.values())])
        found.update(_graph_state("current", pruned), current_labels=labels, rounds=rounds)
        if t == 0:
            found["first_labels"] = labels
        if self.best_round(rounds) == t:
            found.update(_graph_state("best", pruned), best_labels=labels)
        if last or self.finished(rounds):
            best = pruned if "best_labels" in found else self.graph("best")
            started = time.perf_counter()
            found["final_labels"] = self.divide(best, points)[0]
            found["clustering_seconds"] = time.perf_counter() - started
        return {name: torch.as_tensor(value) for name, value in found.items()}

    def divide(
        self, graph: sparse.csr_array, points: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Clusters c (n,) and spectral embedding U (n, p) of a graph; the same for equal graphs."""
        embedding = self.cluster.embedding(graph)
        return self.cluster.labels(graph, embedding, points), embedding

    def pairs_to_part(self, centroid: NDArray[np.float64], t: int) -> NDArray[np.bool_]:
        """Symmetric (p, p), True where edges between two clusters go; the farthest of i may have another farthest."""
        p = len(centroid)
        pairs = np.zeros((p, p), dtype=bool)
        if self.prune.pairs == "none" or p < 2:
            return pairs
        if self.prune.pairs == "all_inter":
            return ~np.eye(p, dtype=bool)
        if self.prune.pairs == "random":
            other = np.random.default_rng([self.cluster.seed, t]).integers(p - 1, size=p)
            other += other >= np.arange(p)
        else:
            distance = np.linalg.norm(centroid[:, None] - centroid[None], axis=2)
            sign = 1.0 if self.prune.pairs == "farthest" else -1.0
            np.fill_diagonal(distance, -sign * np.inf)
            other = (sign * distance).argmax(axis=1)
        pairs[np.arange(p), other] = True
        return pairs | pairs.T

    def best_round(self, rounds: NDArray[np.float64]) -> int:
        """The round of the highest modularity; a later one must be higher by more than tol."""
        best, Q = 0, rounds[:, ROUND_COLUMNS.index("modularity")]
        for t in range(1, len(Q)):
            if Q[t] > Q[best] + self.stop.tol:
                best = t
        return best

    def finished(self, rounds: NDArray[np.float64]) -> bool:
        """Section 3.3: whether the last round removed nothing, or modularity no longer rises."""
        t = len(rounds) - 1
        if rounds[t, ROUND_COLUMNS.index("removed")] == 0:
            return True
        since_best = t - self.best_round(rounds)
        return since_best >= (1 if self.stop.rule == "strict" else self.stop.patience)

    def _check(self, points: NDArray[np.float64]) -> None:
        k, p = self.graph_settings.k, self.cluster.p
        if not 1 <= k < len(points):
            raise InputError(f"model.graph.k={k} must be from 1 to {len(points) - 1}, one less than the points")
        different = len(np.unique(points, axis=0))
        if different < p:
            raise InputError(
                f"model.cluster.p={p} clusters need at least {p} different points, found {different}: "
                "lower model.cluster.p"
            )

    # ---- state -----------------------------------------------------------------------------

    def take(self, found: dict[str, Tensor]) -> None:
        """Makes what a round found the module's state."""
        for name, value in found.items():
            setattr(self, name, value.to(self.device))

    def graph(self, name: Literal["first", "current", "best"]) -> sparse.csr_array:
        """A graph of the state."""
        indptr, indices, weights = (
            _numpy(getattr(self, f"{name}_{part}")) for part in ("indptr", "indices", "weights")
        )
        n = len(indptr) - 1
        return sparse.csr_array((weights, indices, indptr), shape=(n, n))

    def last_round(self) -> dict[str, float]:
        """The newest row of the table of rounds."""
        return dict(zip(ROUND_COLUMNS, self.rounds[-1].tolist(), strict=True))

    def round_table(self) -> tuple[tuple[str, ...], list[list[float]]]:
        """Column names and the rows so far; accuracy and NMI are NaN where the labels are unknown."""
        return ROUND_COLUMNS, self.rounds.tolist()

    def is_finished(self) -> bool:
        """Whether the rounds so far are all."""
        return len(self.rounds) > 0 and self.finished(_numpy(self.rounds))

    def settings(self) -> dict[str, Any]:
        """All that decides what a round produces."""
        builder = {"builder": self.builder.func.__name__, **self.builder.keywords}
        parts = {"graph": self.graph_settings, "cluster": self.cluster, "prune": self.prune, "stop": self.stop}
        return {**builder, **{f"{part}.{k}": v for part, value in parts.items() for k, v in asdict(value).items()}}

    # ---- scores ----------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Scores the round's clusters for the table of section 4.6; nothing learns from it. One batch: all points."""
        self.optimizers().step()  # of no weights: it counts the rounds for the loggers
        if "label" not in batch:
            return
        labels = self.current_labels[batch["index"]]
        accuracy = ClusteringAccuracy(int(self.current_labels.max()) + 1, self.num_classes).to(self.device)
        scores = {
            "accuracy": accuracy(labels, batch["label"]),
            "nmi": normalized_mutual_info_score(labels, batch["label"], "geometric"),  # Eq. 3, 4
        }
        for name, value in scores.items():
            self.rounds[-1, ROUND_COLUMNS.index(name)] = value.double()
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, batch_size=len(labels))

    def on_test_start(self) -> None:
        """Metrics of the sizes that the checkpoint's clusterings have."""
        if not len(self.rounds):
            raise InputError("the checkpoint holds no round yet: go on with its run, python train.py ckpt_path=<run>")
        judged = [row for row, name in ROWS.items() if len(getattr(self, f"{name}_labels"))]
        self.accuracy = torch.nn.ModuleDict(
            {f"{row}accuracy": ClusteringAccuracy(self._clusters(ROWS[row]), self.num_classes) for row in judged}
        ).to(self.device)
        self.nmi = torch.nn.ModuleDict(
            {f"{row}nmi": NormalizedMutualInfoScore(average_method="geometric") for row in judged}
        ).to(self.device)
        self.floor = MajorityFloor(self.num_classes).to(self.device)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Compares clusters and classes, where the classes are known."""
        if "label" not in batch:
            return
        self.floor.update(batch["label"])
        for row in ROWS:
            if f"{row}accuracy" in self.accuracy:
                labels = getattr(self, f"{ROWS[row]}_labels")[batch["index"]]
                self.accuracy[f"{row}accuracy"].update(labels, batch["label"])
                self.nmi[f"{row}nmi"].update(labels, batch["label"])

    def on_test_epoch_end(self) -> None:
        """Logs the answer, its re-clustering, the unrefined graph, and what the rounds did."""
        scores: dict[str, Tensor | float] = {}
        if self.floor.update_called:
            scores = {name: metric.compute() for name, metric in (*self.accuracy.items(), *self.nmi.items())}
            majority = self.floor.compute()  # all points in one cluster
            for name in scores:
                self.log(f"floor/{name}", majority if name.endswith("accuracy") else 0.0)
            scores["gain"] = scores["accuracy"] - scores["baseline_accuracy"]
        table = _numpy(self.rounds)
        column = {name: table[:, place] for place, name in enumerate(ROUND_COLUMNS)}
        best, first_graph = self.best_round(table), self.graph("first")
        scores["modularity"] = column["modularity"][best]
        scores["baseline_modularity"] = modularity(first_graph, _numpy(self.first_labels))
        for name in ("modularity", "baseline_modularity"):
            self.log(f"floor/{name}", 0.0)
        if len(table) > 2 and self.floor.update_called and np.ptp(column["accuracy"]) and np.ptp(column["modularity"]):
            scores["correlation"] = np.corrcoef(column["accuracy"], column["modularity"])[0, 1]  # section 4.6
        scores |= {
            "clusters": self._clusters("best"),
            "rounds": len(table),
            "best_round": best,
            "edges": column["edges"][best],
            "removed_edges": column["removed"][: best + 1].sum(),
            "components": column["components"][best],
            "baseline_components": component_count(first_graph),
            # A round without pruning builds no graph, it only clusters one.
            "construction_seconds": float(self.builder_seconds)
            + (0.0 if self.prune.pairs == "none" else column["seconds"].sum()),
            "clustering_seconds": float(self.clustering_seconds),
        }
        self.log_dict({f"test/{name}": float(value) for name, value in scores.items()})

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        """The cluster of each point, and its cluster in the re-clustering of the answer's graph."""
        index = batch["index"]
        columns = {"point": index, "cluster": self.best_labels[index]}
        if len(self.final_labels):
            columns["reclustered"] = self.final_labels[index]
        values = [column.tolist() for column in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]

    def figures(self, stage: str) -> dict[str, Figure]:
        """Accuracy and modularity by round (Fig. 2, 3), and the graph before and after."""
        if stage != "test":
            return {}
        table = {name: _numpy(self.rounds)[:, place] for place, name in enumerate(ROUND_COLUMNS)}
        labels = {"before": _numpy(self.first_labels), "after": _numpy(self.best_labels)}
        graphs = {"before": self.graph("first"), "after": self.graph("best")}
        return {
            "rounds": rounds_figure(table, self.best_round(_numpy(self.rounds))),
            "graph": graph_figure(_numpy(self.layout), graphs, labels),
        }

    def configure_optimizers(self) -> None:
        """There is nothing to optimise."""

    def _clusters(self, name: str) -> int:
        return int(getattr(self, f"{name}_labels").max()) + 1


def centroids(space: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of each cluster's rows, (p, d)."""
    members = sparse.csr_array((np.ones(len(labels)), (labels, np.arange(len(labels)))))
    return (members @ space) / np.bincount(labels)[:, None]


def _graph_state(name: str, graph: sparse.csr_array) -> dict[str, NDArray]:
    return {f"{name}_indptr": graph.indptr, f"{name}_indices": graph.indices, f"{name}_weights": graph.data}


def _numpy(tensor: Tensor) -> NDArray:
    return tensor.cpu().numpy()
