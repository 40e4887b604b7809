"""Kernel, graph Laplacian and hypergraph Laplacian against loops written from the equations."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel

from lightning_modules.hypergraph_svm.operators import (
    as_tensor,
    graph_laplacian,
    hyperedge_weights,
    hypergraph_laplacian,
    kernel_matrix,
    mean_squared_distance,
)
from runs.errors import InputError


def points(m: int = 40, d: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(m, d))


def nearest_others(x: np.ndarray, k: int) -> list[list[int]]:
    """The k nearest other rows by a sort of all distances."""
    squared = cdist(x, x, "sqeuclidean")
    return [[j for j in np.argsort(squared[i], kind="stable") if j != i][:k] for i in range(len(x))]


def slow_graph(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """W and D of the specification, by a double loop."""
    m, near = len(x), nearest_others(x, k)
    edges = {(i, j) for i in range(m) for j in range(m) if j in near[i] or i in near[j]}
    squared = {(i, j): float(((x[i] - x[j]) ** 2).sum()) for i, j in edges}
    t = sum(squared.values()) / len(squared)
    W = np.zeros((m, m))
    for (i, j), value in squared.items():
        W[i, j] = np.exp(-value / (4 * t))
    return W, np.diag(W.sum(axis=1))


def slow_hypergraph(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """H of Eq. 8 and the degrees d(v), by loops over hyperedges and pairs."""
    m, near = len(x), nearest_others(x, k)
    mu = np.mean([((x[i] - x[j]) ** 2).sum() for i in range(m) for j in range(m) if i != j])
    F, w = np.zeros((m, m)), np.zeros(m)
    for e in range(m):
        members = [e, *near[e]]
        F[members, e] = 1
        pairs = [np.exp(-((x[i] - x[j]) ** 2).sum() / mu) for i in members for j in members if i != j]
        w[e] = sum(pairs) / (len(members) * (len(members) - 1))
    delta = F.sum(axis=0)
    d = F @ w
    half = np.diag(d**-0.5)
    return np.eye(m) - half @ F @ np.diag(w) @ np.diag(1 / delta) @ F.T @ half, d


def test_the_kernel_is_that_of_scikit_learn_with_gamma_before_the_squared_distance():
    x, z = points(20), points(30, seed=1)
    found = kernel_matrix(torch.tensor(x), torch.tensor(z), "rbf", 0.7).numpy()
    assert np.allclose(found, rbf_kernel(x, z, gamma=0.7), atol=1e-14)
    assert np.allclose(kernel_matrix(torch.tensor(x), torch.tensor(z), "linear", 0.7).numpy(), x @ z.T)


def test_the_graph_laplacian_is_that_of_a_double_loop():
    x = points()
    W, D = slow_graph(x, 6)
    assert np.allclose(graph_laplacian(x, 6, "unnormalized").toarray(), D - W, atol=1e-12)
    half = np.diag(np.diag(D) ** -0.5)
    assert np.allclose(graph_laplacian(x, 6, "normalized").toarray(), np.eye(len(x)) - half @ W @ half, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_hypergraph_laplacian_is_that_of_loops_over_hyperedges(k):
    x = points()
    assert np.allclose(hypergraph_laplacian(x, k, "mean").toarray(), slow_hypergraph(x, k)[0], atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_are_symmetric_positive_semidefinite_and_have_their_null_vectors(seed):
    x = points(60, 4, seed)
    L, H = graph_laplacian(x, 6, "normalized").toarray(), hypergraph_laplacian(x, 6, "mean").toarray()
    for matrix in (L, H, graph_laplacian(x, 6, "unnormalized").toarray()):
        assert np.array_equal(matrix, matrix.T) or np.allclose(matrix, matrix.T, atol=1e-15)
        assert np.linalg.eigvalsh(matrix).min() > -1e-12
    assert np.linalg.eigvalsh(H).max() < 1 + 1e-12
    _, D = slow_graph(x, 6)
    assert np.allclose(L @ np.sqrt(np.diag(D)), 0, atol=1e-12)
    assert np.allclose(H @ np.sqrt(slow_hypergraph(x, 6)[1]), 0, atol=1e-12)
    assert np.allclose(graph_laplacian(x, 6, "unnormalized") @ np.ones(60), 0, atol=1e-12)


def test_three_points_in_one_hyperedge_by_hand():
    """With k = 2 each of three equidistant points spans the edge {1, 2, 3}: H = I - (1/3) 1 1'."""
    corner = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    H = hypergraph_laplacian(corner, 2, 1.0).toarray()
    assert np.allclose(H, np.eye(3) - np.ones((3, 3)) / 3, atol=1e-12)


def test_a_hyperedge_holds_its_own_row_and_k_others():
    """Three usual mistakes: k - 1 real neighbours, an edge without its row, and k instead of k + 1 for its size."""
    x = points()
    H, k = hypergraph_laplacian(x, 4, "mean").toarray(), 4
    members = [{i, *near} for i, near in enumerate(nearest_others(x, k))]
    assert all(len(edge) == k + 1 for edge in members)
    together = np.array([[any(i in e and j in e for e in members) for j in range(len(x))] for i in range(len(x))])
    off = ~np.eye(len(x), dtype=bool)
    assert np.array_equal((np.abs(H) > 1e-14) & off, together & off)
    graph = graph_laplacian(x, k, "unnormalized").toarray()
    assert (((graph != 0) & off).sum(axis=1) >= k).all()


def test_hyperedge_weights_halve_with_unordered_pairs_and_the_laplacian_does_not_change():
    x = points()
    members = np.array([[i, *near] for i, near in enumerate(nearest_others(x, 6))])
    w = hyperedge_weights(x, members, 2.0)
    slow = [np.mean([np.exp(-((x[i] - x[j]) ** 2).sum() / 2.0) for i in e for j in e if i != j]) for e in members]
    assert np.allclose(w, slow, atol=1e-13)
    F = np.zeros((len(x), len(x)))
    for e, edge in enumerate(members):
        F[edge, e] = 1

    def laplacian(w):
        half = np.diag((F @ w) ** -0.5)
        return np.eye(len(x)) - half @ F @ np.diag(w / 7) @ F.T @ half

    assert np.allclose(laplacian(w), laplacian(w / 2), atol=1e-13)
    assert np.allclose(laplacian(w), hypergraph_laplacian(x, 6, 2.0).toarray(), atol=1e-12)


def test_the_mean_squared_distance_leaves_the_points_themselves_out():
    x = points(15)
    squared = cdist(x, x, "sqeuclidean")
    assert mean_squared_distance(x) == pytest.approx(squared.sum() / (15 * 14))


def test_equal_rows_make_no_trouble():
    x = np.zeros((12, 3))
    for matrix in (graph_laplacian(x, 3, "normalized"), hypergraph_laplacian(x, 3, "mean")):
        assert np.isfinite(matrix.toarray()).all() and np.linalg.eigvalsh(matrix.toarray()).min() > -1e-12


def test_a_sparse_tensor_holds_the_same_numbers():
    H = hypergraph_laplacian(points(), 6, "mean")
    tensor = as_tensor(H, torch.device("cpu"))
    assert tensor.dtype == torch.float64 and np.array_equal(tensor.to_dense().numpy(), H.toarray())
    assert sparse.issparse(H) and H.nnz < 40 * 40


@pytest.mark.parametrize("k", [0, 40])
def test_more_neighbours_than_rows_are_named(k):
    with pytest.raises(InputError, match=rf"model\.manifold\.k_graph={k} must be from 1 to 39"):
        graph_laplacian(points(), k, "normalized")
    with pytest.raises(InputError, match=rf"model\.manifold\.k_hyper={k} must be from 1 to 39"):
        hypergraph_laplacian(points(), k, "mean")
