"""A generated multi-label set, written as Mulan's ARFF and XML files and read back by their reader."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.generated_folder import write_generated
from datamodules.mulan import MulanReader
from datamodules.table_files import Table
from runs.errors import InputError

_NAME = "Generated"
# Raise when the same parameters would give other files.
_GENERATOR_VERSION = 1


@dataclass(frozen=True)
class GeneratedLabelSets:
    """Words of few label sets: each set has some words of its own among many that are mostly absent.

    Attributes:
        rows: N.
        words: d features of 0 and 1.
        labels: l.
        sets: different label vectors, drawn of those with 1 to `most_labels` labels, the numbers of labels in turn.
        most_labels: L_m.
        own_words: of each label set.
        present: probability of a row's own words.
        background: probability of all the others.
        seed: of the generated files, not of the run.
    """

    rows: int
    words: int
    labels: int
    sets: int
    most_labels: int
    own_words: int
    present: float
    background: float
    seed: int
    instructions = "it is generated"

    def __post_init__(self) -> None:
        if not 1 <= self.most_labels <= self.labels or not 1 <= self.own_words <= self.words:
            raise InputError(
                f"data.reader: most_labels={self.most_labels} must be from 1 to labels={self.labels}, and "
                f"own_words={self.own_words} from 1 to words={self.words}"
            )

    def write(self, root: Path) -> None:
        """Writes `<root>/Generated.arff` and `.xml`, unless they are there from the same parameters.

        Raises:
            InputError: the folder holds something that was not generated here.
        """
        parameters = {"version": _GENERATOR_VERSION, **asdict(self)}
        write_generated(root, "generated.json", parameters, "generated label sets", self._write_files)

    def read(self, root: Path) -> Table:
        """Reads them back."""
        return MulanReader(_NAME, nominal="one_hot", dense=False, subset_rows=None, subset_seed=0).read(root)

    def draw(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Features (N, d) and labels (N, l), of 0 and 1."""
        generator = np.random.default_rng(self.seed)
        vectors: list[tuple[int, ...]] = []
        attempts = 0
        while len(vectors) < self.sets:
            count = 1 + len(vectors) % self.most_labels
            vector = tuple(sorted(generator.choice(self.labels, count, replace=False).tolist()))
            attempts += 1
            if vector not in vectors:
                vectors.append(vector)
            elif attempts > 1000 * self.sets:
                raise InputError(f"data.reader.sets={self.sets} different label sets cannot be drawn: ask for fewer")
        label_sets = np.zeros((self.sets, self.labels), dtype=np.int64)
        own = np.zeros((self.sets, self.words), dtype=bool)
        for place, vector in enumerate(vectors):
            label_sets[place, list(vector)] = 1
            own[place, generator.choice(self.words, self.own_words, replace=False)] = True
        row_set = generator.integers(self.sets, size=self.rows)
        probability = np.where(own[row_set], self.present, self.background)
        features = (generator.uniform(size=probability.shape) < probability).astype(np.int64)
        return features, label_sets[row_set]

    def _write_files(self, folder: Path) -> None:
        features, labels = self.draw()
        names = [f"label{number}" for number in range(self.labels)]
        lines = [f"@relation {_NAME}", ""]
        lines += [f"@attribute word{number} {{0,1}}" for number in range(self.words)]
        lines += [f"@attribute {name} {{0,1}}" for name in names]
        lines += ["", "@data"]
        for row in np.hstack([features, labels]):
            lines.append("{" + ",".join(f"{place} 1" for place in np.flatnonzero(row)) + "}")
        (folder / f"{_NAME}.arff").write_text("\n".join([*lines, ""]))
        listed = "".join(f'<label name="{name}"/>' for name in reversed(names))
        (folder / f"{_NAME}.xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?>\n<labels xmlns="http://mulan.sourceforge.net/labels">{listed}</labels>\n'
        )
