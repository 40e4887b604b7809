"""Two generated point sets with known outliers, written as a CSV table and read back like a user's own."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.generated_folder import write_generated
from datamodules.table_files import CSVReader, Table
from runs.errors import InputError

TABLE = "points.csv"
OUTLIER = "noise"  # the class of the outliers
TRIES = 1000  # for each noise point to find a place
# Raise when the same parameters would give other files.
_GENERATOR_VERSION = 1

Points = NDArray[np.float64]


@dataclass(frozen=True)
class GeneratedOutliers:
    """What is generated; equal values give equal files.

    ``bridge``: a half circle and three round clusters, with noise between them that links them to one another, like the
    paper's DS3. ``density``: a dense and a loose round cluster, each with a ring of outliers around it that
    is far off by the measure of its own cluster alone.

    Attributes:
        shape: which set.
        n_noise: outliers; of ``density`` half of them around each cluster.
        seed: of the generated files.
    """

    shape: Literal["bridge", "density"]
    n_noise: int
    seed: int

    instructions = "it is generated"

    def __post_init__(self) -> None:
        if self.n_noise < 0:
            raise InputError(f"data.reader.n_noise={self.n_noise} must be 0 or more")

    def write(self, root: Path) -> None:
        """Writes `<root>/points.csv`, unless it is there from the same parameters.

        Raises:
            InputError: the folder holds something that was not generated here.
        """
        parameters = {"version": _GENERATOR_VERSION, **asdict(self)}
        write_generated(root, "points.json", parameters, "generated points", self._write_files)

    def read(self, root: Path) -> Table:
        """Reads it back; the outliers are the class ``noise``."""
        reader = CSVReader(
            "kind", labels=[], target=None, identifier=None, left_out=[], separator="comma", missing_label="refuse"
        )
        return reader.read(root / TABLE)

    def draw(self) -> dict[str, Points]:
        """Points (n, 2) of each class, the outliers last."""
        generator = np.random.default_rng(self.seed)
        return bridge(generator, self.n_noise) if self.shape == "bridge" else density(generator, self.n_noise)

    def _write_files(self, folder: Path) -> None:
        rows = [f"{x!r},{y!r},{kind}" for kind, points in self.draw().items() for x, y in points.tolist()]
        (folder / TABLE).write_text("\n".join(["x,y,kind", *rows, ""]))


def bridge(generator: np.random.Generator, n_noise: int) -> dict[str, Points]:
    """A half circle of radius 10 (600 points, deviation 0.35), three clusters of 250 points (deviation 0.6), noise.

    Noise is uniform in the box of all these, wider by 2 on each side, and at least 1 from each of them.

    Raises:
        InputError: so much noise finds no place.
    """
    angle = generator.uniform(0, np.pi, 600)
    found = {"arc": 10 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + generator.normal(0, 0.35, (600, 2))}
    for name, centre in (("left", (-4, 1)), ("middle", (0, 3)), ("right", (4, 1))):
        found[name] = np.array(centre) + generator.normal(0, 0.6, (250, 2))
    inliers = np.concatenate(list(found.values()))
    low, high = inliers.min(axis=0) - 2, inliers.max(axis=0) + 2
    noise: list[Points] = []
    for _ in range(TRIES * (n_noise + 1)):
        if len(noise) == n_noise:
            break
        point = generator.uniform(low, high)
        if np.linalg.norm(inliers - point, axis=1).min() >= 1:
            noise.append(point)
    if len(noise) < n_noise:
        raise InputError(f"data.reader.n_noise={n_noise} points find no place beside the others: ask for fewer")
    return {**found, OUTLIER: np.array(noise).reshape(-1, 2)}


def density(generator: np.random.Generator, n_noise: int) -> dict[str, Points]:
    """400 points of deviation 0.15 at (0, 0) and 400 of 1.5 at (8, 0); rings at radius 0.9 to 1.8 and 6 to 9."""
    found = {
        "dense": generator.normal(0, 0.15, (400, 2)),
        "loose": np.array([8.0, 0.0]) + generator.normal(0, 1.5, (400, 2)),
    }
    rings = []
    for centre, least, most, n in (
        ((0.0, 0.0), 0.9, 1.8, n_noise - n_noise // 2),
        ((8.0, 0.0), 6.0, 9.0, n_noise // 2),
    ):
        angle, radius = generator.uniform(0, 2 * np.pi, n), generator.uniform(least, most, n)
        rings.append(np.array(centre) + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    return {**found, OUTLIER: np.concatenate(rings)}
