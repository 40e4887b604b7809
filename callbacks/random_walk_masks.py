"""Masks for a final segmentation: class maps carried along affinities, then a dense CRF (arXiv 1803.10464, 3.3)."""

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from callbacks.affinity_labels import HoldsTrainingImages, Labelled, labelled_images, pixels_of
from callbacks.iterative_step import IterativeStep, Schedule
from callbacks.trained_network import TrainedNetwork
from components.cam import check_scales, check_threshold, seed_labels
from components.dense_crf import CRFSettings
from components.dense_crf_pool import CRFJob, CRFPool
from components.figures import image_rows
from components.metrics.segmentation import confusion, mean_iou
from components.random_walk import walked_labels
from components.voc import VOID, overlay_row

SHOWN_IMAGES = 8  # in the figure of a round


class RandomWalkMasks(IterativeStep):
    """Stores, as field ``mask``, a mask (H, W) uint8 of every training image: 0, or 1 + c for class c.

    Class maps of one earlier stage, true classes only; a random walk on the affinities of another;
    arg-max against the background's score; a dense CRF on these labels. An image that has no label
    is 255 everywhere. Where the data have true masks, the seeds without walk and the labels before
    the CRF are scored beside the masks.

    Args:
        schedule: one round, before training.
        seed: seed of the run.
        folder: ``<stage_dir>/rounds``.
        cams: network of an earlier stage with ``class_maps``.
        affinities: network of an earlier stage with ``affinities`` and ``offsets``; None leaves the walk
            out: the masks are the seeds against a constant background (ablation).
        scales: of the class maps.
        threshold: background plane of the seeds without walk, 0..1.
        beta: exponent of the affinities.
        log2_steps: t; the walk has 2^t steps.
        background_power: exponent of the background's score.
        crf: of the CRF; None leaves it out.
        processes: workers for the CRF, of each process of the run; 0 does it in this process.
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        folder: str,
        cams: TrainedNetwork,
        affinities: TrainedNetwork | None,
        scales: list[float],
        threshold: float,
        beta: float,
        log2_steps: int,
        background_power: float,
        crf: CRFSettings | None,
        processes: int,
    ) -> None:
        super().__init__(schedule, seed, folder)
        check_scales(scales)
        check_threshold(threshold)
        self.cams, self.affinities, self.scales, self.threshold = cams, affinities, scales, threshold
        self.beta, self.log2_steps, self.background_power = beta, log2_steps, background_power
        self.crf, self.pool = crf, CRFPool(processes if crf is not None else 0)
        self.shown: list[list[tuple[NDArray[np.uint8], str]]] = []

    def settings(self) -> dict[str, Any]:
        """What the masks depend on beside the weights."""
        walk = {"beta": self.beta, "log2_steps": self.log2_steps, "background_power": self.background_power}
        return {
            "scales": list(self.scales),
            "walk": None if self.affinities is None else walk,
            "threshold": self.threshold,
            "crf": None if self.crf is None else asdict(self.crf),
        }

    def run(self, trainer: pl.Trainer, module: pl.LightningModule, datamodule: HoldsTrainingImages) -> dict[str, float]:
        images = datamodule.training_images()
        mine = self.shard(len(images))
        samples = (images[place] for place in mine)
        classes = len(datamodule.class_names) + 1
        counts: dict[str, Tensor] = {}
        self.shown = []
        networks = [self.cams, *([self.affinities] if self.affinities else [])]
        for network in networks:
            network.load(module.device)
        with self.new_generation() as generation, self.pool:
            for sample, steps in self.progress(self.masks(samples), len(mine), "masks"):
                final = list(steps.values())[-1]
                generation.put("mask", sample["index"], final.numpy().astype(np.uint8))
                if "score_mask" in sample and bool(sample["label"].any()):
                    for name, labels in steps.items():
                        empty = torch.zeros(classes, classes, dtype=torch.long)
                        counts[name] = counts.get(name, empty) + confusion(labels, sample["score_mask"], classes)
                if trainer.is_global_zero and len(self.shown) < SHOWN_IMAGES:
                    self.show(sample, steps)
        for network in networks:
            network.release()
        parts = self.gather([counts])
        names = dict.fromkeys(name for part in parts for name in part)
        return {f"{name}_mean_iou": mean_iou(sum(part[name] for part in parts if name in part)) for name in names}

    def masks(self, samples: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        """Each sample with the labels after each step, (H, W) int64, in order; the last are its mask."""
        waiting: deque[tuple[Labelled, dict[str, Tensor]]] = deque()

        def jobs() -> Iterator[CRFJob]:
            for item in labelled_images(self.cams, self.scales, samples):
                steps = {"seed": seed_labels(item.cam, self.threshold).cpu()}
                if self.affinities is not None:
                    steps["walk"] = self.walk(item).cpu()
                waiting.append((item._replace(cam=item.cam.new_empty(0)), steps))  # the maps are not needed any more
                last = list(steps.values())[-1]
                yield CRFJob(pixels_of(item.sample), last[None].byte().numpy(), len(item.ids), self.crf)

        for refined in self.pool.refine_many(jobs()):
            (sample, ids, _), steps = waiting.popleft()
            if self.crf is not None:
                steps[f"{list(steps)[-1]}_crf"] = torch.from_numpy(refined[0]).long()
            if len(ids) == 1:
                yield sample, {name: torch.full_like(labels, VOID) for name, labels in steps.items()}
            else:
                yield sample, {name: ids[labels] for name, labels in steps.items()}

    def walk(self, item: Labelled) -> Tensor:
        """Labels after the random walk, (H, W) int64 on the image's own label space."""
        assert self.affinities is not None
        network = self.affinities.network
        affinity = network.affinities(self.affinities.normalised(item.sample["image"])[None])[0]
        return walked_labels(item.cam, affinity, network.offsets, self.beta, self.log2_steps, self.background_power)

    def show(self, sample: dict[str, Any], steps: dict[str, Tensor]) -> None:
        """Keeps an image with its labels after each step and, where known, its true mask."""
        columns = {name.replace("_", ", then "): labels for name, labels in steps.items()}
        if "score_mask" in sample:
            columns["truth"] = sample["score_mask"]
        self.shown.append(overlay_row(sample["image"], str(sample["name"]), columns))

    def figures(self) -> dict[str, Figure]:
        """The first images with seeds, labels after the walk and mask."""
        return {"masks": image_rows(self.shown, side=1.8)} if self.shown else {}
