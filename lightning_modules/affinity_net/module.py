"""AffinityNet on one page: features of near pixels are alike where confident labels are (arXiv 1803.10464, 3.2).

The labels come from class maps (`callbacks.affinity_labels`); the affinities serve a random walk
(`callbacks.random_walk_masks`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from components.figures import image_rows
from components.initial_weights import StartsFromInitialWeights
from components.metrics.floors import beside_floors
from components.pixels import PixelNormalisation
from components.random_walk import pairs_inside
from components.voc import overlay_row
from lightning_modules.affinity_net.losses import affinity_losses, pair_labels
from lightning_modules.affinity_net.scores import PairScores

SHOWN_IMAGES = 6  # in the figure of an evaluation

Batch = dict[str, Any]


class AffinityNetModule(StartsFromInitialWeights, pl.LightningModule):
    """Learns which near pixels are of one class.

    Training batches: ``image (B, 3, h, w)`` uint8 and ``pseudo_mask (B, h, w)`` int64 (0 background,
    1..C, 255 unknown). Evaluation takes one whole image at a time with ``score_mask (1, H, W)`` where
    its true mask is known: loader 0 is the judged list, loader 1 of the test are training images.
    Scores are percent.

    Args:
        network: see `AffinityNetwork`.
        optimizer: called with parameter groups that have an lr each.
        weight_background: of L_bg+ in Eq. 7.
        weight_foreground: of L_fg+.
        weight_different: of L_neg.
        lr_encoder: learning rate of the encoder.
        lr_new: of the layers above it.
        poly_power: lr(t) = lr (1 - t / T)^power, T the steps of the run.
        image_mean: mean of each colour channel, of 0..1.
        image_std: standard deviation of each colour channel, of 0..1.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        weight_background: float,
        weight_foreground: float,
        weight_different: float,
        lr_encoder: float,
        lr_new: float,
        poly_power: float,
        image_mean: list[float],
        image_std: list[float],
    ) -> None:
        super().__init__()
        self.network, self.make_optimizer = network, optimizer
        self.weights = {"background": weight_background, "foreground": weight_foreground, "different": weight_different}
        self.lr_encoder, self.lr_new, self.poly_power = lr_encoder, lr_new, poly_power
        self.normalise = PixelNormalisation(image_mean, image_std)
        self.val_scores = PairScores()
        self.test_scores = nn.ModuleList([PairScores(), PairScores()])  # of each loader
        self.shown: list[list[tuple[NDArray[np.uint8], str]]] = []

    def forward(self, image: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) to affinities (B, P, h, w) of the network's offsets."""
        return self.network.affinities(self.normalise(image))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L = 0.25 L_bg+ + 0.25 L_fg+ + 0.5 L_neg, Eq. 7; pairs with an unknown pixel teach nothing."""
        distance = self.network.distances(self.normalise(batch["image"]))  # -log W, Eq. 3
        labels = pair_labels(on_map(batch["pseudo_mask"], distance), self.network.offsets)
        losses = dict(zip(self.weights, affinity_losses(distance, labels), strict=True))  # Eq. 4 to 6
        loss = sum(self.weights[name] * value for name, value in losses.items())  # Eq. 7
        for name, value in {"loss": loss, **{f"loss_{name}": value for name, value in losses.items()}}.items():
            self.log(
                f"train/{name}", value.detach(), on_step=False, on_epoch=True, sync_dist=True,
                batch_size=len(distance), prog_bar=name == "loss",
            )  # fmt: skip
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """The layers above the encoder learn faster; both rates fall polynomially to 0."""
        groups = [
            {"params": [p for p in self.network.encoder.parameters() if p.requires_grad], "lr": self.lr_encoder},
            {"params": [*self.network.project.parameters(), *self.network.mix.parameters()], "lr": self.lr_new},
        ]
        optimizer = self.make_optimizer(groups)
        steps = int(self.trainer.estimated_stepping_batches)

        def decay(t: int) -> float:  # not a part of checkpoints: a resumed run may be longer
            return (1 - min(t, steps) / steps) ** self.poly_power

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, decay), "interval": "step"}}

    # ---- evaluation ----------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores affinities on the judged list."""
        self.judge(batch, batch_idx, self.val_scores)

    def on_validation_epoch_end(self) -> None:
        """Logs val/balanced_pair_accuracy where there are true masks."""
        if self.val_scores.update_called:
            self.log("val/balanced_pair_accuracy", self.val_scores.compute()["balanced_pair_accuracy"], prog_bar=True)
        self.val_scores.reset()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Scores affinities on the judged list and on training images."""
        self.judge(batch, batch_idx, self.test_scores[dataloader_idx], show=dataloader_idx == 0)

    def judge(self, batch: Batch, batch_idx: int, scores: PairScores, show: bool = True) -> None:
        """Compares one image's affinities with its true mask, brought to the affinity map."""
        affinity = self(batch["image"])
        if "score_mask" in batch:
            scores.update(affinity, pair_labels(on_map(batch["score_mask"], affinity), self.network.offsets))
        if show and batch_idx < SHOWN_IMAGES:
            self.show(batch, batch_idx, affinity)

    def on_test_epoch_end(self) -> None:
        """Logs the scores beside the best constant answer."""
        for prefix, scores in zip(("", "train_"), self.test_scores, strict=True):
            if scores.update_called:
                self.log_dict(beside_floors(scores.compute(), prefix))
            scores.reset()

    # ---- prediction and pictures ---------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """The strength of class boundaries, 0..1, as a map of the image's size."""
        edges = boundaries(self(batch["image"]), self.network.offsets)
        full = F.interpolate(edges[:, None], size=batch["image"].shape[-2:], mode="bilinear", align_corners=False)
        return [
            {"name": name, "mean_boundary": float(edge.mean()), "boundary": edge[0].cpu().numpy()}
            for name, edge in zip(batch["name"], full, strict=True)
        ]

    def show(self, batch: Batch, batch_idx: int, affinity: Tensor) -> None:
        """Keeps an evaluated image with its boundaries and, where known, its true mask."""
        if batch_idx == 0:
            self.shown = []
        masks = {"truth": batch["score_mask"][0]} if "score_mask" in batch else {}
        image, *truth = overlay_row(batch["image"][0], batch["name"][0], masks)
        edges = (255 * boundaries(affinity, self.network.offsets)[0]).byte().cpu().numpy()
        self.shown.append([image, (np.repeat(edges[..., None], 3, axis=2), "boundaries"), *truth])

    def figures(self, stage: str) -> dict[str, Figure]:
        """The first evaluated images with what the affinities take for boundaries."""
        return {"boundaries": image_rows(self.shown, side=1.8)} if self.shown else {}


def on_map(mask: Tensor, maps: Tensor) -> Tensor:
    """A mask (B, H, W) at the size of (B, P, h, w): the label of each cell's central pixel."""
    return F.interpolate(mask[:, None].float(), size=maps.shape[-2:], mode="nearest-exact")[:, 0].long()


def boundaries(affinity: Tensor, offsets: list[tuple[int, int]]) -> Tensor:
    """1 - the mean affinity of each pixel's pairs, (B, P, h, w) to (B, h, w)."""
    inside = pairs_inside(offsets, affinity.shape[-2], affinity.shape[-1], affinity.device)
    return 1 - (affinity * inside).sum(dim=1) / inside.sum(dim=0).clamp(min=1)
