"""Gives removed pixels a value: background along the row, median of eight directions (official code; off)."""

import torch
from torch import Tensor


def fill_holes(
    sparse: Tensor, disparity_right: Tensor, disparities: Tensor, sign: int, tolerance: float
) -> Tensor:  # fmt: skip
    """A dense map out of one with NaN.

    A hole that agrees with the right view at no disparity is hidden there: it takes the smaller (the
    farther) of the next values to its left and right. Any other hole is a mismatch: it takes the median
    of the next values in eight directions. Holes that see no value at all stay NaN.

    Args:
        sparse: (H, W), NaN where the check removed a pixel.
        disparity_right: D_R, (H, W).
        disparities: the candidates, (n,) int64.
        sign: of the geometry.
        tolerance: of the check, pixels.
    """
    neighbours = torch.stack([_next_value(sparse, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx])
    in_row = neighbours[[3, 4]]  # (0, -1) and (0, 1)
    background = in_row.nan_to_num(torch.inf).amin(0)
    directions = neighbours.nanmedian(dim=0).values
    hidden = ~_agrees_somewhere(disparity_right, disparities, sign, tolerance)
    filled = torch.where(hidden & background.isfinite(), background, directions)
    return torch.where(sparse.isnan(), filled, sparse)


def _agrees_somewhere(disparity_right: Tensor, disparities: Tensor, sign: int, tolerance: float) -> Tensor:
    width = disparity_right.shape[-1]
    columns = torch.arange(width, device=disparities.device) + sign * disparities[:, None]
    inside = (columns >= 0) & (columns < width)
    other = disparity_right[:, columns.clamp(0, width - 1)]  # (H, n, W)
    return (((other - disparities[:, None]).abs() <= tolerance) & inside).any(dim=1)


def _next_value(sparse: Tensor, dy: int, dx: int) -> Tensor:
    """For each pixel the nearest value on the ray (dy, dx), itself included; NaN where there is none.

    Works in doubling steps along the ray, so that the longest takes log2 of its length.
    """
    height, width = sparse.shape
    found, step = sparse, 1
    while step < max(height, width):
        down, across = dy * step, dx * step
        ahead = torch.full_like(found, torch.nan)
        if abs(down) < height and abs(across) < width:
            to_y, from_y = _overlap(down, height)
            to_x, from_x = _overlap(across, width)
            ahead[to_y, to_x] = found[from_y, from_x]
        found = torch.where(found.isnan(), ahead, found)
        step *= 2
    return found


def _overlap(step: int, length: int) -> tuple[slice, slice]:
    """Places that have a neighbour ``step`` further on, and those neighbours."""
    if step >= 0:
        return slice(0, length - step), slice(step, length)
    return slice(-step, length), slice(0, length + step)
