"""Smooths each slice of a volume along the edges of the image (He, Sun, Tang, ECCV 2010), by box filters."""

import torch
from torch import Tensor
from torch.nn import functional as F


def box_sum(x: Tensor, radius: int) -> Tensor:
    """Sum over the (2 radius + 1)^2 window of each pixel of (..., H, W), cut off at the border.

    By running sums: the cost does not depend on the radius. Give float64; running sums of float32
    lose the small differences.
    """
    for dim in (-2, -1):
        length = x.shape[dim]
        place = torch.arange(length, device=x.device)
        running = F.pad(x.cumsum(dim), (0, 0, 1, 0) if dim == -2 else (1, 0))
        last = running.index_select(dim, (place + radius + 1).clamp(max=length))
        x = last - running.index_select(dim, (place - radius).clamp(min=0))
    return x


def guided_filter(guide: Tensor, volume: Tensor, radius: int, eps: float) -> Tensor:
    """Filters every slice; candidates outside the image (-inf) take no part and stay as they are.

    In each window the slice is fitted by ``a * guide + b`` (least squares, ``eps`` on a); a pixel's
    result is the mean of the fits of all windows that hold it.

    Args:
        guide: raw grey values of the image that the volume belongs to, (H, W).
        volume: (n, H, W).
        radius: of the windows in pixels.
        eps: in squared grey values.

    Returns:
        (n, H, W), of the volume's dtype.
    """
    inside = volume.isfinite()
    p = torch.where(inside, volume, 0).double()
    weight = inside.double()
    I = (guide - guide.mean()).double()  # noqa: E741 - the paper's symbol; a shift of I changes nothing
    count = box_sum(weight, radius).clamp(min=1)
    mean_I, mean_p, mean_II, mean_Ip = (
        box_sum(x, radius) / count for x in (weight * I, p, weight * I * I, p * I)
    )  # fmt: skip
    a = (mean_Ip - mean_I * mean_p) / ((mean_II - mean_I * mean_I).clamp(min=0) + eps)
    b = mean_p - a * mean_I
    mean_a, mean_b = (box_sum(weight * x, radius) / count for x in (a, b))
    filtered = (mean_a * I + mean_b).to(volume.dtype)
    return torch.where(inside, filtered, volume)
