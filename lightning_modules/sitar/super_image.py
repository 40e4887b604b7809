"""Super images: the frames of a clip tiled row by row into one square picture (section 3.2)."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Order = Literal["normal", "reverse", "random"]


def grid_side(frames: int) -> int:
    """Side m of the smallest square grid that holds ``frames`` cells: m = ceil(sqrt(frames))."""
    return math.isqrt(frames - 1) + 1


def make_super_image(x: Tensor, grid: int, cell: int) -> Tensor:
    """Tiles normalised frames into one picture, row by row.

    Cells that no frame fills stay zero, which is the mean colour, and come last (bottom right).

    Args:
        x: normalised frames, (B, T, 3, cell, cell) with T <= grid * grid.
        grid: cells along one side of the canvas.
        cell: side of a frame in pixels.

    Returns:
        The canvas, (B, 3, grid * cell, grid * cell).

    Raises:
        ValueError: if the frames do not have the size of a cell, or outnumber the cells.
    """
    B, T, channels, height, width = x.shape
    if (height, width) != (cell, cell) or grid * grid < T:
        raise ValueError(f"{T} frames of {height}x{width} do not fit a {grid}x{grid} grid of {cell}x{cell} cells")
    cells = F.pad(x, (0, 0, 0, 0, 0, 0, 0, grid * grid - T))
    rows = cells.reshape(B, grid, grid, channels, cell, cell)
    return rows.permute(0, 3, 1, 4, 2, 5).reshape(B, channels, grid * cell, grid * cell)


def split_super_image(canvas: Tensor, grid: int) -> Tensor:
    """The inverse of `make_super_image`: (B, 3, S, S) to all cells, (B, g * g, 3, S/g, S/g)."""
    B, channels, side, _ = canvas.shape
    cell = side // grid
    rows = canvas.reshape(B, channels, grid, cell, grid, cell)
    return rows.permute(0, 2, 4, 1, 3, 5).reshape(B, grid * grid, channels, cell, cell)


def reorder_frames(x: Tensor, order: Order, index: Tensor | None = None) -> Tensor:
    """Puts the frames in the temporal order of Table 5, before tiling, so that padding stays last.

    Args:
        x: frames, (B, T, ...).
        order: ``normal``, ``reverse``, or ``random`` (each clip its own permutation).
        index: stable sample ids, (B,) int64. With them a random permutation depends on the clip
            alone, so that an evaluation gives the same number in any batching and on any number of
            processes; without them it is drawn from the global generator, as training wants.
    """
    if order == "normal":
        return x
    if order == "reverse":
        return x.flip(1)
    B, T = x.shape[:2]
    keys = torch.rand(B, T) if index is None else _scrambled(index, T)
    permutation = keys.argsort(dim=1).to(x.device)
    return x[torch.arange(B, device=x.device)[:, None], permutation]


def _scrambled(index: Tensor, frames: int) -> Tensor:
    """One pseudo-random number for each (clip, frame), (B, T) int64: splitmix64 of the pair."""

    def shifted(bits: Tensor, by: int) -> Tensor:
        return (bits >> by) & ((1 << (64 - by)) - 1)  # int64 shifts keep the sign: clear it

    z = (index.to(torch.int64)[:, None] * frames + torch.arange(frames, device=index.device) + 1) * (
        0x9E3779B97F4A7C15 - (1 << 64)
    )
    z = (z ^ shifted(z, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ shifted(z, 27)) * (0x94D049BB133111EB - (1 << 64))
    return z ^ shifted(z, 31)
