"""Tables as batches: a split, columns scaled by what the training rows show, the training rows as one batch."""

import hashlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.table_files import SEPARATOR_KEY, CSVReader, Table, TableReader, WritesFiles, read_features
from datamodules.table_splits import Rows, Split
from runs.errors import InputError, first_few

Features = NDArray[np.float64] | sparse.csr_array


@dataclass(frozen=True)
class Scaling:
    """What the training rows taught about the columns; all arrays are of the raw columns, (D,) float64.

    Attributes:
        kept: bool, which columns are used.
        median: what stands for an unknown value where values are imputed.
        offset: what is subtracted.
        size: what is divided by.
        clip: whether results are kept inside 0..1.
    """

    kept: NDArray[np.bool_]
    median: NDArray[np.float64]
    offset: NDArray[np.float64]
    size: NDArray[np.float64]
    clip: bool

    def __call__(self, features: Features) -> Features:
        """Raw columns (n, D) to those of the method, (n, d)."""
        if sparse.issparse(features):
            return features[:, self.kept]
        features = np.where(np.isnan(features), self.median, features)
        features = ((features - self.offset) / self.size)[:, self.kept]
        return features.clip(0.0, 1.0) if self.clip else features


def fit_scaling(
    features: Features, scale: Literal["none", "minmax", "standard"], clip: bool, drop_constant: bool
) -> Scaling:
    """Learns the scaling from training rows (n, D), NaN where unknown; a constant column becomes 0.

    ``minmax``: to 0..1; ``standard``: to mean 0 and deviation 1 (of n, not n - 1).

    Raises:
        InputError: a sparse table is to be scaled.
    """
    width = features.shape[1]
    zeros, ones = np.zeros(width), np.ones(width)
    if sparse.issparse(features):
        if scale != "none":
            raise InputError(
                f"data.scale={scale} would fill a sparse table: set data.scale=none, or have it read dense, where its "
                "reader can (data.reader.dense=true)"
            )
        dense = features.tocsc()
        varies = np.asarray((dense.max(axis=0) - dense.min(axis=0)).todense()).ravel() != 0
        return Scaling(varies if drop_constant else ones.astype(bool), zeros, zeros, ones, False)
    known = ~np.isnan(features).all(axis=0)
    median = zeros.copy()
    median[known] = np.nanmedian(features[:, known], axis=0)
    filled = np.where(np.isnan(features), median, features)
    spread = np.ptp(filled, axis=0)
    kept = spread > 0 if drop_constant else ones.astype(bool)
    offset, size = zeros, ones
    if scale == "minmax":
        offset, size = filled.min(axis=0), np.where(spread > 0, spread, 1.0)
    elif scale == "standard":
        # The mean of equal numbers may differ from them in the last digit: no deviation to divide by.
        offset, size = filled.mean(axis=0), np.where(spread > 0, filled.std(axis=0), 1.0)
        offset = np.where(spread > 0, offset, filled[0])
    return Scaling(kept, median, offset, size, clip)


class TableRows(Dataset):
    """Some rows of a table, scaled; an item is a whole batch, named by a list of places."""

    def __init__(self, table: Table, rows: Rows, scaling: Scaling) -> None:
        self.table, self.rows = table, rows
        self.features = scaling(table.features[rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: list[int]) -> dict[str, Any]:
        rows = self.rows[places]
        batch: dict[str, Any] = {"features": as_tensor(self.features[places]), "index": torch.from_numpy(rows)}
        for name in ("label", "target"):
            values = getattr(self.table, name)
            if values is not None:
                batch[name] = torch.from_numpy(values[rows])
        if self.table.identifiers is not None:
            batch["name"] = [self.table.identifiers[row] for row in rows]
        return batch


def row_digests(features: Features) -> NDArray[np.int64]:
    """A number for each row (n,): the same for equal rows, and next to never for others."""
    if sparse.issparse(features):
        rows = features.tocsr()
        spans = zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
        content = (rows.indices[a:b].astype(np.int64).tobytes() + rows.data[a:b].tobytes() for a, b in spans)
    else:
        content = (row.tobytes() for row in np.ascontiguousarray(features))
    digests = [hashlib.blake2b(row, digest_size=8).digest() for row in content]
    return np.frombuffer(b"".join(digests), dtype=np.int64)


def as_tensor(features: Features) -> Tensor:
    """(n, d) float64, sparse where the features are."""
    if not sparse.issparse(features):
        return torch.from_numpy(np.ascontiguousarray(features))
    indptr, indices = (torch.from_numpy(part.astype(np.int64)) for part in (features.indptr, features.indices))
    return torch.sparse_csr_tensor(indptr, indices, torch.from_numpy(features.data), features.shape)


class TableDataModule(pl.LightningDataModule):
    """Rows of a table, for methods that see the whole training part at once.

    Batches: ``features (B, d)`` float64, ``index (B,)`` the row of the table, ``label`` or ``target``
    where they are known, ``name`` where the rows have names. Training has one batch an epoch, all training
    rows, the same in every process; the judged rows are shared out.

    Its state is the scaling and the columns, so predicting needs the checkpoint alone, and a checksum of
    the raw features: other rows than those (`data.root=…` on eval.py) are judged all, as none of them
    was trained on.

    Args:
        reader: reads `root`.
        root: file or folder of the table.
        split: which rows train and which are judged.
        fold: the one that is judged, from 0; 0 for a split without folds.
        scale: of the columns, learnt from the training rows: ``none``, ``minmax`` (0..1) or ``standard``.
        clip: whether judged rows are kept inside what training rows span; for ``minmax``.
        drop_constant: whether columns that do not vary over the training rows are left out.
        invalid: rows with an unknown value or text among the features: ``refuse`` them by a message, ``drop``
            them, or ``impute`` the column's median of the training rows. A column without any number is refused,
            unless ``drop_constant`` leaves it out. In prediction ``drop`` refuses too: each row gets an answer.
        batch_size: judged rows of a batch, each process.
        predict_root: CSV file to predict for.
        identifier: column of that file which names its rows, if it has it.
        seed: of the split.

    Raises:
        InputError: see `setup`.
    """

    uses_unlabelled = False  # whether rows without a class are of use

    def __init__(
        self,
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
        super().__init__()
        if batch_size < 1:
            raise InputError(f"data.batch_size={batch_size} must be 1 row or more")
        self.reader, self.root, self.split, self.fold = reader, Path(root).expanduser(), split, fold
        self.scale, self.clip, self.drop_constant, self.invalid = scale, clip, drop_constant, invalid
        self.batch_size, self.seed, self.identifier = batch_size, seed, identifier
        self.predict_root = None if predict_root is None else Path(predict_root).expanduser()
        self.table: Table | None = None
        self._learnt: dict[str, Any] | None = None
        self._to_predict: Table | None = None

    def setup(self, stage: str) -> None:
        """Reads the table.

        Raises:
            InputError: there is nothing at `root` or `predict_root`, a file is broken, a row has unknown
                values or text that ``invalid`` does not allow, a row has no class, or no row is left.
        """
        if stage == "predict":
            if self.predict_root is None:
                raise InputError("data.predict_root is not set: name the CSV file to predict for")
            return  # which columns it must have is in the checkpoint, which is read later
        if self.table is not None:
            return
        if isinstance(self.reader, WritesFiles):
            self.reader.write(self.root)
        if not self.root.exists():
            raise InputError(f"data.root={self.root} does not exist: {self.reader.instructions}")
        table = self.reader.read(self.root)
        if not (table.labelled.all() or self.uses_unlabelled):
            raise InputError(
                f"{table.files}: {int((~table.labelled).sum())} of {len(table)} rows have no class, and this method "
                "has no use for them (data.reader.missing_label=keep): complete them, or leave them out of the file"
            )
        if self.invalid == "refuse" or not self.drop_constant:
            self._check_numbers(table)
        self.table = self.without_invalid(table, training=True)

    def _check_numbers(self, table: Table) -> None:
        """Refuses columns without any number: there is no median of them, and each of their rows would be dropped."""
        if sparse.issparse(table.features):
            return
        empty = [table.columns[place] for place in np.flatnonzero(np.isnan(table.features).all(axis=0))]
        if not empty:
            return
        found = [f"{name} ('{table.text[name]}')" if name in table.text else f"{name} (no value)" for name in empty]
        problem = f"{table.files} has no number in any of the {len(table)} rows of {first_few(found)}"
        if any(re.fullmatch(r"[+-]?\d+,\d+", table.text.get(name, "")) for name in empty):
            raise InputError(f"{problem}: write decimals with a point, as in 1.5")
        ways = []
        if isinstance(self.reader, CSVReader) and self.identifier is None and table.all_different:
            ways.append(f"data.identifier={table.all_different[0]} (its values are all different)")
            empty.remove(table.all_different[0])
        if empty and hasattr(self.reader, "left_out"):
            ways.append(f"data.reader.left_out=[{','.join([*self.reader.left_out, *empty])}]")
            if isinstance(self.reader, CSVReader) and not self.reader.names_what_is_told and len(empty) == 1:
                ways[-1] += f" (or data.reader.label={empty[0]}, if it holds the classes)"
        raise InputError(
            f"{problem}: " + (f"set {' and '.join(ways)}" if ways else "leave what is no feature out of the file")
        )

    def without_invalid(self, table: Table, training: bool) -> Table:
        """What ``invalid`` makes of rows with unknown values or text among their features."""
        if sparse.issparse(table.features):
            return table
        unknown = np.isnan(table.features)
        rows = np.flatnonzero(unknown.any(axis=1))
        if not len(rows):
            return table
        worst = [table.columns[place] for place in np.argsort(-unknown.sum(axis=0), kind="stable")[:5]]
        worst = [f"{name} ('{table.text[name]}')" if name in table.text else name for name in worst]
        worst = worst[: int(unknown.any(axis=0).sum())]
        if self.invalid == "impute":
            warnings.warn(
                f"{table.files}: {len(rows)} of {len(table)} rows have an unknown value or text where a number belongs "
                f"(most in {', '.join(worst)}): the training rows' median stands for it",
                stacklevel=2,
            )
            return table
        if self.invalid == "refuse" or not training:  # each row to predict for gets an answer
            raise InputError(
                f"{table.files}: {len(rows)} of {len(table)} rows have an unknown value or text where a number belongs "
                f"(row {first_few((rows + 1).tolist())}, counted from 1; most in {', '.join(worst)}): complete them, "
                f"or set {'data.invalid=drop or ' if training else ''}data.invalid=impute"
            )
        if len(rows) == len(table):
            raise InputError(
                f"{table.files}: each of the {len(table)} rows has an unknown value or text where a number belongs "
                f"(most in {', '.join(worst)}): set data.invalid=impute, or leave these columns out"
            )
        warnings.warn(
            f"{table.files}: {len(rows)} of {len(table)} rows have an unknown value or text where a number belongs "
            f"(most in {', '.join(worst)}) and are left out",
            stacklevel=2,
        )
        return table.take(np.flatnonzero(~unknown.any(axis=1)))

    @property
    def class_names(self) -> list[str]:
        """Position is the class."""
        return self.learnt["class_names"]

    @property
    def target_name(self) -> str:
        """What is regressed, with its unit."""
        return self.learnt["target_name"]

    @property
    def columns(self) -> list[str]:
        """Names of the columns that a batch's features have."""
        kept = self.learnt["kept"].tolist()
        return [name for name, used in zip(self.learnt["columns"], kept, strict=True) if used]

    @property
    def axis_names(self) -> list[str]:
        """The same for the axes of a picture."""
        return self.columns if self.scale == "none" else [f"{name}, scaled" for name in self.columns]

    @property
    def trained_names(self) -> list[str] | None:
        """Names of the training rows, ascending by row; None where they have none."""
        return self.learnt.get("trained_names")  # older checkpoints do not have it

    # -- what training rows taught ------------------------------------------------------------------

    @property
    def learnt(self) -> dict[str, Any]:
        """The state: the checkpoint's, or learnt from the training rows when it is first needed."""
        if self._learnt is None:
            assert self.table is not None, "setup comes first"
            train, _ = self.split(self.table, self.seed, self.fold)
            scaling = fit_scaling(self.table.features[train], self.scale, self.clip, self.drop_constant)
            if not scaling.kept.any():
                raise InputError(f"{self.table.files}: no column varies over the training rows")
            self._learnt = {
                "columns": self.table.columns,
                "class_names": self.table.class_names,
                "target_name": self.table.target_name,
                "checksum": self._checksum(self.table),
                "trained": torch.from_numpy(train),
                "trained_names": [names[row] for row in train] if (names := self.table.identifiers) else None,
                "trained_rows": torch.from_numpy(row_digests(self.table.features)[train]),
                **{name: torch.as_tensor(getattr(scaling, name)) for name in ("kept", "median", "offset", "size")},
            }
        return self._learnt

    def state_dict(self) -> dict[str, Any]:
        return dict(self._learnt or {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the checkpoint's.

        Raises:
            InputError: the table at `root` has other columns or other classes.
        """
        if self.table is not None:
            for name, key in (("columns", "data.root"), ("class_names", "data.reader")):
                there, wanted = getattr(self.table, name), state[name]
                if there != wanted:
                    odd = [item for item in there if item not in wanted] or [i for i in wanted if i not in there]
                    raise InputError(
                        f"{self.table.files} has other {name.replace('_', ' ')} than the checkpoint's {len(wanted)} "
                        f"({first_few(odd) or 'in another order'}): give data like those of its training ({key})"
                    )
        self._learnt = state

    def scaling(self) -> Scaling:
        """What is done to raw columns."""
        arrays = {name: self.learnt[name].numpy() for name in ("kept", "median", "offset", "size")}
        return Scaling(**arrays, clip=self.clip)

    def rows(self) -> tuple[Rows, Rows]:
        """Training rows and judged rows; of another table than the checkpoint's all that it has not seen are judged.

        Raises:
            InputError: the split is not the checkpoint's, so rows that it was trained on would judge it; or no row
                is left to train on or to judge by.
        """
        assert self.table is not None
        if self.learnt["checksum"] != self._checksum(self.table):
            seen = np.isin(row_digests(self.table.features), self.learnt["trained_rows"].numpy())
            if seen.all():
                raise InputError(f"{self.table.files}: the checkpoint was trained on all of its rows: give others")
            if seen.any():
                warnings.warn(
                    f"{self.table.files}: {int(seen.sum())} of {len(seen)} rows were trained on and are left out",
                    stacklevel=2,
                )
            judged = np.flatnonzero(~seen & self.table.labelled)
            if not len(judged):
                raise InputError(f"{self.table.files}: no row that the checkpoint was not trained on has a class")
            return judged[:0], judged
        train, test = self.split(self.table, self.seed, self.fold)
        if not np.array_equal(train, self.learnt["trained"].numpy()):
            raise InputError(
                f"{self.table.files}: data.split, data.fold={self.fold} and seed={self.seed} are not those of the "
                "checkpoint's run, which was trained on rows that they would judge it by: leave them out"
            )
        for name, part in (("trained on", train), ("judged", test)):
            if not len(part):
                raise InputError(f"{self.table.files}: the split leaves no row that is {name}")
        return train, test

    @staticmethod
    def _checksum(table: Table) -> str:
        features = table.features
        parts = (features.indptr, features.indices, features.data) if sparse.issparse(features) else (features,)
        digest = hashlib.blake2b(digest_size=8)
        for part in parts:
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    # -- loaders ------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        """One batch: all training rows, in every process alike."""
        assert self.table is not None
        train, _ = self.rows()
        if not len(train):
            raise InputError(
                f"{self.table.files} holds other rows than the checkpoint was trained on: go on with those, or start a "
                "new run"
            )
        data = self.training_rows(train)
        return DataLoader(data, batch_size=None, sampler=[list(range(len(data)))], collate_fn=None)

    def training_rows(self, rows: Rows) -> TableRows:
        """The data set of the training rows; a kind of table that hides something from training overrides it."""
        assert self.table is not None
        return TableRows(self.table, rows, self.scaling())

    def test_dataloader(self) -> DataLoader:
        assert self.table is not None
        return self._in_batches(TableRows(self.table, self.rows()[1], self.scaling()))

    def predict_dataloader(self) -> DataLoader:
        """Rows of `predict_root`, with the columns of training.

        Raises:
            InputError: see `read_features` and `without_invalid`.
        """
        assert self.predict_root is not None
        # The file to predict for is divided as the training file was.
        chosen = (separator, SEPARATOR_KEY) if (separator := getattr(self.reader, "separator", None)) else ()
        table = read_features(self.predict_root, self.learnt["columns"], self.identifier, *chosen)
        table = self.without_invalid(table, training=False)
        return self._in_batches(TableRows(table, np.arange(len(table)), self.scaling()))

    def _in_batches(self, data: TableRows) -> DataLoader:
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        if len(data) < processes:
            raise InputError(f"{len(data)} rows cannot be judged by {processes} processes: use fewer processes")
        return DataLoader(data, batch_size=None, sampler=PlacesInBatches(len(data), self.batch_size, rank, processes))


class PlacesInBatches:
    """Lists of places: every row once over all processes, in order."""

    def __init__(self, size: int, batch_size: int, rank: int, world_size: int) -> None:
        places = list(range(rank, size, world_size))
        self.batches = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
