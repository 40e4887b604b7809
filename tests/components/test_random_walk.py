"""The random walk against matrix powers of T written out pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from components.random_walk import (
    pair_distances,
    pair_offsets,
    pairs_inside,
    random_walk,
    walked_labels,
    with_background,
)

OFFSETS = pair_offsets(5)


def features(height: int, width: int, seed: int, channels: int = 6) -> Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def whole_affinity(maps: Tensor, radius: float) -> np.ndarray:
    """W of all N x N pixels by a double loop: exp(-L1) within the radius, 1 on the diagonal, else 0."""
    _, height, width = maps.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    whole = np.zeros((len(places), len(places)))
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            if (y - v) ** 2 + (x - u) ** 2 < radius**2:
                whole[i, j] = math.exp(-float((maps[:, y, x] - maps[:, v, u]).abs().sum()))
    return whole


@pytest.mark.parametrize("radius", [2, 3.5, 5])
def test_offsets_and_their_mirror_images_are_all_neighbours_once(radius):
    offsets = pair_offsets(radius)
    both = offsets + [(-dy, -dx) for dy, dx in offsets]
    reach = range(-6, 7)
    expected = {(dy, dx) for dy in reach for dx in reach if 0 < dy**2 + dx**2 < radius**2}
    assert len(both) == len(set(both)) and set(both) == expected


def test_pairs_inside_are_those_of_a_loop():
    inside = pairs_inside(OFFSETS, 4, 7, torch.device("cpu"))  # lower than the radius
    for place, (dy, dx) in enumerate(OFFSETS):
        for y in range(4):
            for x in range(7):
                assert bool(inside[place, y, x]) == (0 <= y + dy < 4 and 0 <= x + dx < 7)


def test_distances_are_those_of_a_loop():
    maps = features(6, 7, 0)
    found, inside = pair_distances(maps, OFFSETS)[0], pairs_inside(OFFSETS, 6, 7, torch.device("cpu"))
    for place, (dy, dx) in enumerate(OFFSETS):
        for y, x in inside[place].nonzero().tolist():
            expected = (maps[0, :, y, x] - maps[0, :, y + dy, x + dx]).abs().sum()
            torch.testing.assert_close(found[place, y, x], expected)


def test_recomputed_gradients_are_those_of_the_plain_sum():
    maps = features(5, 6, 1).requires_grad_()
    pair_distances(maps, OFFSETS).square().sum().backward()
    found, maps.grad = maps.grad, None
    plain = [(maps - maps.roll((-dy, -dx), (2, 3))).abs().sum(1) for dy, dx in OFFSETS]
    torch.stack(plain, 1).square().sum().backward()
    torch.testing.assert_close(found, maps.grad)


@pytest.mark.parametrize("log2_steps", [0, 3, 8])
def test_walk_is_the_power_of_the_dense_matrix(log2_steps):
    maps, scores = features(7, 9, 2), torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(3))
    transition = whole_affinity(maps[0], 5) ** 8
    transition /= transition.sum(axis=1, keepdims=True)
    expected = np.linalg.matrix_power(transition, 2**log2_steps) @ scores.view(3, -1).numpy().T.astype(np.float64)
    found = random_walk(scores, torch.exp(-pair_distances(maps, OFFSETS)[0]), OFFSETS, 8, log2_steps)
    np.testing.assert_allclose(found.view(3, -1).T.numpy(), expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("maps", [1, 2])
def test_mixed_precision_around_a_walk_changes_nothing(maps):
    affinity = torch.exp(-pair_distances(features(7, 9, 5), OFFSETS)[0])
    scores = torch.rand(maps, 7, 9, generator=torch.Generator().manual_seed(6))
    plain = random_walk(scores, affinity, OFFSETS, 8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(random_walk(scores, affinity, OFFSETS, 8, 4), plain)


def test_walk_keeps_what_is_the_same_everywhere():
    affinity = torch.rand(len(OFFSETS), 8, 8, generator=torch.Generator().manual_seed(4))
    constant = torch.full((1, 8, 8), 0.3)
    torch.testing.assert_close(random_walk(constant, affinity, OFFSETS, 8, 8), constant, rtol=1e-4, atol=0)


def test_walk_stays_on_its_side_of_an_edge():
    """Scores spread over the region of their own pixels and do not cross into the other."""
    side = torch.zeros(1, 1, 10, 12)
    side[..., 6:] = 20.0  # exp(-20)^8 is nothing
    scores = torch.zeros(1, 10, 12)
    scores[0, 5, 3] = 1.0
    walked = random_walk(scores, torch.exp(-pair_distances(side, OFFSETS)[0]), OFFSETS, 8, 8)[0]
    assert float(walked[:, 6:].abs().max()) < 1e-6
    assert float(walked[:, :6].min()) > 0.5 * float(walked[:, :6].max()) > 0


def test_background_is_what_the_highest_class_leaves():
    cam = torch.rand(3, 4, 5)
    found = with_background(cam, 16)
    for y in range(4):
        for x in range(5):
            expected = (1 - max(float(cam[k, y, x]) for k in range(3))) ** 16
            assert float(found[0, y, x]) == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert torch.equal(found[1:], cam)
    assert torch.equal(with_background(cam[:0], 16), torch.ones(1, 4, 5))


def test_labels_grow_over_the_rest_of_an_object_at_the_size_of_the_image():
    """Maps cover a bit more than half of an object, whose pixels are alike: the walk labels all of it."""
    truth = torch.zeros(40, 48, dtype=torch.long)
    truth[8:32, 8:32] = 1
    cam = torch.zeros(1, 40, 48)
    cam[0, 8:32, 8:24] = 1.0
    colour = F.adaptive_avg_pool2d(5.0 * truth[None, None].float(), (10, 12))
    affinity = torch.exp(-pair_distances(colour, OFFSETS)[0])
    before = with_background(cam, 16).argmax(0)
    found = walked_labels(cam, affinity, OFFSETS, beta=8, log2_steps=8, background_power=16)
    assert found.shape == truth.shape
    assert (before == truth).float().mean() < 0.91
    assert found[10:30, 10:30].all()
    assert not found[:, :5].any() and not found[:, 35:].any()


def test_image_without_a_class_is_background():
    affinity = torch.ones(len(OFFSETS), 5, 6)
    found = walked_labels(torch.zeros(0, 20, 24), affinity, OFFSETS, beta=8, log2_steps=2, background_power=16)
    assert found.shape == (20, 24) and not found.any()
