"""A small paper that lives by rounds: digits, few labelled, pseudo-labels refreshed between epochs.

Run as a program (`python -m tests.callbacks.digits_pseudo_labels '<json arguments of fit>'`) it is
one process of a distributed run, or a run that can be killed.
"""

import json
import os
import random
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from callbacks.iterative_step import IterativeStep, Schedule
from datamodules.sampling import (
    Draw,
    EpochSampler,
    as_draw,
    draw_generator,
    trainer_position,
    training_loader,
)
from runs.round_store import RoundReader

IMAGES, LABELLED, GLOBAL_BATCH = 240, 48, 24
DIGITS = load_digits()


class PseudoLabelledDigits(Dataset):
    """Digits with noise; an unlabelled one has the label that the last round gave it, if any."""

    def __init__(self) -> None:
        self.rounds: RoundReader | None = None

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, item: Draw | int) -> dict[str, Any]:
        index, number = as_draw(item)
        noise = draw_generator(7, number).normal(0, 0.1, 64)
        label, weight = int(DIGITS.target[index]), 1.0
        generation = self.rounds.generation if self.rounds is not None else None
        if index >= LABELLED:
            label, weight = 0, 0.0
            if generation is not None:
                label = int(generation["label"][index])
                weight = 0.3 / len(generation["candidates"][index])
        return {
            "image": torch.tensor(DIGITS.data[index] / 16 + noise, dtype=torch.float32),
            "label": label,
            "weight": torch.tensor(weight),
            "index": index,
            "generation": generation.number if generation is not None else 0,
        }


class DigitsData(pl.LightningDataModule):
    def __init__(self, num_workers: int, start_method: str | None, persistent: bool) -> None:
        super().__init__()
        self.num_workers, self.start_method, self.persistent = num_workers, start_method, persistent
        self.train_set = PseudoLabelledDigits()
        self.named: list[str] = []

    def use_rounds(self, step: str, rounds: RoundReader) -> None:
        self.named.append(step)
        self.train_set.rounds = rounds

    def train_dataloader(self) -> DataLoader:
        sampler = EpochSampler(
            IMAGES,
            GLOBAL_BATCH // self.trainer.world_size,
            IMAGES // GLOBAL_BATCH,
            seed=3,
            position=lambda: trainer_position(self.trainer),
        )
        if self.persistent:
            loader = training_loader(self.train_set, sampler, num_workers=self.num_workers, pin_memory=False)
        else:
            loader = DataLoader(
                self.train_set,
                batch_size=sampler.batch_size,
                sampler=sampler,
                num_workers=self.num_workers,
            )
        loader.multiprocessing_context = self.start_method if self.num_workers else None
        return loader

    def unlabelled(self) -> dict[str, np.ndarray]:
        index = np.arange(LABELLED, IMAGES)
        return {"index": index, "image": (DIGITS.data[index] / 16).astype(np.float32)}


class DigitsNet(pl.LightningModule):
    """Dropout draws from the running random stream; the normalisation layer stays in eval mode."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10)
        )
        self.net[1].eval()
        self.seen: dict[int, set[int]] = {}
        self.losses: list[float] = []

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen.setdefault(self.current_epoch, set()).update(batch["generation"].tolist())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        losses = nn.functional.cross_entropy(self(batch["image"]), batch["label"], reduction="none")
        loss = (losses * batch["weight"]).mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class PseudoLabelRefresh(IterativeStep):
    """Labels the unlabelled digits; `crash` breaks one round half-way, as a kill or an error."""

    crash: tuple[int, str] | None = None

    def run(self, trainer: pl.Trainer, module: DigitsNet, datamodule: DigitsData) -> dict[str, float]:
        data = datamodule.unlabelled()
        confidences, right = [], []
        with self.new_generation() as generation:
            for place in self.progress(self.shard(len(data["index"])), description="labels"):
                index = int(data["index"][place])
                probability = module(torch.tensor(data["image"][place : place + 1])).softmax(1)[0]
                confidence, label = probability.max(0)
                generation.put("label", index, label)
                generation.put("confidence", [index], confidence[None])
                generation.put("candidates", index, (probability > confidence / 10).nonzero()[:, 0])
                confidences.append(float(confidence))
                right.append(int(label) == DIGITS.target[index])
                if place >= len(data["index"]) // 2 and self.crash == (self.round, "exit"):
                    os._exit(9)
                if place >= len(data["index"]) // 2 and self.crash == (self.round, "raise"):
                    raise KeyboardInterrupt
            confidences = self.gather(confidences)
            generation.put_array("histogram", np.histogram(confidences, bins=5)[0])
            generation.note(draws=[random.random(), np.random.rand(), torch.rand(1).item()])
        return {"confidence": fmean(confidences), "accuracy": fmean(self.gather(right))}


class ReseedEachBatch(pl.Callback):
    """Every batch's draws are a function of its place, as in a real run."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        torch.manual_seed(100 * trainer.global_step + trainer.global_rank)


def fit(
    folder: str | Path,
    *,
    step: IterativeStep | None = None,
    schedule: dict[str, Any] | None = None,
    crash: tuple[int, str] | None = None,
    ckpt_path: str | None = None,
    max_epochs: int = 6,
    num_workers: int = 0,
    start_method: str | None = None,
    persistent: bool = True,
    reseed: bool = True,
    devices: int = 1,
    dropout: float = 0.3,
    callbacks: list[pl.Callback] | None = None,
    checkpoint: dict[str, Any] | None = None,
    **trainer_arguments: Any,
) -> tuple[DigitsNet, IterativeStep | None, pl.Trainer]:
    folder = Path(folder)
    torch.manual_seed(1)
    if schedule is not None:
        step = PseudoLabelRefresh(Schedule(**schedule), seed=5, folder=str(folder / "rounds"))
        step.crash = tuple(crash) if crash else None
    module = DigitsNet(dropout)
    settings = {"save_top_k": 1, "save_on_train_epoch_end": True, **(checkpoint or {})}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=max_epochs,
        callbacks=[
            *(callbacks or []),
            *([step] if step else []),
            *([ReseedEachBatch()] if reseed else []),
            ModelCheckpoint(folder / "checkpoints", save_last=True, **settings),
        ],
        logger=CSVLogger(folder, name="", version="csv"),
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **{"enable_progress_bar": False, **trainer_arguments},
    )
    data = DigitsData(num_workers, start_method, persistent)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module, step, trainer


def main() -> None:
    torch.set_num_threads(1)
    arguments = json.loads(sys.argv[1])
    out = arguments.pop("out", None)
    module, step, trainer = fit(**arguments)
    if out is not None:
        result = {
            "weights": module.state_dict(),
            "losses": module.losses,
            "history": step.history,
            "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
        }
        torch.save(result, f"{out}.{trainer.global_rank}")


if __name__ == "__main__":
    main()
