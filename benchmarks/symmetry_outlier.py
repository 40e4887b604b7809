"""Degrees by symmetry and distance ratio against scikit-learn's local outlier factor on the same points: time, memory.

Run: python -m benchmarks.symmetry_outlier [points …]

Each is measured in a process of its own, as a peak of memory does not go back. Neither keeps an n x n array. Both have
one thread, and seconds are those of the processor, which other work disturbs less than those of the clock.
"""

import multiprocessing
import resource
import sys
import time

import numpy as np
import torch
from sklearn.neighbors import LocalOutlierFactor

from lightning_modules.symmetry_outlier.degree import symmetry_distance_degree

POINTS = (5_000, 50_000)
COLUMNS, K = 2, 10


def measure(method: str, n: int, answer: multiprocessing.Queue) -> None:
    """Puts seconds of the processor and the MiB by which memory grew at its peak."""
    torch.set_num_threads(1)
    x = np.random.default_rng(0).normal(size=(n, COLUMNS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    if method == "symmetry":
        symmetry_distance_degree(torch.from_numpy(x), K)
    else:
        LocalOutlierFactor(n_neighbors=K).fit(x)
    seconds = time.process_time() - started
    answer.put((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10))


def main(sizes: list[int]) -> None:
    """Prints a line for each number of points."""
    context = multiprocessing.get_context("spawn")
    for n in sizes:
        found = {}
        for method in ("symmetry", "lof"):
            answer = context.Queue()
            process = context.Process(target=measure, args=(method, n, answer))
            process.start()
            found[method] = answer.get()
            process.join()
        (ours, our_memory), (theirs, their_memory) = found["symmetry"], found["lof"]
        print(
            f"{n} points: symmetry {ours:.2f} s, {our_memory:.0f} MiB; LOF {theirs:.2f} s, {their_memory:.0f} MiB; "
            f"LOF / symmetry {theirs / ours:.2f} (an n x n array: {8 * n * n / 2**20:.0f} MiB)",
            flush=True,
        )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(POINTS))
