"""Tables of which training may know some labels only: `labelled` says which, the others are -1."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from datamodules.table import Scaling, TableDataModule, TableRows
from datamodules.table_files import Table, TableReader
from datamodules.table_splits import Rows, Split
from runs.errors import InputError, first_few


@dataclass(frozen=True)
class UnlabelledRowsTrain:
    """A split of the rows that have a class; those without one train, in every fold, and are never judged.

    Attributes:
        split: of the rows with a class, as if there were no others.
    """

    split: Split

    def __call__(self, table: Table, seed: int, fold: int) -> tuple[Rows, Rows]:
        if table.labelled.all():
            return self.split(table, seed, fold)
        places = np.flatnonzero(table.labelled)
        train, judged = self.split(table.take(places), seed, fold)
        return np.sort(np.concatenate([places[train], np.flatnonzero(~table.labelled)])), places[judged]


@dataclass(frozen=True)
class FewerTrainingRows:
    """A split of whose training rows a random part is used, each class in its share, and rows without one in theirs.

    Attributes:
        split: what is shortened.
        most: training rows that are kept; None keeps all.
    """

    split: Split
    most: int | None

    def __call__(self, table: Table, seed: int, fold: int) -> tuple[Rows, Rows]:
        train, judged = self.split(table, seed, fold)
        if self.most is None or len(train) <= self.most:
            return train, judged
        generator = np.random.default_rng([seed, fold, 1])
        classes = _one_class(table.label, train)
        drawn = generator.permutation(len(train))
        share = np.empty(len(train))
        for rows in _by_class(classes[drawn]):
            share[rows] = np.arange(len(rows)) / len(rows)  # the first of each class come first
        return np.sort(train[drawn[np.argsort(share, kind="stable")[: self.most]]]), judged


def kept_labels(
    label: NDArray[np.int64], unlabelled: float, labelled_per_class: int | None, seed: int, fold: int
) -> NDArray[np.bool_]:
    """Which training rows keep their label, (m,); of more hidden labels those of fewer are a part.

    Args:
        label: (m,) classes, of each of which the same share is hidden and at least one label is kept; or (m, L)
            label sets, of which whole rows are hidden.
        unlabelled: the share that is hidden, 0 or more and below 1.
        labelled_per_class: labels kept of each class instead of a share.
        seed: of the draw.
        fold: of the split; each has a draw of its own.
    """
    generator = np.random.default_rng([seed, fold, 2])
    kept = np.zeros(len(label), dtype=bool)
    for rows in _by_class(_one_class(label, np.arange(len(label)))):
        hidden = round(unlabelled * len(rows))
        number = len(rows) - hidden if labelled_per_class is None else min(labelled_per_class, len(rows))
        kept[generator.permutation(rows)[: max(1, number)]] = True
    return kept


def _one_class(label: NDArray[np.int64] | None, rows: Rows) -> NDArray[np.int64]:
    return label[rows] if label is not None and label.ndim == 1 else np.zeros(len(rows), dtype=np.int64)


def _by_class(classes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(classes == c) for c in np.unique(classes)]


class PartlyLabelledRows(TableRows):
    """Training rows; what stands in `label` where `labelled` is False is -1, whatever the table holds."""

    def __init__(
        self, table: Table, rows: Rows, scaling: Scaling, labelled: NDArray[np.bool_], revealed: TableRows | None
    ) -> None:
        super().__init__(table, rows, scaling)
        self.labelled, self.revealed = labelled, revealed

    def __getitem__(self, places: list[int]) -> dict[str, Any]:
        batch = super().__getitem__(places)
        labelled = torch.from_numpy(self.labelled[places])
        batch["label"][~labelled] = -1
        batch["labelled"] = labelled
        if self.revealed is not None:
            judged = self.revealed[list(range(len(self.revealed)))]
            batch["judged_features"], batch["judged_label"] = judged["features"], judged["label"]
        return batch


class SemiSupervisedTableDataModule(TableDataModule):
    """`TableDataModule` for classes of which only some are known in training.

    The training batch has ``labelled (m,)`` bool, and ``label`` is -1 where that is False. Hidden rows are part
    of the training rows all the same: their features are there, and they are scaled with the others. So are rows
    whose class is in no file, label -1 of the table: they are training rows of each fold, and never judged.

    Args:
        unlabelled: share of each class's known training labels that is hidden, from 0 to below 1.
        labelled_per_class: keep so many labels of each class instead; None: go by ``unlabelled``.
        max_train: training rows that are used at most, drawn by the seed, each class in its share; None: all.
        judged: ``held_out``: the rows of the split; ``hidden``: the training rows whose labels are hidden.
        reveal_judged: whether the training batch holds the judged rows too, for an oracle: never for honest numbers.
        reader: see `TableDataModule`, as for all that follow.
    """

    uses_unlabelled = True

    def __init__(
        self,
        unlabelled: float,
        labelled_per_class: int | None,
        max_train: int | None,
        judged: Literal["held_out", "hidden"],
        reveal_judged: bool,
        reader: TableReader,
        root: str,
        split: Split,
        fold: int,
        scale: Literal["none", "minmax", "standard"],
        clip: bool,
        drop_constant: bool,
        invalid: Literal["refuse", "drop", "impute"],
        batch_size: int,
        predict_root: str | None,
        identifier: str | None,
        seed: int,
    ) -> None:
        if not 0 <= unlabelled < 1:
            raise InputError(f"data.unlabelled={unlabelled} must be 0 or more and below 1: some labels must be known")
        for name, value in (("labelled_per_class", labelled_per_class), ("max_train", max_train)):
            if value is not None and value < 1:
                raise InputError(f"data.{name}={value} must be 1 or more, or null")
        if reveal_judged and judged == "hidden":
            raise InputError("data.reveal_judged=true goes with data.judged=held_out")
        super().__init__(
            reader, root, FewerTrainingRows(UnlabelledRowsTrain(split), max_train), fold, scale, clip, drop_constant,
            invalid, batch_size, predict_root, identifier, seed,
        )  # fmt: skip
        self.unlabelled, self.labelled_per_class = unlabelled, labelled_per_class
        self.judged, self.reveal_judged = judged, reveal_judged

    def setup(self, stage: str) -> None:
        """Reads the table.

        Raises:
            InputError: see `TableDataModule.setup`; or the table has no classes, or only one.
        """
        super().setup(stage)
        if stage == "predict":
            return
        assert self.table is not None
        if self.table.label is None:
            raise InputError(
                f"{self.table.files}: no column of classes is named: set data.reader.label (or data.reader.labels)"
            )
        if len(self.table.class_names) < 2 and self.table.label.ndim == 1:
            raise InputError(
                f"{self.table.files}: all rows are of the class {first_few(self.table.class_names)}: give 2 or more"
            )

    def labelled(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of the training rows keep their label.

        Raises:
            InputError: a class is not among them.
        """
        assert self.table is not None and self.table.label is not None
        label = self.table.label[rows]
        if label.ndim == 1:
            absent = sorted(set(range(len(self.table.class_names))) - set(label.tolist()))
            if absent:
                raise InputError(
                    f"{self.table.files}: no training row of fold {self.fold} is of the class "
                    f"{first_few([self.table.class_names[c] for c in absent])}, so none can be labelled: take fewer "
                    "folds, set data.split.stratified=true, or raise data.max_train"
                )
        known = self.table.labelled[rows]
        kept = np.zeros(len(rows), dtype=bool)
        kept[known] = kept_labels(label[known], self.unlabelled, self.labelled_per_class, self.seed, self.fold)
        return kept

    def training_rows(self, rows: Rows) -> PartlyLabelledRows:
        assert self.table is not None
        revealed = TableRows(self.table, self.rows()[1], self.scaling()) if self.reveal_judged else None
        return PartlyLabelledRows(self.table, rows, self.scaling(), self.labelled(rows), revealed)

    def test_dataloader(self) -> DataLoader:
        """Rows to judge; see ``judged``.

        Raises:
            InputError: the hidden rows are to be judged, and there are none.
        """
        train, _ = self.rows()
        if self.judged == "held_out" or not len(train):  # of other data than those of training all rows are judged
            return super().test_dataloader()
        hidden = train[~self.labelled(train) & self.table.labelled[train]]
        if not len(hidden):
            raise InputError("data.judged=hidden: no label is hidden: set data.unlabelled or data.labelled_per_class")
        return self._in_batches(TableRows(self.table, hidden, self.scaling()))
