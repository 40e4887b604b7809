"""Bins over sorted targets: cutting at gaps (Eq. 1) and which bins are cut again (Eq. 2)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def canonical_order(features: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows by ascending target, equal ones by their features: the same whatever order the rows came in."""
    return np.lexsort((*features.T[::-1], targets))


def cut_at_gaps(targets: Tensor, gap: float, decimals: int | None) -> Tensor:
    """Eq. 1: the bin of each of n ascending targets, from 0; a new one wherever a step exceeds ``gap``.

    The first target has no predecessor and opens bin 0; a step of exactly ``gap`` cuts nothing.

    Args:
        targets: ascending, (n,).
        gap: a step above it cuts.
        decimals: to which a step is rounded first, as float64 only nearly holds a step that equals ``gap``;
            None: as it is.
    """
    steps = targets.diff()
    if decimals is not None:
        steps = torch.round(steps, decimals=decimals)
    return torch.cat([torch.zeros(1, dtype=torch.int64), (steps > gap).long()]).cumsum(dim=0)


def weighted_mean_square_difference(targets: Tensor, n: int) -> float:
    """Eq. 2, WMSD of a bin of ascending targets: |B| (max - min)^2 / n, n being all training rows."""
    return len(targets) * float(targets[-1] - targets[0]) ** 2 / n


def pieces(
    targets: Tensor, gap: float, decimals: int | None, least_wmsd: float | None, n: int
) -> list[tuple[int, int]]:
    """The bins into which one of ascending targets is cut, as half-open ranges; a single one if it stays whole.

    Args:
        targets: of the bin, ascending, (b,).
        gap: a step above it cuts.
        decimals: to which a step is rounded first; None: as it is.
        least_wmsd: a bin whose WMSD does not exceed it stays whole; None: every bin may be cut.
        n: all training rows.
    """
    whole = [(0, len(targets))]
    if least_wmsd is not None and weighted_mean_square_difference(targets, n) <= least_wmsd:
        return whole
    sizes = torch.bincount(cut_at_gaps(targets, gap, decimals))
    stops = sizes.cumsum(dim=0).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))
