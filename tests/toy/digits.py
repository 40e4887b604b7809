"""The toy paper: a linear classifier with input noise, trained in two stages on scikit-learn's digits."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from datamodules.sampling import (
    Draw,
    EpochSampler,
    StridedSampler,
    as_draw,
    draw_generator,
    shared_batches,
    trainer_position,
    training_loader,
)
from runs.errors import InputError


class DigitsDataset(Dataset):
    """Digits as 64 values in 0..1; training draws are jittered by a private generator."""

    def __init__(self, train: bool, seed: int) -> None:
        digits = load_digits()
        keep = np.arange(len(digits.target)) % 3 != 0 if train else np.arange(len(digits.target)) % 3 == 0
        self.images = (digits.data[keep] / 16).astype(np.float32)
        self.labels = digits.target[keep].astype(np.int64)
        self.seed, self.train = seed, train

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: Draw | int) -> dict[str, Any]:
        index, number = as_draw(item)
        image = self.images[index]
        if self.train:
            image = image + draw_generator(self.seed, number).normal(0, 0.05, 64).astype(np.float32)
        return {"image": image, "label": self.labels[index], "index": index}


class DigitsDataModule(pl.LightningDataModule):
    """Two thirds of the digits to train on, one third to test on."""

    def __init__(self, batch_size: int, seed: int, num_workers: int, root: str | None) -> None:
        super().__init__()
        if root is not None and not Path(root).is_dir():
            raise InputError(f"data.root={root} does not exist: leave it out, the toy brings its data")
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers

    def setup(self, stage: str) -> None:
        self.train, self.test = DigitsDataset(True, self.seed), DigitsDataset(False, self.seed)

    def train_dataloader(self) -> DataLoader:
        share = shared_batches(self.batch_size, self.trainer.world_size, "data.batch_size")
        sampler = EpochSampler(
            len(self.train),
            share,
            len(self.train) // self.batch_size,
            self.seed,
            lambda: trainer_position(self.trainer),
        )
        return training_loader(self.train, sampler, num_workers=self.num_workers, pin_memory=False)

    def val_dataloader(self) -> DataLoader:
        sampler = StridedSampler(len(self.test), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(self.test, batch_size=100, sampler=sampler)

    test_dataloader = predict_dataloader = val_dataloader

    def sample_names(self, part: str, indices: list[int]) -> list[str]:
        return [f"digit_{index}.png" for index in indices]


class DigitsModule(pl.LightningModule):
    """Softmax regression with dropout. `fail_at_step` and `sleep` let tests break it."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        dropout: float,
        init_from: str | None,
        nan_at_step: int | None,
        sleep: float,
    ) -> None:
        super().__init__()
        self.network, self.optimizer = network, optimizer
        self.dropout = nn.Dropout(dropout)
        self.nan_at_step, self.sleep = nan_at_step, sleep
        self.accuracy = MulticlassAccuracy(10, average="micro")
        if init_from is not None:
            self.load_state_dict(torch.load(init_from, weights_only=True)["state_dict"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        time.sleep(self.sleep)
        loss = nn.functional.cross_entropy(self.network(self.dropout(batch["image"])), batch["label"])
        if self.global_step == self.nan_at_step:
            loss = loss * torch.nan
        self.log("train/loss", loss, on_step=True, on_epoch=False)
        if trace := os.environ.get("TOY_TRACE"):
            average = self.all_gather(loss.detach()).mean().item()
            if self.global_rank == 0:
                with open(trace, "a") as file:
                    file.write(f"{average!r}\n")
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.accuracy(self.network(batch["image"]), batch["label"])
        self.log("val/accuracy", self.accuracy, on_step=False, on_epoch=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self.network(batch["image"])
        self.accuracy(logits, batch["label"])
        self.log("test/accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log(
            "test/loss",
            nn.functional.cross_entropy(logits, batch["label"]),
            on_step=False,
            on_epoch=True,
            sync_dist=True,
        )
        self.log("floor/accuracy", 0.1, on_step=False, on_epoch=True)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        predicted = self.network(batch["image"]).argmax(1)
        return [{"sample": int(i), "digit": int(p)} for i, p in zip(batch["index"], predicted, strict=True)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())

    def figures(self, stage: str) -> dict[str, Figure]:
        figure = Figure(figsize=(2, 2))
        figure.subplots().imshow(self.network.weight.detach().cpu()[0].reshape(8, 8).numpy())
        return {"weights": figure}
