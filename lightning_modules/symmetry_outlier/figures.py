"""What the detector has to show: outliers and clusters in the plane, degrees with their cut, the two ratios."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from components.figures import principal_plane


def plane_figure(
    points: NDArray[np.float64],
    degree: NDArray[np.float64],
    kept: NDArray[np.bool_],
    clusters: NDArray[np.int64] | None,
    axis_names: Sequence[str],
) -> Figure:
    """Rows (n, d) in their plane, or on their principal axes: by degree with the flagged ones ringed, by cluster."""
    plane, share = principal_plane(points)
    panels = 1 if clusters is None else 2
    figure = Figure(figsize=(5.6 * panels, 4.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    shown = axes[0].scatter(*plane.T, c=degree, cmap="viridis", s=9, linewidths=0)
    axes[0].scatter(*plane[~kept].T, facecolors="none", edgecolors="red", s=34, linewidths=0.9, label="outlier")
    figure.colorbar(shown, ax=axes[0], label="outlier degree")
    axes[0].set_title(f"{int((~kept).sum())} of {len(kept)} rows flagged")
    if not kept.all():
        axes[0].legend(loc="upper right")
    if clusters is not None:
        colours = [f"C{cluster % 10}" for cluster in clusters]
        axes[1].scatter(*plane[kept].T, c=np.array(colours)[kept], s=9, linewidths=0)
        axes[1].scatter(*plane[~kept].T, c=np.array(colours)[~kept], s=22, marker="x", linewidths=0.9)
        axes[1].set_title("clusters of the kept rows, crosses follow the nearest")
    for ax in axes:
        if points.shape[1] == 2:
            ax.set(xlabel=axis_names[0], ylabel=axis_names[1])
        else:
            ax.set(xlabel=f"principal axes, {100 * share:.0f} % of the variance", xticks=[], yticks=[])
    return figure


def degree_figure(degree: NDArray[np.float64], q1: float, q3: float, bound: float) -> Figure:
    """Degrees in rising order with both quartiles and the cut, as the paper's Fig. 3 explains them."""
    ordered = np.sort(degree)
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    ax = figure.subplots()
    place = np.arange(1, len(ordered) + 1)
    above = ordered > bound
    ax.plot(place[~above], ordered[~above], ".", markersize=3)
    ax.plot(place[above], ordered[above], ".", markersize=4, color="red")
    for value, name, style in ((q1, "Q1", ":"), (q3, "Q3", ":"), (bound, "cut", "--")):
        ax.axhline(value, linestyle=style, color="red" if name == "cut" else "0.4", linewidth=1)
        ax.annotate(name, (1, value), textcoords="offset points", xytext=(2, 2), fontsize=8)
    ax.set(xlabel="rows in the order of their degree", ylabel="outlier degree")
    return figure


def ratio_figure(symmetry: NDArray[np.float64], distance: NDArray[np.float64], kept: NDArray[np.bool_]) -> Figure:
    """R_s against R_d of each row; outliers lie above and to the left."""
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.scatter(distance[kept], symmetry[kept], s=8, linewidths=0, label="kept")
    ax.scatter(distance[~kept], symmetry[~kept], s=14, linewidths=0, color="red", label="outlier")
    ax.set(xlabel="distance ratio", ylabel="symmetry ratio")
    ax.grid(alpha=0.3)
    ax.legend()
    return figure
