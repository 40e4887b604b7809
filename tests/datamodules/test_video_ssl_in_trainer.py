"""The video datamodule inside a Lightning trainer: loops, checkpoints, resume."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from datamodules.video_ssl import VideoSSLDataModule

Build = Callable[..., VideoSSLDataModule]


class MeanBrightness(pl.LightningModule):
    """Learns one number and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[list[int], float]] = []

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (self.weight * batch["video_fast"].float().mean() / 255 - 1) ** 2

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss = self._loss(batch["unlabeled"]).mean()
        self.seen.append((batch["unlabeled"]["index"].tolist(), loss.item()))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        assert batch["label"].max() < 2

    test_step = validation_step

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        assert "label" not in batch
        return batch["name"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class BreakOff(Callback):
    """Saves and stops in the middle of the second epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 1):
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def trainer(*callbacks: Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def test_a_broken_off_run_sees_the_same_pixels_as_an_unbroken_one(ucf_root: Path, build: Build, tmp_path: Path) -> None:
    settings = {"mu": 1, "batch_size": 1}
    whole, before, after = MeanBrightness(), MeanBrightness(), MeanBrightness()
    path = tmp_path / "broken.ckpt"
    trainer().fit(whole, datamodule=build(ucf_root, **settings))
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer(BreakOff(path)).fit(before, datamodule=build(ucf_root, **settings))
    resumed = build(ucf_root, num_workers=1, label_seed=7, **settings)
    trainer().fit(after, datamodule=resumed, ckpt_path=path, weights_only=True)
    assert len(whole.seen) == 12
    assert len(before.seen) == 6
    assert before.seen + after.seen == whole.seen


def test_validation_test_and_prediction_run(ucf_root: Path, build: Build) -> None:
    datamodule = build(ucf_root, predict_root=str(ucf_root), eval_batch_size=3)
    trainer().validate(MeanBrightness(), datamodule=datamodule, verbose=False)
    trainer().test(MeanBrightness(), datamodule=datamodule, verbose=False)
    names = trainer().predict(MeanBrightness(), datamodule=datamodule)
    assert [len(batch) for batch in names] == [3, 3, 2]
    assert names[0][0] == "UCF-101/Biking/v_Biking_g01_c01.avi"
