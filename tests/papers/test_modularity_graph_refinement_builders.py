"""The rival graphs against loops, networkx and a general optimiser; the clusterings by name."""

import sys

import networkx as nx
import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize

from components.graph import edge_count, knn_graph, modularity, nearest_neighbours
from lightning_modules.modularity_graph_refinement.clustering import Clustering
from lightning_modules.modularity_graph_refinement.graph_builders import (
    NeighbourGraph,
    consensus,
    consensus_counts,
    knn,
    lgss,
    smooth_weights,
    smoothness_scale,
    spectral_sparsify,
    tree_resistance,
)
from runs.errors import InputError

GRAPH = NeighbourGraph(k=6, weight="binary", symmetrize="or")
POINTS = np.random.default_rng(0).normal(size=(150, 3))


def no_partition(graph):
    raise AssertionError("this builder needs no clusters")


def halves(graph):
    return (np.arange(graph.shape[0]) % 2).astype(np.int64)


def test_knn_is_the_graph_of_the_neighbours():
    assert (knn(POINTS, GRAPH, no_partition) != knn_graph(POINTS, 6, "binary", "or")).nnz == 0


def test_consensus_counts_the_lists_that_hold_both_ends():
    indices, _ = nearest_neighbours(POINTS, 6)
    lists = [{i, *indices[i].tolist()} for i in range(len(POINTS))]
    edges = knn_graph(POINTS, 6, "binary", "or")
    held = np.zeros((150, 150))
    for i, members in enumerate(lists):
        held[i, list(members)] = 1
    counts = consensus_counts(sparse.csr_array(held), edges)
    row, column = edges.nonzero()
    expected = [sum(i in members and j in members for members in lists) for i, j in zip(row, column, strict=True)]
    assert counts.tolist() == expected


def test_consensus_keeps_edges_of_the_threshold_with_the_highest_modularity():
    edges = knn_graph(POINTS, 6, "binary", "or")
    graphs = {t: consensus(POINTS, GRAPH, halves, [t]) for t in (1, 3, 5)}
    assert (graphs[1] != edges).nnz == 0  # the lists of both ends hold both: at least 1
    assert edges.nnz > graphs[3].nnz > graphs[5].nnz > 0
    best = max(graphs.values(), key=lambda graph: modularity(graph, halves(graph)))
    assert (consensus(POINTS, GRAPH, halves, [1, 3, 5]) != best).nnz == 0


def test_consensus_without_an_edge_is_refused():
    with pytest.raises(InputError, match=r"thresholds=\[99\] leave no edge"):
        consensus(POINTS, GRAPH, halves, [99])


def test_smooth_weights_minimise_their_objective():
    """Against L-BFGS on 2 wᵀz - Σ log(Sw) + ‖w‖², written from the formula."""
    generator = np.random.default_rng(0)
    row, column = np.array([(i, j) for i in range(8) for j in range(i + 1, 8)], dtype=np.int32).T
    z = generator.uniform(0.05, 2, len(row))

    def objective(w):
        degree = np.zeros(8)
        for i, j, weight in zip(row, column, w, strict=True):
            degree[i], degree[j] = degree[i] + weight, degree[j] + weight
        slope = 2 * z + 2 * w - np.array([1 / degree[i] + 1 / degree[j] for i, j in zip(row, column, strict=True)])
        return 2 * w @ z - np.log(degree).sum() + w @ w, slope

    start = np.full(len(row), 0.3)
    reference = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=[(1e-12, None)] * len(row), tol=1e-14)
    ours = smooth_weights(row, column, z, 8, tolerance=1e-8, max_steps=20000)
    np.testing.assert_allclose(ours, reference.x, atol=2e-4)
    assert objective(np.maximum(ours, 1e-12))[0] <= reference.fun + 1e-6


def test_smoothness_scale_is_the_geometric_mean_of_the_averaged_bounds():
    z = nearest_neighbours(POINTS, 12)[1] ** 2
    lower = [1 / np.sqrt(5 * row[5] ** 2 - row[5] * sum(row[:5])) for row in z]
    upper = [1 / np.sqrt(5 * row[4] ** 2 - row[4] * sum(row[:5])) for row in z]
    assert smoothness_scale(z, 5) == pytest.approx(np.sqrt(np.mean(lower) * np.mean(upper)))


@pytest.mark.parametrize("k", [5, 10])
def test_the_learned_graph_has_about_k_neighbours_a_node(k):
    points = np.random.default_rng(1).normal(size=(600, 4))
    graph = lgss(points, NeighbourGraph(k, "binary", "or"), no_partition, candidates=3, tolerance=1e-5, max_steps=5000)
    assert (graph != graph.T).nnz == 0
    assert 2 * edge_count(graph) / 600 == pytest.approx(k, rel=0.3)


def test_lgss_says_what_it_lacks():
    with pytest.raises(InputError, match=r"raise model\.builder\.candidates"):
        lgss(POINTS, GRAPH, no_partition, candidates=1, tolerance=1e-3, max_steps=10)
    with pytest.raises(InputError, match="one single distance"):
        lgss(np.zeros((40, 2)), GRAPH, no_partition, candidates=3, tolerance=1e-3, max_steps=10)


def test_tree_resistance_is_the_sum_along_the_path():
    generator = np.random.default_rng(0)
    forest = nx.disjoint_union(nx.random_labeled_tree(60, seed=1), nx.path_graph(25))
    for _, _, edge in forest.edges(data=True):
        edge["weight"] = generator.uniform(0.1, 2)
    tree = sparse.csr_array(nx.to_scipy_sparse_array(forest))
    pairs = np.r_[generator.integers(60, size=(80, 2)), 60 + generator.integers(25, size=(40, 2))]
    expected = [nx.shortest_path_length(forest, int(i), int(j), weight="weight") for i, j in pairs]
    np.testing.assert_allclose(tree_resistance(tree, *pairs.T), expected, atol=1e-12)


def test_the_sparsifier_is_a_maximum_spanning_tree_and_the_worst_represented_edges():
    whole = nx.from_scipy_sparse_array(knn_graph(POINTS, 6, "self_tuning", "or"))
    tree = nx.maximum_spanning_tree(whole)
    ours = spectral_sparsify(POINTS, GRAPH, no_partition, edges_per_point=1.2)
    assert edge_count(ours) == 180
    kept = set(nx.from_scipy_sparse_array(ours).edges)
    assert set(tree.edges) <= kept
    for _, _, edge in tree.edges(data=True):
        edge["resistance"] = 1 / edge["weight"]
    importance = {
        (i, j): weight * nx.shortest_path_length(tree, i, j, weight="resistance")
        for i, j, weight in whole.edges(data="weight")
        if not tree.has_edge(i, j)
    }
    assert min(importance[e] for e in importance if e in kept) > max(importance[e] for e in importance if e not in kept)
    assert set(np.unique(ours.data)) == {1.0}
    only_tree = spectral_sparsify(POINTS, GRAPH, no_partition, edges_per_point=0.1)
    assert edge_count(only_tree) == tree.number_of_edges()  # never less than connected


def clustering(method, **changed):
    settings = {"p": 3, "laplacian": "sym", "least_component": 0.5, "n_init": 10, "seed": 0, **changed}
    return Clustering(method=method, **settings)


def rings():
    """Three groups far apart, joined by single edges."""
    graph = nx.relaxed_caveman_graph(3, 20, 0.02, seed=1)
    return sparse.csr_array(nx.to_scipy_sparse_array(graph, dtype=float)), np.repeat(np.arange(3), 20)


@pytest.mark.parametrize("method", ["spectral", "louvain", "leiden", "kmeans"])
def test_each_method_finds_clear_groups(method):
    if method == "leiden":
        pytest.importorskip("leidenalg")
    graph, true = rings()
    how = clustering(method)
    points = np.column_stack([true * 10.0, np.random.default_rng(0).normal(size=60)])
    found = how.labels(graph, how.embedding(graph), points)
    assert len(set(zip(found.tolist(), true.tolist(), strict=True))) == 3
    assert np.array_equal(np.unique(found), np.arange(3))
    assert np.array_equal(found, how.labels(graph, how.embedding(graph), points))


def test_without_leidenalg_leiden_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "leidenalg", None)
    graph, _ = rings()
    with pytest.raises(InputError, match=r"needs the packages leidenalg and igraph: pip install .*or take .*louvain"):
        clustering("leiden").labels(graph, np.zeros((60, 3)), np.zeros((60, 2)))


@pytest.mark.parametrize(("share", "least"), [(None, None), (0.0, 0), (0.5, 10), (0.51, 11)])
def test_the_least_component_is_a_share_of_the_mean_cluster(monkeypatch, share, least):
    graph, _ = rings()
    asked = []
    monkeypatch.setattr(
        "lightning_modules.modularity_graph_refinement.clustering.spectral_embedding",
        lambda *arguments: asked.append(arguments[1:]),
    )
    clustering("spectral", least_component=share).embedding(graph)
    assert asked == [(3, "sym", 0, least)]
