"""Before training: gets a frozen backbone ready and, where asked for, computes its features once for the whole run."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from callbacks.iterative_step import IterativeStep, Schedule


class HasFrozenFeatures(Protocol):
    """A module that trains on features of a network that never learns."""

    def prepare(self, batches: Callable[[], Iterable[Tensor]]) -> dict[str, float]:
        """Gets the frozen part ready, given uint8 batches over the training images; returns what to log."""
        ...

    def features(self, image: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) to what training takes instead, (B, C, h, w)."""
        ...


class HasTrainingImages(Protocol):
    """A datamodule whose training images look the same in every epoch."""

    def training_images(self) -> Dataset:
        """Each training image once, as `image` and `index`."""
        ...


class FrozenFeatures(IterativeStep):
    """One round before training; with ``cache`` it leaves the field ``feature_map`` for the loader.

    The features are in single precision: a run that reads them trains as one that computes them in each step.

    Args:
        schedule: see `IterativeStep`; one round at 0.
        seed: of the run.
        folder: of the features.
        cache: whether features are kept; 25 MB an image at 256 x 256 pixels with the paper's backbone.
        batch_size: images at a time.
        num_workers: loader processes.
    """

    def __init__(
        self, schedule: Schedule, seed: int, folder: str, cache: bool, batch_size: int, num_workers: int
    ) -> None:
        super().__init__(schedule, seed, folder, keep=1)
        self.cache, self.batch_size, self.num_workers = cache, batch_size, num_workers

    def settings(self) -> dict[str, Any]:
        return {"cache": self.cache}

    def run(self, trainer: pl.Trainer, module: HasFrozenFeatures, datamodule: HasTrainingImages) -> dict[str, float]:
        images = datamodule.training_images()
        facts = module.prepare(lambda: (batch["image"] for batch in self._batches(images, range(len(images)))))
        if self.cache:
            with self.new_generation() as generation:
                mine = self._batches(images, self.shard(len(images)))
                for batch in self.progress(mine, -(-len(self.shard(len(images))) // self.batch_size), "features"):
                    generation.put("feature_map", batch["index"], module.features(batch["image"].to(module.device)))
        return facts

    def _batches(self, images: Dataset, places: range) -> Iterator[dict[str, Any]]:
        yield from DataLoader(Subset(images, places), self.batch_size, num_workers=self.num_workers)
