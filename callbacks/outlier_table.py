"""Writes the training rows with their outlier degrees, flags and clusters as a CSV file."""

import csv
import io
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl

from runs.atomic_files import write_atomically


class HasOutlierTable(Protocol):
    """A module that has flagged the rows it was trained on."""

    def outlier_table(self) -> list[dict[str, Any]]:
        """A line for each training row."""
        ...


class OutlierTable(pl.Callback):
    """Writes the file at each test, whole.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.write(module)

    def write(self, module: HasOutlierTable) -> None:
        """Writes the lines."""
        rows = module.outlier_table()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))
