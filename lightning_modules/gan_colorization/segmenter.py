"""The segmenter (Section 3.4.3): the colouriser's whole U-Net with another last layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from components.figures import image_rows
from components.global_mean import global_mean
from components.metrics.floors import beside_floors
from components.metrics.segmentation import SegmentationScores
from components.seeding import seed_streams
from components.voc import VOID, overlay, overlay_row, palette_image
from lightning_modules.gan_colorization.downstream import SHOWN_IMAGES, Batch, DownstreamModule
from lightning_modules.gan_colorization.keras_mean_iou import KerasMeanIoURaw


class SegmenterModule(DownstreamModule):
    """Labels every pixel.

    Batches: ``image (B, 3, S, S)`` uint8, ``mask (B, S, S)`` int64 of 0 background, 1..C, 255 void, ``index``;
    prediction: ``name`` and ``whole (1, 3, H, W)``, one image at a time. Scores are percent, at S x S pixels.

    Args:
        network: see `Segmenter`.
        optimizer: see `DownstreamModule`.
        num_classes: C, without background.
        init: see `DownstreamModule`, as the next two.
        init_from: everything but the last layer is taken.
        freeze: everything but the last layer.
        noise_seed: of the decoder's dropout in evaluation, so that a checkpoint is always judged alike.
    """

    NEW: ClassVar[tuple[str, ...]] = ("out.",)
    LEFT_BEHIND: ClassVar[tuple[str, ...]] = ("out.",)

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        num_classes: int,
        init: Literal["scratch", "transfer"],
        init_from: str | None,
        freeze: bool,
        noise_seed: int,
    ) -> None:
        super().__init__(network, optimizer, init, init_from, freeze)
        self.noise_seed = noise_seed
        self.val_scores, self.test_scores = SegmentationScores(num_classes + 1), SegmentationScores(num_classes + 1)
        self.keras = KerasMeanIoURaw(num_classes + 1)
        self.shown: list[list[tuple[NDArray[np.uint8], str]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy, mean over the pixels of the global batch that are not void."""
        total, pixels = self.cross_entropy(self(batch["image"]), batch["mask"])
        loss = global_mean(total, pixels)
        self.log(
            "train/loss", loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch["image"]),
            prog_bar=True,
        )  # fmt: skip
        return loss

    def cross_entropy(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Its sum over the pixels that are not void, and their number."""
        return F.cross_entropy(logits.float(), mask, ignore_index=VOID, reduction="sum"), (mask != VOID).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and scores, to look at."""
        logits = self.judge(batch, batch_idx, self.val_scores)
        total, pixels = self.cross_entropy(logits, batch["mask"])
        self.log("val/loss", total / pixels.clamp(min=1), on_epoch=True, sync_dist=True, batch_size=len(logits))

    def on_validation_epoch_end(self) -> None:
        """Logs val/mean_iou."""
        self.log("val/mean_iou", self.val_scores.compute()["mean_iou"], prog_bar=True)
        self.val_scores.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the test set, one image at a time: BatchNorm uses its statistics."""
        logits = self.judge(batch, batch_idx, self.test_scores)
        self.keras.update(logits.softmax(dim=1), batch["mask"])

    def on_test_epoch_end(self) -> None:
        """Logs mean IoU, with and without background, beside that of all background, and Keras' artefact."""
        self.log_dict(beside_floors({**self.test_scores.compute(), **self.keras.compute()}))
        self.test_scores.reset()
        self.keras.reset()

    @contextmanager
    def own_noise(self, batch_idx: int) -> Iterator[None]:
        """The decoder's dropout draws from a stream of its own: a judgement neither depends on what ran before it nor
        changes what runs after it."""
        with isolate_rng():
            seed_streams(self.noise_seed, "evaluation", batch_idx * self.trainer.world_size + self.trainer.global_rank)
            yield

    def judge(self, batch: Batch, batch_idx: int, scores: SegmentationScores) -> Tensor:
        """Adds a batch to the scores; returns its logits (B, C + 1, S, S)."""
        with self.own_noise(batch_idx):
            logits = self(batch["image"]).float()
        predicted = logits.argmax(dim=1)
        scores.update(predicted, batch["mask"])
        if batch_idx == 0:
            self.shown = []
        if len(self.shown) < SHOWN_IMAGES:
            masks = {"prediction": predicted[0], "truth": batch["mask"][0]}
            self.shown.append(overlay_row(batch["image"][0], batch["name"][0], masks))
        return logits

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """The mask at the photograph's size as a palette picture, the same laid over it, and its classes."""
        with self.own_noise(batch_idx):
            predicted = self(batch["image"]).argmax(dim=1)
        photograph = batch["whole"][0]
        # Labels cannot be mixed: each pixel takes the nearest one.
        mask = F.interpolate(predicted[None].float(), photograph.shape[-2:], mode="nearest-exact")[0, 0].byte()
        labels = mask.cpu().numpy()
        shown = Image.fromarray(overlay(photograph.permute(1, 2, 0).cpu().numpy(), labels))
        classes = "; ".join(self.class_names[value - 1] for value in mask.unique().tolist() if value > 0)
        return [{"name": batch["name"][0], "classes": classes, "mask": palette_image(labels), "overlay": shown}]

    def figures(self, stage: str) -> dict[str, Figure]:
        """The first evaluated images with prediction and truth."""
        return {"segmentations": image_rows(self.shown, side=1.8)} if self.shown else {}
