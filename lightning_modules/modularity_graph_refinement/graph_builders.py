"""The graphs that the paper compares: k-NN, consensus k-NN, learned from smooth signals, spectrally sparsified.

A builder is called with the points, the settings of the k-NN graph and a function that clusters a graph;
it returns the graph that is clustered, or refined.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from components.graph import (
    Symmetrize,
    Weight,
    knn_graph,
    modularity,
    nearest_neighbours,
    neighbour_graph,
    tidy,
)
from runs.errors import InputError

Partition = Callable[[sparse.csr_array], NDArray[np.int64]]


@dataclass(frozen=True)
class NeighbourGraph:
    """The k-NN graph that everything starts from: neighbours k, edge weights, how lists become edges."""

    k: int
    weight: Weight
    symmetrize: Symmetrize


def knn(points: NDArray[np.float64], graph: NeighbourGraph, partition: Partition) -> sparse.csr_array:
    """The k-NN graph itself, the paper's baseline and its starting point."""
    return knn_graph(points, graph.k, graph.weight, graph.symmetrize)


def consensus(
    points: NDArray[np.float64], graph: NeighbourGraph, partition: Partition, thresholds: list[int]
) -> sparse.csr_array:
    """Keeps the k-NN edges whose ends are together in at least τ neighbour lists, each list with its own point.

    Premachandran and Kakarala 2013. Of the given thresholds τ that leave an edge the one whose graph,
    clustered, has the highest modularity is taken.
    """
    indices, distances = nearest_neighbours(points, graph.k)
    edges = neighbour_graph(indices, distances, graph.weight, graph.symmetrize)
    n, k = indices.shape
    lists = sparse.csr_array((np.ones(n * k), indices.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    lists = sparse.csr_array(lists + sparse.eye_array(n))
    together = consensus_counts(lists, edges)
    graphs = []
    for threshold in thresholds:
        kept = edges.copy()
        kept.data[together < threshold] = 0.0
        if (kept := tidy(kept)).nnz:
            graphs.append(kept)
    if not graphs:
        raise InputError(f"model.builder.thresholds={thresholds} leave no edge: give lower ones, from 1 on")
    return max(graphs, key=lambda kept: modularity(kept, partition(kept)))


def consensus_counts(lists: sparse.csr_array, edges: sparse.csr_array) -> NDArray[np.float64]:
    """For each stored edge (i, j), in how many lists (rows of a 0/1 array) both i and j are."""
    holders = sparse.csr_array(lists.T)
    row, column = sparse.coo_array(edges).coords
    return np.asarray(holders[row].multiply(holders[column]).sum(axis=1)).ravel()


def lgss(
    points: NDArray[np.float64],
    graph: NeighbourGraph,
    partition: Partition,
    candidates: int,
    tolerance: float,
    max_steps: int,
) -> sparse.csr_array:
    """Learns the weights of a graph with about k edges a node on which the points vary smoothly.

    Kalofolias and Perraudin 2019: minimises 2θ wᵀz - Σ log(Sw) + ‖w‖² over w >= 0 on the edges of the graph
    of ``candidates`` x k neighbours; z are squared distances, S sums edges into degrees, and θ comes
    from k in closed form. Solved by a forward-backward-forward primal-dual method until the relative
    change is below ``tolerance``.
    """
    n = len(points)
    indices, distances = nearest_neighbours(points, min(candidates * graph.k, n - 1))
    allowed = sparse.coo_array(sparse.triu(neighbour_graph(indices, distances, "binary", "or"), k=1))
    row, column = allowed.coords
    z = np.square(points[row] - points[column]).sum(axis=1)
    w = smooth_weights(row, column, smoothness_scale(distances**2, graph.k) * z, n, tolerance, max_steps)
    w[w < 1e-5 * w.max()] = 0.0
    return tidy(sparse.coo_array((np.r_[w, w], (np.r_[row, column], np.r_[column, row])), shape=(n, n)))


def smoothness_scale(sorted_squared: NDArray[np.float64], k: int) -> float:
    """θ for about k neighbours: the geometric mean of its two bounds, each averaged over the nodes.

    Args:
        sorted_squared: (n, more than k) squared distances to the other points, ascending.
        k: wanted neighbours.
    """
    if sorted_squared.shape[1] <= k:
        raise InputError(f"lgss needs more than model.graph.k={k} candidate neighbours: raise model.builder.candidates")
    nearest = sorted_squared[:, :k].sum(axis=1)
    bounds = []
    for z in (sorted_squared[:, k], sorted_squared[:, k - 1]):
        square = k * z**2 - z * nearest
        usable = square > 1e-12 * np.maximum(z**2, np.finfo(float).tiny)  # all k at one distance: no bound
        if not usable.any():
            raise InputError("lgss finds no scale: each point has its nearest neighbours at one single distance")
        bounds.append(np.mean(1 / np.sqrt(square[usable])))
    return float(np.sqrt(bounds[0] * bounds[1]))


def smooth_weights(
    row: NDArray[np.int32], column: NDArray[np.int32], z: NDArray[np.float64], n: int, tolerance: float, max_steps: int
) -> NDArray[np.float64]:
    """w >= 0 that minimises 2 wᵀz - Σ log(Sw) + ‖w‖² (z scaled already), one weight for each edge (row, column)."""
    edges = np.arange(len(z))
    into_degrees = sparse.csr_array((np.ones(2 * len(z)), (np.r_[row, column], np.r_[edges, edges])), shape=(n, len(z)))
    to_edges = into_degrees.T.tocsr()
    largest = np.sqrt(2 * np.diff(into_degrees.indptr).max())  # bounds the norm of S
    step = 0.9 / (2 + largest)
    w, dual = np.zeros(len(z)), np.zeros(n)
    for _ in range(max_steps):
        forward = w - step * (2 * w + to_edges @ dual)
        dual_forward = dual + step * (into_degrees @ w)
        backward = np.maximum(0.0, forward - 2 * step * z)
        dual_backward = (dual_forward - np.sqrt(dual_forward**2 + 4 * step)) / 2
        change = backward - step * (2 * backward + to_edges @ dual_backward) - forward
        dual_change = dual_backward + step * (into_degrees @ backward) - dual_forward
        w, dual = w + change, dual + dual_change
        small = np.linalg.norm(change) <= tolerance * np.linalg.norm(w)
        if small and np.linalg.norm(dual_change) <= tolerance * np.linalg.norm(dual):
            break
    return np.maximum(w, 0.0)


def spectral_sparsify(
    points: NDArray[np.float64], graph: NeighbourGraph, partition: Partition, edges_per_point: float
) -> sparse.csr_array:
    """A maximum spanning tree of the k-NN graph, and the off-tree edges that it represents worst.

    Wang and Feng 2022: off-tree edges come in order of weight times their resistance along the tree,
    until there are ``edges_per_point`` edges for each point. Tree and resistances use self-tuning
    weights (binary ones would leave the tree to chance); the kept edges have ``graph.weight``.
    """
    indices, distances = nearest_neighbours(points, graph.k)
    edges = neighbour_graph(indices, distances, graph.weight, graph.symmetrize)
    upper = sparse.coo_array(sparse.triu(neighbour_graph(indices, distances, "self_tuning", graph.symmetrize), k=1))
    row, column = upper.coords
    resistance = 1 / upper.data
    n = len(points)
    tree = minimum_spanning_tree(sparse.csr_array((resistance, (row, column)), shape=(n, n)))
    tree = sparse.csr_array(tree.maximum(tree.T))
    on_tree = np.asarray(tree[row, column]).ravel() > 0
    importance = upper.data * tree_resistance(tree, row, column)
    importance[on_tree] = np.inf
    wanted = max(round(edges_per_point * n), int(on_tree.sum()))
    kept = np.argsort(-importance, kind="stable")[:wanted]
    mask = sparse.coo_array((np.ones(len(kept)), (row[kept], column[kept])), shape=(n, n))
    return tidy(edges.multiply(mask + mask.T))


def tree_resistance(tree: sparse.csr_array, row: NDArray[np.int32], column: NDArray[np.int32]) -> NDArray[np.float64]:
    """Summed resistance of the path between the ends of each pair, in a forest of edge resistances.

    All pairs at once: distances from the root, less twice that of the lowest common ancestor, which
    is found by jumps of powers of two. Both ends of a pair are in one tree.
    """
    n = tree.shape[0]
    _, component = connected_components(tree, directed=False)
    parent = np.arange(n)
    for root in np.unique(component, return_index=True)[1]:
        order, before = breadth_first_order(tree, root, directed=False)
        parent[order[1:]] = before[order[1:]]
    from_root, depth = np.asarray(tree[np.arange(n), parent]).ravel(), (parent != np.arange(n)).astype(np.int64)
    jumps = [parent]  # each twice as far as the one before; roots jump to themselves
    while not np.array_equal(jumps[-1], jumps[-1][jumps[-1]]):
        from_root, depth = from_root + from_root[jumps[-1]], depth + depth[jumps[-1]]
        jumps.append(jumps[-1][jumps[-1]])

    deep, shallow = np.where(depth[row] >= depth[column], (row, column), (column, row))
    gap = depth[deep] - depth[shallow]
    for power, jump in enumerate(jumps):
        deep = np.where(gap >> power & 1, jump[deep], deep)
    for jump in reversed(jumps):
        apart = jump[deep] != jump[shallow]
        deep, shallow = np.where(apart, jump[deep], deep), np.where(apart, jump[shallow], shallow)
    ancestor = np.where(deep == shallow, deep, parent[deep])
    return from_root[row] + from_root[column] - 2 * from_root[ancestor]
