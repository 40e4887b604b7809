"""ISIM's loop (Algorithm 1): between epochs, class maps of all training images become pseudo masks."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from callbacks.iterative_step import IterativeStep, Schedule
from components.cam import check_scales, check_threshold, class_ids, normalised_cam, seed_labels
from components.dense_crf import CRFSettings
from components.dense_crf_pool import CRFJob, CRFPool
from components.figures import curve, image_rows
from components.metrics.segmentation import confusion, mean_iou
from components.voc import overlay_row
from runs.errors import InputError

SHOWN_IMAGES = 8  # in the figure of a round


class MapsClasses(Protocol):
    """The module: what its network activates on, and what it segments."""

    device: torch.device

    def activation_maps(self, image: Tensor) -> Tensor:
        """A whole image, (3, H, W) uint8, to class maps (C, H, W) of all classes, not yet normalised."""
        ...

    def segment(self, image: Tensor) -> Tensor:
        """A whole image, (3, H, W) uint8, to its labels (H, W)."""
        ...


class HoldsTrainingImages(Protocol):
    """The datamodule: whole, un-augmented training images."""

    class_names: list[str]

    def training_images(self) -> Dataset:
        """Samples with ``image`` (3, H, W) uint8, ``label`` (C,) multi-hot, ``index``, ``name``; ``score_mask``
        (H, W) where the true mask is known."""
        ...


class PseudoLabelRefresh(IterativeStep):
    """Stores, as field ``mask``, a pseudo mask (H, W) uint8 of every training image that has a label.

    Class maps of the whole image (not of a crop) in eval mode, true classes only, against a constant
    background plane; then a dense CRF on these labels. 0 is background, 1 + c class c. An image
    without label gets no mask. True masks, where the data have them, are only compared with.

    The CRFs run in worker processes while the network works on the next images. Masks do not depend
    on how many processes there are.

    Args:
        schedule: when rounds run. In mode ``converge``: the epochs at which one may run.
        seed: seed of the run.
        folder: ``<stage_dir>/rounds``.
        mode: ``schedule``, or ``converge``: after the first round, only when the training loss has
            not fallen below its best since the last round for ``patience`` epochs.
        patience: epochs.
        scales: of the class maps, which the module makes: kept beside the masks, so that a run goes on
            with its own alone.
        threshold: value of the background plane, 0..1.
        crf: of the CRF; None keeps the seeds as they are (ablation).
        processes: workers for the CRF, of each process of the run; 0 does it in this process.
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        folder: str,
        mode: Literal["schedule", "converge"],
        patience: int,
        scales: list[float],
        threshold: float,
        crf: CRFSettings | None,
        processes: int,
    ) -> None:
        super().__init__(schedule, seed, folder)
        check_scales(scales)
        check_threshold(threshold)
        if patience < 1 or processes < 0:
            raise InputError(
                f"pseudo_label_refresh.patience={patience} must be 1 or more, and processes={processes} 0 or more"
            )
        self.mode, self.patience, self.scales, self.threshold = mode, patience, scales, threshold
        self.crf, self.processes = crf, processes
        self.losses: list[float] = []  # of each epoch since the last round
        self.shown: list[list[tuple[NDArray[np.uint8], str]]] = []
        self.shown_round = 0

    def settings(self) -> dict[str, Any]:
        """What the masks depend on beside the weights."""
        return {
            "scales": list(self.scales),
            "threshold": self.threshold,
            "crf": None if self.crf is None else asdict(self.crf),
        }

    # --- when

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remembers the epoch's training loss, for mode ``converge``."""
        if self.mode == "converge":
            self.losses.append(float(trainer.callback_metrics["train/loss"]))
        super().on_train_epoch_end(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.losses = list(state_dict["losses"])

    def waits(self) -> bool:
        """Whether mode ``converge`` lets this epoch pass."""
        first = self.rounds is None or self.rounds.generation is None
        if self.mode == "schedule" or first:
            return False
        return not self.losses or len(self.losses) - 1 - int(np.argmin(self.losses)) < self.patience

    # --- the round

    def run(self, trainer: pl.Trainer, module: MapsClasses, datamodule: HoldsTrainingImages) -> Mapping[str, float]:
        if self.waits():
            return {}
        images = datamodule.training_images()
        mine = self.shard(len(images))
        classes = len(datamodule.class_names) + 1
        seed_counts = torch.zeros(classes, classes, dtype=torch.long)
        mask_counts = torch.zeros_like(seed_counts)
        masks = foreground = 0
        self.shown, self.shown_round = [], self.round
        labelled = (sample for sample in map(images.__getitem__, mine) if sample["label"].any())
        with self.new_generation() as generation:
            done = self.refined(module, labelled)
            for sample, seeds, mask in self.progress(done, len(mine), "pseudo masks"):
                generation.put("mask", sample["index"], mask.numpy().astype(np.uint8))
                masks, foreground = masks + 1, foreground + int(mask.any())
                if "score_mask" in sample:
                    seed_counts += confusion(seeds, sample["score_mask"], classes)
                    mask_counts += confusion(mask, sample["score_mask"], classes)
                if trainer.is_global_zero and len(self.shown) < SHOWN_IMAGES:
                    self.show(module, sample, seeds, mask)
        self.losses = []
        parts = self.gather([(masks, foreground, seed_counts, mask_counts)])
        masks, foreground, seed_counts, mask_counts = (sum(values) for values in zip(*parts, strict=True))
        metrics = {"masks": float(masks), "with_foreground": foreground / max(masks, 1)}
        if int(mask_counts.sum()):
            metrics |= {"seed_mean_iou": mean_iou(seed_counts), "mask_mean_iou": mean_iou(mask_counts)}
        return metrics

    def refined(
        self, module: MapsClasses, samples: Iterator[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        """Each sample with its seeds and its mask, (H, W) int64 of 0..C, in the order of the samples."""
        waiting: deque[tuple[dict[str, Any], Tensor, Tensor]] = deque()

        def jobs() -> Iterator[CRFJob]:
            for sample in samples:
                classes = sample["label"].nonzero().flatten()
                cam = normalised_cam(module.activation_maps(sample["image"]), classes.to(module.device))
                seeds, ids = seed_labels(cam, self.threshold).cpu(), class_ids(classes)
                waiting.append((sample, seeds, ids))
                # An image's labels are background and its own classes: the CRF's energies depend on how many.
                yield CRFJob(sample["image"].permute(1, 2, 0).numpy(), seeds[None].byte().numpy(), len(ids), self.crf)

        with CRFPool(0 if self.crf is None else self.processes) as pool:
            for refined in pool.refine_many(jobs()):
                sample, seeds, ids = waiting.popleft()
                yield sample, ids[seeds], ids[torch.from_numpy(refined[0]).long()]

    # --- pictures

    def show(self, module: MapsClasses, sample: dict[str, Any], seeds: Tensor, mask: Tensor) -> None:
        """Keeps an image with seeds, mask, decoder and truth."""
        columns = {"seeds": seeds, "pseudo mask": mask, "decoder": module.segment(sample["image"]).cpu()}
        if "score_mask" in sample:
            columns["truth"] = sample["score_mask"]
        self.shown.append(overlay_row(sample["image"], str(sample["name"]), columns))

    def figures(self) -> dict[str, Figure]:
        """The first images of this round, one file for each round, and the scores of all rounds."""
        if self.shown_round != self.round:  # no masks were made
            return {}
        figures = {f"round_{self.round:02d}": image_rows(self.shown, side=1.6)}
        scores = [record["mask_mean_iou"] for record in self.history if "mask_mean_iou" in record]
        if scores:
            figures["mask_mean_iou"] = curve(scores, "round", "mean IoU of the pseudo masks (%)", start=1)
        return figures
