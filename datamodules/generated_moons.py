"""Two half moons, written as a CSV table and read back like a user's own."""

from dataclasses import asdict, dataclass
from pathlib import Path

from sklearn.datasets import make_moons

from datamodules.generated_folder import write_generated
from datamodules.table_files import CSVReader, Table
from runs.errors import InputError

TABLE = "moons.csv"
# Raise when the same parameters would give other files.
_GENERATOR_VERSION = 1


@dataclass(frozen=True)
class GeneratedMoons:
    """What is generated; equal values give equal files.

    Attributes:
        n: points in all.
        noise: standard deviation around the half circles of radius 1.
        seed: of the points.
    """

    n: int
    noise: float
    seed: int

    instructions = "it is generated"

    def __post_init__(self) -> None:
        if self.n < 4:
            raise InputError(f"data.reader.n={self.n} must be 4 points or more")
        if self.noise < 0:
            raise InputError(f"data.reader.noise={self.noise} must be 0 or more")

    def write(self, root: Path) -> None:
        """Writes `<root>/moons.csv`, unless it is there from the same parameters.

        Raises:
            InputError: the folder holds something that was not generated here.
        """
        write_generated(
            root, "moons.json", {"version": _GENERATOR_VERSION, **asdict(self)}, "generated points", self._files
        )

    def read(self, root: Path) -> Table:
        """Reads it back."""
        reader = CSVReader(
            "moon", labels=[], target=None, identifier=None, left_out=[], separator="comma", missing_label="refuse"
        )
        return reader.read(root / TABLE)

    def _files(self, folder: Path) -> None:
        points, moons = make_moons(self.n, noise=self.noise, random_state=self.seed)
        rows = [
            f"{x!r},{y!r},{('lower', 'upper')[1 - moon]}"
            for (x, y), moon in zip(points.tolist(), moons.tolist(), strict=True)
        ]
        (folder / TABLE).write_text("\n".join(["x,y,moon", *rows, ""]))
