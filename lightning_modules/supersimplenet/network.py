"""SuperSimpleNet's network: frozen features, a linear adaptor, a segmentation and a classification head."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.supersimplenet.backbone import FrozenFeatureExtractor


class SuperSimpleNet(nn.Module):
    """Features F, adapted features A, anomaly map M_o and score s (3.1, 3.2, 3.4).

    Args:
        extractor: the frozen backbone.
        seg_channels: width of the segmentation head's hidden layer.
        cls_channels: width of the classification head.
        cls_kernel: side of its convolution.
        cls_head: whether there is a classification head; without one the score is the highest value of the map.
        adapt_cls_features: whether the classification head sees adapted features (the paper) or the
            backbone's own (the authors' later journal version).
    """

    def __init__(
        self,
        extractor: FrozenFeatureExtractor,
        seg_channels: int,
        cls_channels: int,
        cls_kernel: int,
        cls_head: bool,
        adapt_cls_features: bool,
    ) -> None:
        super().__init__()
        self.extractor, self.adapt_cls_features = extractor, adapt_cls_features
        channels = extractor.channels
        self.adaptor = nn.Conv2d(channels, channels, 1)  # a linear layer for each place
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(channels, seg_channels, 1),
            nn.BatchNorm2d(seg_channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(seg_channels, 1, 1, bias=False),
        )
        self.classification_head = ClassificationHead(channels, cls_channels, cls_kernel) if cls_head else None
        for part in (self.adaptor, *self.heads()):
            part.apply(_initialise)

    def heads(self) -> list[nn.Module]:
        """D_seg and, where there is one, D_cls."""
        return [head for head in (self.segmentation_head, self.classification_head) if head is not None]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised images (B, 3, H, W) to M_o (B, 1, h, w) and s (B,), both raw; s is None without its head."""
        features = self.extractor(image)
        adapted = self.adaptor(features)
        return self.judge(adapted, adapted if self.adapt_cls_features else features, stop_gradient=False)

    def judge(self, adapted: Tensor, cls_features: Tensor, stop_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Both heads on feature maps.

        Args:
            adapted: A, or P in training, (B, C, h, w).
            cls_features: what the classification head sees beside the map, (B, C, h, w).
            stop_gradient: whether the score teaches the segmentation head nothing.
        """
        map_ = self.segmentation_head(adapted)
        if self.classification_head is None:
            return map_, None
        return map_, self.classification_head(cls_features, map_.detach() if stop_gradient else map_)


class ClassificationHead(nn.Module):
    """D_cls: a convolution over features and map, global maxima and means of both, a linear layer.

    Args:
        channels: of the features.
        width: of the convolution.
        kernel: its side.
    """

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels + 1, width, kernel, padding="same"), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.linear = nn.Linear(2 * width + 2, 1)

    def forward(self, features: Tensor, map_: Tensor) -> Tensor:
        """(B, C, h, w) and (B, 1, h, w) to a logit for each image, (B,)."""
        return self.pool(self.block(torch.cat([features, map_], dim=1)), map_)

    def pool(self, seen: Tensor, map_: Tensor) -> Tensor:
        """What the block has seen, (B, width, h, w), and the map to a logit for each image, (B,)."""
        pooled = [seen.amax(dim=(2, 3)), seen.mean(dim=(2, 3)), map_.amax(dim=(2, 3)), map_.mean(dim=(2, 3))]
        return self.linear(torch.cat(pooled, dim=1)).flatten()  # squeeze() would lose a batch of one


class AnomalyMapSmoother(nn.Module):
    """The raw map at the size of the image, blurred (3.6).

    Args:
        sigma: of the Gaussian, in pixels of the image; its kernel reaches 3 sigma.
    """

    kernel: Tensor

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.radius = math.ceil(3 * sigma)
        places = torch.arange(-self.radius, self.radius + 1)
        weights = torch.exp(-0.5 * (places / sigma) ** 2)
        self.register_buffer("kernel", weights / weights.sum(), persistent=False)

    def forward(self, map_: Tensor, size: Iterable[int]) -> Tensor:
        """(B, 1, h, w) to (B, H, W)."""
        full = F.interpolate(map_, list(size), mode="bilinear", align_corners=False)
        padded = F.pad(full, [self.radius] * 4, mode="reflect")
        return F.conv2d(F.conv2d(padded, self.kernel.view(1, 1, 1, -1)), self.kernel.view(1, 1, -1, 1))[:, 0]


class Detector(nn.Module):
    """All of inference in one network, as it is exported and timed.

    Args:
        normalise: uint8 pixels to what the network takes.
        network: a trained `SuperSimpleNet`, or what answers as it.
        smoother: of its map.
        map_max_score: whether the score is the highest value of the map.
    """

    def __init__(
        self, normalise: nn.Module, network: nn.Module, smoother: AnomalyMapSmoother, map_max_score: bool
    ) -> None:
        super().__init__()
        self.normalise, self.network, self.smoother = normalise, network, smoother
        self.map_max_score = map_max_score

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB images (B, 3, H, W) to anomaly maps (B, H, W) and scores (B,), both raw."""
        map_, score = self.network(self.normalise(image))
        anomaly_map = self.smoother(map_, image.shape[-2:])
        return anomaly_map, anomaly_map.flatten(1).amax(dim=1) if self.map_max_score else score


def _initialise(layer: nn.Module) -> Any:
    """Xavier normal for weights; biases and BatchNorms keep PyTorch's own start (official code)."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(layer.weight)
