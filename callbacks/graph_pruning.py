"""Prunes the graph between epochs, and keeps each round's graph, clusters and scores."""

import csv
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from callbacks.iterative_step import IterativeStep, Schedule


class RefinesGraph(Protocol):
    """A module with a graph on points that a round makes sparser."""

    current_labels: Tensor

    def refine(self, points: NDArray[np.float64], last: bool) -> dict[str, Tensor]:
        """What a round changes in the module's state; a pure function of that state and the points."""
        ...

    def take(self, found: dict[str, Tensor]) -> None: ...

    def graph(self, name: str) -> sparse.csr_array: ...

    def last_round(self) -> dict[str, float]: ...

    def round_table(self) -> tuple[tuple[str, ...], list[list[float]]]: ...

    def is_finished(self) -> bool: ...

    def settings(self) -> dict[str, Any]: ...


class HasPoints(Protocol):
    """A datamodule whose samples are points."""

    def points(self) -> NDArray[np.float64]:
        """X, (n, d)."""
        ...


class GraphPruning(IterativeStep):
    """One round of pruning before each epoch.

    The first process computes the round and all take its result, so that any number of them has the
    same graph. A generation holds the pruned graph (arrays ``indptr``, ``indices``, ``weights``)
    and ``cluster`` of each point. The true labels do not enter: the module scores a round in the
    epoch that follows, and the table with the scores is written then.

    Args:
        table: CSV file of the rounds so far.
        schedule, seed, folder, keep: see `IterativeStep`.
    """

    def __init__(self, table: str, schedule: Schedule, seed: int, folder: str, keep: int) -> None:
        super().__init__(schedule, seed, folder, keep)
        self.table = Path(table)

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, module, stage)
        self.module: RefinesGraph = module

    def run(self, trainer: pl.Trainer, module: RefinesGraph, datamodule: HasPoints) -> dict[str, float]:
        last = self.round >= trainer.max_epochs
        found = module.refine(datamodule.points(), last) if trainer.is_global_zero else None
        module.take(self.gather([found])[0])
        graph, labels = module.graph("current"), module.current_labels
        with self.new_generation() as generation:
            mine = np.array(self.shard(len(labels)))
            generation.put("cluster", mine, labels[mine])
            for name, values in (("indptr", graph.indptr), ("indices", graph.indices), ("weights", graph.data)):
                generation.put_array(name, values)
            generation.note(modularity=module.last_round()["modularity"])
        logged = ("modularity", "edges", "removed", "components")
        return {name: module.last_round()[name] for name in logged}

    def settings(self) -> dict[str, Any]:
        return self.module.settings()

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.module.is_finished():  # killed after its last round
            trainer.should_stop = True
        super().on_fit_start(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, module)
        # Not by `should_stop`, right after the round: the epoch that scores it would be skipped.
        if self.module.is_finished():
            trainer.should_stop = True
        if trainer.is_global_zero:
            columns, rows = self.module.round_table()
            partial = self.table.with_name(f"{self.table.name}.partial")
            with partial.open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(["" if value != value else f"{value:.10g}" for value in row] for row in rows)
            partial.replace(self.table)
