"""What the refinement has to show: accuracy and modularity by round, the graph before and after."""

from collections.abc import Mapping

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment


def rounds_figure(table: Mapping[str, NDArray[np.float64]], best: int) -> Figure:
    """Accuracy (Fig. 2) and modularity (Fig. 3) by round, the best round marked."""
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    panels = {"accuracy": "accuracy, %", "modularity": "modularity Q"}
    for ax, (name, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        ax.plot(table["round"], table[name], marker="o", markersize=4)
        ax.axvline(best, color="tab:red", linestyle=":", label="highest modularity")
        ax.set(xlabel="round", ylabel=title)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.legend()
    return figure


def graph_figure(
    plane: NDArray[np.float64], graphs: Mapping[str, sparse.csr_array], labels: Mapping[str, NDArray[np.int64]]
) -> Figure:
    """The graph before and after on a plane (n, 2): points by cluster, edges grey, the removed ones red."""
    figure = Figure(figsize=(11.0, 5.2), layout="constrained")
    removed = _edges(graphs["before"] - graphs["after"])
    colours = {"before": labels["before"], "after": _renamed(labels["after"], labels["before"])}
    for ax, (name, graph) in zip(figure.subplots(1, 2), graphs.items(), strict=True):
        ax.add_collection(LineCollection(plane[_edges(graph)], colors="0.6", linewidths=0.3, alpha=0.5))
        if name == "before":
            ax.add_collection(LineCollection(plane[removed], colors="red", linewidths=1.0, zorder=3))
        ax.scatter(*plane.T, c=colours[name] % 20, cmap="tab20", vmin=0, vmax=19, s=4, linewidths=0, zorder=2)
        edges = graph.nnz // 2
        ax.set_title(f"{name}: {edges} edges" + (f", {len(removed)} to go (red)" if name == "before" else ""))
        ax.set(xticks=[], yticks=[])
    return figure


def _renamed(labels: NDArray[np.int64], like: NDArray[np.int64]) -> NDArray[np.int64]:
    """Clusters numbered like those of another clustering with which they share most points."""
    p = max(labels.max(), like.max()) + 1
    shared = np.bincount(labels * p + like, minlength=p * p).reshape(p, p)
    return linear_sum_assignment(shared, maximize=True)[1][labels]


def _edges(graph: sparse.sparray) -> NDArray[np.int32]:
    """Node pairs of the edges, (E, 2)."""
    graph = sparse.csr_array(graph)
    graph.eliminate_zeros()
    return np.column_stack(sparse.coo_array(sparse.triu(graph, k=1)).coords)
