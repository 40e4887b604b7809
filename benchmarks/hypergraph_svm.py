"""The solver of IHLSVM against dense Newton steps and against scikit-learn's SVC and LabelSpreading on the same rows.

Run: python -m benchmarks.hypergraph_svm [rows …]

Half the labels are hidden; accuracies are of 2,000 rows that none has seen. Times are of one thread where
OMP_NUM_THREADS=1. A ratio is a time over that of kernel, Laplacians and conjugate gradients together: above 1 ours is
faster. Newton needs kernel and Laplacians too.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC

from lightning_modules.hypergraph_svm.operators import as_tensor, graph_laplacian, hypergraph_laplacian, kernel_matrix
from lightning_modules.hypergraph_svm.solvers import (
    PrimalProblem,
    newton_step,
    pcg_start,
    pcg_step,
    primal_objective,
)

ROWS = (1000, 2000, 4000)
COLUMNS, TEST_ROWS = 20, 2000


def mixture(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes of three clouds each, overlapping, (n, 20), and their labels (n,) of 0 and 1."""
    centres = 1.2 * np.random.default_rng(0).normal(size=(6, COLUMNS))
    generator = np.random.default_rng(seed)
    cloud = generator.integers(6, size=n)
    return centres[cloud] + 1.5 * generator.normal(size=(n, COLUMNS)), cloud % 2


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the seconds it took."""
    started = time.perf_counter()
    result = what()
    return result, time.perf_counter() - started


def build(x: np.ndarray, y: np.ndarray, labelled: np.ndarray) -> PrimalProblem:
    """The problem of the default settings."""
    X, one = torch.from_numpy(x), torch.ones(1, dtype=torch.float64)
    laplacians = graph_laplacian(x, 6, "normalized"), hypergraph_laplacian(x, 6, "mean")
    return PrimalProblem(
        K=kernel_matrix(X, X, "rbf", 1 / COLUMNS),
        manifold=[(as_tensor(0.5 * (laplacians[0] + laplacians[1]), X.device), one)],
        y=torch.from_numpy(np.where(labelled, 2.0 * y - 1, 0.0))[:, None],
        labelled=torch.from_numpy(labelled)[:, None],
        delta_a=0.1 * one,
        delta_i=1e-3 * one,
        bias_in_manifold=True,
    )


def by_pcg(problem: PrimalProblem) -> tuple[torch.Tensor, torch.Tensor, int]:
    """alpha, b and iterations."""
    state, iterations = pcg_start(problem), 0
    while not state.done.all():
        state, iterations = pcg_step(problem, state, 1e-6), iterations + 1
    return state.alpha, state.b, iterations


def by_newton(problem: PrimalProblem) -> tuple[torch.Tensor, torch.Tensor, int]:
    """alpha, b and iterations."""
    alpha, b = torch.zeros_like(problem.y), torch.zeros_like(problem.delta_a)
    solved, iterations = torch.zeros(1, dtype=torch.bool), 0
    while not solved.all():
        alpha, b, solved = newton_step(problem, alpha, b, 1e-6)
        iterations += 1
    return alpha, b, iterations


def main(sizes: list[int]) -> None:
    """Prints a block for each number of rows."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    print(f"threads: {torch.get_num_threads()}")
    test, truth = mixture(TEST_ROWS, seed=1)
    for m in sizes:
        x, y = mixture(m, seed=2)
        labelled = np.random.default_rng(3).uniform(size=m) < 0.5
        hidden = np.where(labelled, y, -1)
        problem, building = timed(lambda: build(x, y, labelled))  # noqa: B023
        across = kernel_matrix(torch.from_numpy(test), torch.from_numpy(x), "rbf", 1 / COLUMNS)
        print(f"{m} rows: kernel and Laplacians {building:.2f} s")
        ours, reached = 0.0, 0.0
        for name, solve in (("conjugate gradients", by_pcg), ("dense Newton", by_newton)):
            (alpha, b, iterations), seconds = timed(lambda: solve(problem))  # noqa: B023
            J = float(primal_objective(problem, alpha, b))
            ours, reached = ours or building + seconds, reached or J
            right = 100 * np.mean(((across @ alpha + b)[:, 0].numpy() >= 0) == truth)
            told = f"{iterations} iterations, J apart by {abs(J / reached - 1):.0e}"
            print(f"  {name} {seconds:.2f} s ({told}), {right:.1f} %, ratio {(building + seconds) / ours:.2f}")
        rivals = {
            "SVC": (SVC(gamma=1 / COLUMNS), x[labelled], y[labelled]),
            "LabelSpreading, 7 neighbours": (LabelSpreading(kernel="knn", n_neighbors=7, max_iter=1000), x, hidden),
            "LabelSpreading, RBF": (LabelSpreading(kernel="rbf", gamma=1 / COLUMNS, max_iter=1000), x, hidden),
        }
        for name, (estimator, rows, label) in rivals.items():
            _, seconds = timed(lambda: estimator.fit(rows, label))  # noqa: B023
            right = 100 * estimator.score(test, truth)
            print(f"  {name} {seconds:.2f} s, {right:.1f} %, ratio {seconds / ours:.2f}", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(ROWS))
