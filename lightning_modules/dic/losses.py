"""The superpixel-guided refinement of DIC: majority votes (Eq. 6, 7) and the loss that learns them (Eq. 8)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def superpixel_vote(labels: Tensor, guide: Tensor, superpixels: int, channels: int) -> Tensor:
    """Gives every pixel the most frequent label of its superpixel; of equally frequent ones the smallest.

    Args:
        labels: Delta, (N,) int64 in 0..C-1.
        guide: superpixel of each pixel, (N,) int64 in 0..K-1.
        superpixels: K.
        channels: C.

    Returns:
        The refined labels (N,); they carry no gradient.
    """
    histogram = torch.bincount(guide * channels + labels, minlength=superpixels * channels)  # Eq. 6
    return histogram.view(superpixels, channels).argmax(dim=1)[guide]  # Eq. 7


def refinement_loss(features: Tensor, refined: Tensor) -> Tensor:
    """Cross-entropy of Upsilon with the refined labels, mean over the pixels (Eq. 8, the right way round).

    As printed Eq. 8 takes the logarithm of the one-hot map, which is infinite.

    Args:
        features: Upsilon, (N, C).
        refined: (N,) int64.
    """
    return F.cross_entropy(features, refined)
