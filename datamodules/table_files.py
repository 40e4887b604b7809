"""Tables of numbers with what is to be told from them, and the reader of a user's own CSV file."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from datamodules.csv_rows import CSVRows, Separator, is_number, read_csv_rows
from runs.errors import InputError, did_you_mean, first_few

_log = logging.getLogger("reprise")  # what is said there reaches the terminal
MISSING = ("", "?", "na", "n/a", "nan", "null", "none")  # words for an unknown value, in small letters


@dataclass(frozen=True)
class Table:
    """n rows of d numbers.

    Attributes:
        features: (n, d) float64, raw, or a sparse array of them; NaN where a value is unknown or is text.
        columns: d names.
        files: where the rows come from, for messages.
        label: classes, (n,) int64 from 0, or (n, L) of 0 and 1 where a row may have several; -1 in rows whose
            class is unknown; None without.
        class_names: position is the class.
        target: (n,) float64 to be regressed, in the unit of the file; None without.
        target_name: what it is, with its unit.
        parts: official part of each row, ``train`` or ``test``; None where the data set has none.
        identifiers: a word that names each row; None where there is none.
        text: samples of the text found in columns of numbers, by column.
        all_different: columns of text without a number, no two words of which are equal: they may name the rows.
    """

    features: NDArray[np.float64] | sparse.csr_array
    columns: list[str]
    files: str
    label: NDArray[np.int64] | None = None
    class_names: list[str] = field(default_factory=list)
    target: NDArray[np.float64] | None = None
    target_name: str = ""
    parts: NDArray[np.str_] | None = None
    identifiers: list[str] | None = None
    text: dict[str, str] = field(default_factory=dict)
    all_different: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Rows whose class is known, (n,); all, where there are no classes."""
        if self.label is None:
            return np.ones(len(self), dtype=bool)
        return self.label >= 0 if self.label.ndim == 1 else (self.label >= 0).all(axis=1)

    def take(self, rows: NDArray[np.int64]) -> "Table":
        """Some of the rows."""
        arrays = {name: getattr(self, name) for name in ("features", "label", "target", "parts")}
        taken = {name: None if value is None else value[rows] for name, value in arrays.items()}
        names = None if self.identifiers is None else [self.identifiers[row] for row in rows]
        return replace(self, **taken, identifiers=names)


class TableReader(Protocol):
    """An on-disk layout of a table with its targets."""

    instructions: str  # where to get the data and what the file or folder must look like

    def read(self, root: Path) -> Table:
        """All rows; raises InputError where files are missing or broken."""
        ...


@runtime_checkable
class WritesFiles(Protocol):
    """A reader of a generated data set, which writes it first."""

    def write(self, root: Path) -> None:
        """Lets `root` hold the files, unless it does; raises InputError where it holds something else."""
        ...


SEPARATOR_KEY = "data.reader.separator"


class CSVReader:
    """A table of one's own: a CSV file with a line of column names; `data.root` is the file.

    Args:
        label: column of the classes, or None.
        labels: columns of 0 and 1, where a row may have several classes; empty without.
        target: column to be regressed, or None.
        identifier: column that names the rows, or None.
        left_out: columns that are none of these and no features.
        separator: what stands between two cells.
        missing_label: rows without a class: ``refuse`` them, or ``keep`` them with label -1, for methods that learn
            from unlabelled rows too.
    """

    instructions = "it must be a CSV file whose first line names the columns"

    def __init__(
        self,
        label: str | None,
        labels: list[str],
        target: str | None,
        identifier: str | None,
        left_out: list[str],
        separator: Separator,
        missing_label: Literal["refuse", "keep"],
    ) -> None:
        self.names_what_is_told = label is not None or bool(labels) or target is not None
        if sum((label is not None, bool(labels), target is not None)) > 1:
            raise InputError("data.reader: give one of label, labels and target, the column that is to be predicted")
        self.label, self.labels, self.target = label, labels, target
        self.identifier, self.left_out = identifier, left_out
        self.separator: Separator = separator
        self.keep_unlabelled = missing_label == "keep"

    def read(self, root: Path) -> Table:
        """Reads the file, and says which columns are features: a class column that was forgotten is one of them.

        Raises:
            InputError: it is missing or broken, a named column is not there, no row or no feature is left,
                or a class or target cell is empty or no number.
        """
        rows = read_csv_rows(root, self.separator, SEPARATOR_KEY)
        apart = [name for name in (self.label, *self.labels, self.target, self.identifier, *self.left_out) if name]
        for name in apart:
            rows.place(name, "data.reader")
        names = [name for name in rows.columns if name not in apart]
        if not names:
            raise InputError(f"{root} has no column left for features beside {first_few(apart)}")
        if not rows.cells:
            raise InputError(f"{root} holds no row below its first line")
        features, text = numbers(rows, names)
        label, class_names = None, []
        if self.label is not None:
            words = column(rows, self.label)
            label, class_names = classes_of(words, f"{root}, column {self.label}", self.keep_unlabelled)
        if self.labels:
            label, class_names = self._several(rows), list(self.labels)
        no_number = [name for name in text if np.isnan(features[:, names.index(name)]).all()]
        table = Table(
            features=features,
            columns=names,
            files=str(root),
            label=label,
            class_names=class_names,
            target=None if self.target is None else finite_numbers(rows, self.target),
            target_name=self.target or "",
            identifiers=None if self.identifier is None else column(rows, self.identifier),
            text=text,
            all_different=[name for name in no_number if len(set(column(rows, name))) == len(rows.cells) > 1],
        )
        _log.info(self._columns_in_words(table))
        return table

    def _several(self, rows: CSVRows) -> NDArray[np.int64]:
        words = np.array([column(rows, name) for name in self.labels], dtype=object).T
        values = np.array([[float(word) if is_number(word) else np.nan for word in row] for row in words])
        without = np.array([all(word.lower() in MISSING for word in row) for row in words]) & self.keep_unlabelled
        wrong = np.argwhere((values != 0) & (values != 1) & ~without[:, None])
        if len(wrong):
            row, place = wrong[0]
            raise InputError(
                f"{rows.path}, line {rows.lines[row]}: {self.labels[place]} is '{words[row, place]}' instead of 0 or 1"
            )
        if without.all():
            raise InputError(f"{rows.path}: no row has a 0 or 1 in {first_few(self.labels)}: some labels must be known")
        return np.where(without[:, None], -1, values).astype(np.int64)

    def _columns_in_words(self, table: Table) -> str:
        """One line: what each column is taken for."""
        said = [f"features: {first_few(table.columns, 8)} ({len(table.columns)})"]
        without = int((~table.labelled).sum())
        unlabelled = f" ({without} of {len(table)} rows have none)" if without else ""
        for what, names in (
            ("label", [self.label] if self.label else []),
            ("labels", self.labels),
            ("target", [self.target] if self.target else []),
            ("names", [self.identifier] if self.identifier else []),
            ("left out", self.left_out),
        ):
            if names:
                said.append(f"{what}: {first_few(names, 8)}{unlabelled if what.startswith('label') else ''}")
        return "; ".join(said)


def read_features(
    path: Path, columns: list[str], identifier: str | None, separator: Separator = "comma", key: str | None = None
) -> Table:
    """Rows of a CSV file to predict for: the columns that a method was trained on, found by their names.

    Args:
        path: the file; it may have other columns too.
        columns: names of the features, in the order of training.
        identifier: column that names the rows, where the file has it.
        separator: what stands between two cells.
        key: see `read_csv_rows`.

    Raises:
        InputError: a feature is missing, or the file is broken or holds no row.
    """
    rows = read_csv_rows(path, separator, key)
    absent = [name for name in columns if name not in rows.columns]
    if absent:
        raise InputError(
            f"{path} lacks {len(absent)} of the {len(columns)} columns that were trained on: {first_few(absent)} "
            f"({did_you_mean(absent[0], rows.columns)})"
        )
    if not rows.cells:
        raise InputError(f"{path} holds no row below its first line")
    features, text = numbers(rows, columns)
    names = column(rows, identifier) if identifier in rows.columns else None
    return Table(features, list(columns), str(path), identifiers=names, text=text)


def column(rows: CSVRows, name: str) -> list[str]:
    """The words of one column."""
    place = rows.columns.index(name)
    return [cells[place] for cells in rows.cells]


def numbers(rows: CSVRows, names: list[str]) -> tuple[NDArray[np.float64], dict[str, str]]:
    """Columns as numbers (n, d), NaN for unknown and infinite values and for text; a sample of the text by column."""
    features, text = np.empty((len(rows.cells), len(names))), {}
    for place, name in enumerate(names):
        words = column(rows, name)
        try:
            features[:, place] = words
        except ValueError:
            foreign = [word for word in words if not is_number(word) and word.lower() not in MISSING]
            if foreign:
                text[name] = foreign[0]
            features[:, place] = [float(word) if is_number(word) else np.nan for word in words]
    features[~np.isfinite(features)] = np.nan
    return features, text


def finite_numbers(rows: CSVRows, name: str) -> NDArray[np.float64]:
    """One column as numbers, (n,).

    Raises:
        InputError: naming the line of the first cell that is none, or is infinite.
    """
    values = np.empty(len(rows.cells))
    for place, (word, line) in enumerate(zip(column(rows, name), rows.lines, strict=True)):
        values[place] = float(word) if is_number(word) else np.nan
        if not np.isfinite(values[place]):
            raise InputError(f"{rows.path}, line {line}: {name} is '{word}' instead of a number")
    return values


def classes_of(words: list[str], where: str, keep_unlabelled: bool = False) -> tuple[NDArray[np.int64], list[str]]:
    """Classes from 0 in the order of their names, numbers by value: (n,) int64 and the names.

    Args:
        words: of the rows.
        where: they stand, for messages.
        keep_unlabelled: whether a row may have none, which becomes -1.

    Raises:
        InputError: a row has none and must have one, or no row has one.
    """
    empty = [place + 1 for place, word in enumerate(words) if word.lower() in MISSING]
    if words and len(empty) == len(words):
        raise InputError(f"{where}: none of the {len(words)} rows has a class: some must be known")
    if empty and not keep_unlabelled:
        raise InputError(
            f"{where}: {len(empty)} rows have no class (row {first_few(empty)}, counted from 1): complete them, or "
            "leave these rows out of the file"
        )
    known = {word for word in words if word.lower() not in MISSING}
    names = sorted(known, key=float if all(is_number(word) for word in known) else str)
    number = {name: place for place, name in enumerate(names)}
    return np.array([number.get(word, -1) for word in words], dtype=np.int64), names
