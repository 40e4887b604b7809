"""Makes every training step's random draws a function of its place in the run.

No random stream runs through a run. Whatever happens between two steps (a validation, a refresh of
pseudo-labels, a kill and a resume) changes no draw of the next step.
"""

import hashlib
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.seed import seed_everything


def derived_seed(*place: object) -> int:
    """A 32-bit seed that depends on every part of `place`."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


class ReseedEachStep(pl.Callback):
    """Seeds Python, NumPy and torch before each training batch from (seed, stage, epoch, batch, rank)."""

    def __init__(self, seed: int, stage: str) -> None:
        self.seed, self.stage = seed, stage

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        place = (self.seed, self.stage, trainer.current_epoch, batch_idx, trainer.global_rank)
        seed_everything(derived_seed(*place), verbose=False)
