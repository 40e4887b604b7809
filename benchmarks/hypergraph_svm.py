"""The solver of IHLSVM against dense Newton steps and against scikit-learn's SVC and LabelSpreading on the same rows.

Run: python -m benchmarks.hypergraph_svm [rows …]

Half the labels are hidden. Times are of one thread where OMP_NUM_THREADS=1. Building kernel and Laplacians is part of
ours and told apart.
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

ROWS = (500, 1000, 2000, 4000)
NEWTON_ROWS = 2000  # beyond them its steps take minutes on a small machine
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
        (alpha, b, iterations), pcg = timed(lambda: by_pcg(problem))  # noqa: B023
        J = float(primal_objective(problem, alpha, b))
        across = kernel_matrix(torch.from_numpy(test), torch.from_numpy(x), "rbf", 1 / COLUMNS)
        right = 100 * np.mean(((across @ alpha + b)[:, 0].numpy() >= 0) == truth)
        print(f"{m} rows: kernel and Laplacians {building:.3f} s, PCG {pcg:.3f} s ({iterations}), {right:.1f} %")
        if m <= NEWTON_ROWS:
            (alpha, b, steps), newton = timed(lambda: by_newton(problem))  # noqa: B023
            apart = abs(J / float(primal_objective(problem, alpha, b)) - 1)
            print(f"  dense Newton {newton:.3f} s ({steps}), J apart by {apart:.0e}; ratio {newton / pcg:.2f}")
        svc, seconds = timed(lambda: SVC(gamma=1 / COLUMNS).fit(x[labelled], y[labelled]))  # noqa: B023
        print(f"  SVC {seconds:.3f} s, {100 * svc.score(test, truth):.1f} %; ratio {seconds / (building + pcg):.2f}")
        for kernel, settings in (("knn", {"n_neighbors": 7}), ("rbf", {"gamma": 1 / COLUMNS})):
            spread = LabelSpreading(kernel=kernel, max_iter=1000, **settings)
            _, seconds = timed(lambda: spread.fit(x, hidden))  # noqa: B023
            print(
                f"  LabelSpreading ({kernel}) {seconds:.3f} s, {100 * spread.score(test, truth):.1f} %; "
                f"ratio {seconds / (building + pcg):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(ROWS))
