"""The exact k-NN graph against scikit-learn's `kneighbors_graph`, symmetrised: time and peak memory.

Run: python -m benchmarks.knn_graph      (REPRISE_DATA=<folder with pendigits/ and usps/> takes real points)

Each side runs in a process of its own, so that its peak memory is its own.
"""

import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

K = 10
CASES = {"pendigits": (7494, 16), "usps": (11000, 256), "clusters_16": (100_000, 16), "clusters_64": (100_000, 64)}


def points(case: str) -> NDArray[np.float64]:
    """The real points where they are, or 200 flat clusters (4 directions each, and noise) of the same size."""
    root = Path(os.environ.get("REPRISE_DATA", "nowhere")) / case
    if root.is_dir():
        from datamodules.point_files import PenDigitsReader, USPSAllReader

        reader = PenDigitsReader() if case == "pendigits" else USPSAllReader()
        return reader.read(str(root)).features
    n, d = CASES[case]
    generator = np.random.default_rng(0)
    centre, directions = 3 * generator.normal(size=(200, d)), generator.normal(size=(200, 4, d))
    cluster = generator.integers(200, size=n)
    spread = np.einsum("nk,nkd->nd", generator.normal(size=(n, 4)), directions[cluster])
    return centre[cluster] + spread + 0.1 * generator.normal(size=(n, d))


def measure(side: str, file: str) -> tuple[float, float, int]:
    """Seconds, MiB of memory above that of the points in a file, and edges; the best of 3 where a run is short."""
    from sklearn.neighbors import kneighbors_graph

    from components.graph import edge_count, knn_graph, symmetrize

    x = np.load(file)  # making them here would leave a peak of its own
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    while len(times) < 3 and sum(times) < 5:
        started = time.perf_counter()
        graph = knn_graph(x, K, "binary", "or") if side == "ours" else symmetrize(kneighbors_graph(x, K), "or")
        times.append(time.perf_counter() - started)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return min(times), peak, edge_count(graph)


def main() -> None:
    """Prints a line for each size."""
    print(f"threads: {os.environ.get('OMP_NUM_THREADS', os.cpu_count())}")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(1, maxtasksperchild=1) as pool:
        for case, (n, d) in CASES.items():
            file = str(Path(folder) / f"{case}.npy")
            np.save(file, points(case))
            ours, theirs = (pool.apply(measure, (side, file)) for side in ("ours", "scikit-learn"))
            print(
                f"{case}, {n} x {d}: ours {ours[0]:.2f} s, {ours[1]:.0f} MiB, {ours[2]} edges; scikit-learn "
                f"{theirs[0]:.2f} s, {theirs[1]:.0f} MiB, {theirs[2]} edges; ratio {theirs[0] / ours[0]:.2f}; "
                f"an n x n array would take {8 * n * n / 2**20:.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
