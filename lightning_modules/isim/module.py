"""ISIM on one page: one network classifies, its class maps become pseudo masks, its decoder learns them (3.2).

The loop of Algorithm 1 around it, masks from maps every few epochs, is `callbacks.pseudo_label_refresh`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import SumMetric
from torchmetrics.classification import MultilabelRankingAveragePrecision

from components.cam import check_scales, check_threshold, class_ids, multi_scale_cam, normalised_cam, seed_labels
from components.dense_crf import CRFSettings, refine_labels
from components.figures import image_rows
from components.initial_weights import StartsFromInitialWeights
from components.metrics.floors import beside_floors
from components.metrics.segmentation import SegmentationScores
from components.pixels import PixelNormalisation
from components.voc import overlay, overlay_row, palette_image
from lightning_modules.isim.losses import classification_loss, segmentation_loss
from lightning_modules.isim.scores import ConstantRanking

SHOWN_IMAGES = 6  # in the figure of an evaluation
PRESENT = 0.5  # probability from which a class counts as present where nobody gave labels

Batch = dict[str, Any]


class IsimModule(StartsFromInitialWeights, pl.LightningModule):
    """Classifies images and segments them, learning from image labels alone.

    Training batches: ``image (B, 3, h, w)`` uint8, ``label (B, C)`` multi-hot, ``pseudo_mask (B, h, w)``
    int64 (0 background, 1..C, 255 ignored), ``index``. Evaluation takes one whole image at a time,
    with ``score_mask (1, H, W)`` where its true mask is known: loader 0 is the judged list, loader 1
    of the test are training images. All scores are percent.

    The decoder's arg-max is the output; true image labels choose the class maps of training images only.

    Args:
        network: see `CAMSegmenter`.
        optimizer: called with parameter groups that have an lr each.
        num_classes: C, without background.
        seg_loss: ``pseudo_mask`` (Eq. 2), or ``none``: classification alone, the CAM baseline.
        mask_empty: whether an image without pseudo foreground teaches the decoder nothing (r of Eq. 2).
        lr_encoder: learning rate of the encoder.
        lr_classifier: of the classification branch.
        lr_decoder: of the decoder.
        poly_power: lr(t) = lr (1 - t / T)^power.
        poly_epochs: T in epochs; afterwards the rate stays as at t = T - 1. None: all epochs of the run.
        cam_scales: scales of the activation maps.
        cam_threshold: value of the background plane, 0..1.
        swept_thresholds: other values of it that the test looks at, as an extra.
        crf: of the scores with CRF; None leaves them out.
        predict_cams: prediction also shows the activation maps.
        image_mean: mean of each colour channel, of 0..1.
        image_std: standard deviation of each colour channel, of 0..1.

    Raises:
        InputError: no scale, one of 0 or below, or a background plane outside 0..1.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        num_classes: int,
        seg_loss: Literal["pseudo_mask", "none"],
        mask_empty: bool,
        lr_encoder: float,
        lr_classifier: float,
        lr_decoder: float,
        poly_power: float,
        poly_epochs: int | None,
        cam_scales: list[float],
        cam_threshold: float,
        swept_thresholds: list[float],
        crf: CRFSettings | None,
        predict_cams: bool,
        image_mean: list[float],
        image_std: list[float],
    ) -> None:
        super().__init__()
        check_scales(cam_scales)
        check_threshold(cam_threshold)
        self.network, self.make_optimizer = network, optimizer
        self.seg_loss, self.mask_empty = seg_loss, mask_empty
        self.lr = {"encoder": lr_encoder, "classifier": lr_classifier, "decoder": lr_decoder}
        self.poly_power, self.poly_epochs = poly_power, poly_epochs
        self.cam_scales, self.cam_threshold, self.crf = cam_scales, cam_threshold, crf
        self.predict_cams = predict_cams
        self.normalise = PixelNormalisation(image_mean, image_std)

        # Not a weighted MeanMetric: where it does not look for nan, which waits for the device, it drops the weights.
        self.nonempty_loss, self.nonempty_images = (SumMetric(nan_strategy="disable") for _ in range(2))
        self.val_decoder = SegmentationScores(num_classes + 1)
        self.val_ranking, self.test_ranking = (MultilabelRankingAveragePrecision(num_classes) for _ in range(2))
        self.ranking_floor = ConstantRanking(num_classes)
        swept = [f"cam_{round(100 * t)}" for t in swept_thresholds]
        names = ["decoder", "val_cam", "val_cam_crf", "cam", "cam_crf", *swept]
        self.test_scores = nn.ModuleDict({name: SegmentationScores(num_classes + 1) for name in names})
        self.swept_thresholds = swept_thresholds
        self.shown: list[list[tuple[Any, str]]] = []

    # ---- the network -------------------------------------------------------------------------

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, 3, H, W) to class logits (B, C) and pixel logits (B, C + 1, H, W)."""
        return self.network(self.normalise(image))

    def activation_maps(self, image: Tensor) -> Tensor:
        """Class maps (C, H, W) of one whole uint8 image (3, H, W), summed over scales and flips, not divided yet."""
        return multi_scale_cam(self.network.class_maps, self.normalise(image.to(self.device)), self.cam_scales)

    def segment(self, image: Tensor) -> Tensor:
        """The decoder's arg-max on one whole uint8 image (3, H, W): (H, W) int64."""
        return self(image.to(self.device)[None])[1][0].argmax(dim=0)

    # ---- training ----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L = L_cls + L_seg, Eq. 3; before the first masks L_seg is a constant."""
        with_decoder = self.seg_loss != "none"
        logits, pixel_logits = self.network(self.normalise(batch["image"]), with_decoder)
        loss = loss_cls = classification_loss(logits.float(), batch["label"])  # Eq. 1
        losses = {"loss_cls": loss_cls}
        if with_decoder:
            loss_seg, nonempty, count = segmentation_loss(pixel_logits, batch["pseudo_mask"], self.mask_empty)  # Eq. 2
            loss = loss_cls + loss_seg  # Eq. 3
            losses["loss_seg"] = loss_seg
            self.nonempty_loss.update(nonempty * count)
            self.nonempty_images.update(count)
        for name, value in {"loss": loss, **losses}.items():
            self.log(
                f"train/{name}", value.detach(), on_step=False, on_epoch=True, sync_dist=True,
                batch_size=len(logits), prog_bar=name == "loss",
            )  # fmt: skip
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs L_seg without the images that only add a constant to it."""
        if self.nonempty_images.update_called:
            images = self.nonempty_images.compute()
            if images > 0:
                self.log("train/loss_seg_nonempty", self.nonempty_loss.compute() / images)
        self.nonempty_loss.reset()
        self.nonempty_images.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        """A learning rate for each part, all with the same polynomial decay that stops before 0."""
        parts = {
            "encoder": self.network.encoder,
            "classifier": self.network.classifier,
            "decoder": self.network.decoder,
        }
        groups = [
            {"params": [p for p in part.parameters() if p.requires_grad], "lr": self.lr[name], "name": name}
            for name, part in parts.items()
        ]
        optimizer = self.make_optimizer(groups)
        if self.poly_epochs is None:
            steps = int(self.trainer.estimated_stepping_batches)
        else:
            self.trainer.fit_loop.setup_data()  # before it nobody knows how many batches an epoch has
            batches = self.trainer.num_training_batches
            steps = math.ceil(batches / self.trainer.accumulate_grad_batches) * self.poly_epochs

        def decay(t: int) -> float:
            return (1 - min(t, steps - 1) / steps) ** self.poly_power

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, decay), "interval": "step"}}

    # ---- evaluation ----------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the decoder and the classifier on the judged list."""
        logits, pixel_logits = self(batch["image"])
        self.val_ranking.update(logits.float(), batch["label"].int())
        if "score_mask" in batch and self.seg_loss != "none":
            self.val_decoder.update(pixel_logits.argmax(dim=1), batch["score_mask"])
        if batch_idx < SHOWN_IMAGES:
            self.show(batch, batch_idx, pixel_logits)

    def on_validation_epoch_end(self) -> None:
        """Logs val/mean_iou (decoder) and val/ranking_ap."""
        self.log("val/ranking_ap", 100 * self.val_ranking.compute())
        self.val_ranking.reset()
        if self.val_decoder.update_called:
            self.log("val/mean_iou", self.val_decoder.compute()["mean_iou"], prog_bar=True)
        self.val_decoder.reset()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Scores decoder, classifier and class maps on the judged list, and class maps on training images."""
        if dataloader_idx == 0:
            logits, pixel_logits = self(batch["image"])
            self.test_ranking.update(logits.float(), batch["label"].int())
            self.ranking_floor.update(batch["label"])
            if "score_mask" in batch and self.seg_loss != "none":
                self.test_scores["decoder"].update(pixel_logits.argmax(dim=1), batch["score_mask"])
            if batch_idx < SHOWN_IMAGES:
                self.show(batch, batch_idx, pixel_logits)
        if "score_mask" in batch:
            self.score_cams(batch, on_training_images=dataloader_idx == 1)

    def score_cams(self, batch: Batch, on_training_images: bool) -> None:
        """Class maps with the true image labels and the background plane, as labels."""
        image, truth = batch["image"][0], batch["score_mask"][0]
        classes = batch["label"][0].nonzero().flatten()
        ids, cam = class_ids(classes), normalised_cam(self.activation_maps(image), classes)
        seeds = seed_labels(cam, self.cam_threshold)
        name = "cam" if on_training_images else "val_cam"
        self.test_scores[name].update(ids[seeds], truth)
        if self.crf is not None:
            refined = refine_labels(image.permute(1, 2, 0), seeds, len(ids), self.crf)
            self.test_scores[f"{name}_crf"].update(ids[refined], truth)
        if not on_training_images:
            return
        for threshold in self.swept_thresholds:
            self.test_scores[f"cam_{round(100 * threshold)}"].update(ids[seed_labels(cam, threshold)], truth)

    def on_test_epoch_end(self) -> None:
        """Logs all scores beside their floors: all background, and the best constant ranking of the classes."""
        self.log("test/ranking_ap", 100 * self.test_ranking.compute())
        self.log("floor/ranking_ap", self.ranking_floor.compute())
        self.test_ranking.reset()
        self.ranking_floor.reset()
        best: tuple[Tensor, Tensor, float] | None = None
        for name, scores in self.test_scores.items():
            if not scores.update_called:
                continue
            values = scores.compute()
            scores.reset()
            percent = name.removeprefix("cam_")
            if percent.isdigit():
                if best is None or values["mean_iou"] > best[0]:
                    best = values["mean_iou"], values["floor_mean_iou"], int(percent) / 100
                continue
            self.log_dict(beside_floors(values, "" if name == "decoder" else f"{name}_"))
        if best is not None:
            self.log("test/cam_mean_iou_best_threshold", best[0])
            self.log("floor/cam_mean_iou_best_threshold", best[1])
            self.log("test/best_threshold", best[2])

    # ---- prediction and pictures ---------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """The decoder's mask as a palette picture, the same over the photograph, and the classes of the mask."""
        image = batch["image"][0]
        logits, pixel_logits = self(batch["image"])
        mask = pixel_logits[0].argmax(dim=0)
        pixels = image.permute(1, 2, 0).cpu().numpy()
        names = [self.class_names[value - 1] for value in mask.unique().tolist() if value > 0]
        row = {
            "name": batch["name"][0],
            "classes": "; ".join(names),
            "mask": palette_image(mask.cpu().numpy()),
            "overlay": Image.fromarray(overlay(pixels, mask.cpu().numpy())),
        }
        if self.predict_cams:
            classes = (logits[0].sigmoid() > PRESENT).nonzero().flatten()
            cam = normalised_cam(self.activation_maps(image), classes)
            seeds = class_ids(classes)[seed_labels(cam, self.cam_threshold)]
            row["cam"] = Image.fromarray(overlay(pixels, seeds.cpu().numpy()))
        return [row]

    @property
    def class_names(self) -> list[str]:
        """The datamodule's class names."""
        return self.trainer.datamodule.class_names

    def show(self, batch: Batch, batch_idx: int, pixel_logits: Tensor) -> None:
        """Keeps an evaluated image for the figure: itself, seeds by its labels, decoder, truth."""
        if batch_idx == 0:
            self.shown = []
        image = batch["image"][0]
        classes = batch["label"][0].nonzero().flatten()
        cam = normalised_cam(self.activation_maps(image), classes)
        masks = {"class maps": class_ids(classes)[seed_labels(cam, self.cam_threshold)]}
        if self.seg_loss != "none":
            masks["decoder"] = pixel_logits[0].argmax(dim=0)
        if "score_mask" in batch:
            masks["truth"] = batch["score_mask"][0]
        self.shown.append(overlay_row(image, batch["name"][0], masks))

    def figures(self, stage: str) -> dict[str, Figure]:
        """The first evaluated images with class maps, decoder and truth."""
        return {"segmentations": image_rows(self.shown, side=1.8)} if self.shown else {}
