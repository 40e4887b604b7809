"""Which rows of a table train and which are judged: official parts, folds, repeated random splits, or all rows."""

import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit

from datamodules.table_files import Table
from runs.errors import InputError, first_few

Rows = NDArray[np.int64]


class Split(Protocol):
    """Divides the rows of a table; those that know no folds refuse any but fold 0."""

    def __call__(self, table: Table, seed: int, fold: int) -> tuple[Rows, Rows]:
        """Training rows and judged rows, each ascending."""
        ...


@dataclass(frozen=True)
class OfficialParts:
    """The parts that the data set was published with."""

    def __call__(self, table: Table, seed: int, fold: int) -> tuple[Rows, Rows]:
        _check_no_folds(fold)
        if table.parts is None:
            raise InputError(
                f"{table.files} has no official training and test part: choose a split by data/split, folds or holdout"
            )
        train, test = (np.flatnonzero(table.parts == part) for part in ("train", "test"))
        return train, test


@dataclass(frozen=True)
class Folds:
    """One fold of a cross-validation, shuffled by the seed; `-m data.fold=0,1,2,…` runs them all.

    Attributes:
        folds: how many.
        stratified: whether each fold has the classes in the same shares; needs one class a row.
    """

    folds: int
    stratified: bool

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise InputError(f"data.split.folds={self.folds} must be 2 or more")

    def __call__(self, table: Table, seed: int, fold: int) -> tuple[Rows, Rows]:
        n = len(table)
        if not 0 <= fold < self.folds:
            raise InputError(f"data.fold={fold} must be from 0 to {self.folds - 1} (data.split.folds={self.folds})")
        if n < self.folds:
            raise InputError(f"{table.files} has {n} rows, fewer than data.split.folds={self.folds}")
        if self.stratified:
            label = _one_class_a_row(table)
            single = np.flatnonzero(np.bincount(label) == 1)
            if len(single):
                names = [table.class_names[c] if table.class_names else c for c in single]
                raise InputError(
                    f"{table.files}: the class {first_few(names)} has a single row, which cannot be trained on and "
                    "judged: drop that class, or set data.split.stratified=false"
                )
            splitter = StratifiedKFold(self.folds, shuffle=True, random_state=seed)
            with warnings.catch_warnings():  # a rare class is missing from some folds; that is allowed
                warnings.filterwarnings("ignore", message="The least populated class")
                parts = list(splitter.split(np.zeros(n), label))
        else:
            parts = list(KFold(self.folds, shuffle=True, random_state=seed).split(np.zeros(n)))
        train, test = parts[fold]
        return train, test


@dataclass(frozen=True)
class Holdout:
    """A random share of the rows is judged; another seed draws another one.

    Attributes:
        test_share: of the rows, above 0 and below 1.
        stratified: whether both parts have the classes in the same shares; needs one class a row.
    """

    test_share: float
    stratified: bool

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise InputError(f"data.split.test_share={self.test_share} must be above 0 and below 1")

    def __call__(self, table: Table, seed: int, fold: int) -> tuple[Rows, Rows]:
        _check_no_folds(fold)
        n = len(table)
        if n < 2:
            raise InputError(f"{table.files} has {n} rows: a split needs 2 or more")
        splitter = StratifiedShuffleSplit if self.stratified else ShuffleSplit
        label = _one_class_a_row(table) if self.stratified else None
        try:
            train, test = next(splitter(1, test_size=self.test_share, random_state=seed).split(np.zeros(n), label))
        except ValueError as error:  # a class with one row, a part without any
            raise InputError(
                f"{table.files} cannot be split by data.split.test_share={self.test_share}: {error}"
            ) from error
        return np.sort(train), np.sort(test)


@dataclass(frozen=True)
class AllRows:
    """Every row trains and is judged: for methods that look for structure and learn from no label."""

    def __call__(self, table: Table, seed: int, fold: int) -> tuple[Rows, Rows]:
        _check_no_folds(fold)
        rows = np.arange(len(table))
        return rows, rows


def _check_no_folds(fold: int) -> None:
    if fold != 0:
        raise InputError(f"data.fold={fold}: this split has no folds; another seed draws another random one")


def _one_class_a_row(table: Table) -> NDArray[np.int64]:
    if table.label is None or table.label.ndim != 1:
        raise InputError(f"{table.files} has not one class a row: set data.split.stratified=false")
    return table.label
