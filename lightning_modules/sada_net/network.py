"""The two networks of SAda-Net: features of one image, and the similarity of two feature maps (paper 4, Fig. 5)."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runs.errors import InputError


class SiameseBranch(nn.Module):
    """Four 3x3 convolutions with tanh between them, the same for both images; sizes stay.

    Args:
        channels: of the hidden maps; 100 gives the official 235 260 weights.
        features: length of a pixel's feature vector; paper 4: 60.
    """

    radius = 4  # pixels around its own that a feature sees

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        widths = [1, channels, channels, channels, features]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised grey images (B, 1, H, W) to features (B, features, H, W)."""
        *hidden, last = self.layers
        for layer in hidden:
            image = layer(image).tanh()
        return last(image)


class LocalWindows(nn.Module):
    """No network: a pixel's feature is its window without its mean, so that the cosine of two is their ZNCC.

    Args:
        side: of the window in pixels, odd.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        if side < 3 or side % 2 == 0:
            raise InputError(
                f"a window of {side} pixels has no middle or no neighbours: set model.matcher.zncc_side to 3, 5, 7, …"
            )
        self.side, self.radius = side, side // 2

    def forward(self, image: Tensor) -> Tensor:
        """Grey images (B, 1, H, W) to windows (B, side * side, H, W); the border is repeated outwards."""
        padded = F.pad(image, (self.radius,) * 4, mode="replicate")
        windows = F.unfold(padded, self.side).unflatten(2, image.shape[-2:])
        return windows - windows.mean(dim=1, keepdim=True)


class SimilarityNet(nn.Module):
    """Five 3x3 convolutions from a left and a right feature map to one similarity for each pixel.

    Args:
        features: of each map.
        channels: of the hidden maps; 80 gives the official 260 241 weights.
    """

    radius = 5  # pixels around its own that a similarity sees

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.features = features
        widths = [2 * features, channels, channels, channels, channels, 1]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Features (B, features, H, W) of both images, right ones moved onto the left, to (B, H, W)."""
        return self.rest(self.layers[0](torch.cat([left, right], dim=1)))

    def first_layer_halves(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """What each map adds to the first layer, which is linear in the two; their sum is its output.

        Computed once for each image, they serve every disparity: moving the right half over the left
        one and adding costs nothing beside the convolution.
        """
        first = self.layers[0]
        of_left, of_right = first.weight.split(self.features, dim=1)
        return F.conv2d(left, of_left, first.bias, padding=1), F.conv2d(right, of_right, padding=1)

    def rest(self, first: Tensor) -> Tensor:
        """Output of the first layer (B, channels, H, W) to similarities (B, H, W)."""
        for layer in self.layers[1:]:
            first = layer(first.tanh())
        return first[:, 0]
