"""What the tree has to show: itself, the bins of each level, and predicted against true."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

COLOURS = {"svc": "tab:blue", "forest": "tab:green", "knn": "tab:orange"}
OTHER = "tab:purple"
LEAF = ("0.75", "0.88")  # neighbours in turn, so that they can be told apart
LEAST_NAMED = 0.075  # share of the rows of a bin with words on it
LEAST_MARKED = 0.008  # of a bin with its number of rows on it


def tree_figure(nodes: Sequence[Mapping[str, Any]], targets: NDArray[np.float64], target_name: str) -> Figure:
    """Levels from top to bottom; a node is as wide as its rows, its classifier gives the colour, a leaf is grey.

    Args:
        nodes: lines of `BinTreeModule.node_table`.
        targets: of the training rows, ascending, (n,).
        target_name: what they are, with their unit.
    """
    n = len(targets)
    figure = Figure(figsize=(13.0, 4.6), layout="constrained")
    ax = figure.subplots()
    starts = _starts(nodes)
    for place, node in enumerate(nodes):
        inner = node["classifier"] is not None
        colour = COLOURS.get(node["classifier"], OTHER) if inner else LEAF[place % 2]
        start, depth = starts[place], node["level"]
        ax.barh(-depth, node["rows"], left=start, height=0.7, color=colour, edgecolor="white", linewidth=0.4)
        if inner and node["rows"] >= LEAST_NAMED * n:
            words = f"{node['rows']} in {node['bins']}\n{node['classifier']}, {node['k']} columns"
            ax.text(start + node["rows"] / 2, -depth, words, ha="center", va="center", fontsize=8, color="white")
        elif node["rows"] >= LEAST_MARKED * n:
            ax.text(start + node["rows"] / 2, -depth, node["rows"], ha="center", va="center", fontsize=6)
    levels = range(max(node["level"] for node in nodes) + 1)
    ax.set_yticks([-level for level in levels], ["all", *(f"level {level}" for level in levels[1:])])
    places = np.linspace(0, n - 1, 12).round().astype(int)
    ax.set_xticks(places + 0.5, [f"{targets[place]:.2f}" for place in places])
    ax.set(xlim=(0, n), xlabel=f"training rows by ascending {target_name}")
    used = {node["classifier"] for node in nodes if node["classifier"]}
    handles = [Patch(color=COLOURS.get(name, OTHER), label=name) for name in sorted(used)]
    figure.legend(handles=[*handles, Patch(color=LEAF[0], label="leaf")], loc="outside upper right", ncols=4)
    leaves = sum(node["classifier"] is None for node in nodes)
    figure.suptitle(f"{n} training rows in {leaves} leaves", x=0.01, ha="left")
    return figure


def bins_figure(nodes: Sequence[Mapping[str, Any]], targets: NDArray[np.float64], target_name: str) -> Figure:
    """The targets and their level-1 bins, the numbers of bins by level (Fig. 3), and how wide the leaves are."""
    figure = Figure(figsize=(13.0, 3.8), layout="constrained")
    spread, count, width = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    spread.hist(targets, bins=60, color="0.8")
    first = [node for node in nodes if node["level"] == 1] or [nodes[0]]
    for place, node in enumerate(first):
        spread.axvspan(node["from"], node["to"], color=("tab:blue", "tab:orange")[place % 2], alpha=0.35, linewidth=1)
    spread.set(xlabel=target_name, ylabel="training rows", title=f"{len(first)} bins at level 1")
    levels = range(1, max(node["level"] for node in nodes) + 1)
    numbers = [sum(node["level"] == level for node in nodes) for level in levels]
    bars = count.bar([str(level) for level in levels], numbers, color="tab:blue")
    count.bar_label(bars)
    count.set(xlabel="level", title="bins made at each level")
    leaves = [node for node in nodes if node["classifier"] is None]
    width.scatter(
        [node["rows"] for node in leaves], [node["to"] - node["from"] for node in leaves], s=10, alpha=0.6, linewidths=0
    )
    width.set(xlabel="training rows of a leaf", ylabel="width of its range", title=f"{len(leaves)} leaves")
    return figure


def predicted_figure(
    judged: Mapping[str, Tensor], titles: Mapping[str, str], target_name: str, protocol: str
) -> Figure:
    """Predicted against true, of the judged rows; beside it the reference without bins, where there is one.

    Args:
        judged: ``true`` (n,) and predictions (n,) by name.
        titles: what is written above each prediction, by its name.
        target_name: what is predicted, with its unit.
        protocol: ``leaky_paper`` is written above.
    """
    true = judged["true"].numpy()
    shown = {name: values.numpy() for name, values in judged.items() if name != "true"}
    figure = Figure(figsize=(4.6 * len(shown), 4.6), layout="constrained")
    low, high = true.min(), true.max()
    for ax, (name, predicted) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        error = np.sqrt(np.square(predicted - true).mean())
        ax.add_line(Line2D([low, high], [low, high], color="0.6", linewidth=1))
        ax.scatter(true, predicted, s=12, alpha=0.6, linewidths=0)
        ax.set(
            title=f"{titles[name]}: RMSE {error:.3f}", xlabel=f"true {target_name}", ylabel="predicted", aspect="equal"
        )
    if protocol == "leaky_paper":
        figure.suptitle("leaky: the judged rows were trained on")
    return figure


def _starts(nodes: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where each node's rows begin: after those of its earlier siblings, from its parent's begin."""
    starts, filled = [], {}
    for node in nodes:
        begin = filled.get(node["parent"], 0)
        starts.append(begin)
        filled[node["parent"]] = begin + node["rows"]
        filled[node["node"]] = begin
    return starts
