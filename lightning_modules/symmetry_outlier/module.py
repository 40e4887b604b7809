"""Symmetry and distance ratio on one page: neighbours, two ratios, their difference, a cut (Algorithm 1)."""

from collections.abc import Mapping
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_modules.symmetry_outlier.clustering import Clustering
from lightning_modules.symmetry_outlier.degree import distance_ratio, normalise, symmetry_ratio, upper_bound
from lightning_modules.symmetry_outlier.denoising import DenoisedClustering
from lightning_modules.symmetry_outlier.figures import ratio_figure
from lightning_modules.symmetry_outlier.search import Method, Search, search_of
from runs.errors import InputError


class SymmetryOutlierModule(DenoisedClustering):
    """The outlier degree O = NORM(R_s - R_d), and O > Q3 + r IQR; then see `DenoisedClustering`.

    A point is an outlier where the mirror images of its neighbours meet no other point (R_s near 1) and its
    neighbours lie closer together than it lies to them (R_d near 0). Each stage is one training step, so
    a checkpoint follows each.

    Args:
        k: neighbours of a point, itself not among them.
        r, threshold, clustering, outlier_classes: see `DenoisedClustering`; the cut by quartiles is the own one.
        score: ``difference``, the method; ``symmetry``: R_s alone; ``distance``: -R_d alone.
        rounds: 1 is the paper; more find outliers again among the rows that the rounds before have kept.
        search: how neighbours are found.
        exclude_self: in prediction, whether a row whose numbers are those of a training row is that row, wherever
            it stands in the file, and so no neighbour of its own.
    """

    stage: Tensor  # the stages that this round has behind it
    round: Tensor  # the rounds before this one
    rows: Tensor  # (m,) int64, the training rows of this round
    neighbours: Tensor  # (m, k) int64, places among the rows
    distances: Tensor  # (m, k)
    symmetry: Tensor  # (n,) R_s
    distance: Tensor  # (n,) R_d
    span: Tensor  # (2,), what becomes 0 and 1
    flagged_in: Tensor  # (n,) int64, the round that flagged a row, from 1; 0: none did

    def __init__(
        self,
        k: int,
        r: float,
        threshold: Literal["iqr", "native"],
        score: Literal["difference", "symmetry", "distance"],
        rounds: int,
        search: Method,
        exclude_self: bool,
        clustering: Clustering,
        outlier_classes: list[str],
    ) -> None:
        super().__init__(r, threshold, clustering, outlier_classes)
        for name, value in (("k", k), ("rounds", rounds)):
            if value < 1:
                raise InputError(f"model.{name}={value} must be 1 or more")
        self.k, self.score, self.rounds, self.search, self.exclude_self = k, score, rounds, search, exclude_self
        for name, kind, axes in (
            ("rows", torch.int64, 1),
            ("neighbours", torch.int64, 2),
            ("distances", torch.float64, 2),
            ("symmetry", torch.float64, 1),
            ("distance", torch.float64, 1),
            ("span", torch.float64, 1),
            ("flagged_in", torch.int64, 1),
        ):
            self.register_variable_buffer(name, kind, axes)
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))
        self.register_buffer("round", torch.zeros((), dtype=torch.int64))
        self._found: Search | None = None

    # ---- the algorithm ---------------------------------------------------------------------

    def score_step(self) -> Mapping[str, Tensor | float]:
        """The next of the four stages, on the rows that the rounds before have kept."""
        stages = (self.find_neighbours, self.find_symmetry, self.find_distance, self.find_outliers)
        stage = int(self.stage)
        self.stage.fill_(stage + 1)
        return stages[stage]()

    def find_neighbours(self) -> dict[str, Tensor]:
        """kNN(x): the k nearest other points.

        Raises:
            InputError: there are not more than k.
        """
        if not len(self.rows):
            n, device = len(self.points), self.points.device
            self.rows = torch.arange(n, device=device)
            self.flagged_in = torch.zeros(n, dtype=torch.int64, device=device)
            self.symmetry, self.distance, self.degree = (torch.zeros_like(self.points[:, 0]) for _ in range(3))
        m = len(self.rows)
        if m <= self.k:
            where = "" if not self.round else f" that {int(self.round)} rounds have kept"
            raise InputError(
                f"{m} rows{where} cannot have {self.k} neighbours each: give {self.k + 1} or more, or lower model.k"
            )
        own = torch.arange(m, device=self.rows.device)  # left out by its place: equal rows are neighbours
        self.neighbours, self.distances = self.searched().k_nearest(self.points[self.rows], self.k, own)
        return {"neighbour_distance": self.distances.mean()}

    def find_symmetry(self) -> dict[str, Tensor]:
        """R_s of each row; Eq. 2, 3."""
        found = symmetry_ratio(self.points[self.rows], self.neighbours, self.distances, self.searched())
        self.symmetry = self.symmetry.index_copy(0, self.rows, found)
        return {"symmetry_ratio": found.mean()}

    def find_distance(self) -> dict[str, Tensor]:
        """R_d of each row; Eq. 4."""
        sums = self.distances.sum(dim=1)
        found = distance_ratio(sums, sums[self.neighbours])
        self.distance = self.distance.index_copy(0, self.rows, found)
        return {"distance_ratio": found.mean()}

    def find_outliers(self) -> dict[str, Tensor]:
        """O of each row (Eq. 5), the cut, and the flags (Eq. 6 to 10); another round if it was asked for."""
        difference = self.difference(self.symmetry[self.rows], self.distance[self.rows])
        self.span = torch.stack([difference.min(), difference.max()])
        degree = normalise(difference, *self.span)
        self.bound = upper_bound(degree, self.r).reshape(1)
        flagged = self.rows[degree > self.bound]
        self.degree = self.degree.index_copy(0, self.rows, degree)
        self.kept = self.kept.index_fill(0, flagged, False)
        self.round += 1
        self.flagged_in = self.flagged_in.index_fill(0, flagged, int(self.round))
        if self.round < self.rounds and len(flagged):
            self.rows, self._found = torch.nonzero(self.kept)[:, 0], None
            self.stage.fill_(0)
        return {"flagged": torch.tensor(float(len(flagged))), "upper_bound": self.bound[0]}

    def difference(self, symmetry: Tensor, distance: Tensor) -> Tensor:
        """R_s - R_d, or one of them alone."""
        if self.score == "symmetry":
            return symmetry
        return -distance if self.score == "distance" else symmetry - distance  # Eq. 5, before NORM

    def is_scored(self) -> bool:
        return int(self.stage) == 4

    # ---- rows -------------------------------------------------------------------------------

    def describe(self, x: Tensor, own: Tensor) -> dict[str, Tensor]:
        """Degree and ratios of new rows among the training rows of the last round; they may leave 0..1.

        The nearest point of a mirror image is a training row or the new row itself.
        """
        rows, distances = self.searched().k_nearest(x, self.k, own)
        symmetry = symmetry_ratio(x, rows, distances, self.searched())
        distance = distance_ratio(distances.sum(dim=1), self.distances.sum(dim=1)[rows])
        degree = normalise(self.difference(symmetry, distance), *self.span)
        return {"outlier_degree": degree, "symmetry_ratio": symmetry, "distance_ratio": distance}

    def themselves(self, x: Tensor) -> Tensor:
        """By their numbers: rows of the file may be others than those of training, where some were left out.

        Which of several equal rows is left out makes no difference to the degree.
        """
        if not self.exclude_self:
            return super().themselves(x)
        rows, distances = self.searched().nearest(x)
        return torch.where(distances == 0, rows, -1)

    def describe_training(self) -> dict[str, Tensor]:
        found = {"outlier_degree": self.degree, "symmetry_ratio": self.symmetry, "distance_ratio": self.distance}
        return found if self.rounds == 1 else {**found, "flagged_in_round": self.flagged_in}

    def ranking(self) -> Tensor:
        """O; a row that an earlier round flagged ranks above those of later ones."""
        return torch.where(self.flagged_in > 0, self.degree + self.round - self.flagged_in, self.degree)

    def searched(self) -> Search:
        """The rows of this round, ready to be searched; no part of a checkpoint."""
        if self._found is None:
            self._found = search_of(self.points[self.rows], self.search)
        return self._found

    def figures(self, stage: str) -> dict[str, Figure]:
        """Beside what all detectors show, the two ratios."""
        found = super().figures(stage)
        if stage == "test":
            symmetry, distance, kept = (each.cpu().numpy() for each in (self.symmetry, self.distance, self.kept))
            found["ratios"] = ratio_figure(symmetry, distance, kept)
        return found
