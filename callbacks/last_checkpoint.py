"""Keeps the newest checkpoint: at the end of every epoch, and inside long ones if asked to."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class LastCheckpoint(pl.callbacks.Checkpoint):
    """Writes `<folder>/last.ckpt`, after validation and after every other callback has had its turn.

    Lightning's ModelCheckpoint does not save an epoch in which no optimiser stepped, which is every
    epoch of a paper without gradients; this one does. To keep the best by a validation metric, add
    a ModelCheckpoint to `callbacks` beside it.

    Args:
        folder: of the checkpoints.
        every_n_epochs: epochs between two saves; the last epoch is always saved.
        every_n_steps: optimiser steps between two saves inside an epoch, or None. A run resumed
            there goes on with the very next batch.
    """

    def __init__(self, folder: str, every_n_epochs: int, every_n_steps: int | None) -> None:
        self.path = Path(folder) / "last.ckpt"
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs % self.every_n_epochs == 0 or epochs == trainer.max_epochs or trainer.should_stop:
            self._save(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        # The last batch of an epoch is followed by the epoch's own save.
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)  # what the checkpoint has seen must not be lost with the process
