"""What DIC shows: boundaries of label maps on the image, and what its inner steps did."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from skimage.color import label2rgb
from torch import Tensor

from components.figures import image_rows

BOUNDARY_COLOUR = (255, 230, 0)  # RGB
SHOWN_WIDTH = 320  # pixels


def boundaries_on(pixels: NDArray[np.uint8], labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """An image (H, W, 3) with the boundaries of a label map (H, W), one pixel wide."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edge[:-1] |= labels[1:] != labels[:-1]
    drawn = pixels.copy()
    drawn[edge] = BOUNDARY_COLOUR
    return drawn


def magnified(values: NDArray) -> NDArray:
    """A picture or a label map (H, W, ...), each pixel a square, so that boundaries drawn on it are thin."""
    factor = max(1, round(SHOWN_WIDTH / values.shape[1]))
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def mean_colours(pixels: NDArray[np.uint8], labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Every pixel in the mean colour of its label."""
    return label2rgb(labels, pixels, kind="avg", bg_label=-1).astype(np.uint8)


def segmentation_rows(pictures: Sequence[Sequence[tuple[NDArray[np.uint8], str]]]) -> Figure:
    """A row for each image."""
    return image_rows(pictures, side=2.4)


def inner_step_curves(curves: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Loss and number of live labels by inner step, a line for each label map (Fig. 7 of the paper)."""
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, measured in curves.items():
        steps = range(1, len(measured["loss"]) + 1)
        left.plot(steps, measured["loss"], label=name)
        right.plot(steps, measured["labels"], label=name)
    left.set(xlabel="inner step", ylabel="loss")
    right.set(xlabel="inner step", ylabel="live labels after the vote")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(fontsize=7)
    return figure
