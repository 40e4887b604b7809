"""From stored pixels to what a network takes."""

import torch
from torch import Tensor, nn


class PixelNormalisation(nn.Module):
    """uint8 pixels to zero mean and unit variance of each colour channel.

    Mean and standard deviation move with the module that holds it and are not part of its `state_dict`.

    Args:
        mean: of each of the three channels, of 0..1.
        std: standard deviation of each channel, of 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255.0 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 (..., 3, h, w) to float of the same shape."""
        return (pixels.float() - self.mean) / self.std
