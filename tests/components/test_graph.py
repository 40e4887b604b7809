"""Neighbour graphs, modularity, pruning and embeddings against loops, networkx and dense algebra."""

import tracemalloc

import networkx as nx
import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import ArpackNoConvergence

from components import graph as graphs
from components.graph import (
    component_count,
    edge_count,
    knn_graph,
    modularity,
    nearest_neighbours,
    neighbour_graph,
    prune_pairs,
    spectral_embedding,
    symmetrize,
)
from runs.errors import InputError


def neighbours_by_sorting(points, k):
    """The definition: all distances of a point, by (distance, index)."""
    indices, distances = [], []
    for i, point in enumerate(points):
        squared = np.square(points - point).sum(axis=1)
        order = [j for j in sorted(range(len(points)), key=lambda j: (squared[j], j)) if j != i][:k]
        indices.append(order)
        distances.append(np.sqrt(squared[order]))
    return np.array(indices), np.array(distances)


def random_graph(seed, n=60, weighted=True):
    generator = np.random.default_rng(seed)
    upper = np.triu(generator.random((n, n)) < generator.uniform(0.05, 0.4), k=1)
    weights = upper * (generator.uniform(0.1, 3, (n, n)) if weighted else 1.0)
    labels = np.unique(generator.integers(generator.integers(2, 7), size=n), return_inverse=True)[1]
    return sparse.csr_array(weights + weights.T), labels, generator


@pytest.mark.parametrize("dimensions", [2, 16, 100])
def test_neighbours_are_those_of_the_definition(dimensions):
    points = np.random.default_rng(dimensions).normal(size=(400, dimensions))
    indices, distances = nearest_neighbours(points, 7)
    expected = neighbours_by_sorting(points, 7)
    assert np.array_equal(indices, expected[0])
    np.testing.assert_allclose(distances, expected[1], rtol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_ties_go_to_the_smaller_index_however_many_there_are(shift):
    grid = np.random.default_rng(0).integers(0, 4, size=(300, 3)) + shift  # 64 places: duplicates, equal distances
    indices, distances = nearest_neighbours(grid, 6)
    expected = neighbours_by_sorting(grid, 6)
    assert np.array_equal(indices, expected[0])
    assert np.array_equal(distances, expected[1])
    assert (distances == 0).any()


@pytest.mark.parametrize("tree_dimensions", [0, 99])
def test_neighbours_depend_neither_on_blocks_nor_on_the_search(monkeypatch, tree_dimensions):
    points = np.random.default_rng(1).integers(0, 9, size=(500, 5)).astype(float)
    expected = nearest_neighbours(points, 8)
    monkeypatch.setattr(graphs, "_BLOCK_BYTES", 3000)
    monkeypatch.setattr(graphs, "_TREE_DIMENSIONS", tree_dimensions)
    for ours, theirs in zip(nearest_neighbours(points, 8), expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_all_others_can_be_neighbours_and_more_cannot():
    points = np.arange(5.0)[:, None]
    assert np.array_equal(nearest_neighbours(points, 4)[0], neighbours_by_sorting(points, 4)[0])
    for k in (0, 5):
        with pytest.raises(InputError, match=f"k={k} nearest neighbours needs more than .* found 5"):
            nearest_neighbours(points, k)


def awkward_points(kind: str, n: int = 500, d: int = 8) -> np.ndarray:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(n, d))
    if kind == "outlier":
        points[5] = 1e6
    elif kind == "half of them once more":
        points[n // 2 :] = points[: n // 2]
    elif kind == "half of them one point":
        points[: n // 2] = points[0]
    elif kind == "binary":
        points = (generator.random((n, d)) < 0.5).astype(float)
    elif kind == "mostly zero":
        points = (generator.random((n, d)) < 0.1).astype(float)
    elif kind == "far away":
        points = (generator.random((n, d)) < 0.5) + 1e7
    return points


AWKWARD = ["outlier", "half of them once more", "half of them one point", "binary", "mostly zero", "far away"]


@pytest.mark.parametrize("block", [2**25, 4096])  # all rows at once, or few
@pytest.mark.parametrize("kind", AWKWARD)
def test_neighbours_are_those_of_the_definition_where_many_rows_are_searched_in_full(monkeypatch, kind, block):
    monkeypatch.setattr(graphs, "_BLOCK_BYTES", block)
    points = awkward_points(kind)
    for k in (1, 6):
        indices, distances = nearest_neighbours(points, k)
        expected = neighbours_by_sorting(points, k)
        assert np.array_equal(indices, expected[0]) and np.array_equal(distances, expected[1])


def test_an_outlier_does_not_make_other_rows_be_searched_and_equal_points_are_searched_once(monkeypatch):
    searched, whole = [], graphs._all_candidates

    def counting(points, centred, rows, limit, count):
        searched.append(len(rows))
        return whole(points, centred, rows, limit, count)

    monkeypatch.setattr(graphs, "_all_candidates", counting)
    nearest_neighbours(awkward_points("outlier"), 6)
    nearest_neighbours(awkward_points("half of them one point"), 6)
    assert sum(searched) < 20  # of 500 and of 250: the outlier, the one point, and points near it


def test_no_step_makes_an_n_by_n_array():
    n = 6000  # 288 MB, were it n x n
    points = np.random.default_rng(0).normal(size=(n, 3))
    tracemalloc.start()
    graph = knn_graph(points, 10, "binary", "or")
    labels = np.arange(n) % 10
    modularity(graph, labels)
    prune_pairs(graph, labels, np.eye(10, dtype=bool)[::-1])
    spectral_embedding(graph, 10, "sym", 0, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * n * n / 3


def test_symmetrised_graphs_are_those_of_dense_arrays():
    generator = np.random.default_rng(0)
    directed = generator.uniform(0.1, 1, (30, 30)) * (generator.random((30, 30)) < 0.2)
    np.fill_diagonal(directed, 0)
    for how, dense in (
        ("or", np.maximum(directed, directed.T)),
        ("and", np.minimum(directed, directed.T)),
        ("mean", (directed + directed.T) / 2),
    ):
        graph = symmetrize(sparse.csr_array(directed), how)
        assert np.array_equal(graph.toarray(), dense)
        assert graph.nnz == np.count_nonzero(dense)


def test_weights_are_those_of_their_formulas():
    points = np.random.default_rng(0).normal(size=(40, 2))
    points[7] = points[3]
    indices, distances = nearest_neighbours(points, 4)
    reach = distances[:, -1]
    for weight in ("binary", "gaussian", "self_tuning"):
        dense = np.zeros((40, 40))
        for i in range(40):
            for j, d in zip(indices[i], distances[i], strict=True):
                width = {"gaussian": 2 * np.mean(reach) ** 2, "self_tuning": reach[i] * reach[j]}.get(weight)
                dense[i, j] = 1.0 if weight == "binary" else np.exp(-(d**2) / width)
        np.testing.assert_allclose(
            neighbour_graph(indices, distances, weight, "or").toarray(), np.maximum(dense, dense.T), rtol=1e-12
        )


@pytest.mark.parametrize("weight", ["gaussian", "self_tuning"])
def test_many_duplicates_give_finite_weights_and_lose_no_edge(weight):
    points = np.r_[np.zeros((20, 2)), np.random.default_rng(0).normal(size=(20, 2)) + 1e3]
    graph = knn_graph(points, 5, weight, "or")
    assert np.isfinite(graph.data).all() and (graph.data > 0).all()
    assert edge_count(graph) == edge_count(knn_graph(points, 5, "binary", "or"))


@pytest.mark.parametrize("seed", range(20))
def test_modularity_is_that_of_networkx(seed):
    graph, labels, _ = random_graph(seed)
    clusters = [set(np.flatnonzero(labels == c).tolist()) for c in range(labels.max() + 1)]
    expected = nx.community.modularity(nx.from_scipy_sparse_array(graph), clusters)
    assert modularity(graph, labels) == pytest.approx(expected, abs=1e-10)


def test_modularity_is_the_double_sum_of_equation_1():
    graph, labels, _ = random_graph(3, n=25)
    A = graph.toarray()
    k, m = A.sum(axis=1), A.sum() / 2
    total = 0.0
    for i in range(25):
        for j in range(25):
            total += (A[i, j] - k[i] * k[j] / (2 * m)) * (labels[i] == labels[j])
    assert modularity(graph, labels) == pytest.approx(total / (2 * m), abs=1e-12)


def test_a_graph_without_edges_has_modularity_0_and_n_components():
    empty = sparse.csr_array((4, 4))
    assert modularity(empty, np.zeros(4, int)) == 0.0
    assert component_count(empty) == 4


def test_modularity_rises_when_an_edge_between_clusters_weakens_under_the_condition_of_section_3_2():
    """To first order: E_in/m > 2 Σ (D_c/2m)² is enough, for whichever edge between clusters."""
    held = 0
    for seed in range(60):
        graph, labels, generator = random_graph(seed)
        A = graph.toarray()
        same = labels[:, None] == labels[None]
        A[same] *= generator.uniform(1, 12)  # more or less clustered
        m, degree = A.sum() / 2, A.sum(axis=1)
        shares = np.array([degree[labels == c].sum() for c in range(labels.max() + 1)]) / (2 * m)
        if A[same].sum() / 2 / m <= 2 * np.square(shares).sum():
            continue
        held += 1
        before = modularity(sparse.csr_array(A), labels)
        between = np.argwhere(np.triu(A * ~same) > 0)
        for i, j in between[generator.permutation(len(between))[:10]]:
            weaker = A.copy()
            weaker[i, j] = weaker[j, i] = A[i, j] * (1 - 1e-3)
            assert modularity(sparse.csr_array(weaker), labels) > before
    assert held >= 20


def test_modularity_can_fall_when_an_edge_between_clusters_goes():
    """The paper's 'usually' has exceptions: one cluster holds nearly all, two small ones part."""
    graph = nx.complete_graph(20)
    graph.add_edges_from([(0, 20), (1, 21), (20, 21)])
    labels = np.array([0] * 20 + [1, 2])
    A = sparse.csr_array(nx.to_scipy_sparse_array(graph, dtype=float))
    pairs = np.zeros((3, 3), bool)
    pairs[1, 2] = pairs[2, 1] = True
    pruned, removed = prune_pairs(A, labels, pairs)
    assert removed == 1
    assert modularity(pruned, labels) < modularity(A, labels)


def test_pruning_removes_exactly_the_edges_between_the_pairs():
    graph, labels, generator = random_graph(5)
    pairs = generator.random((labels.max() + 1,) * 2) < 0.3
    pairs = pairs | pairs.T
    np.fill_diagonal(pairs, False)
    before = graph.copy()
    pruned, removed = prune_pairs(graph, labels, pairs)
    expected, count = graph.toarray(), 0
    for i in range(60):
        for j in range(60):
            if expected[i, j] and pairs[labels[i], labels[j]]:
                expected[i, j], count = 0.0, count + 1
    assert np.array_equal(pruned.toarray(), expected)
    assert removed == count / 2 > 0
    assert np.array_equal(graph.data, before.data)  # the given graph is as it was
    with pytest.raises(ValueError, match="symmetric"):
        prune_pairs(graph, labels, np.triu(np.ones_like(pairs), k=1))


def normalised(graph):
    A = graph.toarray()
    scale = 1 / np.sqrt(np.where(A.sum(axis=1) > 0, A.sum(axis=1), 1))
    return A, scale, scale[:, None] * A * scale[None]


def connected(seed=0, n=300):
    return knn_graph(np.random.default_rng(seed).normal(size=(n, 2)), 8, "self_tuning", "or")


def projector(vectors):
    orthonormal = np.linalg.qr(vectors)[0]
    return orthonormal @ orthonormal.T


@pytest.mark.parametrize("least", [None, 0])
@pytest.mark.parametrize("laplacian", ["sym", "unnorm"])
def test_embedding_spans_the_leading_eigenvectors_of_a_dense_solver(laplacian, least):
    graph = connected()
    assert component_count(graph) == 1
    A, _, S = normalised(graph)
    if laplacian == "sym":
        exact = np.linalg.eigh(S)[1][:, ::-1][:, :6]
    else:
        exact = np.linalg.eigh(np.diag(A.sum(axis=1)) - A)[1][:, :6]
    ours = spectral_embedding(graph, 6, laplacian, 0, least)
    np.testing.assert_allclose(projector(ours), projector(exact), atol=1e-5)
    np.testing.assert_allclose(np.abs(ours.T @ exact), np.eye(6), atol=1e-3)  # in the same order


def test_random_walk_and_row_normalised_embeddings_follow_from_the_symmetric_one():
    graph = connected()
    scale = normalised(graph)[1]
    sym, rw, rows = (spectral_embedding(graph, 5, name, 0, 0) for name in ("sym", "rw", "sym_row"))
    np.testing.assert_allclose(rw, sym * scale[:, None], rtol=1e-12)
    np.testing.assert_allclose(rows, sym / np.linalg.norm(sym, axis=1, keepdims=True), rtol=1e-12)


def parts(*sizes):
    """Separate graphs of these sizes side by side."""
    return sparse.csr_array(sparse.block_diag([connected(seed, n) for seed, n in enumerate(sizes)]))


@pytest.mark.parametrize("seed", range(5))
def test_every_component_has_its_copy_of_the_leading_eigenvector(seed):
    graph = parts(40, 200, 25, 90)
    exact = np.linalg.eigh(normalised(graph)[2])[1][:, ::-1][:, :4]  # eigenvalue 1, four times
    np.testing.assert_allclose(projector(spectral_embedding(graph, 4, "sym", seed, 0)), projector(exact), atol=1e-5)


def test_small_components_get_no_eigenvectors_and_rows_of_zeros():
    graph = parts(40, 200, 25, 90)
    ours = spectral_embedding(graph, 4, "sym", 0, 60)
    small = np.r_[0:40, 240:265]
    assert not ours[small].any()
    large = np.setdiff1d(np.arange(355), small)
    alone = sparse.csr_array(graph[large][:, large])
    exact = np.linalg.eigh(normalised(alone)[2])[1][:, ::-1][:, :4]
    np.testing.assert_allclose(projector(ours[large]), projector(exact), atol=1e-5)


def test_isolated_nodes_have_rows_of_zeros_and_nothing_is_divided_by_zero():
    graph = sparse.csr_array(sparse.block_diag([connected(), np.zeros((3, 3))]))
    for laplacian in ("sym", "rw", "unnorm", "sym_row"):
        for least in (None, 0):
            ours = spectral_embedding(graph, 5, laplacian, 0, least)
            assert np.isfinite(ours).all()
            assert not ours[-3:].any()


def test_a_directed_graph_is_refused():
    with pytest.raises(ValueError, match="directed"):
        spectral_embedding(sparse.csr_array(np.triu(np.ones((30, 30)), k=1)), 3, "sym", 0, 0)


def test_more_clusters_than_points_are_refused_and_as_many_are_not():
    graph = connected(n=20)
    assert spectral_embedding(graph, 20, "sym", 0, 0).shape == (20, 20)
    with pytest.raises(InputError, match="21 clusters need at least as many points, found 20"):
        spectral_embedding(graph, 21, "sym", 0, 0)


def fail(*_, **__):
    raise ArpackNoConvergence("no convergence", np.empty(0), np.empty((0, 0)))


@pytest.mark.parametrize("laplacian", ["sym", "unnorm"])
def test_where_arpack_fails_lobpcg_finds_the_same(monkeypatch, laplacian):
    expected = spectral_embedding(connected(), 5, laplacian, 0, 0)
    monkeypatch.setattr(graphs, "eigsh", fail)
    dense = monkeypatch.setattr(graphs, "_dense", fail)
    assert dense is None
    ours = spectral_embedding(connected(), 5, laplacian, 0, 0)
    np.testing.assert_allclose(projector(ours), projector(expected), atol=1e-2)


def test_where_both_fail_a_small_graph_is_solved_densely_and_a_large_one_is_refused(monkeypatch):
    expected = spectral_embedding(connected(), 5, "sym", 0, 0)
    large = connected(n=1600)
    monkeypatch.setattr(graphs, "eigsh", fail)
    monkeypatch.setattr(graphs, "lobpcg", lambda matrix, start, **_: (np.ones(start.shape[1]), start))
    ours = spectral_embedding(connected(), 5, "sym", 0, 0)
    np.testing.assert_allclose(projector(ours), projector(expected), atol=1e-5)
    with pytest.raises(InputError, match="no eigensolver converged on a graph of 1600 points"):
        spectral_embedding(large, 5, "sym", 0, 0)
