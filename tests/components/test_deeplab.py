"""The DeepLab heads: sizes, and what they are made of."""

import math

import pytest
import torch
from torch import nn
from torchvision.models.segmentation import deeplabv3

from components.deeplab import ASPP, DeepLabV3Head, DeepLabV3PlusHead
from runs.errors import InputError

CHANNELS, STRIDES = [64, 256, 512, 1024, 2048], [2, 4, 8, 16, 16]
RATES = [6, 12, 18]


def plus() -> DeepLabV3PlusHead:
    return DeepLabV3PlusHead(CHANNELS, STRIDES, 21, 256, 48, 4, RATES, 0.1)


def maps(height: int, width: int) -> list[torch.Tensor]:
    return [
        torch.randn(1, c, math.ceil(height / s), math.ceil(width / s)) for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]


@pytest.mark.parametrize("head", [plus, lambda: DeepLabV3Head(CHANNELS, STRIDES, 21, 256, RATES, 0.1)])
def test_logits_have_the_size_of_the_image_whatever_its_sides(head):
    with torch.no_grad():
        assert head().eval()(maps(50, 75), (50, 75)).shape == (1, 21, 50, 75)


def test_the_plus_head_has_the_layers_of_the_official_code():
    convs = [layer for layer in plus().modules() if isinstance(layer, nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0], c.dilation[0]) for c in convs]
    assert shapes == [
        (2048, 256, 1, 1),
        (2048, 256, 3, 6),
        (2048, 256, 3, 12),
        (2048, 256, 3, 18),
        (2048, 256, 1, 1),  # image pooling
        (1280, 256, 1, 1),
        (256, 48, 1, 1),  # low level, stride 4
        (304, 256, 3, 1),
        (256, 21, 1, 1),
    ]


def test_aspp_computes_what_torchvisions_does():
    ours, theirs = ASPP(16, 8, [2, 4], 0.1).eval(), deeplabv3.ASPP(16, [2, 4], 8).eval()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    with torch.no_grad():
        for mine, other in pairs:
            assert mine.shape == other.shape
            mine.copy_(torch.randn_like(mine))
            other.copy_(mine)
        x = torch.randn(2, 16, 9, 7)
        assert torch.allclose(ours(x), theirs(x), atol=1e-4)


def test_convolutions_start_by_he():
    weight = plus().join[0].weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (304 * 9)), rel=0.02)


def test_an_encoder_without_the_low_level_map_is_refused():
    with pytest.raises(InputError, match=r"low_level_stride=4: the encoder's maps have the strides \[8\]"):
        DeepLabV3PlusHead([8], [8], 3, 8, 4, 4, [1], 0.0)


def test_one_image_cannot_train_the_pooled_branch_but_can_be_segmented():
    head = DeepLabV3Head([8], [8], 3, 4, [1], 0.0)
    with pytest.raises(InputError, match=r"data\.batch_size leaves a process one image"):
        head([torch.randn(1, 8, 5, 5)], (9, 9))
    assert head([torch.randn(2, 8, 5, 5)], (9, 9)).shape == (2, 3, 9, 9)
    assert head.eval()([torch.randn(1, 8, 5, 5)], (9, 9)).shape == (1, 3, 9, 9)
