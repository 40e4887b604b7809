"""What the method has to show: decision values in the plane, hyperedges, the solver's way down."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from components.figures import principal_plane

SHOWN_EDGES = 25  # hyperedges; more would cover each other
LISTED_CLASSES = 12  # in a legend
# Of tab10 without its grey, which is that of hyperedges. Red is class 0 and blue class 1, as in the colours of f(x).
COLOURS = [f"C{place}" for place in (3, 0, 2, 1, 4, 5, 6, 8, 9)]


def surface_figure(
    points: NDArray[np.float64],
    y: NDArray[np.float64],
    decide: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    axis_names: Sequence[str],
    class_names: Sequence[str],
) -> Figure:
    """Decision values over the plane of training rows.

    Args:
        points: (m, 2).
        y: (m, C), 0 where unlabelled.
        decide: decision values (n, C) of rows (n, 2).
        axis_names: of the two columns.
        class_names: position is the class.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.15 * np.maximum(high - low, 1e-9)
    axes = [np.linspace(low[axis] - margin[axis], high[axis] + margin[axis], 120) for axis in (0, 1)]
    mesh = np.stack(np.meshgrid(*axes), axis=-1)
    values = decide(mesh.reshape(-1, 2)).reshape(*mesh.shape[:2], -1)
    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    ax = figure.subplots()
    if values.shape[2] == 1:
        bound = max(float(np.abs(values).max()), 1e-9)
        shown = ax.contourf(*axes, values[..., 0], levels=21, cmap="RdBu", vmin=-bound, vmax=bound, alpha=0.8)
        ax.contour(*axes, values[..., 0], levels=[-1, 0, 1], colors="black", linestyles=["--", "-", "--"], linewidths=1)
        figure.colorbar(shown, ax=ax, label="f(x); margin dashed")
    else:
        colours = [COLOURS[c % len(COLOURS)] for c in range(values.shape[2])]
        ax.contourf(
            *axes, values.argmax(axis=2), levels=np.arange(values.shape[2] + 1) - 0.5, colors=colours, alpha=0.3
        )
    _draw_rows(ax, points, y, class_names, 45)
    ax.set(xlabel=axis_names[0], ylabel=axis_names[1])
    return figure


def hypergraph_figure(
    points: NDArray[np.float64],
    y: NDArray[np.float64],
    members: NDArray[np.int64],
    axis_names: Sequence[str],
    class_names: Sequence[str],
) -> Figure:
    """Some hyperedges as hulls of their rows, in the plane of the rows or of their two principal axes.

    Args:
        points: (m, d).
        y: (m, C), 0 where unlabelled.
        members: (m, k), the others in the hyperedge of each row.
        axis_names: of the d columns.
        class_names: position is the class; empty where a row may have several.
    """
    plane, explained = principal_plane(points)
    figure = Figure(figsize=(6.0, 5.0), layout="constrained")
    ax = figure.subplots()
    for e in range(0, len(points), max(1, len(points) // SHOWN_EDGES)):
        corners = plane[[e, *members[e]]]
        with suppress(QhullError):  # all on a line, or equal
            corners = corners[ConvexHull(corners).vertices]
        ax.add_patch(Polygon(corners, facecolor="0.6", edgecolor="0.4", alpha=0.35))
    _draw_rows(ax, plane, y, class_names, 16)
    if points.shape[1] == 2:
        ax.set(title="some hyperedges", xlabel=axis_names[0], ylabel=axis_names[1])
    else:
        ax.set(
            title=f"some hyperedges; the plane holds {100 * explained:.0f} % of the variance",
            xlabel="first principal component", ylabel="second principal component",
        )  # fmt: skip
    return figure


def _draw_rows(
    ax: Axes, plane: NDArray[np.float64], y: NDArray[np.float64], class_names: Sequence[str], size: float
) -> None:
    """Labelled rows in the colours of their classes, the others as small black dots, and what is what beside them."""
    labelled = (y != 0).any(axis=1)
    if not labelled.all():
        ax.scatter(*plane[~labelled].T, c="black", s=5, linewidths=0, label="unlabelled")
    if not class_names:
        ax.scatter(*plane[labelled].T, c=COLOURS[0], s=size, edgecolors="black", linewidths=0.5, label="labelled")
    classes = y.argmax(axis=1) if y.shape[1] > 1 else (y[:, 0] > 0).astype(int)
    for c, name in enumerate(class_names):
        rows = labelled & (classes == c)
        ax.scatter(
            *plane[rows].T, c=COLOURS[c % len(COLOURS)], s=size, edgecolors="black", linewidths=0.5, zorder=3,
            label=name if c < LISTED_CLASSES else None,
        )  # fmt: skip
    ax.figure.legend(loc="outside lower center", ncols=4, fontsize=8)


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
