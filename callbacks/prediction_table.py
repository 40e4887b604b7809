"""Writes what a module predicts: a CSV table, and pictures and maps as files, as the batches come."""

import csv
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytorch_lightning as pl
import tifffile
from PIL import Image


class PredictionTable(pl.Callback):
    """Appends the rows that `predict_step` returns (a list of dicts, one for each sample).

    A value that is a PIL image becomes `<folder>/<column>/<name>.png`, a 2-D float array becomes
    `<folder>/<column>/<name>.tif` (32-bit float, NaN kept); `<folder>` is the path without its suffix
    and `name` is the row's own column `name`, a file name relative to the folder that was predicted
    on. The table then holds the file's path relative to its own folder.

    Under several processes each writes its own part (`predictions.1.csv`); the columns are those of
    the first row.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._file: Any = None
        self._writer: csv.DictWriter[str] | None = None
        self._written: set[Path] = set()

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
            self._writer.writerow({column: self._cell(row, column, value) for column, value in row.items()})

    def on_predict_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._file is not None:
            self._file.close()
            self._file = self._writer = None
            self._written = set()

    def _cell(self, row: dict[str, Any], column: str, value: Any) -> Any:
        if isinstance(value, Image.Image):
            path = self._new_path(column, row["name"], ".png")
            value.save(path)
        elif isinstance(value, np.ndarray):
            path = self._new_path(column, row["name"], ".tif")
            tifffile.imwrite(path, value.astype(np.float32))
        else:
            return value
        return path.relative_to(self.path.parent).as_posix()

    def _new_path(self, column: str, name: str, suffix: str) -> Path:
        inside = PurePosixPath(name)
        path = self.path.with_suffix("") / column / inside.with_suffix(suffix)
        if path in self._written:  # a.jpg beside a.png
            path = path.with_name(inside.name + suffix)
        self._written.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _open(self, rank: int, columns: list[str]) -> None:
        path = self.path if rank == 0 else self.path.with_suffix(f".{rank}{self.path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, columns)
        self._writer.writeheader()
