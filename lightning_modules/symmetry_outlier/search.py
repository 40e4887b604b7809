"""Nearest points, exact, and the same by a kd-tree as by blocks of distances: of equal ones the lower row is taken."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import torch
from scipy.spatial import cKDTree
from torch import Tensor

Method = Literal["auto", "tree", "blocks"]
TREE_COLUMNS = 16  # beyond them a kd-tree looks at nearly all points
TIE = 1e-10  # distances this share apart are equal: rounding alone orders what is tied in the data
SPARE = 2  # candidates beyond those asked for, to see whether the last one has equals; where it has, more are looked at
PART_NUMBERS = 2**18  # float64 of the candidates that are compared at once: 2 MiB, which stay in the cache
BLOCK_NUMBERS = 2**22  # float64 of a block of distances: 32 MiB


class Search(ABC):
    """Nearest of n points.

    Args:
        points: (n, d) float64.
    """

    slack: float  # how wrong the squared distances may be that candidates are ordered by

    def __init__(self, points: Tensor) -> None:
        self.points = points

    @abstractmethod
    def candidates(self, queries: Tensor, width: int) -> Tensor:
        """Rows of the ``width`` nearest points of each query, up to `slack`, (m, width) int64."""

    def k_nearest(self, queries: Tensor, k: int, own: Tensor) -> tuple[Tensor, Tensor]:
        """Exactly k nearest points, nearest first.

        Args:
            queries: (m, d).
            k: from 1 to the number of points that may be found.
            own: (m,) int64, the row that may not be found; -1 where all may.

        Returns:
            rows (m, k) int64 and distances (m, k).
        """
        n, m = len(self.points), len(queries)
        rows = torch.empty(m, k, dtype=torch.int64, device=queries.device)
        distances = torch.empty(m, k, dtype=torch.float64, device=queries.device)
        left, width = torch.arange(m, device=queries.device), min(k + 1 + SPARE, n)
        while len(left):
            unsure = []
            for part in self.parts(left, width):
                rows[part], distances[part], sure = self._choose(queries[part], k, own[part], width)
                unsure.append(part[~sure])
            left, width = torch.cat(unsure), min(4 * width, n)
        return rows, distances

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Row of the nearest point, the lower one of equals, and its distance, (m,) each."""
        none = torch.full((len(queries),), -1, device=queries.device)
        rows, distances = self.k_nearest(queries, 1, none)
        return rows[:, 0], distances[:, 0]

    def nearest_distance(self, queries: Tensor) -> Tensor:
        """Distance to the nearest point, (m,), where it does not matter which of equals that is."""
        rows = self.candidates(queries, 1)[:, 0]
        return torch.linalg.vector_norm(queries - self.points[rows], dim=1)

    def parts(self, rows: Tensor, width: int) -> Iterator[Tensor]:
        """Rows a part at a time, ``width`` points to be looked at for each."""
        return iter(rows.split(max(1, PART_NUMBERS // (width * self.points.shape[1]))))

    def _choose(self, queries: Tensor, k: int, own: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k nearest of ``width`` candidates, and whether none beyond these could be among them, (m,) bool."""
        found, _ = self.candidates(queries, width).sort(dim=1)
        distance = torch.linalg.vector_norm(queries[:, None] - self.points[found], dim=2)
        farthest = distance.max(dim=1).values
        distance = distance.masked_fill(found == own[:, None], torch.inf)
        kth = distance.kthvalue(k, dim=1, keepdim=True).values
        # First those clearly nearer than the k-th, then its equals by row, then the rest.
        rank = (distance >= kth * (1 - TIE)).int() + (distance > kth * (1 + TIE)).int()
        taken = rank.sort(dim=1, stable=True).indices[:, :k]
        found, distance = found.gather(1, taken), distance.gather(1, taken)
        order = distance.sort(dim=1, stable=True).indices
        sure = farthest.square() > (kth[:, 0] * (1 + TIE)).square() + self.slack
        if width == len(self.points):
            sure = torch.ones_like(sure)
        return found.gather(1, order), distance.gather(1, order), sure


class TreeSearch(Search):
    """By a kd-tree, on the CPU: O(log n) a query where columns are few."""

    slack = 0.0

    def __init__(self, points: Tensor) -> None:
        super().__init__(points)
        self.tree = cKDTree(points.cpu().numpy())

    def candidates(self, queries: Tensor, width: int) -> Tensor:
        _, rows = self.tree.query(queries.cpu().numpy(), k=[*range(1, width + 1)], workers=torch.get_num_threads())
        return torch.from_numpy(rows).to(queries.device)


class BlockSearch(Search):
    """By all distances, a block of queries at a time, on any device that has float64: O(n) a query."""

    def __init__(self, points: Tensor) -> None:
        super().__init__(points)
        self.centre = points.mean(dim=0)
        self.centred = points - self.centre  # products of small numbers lose fewer digits
        self.slack = 1e-13 * float(self.centred.square().sum(dim=1).max())

    def candidates(self, queries: Tensor, width: int) -> Tensor:
        blocks = (queries - self.centre).split(max(1, BLOCK_NUMBERS // len(self.points)))
        return torch.cat([torch.cdist(b, self.centred).topk(width, largest=False).indices for b in blocks])


def search_of(points: Tensor, method: Method) -> Search:
    """The search that ``method`` names; ``auto`` is the tree for few columns on the CPU."""
    if method == "auto":
        method = "tree" if points.shape[1] <= TREE_COLUMNS and points.device.type == "cpu" else "blocks"
    return TreeSearch(points) if method == "tree" else BlockSearch(points)
