"""What the method has to show: decision values in the plane, hyperedges, the solver's way down."""

from collections.abc import Callable
from contextlib import suppress

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from components.figures import principal_plane

SHOWN_EDGES = 25  # hyperedges; more would cover each other


def surface_figure(
    points: NDArray[np.float64], y: NDArray[np.float64], decide: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Figure:
    """Decision values over the plane of training rows (m, 2), labelled ones large; y (m, C) is 0 where unlabelled."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.15 * np.maximum(high - low, 1e-9)
    axes = [np.linspace(low[axis] - margin[axis], high[axis] + margin[axis], 120) for axis in (0, 1)]
    mesh = np.stack(np.meshgrid(*axes), axis=-1)
    values = decide(mesh.reshape(-1, 2)).reshape(*mesh.shape[:2], -1)
    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    ax = figure.subplots()
    labelled = (y != 0).any(axis=1)
    if values.shape[2] == 1:
        bound = max(float(np.abs(values).max()), 1e-9)
        shown = ax.contourf(*axes, values[..., 0], levels=21, cmap="RdBu", vmin=-bound, vmax=bound, alpha=0.8)
        ax.contour(*axes, values[..., 0], levels=[-1, 0, 1], colors="black", linestyles=["--", "-", "--"], linewidths=1)
        figure.colorbar(shown, ax=ax, label="f(x); margin dashed")
        colour = np.where(y[:, 0] > 0, "tab:blue", "tab:red")
    else:
        classes = values.shape[2]
        ax.contourf(
            *axes, values.argmax(axis=2), levels=np.arange(classes + 1) - 0.5, cmap="tab10", vmin=0, vmax=9, alpha=0.3
        )
        colour = np.array([f"C{c % 10}" for c in y.argmax(axis=1)])
    ax.scatter(*points[~labelled].T, c="0.35", s=8, linewidths=0, label="unlabelled")
    ax.scatter(*points[labelled].T, c=colour[labelled], s=45, edgecolors="black", zorder=3, label="labelled")
    ax.set(xlabel="first column, scaled", ylabel="second column, scaled")
    ax.legend(loc="upper right")
    return figure


def hypergraph_figure(points: NDArray[np.float64], y: NDArray[np.float64], members: NDArray[np.int64]) -> Figure:
    """Some hyperedges as hulls of their rows, in the plane of the rows or of their two principal axes.

    Args:
        points: (m, d).
        y: (m, C), 0 where unlabelled.
        members: (m, k), the others in the hyperedge of each row.
    """
    plane, explained = principal_plane(points)
    labelled = (y != 0).any(axis=1)
    figure = Figure(figsize=(6.0, 5.0), layout="constrained")
    ax = figure.subplots()
    for place, e in enumerate(range(0, len(points), max(1, len(points) // SHOWN_EDGES))):
        corners = plane[[e, *members[e]]]
        with suppress(QhullError):  # all on a line, or equal
            corners = corners[ConvexHull(corners).vertices]
        colour = f"C{place % 10}"
        ax.add_patch(Polygon(corners, facecolor=colour, edgecolor=colour, alpha=0.35))
    ax.scatter(*plane[~labelled].T, c="0.5", s=7, linewidths=0, label="unlabelled")
    classes = y.argmax(axis=1) if y.shape[1] > 1 else (y[:, 0] > 0).astype(int)
    ax.scatter(
        *plane[labelled].T, c=classes[labelled], cmap="tab10", vmin=0, vmax=9, s=16, linewidths=0, label="labelled"
    )
    ax.set(title=f"some hyperedges; the plane holds {100 * explained:.0f} % of the variance", xticks=[], yticks=[])
    ax.legend(loc="upper right")
    return figure


def solver_figure(trace: NDArray[np.float64]) -> Figure:
    """J above its end, and the gradient, by iteration; trace (T, 4) of iteration, J, gradient, error set."""
    iteration, J, gradient, errors = trace.T
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(iteration[:-1], np.maximum(J[:-1] - J[-1], np.finfo(float).tiny), label="J - J at the end")
    left.semilogy(iteration, np.maximum(gradient, np.finfo(float).tiny), label="gradient norm, share of the first")
    left.set(xlabel="iteration")
    left.grid(alpha=0.3)
    left.legend()
    right.plot(iteration, errors)
    right.set(xlabel="iteration", ylabel="labelled rows inside the margin, all columns")
    right.grid(alpha=0.3)
    return figure
