"""One pruning round against scikit-learn's SpectralClustering alone, on the same precomputed graph.

Run: python -m benchmarks.graph_pruning      (REPRISE_DATA=<folder with pendigits/ and usps/> takes real points)
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.cluster import SpectralClustering

from benchmarks.knn_graph import K, points
from components.graph import knn_graph
from lightning_modules.modularity_graph_refinement import ModularityRefinementModule
from lightning_modules.modularity_graph_refinement.clustering import Clustering
from lightning_modules.modularity_graph_refinement.graph_builders import NeighbourGraph
from lightning_modules.modularity_graph_refinement.module import Pruning, Stopping

P = 10
REPEATS = 5
PATIENCE = 20.0  # seconds


def seconds(job: Callable[[], Any]) -> float:
    """Median of five runs after one that warms up; fewer where they are long."""
    times = []
    while len(times) <= REPEATS and sum(times) < PATIENCE:
        started = time.perf_counter()
        job()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:] or times))


def main() -> None:
    """Prints a line for each set of points."""
    for case in ("pendigits", "usps"):
        x = points(case)
        graph = knn_graph(x, K, "binary", "or")
        module = ModularityRefinementModule(
            builder=lambda *_, graph=graph: graph,
            graph=NeighbourGraph(k=K, weight="binary", symmetrize="or"),
            cluster=Clustering("spectral", P, "sym", least_component=0.5, n_init=10, seed=0),
            prune=Pruning(pairs="farthest", space="embedding"),
            stop=Stopping(rule="best", patience=10, tol=1e-9),
            num_classes=P,
        )
        module.take(module.refine(x, last=False))  # the first round also checks and lays out the points
        library = SpectralClustering(P, affinity="precomputed", n_init=10, random_state=0)
        ours = seconds(lambda module=module, x=x: module.refine(x, last=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the graph is not connected
            theirs = seconds(lambda library=library, graph=graph: library.fit(graph))
        print(
            f"{case}, {len(x)} points: a round {ours:.3f} s; SpectralClustering {theirs:.3f} s; "
            f"ratio {theirs / ours:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
