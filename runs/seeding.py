"""Makes every training step's random draws a function of its place in the run.

No random stream runs through a run. Whatever happens between two steps (a validation, a refresh of
pseudo-labels, a kill and a resume) changes no draw of the next step.
"""

from typing import Any

import pytorch_lightning as pl

from components.seeding import seed_streams


class ReseedEachStep(pl.Callback):
    """Seeds Python, NumPy and torch before each training batch from (seed, stage, epoch, batch, rank)."""

    def __init__(self, seed: int, stage: str) -> None:
        self.seed, self.stage = seed, stage

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        seed_streams(self.seed, self.stage, trainer.current_epoch, batch_idx, trainer.global_rank)
