"""Acute toxicity to fish as tables: the files of EPA's T.E.S.T., CSVs of descriptors with text in cells, UCI's set."""

import csv
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.csv_rows import CSVRows, Separator, is_number, read_csv_rows
from datamodules.generated_folder import write_generated
from datamodules.table_files import SEPARATOR_KEY, CSVReader, Table, column, finite_numbers, numbers
from datamodules.table_splits import Folds, Holdout, OfficialParts, Rows
from runs.errors import InputError, did_you_mean, first_few

TARGET = "-log10(LC50, mol/L)"
PARTS = {"train": "LC50_training_set-2d.csv", "test": "LC50_prediction_set-2d.csv"}
IDENTIFIER, TOXICITY = "CAS", "Tox"
UCI_FILE = "qsar_fish_toxicity.csv"
UCI_COLUMNS = ["CIC0", "SM1_Dz(Z)", "GATS1i", "NdsCH", "NdssC", "MLOGP"]
# Raise when the same parameters would give other files.
_GENERATOR_VERSION = 1


class TESTReader:
    """T.E.S.T.'s layout: a training and a prediction file with ``CAS``, ``Tox`` and the same descriptors."""

    instructions = (
        f"it must be the folder of the LC50 set of EPA's T.E.S.T., with {PARTS['train']} and {PARTS['test']} "
        f"(columns {IDENTIFIER}, {TOXICITY}, descriptors)"
    )

    def read(self, root: Path) -> Table:
        """Both files, training rows first.

        Raises:
            InputError: a file is missing or broken, their columns differ, a target is no finite number, or a
                chemical is there twice.
        """
        files = {part: root / name for part, name in PARTS.items()}
        absent = [path.name for path in files.values() if not path.is_file()]
        if absent:
            raise InputError(f"data.root={root} has no {first_few(absent)}: {self.instructions}")
        train, test = (read_csv_rows(path) for path in files.values())
        _check_same_columns(train, test)
        names = [name for name in train.columns if name not in (IDENTIFIER, TOXICITY)]
        identifiers, features, targets, text = [], [], [], {}
        for rows in (train, test):
            for name in (IDENTIFIER, TOXICITY):
                rows.place(name, "data.root")
            if not rows.cells:
                raise InputError(f"{rows.path} holds no row below its first line")
            values, foreign = numbers(rows, names)
            features.append(values)
            targets.append(finite_numbers(rows, TOXICITY))
            identifiers += column(rows, IDENTIFIER)
            text |= foreign
        check_once(identifiers, IDENTIFIER, f"{train.path} and {test.path.name}")
        return Table(
            features=np.concatenate(features),
            columns=names,
            files=str(root),
            target=np.concatenate(targets),
            target_name=TARGET,
            parts=np.repeat(list(PARTS), [len(part) for part in targets]),
            identifiers=identifiers,
            text=text,
        )


class DescriptorReader:
    """A CSV of one's own: a column of targets, one that names the rows, descriptors whose cells may hold text.

    Mordred writes the words of an error where it cannot compute a descriptor; `data.invalid` says what
    becomes of such rows.

    Args:
        target: column of the number that is to be predicted.
        minus_log10_lc50: whether that number is -log10(LC50, mol/L), so that predictions have the LC50 too.
        identifier: column that names the rows, such as CAS numbers or SMILES; None without.
        descriptors: text file with a descriptor's name on each line; None: all other columns are descriptors.
        left_out: columns that are none.
        separator: what stands between two cells.
    """

    instructions = "it must be a CSV file whose first line names the columns, with a chemical on each further line"

    def __init__(
        self,
        target: str,
        minus_log10_lc50: bool,
        identifier: str | None,
        descriptors: str | None,
        left_out: list[str],
        separator: Separator,
    ) -> None:
        self.target, self.identifier, self.left_out, self.separator = target, identifier, left_out, separator
        self.target_name = TARGET if minus_log10_lc50 else target
        self.descriptors = None if descriptors is None else Path(descriptors).expanduser()

    def read(self, root: Path) -> Table:
        """Reads the file.

        Raises:
            InputError: it is missing or broken, lacks a column that is named, a target is no finite number,
                or a chemical is there twice.
        """
        left_out = list(self.left_out)
        if self.descriptors is not None:
            wanted, there = self._named(), read_csv_rows(root, self.separator, SEPARATOR_KEY).columns
            absent = [name for name in wanted if name not in there]
            if absent:
                raise InputError(
                    f"{root} lacks {len(absent)} of the {len(wanted)} descriptors of {self.descriptors}: "
                    f"{first_few(absent)} ({did_you_mean(absent[0], there)})"
                )
            keep = {*wanted, self.target, self.identifier}
            left_out = [name for name in there if name not in keep]
        table = CSVReader(
            None, [], self.target, self.identifier, left_out, self.separator, missing_label="refuse"
        ).read(root)
        if table.identifiers is not None:
            check_once(table.identifiers, str(self.identifier), str(root))
        return replace(table, target_name=self.target_name)

    def _named(self) -> list[str]:
        assert self.descriptors is not None
        if not self.descriptors.is_file():
            raise InputError(
                f"data.reader.descriptors={self.descriptors} does not exist: name a text file with a descriptor on "
                "each line, or null for all columns"
            )
        return [line.strip() for line in self.descriptors.read_text().splitlines() if line.strip()]


class UCIFishReader:
    """UCI's "QSAR fish toxicity": semicolons, no line of names, six descriptors and -log10(LC50, mol/L) last."""

    instructions = f"it must be {UCI_FILE} of UCI's QSAR fish toxicity, or its folder: 7 numbers a line, semicolons"

    def read(self, root: Path) -> Table:
        """Reads the file.

        Raises:
            InputError: it is missing, a line has another number of cells, or a cell is no finite number.
        """
        path = root / UCI_FILE if root.is_dir() else root
        if not path.is_file():
            raise InputError(f"there is no file {path}: {self.instructions}")
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, cells) for number, cells in enumerate(csv.reader(file, delimiter=";"), 1) if any(cells)]
        for number, cells in lines:
            if len(cells) != len(UCI_COLUMNS) + 1:
                raise InputError(f"{path}, line {number}: {len(cells)} cells instead of 7: {self.instructions}")
            foreign = [cell for cell in cells if not is_number(cell) or not np.isfinite(float(cell))]
            if foreign:
                raise InputError(f"{path}, line {number}: '{foreign[0]}' instead of a number")
        if not lines:
            raise InputError(f"{path} is empty: {self.instructions}")
        values = np.array([cells for _, cells in lines], dtype=np.float64)
        return Table(values[:, :-1], UCI_COLUMNS, str(path), target=values[:, -1], target_name=TARGET)


@dataclass(frozen=True)
class GeneratedToxicity:
    """Generated descriptors and toxicities, written in T.E.S.T.'s layout and read back by its reader.

    y = 4 + 3 (x1 - 0.5) + 2 sin(3 x2) + x3 x4 + noise of uniform columns, and some rows in both tails, each
    more than 0.1 from the next: bins with a single row.

    Attributes:
        rows: of the body, without the tails.
        columns: descriptors.
        tails: rows in the tails.
        noise: standard deviation, log10 units.
        test_share: of the rows in the prediction file.
        seed: of the generated files, not of the run.
    """

    rows: int
    columns: int
    tails: int
    noise: float
    test_share: float
    seed: int
    instructions = "it is the folder that the generated files are written to"

    def write(self, root: Path) -> None:
        """Writes both files, unless they are there from the same parameters."""
        parameters = {"version": _GENERATOR_VERSION, **asdict(self)}
        write_generated(root, "generated.json", parameters, "generated chemicals", self._write_files)

    def read(self, root: Path) -> Table:
        """Reads them."""
        return TESTReader().read(root)

    def _write_files(self, folder: Path) -> None:
        generator = np.random.default_rng(self.seed)
        x = generator.uniform(size=(self.rows + self.tails, self.columns))
        low = self.rows + self.tails // 2
        x[self.rows : low, :4] *= 0.1  # tails lie where the body's least and greatest values are
        x[low:, :4] = 1 - 0.1 * x[low:, :4]
        x[low:, 1] -= 0.45  # the sine is largest at 0.52
        y = 4 + 3 * (x[:, 0] - 0.5) + 2 * np.sin(3 * x[:, 1]) + x[:, 2] * x[:, 3]
        y = y + generator.normal(0, self.noise, len(y))
        least, greatest = y[: self.rows].min(), y[: self.rows].max()
        steps = np.cumsum(generator.uniform(0.11, 0.3, self.tails))
        y[self.rows : low] = least - steps[: low - self.rows]
        y[low:] = greatest + steps[: len(y) - low]
        order = generator.permutation(len(y))
        cut = round(len(y) * self.test_share)
        header = ",".join([IDENTIFIER, TOXICITY, *(f"x{number + 1}" for number in range(self.columns))])
        for part, rows in (("test", order[:cut]), ("train", order[cut:])):
            lines = [
                f"generated-{row},{y[row]:.3f}," + ",".join(f"{value:.6f}" for value in x[row]) for row in sorted(rows)
            ]
            (folder / PARTS[part]).write_text("\n".join([header, *lines]) + "\n")


@dataclass(frozen=True)
class ToxicitySplit:
    """Which chemicals train and which are judged.

    Attributes:
        kind: ``official``: the parts as published; ``repeated``: a random share, another one for each seed;
            ``folds``: of the official training part (of all rows where there are no parts), whose out-of-fold
            predictions give Q2.
        test_share: of ``repeated``.
        folds: of ``folds``.
        protocol: ``honest``, or ``leaky_paper``: the judged rows train too, as in the paper.
    """

    kind: Literal["official", "repeated", "folds"]
    test_share: float
    folds: int
    protocol: Literal["honest", "leaky_paper"]

    def __call__(self, table: Table, seed: int, fold: int) -> tuple[Rows, Rows]:
        train, test = self._parts(table, seed, fold)
        return (np.union1d(train, test) if self.protocol == "leaky_paper" else train), test

    def _parts(self, table: Table, seed: int, fold: int) -> tuple[Rows, Rows]:
        if self.kind == "official":
            if table.parts is None:
                raise InputError(f"{table.files} has no official parts: set data.split.kind=repeated or folds")
            return OfficialParts()(table, seed, fold)
        if self.kind == "repeated":
            return Holdout(self.test_share, stratified=False)(table, seed, fold)
        rows = np.arange(len(table)) if table.parts is None else np.flatnonzero(table.parts == "train")
        train, test = Folds(self.folds, stratified=False)(table.take(rows), seed, fold)
        return rows[train], rows[test]


def check_once(identifiers: list[str], name: str, where: str) -> None:
    """A chemical that is there twice could be trained on and judged.

    Raises:
        InputError: naming those that are.
    """
    doubled = [word for word, times in Counter(identifiers).items() if times > 1]
    if doubled:
        raise InputError(
            f"{where}: {len(doubled)} values of {name} are there more than once ({first_few(doubled)}), and a chemical "
            "that is trained on must not be judged: keep one row of each"
        )


def _check_same_columns(train: CSVRows, test: CSVRows) -> None:
    if train.columns == test.columns:
        return
    odd = sorted({*train.columns} ^ {*test.columns})
    raise InputError(
        f"{test.path} has other columns than {train.path.name} ({first_few(odd) or 'in another order'}): both first "
        "lines must be the same"
    )
