"""Generated point sets in the plane, written as a CSV table and read back like any other: moons, circles, chains."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.generated_folder import write_generated
from datamodules.point_files import Points, TableReader
from runs.errors import InputError

TABLE = "points.csv"
# Raise when the same parameters would give other files.
_GENERATOR_VERSION = 1


@dataclass(frozen=True)
class GeneratedPoints:
    """What is generated; equal values give equal files.

    ``two_moons`` and ``two_circles`` are the sets of Fig. 1. ``chains`` are ``classes`` wavy lines one
    above the other, some of whose points are bridges: they lie between two neighbouring chains and
    belong to the nearer one.

    Attributes:
        shape: which set.
        classes: chains; 2 for the other two.
        n: points in all.
        noise: standard deviation of the points around their curve, whose size is about 1.
        bridges: share of the points of ``chains`` that are bridges.
        gap: distance between neighbouring chains.
        seed: of the generated files, not of the run.
    """

    shape: Literal["two_moons", "two_circles", "chains"]
    classes: int
    n: int
    noise: float
    bridges: float
    gap: float
    seed: int

    def read(self, root: str | None) -> Points:
        """Writes `<root>/points.csv`, unless it is there from the same parameters, and reads it.

        Raises:
            InputError: there is no root, or it holds something that was not generated here.
        """
        if root is None:
            raise InputError("data.root is not set: give the folder for the generated points")
        parameters = {"version": _GENERATOR_VERSION, **asdict(self)}
        write_generated(Path(root), "points.json", parameters, "generated points", self._write_files)
        return TableReader(label="label").read(str(Path(root) / TABLE))

    def _write_files(self, folder: Path) -> None:
        points, labels = self.points()
        rows = [f"{x!r},{y!r},{label}" for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True)]
        (folder / TABLE).write_text("\n".join(["x,y,label", *rows, ""]))

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Coordinates (n, 2) and classes (n,), class after class."""
        generator = np.random.default_rng(self.seed)
        labels = np.sort(np.arange(self.n) % self.classes)
        along = generator.uniform(0, 1, self.n)
        if self.shape == "chains":
            x = 4 * along
            y = self.gap * labels + 0.3 * np.sin(3 * x)
            bridge = generator.uniform(0, 1, self.n) < self.bridges
            side = np.where(
                labels == 0, 1.0, np.where(labels == self.classes - 1, -1.0, generator.choice([-1.0, 1.0], self.n))
            )
            y = y + bridge * side * self.gap * generator.uniform(0, 0.5, self.n)
        elif self.shape == "two_moons":
            angle, second = np.pi * along, labels == 1
            x = np.where(second, 1 - np.cos(angle), np.cos(angle))
            y = np.where(second, 0.5 - np.sin(angle), np.sin(angle))
        else:
            radius = np.where(labels == 1, 0.5, 1.0)
            x, y = radius * np.cos(2 * np.pi * along), radius * np.sin(2 * np.pi * along)
        return np.column_stack([x, y]) + generator.normal(0, self.noise, (self.n, 2)), labels
