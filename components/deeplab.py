"""The heads of DeepLabV3 (arXiv 1706.05587) and DeepLabV3+ (arXiv 1802.02611): feature maps to pixel logits."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runs.errors import InputError


def conv_bn_relu(before: int, width: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, BatchNorm and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(before, width, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def he_initialise(module: nn.Module) -> None:
    """He normal convolutions (arXiv 1502.01852); biases 0, BatchNorms 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners not aligned: (B, C, h, w) to (B, C, *size)."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, dilated 3x3 and image pooling side by side, then projected.

    Args:
        before: channels of the map.
        width: channels of each branch and of the result.
        rates: dilation of each 3x3 branch.
        dropout: rate after the projection.

    Raises:
        InputError: trained on one image, whose pooled map is one value that has no variance.
    """

    def __init__(self, before: int, width: int, rates: list[int], dropout: float) -> None:
        super().__init__()
        branches = [conv_bn_relu(before, width, 1), *(conv_bn_relu(before, width, 3, rate) for rate in rates)]
        self.branches = nn.ModuleList(branches)
        self.pooled = conv_bn_relu(before, width, 1)
        self.project = conv_bn_relu(width * (len(rates) + 2), width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, before, h, w) to (B, width, h, w)."""
        if self.pooled[1].training and len(maps) == 1:
            raise InputError(
                "data.batch_size leaves a process one image, and the BatchNorm of ASPP's image pooling needs two: "
                "give two images or more for each process"
            )
        pooled = self.pooled(maps.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *maps.shape[-2:])
        return self.dropout(self.project(torch.cat([*(branch(maps) for branch in self.branches), pooled], dim=1)))


class DeepLabV3Head(nn.Module):
    """ASPP on the deepest map, a 3x3 convolution, 1x1 to the classes, bilinear to the image's size.

    Args:
        channels: of the encoder's maps, shallow to deep.
        strides: of the encoder's maps.
        num_classes: C, background included.
        width: channels of ASPP and of the convolution.
        rates: dilations of ASPP.
        dropout: rate after ASPP.
    """

    def __init__(
        self, channels: list[int], strides: list[int], num_classes: int, width: int, rates: list[int], dropout: float
    ) -> None:
        super().__init__()
        self.aspp = ASPP(channels[-1], width, rates, dropout)
        self.refine = conv_bn_relu(width, width, 3)
        self.classify = nn.Conv2d(width, num_classes, 1)
        he_initialise(self)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The encoder's maps to logits (B, C, *size)."""
        return resized(self.classify(self.refine(self.aspp(features[-1]))), size)


class DeepLabV3PlusHead(nn.Module):
    """ASPP on the deepest map, joined with a projected map of low stride (DeepLabV3+, Fig. 2).

    Args:
        channels: of the encoder's maps, shallow to deep.
        strides: of the encoder's maps.
        num_classes: C, background included.
        width: channels of ASPP and of the joining convolution.
        low_level_width: channels that the low-level map is projected to.
        low_level_stride: stride of the low-level map.
        rates: dilations of ASPP.
        dropout: rate after ASPP.

    Raises:
        InputError: the encoder has no map of that stride.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        width: int,
        low_level_width: int,
        low_level_stride: int,
        rates: list[int],
        dropout: float,
    ) -> None:
        super().__init__()
        if low_level_stride not in strides:
            raise InputError(
                f"decoder.low_level_stride={low_level_stride}: the encoder's maps have the strides {list(strides)}"
            )
        self.low_level = list(strides).index(low_level_stride)
        self.aspp = ASPP(channels[-1], width, rates, dropout)
        self.project = conv_bn_relu(channels[self.low_level], low_level_width, 1)
        self.join = conv_bn_relu(width + low_level_width, width, 3)
        self.classify = nn.Conv2d(width, num_classes, 1)
        he_initialise(self)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The encoder's maps to logits (B, C, *size)."""
        low = self.project(features[self.low_level])
        deep = resized(self.aspp(features[-1]), (low.shape[-2], low.shape[-1]))
        return resized(self.classify(self.join(torch.cat([deep, low], dim=1))), size)
