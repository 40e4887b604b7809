"""SuperSimpleNet on one page: frozen features, noise in random blobs, two heads that find them (3).

Before training, `callbacks.frozen_features` gets the backbone ready. SimpleNet is this module with other switches.
"""

import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from components.metrics.anomaly import (
    VOID,
    AnomalyMapScores,
    ImageAnomalyScores,
    best_f1_threshold,
    decision_scores,
    with_prefix,
)
from components.metrics.floors import beside_floors
from components.pixels import PixelNormalisation
from lightning_modules.supersimplenet.anomalies import AnomalyGenerator
from lightning_modules.supersimplenet.figures import Shown, anomaly_rows, heat_map, score_histogram
from lightning_modules.supersimplenet.inference import FoldedSuperSimpleNet
from lightning_modules.supersimplenet.losses import DefectLoss
from lightning_modules.supersimplenet.network import AnomalyMapSmoother, Detector, SuperSimpleNet
from runs.errors import InputError

Batch = dict[str, Any]
BACKBONE = "network.extractor.body."  # of the names of frozen weights
_log = logging.getLogger("reprise")  # what is said there reaches the terminal


class SuperSimpleNetModule(pl.LightningModule):
    """Finds defects, learning from normal images alone, or from defective ones and their masks too.

    Batches: ``image (B, 3, H, W)`` uint8, or in training ``feature_map (B, C, h, w)`` instead; ``mask
    (B, H, W)`` of 0, 1 and 255 (unknown: counts for nothing); ``label (B,)``; ``index``; ``name``. Scores are percent.

    Args:
        regime: ``unsupervised``: the score teaches the segmentation head nothing, gradients are not clipped;
            ``supervised``: it does, and they are.
        network: see `SuperSimpleNet`.
        anomaly: of the synthetic anomalies.
        loss: of the map and the score.
        optimizer: called with parameter groups that have an lr and a weight decay each.
        score: ``cls``: the classification head's s; ``map_max``: the highest value of the map.
        stop_grad: whether M_o is detached inside the classification head; None: as the regime says.
        supervised_clip_norm: total norm of the gradients in the supervised regime; None: any.
            ``trainer.gradient_clip_val`` stands over it.
        lr_adaptor: learning rate of the adaptor.
        weight_decay_adaptor: of the adaptor.
        lr_heads: learning rate of both heads.
        weight_decay_heads: of both heads.
        milestones: shares of the epochs after which the rates fall; empty: they stay.
        decay: factor by which they fall.
        smoothing_sigma: blur of the map in inference, in pixels.
        image_mean: mean of each colour channel, of 0..1.
        image_std: standard deviation of each colour channel, of 0..1.

    Raises:
        InputError: switches that exclude each other.
    """

    thresholds: Tensor
    image_size: Tensor

    def __init__(
        self,
        regime: Literal["unsupervised", "supervised"],
        network: SuperSimpleNet,
        anomaly: AnomalyGenerator,
        loss: DefectLoss,
        optimizer: Callable[..., Optimizer],
        score: Literal["cls", "map_max"],
        stop_grad: bool | None,
        supervised_clip_norm: float | None,
        lr_adaptor: float,
        weight_decay_adaptor: float,
        lr_heads: float,
        weight_decay_heads: float,
        milestones: list[float],
        decay: float,
        smoothing_sigma: float,
        image_mean: list[float],
        image_std: list[float],
    ) -> None:
        super().__init__()
        if score == "cls" and network.classification_head is None:
            raise InputError(
                "model.score=cls needs the classification head: set model.score=map_max beside cls_head=false"
            )
        if regime == "unsupervised" and anomaly.strategy == "none":
            raise InputError(
                "model.anomaly.strategy=none leaves nothing anomalous to learn from: it needs model.regime=supervised"
            )
        if any(not 0 < share < 1 for share in milestones):
            raise InputError(f"model.milestones={milestones} must be shares of the epochs between 0 and 1")
        supervised = regime == "supervised"
        self.network, self.anomaly, self.loss, self.make_optimizer = network, anomaly, loss, optimizer
        self.score = score
        self.stop_grad = not supervised if stop_grad is None else stop_grad
        self.clip_norm = supervised_clip_norm if supervised else None
        self.adaptor_settings = {"lr": lr_adaptor, "weight_decay": weight_decay_adaptor}
        self.head_settings = {"lr": lr_heads, "weight_decay": weight_decay_heads}
        self.milestones, self.decay = milestones, decay
        self.normalise = PixelNormalisation(image_mean, image_std)
        self.smoother = AnomalyMapSmoother(smoothing_sigma)
        # Above these a score, a map's value counts as a defect; NaN until calibrated, see `decision_thresholds`.
        self.register_buffer("thresholds", torch.full((2,), torch.nan))
        self.register_buffer("image_size", torch.zeros(2, dtype=torch.int64))

        self.val_images, self.val_maps = ImageAnomalyScores(), AnomalyMapScores()
        self.test_scores, self.test_highest = ImageAnomalyScores(), ImageAnomalyScores()
        self.test_maps = AnomalyMapScores()
        self.shown: list[Shown] = []
        # During an evaluation, inference made from the weights at its start; a bound method, so that it is no part of
        # this module's own weights.
        self.judge: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    # ---- before training -------------------------------------------------------------------------

    def prepare(self, batches: Callable[[], Iterable[Tensor]]) -> dict[str, float]:
        """Gets the frozen half ready: backbone weights, statistics of random ones, scale of the noise.

        Args:
            batches: called for uint8 batches (B, 3, H, W) over the training images.

        Returns:
            ``noise_ratio``, sigma over the standard deviation of A, and the two themselves. A ratio far
            from that of the paper's backbone makes the task too easy or too hard.
        """
        extractor = self.network.extractor
        extractor.load_initial_weights()
        if extractor.is_random:
            extractor.calibrate(self.normalise(image.to(self.device)) for image in batches())
        first = next(iter(batches())).to(self.device)
        self.image_size.copy_(torch.tensor(first.shape[-2:]))
        adapted = self.network.adaptor(self.features(first))
        self.anomaly.fit_noise(adapted)
        spread, sigma = float(adapted.std()), float(self.anomaly.sigma)
        return {"noise_ratio": sigma / spread, "noise_std": sigma, "feature_std": spread}

    def features(self, image: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) to what the adaptor takes, (B, C, h, w); no gradient."""
        return self.network.extractor(self.normalise(image))

    def on_train_start(self) -> None:
        """Refuses to train on a backbone that nobody got ready."""
        if not bool(self.image_size.all()):
            raise InputError(
                "callbacks.frozen_features is off, but it loads the backbone and sets the noise: leave it on"
            )

    # ---- training --------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Features are adapted, duplicated and spoilt in places; the heads say where and whether (3.3 to 3.5)."""
        features = batch["feature_map"] if "feature_map" in batch else self.features(batch["image"])  # 3.1
        adapted = self.network.adaptor(features)  # A, 3.2
        real = shrink_mask(batch["mask"], adapted.shape[-2:])  # M_gt
        anomalies = self.anomaly(adapted, real, batch["label"])  # 3.3
        spoilt = torch.cat([adapted, adapted]) + anomalies.noise  # P
        cls_features = spoilt
        if not self.network.adapt_cls_features:
            cls_features = torch.cat([features, features]) + anomalies.noise
        map_, score = self.network.judge(spoilt, cls_features, self.stop_grad)  # M_o and s, 3.4
        terms = self.loss(
            map_.float(), anomalies.mask.float(), None if score is None else score.float(), anomalies.label.float()
        )  # 3.5
        loss = sum(terms.values())  # Eq. 4
        for name, value in {"loss": loss, **terms}.items():
            self.log(
                f"train/{name}", value.detach(), on_step=False, on_epoch=True, sync_dist=True,
                batch_size=len(batch["index"]), prog_bar=name == "loss",
            )  # fmt: skip
        return loss

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Total norm 1 in the supervised regime (4.3)."""
        limit = self.clip_norm if gradient_clip_val is None else gradient_clip_val
        if limit:
            self.clip_gradients(optimizer, limit, gradient_clip_algorithm or "norm")

    def configure_optimizers(self) -> Any:
        """Two rates, which fall near the end (4.3)."""
        optimizer = self.make_optimizer(
            [
                {"params": list(self.network.adaptor.parameters()), "name": "adaptor", **self.adaptor_settings},
                {
                    "params": [p for head in self.network.heads() for p in head.parameters()],
                    "name": "heads",
                    **self.head_settings,
                },
            ]
        )
        if not self.milestones:
            return optimizer
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise InputError("model.milestones are shares of trainer.max_epochs: set it, or model.milestones=[]")
        at = [int(share * epochs) for share in self.milestones]
        return {"optimizer": optimizer, "lr_scheduler": MultiStepLR(optimizer, at, self.decay)}

    # ---- inference (3.6) -------------------------------------------------------------------------

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, 3, H, W) to anomaly maps (B, H, W) and scores (B,), both raw: no sigmoid, no scaling.

        In single precision whatever the trainer's is: values that are equal in 16 bits could not be ranked.
        """
        with torch.autocast(image.device.type, enabled=False):
            return (self.judge or self.detector(self.network))(image)

    def detector(self, network: nn.Module) -> Detector:
        """Inference as one network: `SuperSimpleNet` itself, or folded, which costs more to make than a call saves."""
        return Detector(self.normalise, network, self.smoother, self.score == "map_max")

    def prepare_to_judge(self) -> None:
        """Folds the weights once for an evaluation, in which they do not change."""
        self.judge = self.detector(FoldedSuperSimpleNet(self.network)).__call__

    def stop_judging(self) -> None:
        """What was folded is dropped with the evaluation: it can never be older than the weights."""
        self.judge = None

    on_validation_start = on_test_start = prepare_to_judge
    on_validation_end = on_test_end = on_predict_end = stop_judging

    def on_predict_start(self) -> None:
        self.prepare_to_judge()
        self.warn_if_uncalibrated()
        _, map_threshold = self.decision_thresholds()
        _log.info(
            f"a picture counts as defective where its score (0 to 1) is above {self.score_threshold():.4f}, a pixel "
            f"where the map is above {map_threshold:.4f}"
        )

    def decision_thresholds(self) -> tuple[float, float]:
        """Of score and map; 0, the middle of the margins, where nothing has calibrated them."""
        score, map_ = self.thresholds.nan_to_num(0.0).tolist()
        return score, map_

    def score_threshold(self) -> float:
        """Of the score as predictions show it, 0 to 1."""
        return float(torch.sigmoid(torch.tensor(self.decision_thresholds()[0])))

    def warn_if_uncalibrated(self) -> None:
        """Says whose decisions rest on no calibration."""
        parts = zip(("image score", "anomaly map"), self.thresholds.isnan().tolist(), strict=True)
        if names := [name for name, missing in parts if missing]:
            warnings.warn(
                f"no threshold of {' and '.join(names)} was calibrated in training, so a raw value above 0 (a score "
                "above 0.5) counts as a defect: train with data.reader.val_split=0.2, which keeps back images of both "
                "kinds to calibrate by (for the map with masks; MVTec AD and VisA have no defective training images to "
                "keep back)",
                stacklevel=2,
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Looks at held-out training images, by which the thresholds are set."""
        maps, scores = self(batch["image"])
        self.val_images.update(scores, batch["label"])
        self.val_maps.update(maps, batch["mask"])

    def on_validation_epoch_end(self) -> None:
        """Sets the thresholds that give the best F1, of images and of pixels; the checkpoint keeps them."""
        scores, labels = self.val_images.gathered()
        maps, masks = self.val_maps.gathered()
        known = masks != VOID
        for place, (name, values, truth) in enumerate(
            (("score", scores, labels), ("map", maps[known], masks[known].long()))
        ):
            # With one kind alone there is no F1 to choose by: the threshold stays as it is.
            if 0 < int(truth.sum()) < len(truth):
                threshold, f1 = best_f1_threshold(values, truth)
                self.thresholds[place] = threshold
                self.log(f"val/{name}_threshold", threshold.float())
                self.log(f"val/{name}_f1", 100 * f1.float())
        self.val_images.reset()
        self.val_maps.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Judges images by score and by the highest value of their map, and pixels by their map."""
        if batch_idx == 0:
            self.shown = []
        maps, scores = self(batch["image"])
        self.test_scores.update(scores, batch["label"])
        self.test_highest.update(maps.flatten(1).amax(dim=1), batch["label"])
        self.test_maps.update(maps, batch["mask"])
        self.show(batch, maps, scores)

    def on_test_epoch_end(self) -> None:
        """Logs each score beside chance, and where there is a threshold what decisions by it are worth."""
        self.log_dict(beside_floors(_single(self.test_scores.compute())))
        if not self.thresholds[0].isnan():
            self.log_dict(beside_floors(_single(decision_scores(*self.test_scores.gathered(), self.thresholds[0]))))
        self.log_dict(beside_floors(_single(with_prefix(self.test_highest.compute(), "seg_"))))
        self.log_dict(beside_floors(_single(self.test_maps.compute())))
        for metric in (self.test_scores, self.test_highest, self.test_maps):
            metric.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """Score, decision, map, mask and heat map of each picture, at its own size."""
        maps, scores = self(batch["image"])
        score_threshold, map_threshold = self.decision_thresholds()
        rows = []
        for place, name in enumerate(batch["name"]):
            photograph = batch["whole"][place]
            full = F.interpolate(maps[place, None, None], photograph.shape[-2:], mode="bilinear")[0, 0].cpu().numpy()
            pixels = photograph.permute(1, 2, 0).cpu().numpy()
            probability = float(torch.sigmoid(scores[place].float()))
            rows.append(
                {
                    "name": name,
                    "score": probability,
                    "score_threshold": self.score_threshold(),
                    "defective": bool(scores[place] > score_threshold),
                    "map": full,
                    "mask": Image.fromarray(np.where(full > map_threshold, 255, 0).astype(np.uint8)),
                    "heat_map": heat_map(pixels, full, map_threshold, probability),
                }
            )
        return rows

    def export_model(self) -> tuple[nn.Module, tuple[Tensor, ...], list[str], list[str], dict[str, str]]:
        """What `eval.py mode=export` writes: the network, two example images, names and notes.

        Raises:
            InputError: the checkpoint is from before training.
        """
        if not bool(self.image_size.all()):
            raise InputError("the checkpoint was written before training began: there is nothing to export")
        height, width = self.image_size.tolist()
        example = torch.arange(2 * 3 * height * width).view(2, 3, height, width).remainder(251).to(torch.uint8)
        score_threshold, map_threshold = self.decision_thresholds()
        self.warn_if_uncalibrated()
        calibrated = "no" if bool(self.thresholds.isnan().any()) else "yes"
        notes = {"score_threshold": str(score_threshold), "map_threshold": str(map_threshold), "calibrated": calibrated}
        network = self.detector(FoldedSuperSimpleNet(self.network))
        return network, (example,), ["image"], ["anomaly_map", "score"], notes

    # ---- checkpoints -----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out frozen weights that can be had again; names the backbone and the checksum of its weights."""
        extractor = self.network.extractor
        checkpoint["backbone"] = extractor.record()
        if not extractor.is_random and bool(self.image_size.all()):
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith(BACKBONE)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fetches the frozen weights where the checkpoint has none.

        Raises:
            InputError: it was trained on another backbone, or on other weights of it.
        """
        extractor, record = self.network.extractor, checkpoint["backbone"]
        if extractor.backbone != record["backbone"]:
            raise InputError(
                f"the checkpoint was trained on features of {record['backbone']}, not of "
                f"model.network.extractor.backbone={extractor.backbone}: leave that setting out"
            )
        state = checkpoint["state_dict"]
        holds_backbone = any(name.startswith(BACKBONE) for name in state)
        extractor.take_origin(record, holds_backbone)
        if not holds_backbone:
            extractor.restore(record)
            state |= {f"{BACKBONE}{name}": value for name, value in extractor.body.state_dict().items()}

    # ---- pictures --------------------------------------------------------------------------------

    def show(self, batch: Batch, maps: Tensor, scores: Tensor) -> None:
        """Keeps the first normal and the first defective images for the figure."""
        for place, label in enumerate(batch["label"].tolist()):
            wanted = 4 if label else 2
            if sum(shown.defective == bool(label) for shown in self.shown) < wanted:
                self.shown.append(
                    Shown(
                        batch["name"][place],
                        bool(label),
                        batch["image"][place].permute(1, 2, 0).cpu().numpy(),
                        batch["mask"][place].cpu().numpy(),
                        maps[place].float().cpu().numpy(),
                        float(torch.sigmoid(scores[place].float())),
                    )
                )

    def figures(self, stage: str) -> dict[str, Figure]:
        """Images with truth and heat map, and how far the scores of both kinds lie apart."""
        if stage != "test":
            return {}
        scores, labels = (values.cpu() for values in self.test_scores.gathered())
        score_threshold, map_threshold = self.decision_thresholds()
        return {
            "anomaly_maps": anomaly_rows(self.shown, map_threshold),
            "scores": score_histogram(scores, labels, score_threshold),
        }


def shrink_mask(mask: Tensor, size: torch.Size) -> Tensor:
    """Real anomalies on the feature map: (B, H, W) of 0, 1 and 255 to (B, 1, h, w) of 0. and 1."""
    known = (mask == 1).float()[:, None]
    return (F.interpolate(known, size, mode="bilinear", align_corners=False) >= 0.5).float()


def _single(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """In single precision, which every device can log."""
    return {name: value.float() for name, value in scores.items()}
