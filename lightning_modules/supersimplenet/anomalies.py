"""Synthetic anomalies in feature space (3.3): Gaussian noise inside random blobs of Perlin noise."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runs.errors import InputError

MOST_CELLS = 5  # the finest grid has 2^5 cells along an axis; official code


@dataclass(frozen=True)
class Anomalies:
    """What is added to a duplicated batch, and what it makes the truth.

    Attributes:
        noise: (2B, C, h, w), added to the features: epsilon where the mask M_a is 1, 0 elsewhere.
        mask: (2B, 1, h, w) of 0 and 1: M, synthetic and real anomalies together.
        label: (2B,) of 0 and 1: y.
    """

    noise: Tensor
    mask: Tensor
    label: Tensor


class AnomalyGenerator(nn.Module):
    """Duplicates a batch and spoils parts of both halves.

    Args:
        strategy: ``perlin``: the paper; ``simplenet``: the first half stays clean, the second is noised
            everywhere; ``none``: real anomalies alone.
        threshold: Perlin noise above it is anomalous; 0.2 makes large blobs, 0.6 small and thin ones.
        probability: that a sample gets a Perlin mask at all.
        noise_std: sigma of the Gaussian noise, in units of the adapted features.
        noise_rel: sigma as a share of the standard deviation of the adapted features before training, for
            backbones whose features have another scale than those of the paper; then ``noise_std`` is None.
        overlap: whether noise may also fall on real anomalies.
        rescale_empty: whether a Perlin mask that came out empty is scaled so that its highest points count.

    Raises:
        InputError: not exactly one of ``noise_std`` and ``noise_rel``, or a value that makes no sense.
    """

    sigma: Tensor

    def __init__(
        self,
        strategy: Literal["perlin", "simplenet", "none"],
        threshold: float,
        probability: float,
        noise_std: float | None,
        noise_rel: float | None,
        overlap: bool,
        rescale_empty: bool,
    ) -> None:
        super().__init__()
        if (noise_std is None) == (noise_rel is None):
            raise InputError(
                f"model.anomaly.noise_std={noise_std} and model.anomaly.noise_rel={noise_rel}: give exactly one, the "
                "other null"
            )
        if min(value for value in (noise_std, noise_rel) if value is not None) <= 0:
            raise InputError("model.anomaly.noise_std or noise_rel must be above 0")
        if not 0 <= probability <= 1:
            raise InputError(f"model.anomaly.probability={probability} must be 0 to 1")
        self.strategy, self.threshold, self.probability = strategy, threshold, probability
        self.noise_rel, self.overlap, self.rescale_empty = noise_rel, overlap, rescale_empty
        self.register_buffer("sigma", torch.tensor(math.nan if noise_std is None else noise_std))

    def fit_noise(self, adapted: Tensor) -> None:
        """Sets sigma from a first batch of adapted features, where it is relative to them."""
        if self.noise_rel is not None:
            self.sigma.copy_(self.noise_rel * adapted.std())

    def forward(self, features: Tensor, mask: Tensor, label: Tensor) -> Anomalies:
        """Draws the anomalies of a batch.

        Args:
            features: adapted features A, (B, C, h, w): their shape counts.
            mask: real anomalies M_gt, (B, 1, h, w) of 0 and 1.
            label: whether an image is defective, (B,) of 0 and 1.
        """
        half, channels, height, width = features.shape
        mask, label = torch.cat([mask, mask]), torch.cat([label, label])
        where = self.synthetic_mask(2 * half, height, width, features)  # M_t
        if not self.overlap:
            where = where * (1 - mask)  # M_a = M_t (1 - M_gt)
        noise = self.sigma * torch.randn(2 * half, channels, height, width, dtype=features.dtype, device=mask.device)
        union = ((where + mask) > 0).to(features.dtype)
        # A defect too small for the map leaves its label: y stays 1 above an empty M.
        label = torch.maximum(label.to(features.dtype), union.flatten(1).amax(dim=1))
        return Anomalies(noise * where, union, label)

    def synthetic_mask(self, count: int, height: int, width: int, like: Tensor) -> Tensor:
        """M_t of each sample, (count, 1, height, width) of 0 and 1, before real anomalies are cut out."""
        shape = (count, 1, height, width)
        if self.strategy == "none":
            return like.new_zeros(shape)
        if self.strategy == "simplenet":
            noised = torch.arange(count, device=like.device) >= count // 2
            return noised.to(like.dtype).view(-1, 1, 1, 1).expand(shape)
        padded = 2 ** math.ceil(math.log2(height)), 2 ** math.ceil(math.log2(width))
        perlin = perlin_noise(count, *padded, like.device)[:, None]
        perlin = F.interpolate(perlin, (height, width), mode="bilinear", align_corners=False)
        if self.rescale_empty:
            highest = perlin.flatten(1).amax(dim=1).view(-1, 1, 1, 1)
            perlin = torch.where(highest > self.threshold, perlin, perlin * (1.05 * self.threshold / highest))
        kept = torch.rand(count, 1, 1, 1, device=like.device) < self.probability
        return ((perlin > self.threshold) & kept).to(like.dtype)


def perlin_noise(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """Gradient noise (Perlin 1985), each sample on a grid of its own: 2^k cells along an axis, k uniform in 0..5.

    A grid finer than the pixels would be no noise any more, so a small map has fewer cells at most.

    Args:
        count: number of samples.
        height: pixels, a power of two.
        width: pixels, a power of two.
        device: of the result.

    Returns:
        (count, height, width); the theoretical range is -1 to 1.
    """
    angles = 2 * math.pi * torch.rand(count, 2**MOST_CELLS + 1, 2**MOST_CELLS + 1, device=device)
    gradients = torch.stack([angles.sin(), angles.cos()], dim=1).flatten(2)  # (count, 2, nodes): along y, along x
    axes = []
    for length in (height, width):
        most = min(MOST_CELLS, int(math.log2(length)))
        cells = 2 ** torch.randint(0, most + 1, (count, 1), device=device)
        place = torch.arange(length, device=device) * cells / length  # (count, length), in cells
        axes.append((place.floor().long(), place - place.floor()))
    (cell_y, y), (cell_x, x) = axes
    y, x = y[:, :, None], x[:, None, :]

    def corner(dy: int, dx: int) -> Tensor:
        """Dot product of the gradient at a corner of each pixel's cell with the way from there."""
        node = (cell_y + dy)[:, :, None] * (2**MOST_CELLS + 1) + (cell_x + dx)[:, None, :]
        at = gradients.gather(2, node.flatten(1)[:, None].expand(-1, 2, -1)).view(count, 2, height, width)
        return at[:, 0] * (y - dy) + at[:, 1] * (x - dx)

    def fade(t: Tensor) -> Tensor:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    above = torch.lerp(corner(0, 0), corner(0, 1), fade(x).expand(-1, height, -1))
    below = torch.lerp(corner(1, 0), corner(1, 1), fade(x).expand(-1, height, -1))
    return math.sqrt(2) * torch.lerp(above, below, fade(y).expand(-1, -1, width))
