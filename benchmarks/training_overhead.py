"""A training step through the whole house (Trainer, callbacks, logging, seeding) against a bare PyTorch loop.

Same network, same batches, same losses, at the size of `sitar_ucf101_mini`; prints the ratio.
Reads the sample named by REPRISE_DATA, or generates the demo's videos.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from runs.building import build_pieces, build_trainer
from runs.composition import compose_config
from runs.interruption import StopOnSignal
from runs.results import Stopwatch
from runs.run_log import log_to
from runs.seeding import ReseedEachStep
from runs.stages import Stage, resolve_stage

STEPS, ROUNDS, WARM_UP = 40, 3, 5


def config(folder: Path) -> dict[str, Any]:
    """The semi-supervised stage of the mini experiment, its clips kept in memory."""
    from omegaconf import OmegaConf

    data = os.environ.get("REPRISE_DATA")
    root = [f"data.root={data}/ucf101"] if data else []
    composed = compose_config(
        [
            f"experiment={'sitar_ucf101_mini' if data else 'sitar_demo'}",
            *root,
            f"paths.run_dir={folder}",
            f"paths.data_dir={folder}",
            "data.cache=ram",
            "data.num_workers=0",
            f"trainer.max_steps={STEPS}",
            "trainer.limit_val_batches=0",
            "trainer.accelerator=cpu",
            "trainer.enable_progress_bar=false",
            "stages.semi.model.init_from=null",
            "stages.semi.trainer.max_epochs=1000",
        ]
    )
    return resolve_stage(OmegaConf.to_container(composed), Stage("semi", folder))


class StepClock(pl.Callback):
    """Notes when each training batch ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())


def seconds_per_step(ends: list[float]) -> float:
    """Median step from batch end to batch end, the first ones left out."""
    return statistics.median(b - a for a, b in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False))


def through_the_house(settings: dict[str, Any], folder: Path) -> float:
    """A fit as train.py runs it."""
    pl.seed_everything(1, verbose=False)
    pieces = build_pieces(settings)
    clock = StepClock()
    house = [ReseedEachStep(1, "semi"), Stopwatch(), *pieces.callbacks, StopOnSignal(folder / "last.ckpt", folder)]
    build_trainer(settings, pieces, [*house, clock]).fit(pieces.module, datamodule=pieces.datamodule)
    return seconds_per_step(clock.ends)


def bare_loop(settings: dict[str, Any]) -> float:
    """The same step written out: next batch, losses, backward, AdamW, cosine."""
    pl.seed_everything(1, verbose=False)
    pieces = build_pieces(settings)
    module, datamodule = pieces.module, pieces.datamodule
    datamodule.prepare_data()
    datamodule.setup("fit")
    module.log = lambda *args, **kwargs: None  # logging is the house's part
    module.gather = lambda rows: rows
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    module.train()
    ends: list[float] = []
    while len(ends) < STEPS:
        for batch, batch_idx, _ in iter(datamodule.train_dataloader()):
            loss = module.training_step(batch, batch_idx)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            ends.append(time.perf_counter())
    return seconds_per_step(ends[:STEPS])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log_to(folder)
        settings = config(folder)
        house, bare = [], []
        for _ in range(ROUNDS):
            bare.append(bare_loop(settings))
            house.append(through_the_house(settings, folder))
    ratio = min(house) / min(bare)
    print(f"training step of {settings['name']}: bare loop {1e3 * min(bare):.1f} ms, house {1e3 * min(house):.1f} ms")
    print(f"ratio house / bare: {ratio:.3f}")


if __name__ == "__main__":
    main()
