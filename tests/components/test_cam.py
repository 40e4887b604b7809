"""Class activation maps against the double loop of their definition."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from components.cam import class_ids, multi_scale_cam, normalised_cam, seed_labels


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 1, bias=False))


def test_the_sum_over_scales_and_flips_is_that_of_the_definition():
    net, image, scales = network(), torch.randn(3, 20, 28), [1.0, 0.5, 1.5, 2.0]
    with torch.no_grad():
        ours = multi_scale_cam(net, image, scales)
        expected = torch.zeros(4, 20, 28)
        for scale in scales:
            size = (round(20 * scale), round(28 * scale))
            view = F.interpolate(image[None], size=size, mode="bicubic", antialias=scale < 1)
            plain = net(view).clamp(min=0)
            mirrored = torch.flip(net(torch.flip(view, [3])).clamp(min=0), [3])
            for c in range(4):  # one class at a time, in Pillow, whose enlarging is the same bilinear rule
                small = (plain + mirrored)[0, c].numpy()
                assert small.shape[0] <= 20
                expected[c] += torch.tensor(
                    np.array(Image.fromarray(small).resize((28, 20), Image.Resampling.BILINEAR))
                )
    assert ours.shape == (4, 20, 28)
    assert torch.allclose(ours, expected, atol=1e-5)


def test_relu_comes_before_the_flips_are_summed():
    """Maps of opposite sign do not cancel."""
    sign = torch.tensor([1.0, -1.0])
    ours = multi_scale_cam(lambda x: sign.view(2, 1, 1, 1).expand(2, 1, 4, 4), torch.zeros(3, 8, 8), [1.0])
    assert torch.equal(ours, torch.ones(1, 8, 8))


def test_maps_are_divided_by_their_maximum_once_and_only_true_classes_stay():
    cam = torch.rand(5, 6, 7) * 10
    kept = normalised_cam(cam, torch.tensor([1, 4]))
    for place, c in enumerate((1, 4)):
        assert torch.allclose(kept[place], cam[c] / (float(cam[c].max()) + 1e-5))
    assert normalised_cam(torch.zeros(1, 2, 2), torch.tensor([0])).eq(0).all()


def test_seeds_are_the_argmax_over_a_constant_background_and_the_maps():
    cam = torch.rand(3, 9, 8)
    cam[0, 0, 0] = cam[1, 0, 0] = cam[2, 0, 0] = 0.3  # a tie is background
    seeds, ids = seed_labels(cam, 0.3), class_ids(torch.tensor([2, 6, 19]))
    assert ids.tolist() == [0, 3, 7, 20]
    for y in range(9):
        for x in range(8):
            scores = [float(torch.tensor(0.3)), *cam[:, y, x].tolist()]
            assert int(seeds[y, x]) == scores.index(max(scores))


def test_an_image_without_labels_is_all_background():
    seeds = seed_labels(normalised_cam(torch.rand(5, 4, 4), torch.tensor([], dtype=torch.int64)), 0.3)
    assert seeds.shape == (4, 4) and seeds.eq(0).all()


def test_no_scale_at_all_is_an_error():
    with pytest.raises(ValueError, match="at least one scale"):
        multi_scale_cam(network(), torch.zeros(3, 8, 8), [])
