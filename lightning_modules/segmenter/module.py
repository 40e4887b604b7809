"""Supervised segmentation on masks that rounds made: cross-entropy over the pixels that are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from components.figures import image_rows
from components.global_mean import global_mean
from components.initial_weights import StartsFromInitialWeights
from components.metrics.floors import beside_floors
from components.metrics.segmentation import SegmentationScores
from components.pixels import PixelNormalisation
from components.voc import VOID, overlay, overlay_row, palette_image

SHOWN_IMAGES = 6  # in the figure of an evaluation

Batch = dict[str, Any]


class SegmenterModule(StartsFromInitialWeights, pl.LightningModule):
    """Labels every pixel.

    Training batches: ``image (B, 3, h, w)`` uint8 and ``pseudo_mask (B, h, w)`` int64 (0 background,
    1..C, 255 ignored). Evaluation takes one whole image at a time with ``score_mask (1, H, W)``:
    loader 0 is the judged list, loader 1 of the test are training images. Scores are percent.

    Args:
        network: see `Segmenter`.
        optimizer: called with parameter groups that have an lr each.
        num_classes: C, without background.
        lr_encoder: learning rate of the encoder.
        lr_head: of the head.
        poly_power: lr(t) = lr (1 - t / T)^power, T the steps of the run.
        image_mean: mean of each colour channel, of 0..1.
        image_std: standard deviation of each colour channel, of 0..1.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        num_classes: int,
        lr_encoder: float,
        lr_head: float,
        poly_power: float,
        image_mean: list[float],
        image_std: list[float],
    ) -> None:
        super().__init__()
        self.network, self.make_optimizer = network, optimizer
        self.lr_encoder, self.lr_head, self.poly_power = lr_encoder, lr_head, poly_power
        self.normalise = PixelNormalisation(image_mean, image_std)
        self.val_scores = SegmentationScores(num_classes + 1)
        self.test_scores = nn.ModuleList([SegmentationScores(num_classes + 1) for _ in range(2)])  # of each loader
        self.shown: list[list[tuple[NDArray[np.uint8], str]]] = []

    def forward(self, image: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) to logits (B, C + 1, H, W)."""
        return self.network(self.normalise(image))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy, mean over the pixels of the global batch that are not 255."""
        logits, mask = self(batch["image"]).float(), batch["pseudo_mask"]
        total = F.cross_entropy(logits, mask, ignore_index=VOID, reduction="sum")
        loss = global_mean(total, (mask != VOID).sum())  # a batch of unknown pixels alone teaches nothing
        self.log(
            "train/loss", loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(logits),
            prog_bar=True,
        )  # fmt: skip
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """A learning rate for each part, both falling polynomially to 0."""
        groups = [
            {"params": [p for p in self.network.encoder.parameters() if p.requires_grad], "lr": self.lr_encoder},
            {"params": list(self.network.head.parameters()), "lr": self.lr_head},
        ]
        optimizer = self.make_optimizer(groups)
        steps = int(self.trainer.estimated_stepping_batches)

        def decay(t: int) -> float:  # not a part of checkpoints: a resumed run may be longer
            return (1 - min(t, steps) / steps) ** self.poly_power

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, decay), "interval": "step"}}

    # ---- evaluation ----------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the arg-max on the judged list."""
        self.judge(batch, batch_idx, self.val_scores)

    def on_validation_epoch_end(self) -> None:
        """Logs val/mean_iou where there are true masks."""
        if self.val_scores.update_called:
            self.log("val/mean_iou", self.val_scores.compute()["mean_iou"], prog_bar=True)
        self.val_scores.reset()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Scores the arg-max on the judged list and on training images."""
        self.judge(batch, batch_idx, self.test_scores[dataloader_idx], show=dataloader_idx == 0)

    def judge(self, batch: Batch, batch_idx: int, scores: SegmentationScores, show: bool = True) -> None:
        """Compares the arg-max with the true mask."""
        predicted = self(batch["image"]).argmax(dim=1)
        if "score_mask" in batch:
            scores.update(predicted, batch["score_mask"])
        if show and batch_idx < SHOWN_IMAGES:
            self.show(batch, batch_idx, predicted)

    def on_test_epoch_end(self) -> None:
        """Logs mean IoU, with and without background, beside that of all background."""
        for prefix, scores in zip(("", "train_"), self.test_scores, strict=True):
            if scores.update_called:
                self.log_dict(beside_floors(scores.compute(), prefix))
            scores.reset()

    # ---- prediction and pictures ---------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """The mask as a palette picture, the same over the photograph, and the classes of the mask."""
        rows = []
        for name, image, mask in zip(batch["name"], batch["image"], self(batch["image"]).argmax(dim=1), strict=True):
            classes = [self.class_names[value - 1] for value in mask.unique().tolist() if value > 0]
            labels = mask.cpu().numpy()
            shown = Image.fromarray(overlay(image.permute(1, 2, 0).cpu().numpy(), labels))
            rows.append({"name": name, "classes": "; ".join(classes), "mask": palette_image(labels), "overlay": shown})
        return rows

    @property
    def class_names(self) -> list[str]:
        """The datamodule's class names."""
        return self.trainer.datamodule.class_names

    def show(self, batch: Batch, batch_idx: int, predicted: Tensor) -> None:
        """Keeps an evaluated image with its labels and, where known, its true mask."""
        if batch_idx == 0:
            self.shown = []
        masks = {"segmentation": predicted[0]}
        if "score_mask" in batch:
            masks["truth"] = batch["score_mask"][0]
        self.shown.append(overlay_row(batch["image"][0], batch["name"][0], masks))

    def figures(self, stage: str) -> dict[str, Figure]:
        """The first evaluated images with segmentation and truth."""
        return {"segmentations": image_rows(self.shown, side=1.8)} if self.shown else {}
