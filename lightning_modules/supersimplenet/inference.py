"""A trained SuperSimpleNet in another order of operations: the same function, at a fraction of the work.

Without noise, all between the backbone's maps and the heads' first non-linearity is linear. Resizing and averaging act
on places, one axis at a time; the adaptor and the heads' convolutions act on channels. So the channels can go first, at
the backbone's own resolutions, and only what they give is resized and averaged. The adaptor and the BatchNorms fold
into the weights. Training keeps the plain form, which is the one to read (`network.py`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.supersimplenet.network import SuperSimpleNet


class FoldedSuperSimpleNet(nn.Module):
    """Answers as `SuperSimpleNet` in eval mode, with the weights of this moment: later changes do not reach it.

    Args:
        network: the trained one; its backbone is shared, not copied.
    """

    def __init__(self, network: SuperSimpleNet) -> None:
        super().__init__()
        self.extractor = network.extractor
        convolution, norm, activation, self.last = network.segmentation_head
        self.hidden = FoldedConvolution(network, convolution, norm, adapted=True)
        self.slope = activation.negative_slope
        self.head = network.classification_head
        if self.head is not None:
            self.seen = FoldedConvolution(network, *self.head.block[:2], adapted=network.adapt_cls_features)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised images (B, 3, H, W) to M_o (B, 1, h, w) and s (B,), both raw; s is None without its head."""
        maps = self.extractor.body(image)
        size = self.extractor.joined_size(maps)
        map_ = self.last(F.leaky_relu(self.hidden(maps, size), self.slope, inplace=True))  # memory costs more than sums
        return map_, None if self.head is None else self.head.pool(F.relu(self.seen(maps, size, map_)), map_)


class FoldedConvolution(nn.Module):
    """A convolution of k x k taps over joined features, adapted or not, with its BatchNorm, from the backbone's maps.

    Args:
        network: has the backbone and the adaptor.
        convolution: over the features, and perhaps the anomaly map behind them.
        norm: behind it.
        adapted: whether it sees adapted features.
    """

    of_map: Tensor
    inside: Tensor
    everywhere: Tensor

    def __init__(self, network: SuperSimpleNet, convolution: nn.Conv2d, norm: nn.BatchNorm2d, adapted: bool) -> None:
        super().__init__()
        channels = network.extractor.channels
        self.kernel = convolution.kernel_size[0]
        scale = _exact(norm.weight) / (_exact(norm.running_var) + norm.eps).sqrt()
        everywhere = _exact(norm.bias) + scale * (_exact(convolution.bias) - _exact(norm.running_mean))
        weight = scale.view(-1, 1, 1, 1) * _exact(convolution.weight)  # (O, C, k, k)
        weight, of_map = weight[:, :channels], weight[:, channels:]
        inside = weight.new_zeros(weight[:, 0].shape)  # each tap's share of the adaptor's bias; none beyond the border
        if adapted:
            inside = torch.einsum("ocyx,c->oyx", weight, _exact(network.adaptor.bias))
            weight = torch.einsum("ocyx,ci->oiyx", weight, _exact(network.adaptor.weight)[:, :, 0, 0])
        taps = weight.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]  # (O k k, C, 1, 1)
        parts = taps.split(network.extractor.body.feature_info.channels(), dim=1)
        self.taps = nn.ParameterList(nn.Parameter(part.to(convolution.weight), False) for part in parts)
        self.register_buffer("of_map", of_map.to(convolution.weight))
        self.register_buffer("inside", inside.to(convolution.weight))
        self.register_buffer("everywhere", everywhere[:, None, None].to(convolution.weight))

    def forward(self, maps: Sequence[Tensor], size: Sequence[int], map_: Tensor | None = None) -> Tensor:
        """The backbone's maps, and M_o where it is seen, to (B, O, h, w); ``size`` is (h, w)."""
        height, width = size
        k, given = self.kernel, maps[0]
        # The sum over maps and taps (s, t) of Y_s' (products with tap (s, t)) X_t, where X_t and Y_s resize, average
        # and shift along an axis: first along rows for each s, then along columns for all s and all maps at once.
        rows, columns = [], []
        for one, taps in zip(maps, self.taps, strict=True):
            products = F.conv2d(one, taps).unflatten(1, (-1, k, k))  # (B, O, s, t, h', w')
            along = self.shifted(resizing(one.shape[-1], width, one))  # (t w', w)
            rows.append((products.transpose(3, 4).flatten(4) @ along).flatten(2, 3))  # (B, O, s h', w)
            columns.append(self.shifted(resizing(one.shape[-2], height, one)))  # (s h', h)
        ones = [self.shifted(given.new_ones(1, side)) for side in size]  # (k, side): zero where a tap is outside
        rows += [part.expand(len(given), -1, -1, width) for part in (self.inside @ ones[1], self.everywhere)]
        columns += [ones[0], given.new_ones(1, height)]
        result = torch.cat(columns).T @ torch.cat(rows, dim=2)
        return result if map_ is None else result + F.conv2d(map_, self.of_map, padding="same")

    def shifted(self, matrix: Tensor) -> Tensor:
        """(places, side) to (k places, side): what each tap of an axis sees, and zero beyond the border."""
        before = (self.kernel - 1) // 2  # padding="same"
        padded = F.pad(matrix, (before, self.kernel - 1 - before))
        return padded.unfold(1, matrix.shape[1], 1).transpose(0, 1).flatten(0, 1)


def resizing(places: int, side: int, like: Tensor) -> Tensor:
    """What `FrozenFeatureExtractor` does along an axis, (places, side): the answers to its unit vectors."""
    units = torch.eye(places, dtype=like.dtype, device=like.device)[None]
    resized = F.interpolate(units, side, mode="linear", align_corners=True)
    return F.avg_pool1d(resized, kernel_size=3, stride=1, padding=1)[0]


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().cpu().double()
