"""Writes a tree over target ranges as files: its bins, its choices with their columns by name, and all it tried."""

import csv
import io
import json
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
from torch import Tensor

from runs.atomic_files import write_atomically


class HasTree(Protocol):
    """A module with a tree of bins."""

    def node_table(self) -> list[dict[str, Any]]:
        """A line for each node."""
        ...

    def selection_table(self) -> list[dict[str, Any]]:
        """A line for each candidate of each inner node."""
        ...

    def columns_of(self, node: int) -> Tensor:
        """Columns that a node looks at, best first."""
        ...


class HasColumns(Protocol):
    """A datamodule that knows what its columns are called."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns that a batch's features have."""
        ...


class BinTreeReport(pl.Callback):
    """Writes at each test `bins.csv` and `tree.json` (a node each), and `selection.csv` (a candidate each).

    `tree.json` names the columns that each node's classifier looks at, best first.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.write(module, trainer.datamodule)

    def write(self, module: HasTree, datamodule: HasColumns) -> None:
        """Writes the three files, each whole."""
        nodes, names = module.node_table(), datamodule.columns
        self._write_rows("bins.csv", nodes)
        self._write_rows("selection.csv", module.selection_table())
        tree = [
            {**node, "columns": [names[place] for place in module.columns_of(node["node"]).tolist()]} for node in nodes
        ]
        text = json.dumps(tree, indent=1) + "\n"
        write_atomically(self.folder / "tree.json", lambda file: file.write(text.encode()))

    def _write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.folder / name, lambda file: file.write(text.getvalue().encode()))
