"""What divides the points that were kept: density peaks (Rodriguez, Laio 2014), linkage and k-means."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.cluster import AgglomerativeClustering, KMeans

from runs.errors import InputError

BLOCK_NUMBERS = 2**22  # distances that a block of rows holds at once: 32 MiB
BINS = 2**16  # of distances, to find the one at a position without keeping all
MANY_POINTS = 15_000  # all but k-means take time of the number of pairs


@dataclass(frozen=True)
class Clustering:
    """How points are divided.

    Attributes:
        method: ``dpc``: density peaks; ``single`` or ``average`` linkage; ``kmeans``.
        clusters: K; ``classes``: as many as the data have; 0: nothing is divided.
        pct: of ``dpc``: d_c is the distance at this percentage of all pairs.
        kernel: of ``dpc``: density by a Gaussian of width d_c, or the count of points within it.
        n_init: starts of ``kmeans``.
        seed: of ``kmeans``.
    """

    method: Literal["dpc", "single", "average", "kmeans"]
    clusters: int | Literal["classes"]
    pct: float
    kernel: Literal["gaussian", "cutoff"]
    n_init: int
    seed: int

    def __post_init__(self) -> None:
        if self.clusters != "classes" and self.clusters < 0:
            raise InputError(f"model.clustering.clusters={self.clusters} must be 1 or more, or 0 for none, or classes")
        if not 0 < self.pct <= 100:
            raise InputError(f"model.clustering.pct={self.pct} must be above 0 and 100 at most")

    def fit_predict(self, points: NDArray[np.float64], clusters: int) -> NDArray[np.int64]:
        """Clusters (n,) from 0 of points (n, d).

        Raises:
            InputError: there are fewer points than clusters.
        """
        n = len(points)
        if clusters > n:
            raise InputError(
                f"{n} points that are no outliers cannot make {clusters} clusters: lower model.clustering.clusters, or "
                "raise model.r"
            )
        if n > MANY_POINTS and self.method != "kmeans":
            warnings.warn(
                f"model.clustering.method={self.method} compares all pairs of {n} points: that takes its time"
                + ("" if self.method != "average" else f" and {8 * n * n / 2e9:.1f} GB"),
                stacklevel=2,
            )
        if self.method == "kmeans":
            return KMeans(clusters, n_init=self.n_init, random_state=self.seed).fit_predict(points).astype(np.int64)
        if self.method == "dpc":
            return density_peaks(points, clusters, self.pct, self.kernel)
        if clusters == n:
            return np.arange(n)
        return AgglomerativeClustering(clusters, linkage=self.method).fit_predict(points).astype(np.int64)


def density_peaks(
    points: NDArray[np.float64], clusters: int, pct: float, kernel: Literal["gaussian", "cutoff"]
) -> NDArray[np.int64]:
    """Clusters (n,) around the points of highest density times distance to a denser one; no n x n array is kept.

    Points of equal density: the one of the lower row counts as denser.

    Raises:
        InputError: d_c is 0, since so many points are equal.
    """
    n = len(points)
    if n == 1:
        return np.zeros(1, dtype=np.int64)
    d_c = distance_at(points, pct)
    if d_c == 0:
        raise InputError(
            f"{pct:g} % of all pairs of points are equal, so their density has no width: raise model.clustering.pct"
        )
    rho = np.empty(n)
    for rows, distance in distance_blocks(points):
        if kernel == "gaussian":
            rho[rows] = np.exp(-((distance / d_c) ** 2)).sum(axis=1) - 1  # without the point itself
        else:
            rho[rows] = (distance < d_c).sum(axis=1) - 1
    order = np.argsort(-rho, kind="stable")  # falling density
    delta, denser = np.zeros(n), np.zeros(n, dtype=np.int64)  # both by place in the order
    sorted_points = points[order]
    for rows, distance in distance_blocks(sorted_points):
        distance[np.arange(n) >= rows[:, None]] = np.inf
        denser[rows] = distance.argmin(axis=1)
        delta[rows] = distance.min(axis=1)
    delta[0] = delta[1:].max()
    centres = np.argsort(-rho[order] * delta, kind="stable")[:clusters]
    cluster = np.full(n, -1)
    cluster[centres] = np.arange(clusters)
    for place in range(n):  # each after its denser neighbour
        if cluster[place] < 0:
            cluster[place] = cluster[denser[place]]
    labels = np.empty(n, dtype=np.int64)
    labels[order] = cluster
    return labels


def distance_at(points: NDArray[np.float64], pct: float) -> float:
    """The distance at position round(pct % of all pairs), from 1, of the pairs in rising order."""
    n = len(points)
    pairs = n * (n - 1) // 2
    position = max(1, int(pairs * pct / 100 + 0.5))
    longest = np.linalg.norm(np.ptp(points, axis=0))
    if longest == 0:
        return 0.0
    edges = np.linspace(0, longest * (1 + 1e-9), BINS + 1)
    counts = sum(np.histogram(distance, edges)[0] for distance in _pairs(points))
    before = np.concatenate([[0], np.cumsum(counts)])
    place = int(np.searchsorted(before, position)) - 1
    low, high = edges[place], edges[place + 1]
    inside = np.concatenate([each[(each >= low) & (each < high)] for each in _pairs(points)])
    return float(np.partition(inside, position - before[place] - 1)[position - before[place] - 1])


def distance_blocks(points: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Some rows, and their distances to all points, until all rows have been."""
    step = max(1, BLOCK_NUMBERS // len(points))
    for start in range(0, len(points), step):
        rows = np.arange(start, min(start + step, len(points)))
        yield rows, cdist(points[rows], points)


def _pairs(points: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Distances of all pairs, each pair once, a block at a time."""
    for rows, distance in distance_blocks(points):
        yield distance[np.arange(len(points)) > rows[:, None]]
