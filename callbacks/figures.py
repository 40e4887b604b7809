"""Saves the figures of modules and rounds as PNG files and hands them to the loggers that show pictures."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger


@runtime_checkable
class ProvidesFigures(Protocol):
    """A module that has something to show."""

    def figures(self, stage: str) -> dict[str, Figure]:
        """Figures by name after a `"val"`, `"test"` or `"predict"` epoch; may be empty."""
        ...


class FigureWriter(pl.Callback):
    """Writes `<folder>/<stage>_<name>.png` after validation epochs, test and prediction, and what rounds draw.

    A later epoch or round overwrites the file of an earlier one; the loggers keep all of them.

    Args:
        folder: of the PNG files.
        every_n_epochs: epochs between two validations that draw; drawing can cost more than a
            small validation.
    """

    def __init__(self, folder: str, every_n_epochs: int) -> None:
        self.folder, self.every_n_epochs = Path(folder), every_n_epochs

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._write(trainer, module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._write(trainer, module, "test")

    def on_predict_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._write(trainer, module, "predict")

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if not isinstance(module, ProvidesFigures):
            return
        # Every rank draws: a figure may need a metric whose states are gathered over ranks.
        for name, figure in module.figures(stage).items():
            if trainer.is_global_zero:
                self.save(trainer, f"{stage}_{name}", figure)

    def save(self, trainer: pl.Trainer, name: str, figure: Figure) -> None:
        """Writes `<folder>/<name>.png` and hands the figure to the loggers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.png"
        figure.savefig(path, dpi=100, bbox_inches="tight")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"figures/{name}", [str(path)], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(f"figures/{name}", figure, trainer.global_step)
