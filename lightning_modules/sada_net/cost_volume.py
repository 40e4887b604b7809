"""Similarity of every pixel to its candidates: volumes (n, H, W), higher is better (paper 4).

The match of (x, y) of the left image at disparity d is (x + sign * d, y) of the right one. Slice i of a
volume belongs to ``disparities[i]``; a candidate outside the image has similarity -inf.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.sada_net.network import SimilarityNet


def targets(disparities: Tensor, sign: int, width: int) -> tuple[Tensor, Tensor]:
    """Columns x + sign * d, (n, width), and whether they lie inside the image, (n, width) bool."""
    columns = torch.arange(width, device=disparities.device) + sign * disparities[:, None]
    return columns, (columns >= 0) & (columns < width)


def moved(right: Tensor, disparities: Tensor, sign: int) -> Tensor:
    """The right maps (C, H, W) seen from the left image, one for each disparity, 0 outside: (n, C, H, W)."""
    columns, inside = targets(disparities, sign, right.shape[-1])
    seen = right[:, :, columns.clamp(0, right.shape[-1] - 1)] * inside
    return seen.permute(2, 0, 1, 3)


def similarity_volume(
    net: SimilarityNet, left: Tensor, right: Tensor, disparities: Tensor, sign: int, megabytes: int
) -> Tensor:
    """C_L by the trained similarity, in chunks of disparities.

    Away from the border (the 5 pixels that the network sees around its own) this is exactly
    ``net(left, right moved by d)`` for each d.

    Args:
        net: the similarity network.
        left: features of the left image, (C, H, W).
        right: features of the right image, (C, H, W).
        disparities: (n,) int64.
        sign: of the geometry, -1 or 1.
        megabytes: that the hidden maps of one layer may take.

    Returns:
        (n, H, W).
    """
    of_left, of_right = net.first_layer_halves(left[None], right[None])
    volume = left.new_empty(len(disparities), *left.shape[-2:])
    for part in _chunks(len(disparities), of_left.nbytes, megabytes):
        volume[part] = net.rest(of_left + moved(of_right[0], disparities[part], sign))
    return _without_outside(volume, disparities, sign)


def cosine_volume(left: Tensor, right: Tensor, disparities: Tensor, sign: int, megabytes: int) -> Tensor:
    """C_L by the cosine of the two feature vectors; arguments as for `similarity_volume`."""
    left, right = F.normalize(left, dim=0), F.normalize(right, dim=0)
    volume = left.new_empty(len(disparities), *left.shape[-2:])
    for part in _chunks(len(disparities), left.nbytes, megabytes):
        volume[part] = torch.einsum("chw,nchw->nhw", left, moved(right, disparities[part], sign))
    return _without_outside(volume, disparities, sign)


def seen_from_right(volume: Tensor, disparities: Tensor, sign: int) -> Tensor:
    """C_R out of C_L without computing anything again: C_R[d, x + sign * d] = C_L[d, x]."""
    columns, inside = targets(disparities, -sign, volume.shape[-1])
    columns = columns.clamp(0, volume.shape[-1] - 1)
    moved_volume = volume.gather(2, columns[:, None].expand_as(volume))
    return moved_volume.masked_fill(~inside[:, None], -torch.inf)


def _without_outside(volume: Tensor, disparities: Tensor, sign: int) -> Tensor:
    _, inside = targets(disparities, sign, volume.shape[-1])
    return volume.masked_fill_(~inside[:, None], -torch.inf)


def _chunks(count: int, bytes_each: int, megabytes: int) -> Iterator[slice]:
    size = max(1, megabytes * 2**20 // bytes_each)
    for start in range(0, count, size):
        yield slice(start, start + size)
