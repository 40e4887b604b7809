"""UCI sets in the files they are handed round in: ARFF, MATLAB, and plain text without column names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from datamodules.arff import read_arff
from datamodules.csv_rows import is_number
from datamodules.table_files import MISSING, Table, classes_of
from runs.errors import InputError, did_you_mean, first_few


@dataclass(frozen=True)
class ARFFSet:
    """A set in an ARFF file.

    Attributes:
        file: its name in `data.root`, which may also be the file itself.
        label: attribute that holds the classes; None where the file has none.
        left_out: attributes that are no features, an identifier say.
        classes: names of the classes by the words of the file; words with one name become one class. None: the
            words as they are.
        nominal: attributes of more than two words: a column of 0 and 1 for each word, or one column: of the
            words' places in the domain (``number``) or of the numbers that they are (``value``).
        header_notes: whether the header holds lines that lost their comment sign.
        blanks: whether cells are divided by blanks instead of commas.
    """

    file: str
    label: str | None
    left_out: list[str]
    classes: dict[str, str] | None
    nominal: Literal["one_hot", "number", "value"]
    header_notes: bool
    blanks: bool

    @property
    def instructions(self) -> str:
        return f"give the folder that holds {self.file}, or the file"

    def read(self, root: Path) -> Table:
        """Reads the file.

        Raises:
            InputError: it is missing or broken, has no such attribute, or no feature is left.
        """
        path = find_file(root, self.file)
        arff = read_arff(path, header_notes=self.header_notes, blanks=self.blanks)
        apart = {arff.place(name, "data.reader.left_out") for name in self.left_out}
        label, class_names = None, []
        if self.label is not None:
            place = arff.place(self.label, "data.reader.label")
            apart.add(place)
            label, class_names = named_classes(arff.words(place), self.classes, f"{path}, attribute {self.label}")
        places = [place for place in range(len(arff.attributes)) if place not in apart]
        if not places:
            raise InputError(f"{path} has no attribute left for features beside {first_few(self.left_out)}")
        features, columns = arff.features(places, self.nominal)
        if sparse.issparse(features):
            features = features.toarray()
        return Table(features, columns, str(path), label=label, class_names=class_names)


@dataclass(frozen=True)
class MatSet:
    """A set in a MATLAB file (before version 7.3), which names no columns.

    Attributes:
        file: its name in `data.root`, which may also be the file itself.
        features: variable of the numbers, n x d.
        label: variable of the classes, n x 1 or 1 x n; None where the file has none.
        classes: see `ARFFSet`.
    """

    file: str
    features: str
    label: str | None
    classes: dict[str, str] | None

    @property
    def instructions(self) -> str:
        return f"give the folder that holds {self.file}, or the file"

    def read(self, root: Path) -> Table:
        """Reads the file.

        Raises:
            InputError: it is missing or no such file, lacks a variable, or a variable has not the shape it needs.
        """
        path = find_file(root, self.file)
        try:
            variables = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
        except (MatReadError, NotImplementedError, ValueError, TypeError, OSError) as error:
            raise InputError(f"{path} cannot be read as a MATLAB file before version 7.3: {error}") from error
        values = self._numbers(path, variables, self.features, "data.reader.features")
        if values.ndim != 2 or not values.size:
            raise InputError(f"{path}: {self.features} has shape {values.shape} instead of rows x columns")
        values[~np.isfinite(values)] = np.nan
        label, class_names = None, []
        if self.label is not None:
            codes = self._numbers(path, variables, self.label, "data.reader.label").ravel()
            if len(codes) != len(values):
                raise InputError(f"{path}: {self.label} has {len(codes)} classes for {len(values)} rows")
            words = [f"{code:.17g}" for code in codes]
            label, class_names = named_classes(words, self.classes, f"{path}, variable {self.label}")
        columns = [f"x{place}" for place in range(1, values.shape[1] + 1)]
        return Table(values, columns, str(path), label=label, class_names=class_names)

    @staticmethod
    def _numbers(path: Path, variables: Mapping[str, NDArray], name: str, key: str) -> NDArray[np.float64]:
        if name not in variables:
            raise InputError(f"{path} has no variable '{name}' ({key}): {did_you_mean(name, variables)}")
        value = variables[name]
        value = value.toarray() if sparse.issparse(value) else value
        if value.dtype.kind not in "biuf":
            raise InputError(f"{path}: {name} holds {value.dtype} instead of numbers")
        return value.astype(np.float64)


@dataclass(frozen=True)
class TextSet:
    """A set in UCI's own form: a row a line, no line of names.

    Attributes:
        file: its name in `data.root`, which may also be the file itself.
        separator: what stands between cells.
        columns: names of all columns, in order.
        label: the one of them that holds the classes; None where the file has none.
        left_out: those that are no features.
        classes: see `ARFFSet`.
    """

    file: str
    separator: Literal["comma", "blank"]
    columns: list[str]
    label: str | None
    left_out: list[str]
    classes: dict[str, str] | None

    def __post_init__(self) -> None:
        for key, names in (("label", [self.label] if self.label else []), ("left_out", self.left_out)):
            for name in names:
                if name not in self.columns:
                    raise InputError(f"data.reader.{key}={name} is no column: {did_you_mean(name, self.columns)}")

    @property
    def instructions(self) -> str:
        return f"give the folder that holds {self.file}, or the file"

    def read(self, root: Path) -> Table:
        """Reads the file; unknown values and text are NaN.

        Raises:
            InputError: it is missing, empty or not UTF-8, a row has another number of cells, or no feature is left.
        """
        path = find_file(root, self.file)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not written in UTF-8: save it in that encoding") from error
        rows = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            cells = [cell.strip() for cell in (line.split(",") if self.separator == "comma" else line.split())]
            if len(cells) != len(self.columns):
                raise InputError(
                    f"{path}, line {number}: {len(cells)} cells instead of the {len(self.columns)} columns of the set"
                )
            rows.append(cells)
        if not rows:
            raise InputError(f"{path} holds no row")
        words = dict(zip(self.columns, zip(*rows, strict=True), strict=True))
        names = [name for name in self.columns if name != self.label and name not in self.left_out]
        if not names:
            raise InputError(f"{path} has no column left for features beside {first_few(self.left_out)}")
        text: dict[str, str] = {}
        features = np.empty((len(rows), len(names)))
        for place, name in enumerate(names):
            foreign = [word for word in words[name] if not is_number(word) and word.lower() not in MISSING]
            if foreign:
                text[name] = foreign[0]
            features[:, place] = [float(word) if is_number(word) else np.nan for word in words[name]]
        features[~np.isfinite(features)] = np.nan
        label, class_names = None, []
        if self.label is not None:
            label, class_names = named_classes(list(words[self.label]), self.classes, f"{path}, column {self.label}")
        return Table(features, names, str(path), label=label, class_names=class_names, text=text)


def find_file(root: Path, file: str) -> Path:
    """`root` itself where it is a file, the file of that name in it otherwise.

    Raises:
        InputError: the folder has no such file.
    """
    if root.is_file():
        return root
    if not (root / file).is_file():
        there = sorted(path.name for path in root.iterdir())
        raise InputError(f"data.root={root} holds no {file} (data.reader.file): {did_you_mean(file, there)}")
    return root / file


def named_classes(words: list[str], names: Mapping[str, str] | None, where: str) -> tuple[NDArray[np.int64], list[str]]:
    """Classes (n,) from 0 and their names, in the order of ``names``, or of the words where there are none.

    Raises:
        InputError: a row has no class, or one that ``names`` does not have.
    """
    label, class_names = classes_of(words, where)
    if names is None:
        return label, class_names
    strange = [word for word in class_names if word not in names]
    if strange:
        raise InputError(
            f"{where}: {first_few(strange)} is none of the classes {first_few(list(names))} (data.reader.classes)"
        )
    present = {names[word] for word in class_names}
    order = [name for name in dict.fromkeys(names.values()) if name in present]
    return np.array([order.index(names[word]) for word in class_names], dtype=np.int64)[label], order
