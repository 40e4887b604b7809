"""The two subnetworks of DIC: features of every pixel (FTS, Fig. 2) and their soft clustering (DCS, Eq. 2 to 4)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runs.errors import InputError

EPSILON = 1e-6  # in the denominator of Eq. 3; official code


class FeatureTransform(nn.Module):
    """FTS: an encoder-decoder of one level with a skip connection.

    Images (1, 3, H, W) in 0..1 to features Y (1, C, H, W). BatchNorm always takes the statistics of the image at
    hand: `eval` changes nothing (the labels are those of the training forward pass, and an image is the whole data).

    Args:
        channels: C, the largest number of labels.
        width: factor on the paper's 64 and 128 hidden channels.
        upsample: ``bilinear`` with aligned corners (official code), or ``deconv``, a transposed convolution of
            kernel 2 and stride 2 (the paper).
        out_bn: whether a BatchNorm follows the last convolution; official code, not in the paper's figure.
    """

    def __init__(self, channels: int, width: float, upsample: Literal["bilinear", "deconv"], out_bn: bool) -> None:
        super().__init__()
        narrow, wide = max(1, round(64 * width)), max(1, round(128 * width))
        self.top = nn.Sequential(convolution_block(3, narrow), convolution_block(narrow, narrow))  # CB1, CB2
        self.pool = nn.MaxPool2d(2)
        self.bottom = nn.Sequential(convolution_block(narrow, wide), convolution_block(wide, wide))  # CB3, CB4
        self.up = (
            nn.ConvTranspose2d(wide, wide, kernel_size=2, stride=2)
            if upsample == "deconv"
            else nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        )
        self.merge = nn.Sequential(convolution_block(narrow + wide, wide), convolution_block(wide, wide))  # CB5, CB6
        self.out = nn.Conv2d(wide, channels, kernel_size=1)  # SC
        self.out_norm = nn.BatchNorm2d(channels) if out_bn else nn.Identity()
        self.train()

    def train(self, mode: bool = True) -> "FeatureTransform":
        """Stays in training mode whatever is asked for."""
        return super().train(True)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) to (1, C, H, W); H and W of 4 or more, odd ones too."""
        skip = self.top(image)
        up = self.up(self.bottom(self.pool(skip)))
        (H, W), (h, w) = skip.shape[-2:], up.shape[-2:]
        up = F.pad(up, (0, W - w, 0, H - h))  # an odd last row or column is zero
        return self.out_norm(self.out(self.merge(torch.cat([skip, up], dim=1))))


def convolution_block(inputs: int, outputs: int) -> nn.Sequential:
    """CB of Fig. 2."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class DeepClustering(nn.Module):
    """DCS: features Y (N, C) of N pixels to aggregated features Upsilon (N, C), through M soft clusters.

    Every forward pass begins at the same centres Omega^0, which are drawn once, of unit length, and never learnt.
    All in float32, under mixed precision too: Eq. 3 adds up all pixels.

    Args:
        channels: C.
        centres: M.
        variant: ``official``: the EMA unit of the public code. A 1x1 convolution, rounds without gradient and with
            centres kept at unit length, ReLU, a second 1x1 convolution, Y added, ReLU. ``paper``: Eq. 2 to 4 as
            they stand, with gradients through all rounds. ``none``: Upsilon = Y (Table 5).
        gamma: Gamma, rounds of Eq. 2 and 3.

    Raises:
        InputError: Gamma below 1.
    """

    start: Tensor  # Omega^0, (M, C)

    def __init__(self, channels: int, centres: int, variant: Literal["official", "paper", "none"], gamma: int) -> None:
        super().__init__()
        if gamma < 1:
            raise InputError(f"model.dcs.gamma={gamma} must be 1 round or more")
        self.variant, self.gamma = variant, gamma
        start = torch.randn(centres, channels) * math.sqrt(2 / centres)
        self.register_buffer("start", F.normalize(start, dim=1))
        if variant == "official":
            self.before = nn.Linear(channels, channels)  # 1x1 convolutions of pixels that lie in rows
            self.after = nn.Linear(channels, channels, bias=False)
            for layer in (self.before, self.after):
                nn.init.normal_(layer.weight, std=math.sqrt(2 / channels))
            # No gradient passes the rounds, so this layer stays as it was drawn.
            self.before.requires_grad_(False)

    def forward(self, Y: Tensor) -> Tensor:
        """(N, C) to (N, C), float32."""
        with torch.autocast(Y.device.type, enabled=False):
            Y = Y.float()
            if self.variant == "none":
                return Y
            if self.variant == "paper":
                H, centres = self.rounds(Y, unit_length=False)
                return H @ centres  # Eq. 4
            with torch.no_grad():
                H, centres = self.rounds(self.before(Y), unit_length=True)
                aggregated = F.relu(H @ centres)
            return F.relu(self.after(aggregated) + Y)

    def rounds(self, Y: Tensor, unit_length: bool) -> tuple[Tensor, Tensor]:
        """H^Gamma (N, M), rows of sum 1, and Omega^Gamma (M, C)."""
        centres = self.start
        for _ in range(self.gamma):
            H = torch.softmax(Y @ centres.T, dim=1)  # Eq. 2
            centres = (H.T @ Y) / (H.sum(dim=0)[:, None] + EPSILON)  # Eq. 3; the sum is over pixels
            if unit_length:
                centres = F.normalize(centres, dim=1)
        return H, centres
