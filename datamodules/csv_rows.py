"""Rows of a CSV file whose first line names the columns, with the line number of each for messages."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runs.errors import InputError, first_few

Separator = Literal["comma", "semicolon", "tab"]
MARKS: dict[Separator, str] = {"comma": ",", "semicolon": ";", "tab": "\t"}


@dataclass(frozen=True)
class CSVRows:
    """A CSV file as it stands there.

    Attributes:
        path: the file.
        columns: names of the first line, without surrounding blanks.
        cells: rows of as many cells, without surrounding blanks.
        lines: line number of each row.
    """

    path: Path
    columns: list[str]
    cells: list[list[str]]
    lines: list[int]

    def place(self, column: str, key: str) -> int:
        """Where a column stands.

        Args:
            column: its name.
            key: config key that names it, for the message.

        Raises:
            InputError: the file has no such column.
        """
        if column not in self.columns:
            raise InputError(f"{self.path} has no column '{column}' ({key}): it has {first_few(self.columns, 20)}")
        return self.columns.index(column)


def read_csv_rows(path: Path, separator: Separator = "comma", key: str | None = None) -> CSVRows:
    """Reads a CSV file in UTF-8; empty lines are skipped.

    Args:
        path: the file.
        separator: what stands between two cells.
        key: config key that chooses the separator, for the message; None where none does.

    Raises:
        InputError: it is missing, not UTF-8 or empty, has another separator, names a column twice or not at all,
            its first line holds numbers alone, or a row has another number of cells.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    cells, lines = [], []
    try:
        # Spreadsheets put a mark before UTF-8 that is no part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=MARKS[separator])
            columns = [name.strip() for name in next(reader, [])]
            _check_separator(path, columns, separator, key)
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(columns):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(row)} cells instead of the {len(columns)} that the "
                        "first line names"
                    )
                cells.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not written in UTF-8: save it in that encoding") from error
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    if not columns:
        raise InputError(f"{path} is empty: its first line must name the columns")
    if all(is_number(name) for name in columns):
        raise InputError(f"{path}: its first line holds numbers: put a line of column names before the rows")
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        raise InputError(f"{path} names the columns {first_few(doubled)} more than once: give each a name of its own")
    return CSVRows(path, columns, cells, lines)


def _check_separator(path: Path, columns: list[str], separator: Separator, key: str | None) -> None:
    """One column in whose name another separator stands is a line that was not divided."""
    if len(columns) != 1:
        return
    for name, mark in MARKS.items():
        if mark in columns[0]:
            way_out = f"set {key}={name}" if key else f"save it with {separator}s"
            raise InputError(f"{path} seems to be separated by {name}s and not by {separator}s: {way_out}")


def is_number(word: str) -> bool:
    """Whether Python reads a word as a number; ``nan`` and ``inf`` are."""
    try:
        float(word)
    except ValueError:
        return False
    return True
