"""Normalised pixels."""

import numpy as np
import pytest
import torch
from torch import nn

from components.pixels import PixelNormalisation

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 6, 3, 4, 5)])
def test_each_channel_has_its_own_mean_and_deviation(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    expected = np.empty(shape)
    for channel in range(3):
        expected[..., channel, :, :] = (pixels[..., channel, :, :] / 255 - MEAN[channel]) / STD[channel]
    normalised = PixelNormalisation(MEAN, STD)(torch.from_numpy(pixels))
    assert normalised.dtype == torch.float32
    assert np.allclose(normalised.numpy(), expected, atol=1e-5)


def test_it_is_no_part_of_a_checkpoint_and_moves_with_its_module():
    holder = nn.Module()
    holder.normalise = PixelNormalisation(MEAN, STD)
    assert holder.state_dict() == {}
    holder.load_state_dict({})
    holder.to("meta")
    assert holder.normalise.mean.device.type == holder.normalise.std.device.type == "meta"
