"""Which frames and which crop of a clip a view takes: SITAR, sections 3.2 and 4.1, pure functions."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as pixels


def segment_indices(num_frames: int, within: np.ndarray) -> np.ndarray:
    """One frame from each of ``M = len(within)`` equal segments of a clip (SITAR 3.1, as in TSN).

    Segment ``j`` holds the frames ``floor(j*F/M) .. floor((j+1)*F/M) - 1``: no frame is in two.
    With ``F < M`` some segments are empty and give ``floor(j*F/M)``, so frames repeat evenly.

    Args:
        num_frames: ``F``, frames of the clip, >= 1.
        within: (M,) place inside each segment, in [0, 1); 0.5 is its centre.

    Returns:
        (M,) int64 frame numbers, 0-based, never decreasing, strictly increasing where F >= M.
    """
    segments = len(within)
    bounds = np.arange(segments + 1) * num_frames // segments
    return bounds[:-1] + np.floor(within * np.diff(bounds)).astype(np.int64)


def temporal_view(segments: int, view: int, num_views: int) -> np.ndarray:
    """Places inside the segments for evaluation view ``view`` of ``num_views``; one: the centre."""
    return np.full(segments, (view + 0.5) / num_views)


class CropBox(NamedTuple):
    """A rectangle in source pixels."""

    top: int
    left: int
    height: int
    width: int


def multi_scale_crop(height: int, width: int, scales: list[float], max_distort: int, chance: np.ndarray) -> CropBox:
    """A crop whose sides are drawn from ``scales`` of the short side, placed uniformly.

    Height and width take scales at most ``max_distort`` places of the list apart (0: squares).

    Args:
        height: source height in pixels.
        width: source width in pixels.
        scales: fractions of the short side, in (0, 1].
        max_distort: greatest distance of the two scales in the list.
        chance: (3,) numbers in [0, 1): which pair of scales, where vertically, horizontally.
    """
    sides = [max(1, round(min(height, width) * scale)) for scale in scales]
    pairs = [(tall, wide) for i, tall in enumerate(sides) for j, wide in enumerate(sides) if abs(i - j) <= max_distort]
    crop_height, crop_width = pairs[int(chance[0] * len(pairs))]
    top = int(chance[1] * (height - crop_height + 1))
    left = int(chance[2] * (width - crop_width + 1))
    return CropBox(top, left, crop_height, crop_width)


def centre_crop(height: int, width: int) -> CropBox:
    """The centred square of the short side: what resizing it to a cell and cropping would keep."""
    side = min(height, width)
    return CropBox((height - side) // 2, (width - side) // 2, side, side)


def crop_to_cell(frames: Tensor, box: CropBox, cell: int, mirrored: bool) -> Tensor:
    """Cuts one box out of all frames and resizes it, antialiased, to ``cell`` x ``cell`` pixels.

    Args:
        frames: (T, 3, H, W) uint8.
        box: in pixels of ``frames``.
        cell: side of the result in pixels.
        mirrored: flip left and right.

    Returns:
        (T, 3, cell, cell) uint8, contiguous.
    """
    top, left, height, width = box
    cut = frames[:, :, top : top + height, left : left + width]
    resized = pixels.resize(cut, [cell, cell], antialias=True)
    if mirrored:
        resized = resized.flip(-1)
    return resized.contiguous(memory_format=torch.contiguous_format)
