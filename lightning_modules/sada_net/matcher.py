"""From an image pair to disparities: volume, guided filter, winner, left-right check, sub-pixel."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.sada_net.cost_volume import cosine_volume, seen_from_right, similarity_volume
from lightning_modules.sada_net.guided_filter import guided_filter
from lightning_modules.sada_net.hole_filling import fill_holes
from lightning_modules.sada_net.left_right_check import left_right_check
from lightning_modules.sada_net.network import LocalWindows, SimilarityNet
from lightning_modules.sada_net.subpixel import subpixel
from runs.errors import InputError

Pair = Mapping[str, Tensor]
Similarity = Literal["trained", "cosine", "zncc"]


@dataclass(frozen=True)
class Estimate:
    """What matching one pair gives, in left coordinates and pixels, each (H, W).

    Attributes:
        disparity: D_L, the best whole disparity of every pixel.
        refined: the same with the sub-pixel step, if it is on.
        consistent: bool; what passed the left-right check (Eq. 3), pixels without a grey value left out.
        disparity_right: D_R, in right coordinates.
    """

    disparity: Tensor
    refined: Tensor
    consistent: Tensor
    disparity_right: Tensor

    @property
    def sparse(self) -> Tensor:
        """Refined disparities, NaN where the check removed them."""
        return torch.where(self.consistent, self.refined, torch.nan)


class StereoMatcher(nn.Module):
    """Both networks and what is done with their similarities.

    A pair is a mapping of tensors on one device: ``left``, ``right`` (H, W), grey values of zero mean
    and unit variance over the image; ``guide_left``, ``guide_right`` (H, W), raw grey values; ``valid``
    (H, W) bool, false where the left image has no value; ``range`` (2,), least and most disparity.

    Args:
        branch: features of an image; see `SiameseBranch`.
        similarity_net: similarity of two feature maps.
        similarity: ``trained`` (the network), ``cosine`` (of the features; the network is not used) or
            ``zncc`` (of grey windows; neither network is used).
        zncc_side: of the windows of ``zncc``, pixels.
        guided_filter: smooth the volume along the edges of the image.
        filter_radius: of its windows, pixels.
        filter_eps: squared grey values.
        subpixel: refine the disparities of consistent pixels (Eq. 5).
        tolerance: of the left-right check, pixels (Eq. 3).
        tile: side of the tiles that large images are matched in, pixels, or None. Tiles overlap by all
            that a pixel's result depends on, so they change nothing.
        megabytes: that one layer's maps, or the filter's chunk of the volume, may take; one disparity at
            least is computed at a time, however much that takes.
    """

    def __init__(
        self,
        branch: nn.Module,
        similarity_net: SimilarityNet,
        similarity: Similarity,
        zncc_side: int,
        guided_filter: bool,
        filter_radius: int,
        filter_eps: float,
        subpixel: bool,
        tolerance: float,
        tile: int | None,
        megabytes: int,
    ) -> None:
        super().__init__()
        if tile is not None and tile < 1:
            raise InputError(f"model.matcher.tile={tile} must be 1 pixel or more, or null")
        self.branch, self.similarity_net, self.similarity = branch, similarity_net, similarity
        self.guided_filter, self.filter_radius, self.filter_eps = guided_filter, filter_radius, filter_eps
        self.subpixel, self.tolerance = subpixel, tolerance
        self.tile, self.megabytes = tile, megabytes
        self.windows = LocalWindows(zncc_side)
        branch.requires_grad_(similarity != "zncc")
        similarity_net.requires_grad_(similarity == "trained")

    def frozen_copy(self, similarity: Similarity) -> Self:
        """The same weights, which nothing trains from here on."""
        copy = deepcopy(self).requires_grad_(False)
        copy.similarity = similarity
        return copy

    def score(self, left: Tensor, right: Tensor) -> Tensor:
        """Similarity at each position of two stacks of features, (B, C, h, w) each: (B, h, w)."""
        if self.similarity == "trained":
            return self.similarity_net(left, right)
        return F.cosine_similarity(left, right, dim=1)

    def forward(self, pair: Pair, sign: int, smooth: bool = True) -> Estimate:
        """Matches one pair; ``sign`` as in `cost_volume`; ``smooth=False`` leaves the guided filter out."""
        height, width = pair["left"].shape
        low, high = (int(end) for end in pair["range"])
        disparities = torch.arange(low, high + 1, device=pair["left"].device)
        D_L, D_R, refined = (torch.empty_like(pair["left"]) for _ in range(3))
        for inner, outer, cut in self._tiles(height, width, max(abs(low), abs(high))):
            part = {key: pair[key][outer] for key in ("left", "right", "guide_left", "guide_right")}
            for whole, tile in zip((D_L, D_R, refined), self._winners(part, disparities, sign, smooth), strict=True):
                whole[inner] = tile[cut]
        consistent = left_right_check(D_L, D_R, sign, self.tolerance) & pair["valid"]
        return Estimate(D_L, torch.where(consistent, refined, D_L), consistent, D_R)

    def fill(self, pair: Pair, estimate: Estimate, sign: int) -> Tensor:
        """The sparse map with its holes filled, (H, W)."""
        low, high = (int(end) for end in pair["range"])
        disparities = torch.arange(low, high + 1, device=estimate.sparse.device)
        return fill_holes(estimate.sparse, estimate.disparity_right, disparities, sign, self.tolerance)

    def _winners(self, pair: Pair, disparities: Tensor, sign: int, smooth: bool) -> tuple[Tensor, Tensor, Tensor]:
        """D_L, D_R and D_L with its sub-pixel part."""
        features = self.windows if self.similarity == "zncc" else self.branch
        F_L, F_R = (features(pair[side][None, None])[0] for side in ("left", "right"))
        if self.similarity == "trained":
            C_L = similarity_volume(self.similarity_net, F_L, F_R, disparities, sign, self.megabytes)
        else:
            C_L = cosine_volume(F_L, F_R, disparities, sign, self.megabytes)
        C_R = seen_from_right(C_L, disparities, sign)
        if self.guided_filter and smooth:
            C_L, C_R = self._smooth(C_L, pair["guide_left"]), self._smooth(C_R, pair["guide_right"])
        winner = C_L.argmax(dim=0)
        D_L, D_R = disparities[winner].float(), disparities[C_R.argmax(dim=0)].float()
        return D_L, D_R, D_L + subpixel(C_L, winner) if self.subpixel else D_L

    def _smooth(self, volume: Tensor, guide: Tensor) -> Tensor:
        each = 8 * guide.numel() * 8  # eight maps of float64
        size = max(1, self.megabytes * 2**20 // each)
        return torch.cat(
            [guided_filter(guide, part, self.filter_radius, self.filter_eps) for part in volume.split(size)]
        )

    def _tiles(self, height: int, width: int, reach: int) -> Iterator[tuple[tuple[slice, slice], ...]]:
        """Where a tile's result goes, what it is computed from, and where the result lies in that."""
        if self.tile is None:
            everything = (slice(None), slice(None))
            yield everything, everything, everything
            return
        margin = max(self.branch.radius + self.similarity_net.radius, self.windows.radius)
        if self.guided_filter:
            margin += 2 * self.filter_radius
        for y in range(0, height, self.tile):
            for x in range(0, width, self.tile):
                rows, columns = (
                    _with_margin(y, self.tile, margin, height),
                    _with_margin(x, self.tile, margin + reach, width),
                )
                yield tuple(zip(rows, columns, strict=True))


def _with_margin(start: int, side: int, margin: int, length: int) -> tuple[slice, slice, slice]:
    end, outer = min(start + side, length), max(0, start - margin)
    return slice(start, end), slice(outer, min(end + margin, length)), slice(start - outer, end - outer)
