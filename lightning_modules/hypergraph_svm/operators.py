"""Kernel, graph Laplacian (Eq. 3) and hypergraph Laplacian (Eq. 6-8) of the training rows, in float64.

The Laplacians are sparse: a row of L has about as many entries as neighbours, one of H as many as rows that
share a hyperedge with it.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from components.graph import nearest_neighbours
from runs.errors import InputError

Kernel = Literal["rbf", "linear"]
Laplacian = Literal["normalized", "unnormalized"]

_BLOCK_BYTES = 32 * 2**20


def kernel_matrix(x: Tensor, z: Tensor, kernel: Kernel, gamma: float) -> Tensor:
    """k(x_i, z_j), (n, m) of rows (n, d) and (m, d): exp(-gamma ||x - z||²), or x·z for ``linear``."""
    products = x @ z.T
    if kernel == "linear":
        return products
    squared = x.square().sum(dim=1)[:, None] + z.square().sum(dim=1) - 2 * products
    return squared.clamp_(min=0.0).mul_(-gamma).exp_()


def graph_laplacian(points: NDArray[np.float64], k: int, form: Laplacian) -> sparse.csr_array:
    """L of the k-NN graph, (m, m).

    i and j share an edge if either is among the k nearest others of the other; its weight is
    exp(-||x_i - x_j||²/4t), t the mean squared length of the edges.

    Args:
        points: (m, d).
        k: neighbours of each, itself not among them.
        form: D - W (Eq. 3), or I - D^-½ W D^-½, which is on the scale of H.

    Raises:
        InputError: k is not between 1 and m - 1.
    """
    m = len(points)
    rows, columns, squared = _edges(*neighbours(points, k, "model.manifold.k_graph"))
    t = squared.mean()
    weight = np.exp(-squared / (4 * t)) if t > 0 else np.ones(len(squared))
    W = sparse.csr_array((weight, (rows, columns)), shape=(m, m))
    degree = np.asarray(W.sum(axis=1)).ravel()  # positive: each row has k edges or more
    if form == "unnormalized":
        return sparse.csr_array(sparse.diags_array(degree) - W)
    scale = sparse.diags_array(degree**-0.5)
    return sparse.csr_array(sparse.eye_array(m) - scale @ W @ scale)


def hypergraph_laplacian(points: NDArray[np.float64], k: int, mu: float | Literal["mean"]) -> sparse.csr_array:
    """H of Eq. 8, (m, m), with a hyperedge for each row: the row and its k nearest others.

    Args:
        points: (m, d).
        k: others in each hyperedge.
        mu: width of the similarity in w(e); ``mean``: the mean squared distance of all pairs.

    Raises:
        InputError: k is not between 1 and m - 1.
    """
    m = len(points)
    members = np.column_stack(
        [np.arange(m), neighbours(points, k, "model.manifold.k_hyper")[0]]
    )  # (m, k + 1), row e is e's
    F = sparse.csr_array((np.ones(members.size), (members.ravel(), np.repeat(np.arange(m), k + 1))), shape=(m, m))
    delta = k + 1.0  # δ(e), of every hyperedge
    w = hyperedge_weights(points, members, mean_squared_distance(points) if mu == "mean" else mu)
    d = F @ w  # d(v); positive: row v is in its own hyperedge
    S = sparse.diags_array(d**-0.5) @ F @ sparse.diags_array(np.sqrt(w / delta))
    return sparse.csr_array(sparse.eye_array(m) - S @ S.T)  # I - D_v^-½ F W D_e^-1 F^T D_v^-½


def hyperedge_weights(points: NDArray[np.float64], members: NDArray[np.int64], mu: float) -> NDArray[np.float64]:
    """w(e), (E,): the mean of exp(-||x_i - x_j||²/mu) over the ordered pairs of different members of e (E, δ)."""
    count, delta = members.shape
    w = np.empty(count)
    at_once = max(1, _BLOCK_BYTES // (8 * points.shape[1] * delta * 2))
    for first in range(0, count, at_once):
        group = points[members[first : first + at_once]]
        group = group - group[:, :1]  # around the first member, so that the next line rounds little
        norm = np.square(group).sum(axis=2)
        squared = norm[:, :, None] + norm[:, None] - 2 * group @ group.transpose(0, 2, 1)
        similar = np.exp(-squared.clip(min=0.0) / mu) if mu > 0 else np.ones_like(squared)
        own = np.trace(similar, axis1=1, axis2=2)
        w[first : first + at_once] = (similar.sum(axis=(1, 2)) - own) / (delta * (delta - 1))
    return w


def mean_squared_distance(points: NDArray[np.float64]) -> float:
    """Over all pairs of different rows."""
    m = len(points)
    return float(2 * m * np.square(points - points.mean(axis=0)).sum() / (m * (m - 1)))


def neighbours(points: NDArray[np.float64], k: int, key: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest others of each row, and their distances; see `components.graph.nearest_neighbours`.

    Raises:
        InputError: k is not between 1 and m - 1; names the config key.
    """
    if not 1 <= k < len(points):
        raise InputError(f"{key}={k} must be from 1 to {len(points) - 1}, one less than the training rows")
    return nearest_neighbours(points, k)


def as_tensor(matrix: sparse.csr_array, device: torch.device) -> Tensor:
    """The same numbers as a sparse tensor of coordinates."""
    coordinates = sparse.coo_array(matrix)
    indices = torch.from_numpy(np.stack(coordinates.coords).astype(np.int64))
    return torch.sparse_coo_tensor(
        indices, torch.from_numpy(coordinates.data), matrix.shape, device=device, check_invariants=False
    ).coalesce()


def _edges(
    indices: NDArray[np.int64], distances: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Both directions of each edge of neighbour lists (m, k), once: rows, columns, squared lengths."""
    m, k = indices.shape
    rows, columns, squared = np.repeat(np.arange(m), k), indices.ravel(), np.square(distances).ravel()
    both = np.concatenate([rows * m + columns, columns * m + rows])
    edge, place = np.unique(both, return_index=True)
    return edge // m, edge % m, np.concatenate([squared, squared])[place]
