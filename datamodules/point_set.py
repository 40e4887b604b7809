"""A set of points without splits: clustering sees all of them, and their labels only when it is judged."""

import hashlib
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from datamodules.point_files import Points
from datamodules.sampling import StridedSampler
from runs.errors import InputError, first_few


class PointReader(Protocol):
    """Turns files into points."""

    def read(self, root: str | None) -> Points: ...


class PointIndices(Dataset):
    """Samples ``{"index"}`` and, where it is known, ``"label"``: what a clustering is judged by."""

    def __init__(self, n: int, labels: NDArray[np.int64] | None) -> None:
        self.n, self.labels = n, labels

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"index": index} if self.labels is None else {"index": index, "label": int(self.labels[index])}


class PointSetDataModule(pl.LightningDataModule):
    """Points for rounds (`points`), and their indices and labels in batches.

    Its state is the number and the checksum of the points: a checkpoint with clusters of some points
    is not judged on others, and predicts without their files.

    Args:
        reader: reads `root`.
        root: file or folder of the points.
        num_classes: true classes; where there are no labels, the clusters that are wanted.
        scale: of the raw features: ``none``; ``unit_norm``: each point to length 1; ``standard``: each
            column to mean 0 and deviation 1.
        eval_batch_size: points of a batch, each process.

    Raises:
        InputError: for no classes at all; from `setup`, for missing or broken files, values that are no
            numbers, labels that do not fit ``num_classes``, or other points than the checkpoint's.
    """

    def __init__(
        self,
        reader: PointReader,
        root: str | None,
        num_classes: int,
        scale: Literal["none", "unit_norm", "standard"],
        eval_batch_size: int,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"data.num_classes={num_classes}: give the number of clusters (and of classes), 1 or more")
        self.reader, self.root = reader, root
        self.num_classes, self.scale, self.eval_batch_size = num_classes, scale, eval_batch_size
        self.identity: dict[str, Any] | None = None
        self.read: Points | None = None
        self._features: NDArray[np.float64] | None = None

    def setup(self, stage: str) -> None:
        if self.read is not None:
            return
        if stage == "predict" and (self.root is None or not Path(self.root).exists()):
            return  # the checkpoint alone will do; points that are there must be those it knows
        read = self.reader.read(self.root)
        _check(read, self.num_classes)
        self._features = scaled(read.features, self.scale)
        digest = hashlib.blake2b(np.ascontiguousarray(self._features).tobytes(), digest_size=8).hexdigest()
        self.read, self.identity = read, {"points": len(self._features), "digest": digest}

    @property
    def class_names(self) -> list[str]:
        return [] if self.read is None else self.read.class_names

    def points(self) -> NDArray[np.float64]:
        """Scaled features, (n, d)."""
        assert self._features is not None, "setup comes first"
        return self._features

    def state_dict(self) -> dict[str, Any]:
        return dict(self.identity or {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.identity not in (None, state):
            raise InputError(
                f"the checkpoint holds clusters of {state['points']} points, and {self.read.files} with "
                f"data.scale={self.scale} are {self.identity['points']} other ones: clusters are of the very points "
                "they were found on, so train on these"
            )
        self.identity = state

    def train_dataloader(self) -> DataLoader:
        """One batch: the epoch scores all points at once, in every process alike."""
        data = self._indices()
        return DataLoader(data, batch_size=len(data), sampler=range(len(data)))

    def test_dataloader(self) -> DataLoader:
        data = self._indices()
        sampler = StridedSampler(len(data), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(data, batch_size=self.eval_batch_size, sampler=sampler)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def _indices(self) -> PointIndices:
        assert self.identity is not None, "neither points nor a checkpoint"
        return PointIndices(self.identity["points"], None if self.read is None else self.read.labels)


def scaled(features: NDArray[np.float64], scale: Literal["none", "unit_norm", "standard"]) -> NDArray[np.float64]:
    """Features (n, d), scaled; a point at the origin and a constant column stay 0."""
    if scale == "unit_norm":
        size = np.linalg.norm(features, axis=1, keepdims=True)
    elif scale == "standard":
        features = features - features.mean(axis=0)
        size = features.std(axis=0, keepdims=True)
        size = np.where(size > 1e-12 * np.abs(features).max(initial=0), size, 0.0)
    else:
        return features
    return np.divide(features, size, out=np.zeros_like(features), where=size > 0)


def _check(read: Points, num_classes: int) -> None:
    if not read.features.size:
        raise InputError(f"{read.files}: no points in it")
    broken = np.flatnonzero(~np.isfinite(read.features).all(axis=1))
    if len(broken):
        raise InputError(
            f"{read.files}: {len(broken)} points have values that are NaN or infinite "
            f"(point {first_few((broken + 1).tolist())}, counted from 1): drop or fill them"
        )
    if read.labels is None:
        return
    if read.labels.min() < 0 or read.labels.max() >= num_classes or len(read.class_names) > num_classes:
        classes = max(len(read.class_names), int(read.labels.max()) + 1)
        raise InputError(
            f"{read.files}: there are {classes} classes but data.num_classes={num_classes}: set "
            f"data.num_classes={classes} (model.cluster.p sets another number of clusters)"
        )
    if absent := sorted(set(range(num_classes)) - set(np.unique(read.labels).tolist())):
        names = [read.class_names[label] if label < len(read.class_names) else label for label in absent]
        raise InputError(
            f"{read.files}: no point is of class {first_few(names)} of data.num_classes={num_classes}: complete "
            "the files, or set data.num_classes to the classes that are there"
        )
