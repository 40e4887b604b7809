"""Writes what a module predicts as a CSV table, row by row as the batches come."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class PredictionTable(pl.Callback):
    """Appends the rows that `predict_step` returns (a list of plain dicts, one for each sample).

    Under several processes each writes its own part (`predictions.1.csv`); the columns are those of
    the first row.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._file: Any = None
        self._writer: csv.DictWriter[str] | None = None

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for row in outputs or []:
            if self._writer is None:
                self._open(trainer.global_rank, list(row))
            assert self._writer is not None
            self._writer.writerow(row)

    def on_predict_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._file is not None:
            self._file.close()
            self._file = self._writer = None

    def _open(self, rank: int, columns: list[str]) -> None:
        path = self.path if rank == 0 else self.path.with_suffix(f".{rank}{self.path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, columns)
        self._writer.writeheader()
