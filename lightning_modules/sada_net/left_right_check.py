"""The left-right consistency check (Eq. 3)."""

import torch
from torch import Tensor


def left_right_check(disparity_left: Tensor, disparity_right: Tensor, sign: int, tolerance: float) -> Tensor:
    """Whether both views agree: |D_L(x, y) - D_R(x + sign * D_L(x, y), y)| <= tolerance.

    A pixel whose match lies outside the right image does not pass. D_R is read where the match is,
    in the right image's own coordinates.

    Args:
        disparity_left: D_L, (H, W), whole numbers.
        disparity_right: D_R, (H, W).
        sign: of the geometry, -1 or 1.
        tolerance: pixels; paper: 1.1.

    Returns:
        (H, W) bool.
    """
    width = disparity_left.shape[-1]
    target = torch.arange(width, device=disparity_left.device) + sign * disparity_left.long()
    inside = (target >= 0) & (target < width)
    other = disparity_right.gather(1, target.clamp(0, width - 1))
    return inside & ((disparity_left - other).abs() <= tolerance)
