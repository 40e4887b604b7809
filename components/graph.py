"""Sparse graphs on points: k nearest neighbours, modularity, spectral embeddings, pruning between clusters.

A graph is a symmetric ``scipy.sparse.csr_array`` of float64 weights without a diagonal; no function makes
an n x n array. All of it is deterministic: ties between distances go to the smaller index, and what
starts from random vectors takes a seed.
"""

import time
import warnings
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh, lobpcg, splu
from scipy.spatial import KDTree
from sklearn.neighbors import NearestNeighbors

from runs.errors import InputError

Weight = Literal["binary", "gaussian", "self_tuning"]
Symmetrize = Literal["or", "and", "mean"]
Laplacian = Literal["sym", "rw", "unnorm", "sym_row"]

_BLOCK_BYTES = 32 * 2**20
_TREE_DIMENSIONS = 32  # above them a k-d tree visits nearly every point
_TRIAL_ROWS = 200
_EIGEN_TOLERANCE = 1e-6  # of ARPACK and LOBPCG
_DENSE_POINTS = 1500  # up to so many points a dense eigensolver is the last resort


def nearest_neighbours(points: NDArray[np.float64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The exact k nearest other points of each point, by Euclidean distance, nearest first.

    A library proposes some candidates more than k, by k-d tree or by blocks of all distances, whichever is
    faster here on a sample of rows. Their distances are then computed again without the rounding of
    |x|² - 2xy + |y|², and sorted by (distance, index); rows whose k-th place could be tied with a
    point that was not proposed are searched in full, equal points once. So the answer depends on
    nothing but the points.

    Args:
        points: (n, d), finite. Duplicates are neighbours at distance 0.
        k: neighbours, below n.

    Returns:
        Indices (n, k) and distances (n, k).

    Raises:
        InputError: k is not between 1 and n - 1.
    """
    n, d = points.shape
    if not 1 <= k < n:
        raise InputError(f"a graph of k={k} nearest neighbours needs more than {max(k, 1)} points, found {n}: lower k")
    points = np.ascontiguousarray(points, dtype=np.float64)
    centred = points - points.mean(axis=0)
    count = min(n, k + 1 + max(2, k // 5))
    candidates = _candidates(centred, count)
    indices, squared = np.empty((n, k), np.int64), np.empty((n, k))
    norm, slack, doubtful = np.linalg.norm(centred, axis=1), np.empty(n), np.zeros(n, dtype=bool)
    rows_at_once = max(1, _BLOCK_BYTES // (8 * d * count))
    for first in range(0, n, rows_at_once):
        rows = slice(first, first + rows_at_once)
        exact, farthest = _sorted_candidates(points, np.arange(n)[rows], candidates[rows])
        indices[rows], squared[rows] = exact[0][:, :k], exact[1][:, :k]
        # Twice the rounding error of the library's distances to points no farther than these, which decides
        # whether such a point can be missing. Its norm is at most that of the row and their distance.
        slack[rows] = 16 * (d + 2) * np.finfo(float).eps * (norm[rows] + np.sqrt(farthest)) ** 2
        doubtful[rows] = (count < n) & (squared[rows, -1] + slack[rows] >= farthest)
    if doubtful.any():
        rows = np.flatnonzero(doubtful)
        # Of equal points one is searched.
        _, single, place = np.unique(points[rows], axis=0, return_index=True, return_inverse=True)
        single, place = rows[single], place.ravel()
        found = _all_candidates(points, centred, single, squared[single, -1] + slack[single], k + 1)[place]
        rows_at_once = max(1, _BLOCK_BYTES // (8 * d * (k + 1)))
        for first in range(0, len(rows), rows_at_once):
            some = slice(first, first + rows_at_once)
            (indices[rows[some]], squared[rows[some]]), _ = _sorted_candidates(points, rows[some], found[some])
    return indices, np.sqrt(squared)


def _candidates(points: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The ``count`` nearest points of each, itself among them, up to rounding."""
    threads = torch.get_num_threads()
    brute = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points)
    tree = KDTree(points) if points.shape[1] <= _TREE_DIMENSIONS else None
    if tree is not None and len(points) > _TRIAL_ROWS:
        trial = points[:: len(points) // _TRIAL_ROWS]
        started = time.perf_counter()
        tree.query(trial, count, workers=threads)
        middle = time.perf_counter()
        brute.kneighbors(trial, return_distance=False)
        if middle - started > time.perf_counter() - middle:
            tree = None
    if tree is None:
        return brute.kneighbors(points, return_distance=False)
    return tree.query(points, count, workers=threads)[1].reshape(len(points), -1)


def _sorted_candidates(
    points: NDArray[np.float64], rows: NDArray[np.int64], candidates: NDArray[np.int64]
) -> tuple[tuple[NDArray[np.int64], NDArray[np.float64]], NDArray[np.float64]]:
    """Candidates without the row itself by (exact squared distance, index), and the farthest distance of each row."""
    difference = points[candidates] - points[rows][:, None]
    squared = np.square(difference, out=difference).sum(axis=2)
    farthest = squared.max(axis=1)
    squared[candidates == rows[:, None]] = -1.0  # the row itself to the front, where it is cut off
    absent = ~(candidates == rows[:, None]).any(axis=1)  # crowded out by duplicates: drop the farthest instead
    order = np.lexsort((candidates, squared), axis=1)
    kept = np.where(absent[:, None], order[:, :-1], order[:, 1:])
    return (np.take_along_axis(candidates, kept, 1), np.take_along_axis(squared, kept, 1)), farthest


def _all_candidates(
    points: NDArray[np.float64],
    centred: NDArray[np.float64],
    rows: NDArray[np.int64],
    limit: NDArray[np.float64],
    count: int,
) -> NDArray[np.int64]:
    """The first ``count`` of all points by (exact squared distance, index) for some rows, each itself among them.

    Args:
        points: (n, d).
        centred: the same around their mean, for the matrix product.
        rows: which points to search for, (m,).
        limit: squared distances, rounding allowed for, beyond which none of the ``count`` can lie, (m,).
        count: at least so many lie within ``limit``.

    Returns:
        Indices (m, count).
    """
    norm = np.einsum("nd,nd->n", centred, centred)
    left, right = np.column_stack([-2 * centred, np.ones(len(norm))]), np.column_stack([centred, norm])
    found = np.empty((len(rows), count), np.int64)
    rows_at_once = max(1, _BLOCK_BYTES // points.nbytes)
    for first in range(0, len(rows), rows_at_once):
        some = rows[first : first + rows_at_once]
        reach = limit[first : first + rows_at_once] - norm[some]
        row, near = np.nonzero(left[some] @ right.T <= reach[:, None])  # |y|² - 2xy
        exact = np.square(points[near] - points[some[row]]).sum(axis=1)
        order = np.lexsort((near, exact, row))
        start = np.searchsorted(row, np.arange(len(some)))
        found[first : first + len(some)] = near[order[start[:, None] + np.arange(count)]]
    return found


def symmetrize(directed: sparse.csr_array, how: Symmetrize) -> sparse.csr_array:
    """An undirected graph: an edge where either end names the other (or), where both do (and), or the mean weight."""
    if how == "or":
        graph = directed.maximum(directed.T)
    elif how == "and":
        graph = directed.minimum(directed.T)
    else:
        graph = (directed + directed.T) / 2
    return tidy(graph)


def tidy(graph: sparse.sparray) -> sparse.csr_array:
    """The same graph with sorted indices and no stored zeros, so that equal graphs have equal arrays."""
    graph = sparse.csr_array(graph, dtype=np.float64)
    graph.sum_duplicates()
    graph.eliminate_zeros()
    graph.sort_indices()
    return sparse.csr_array((graph.data, graph.indices.astype(np.int32), graph.indptr.astype(np.int32)), graph.shape)


def neighbour_graph(
    indices: NDArray[np.int64], distances: NDArray[np.float64], weight: Weight, how: Symmetrize
) -> sparse.csr_array:
    """The graph of neighbour lists (n, k), with the weights:

    ``binary`` 1; ``gaussian`` exp(-d²/2σ²), σ the mean distance to the k-th neighbour; ``self_tuning``
    exp(-d²/σ_iσ_j), σ_i the distance of i to its k-th neighbour (Zelnik-Manor and Perona 2004).
    """
    n, k = indices.shape
    reach = distances[:, -1]
    if weight == "binary":
        values = np.ones((n, k))
    else:
        width = 2 * reach.mean() ** 2 if weight == "gaussian" else reach[:, None] * reach[indices]
        # Duplicates: distance 0 is weight 1, also where the width is 0.
        ratio = np.divide(distances**2, width, out=np.where(distances > 0, np.inf, 0.0), where=np.asarray(width) > 0)
        values = np.maximum(np.exp(-ratio), np.finfo(float).tiny)  # a far neighbour stays an edge
    start = np.arange(0, n * k + 1, k)
    return symmetrize(sparse.csr_array((values.ravel(), indices.ravel(), start), shape=(n, n)), how)


def knn_graph(points: NDArray[np.float64], k: int, weight: Weight, how: Symmetrize) -> sparse.csr_array:
    """The graph of the k nearest neighbours; see `nearest_neighbours` and `neighbour_graph`."""
    return neighbour_graph(*nearest_neighbours(points, k), weight, how)


def degrees(graph: sparse.csr_array) -> NDArray[np.float64]:
    """Summed weight of each node's edges, (n,)."""
    return np.asarray(graph.sum(axis=1)).ravel()


def edge_count(graph: sparse.csr_array) -> int:
    """Undirected edges."""
    return graph.nnz // 2


def component_count(graph: sparse.csr_array) -> int:
    """Connected components; an isolated node is one."""
    return int(connected_components(graph, directed=False, return_labels=False))


def modularity(graph: sparse.csr_array, labels: NDArray[np.int64]) -> float:
    """Q = Σ_c [E_c/m - (D_c/2m)²], E_c the edge weight inside cluster c, D_c its summed degree; O(edges).

    A graph without edges has Q = 0.
    """
    twice_m = float(graph.sum())
    if twice_m == 0:
        return 0.0
    rows = np.repeat(labels, np.diff(graph.indptr))
    inside = float(graph.data[rows == labels[graph.indices]].sum())
    of_cluster = np.bincount(labels, degrees(graph))
    return inside / twice_m - float(np.square(of_cluster / twice_m).sum())


def prune_pairs(
    graph: sparse.csr_array, labels: NDArray[np.int64], pairs: NDArray[np.bool_]
) -> tuple[sparse.csr_array, int]:
    """Drops every edge between clusters of a pair.

    Args:
        graph: n nodes.
        labels: (n,), cluster of each node.
        pairs: (p, p), symmetric; True where all edges between two clusters go.

    Returns:
        The pruned graph, and how many edges went.
    """
    if not np.array_equal(pairs, pairs.T):
        raise ValueError("pairs must be symmetric: an edge has two directions")
    rows = np.repeat(labels, np.diff(graph.indptr))
    kept = graph.copy()
    kept.data[pairs[rows, labels[graph.indices]]] = 0.0
    pruned = tidy(kept)
    return pruned, edge_count(graph) - edge_count(pruned)


def spectral_embedding(
    graph: sparse.csr_array, p: int, laplacian: Laplacian, seed: int, least_component: int | None
) -> NDArray[np.float64]:
    """The p leading eigenvectors of a graph, (n, p).

    ``sym``: the largest of S = D^-½ A D^-½; ``rw``: those times D^-½; ``sym_row``: those with rows of unit
    norm; ``unnorm``: the smallest of D - A. Isolated nodes count as of degree 1; their rows are 0.

    The leading eigenvalue has a copy for each connected component, and ARPACK finds as many of them as
    its start vector happens to hold. So the components are solved one by one and their eigenvectors
    merged by eigenvalue, those of larger components first among equals.

    Args:
        graph: undirected, n nodes.
        p: eigenvectors, 1 to n.
        laplacian: of which matrix.
        seed: of the solvers' start vectors.
        least_component: nodes that a component needs to have eigenvectors of its own; the rows of
            smaller ones are 0, like those of isolated nodes. None: one solver run on the whole graph,
            which may miss copies of the leading eigenvalue.

    Raises:
        InputError: p is not between 1 and n, or no solver converged.
    """
    n = graph.shape[0]
    if not 1 <= p <= n:
        raise InputError(f"{p} clusters need at least as many points, found {n}: lower model.cluster.p")
    if (graph != graph.T).nnz:
        raise ValueError("the graph is directed: symmetrise it before its eigenvectors are taken")
    degree = degrees(graph)
    isolated = degree == 0
    degree[isolated] = 1.0
    scale = 1 / np.sqrt(degree)
    smallest = laplacian == "unnorm"
    if smallest:
        matrix = sparse.csr_array(sparse.diags_array(degree) - graph)
    else:
        matrix = sparse.csr_array(sparse.diags_array(scale) @ graph @ sparse.diags_array(scale))

    if least_component is None:
        vectors = _eigenpairs(matrix, p, smallest, seed)[1]
    else:
        vectors = np.zeros((n, p))
        values, parts = [], []
        for nodes in _components(graph, least_component):
            own, found = _eigenpairs(matrix[nodes][:, nodes], min(p, len(nodes)), smallest, seed)
            own[0] = 0.0 if smallest else 1.0  # exactly, so that components rank by size
            values.append(own)
            parts += [(nodes, found[:, column]) for column in range(len(own))]
        ranked = np.concatenate(values) if smallest else -np.concatenate(values)
        for column, place in enumerate(np.argsort(ranked, kind="stable")[:p]):
            nodes, vector = parts[place]
            vectors[nodes, column] = vector
    vectors[isolated] = 0.0
    if laplacian == "rw":
        vectors *= scale[:, None]
    elif laplacian == "sym_row":
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return vectors


def _components(graph: sparse.csr_array, least: int) -> list[NDArray[np.int64]]:
    """Nodes of each connected component, larger ones first; those below ``least`` only if there are no others."""
    count, component = connected_components(graph, directed=False)
    sizes = np.bincount(component, minlength=count)
    by_size = np.argsort(-sizes, kind="stable")
    kept = by_size[sizes[by_size] >= max(least, 2)]  # an isolated node has no edge to embed
    members = np.split(np.argsort(component, kind="stable"), np.cumsum(sizes)[:-1])
    return [members[c] for c in (kept if len(kept) else by_size)]


def _eigenpairs(
    matrix: sparse.csr_array, p: int, smallest: bool, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The p outermost eigenvalues, outermost first, and their vectors, each with its largest entry positive.

    ARPACK from a vector drawn by ``seed``; LOBPCG where it does not converge, then a dense solver for small graphs.
    """
    n = matrix.shape[0]
    if n <= 2 * p + 1:  # ARPACK needs more room than that
        return _oriented(*_dense(matrix), p, smallest)
    generator = np.random.default_rng(seed)
    start = generator.uniform(-1, 1, n)
    try:
        if smallest:
            # D - A is singular: shift by a little, and invert.
            shift = -1e-3 * float(matrix.diagonal().mean())
            solve = splu(sparse.csc_matrix(matrix - shift * sparse.eye_array(n))).solve
            inverse = LinearOperator(matrix.shape, matvec=solve, dtype=float)
            found = eigsh(matrix, p, sigma=shift, OPinv=inverse, v0=start, tol=_EIGEN_TOLERANCE)
        else:
            found = eigsh(matrix, p, which="LA", v0=start, tol=_EIGEN_TOLERANCE)
        return _oriented(*found, p, smallest)
    except (ArpackError, RuntimeError):
        pass  # not converged, or singular: the next solver
    values, vectors = _lobpcg(matrix, generator.standard_normal((n, p)), smallest)
    residual = np.linalg.norm(matrix @ vectors - vectors * values, axis=0).max()
    if residual <= 1e-3:
        return _oriented(values, vectors, p, smallest)
    if n < _DENSE_POINTS:
        return _oriented(*_dense(matrix), p, smallest)
    raise InputError(
        f"no eigensolver converged on a graph of {n} points (residual {residual:.1g}): take another "
        "model.cluster.laplacian or model.graph.weight"
    )


def _dense(matrix: sparse.csr_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.linalg.eigh(matrix.toarray())


def _lobpcg(
    matrix: sparse.csr_array, start: NDArray[np.float64], smallest: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the caller looks at the residual itself
        values, vectors = lobpcg(matrix, start, tol=_EIGEN_TOLERANCE, maxiter=500, largest=not smallest)
    return np.asarray(values), np.asarray(vectors)


def _oriented(
    values: NDArray[np.float64], vectors: NDArray[np.float64], p: int, smallest: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.argsort(values if smallest else -values, kind="stable")[:p]
    vectors = np.ascontiguousarray(vectors[:, order])
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(p)])
    return values[order], vectors * np.where(signs == 0, 1.0, signs)
