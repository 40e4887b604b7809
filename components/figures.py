"""Pictures that several papers show: image rows with captions, a confusion matrix, a curve, points in their plane."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

LABELS_MAX = 40  # class names on an axis; more would overprint each other


def image_rows(rows: Sequence[Sequence[tuple[NDArray[np.uint8], str]]], side: float = 2.6) -> Figure:
    """A table of pictures, each under its caption.

    Args:
        rows: rows of (picture, caption); pictures are (H, W, 3) uint8.
        side: width of one picture in inches.
    """
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(side * columns, (side + 0.4) * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for row, row_axes in zip(rows, axes, strict=True):
        for (picture, caption), ax in zip(row, row_axes, strict=False):
            ax.imshow(picture)
            ax.set_title(caption, fontsize=8)
    return figure


def confusion_matrix(counts: NDArray[np.integer], class_names: Sequence[str]) -> Figure:
    """True classes as rows, predicted as columns, coloured by the share of the row.

    Args:
        counts: (C, C) numbers of samples.
        class_names: C names.
    """
    classes = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(3.0 + 0.35 * classes, 14.0)
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    ax = figure.subplots()
    picture = ax.imshow(share, vmin=0.0, vmax=1.0, cmap="Blues")
    figure.colorbar(picture, ax=ax, label="share of the true class", fraction=0.046)
    if classes <= LABELS_MAX:
        ax.set_xticks(range(classes), class_names, rotation=90, fontsize=7)
        ax.set_yticks(range(classes), class_names, fontsize=7)
        for row, column in zip(*np.nonzero(counts), strict=True):
            ax.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share[row, column] > 0.5 else "black",
            )
    ax.set(xlabel="predicted", ylabel="true")
    return figure


def curve(values: Sequence[float], xlabel: str, ylabel: str, start: int = 0) -> Figure:
    """One number over epochs or rounds, the first at ``start``."""
    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.plot(range(start, start + len(values)), values, marker="o", markersize=3)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.3)
    return figure


def principal_plane(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Points (n, d) where a picture shows them, (n, 2), and the share of their variance that it shows.

    Those of the plane stay as they are, others lie on their two principal axes.
    """
    if points.shape[1] == 2:
        return points, 1.0
    centred = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :2]
    plane = centred @ (axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]))
    share = float(values[::-1][:2].sum() / max(values.sum(), np.finfo(float).tiny))
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1]))), share
