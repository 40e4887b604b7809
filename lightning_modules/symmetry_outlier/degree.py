"""Eq. 2 to 8: symmetry ratio, distance ratio, outlier degree, and the cut by quartiles."""

import torch
from torch import Tensor

from lightning_modules.symmetry_outlier.search import Method, Search, search_of


def symmetry_ratio(x: Tensor, rows: Tensor, distances: Tensor, search: Search) -> Tensor:
    """R_s, (m,): distance of the neighbours' mirror images to any point, as a share of the neighbours' own; Eq. 3.

    Args:
        x: (m, d).
        rows: (m, k), their neighbours among the points of ``search``.
        distances: (m, k).
        search: finds the nearest of all points; x itself counts as one too, so the ratio is 1 at most.
    """
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for part in search.parts(torch.arange(len(x), device=x.device), rows.shape[1]):
        mirrored = 2 * x[part, None] - search.points[rows[part]]  # Eq. 2
        apart = search.nearest_distance(mirrored.flatten(0, 1))
        # A mirror image is as far from x as the neighbour is.
        total[part] = torch.minimum(apart.view_as(distances[part]), distances[part]).sum(dim=1)
    sums = distances.sum(dim=1)
    return torch.where(sums > 0, total / sums, 0.0)  # k equal points are no outliers


def distance_ratio(sums: Tensor, neighbour_sums: Tensor) -> Tensor:
    """R_d, (m,): the neighbours' mean sum of k distances (m, k) as a share of one's own (m,); Eq. 4."""
    return torch.where(sums > 0, neighbour_sums.mean(dim=1) / sums, 1.0)


def symmetry_distance_degree(points: Tensor, k: int, method: Method = "auto") -> tuple[Tensor, Tensor]:
    """R_s and R_d of all points among themselves, (n,) each.

    Args:
        points: (n, d) float64, n above k.
        k: neighbours.
        method: how they are searched.
    """
    search = search_of(points, method)
    rows, distances = search.k_nearest(points, k, torch.arange(len(points), device=points.device))
    sums = distances.sum(dim=1)
    return symmetry_ratio(points, rows, distances, search), distance_ratio(sums, sums[rows])


def normalise(degree: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """NORM of Eq. 5: what lies between ``low`` and ``high`` to 0..1; 0 where they are equal."""
    return torch.where(high > low, (degree - low) / torch.where(high > low, high - low, 1.0), 0.0)


def quartiles(degree: Tensor) -> tuple[Tensor, Tensor]:
    """Q1 and Q3 of (n,) without interpolation: the values at round(n/4) and round(3n/4), from 1; Eq. 6 to 8.

    Halves are rounded up, as in MATLAB.
    """
    n = len(degree)
    ordered = degree.sort().values
    first, third = (max(1, int(share * n + 0.5)) for share in (0.25, 0.75))
    return ordered[first - 1], ordered[third - 1]


def upper_bound(degree: Tensor, r: float) -> Tensor:
    """ub = Q3 + r IQR of (n,): what lies above it is an outlier; Eq. 10."""
    q1, q3 = quartiles(degree)
    return q3 + r * (q3 - q1)
