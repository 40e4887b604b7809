"""The tree of BT-MA as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

RIGHT = "#d9e7f5"
LEFT = "#f4e3cf"


@dataclass(frozen=True)
class Leaf:
    """What is shown of a leaf; ``right`` of the judged rows have their whole label set right."""

    name: str
    training_rows: int
    prototypes: int
    judged_rows: int
    right: int


def tree_figure(leaves: Sequence[Leaf], sides: Sequence[int]) -> Figure:
    """The chain from its root at the top to the residual leaf at the bottom left.

    Args:
        leaves: by number of labels, the residual one at the end.
        sides: of each level 0 where an SVM parts it, otherwise where all rows go: 1 on, -1 into the leaf.
    """
    levels = len(sides)
    figure = Figure(figsize=(8.0, 2.0 + 1.5 * levels), layout="constrained")
    ax = figure.subplots()
    rest = sum(leaf.training_rows for leaf in leaves)
    for level, (leaf, side) in enumerate(zip(leaves, sides, strict=False)):
        x, y = -level, -level
        rule = {0: f"SVM: exactly {leaf.name}, or more?", 1: "all go on", -1: "all stay"}[side]
        _box(ax, x, y, f"{rule}\n{rest} training rows", "white")
        rest -= leaf.training_rows
        for to, dashed in (((x + 1, y - 1), side == 1), ((x - 1, y - 1), side == -1)):
            ax.annotate(
                "",
                to,
                (x, y),
                arrowprops={"arrowstyle": "->", "shrinkA": 24, "shrinkB": 30, "alpha": 0.3 if dashed else 1},
            )
        _box(ax, x + 1, y - 1, _text(leaf), RIGHT)
    _box(ax, -levels, -levels, _text(leaves[-1]), LEFT)
    ax.set(xlim=(-levels - 0.7, 1.7), ylim=(-levels - 0.5, 0.4))
    ax.axis("off")
    return figure


def _text(leaf: Leaf) -> str:
    share = f"{leaf.right} of {leaf.judged_rows} judged rows right" if leaf.judged_rows else "no judged row"
    labels = "label" if leaf.name == "1" else "labels"
    return f"{leaf.name} {labels}\n{leaf.training_rows} training rows\n{leaf.prototypes} means\n{share}"


def _box(ax, x: float, y: float, text: str, colour: str) -> None:
    ax.text(x, y, text, ha="center", va="center", fontsize=8, bbox={"boxstyle": "round", "facecolor": colour})
