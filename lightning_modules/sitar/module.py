"""SITAR on one page: supervised phase, then contrast of two play rates (Eq. 1-5, section 3.2)."""

from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision import tv_tensors
from torchvision.transforms.v2 import CutMix, MixUp

from components.figures import confusion_matrix, curve, image_rows
from components.initial_weights import StartsFromInitialWeights
from components.metrics.accuracy import TopKAccuracy
from components.metrics.floors import MajorityFloor
from components.pixels import PixelNormalisation
from components.weights import WeightsError, load_state
from lightning_modules.sitar.losses import group_contrast, nt_xent
from lightning_modules.sitar.super_image import grid_side, make_super_image, reorder_frames
from runs.errors import InputError

SHOWN_CLIPS = 4  # in the figure of super images
UNKNOWN = -1  # label of an unlabelled clip whose class nobody knows

Batch = dict[str, Any]
View = tuple[Tensor, int]


class SitarModule(StartsFromInitialWeights, pl.LightningModule):
    """Semi-supervised image transformer for action recognition.

    Batches: phase ``supervised`` takes ``{"video": (B, T, 3, h, w), "label", "index"}``; phase
    ``semi`` takes ``{"labeled": the same, "unlabeled": {"video_fast": (Bu, M, 3, hf, hf),
    "video_slow": (Bu, N, 3, hs, hs), "label", "index"}}``, whose label only serves logging.
    Evaluation takes ``video (B, K, T, 3, h, w)`` and averages the logits of the K offsets;
    prediction also needs ``name``, a list of B strings. Pixels are uint8. Accuracies are percent.

    Args:
        network: g; see `SuperImageSwin` for what is asked of it.
        optimizer: called with parameter groups.
        scheduler: called with the optimiser and ``T_max``, the steps of the phase.
        num_classes: C.
        phase: ``supervised`` (Eq. 1) or ``semi`` (Eq. 5).
        unsup: what the unlabelled clips are for in phase ``semi``: ``contrast`` (Eq. 2-4),
            ``pseudo_label`` (cross-entropy to confident own labels, weighted by gamma, Table 3),
            or ``none`` (the supervised-only baseline with the same steps).
        gamma: weight of the instance contrast.
        beta: weight of the group contrast.
        temperature: tau of both contrasts.
        contrast_space: what is compared: ``softmax`` probabilities, ``logits`` or ``feature``.
        detach_fast: let only the slow path learn from the contrast.
        threshold: least probability of a pseudo-label that ``pseudo_label`` trains on.
        label_smoothing: epsilon of Eq. 1's targets.
        mixup_alpha: of the Beta distribution; 0 = off.
        cutmix_alpha: of the Beta distribution; 0 = off.
        switch_prob: probability of CutMix where both are on.
        phase2_mixup: mix labelled clips in phase ``semi`` too.
        order: temporal order of the frames in the super image, in training and evaluation.
        init_from: checkpoint of an earlier phase to start from, or None.
        image_mean: mean of each colour channel, of 0..1.
        image_std: standard deviation of each colour channel, of 0..1.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        num_classes: int,
        phase: Literal["supervised", "semi"],
        unsup: Literal["contrast", "pseudo_label", "none"],
        gamma: float,
        beta: float,
        temperature: float,
        contrast_space: Literal["softmax", "logits", "feature"],
        detach_fast: bool,
        threshold: float,
        label_smoothing: float,
        mixup_alpha: float,
        cutmix_alpha: float,
        switch_prob: float,
        phase2_mixup: bool,
        order: Literal["normal", "reverse", "random"],
        init_from: str | None,
        image_mean: list[float],
        image_std: list[float],
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise InputError(f"model.temperature={temperature} must be above 0")
        self.network = network
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.num_classes = num_classes
        self.phase, self.unsup = phase, unsup
        self.gamma, self.beta, self.temperature = gamma, beta, temperature
        self.contrast_space, self.detach_fast = contrast_space, detach_fast
        self.threshold, self.label_smoothing = threshold, label_smoothing
        self.order, self.init_from = order, init_from
        self.mixers = [
            kind(alpha=alpha)
            for kind, alpha in ((MixUp, mixup_alpha), (CutMix, cutmix_alpha))
            if alpha > 0 and (phase == "supervised" or phase2_mixup)
        ]
        self.switch_prob = switch_prob
        self.normalise = PixelNormalisation(image_mean, image_std)
        self.two_views = phase == "semi" and unsup == "contrast"
        network.freeze_unseen({network.grid_fast, *([network.grid_slow] if self.two_views else [])})

        ks = [1, 5] if num_classes >= 5 else [1]
        self.train_top1 = TopKAccuracy(num_classes)
        self.pseudo_label_accuracy = TopKAccuracy(num_classes, ignore_index=UNKNOWN)
        self.pseudo_label_confidence, self.common_groups = (MeanMetric(nan_strategy="disable") for _ in range(2))
        self.val_accuracy, self.test_accuracy, self.floor = (
            nn.ModuleDict({f"top{k}": metric(num_classes, top_k=k) for k in ks})
            for metric in (TopKAccuracy, TopKAccuracy, MajorityFloor)
        )
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.pseudo_label_history: list[float] = []  # percent, one entry for each finished epoch
        # (frames, index, true class where known, predicted class)
        self.shown: list[tuple[Tensor, Tensor, int | None, int]] = []

    # ---- views -----------------------------------------------------------------------------

    def tile(self, frames: Tensor, index: Tensor | None = None) -> View:
        """Normalised frames (B, T, 3, h, h) to a super image and the side of its grid (Fig. 1)."""
        grid = grid_side(frames.shape[1])
        ordered = reorder_frames(frames, self.order, index)
        return make_super_image(ordered, grid, frames.shape[-1]), grid

    def mix(self, frames: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix before tiling: each cell meets the same cell of its partner clip.

        Args:
            frames: normalised, (B, T, 3, h, w).
            label: (B,) int64.

        Returns:
            The mixed frames and class probabilities, (B, C).
        """
        classes = torch.arange(self.num_classes, device=label.device)
        target = (label[:, None] == classes).float()
        if not self.mixers:
            return frames, target
        use_last = len(self.mixers) == 1 or torch.rand(()) < self.switch_prob
        mixer = self.mixers[-1 if use_last else 0]
        # A tv_tensors.Video shares one box among its frames.
        mixed, target = mixer(tv_tensors.Video(frames), target)
        return mixed.as_subclass(Tensor), target

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """Inference on the fast path alone: (B, K, T, 3, h, h) uint8 to logits (B, C)."""
        B, K = video.shape[:2]
        if index is not None:  # each temporal offset its own permutation
            index = (index[:, None] * K + torch.arange(K, device=index.device)).flatten()
        logits = self.network(self.tile(self.normalise(video.flatten(0, 1)), index))
        return logits.view(B, K, -1).mean(dim=1)

    # ---- training --------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Phase 1: Eq. 1. Phase 2: Eq. 5."""
        labeled = batch["labeled"] if self.phase == "semi" else batch
        frames, target = self.mix(self.normalise(labeled["video"]), labeled["label"])
        views, B = [self.tile(frames)], len(frames)

        if self.phase == "supervised" or self.unsup == "none":
            logits, losses = self.network(*views), {}
        elif self.unsup == "pseudo_label":
            views.append(self.tile(self.normalise(batch["unlabeled"]["video_fast"])))
            logits, logits_fast = self.network(*views).tensor_split([B])
            losses = {"loss_pl": self.pseudo_label_loss(logits_fast)}
            self.log_pseudo_labels(logits_fast, batch["unlabeled"])
        else:
            logits, losses = self.contrast(views, B, batch["unlabeled"])

        loss_sup = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)  # Eq. 1
        weight = {"loss_ic": self.gamma, "loss_gc": self.beta, "loss_pl": self.gamma}
        loss = loss_sup + sum(weight[name] * value for name, value in losses.items())  # Eq. 5

        self.train_top1.update(logits.detach(), target.argmax(dim=1))
        self.log("train/top1", self.train_top1, on_step=False, on_epoch=True)
        for name, value in {"loss": loss, "loss_sup": loss_sup, **losses}.items():
            self.log(
                f"train/{name}", value.detach(), on_step=False, on_epoch=True, sync_dist=True,
                batch_size=B, prog_bar=name == "loss",
            )  # fmt: skip
        return loss

    def contrast(self, views: list[View], labelled: int, unlabeled: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of the labelled clips, and the losses of Eq. 2 and 4."""
        fast, slow = (self.tile(self.normalise(unlabeled[f"video_{r}"])) for r in ("fast", "slow"))
        if self.detach_fast:
            features = self.network.features(*views, slow)
            # After the pass with gradients: autocast would reuse weights cast without a graph.
            with torch.no_grad():
                features_f = self.network.features(fast)
                z_f = self.network.classify(features_f)
            z, z_s = self.network.classify(features).tensor_split([labelled])
            features_s = features[labelled:]
        else:
            features = self.network.features(*views, slow, fast)
            z, z_s, z_f = self.network.classify(features).tensor_split([labelled, labelled + len(slow[0])])
            _, features_s, features_f = features.tensor_split([labelled, labelled + len(slow[0])])
        self.log_pseudo_labels(z_f, unlabeled)

        u, v = self.represent(features_f, z_f), self.represent(features_s, z_s)
        # Every process contrasts the whole global batch, as one process alone would.
        u, v, labels_u, labels_v = map(self.gather, (u, v, z_f.argmax(dim=1), z_s.argmax(dim=1)))
        loss_ic = nt_xent(u, v, self.temperature)  # Eq. 2
        loss_gc, share = group_contrast(  # Eq. 3, 4
            u, v, labels_u, labels_v, self.num_classes, self.temperature
        )
        self.common_groups.update(share)
        self.log("train/common_groups", self.common_groups, on_step=False, on_epoch=True)
        return z, {"loss_ic": loss_ic, "loss_gc": loss_gc}

    def represent(self, features: Tensor, logits: Tensor) -> Tensor:
        """What the contrast compares, (B, D) float32."""
        if self.contrast_space == "feature":
            return features.float()
        return logits.float() if self.contrast_space == "logits" else logits.float().softmax(dim=1)

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all processes, with gradient: (B, ...) to (W * B, ...)."""
        if self.trainer.world_size == 1:
            return x
        return self.all_gather(x, sync_grads=x.requires_grad).flatten(0, 1)

    def pseudo_label_loss(self, logits_fast: Tensor) -> Tensor:
        """Cross-entropy of one view to its own confident labels, the rival of Table 3."""
        confidence, pseudo_label = logits_fast.detach().float().softmax(dim=1).max(dim=1)
        each = F.cross_entropy(logits_fast, pseudo_label, reduction="none")
        return (each * (confidence >= self.threshold)).mean()

    def log_pseudo_labels(self, logits_fast: Tensor, unlabeled: Batch) -> None:
        """Confidence, and accuracy where the true labels are known; nothing trains on them."""
        p = logits_fast.detach().float().softmax(dim=1)
        self.pseudo_label_confidence.update(p.amax(dim=1))
        self.log(
            "train/pseudo_label_confidence",
            self.pseudo_label_confidence,
            on_step=False,
            on_epoch=True,
        )
        if "label" in unlabeled:
            self.pseudo_label_accuracy.update(p, unlabeled["label"])
            self.log(
                "train/pseudo_label_accuracy",
                self.pseudo_label_accuracy,
                on_step=False,
                on_epoch=True,
            )

    def on_train_epoch_end(self) -> None:
        """Keeps the epoch's pseudo-label accuracy for the figure."""
        if self.pseudo_label_accuracy.update_called:
            self.pseudo_label_history.append(float(self.pseudo_label_accuracy.compute()))

    # ---- evaluation ------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs val/top1 and val/top5."""
        self.judge(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs test/top1, test/top5 and their floors."""
        self.judge(batch, batch_idx, "test")

    def judge(self, batch: Batch, batch_idx: int, stage: Literal["val", "test"]) -> None:
        """Updates the metrics of a stage, the confusion matrix and the clips of the figure."""
        logits, label = self(batch["video"], batch["index"]), batch["label"]
        for name, metric in getattr(self, f"{stage}_accuracy").items():
            metric.update(logits, label)
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=True)
        if stage == "test":
            for name, metric in self.floor.items():
                metric.update(label)
                self.log(f"floor/{name}", metric, on_step=False, on_epoch=True)
        if batch_idx == 0:
            self.confusion.reset()
            self.keep_shown(batch, logits, label.tolist())
        self.confusion.update(logits, label)

    def on_test_epoch_end(self) -> None:
        """Logs the network's size and cost, as in Tables 1 and 4."""
        self.log("test/parameters_m", self.network.parameter_count() / 1e6, rank_zero_only=True)
        self.log("test/multiply_adds_g", self.network.multiply_adds() / 1e9, rank_zero_only=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str | float]]:
        """One row for each clip: file, best class, its probability (0..1), and the five best."""
        logits = self(batch["video"], batch["index"])
        if batch_idx == 0:
            self.keep_shown(batch, logits, [None] * len(logits))
        best = logits.float().softmax(dim=1).topk(min(5, self.num_classes), dim=1)
        rows = []
        for file, classes, p in zip(batch["name"], best.indices.tolist(), best.values.tolist(), strict=True):
            named = [self.class_names[c] for c in classes]
            top5 = "; ".join(f"{name} {value:.4f}" for name, value in zip(named, p, strict=True))
            rows.append({"file": file, "class": named[0], "probability": p[0], "top5": top5})
        return rows

    @property
    def class_names(self) -> list[str]:
        """The datamodule's class names, or the numbers of the classes where it has none."""
        datamodule = getattr(self.trainer, "datamodule", None)
        known = getattr(datamodule, "class_names", None)
        return known or [str(number) for number in range(self.num_classes)]

    def keep_shown(self, batch: Batch, logits: Tensor, labels: list[int | None]) -> None:
        """Keeps the first clips of an evaluation for the figure of super images."""
        predicted = logits[:SHOWN_CLIPS].argmax(dim=1).tolist()
        frames = batch["video"][:SHOWN_CLIPS, 0].cpu()
        index = batch["index"][:SHOWN_CLIPS].cpu()
        self.shown = list(zip(frames, index, labels[:SHOWN_CLIPS], predicted, strict=True))

    def figures(self, stage: str) -> dict[str, Figure]:
        """Super images with true and predicted class, confusion matrix, pseudo-label accuracy.

        To be called on all processes: the confusion matrix is gathered.
        """
        names = self.class_names
        figures: dict[str, Figure] = {}
        if self.shown:
            fast_row, slow_row = [], []
            for frames, index, true, predicted in self.shown:
                fast, _ = self.tile(frames[None].float(), index[None])
                every_other = frames[::2].float()
                cell = fast.shape[-1] // grid_side(len(every_other))
                slow, _ = self.tile(F.interpolate(every_other, size=cell)[None], index[None])
                truth = "fast" if true is None else f"fast: {names[true]}"
                caption = f"{truth}, seen as {names[predicted]}"
                fast_row.append((fast[0].byte().permute(1, 2, 0).numpy(), caption))
                slow_row.append((slow[0].byte().permute(1, 2, 0).numpy(), "slow"))
            figures["super_images"] = image_rows([fast_row, slow_row])
        if stage != "predict":
            counts = self.confusion.compute().cpu().numpy()
            figures["confusion_matrix"] = confusion_matrix(counts, names)
        if self.pseudo_label_history:
            figures["pseudo_label_accuracy"] = curve(
                self.pseudo_label_history, "epoch", "pseudo-label accuracy (%)", start=1
            )
        return figures

    # ---- state -----------------------------------------------------------------------------

    def load_initial_weights(self) -> None:
        """Starts a fresh fit from an earlier phase or from pre-trained weights.

        Raises:
            InputError: if the weights are missing or do not fit.
        """
        if self.init_from is None:
            super().load_initial_weights()
            return
        try:
            load_state(self, self.init_from)
        except WeightsError as error:
            raise InputError(f"model.init_from: {error}") from error

    def configure_optimizers(self) -> dict[str, Any]:
        """No weight decay for norms, biases and position tables; the schedule spans the phase."""
        spared = {f"network.{name}" for name in self.network.no_weight_decay()}
        decayed, plain = [], []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (plain if parameter.ndim <= 1 or name in spared else decayed).append(parameter)
        optimizer = self.make_optimizer([{"params": decayed}, {"params": plain, "weight_decay": 0.0}])
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.make_scheduler(optimizer, T_max=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The history of the figure rides along as plain numbers."""
        checkpoint["pseudo_label_history"] = list(self.pseudo_label_history)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the history up again."""
        super().on_load_checkpoint(checkpoint)
        self.pseudo_label_history = list(checkpoint.get("pseudo_label_history", []))
