"""Affinities of near pixels, and the random walk that carries scores along them (Ahn and Kwak, CVPR 2018).

A map's pairs are given by half of the offsets within a radius; the other half are the same pairs
seen from the other end. Affinities are kept as (P, h, w): entry (p, y, x) belongs to the pixels
(y, x) and (y, x) + offset p. So memory grows with the number of pixels times P (34 for radius 5), not
with its square.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from components.dense_crf import SparseProduct

Offset = tuple[int, int]


def pair_offsets(radius: float) -> list[Offset]:
    """Offsets (dy, dx) of the lower half plane with dy^2 + dx^2 < radius^2, (0, 0) left out."""
    reach = math.ceil(radius)
    square = [(dy, dx) for dy in range(reach + 1) for dx in range(-reach, reach + 1)]
    return [(dy, dx) for dy, dx in square if (dy, dx) > (0, 0) and dy**2 + dx**2 < radius**2]


def partners(maps: Tensor, offset: Offset) -> Tensor:
    """``maps`` (..., h, w) read at each pixel's partner; `pairs_inside` says where there is one."""
    return maps.roll((-offset[0], -offset[1]), (-2, -1))


def pairs_inside(offsets: list[Offset], height: int, width: int, device: torch.device) -> Tensor:
    """Whether both pixels of a pair are on the map, (P, height, width) bool."""
    inside = torch.zeros(len(offsets), height, width, dtype=torch.bool, device=device)
    for place, (dy, dx) in enumerate(offsets):
        inside[place, : max(height - dy, 0), max(-dx, 0) : max(width - max(dx, 0), 0)] = True
    return inside


def pair_distances(features: Tensor, offsets: list[Offset]) -> Tensor:
    """L1 distance ||f_i - f_j||_1 of all pairs, (B, D, h, w) to (B, P, h, w).

    The differences of one offset take as much memory as the features; they are computed again in
    the backward pass instead of being kept for all offsets.
    """

    def distance(features: Tensor, offset: Offset) -> Tensor:
        return (features - partners(features, offset)).abs().sum(dim=1)

    kept = [
        checkpoint(distance, features, offset, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else distance(features, offset)
        for offset in offsets
    ]
    return torch.stack(kept, dim=1)


def random_walk(scores: Tensor, affinity: Tensor, offsets: list[Offset], beta: float, log2_steps: int) -> Tensor:
    """T^(2^t) scores with T = D^-1 W^beta, the power elementwise, D the row sums, W_ii = 1.

    Each of the 2^t steps multiplies the scores by the sparse T. Squaring T itself t times, the usual
    way, fills an N x N matrix: `benchmarks.random_walk` compares the two.

    Args:
        scores: (K, h, w) float32.
        affinity: W of the pairs, (P, h, w), 0..1; what lies beyond the map is not looked at.
        offsets: the P offsets of the pairs.
        beta: exponent; above 1 it thins out weak affinities.
        log2_steps: t.

    Returns:
        (K, h, w) float32.
    """
    height, width = affinity.shape[-2:]
    pixels = height * width
    here = torch.arange(pixels, device=affinity.device, dtype=torch.int32).view(1, height, width)
    weights, columns = [torch.ones_like(here, dtype=torch.float32)], [here]
    inside = pairs_inside(offsets, height, width, affinity.device)
    forward = torch.where(inside, affinity.float().pow(beta), 0.0)
    for (dy, dx), weight in zip(offsets, forward, strict=True):
        weights += [weight[None], weight[None].roll((dy, dx), (-2, -1))]
        columns += [partners(here, (dy, dx)), here.roll((dy, dx), (-2, -1))]
    transition = torch.cat(weights).view(-1, pixels).T
    transition = transition / transition.sum(dim=1, keepdim=True)
    entries = transition.shape[1]
    starts = torch.arange(0, pixels * entries + 1, entries, device=affinity.device, dtype=torch.int32)
    step = SparseProduct(torch.cat(columns).view(-1, pixels).T.flatten(), transition.flatten(), starts, pixels)
    walked = torch.stack(tuple(scores.float().flatten(1)), dim=1)
    for _ in range(2**log2_steps):
        walked = step(walked)
    return walked.T.reshape(len(scores), height, width)


def with_background(cam: Tensor, power: float) -> Tensor:
    """Puts the background's score (1 - max_c cam_c)^power before the maps of an image.

    Args:
        cam: normalised maps of the image's classes, (K, h, w) in 0..1.
        power: exponent; the higher, the less background.

    Returns:
        (1 + K, h, w).
    """
    highest = cam.amax(dim=0, keepdim=True) if len(cam) else torch.zeros_like(cam).sum(0, keepdim=True)
    return torch.cat([(1 - highest).pow(power), cam])


def walked_labels(
    cam: Tensor, affinity: Tensor, offsets: list[Offset], beta: float, log2_steps: int, background_power: float
) -> Tensor:
    """Labels of an image after the walk: arg-max over background and classes at full size.

    Args:
        cam: normalised maps of the image's classes, (K, H, W) in 0..1.
        affinity: W of the pairs on a smaller map, (P, h, w).
        offsets: of the pairs.
        beta: see `random_walk`.
        log2_steps: see `random_walk`.
        background_power: see `with_background`.

    Returns:
        (H, W) int64: 0 background, 1 + j where map j is the highest.
    """
    size = (affinity.shape[-2], affinity.shape[-1])
    small = F.adaptive_avg_pool2d(with_background(cam, background_power)[None], size)[0]
    walked = random_walk(small, affinity, offsets, beta, log2_steps)
    full = F.interpolate(walked[None], size=cam.shape[-2:], mode="bilinear", align_corners=False)[0]
    return full.argmax(dim=0)
