"""What an anomaly detector shows: heat maps over photographs, and scores of both kinds of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from components.figures import image_rows

OPACITY = 0.5  # of a heat map over its photograph
SPREAD = 0.25  # of the colours around the threshold, in raw map values: half of the loss's margin


@dataclass(frozen=True)
class Shown:
    """One judged image.

    Attributes:
        name: file name.
        defective: its label.
        image: (H, W, 3) uint8.
        mask: (H, W) of 0, 1 and 255.
        map_: raw anomaly map, (H, W).
        score: 0..1.
    """

    name: str
    defective: bool
    image: NDArray[np.uint8]
    mask: NDArray[np.integer]
    map_: NDArray[np.float32]
    score: float


def coloured(image: NDArray[np.uint8], map_: NDArray[np.floating], threshold: float) -> NDArray[np.uint8]:
    """A map's colours over its photograph, (H, W, 3); the middle of the scale is the threshold for every image."""
    heat = 1 / (1 + np.exp(-np.clip((map_ - threshold) / SPREAD, -50, 50)))
    colours = 255 * matplotlib.colormaps["jet"](heat)[..., :3]
    return np.rint(image * (1 - OPACITY) + colours * OPACITY).astype(np.uint8)


def heat_map(image: NDArray[np.uint8], map_: NDArray[np.floating], threshold: float, score: float) -> Image.Image:
    """`coloured`, with the score in the upper right corner."""
    picture = Image.fromarray(coloured(image, map_, threshold))
    text = f"{score:.2f}"
    drawing = ImageDraw.Draw(picture)
    left, _, right, bottom = drawing.textbbox((0, 0), text)
    x = picture.width - (right - left) - 3
    drawing.rectangle((x - 2, 0, picture.width, bottom + 3), fill="black")
    drawing.text((x, 1), text, fill="white")
    return picture


def anomaly_rows(shown: Sequence[Shown], threshold: float) -> Figure:
    """Each image with its true mask and its heat map, the score above."""
    rows = []
    for one in sorted(shown, key=lambda one: one.defective):
        truth = np.repeat((255 * (one.mask == 1)).astype(np.uint8)[..., None], 3, axis=2)
        caption = "defective" if one.defective else "normal"
        heat = coloured(one.image, one.map_, threshold)
        rows.append([(one.image, one.name), (truth, f"truth: {caption}"), (heat, f"score {one.score:.2f}")])
    return image_rows(rows, side=1.8)


def score_histogram(scores: Tensor, labels: Tensor, threshold: float) -> Figure:
    """How the raw scores of normal and defective images lie beside the threshold."""
    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    ax = figure.subplots()
    edges = np.histogram_bin_edges(scores.numpy(), bins=30)
    for value, name in enumerate(("normal", "defective")):
        ax.hist(scores[labels == value].numpy(), bins=edges, alpha=0.6, label=name)
    ax.axvline(threshold, color="black", linewidth=1, label="threshold")
    ax.set(xlabel="raw score", ylabel="images")
    ax.legend()
    return figure
