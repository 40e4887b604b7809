"""All five region scores of one image's segmentations, against the ways that a user would write them.

- Pair by pair: a mask for each pair of regions, a distance transform for each pair of maps.
- Libraries: scikit-learn's rand_score, scikit-image's variation_of_information and contingency_table for the
  other counts; they share nothing between scores, annotators or segmentations.

The image is generated: Voronoi cells, 5 human maps, 7 segmentations of 10 to 300 regions, as many as DIC has settings.

Run: python -m benchmarks.region_metrics
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree
from skimage.metrics import contingency_table, variation_of_information
from sklearn.metrics import rand_score

from components.metrics.regions import region_scores_of_all

HEIGHT, WIDTH = 321, 481
HUMAN = (5, 8, 12, 20, 40)  # regions of the human maps
MACHINE = (10, 20, 40, 80, 120, 200, 300)  # regions of the segmentations
REPEATS = 3

Maps = Sequence[NDArray[np.int64]]
Table = list[dict[str, float]]


def ours(machine: Maps, human: Maps) -> Table:
    """Contingency tables with all human maps at once; distances to human boundaries once."""
    return [scores.as_dict() for scores in region_scores_of_all(machine, human)]


def pair_by_pair(machine: Maps, human: Maps) -> Table:
    """Masks of regions, pair of maps by pair of maps."""
    return [_mean([_masks(a, b) for b in human]) for a in machine]


def libraries(machine: Maps, human: Maps) -> Table:
    """What scikit-learn and scikit-image have, and their contingency table for what they have not."""
    return [_mean([_with_libraries(a, b) for b in human]) for a in machine]


def _masks(a: NDArray[np.int64], b: NDArray[np.int64]) -> dict[str, float]:
    pixels = a.size
    in_a, in_b = [a == u for u in np.unique(a)], [b == v for v in np.unique(b)]
    n = np.array([[np.count_nonzero(u & v) for v in in_b] for u in in_a], dtype=np.float64)
    n_u, n_v = n.sum(axis=1), n.sum(axis=0)
    pri = 1 - ((n_u @ n_u + n_v @ n_v) / 2 - (n * n).sum()) / (pixels * (pixels - 1) / 2)
    some = n > 0
    p, p_u, p_v = n[some] / pixels, n_u / pixels, n_v / pixels
    voi = p_u @ np.log2(p_u) + p_v @ np.log2(p_v) - 2 * (p @ np.log2(p))
    return {"pri": pri, "voi": voi, "gce": _gce(n), "bde": _bde(a, b), "sc": _covering(n)}


def _with_libraries(a: NDArray[np.int64], b: NDArray[np.int64]) -> dict[str, float]:
    n = contingency_table(a, b).toarray()
    return {
        "pri": rand_score(a.ravel(), b.ravel()),
        "voi": variation_of_information(a, b).sum(),
        "gce": _gce(n),
        "bde": _bde(a, b),
        "sc": _covering(n),
    }


def _gce(n: NDArray[np.float64]) -> float:
    n = n[:, n.sum(axis=0) > 0][n.sum(axis=1) > 0]
    n_u, n_v = n.sum(axis=1, keepdims=True), n.sum(axis=0, keepdims=True)
    return min((n * (n_u - n) / n_u).sum(), (n * (n_v - n) / n_v).sum()) / n.sum()


def _covering(n: NDArray[np.float64]) -> float:
    n = n[:, n.sum(axis=0) > 0][n.sum(axis=1) > 0]
    n_u, n_v = n.sum(axis=1, keepdims=True), n.sum(axis=0, keepdims=True)
    return float((n / (n_u + n_v - n)).max(axis=0) @ n_v[0]) / n.sum()


def _bde(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    edges = [np.any([d != 0 for d in np.gradient(labels)], axis=0) for labels in (a, b)]
    to = [distance_transform_edt(~edge) for edge in edges]
    return (to[1][edges[0]].mean() + to[0][edges[1]].mean()) / 2


def _mean(scores: Table) -> dict[str, float]:
    return {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}


def voronoi(cells: int, random: np.random.Generator) -> NDArray[np.int64]:
    """A label map (HEIGHT, WIDTH) of so many cells."""
    points = random.uniform((0, 0), (HEIGHT, WIDTH), (cells, 2))
    return cKDTree(points).query(np.indices((HEIGHT, WIDTH)).transpose(1, 2, 0))[1]


def seconds(way: Callable[[Maps, Maps], Table], machine: Maps, human: Maps, repeats: int) -> tuple[float, Table]:
    """Least time of a few runs, and what it gave."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        table = way(machine, human)
        times.append(time.perf_counter() - started)
    return min(times), table


def main() -> None:
    """Prints times and ratios, after comparing all numbers."""
    random = np.random.default_rng(0)
    machine, human = ([voronoi(cells, random) for cells in counts] for counts in (MACHINE, HUMAN))
    fast, scores = seconds(ours, machine, human, REPEATS)
    print(f"five scores of {len(machine)} segmentations by {len(human)} human maps, {WIDTH}x{HEIGHT}: {fast:.3f} s")
    for name, way, repeats in (("pair by pair", pair_by_pair, 1), ("libraries", libraries, REPEATS)):
        slow, theirs = seconds(way, machine, human, repeats)
        for mine, other in zip(scores, theirs, strict=True):
            for score, value in mine.items():
                assert abs(value - other[score]) < 1e-9, f"{name}: {score} {value} and {other[score]}"
        print(f"{name}: {slow:.3f} s, the same numbers to 1e-9; ratio {slow / fast:.1f}")


if __name__ == "__main__":
    main()
