"""Tables made of others: a class of which few rows are kept, and a set that was published in two files."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datamodules.table_files import Table, TableReader
from runs.errors import InputError, did_you_mean


@dataclass(frozen=True)
class RareClass:
    """Another reader's table with a few rows alone of one class, which so become outliers.

    Attributes:
        reader: of all rows.
        rare: name of the class.
        rows: how many of its rows are kept, drawn by the seed.
        seed: of the draw.
    """

    reader: TableReader
    rare: str
    rows: int
    seed: int

    @property
    def instructions(self) -> str:
        return self.reader.instructions

    def read(self, root: Path) -> Table:
        """Reads the other's files.

        Raises:
            InputError: there is no such class, or it has fewer rows.
        """
        table = self.reader.read(root)
        if table.label is None or self.rare not in table.class_names:
            raise InputError(
                f"{table.files} has no class '{self.rare}' (data.reader.rare): "
                f"{did_you_mean(self.rare, table.class_names)}"
            )
        rare = np.flatnonzero(table.label == table.class_names.index(self.rare))
        if not 1 <= self.rows <= len(rare):
            raise InputError(
                f"data.reader.rows={self.rows} must be from 1 to {len(rare)}, the rows of {self.rare} in {table.files}"
            )
        chosen = np.random.default_rng(self.seed).choice(rare, self.rows, replace=False)
        return table.take(np.sort(np.concatenate([np.setdiff1d(np.arange(len(table)), rare), chosen])))


@dataclass(frozen=True)
class JoinedFiles:
    """The rows of several readers, one below the other, of one and the same layout.

    Attributes:
        readers: of the parts, in order.
    """

    readers: list[TableReader]

    @property
    def instructions(self) -> str:
        return "; ".join(reader.instructions for reader in self.readers)

    def read(self, root: Path) -> Table:
        """Reads all parts.

        Raises:
            InputError: they differ in their columns or classes.
        """
        first, *others = (reader.read(root) for reader in self.readers)
        for table in others:
            for what in ("columns", "class_names"):
                if getattr(table, what) != getattr(first, what):
                    raise InputError(f"{table.files} has other {what.replace('_', ' ')} than {first.files}")
        tables = [first, *others]
        text: dict[str, str] = {}
        for table in tables:
            text |= table.text
        return replace(
            first,
            features=np.concatenate([table.features for table in tables]),
            files=" and ".join(table.files for table in tables),
            label=None if first.label is None else np.concatenate([table.label for table in tables]),
            text=text,
        )
