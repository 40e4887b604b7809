"""The network of AffinityNet: features of several encoder stages, whose differences are affinities (3.2)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.deeplab import resized
from components.random_walk import pair_distances, pair_offsets
from runs.errors import InputError


class AffinityNetwork(nn.Module):
    """Maps of an encoder, each projected, resized to one stride, joined and mixed.

    Args:
        encoder: images to feature maps; has ``channels``, ``strides`` and ``load_initial_weights``.
        stages: places of the maps that are used, from 0.
        widths: channels that each of them is projected to; their sum is the feature's length.
        stride: of the affinity map, pixels.
        radius: pairs are less than this far apart, in pixels of the affinity map.
        distance: the exponent of W: the ``sum`` over channels of absolute differences (Eq. 3), or their
            ``mean`` (public code).

    Raises:
        InputError: the encoder has no such map, or none of that stride.
    """

    def __init__(
        self,
        encoder: nn.Module,
        stages: list[int],
        widths: list[int],
        stride: int,
        radius: float,
        distance: Literal["sum", "mean"],
    ) -> None:
        super().__init__()
        maps = len(encoder.channels)
        if len(stages) != len(widths) or not all(0 <= stage < maps for stage in stages):
            raise InputError(
                f"network.stages={stages} with network.widths={widths}: give one width for each stage, and stages "
                f"from 0 to {maps - 1}"
            )
        if stride not in encoder.strides:
            raise InputError(f"network.stride={stride}: the encoder's maps have the strides {encoder.strides}")
        self.encoder, self.stages = encoder, stages
        self.sized_as = list(encoder.strides).index(stride)
        self.offsets = pair_offsets(radius)
        self.scale = 1.0 if distance == "sum" else 1.0 / sum(widths)
        self.project = nn.ModuleList(
            nn.Conv2d(encoder.channels[stage], width, 1, bias=False)
            for stage, width in zip(stages, widths, strict=True)
        )
        self.mix = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for layer in self.project:
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.mix.weight, gain=4)  # public code: features start far apart

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to features (B, D, h, w)."""
        maps = self.encoder(image)
        size = (maps[self.sized_as].shape[-2], maps[self.sized_as].shape[-1])
        joined = [
            resized(F.elu(layer(maps[stage])), size) for stage, layer in zip(self.stages, self.project, strict=True)
        ]
        return F.elu(self.mix(torch.cat(joined, dim=1)))

    def distances(self, image: Tensor) -> Tensor:
        """||f_i - f_j||_1, or its mean over channels, (B, P, h, w) float32, for the pairs of ``offsets``."""
        return self.scale * pair_distances(self(image).float(), self.offsets)

    def affinities(self, image: Tensor) -> Tensor:
        """W_ij = exp(-||f_i - f_j||_1), (B, P, h, w)."""
        return torch.exp(-self.distances(image))

    def load_initial_weights(self) -> None:
        """Fills the encoder with the weights that its config asks for."""
        self.encoder.load_initial_weights()
