"""The multi-label classifier (Section 3.4.2): the colouriser's encoder, then three fully connected layers."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from components.figures import image_rows
from components.metrics.floors import beside_floors
from components.metrics.multilabel import PRESENT, MultilabelScores
from lightning_modules.gan_colorization.downstream import SHOWN_IMAGES, Batch, DownstreamModule
from lightning_modules.gan_colorization.network import NORM_MOMENTUM
from runs.errors import InputError

UNSETTLED = 0.01  # share of their initial values in running statistics


class ClassifierModule(DownstreamModule):
    """Names all classes that an image shows.

    Batches: ``image (B, 3, S, S)`` uint8, ``label (B, C)`` float32 of 0 and 1, ``index``; prediction: ``name``.
    Scores are percent.

    Args:
        network: see `Classifier`.
        optimizer: see `DownstreamModule`.
        num_classes: C.
        init: see `DownstreamModule`, as the next two.
        init_from: an encoder is taken, e1 .. b.
        freeze: the encoder.

    Raises:
        InputError: fewer than two classes; see also `DownstreamModule`.
    """

    NEW: ClassVar[tuple[str, ...]] = ("head.",)
    LEFT_BEHIND: ClassVar[tuple[str, ...]] = (*(f"d{level}" for level in range(1, 10)), "out.")  # d1, d2, …

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        num_classes: int,
        init: Literal["scratch", "transfer"],
        init_from: str | None,
        freeze: bool,
    ) -> None:
        super().__init__(network, optimizer, init, init_from, freeze)
        if num_classes < 2:
            raise InputError(f"data.num_classes={num_classes}: classification needs 2 classes or more")
        self.val_scores, self.test_scores = MultilabelScores(num_classes), MultilabelScores(num_classes)
        self.test_batch_size = 0  # images of one batch, whose statistics the BatchNorms use
        self.shown: list[list[tuple[NDArray[np.uint8], str]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Binary cross-entropy, mean over images and classes."""
        loss = F.binary_cross_entropy_with_logits(self(batch["image"]).float(), batch["label"])
        self.log(
            "train/loss", loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch["image"]),
            prog_bar=True,
        )  # fmt: skip
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and scores, to look at."""
        logits = self.judge(batch, batch_idx, self.val_scores)
        loss = F.binary_cross_entropy_with_logits(logits, batch["label"])
        self.log("val/loss", loss, on_epoch=True, sync_dist=True, batch_size=len(logits))

    def on_validation_epoch_end(self) -> None:
        """Logs val/mean_ap and val/first_label_top1."""
        scores = self.val_scores.compute()
        self.log("val/mean_ap", scores["mean_ap"], prog_bar=True)
        self.log("val/first_label_top1", scores["first_label_top1"])
        self.val_scores.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the test set."""
        if batch_idx == 0:
            self.test_batch_size = len(batch["image"])
        self.judge(batch, batch_idx, self.test_scores)

    def on_test_epoch_end(self) -> None:
        """Logs all scores beside their floors, and the batch size, which they depend on."""
        scores = self.test_scores.compute()
        self.log("test/absent_classes", scores.pop("absent_classes").float())
        self.log_dict(beside_floors(scores))
        self.log("test/batch_size", float(self.test_batch_size))
        self.test_scores.reset()

    def judge(self, batch: Batch, batch_idx: int, scores: MultilabelScores) -> Tensor:
        """Adds a batch to the scores; returns its logits (B, C)."""
        logits = self(batch["image"]).float()
        probability = logits.sigmoid()
        scores.update(probability, batch["label"])
        if batch_idx == 0:
            self.show(batch, probability)
        return logits

    def on_predict_start(self) -> None:
        """Switches the BatchNorms to the statistics of the training: those of one picture alone say too little."""
        self.network.use_statistics("running")
        counted = int(self.network.e2.norm.num_batches_tracked)  # the colouriser's batches too, where it starts there
        if (1 - NORM_MOMENTUM) ** counted > UNSETTLED:
            warnings.warn(
                f"the classifier's BatchNorms have counted {counted} training batches, too few for their statistics to "
                "settle: its probabilities may hardly differ between pictures; train it longer, or from a colouriser",
                stacklevel=2,
            )

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """The classes above one half, and every class's probability."""
        rows = []
        for name, probability in zip(batch["name"], self(batch["image"]).float().sigmoid().tolist(), strict=True):
            each = dict(zip(self.class_names, probability, strict=True))
            likely = "; ".join(c for c, p in each.items() if p > PRESENT)
            rows.append({"name": name, "classes": likely, **{c: round(p, 4) for c, p in each.items()}})
        return rows

    def show(self, batch: Batch, probability: Tensor) -> None:
        """Keeps the first images for the figure, with their three likeliest classes and the true ones."""
        self.shown = []
        for image, row, label in zip(batch["image"][:SHOWN_IMAGES], probability, batch["label"], strict=False):
            best = row.topk(min(3, len(row)))
            said = "\n".join(f"{self.class_names[c]} {p:.2f}" for p, c in zip(*(v.tolist() for v in best), strict=True))
            true = ", ".join(self.class_names[c] for c in label.nonzero().flatten().tolist())
            self.shown.append((image.permute(1, 2, 0).cpu().numpy(), f"true: {true or '-'}\n{said}"))

    def figures(self, stage: str) -> dict[str, Figure]:
        """The first evaluated images."""
        return {"classes": image_rows([self.shown], side=1.8)} if self.shown else {}
