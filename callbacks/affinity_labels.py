"""Labels for AffinityNet: what two dense CRFs on class maps agree about (arXiv 2211.12455, 4.1.6)."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from callbacks.iterative_step import IterativeStep, Schedule
from callbacks.trained_network import TrainedNetwork
from components.cam import check_scales, class_ids, multi_scale_cam, normalised_cam, seed_labels
from components.dense_crf import CRFSettings
from components.dense_crf_pool import CRFJob, CRFPool
from components.figures import image_rows
from components.metrics.segmentation import confusion, mean_iou
from components.voc import VOID, overlay_row
from runs.errors import InputError

SHOWN_IMAGES = 8  # in the figure of a round


class HoldsTrainingImages(Protocol):
    """The datamodule: whole, un-augmented training images."""

    class_names: list[str]

    def training_images(self) -> Dataset:
        """Samples with ``image`` (3, H, W) uint8, ``label`` (C,) multi-hot, ``index``, ``name``; ``score_mask``
        (H, W) where the true mask is known."""
        ...


class Labelled(NamedTuple):
    """A training image with its class maps.

    Attributes:
        sample: of the datamodule.
        ids: mask value of each label, (1 + k,): 0, then the image's classes.
        cam: normalised maps of these classes, (k, H, W).
    """

    sample: dict[str, Any]
    ids: Tensor
    cam: Tensor


def labelled_images(cams: TrainedNetwork, scales: list[float], samples: Iterator[dict[str, Any]]) -> Iterator[Labelled]:
    """Class maps of each image's own classes, summed over scales and flips."""
    for sample in samples:
        classes = sample["label"].nonzero().flatten()
        maps = multi_scale_cam(cams.network.class_maps, cams.normalised(sample["image"]), scales)
        yield Labelled(sample, class_ids(classes), normalised_cam(maps, classes.to(maps.device)))


def certain_labels(foreground: Tensor, background: Tensor) -> Tensor:
    """A class where the strict labelling sees one, background where both see none, 255 elsewhere.

    Args:
        foreground: labels with a high background plane, (H, W) int64: what is a class here is sure.
        background: labels with a low one: what is background here is sure.
    """
    neither = torch.full_like(foreground, VOID)
    return torch.where(foreground > 0, foreground, torch.where(background == 0, 0, neither))


class AffinityLabels(IterativeStep):
    """Stores, as field ``mask``, labels (H, W) uint8 of every training image: 0, classes, or 255 for not sure.

    Class maps of the whole image by the network of an earlier stage, true classes only; two seed
    maps, against a high and a low background plane; a dense CRF on each. An image that has no label
    is not sure anywhere.

    Args:
        schedule: one round, before training.
        seed: seed of the run.
        folder: ``<stage_dir>/rounds``.
        cams: the network of the earlier stage; it has ``class_maps``.
        scales: of the class maps.
        sure_foreground: the high background plane, 0..1.
        sure_background: the low one.
        crf: of the CRF.
        processes: workers for the CRF, of each process of the run; 0 does it in this process.

    Raises:
        InputError: the planes are not in order, or there is no scale to work at.
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        folder: str,
        cams: TrainedNetwork,
        scales: list[float],
        sure_foreground: float,
        sure_background: float,
        crf: CRFSettings,
        processes: int,
    ) -> None:
        super().__init__(schedule, seed, folder)
        check_scales(scales)
        if not 0 <= sure_background < sure_foreground < 1:
            raise InputError(
                f"affinity_labels.sure_background={sure_background} must be below .sure_foreground={sure_foreground}, "
                "both from 0 to below 1"
            )
        self.cams, self.scales, self.crf, self.pool = cams, scales, crf, CRFPool(processes)
        self.sure_foreground, self.sure_background = sure_foreground, sure_background
        self.shown: list[list[tuple[NDArray[np.uint8], str]]] = []

    def settings(self) -> dict[str, Any]:
        """What the labels depend on beside the weights."""
        planes = {"sure_foreground": self.sure_foreground, "sure_background": self.sure_background}
        return {**planes, "scales": list(self.scales), "crf": asdict(self.crf)}

    def run(self, trainer: pl.Trainer, module: pl.LightningModule, datamodule: HoldsTrainingImages) -> dict[str, float]:
        images = datamodule.training_images()
        mine = self.shard(len(images))
        samples = (images[place] for place in mine)
        classes = len(datamodule.class_names) + 1
        counts = torch.zeros(classes, classes, dtype=torch.long)
        pixels = torch.zeros(3, dtype=torch.long)  # background, foreground, not sure
        self.shown = []
        self.cams.load(module.device)
        with self.new_generation() as generation, self.pool:
            for sample, labels in self.progress(self.labels(samples), len(mine), "affinity labels"):
                generation.put("mask", sample["index"], labels.numpy().astype(np.uint8))
                pixels += torch.stack(
                    [(labels == 0).sum(), ((labels > 0) & (labels < VOID)).sum(), (labels == VOID).sum()]
                )
                if "score_mask" in sample:
                    known = labels != VOID
                    counts += confusion(labels[known], sample["score_mask"][known], classes)
                if trainer.is_global_zero and len(self.shown) < SHOWN_IMAGES:
                    self.show(sample, labels)
        self.cams.release()
        parts = self.gather([(pixels, counts)])
        pixels, counts = (sum(values) for values in zip(*parts, strict=True))
        share = (100 * pixels / pixels.sum().clamp(min=1)).tolist()
        metrics = {"background_percent": share[0], "foreground_percent": share[1], "unsure_percent": share[2]}
        if int(counts.sum()):
            metrics["sure_mean_iou"] = mean_iou(counts)
        return metrics

    def labels(self, samples: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Each sample with its labels, (H, W) int64, in order; the CRFs run while the network works on the next."""
        waiting: deque[Labelled] = deque()

        def jobs() -> Iterator[CRFJob]:
            for item in labelled_images(self.cams, self.scales, samples):
                planes = (self.sure_foreground, self.sure_background)
                seeds = torch.stack([seed_labels(item.cam, plane) for plane in planes])
                waiting.append(item._replace(cam=item.cam.new_empty(0)))  # the maps are not needed any more
                yield CRFJob(pixels_of(item.sample), seeds.byte().cpu().numpy(), len(item.ids), self.crf)

        for refined in self.pool.refine_many(jobs()):
            sample, ids, _ = waiting.popleft()
            if len(ids) == 1:
                yield sample, torch.full(refined.shape[1:], VOID)
                continue
            foreground, background = ids[torch.from_numpy(refined).long()]
            yield sample, certain_labels(foreground, background)

    def show(self, sample: dict[str, Any], labels: Tensor) -> None:
        """Keeps an image with its labels and, where known, its true mask."""
        columns = {"affinity labels": labels}
        if "score_mask" in sample:
            columns["truth"] = sample["score_mask"]
        self.shown.append(overlay_row(sample["image"], str(sample["name"]), columns))

    def figures(self) -> dict[str, Figure]:
        """The first images with their labels; what is not sure is drawn in VOC's colour of void."""
        return {"labels": image_rows(self.shown, side=1.8)} if self.shown else {}


def pixels_of(sample: Mapping[str, Any]) -> NDArray[np.uint8]:
    """A sample's image as (H, W, 3)."""
    return sample["image"].permute(1, 2, 0).numpy()
