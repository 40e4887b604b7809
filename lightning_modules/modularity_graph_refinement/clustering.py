"""Clusterings of a graph: spectral as in the paper; Louvain and Leiden as its rivals; k-means without a graph."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import KMeans

from components.graph import Laplacian, spectral_embedding
from runs.errors import InputError


@dataclass(frozen=True)
class Clustering:
    """How a graph is divided into clusters.

    Attributes:
        method: ``spectral``; ``louvain`` and ``leiden`` find their own number of clusters, at
            resolution 1; ``kmeans`` divides the points themselves (Fig. 1).
        p: clusters.
        laplacian: see `components.graph.spectral_embedding`.
        least_component: least size of a connected component with eigenvectors of its own, as a
            share of n / p; None: one ARPACK run on the whole graph.
        n_init: starts of k-means, the best of which counts.
        seed: of k-means, of the eigensolver's start, and of Louvain and Leiden.
    """

    method: Literal["spectral", "louvain", "leiden", "kmeans"]
    p: int
    laplacian: Laplacian
    least_component: float | None
    n_init: int
    seed: int

    def embedding(self, graph: sparse.csr_array) -> NDArray[np.float64]:
        """U, (n, p)."""
        least = None if self.least_component is None else int(np.ceil(self.least_component * graph.shape[0] / self.p))
        return spectral_embedding(graph, self.p, self.laplacian, self.seed, least)

    def labels(
        self, graph: sparse.csr_array, embedding: NDArray[np.float64], points: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """The cluster of each node, (n,), numbered from 0 without gaps."""
        if self.method == "louvain":
            found = self._louvain(graph)
        elif self.method == "leiden":
            found = self._leiden(graph)
        else:
            space = points if self.method == "kmeans" else embedding
            found = KMeans(self.p, init="k-means++", n_init=self.n_init, random_state=self.seed).fit_predict(space)
        return np.unique(found, return_inverse=True)[1].astype(np.int64)

    def _louvain(self, graph: sparse.csr_array) -> NDArray[np.int64]:
        import networkx as nx

        communities = nx.community.louvain_communities(nx.from_scipy_sparse_array(graph), seed=self.seed)
        found = np.zeros(graph.shape[0], np.int64)
        for number, members in enumerate(sorted(communities, key=min)):
            found[list(members)] = number
        return found

    def _leiden(self, graph: sparse.csr_array) -> NDArray[np.int64]:
        try:
            import igraph
            import leidenalg
        except ImportError:
            raise InputError(
                "model.cluster.method=leiden needs the packages leidenalg and igraph: pip install 'reprise[leiden]' "
                "(pip install leidenalg igraph), or take model.cluster.method=louvain"
            ) from None
        upper = sparse.coo_array(sparse.triu(graph, k=1))
        edges = igraph.Graph(n=graph.shape[0], edges=np.column_stack(upper.coords))
        found = leidenalg.find_partition(
            edges, leidenalg.ModularityVertexPartition, weights=upper.data.tolist(), seed=self.seed
        )
        return np.array(found.membership, np.int64)
