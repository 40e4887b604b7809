"""Sub-pixel disparities by a fitted function of the neighbouring costs (Eq. 5, after Miclea et al., ICCP 2015).

Eq. 5 is printed with the same sign in both branches and an unscaled arctan; this is the cited work's form.
"""

import math

import torch
from torch import Tensor


def subpixel_offset(below: Tensor, best: Tensor, above: Tensor) -> Tensor:
    """Where the best match lies between whole disparities, from d - 0.5 to d + 0.5, as an offset to d.

    With costs c = -similarity: l = c[d-1] - c[d], r = c[d+1] - c[d], f(t) = 2/pi arctan t; the offset
    is f(l/r) - 0.5 if l <= r, else 0.5 - f(r/l); 0 where l = r = 0.

    Args:
        below: similarity at d - 1.
        best: similarity at d, the largest of the three.
        above: similarity at d + 1.
    """
    left, right = best - below, best - above
    smaller, larger = torch.minimum(left, right), torch.maximum(left, right)
    share = torch.atan(smaller / larger.clamp(min=torch.finfo(larger.dtype).tiny)) * (2 / math.pi)
    offset = torch.where(left <= right, share - 0.5, 0.5 - share)
    return torch.where(larger > 0, offset, 0.0)


def subpixel(volume: Tensor, winner: Tensor) -> Tensor:
    """The offset (H, W) of each winner; 0 where a neighbour is beyond the range or outside the image.

    Args:
        volume: similarities (n, H, W), one slice for each whole disparity.
        winner: index of the best slice of each pixel, (H, W) int64.
    """
    last = len(volume) - 1
    below, best, above = (volume.gather(0, (winner + step).clamp(0, last)[None])[0] for step in (-1, 0, 1))
    known = (winner > 0) & (winner < last) & below.isfinite() & best.isfinite() & above.isfinite()
    safe = (torch.where(known, x, 0.0) for x in (below, best, above))
    return torch.where(known, subpixel_offset(*safe), 0.0)
