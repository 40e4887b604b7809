"""SAda-Net's operators against loops, closed forms and second passes."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_modules.sada_net.cost_volume import cosine_volume, seen_from_right, similarity_volume, targets
from lightning_modules.sada_net.guided_filter import guided_filter
from lightning_modules.sada_net.hole_filling import fill_holes
from lightning_modules.sada_net.left_right_check import left_right_check
from lightning_modules.sada_net.losses import hinge
from lightning_modules.sada_net.matcher import StereoMatcher
from lightning_modules.sada_net.network import LocalWindows, SiameseBranch, SimilarityNet
from lightning_modules.sada_net.subpixel import subpixel, subpixel_offset

SIGNS = [-1, 1]
H, W = 20, 34
DISPARITIES = torch.arange(-2, 7)  # a range with a least disparity below 0


def weights(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return SiameseBranch(8, 6), SimilarityNet(6, 7)


def make_matcher(networks=None, **changes) -> StereoMatcher:
    torch.manual_seed(0)
    branch, net = networks or (SiameseBranch(8, 6), SimilarityNet(6, 7))
    settings = {
        "similarity": "trained",
        "zncc_side": 5,
        "guided_filter": True,
        "filter_radius": 3,
        "filter_eps": 10.0,
        "subpixel": True,
        "tolerance": 1.1,
        "tile": None,
        "megabytes": 256,
    }
    return StereoMatcher(branch, net, **{**settings, **changes})


def a_pair(height: int = H, width: int = W, seed: int = 0, low: int = 0, high: int = 5) -> dict[str, torch.Tensor]:
    left, right = random(height, width, seed=seed), random(height, width, seed=seed + 1)
    return {
        "left": left,
        "right": right,
        "guide_left": 128 + 40 * left,
        "guide_right": 128 + 40 * right,
        "valid": torch.ones(height, width, dtype=torch.bool),
        "range": torch.tensor([low, high]),
    }


# --- networks (paper 4)


def test_the_official_networks_have_495_501_weights():
    branch, net = SiameseBranch(100, 60), SimilarityNet(60, 80)
    assert (weights(branch), weights(net)) == (235_260, 260_241)
    assert weights(branch) + weights(net) == 495_501


def test_features_and_similarities_keep_the_size_of_the_image_and_end_without_activation(networks):
    branch, net = networks
    features = branch(10 * random(2, 1, H, W))
    assert features.shape == (2, 6, H, W)
    assert net(features, features).shape == (2, H, W)
    big = SiameseBranch(8, 6)
    torch.nn.init.constant_(big.layers[-1].bias, 5.0)
    assert big(random(1, 1, H, W)).max() > 1  # tanh could not give that


def test_a_feature_sees_four_pixels_and_a_similarity_five_more(networks):
    branch, net = networks
    image = random(1, 1, 25, 25).requires_grad_()
    branch(image)[0, 0, 12, 12].backward()
    ys, xs = image.grad[0, 0].nonzero(as_tuple=True)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (8, 16, 8, 16) and branch.radius == 4
    features = random(1, 6, 25, 25).requires_grad_()
    net(features, features)[0, 12, 12].backward()
    ys = features.grad[0, 0].nonzero(as_tuple=True)[0]
    assert (ys.min(), ys.max()) == (7, 17) and net.radius == 5


# --- loss (Eq. 1)


def test_hinge_is_the_mean_over_patches_and_positions():
    s_plus, s_minus = random(3, 2, 2), random(3, 2, 2, seed=1)
    terms = [max(0.0, 0.2 + float(m) - float(p)) for p, m in zip(s_plus.ravel(), s_minus.ravel(), strict=True)]
    assert float(hinge(s_plus, s_minus, 0.2)) == pytest.approx(sum(terms) / len(terms))


def test_hinge_is_zero_only_where_the_match_wins_by_the_margin():
    # Eq. 2 as printed is 0 for the first pair, where the wrong patch is the more similar one.
    low, high = torch.full((1, 2, 2), -1.0), torch.full((1, 2, 2), 1.0)
    assert hinge(low, high, 0.2) == pytest.approx(2.2)
    assert hinge(high, low, 0.2) == 0


# --- volumes


@pytest.mark.parametrize("sign", SIGNS)
def test_the_volume_is_the_network_on_moved_features_away_from_the_border(networks, sign):
    _, net = networks
    left, right = random(6, H, W), random(6, H, W, seed=1)
    with torch.no_grad():
        volume = similarity_volume(net, left, right, DISPARITIES, sign, megabytes=64)
        for i, d in enumerate(DISPARITIES.tolist()):
            seen = torch.zeros(6, H, W)
            for x in range(W):
                if 0 <= x + sign * d < W:
                    seen[:, :, x] = right[:, :, x + sign * d]
            expected = net(left[None], seen[None])[0]
            margin = net.radius + abs(d)
            inner = slice(margin, W - margin)
            assert torch.allclose(volume[i, :, inner], expected[:, inner], atol=1e-5)


@pytest.mark.parametrize("sign", SIGNS)
def test_the_right_volume_is_that_of_a_second_pass_away_from_the_border(networks, sign):
    _, net = networks
    left, right = random(6, H, W), random(6, H, W, seed=1)

    def direct(x_right: int, d: int, y: int) -> float:
        """sim(F_L[x - sign * d], F_R[x]) around (x, y) of the right image, computed from scratch."""
        x_left, r = x_right - sign * d, net.radius
        rows = slice(y - r, y + r + 1)
        around_left, around_right = slice(x_left - r, x_left + r + 1), slice(x_right - r, x_right + r + 1)
        return float(net(left[None, :, rows, around_left], right[None, :, rows, around_right])[0, r, r])

    with torch.no_grad():
        volume = similarity_volume(net, left, right, DISPARITIES, sign, megabytes=64)
        right_volume = seen_from_right(volume, DISPARITIES, sign)
        for i, d in enumerate(DISPARITIES.tolist()):
            for x in (15, 20):
                for y in (8, 11):
                    assert float(right_volume[i, y, x]) == pytest.approx(direct(x, d, y), abs=1e-5)


@pytest.mark.parametrize("sign", SIGNS)
def test_the_right_volume_is_the_left_one_moved(sign):
    volume = random(len(DISPARITIES), 3, W)
    volume.masked_fill_(~targets(DISPARITIES, sign, W)[1][:, None], -torch.inf)
    moved = seen_from_right(volume, DISPARITIES, sign)
    for i, d in enumerate(DISPARITIES.tolist()):
        for x in range(W):
            source = x - sign * d
            if 0 <= source < W:
                assert torch.equal(moved[i, :, x], volume[i, :, source])
            else:
                assert moved[i, :, x].eq(-torch.inf).all()


@pytest.mark.parametrize("sign", SIGNS)
def test_candidates_outside_the_image_and_only_they_are_minus_infinity(networks, sign):
    _, net = networks
    left, right = random(6, H, W), random(6, H, W, seed=1)
    with torch.no_grad():
        for volume in (
            similarity_volume(net, left, right, DISPARITIES, sign, 64),
            cosine_volume(left, right, DISPARITIES, sign, 64),
        ):
            for i, d in enumerate(DISPARITIES.tolist()):
                outside = [not 0 <= x + sign * d < W for x in range(W)]
                assert volume[i, 0].eq(-torch.inf).tolist() == outside


@pytest.mark.parametrize("sign", SIGNS)
def test_cosine_volume_is_the_cosine_of_each_two_vectors(sign):
    left, right = random(6, 4, W), random(6, 4, W, seed=1)
    volume = cosine_volume(left, right, DISPARITIES, sign, 64)
    for i, d in enumerate(DISPARITIES.tolist()):
        for x in range(W):
            if 0 <= x + sign * d < W:
                a, b = left[:, 2, x].numpy(), right[:, 2, x + sign * d].numpy()
                cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                assert float(volume[i, 2, x]) == pytest.approx(cosine, abs=1e-5)


def test_chunks_of_disparities_change_nothing(networks):
    _, net = networks
    left, right = random(6, 200, 200), random(6, 200, 200, seed=1)
    with torch.no_grad():
        whole = similarity_volume(net, left, right, DISPARITIES, -1, megabytes=1000)
        chunked = similarity_volume(net, left, right, DISPARITIES, -1, megabytes=1)  # one slice at a time
    assert torch.allclose(whole, chunked, atol=1e-6)


def test_zncc_is_the_correlation_of_two_windows():
    left, right = random(1, 1, H, W), random(1, 1, H, W, seed=1)
    windows = LocalWindows(5)
    volume = cosine_volume(windows(left)[0], windows(right)[0], torch.tensor([3]), -1, 64)
    for y, x in ((5, 9), (10, 20)):
        a = left[0, 0, y - 2 : y + 3, x - 2 : x + 3].ravel().numpy()
        b = right[0, 0, y - 2 : y + 3, x - 5 : x].ravel().numpy()
        assert float(volume[0, y, x]) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)


# --- guided filter


def brute_force_filter(guide: np.ndarray, p: np.ndarray, inside: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """He et al., Eq. 5, 6 and 8, window by window, with least squares by numpy."""
    height, width = p.shape
    windows = {
        (y, x): (slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1))
        for y in range(height)
        for x in range(width)
    }
    a, b = np.zeros((2, height, width))
    for place, window in windows.items():
        I, values = guide[window][inside[window]], p[window][inside[window]]  # noqa: E741
        if len(I):
            a[place] = np.cov(I, values, bias=True)[0, 1] / (I.var() + eps)
            b[place] = values.mean() - a[place] * I.mean()
    out = np.full_like(p, -np.inf)
    for place, window in windows.items():
        if inside[place]:
            out[place] = a[window][inside[window]].mean() * guide[place] + b[window][inside[window]].mean()
    return out


@pytest.mark.parametrize(("radius", "eps"), [(2, 10.0), (8, 10.0), (3, 1000.0)])
def test_guided_filter_is_the_window_by_window_one(radius, eps):
    guide = 128 + 50 * random(12, 15)
    volume = random(3, 12, 15, seed=1)
    volume[1, :, :4] = volume[2, :, 9:] = -torch.inf
    filtered = guided_filter(guide, volume, radius, eps)
    for before, after in zip(volume.double().numpy(), filtered.numpy(), strict=True):
        expected = brute_force_filter(guide.double().numpy(), before, np.isfinite(before), radius, eps)
        np.testing.assert_allclose(after, expected, atol=1e-5)


def test_guided_filter_does_not_depend_on_the_brightness_of_16_bit_images():
    guide, volume = 40 * random(30, 40), random(2, 30, 40, seed=1)
    assert torch.allclose(
        guided_filter(guide, volume, 8, 10.0), guided_filter(guide + 60_000, volume, 8, 10.0), atol=1e-2
    )


# --- left-right check (Eq. 3)


@pytest.mark.parametrize("sign", SIGNS)
def test_the_check_is_eq_3_pixel_by_pixel_with_the_right_map_read_at_the_match(sign):
    generator = torch.Generator().manual_seed(0)
    D_L, D_R = (torch.randint(0, 8, (9, W), generator=generator).float() for _ in range(2))
    passed = left_right_check(D_L, D_R, sign, 1.1)
    for y in range(9):
        for x in range(W):
            target = x + sign * int(D_L[y, x])
            expected = 0 <= target < W and abs(float(D_L[y, x] - D_R[y, target])) <= 1.1
            assert bool(passed[y, x]) == expected
    # Random maps agree rarely; read at x instead of the match, equal maps would all agree.
    assert passed.float().mean() < 0.5
    assert not left_right_check(D_L, D_L, sign, 1.1).all()


@pytest.mark.parametrize("sign", SIGNS)
def test_the_check_removes_exactly_the_occluded_band(sign):
    """A block at disparity 6 before a wall at 2, every left pixel known by a number of its own."""
    width, block = 48, range(20, 30)
    disparity = torch.tensor([6 if x in block else 2 for x in range(width)])
    if sign == 1:  # the mirrored scene
        disparity = disparity.flip(0)
    owner: dict[int, int] = {}  # right pixel -> left pixel that is in front there
    for x in range(width):
        target = x + sign * int(disparity[x])
        if 0 <= target < width and (target not in owner or disparity[x] > disparity[owner[target]]):
            owner[target] = x
    visible = torch.tensor([owner.get(x + sign * int(disparity[x])) == x for x in range(width)])
    assert 4 < int((~visible).sum()) < 12

    left = torch.arange(width)
    right = torch.tensor([owner.get(x, -1) for x in range(width)])
    disparities = torch.arange(9)
    columns, inside = targets(disparities, sign, width)
    volume = (right[columns.clamp(0, width - 1)] == left).float().masked_fill(~inside, -torch.inf)[:, None]
    D_L = volume.argmax(0).float()
    D_R = seen_from_right(volume, disparities, sign).argmax(0).float()
    assert torch.equal(left_right_check(D_L, D_R, sign, 1.1)[0], visible)


# --- sub-pixel step (Eq. 5)


def test_subpixel_identities():
    offset = lambda *costs: float(subpixel_offset(*(torch.tensor(-c) for c in costs)))  # noqa: E731 - of costs
    assert offset(3.0, 1.0, 3.0) == pytest.approx(0, abs=1e-7)  # l = r
    assert offset(1.0, 1.0, 3.0) == pytest.approx(-0.5)  # l = 0
    assert offset(3.0, 1.0, 1.0) == pytest.approx(0.5)  # r = 0
    assert offset(1.0, 1.0, 1.0) == 0  # l = r = 0


def test_subpixel_is_the_formula_on_costs_and_continuous():
    f = lambda t: 2 / math.pi * math.atan(t)  # noqa: E731
    before = None
    for step in range(1, 400):
        l, r = step / 200, 1.0  # noqa: E741
        expected = -0.5 + f(l / r) if l <= r else 0.5 - f(r / l)
        offset = float(subpixel_offset(torch.tensor(-l), torch.tensor(0.0), torch.tensor(-r)))
        assert offset == pytest.approx(expected, abs=1e-6)
        assert before is None or 0 <= offset - before < 0.01  # a costlier left neighbour pushes right
        before = offset


def test_subpixel_leaves_the_ends_of_the_range_and_the_border_alone():
    volume = torch.tensor([[0.0, 3.0, 0.0, 1.0], [3.0, 1.0, 1.0, 3.0], [1.0, 0.0, 3.0, -torch.inf]])[:, None]
    winner = volume.argmax(0)
    assert winner.tolist() == [[1, 0, 2, 1]]
    offset = subpixel(volume, winner)
    assert offset[0, 1:].tolist() == [0, 0, 0]
    assert float(offset[0, 0]) == pytest.approx(0.5 - 2 / math.pi * math.atan(2 / 3))


def test_subpixel_finds_a_shift_between_pixels():
    x = torch.arange(11.0)
    for true in (4.3, 4.9, 5.25):
        volume = -((x - true).abs())[:, None, None]
        winner = volume.argmax(0)
        refined = float(winner + subpixel(volume, winner))
        assert abs(refined - true) < 0.15 and abs(refined - true) < abs(int(winner) - true)


# --- hole filling


def test_a_hidden_hole_takes_the_background_of_its_row_and_a_mismatch_the_median_around():
    nan = torch.nan
    sparse = torch.tensor([[4.0, 4, 4, 4, 9, 9], [2, nan, nan, 7, nan, 9], [4, 4, 4, 4, 9, 9]])
    hidden_everywhere = torch.full((3, 6), 50.0)
    filled = fill_holes(sparse, hidden_everywhere, torch.arange(10), -1, 1.1)
    assert filled[1].tolist() == [2, 2, 2, 7, 7, 9]
    # A right view that agrees with every disparity somewhere: then all holes are mismatches.
    agreeing = torch.zeros(3, 6)
    filled = fill_holes(sparse, agreeing, torch.arange(10), -1, 1.1)
    for x in (1, 2, 4):
        assert float(filled[1, x]) == directions_median(sparse, 1, x)
    assert torch.equal(filled[sparse.isfinite()], sparse[sparse.isfinite()])


def directions_median(sparse: torch.Tensor, y: int, x: int) -> float:
    """Walks each of the eight rays."""
    found = []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            step = 1
            while (dy or dx) and 0 <= y + dy * step < sparse.shape[0] and 0 <= x + dx * step < sparse.shape[1]:
                value = float(sparse[y + dy * step, x + dx * step])
                if not math.isnan(value):
                    found.append(value)
                    break
                step += 1
    return sorted(found)[(len(found) - 1) // 2] if found else math.nan


def test_far_values_are_found_along_all_rays():
    generator = torch.Generator().manual_seed(0)
    sparse = torch.where(
        torch.rand(23, 31, generator=generator) < 0.05, torch.rand(23, 31, generator=generator), torch.nan
    )
    filled = fill_holes(sparse, torch.zeros(23, 31), torch.arange(2), -1, 1.1)
    for y in range(0, 23, 3):
        for x in range(2, 31, 3):
            if math.isnan(sparse[y, x]):
                assert float(filled[y, x]) == pytest.approx(directions_median(sparse, y, x), nan_ok=True)


# --- the matcher as a whole


@pytest.mark.parametrize("similarity", ["trained", "cosine", "zncc"])
@pytest.mark.parametrize("sign", SIGNS)
def test_tiles_change_nothing(similarity, sign):
    pair = a_pair(50, 90, low=-3, high=6)
    with torch.no_grad():
        whole = make_matcher(similarity=similarity)(pair, sign)
        tiled = make_matcher(similarity=similarity, tile=23)(pair, sign)
    assert torch.equal(whole.disparity, tiled.disparity)
    assert torch.equal(whole.disparity_right, tiled.disparity_right)
    assert torch.equal(whole.consistent, tiled.consistent)
    assert torch.allclose(whole.refined, tiled.refined, atol=1e-3)


@pytest.mark.parametrize("sign", SIGNS)
def test_each_volume_is_filtered_under_the_image_it_belongs_to(sign):
    pair, disparities = a_pair(14, 22), torch.arange(6)
    pair["guide_right"] = 128 + 40 * random(14, 22, seed=9)
    matcher, plain = make_matcher(filter_radius=2), make_matcher(guided_filter=False)
    with torch.no_grad():
        F_L, F_R = (matcher.branch(pair[side][None, None])[0] for side in ("left", "right"))
        C_L = similarity_volume(matcher.similarity_net, F_L, F_R, disparities, sign, 64).double().numpy()
        estimate, unfiltered = matcher(pair, sign), plain(pair, sign)
    C_R = np.full_like(C_L, -np.inf)
    for i, d in enumerate(disparities.tolist()):
        for x in range(22):
            if 0 <= x + sign * d < 22:
                C_R[i, :, x + sign * d] = C_L[i, :, x]

    def winners(volume: np.ndarray, guide: torch.Tensor) -> np.ndarray:
        guide = guide.double().numpy()
        return np.stack([brute_force_filter(guide, p, np.isfinite(p), 2, 10.0) for p in volume]).argmax(axis=0)

    guides = pair["guide_left"], pair["guide_right"]
    for volume, own, other, found, raw in (
        (C_L, *guides, estimate.disparity, unfiltered.disparity),
        (C_R, *guides[::-1], estimate.disparity_right, unfiltered.disparity_right),
    ):
        assert np.array_equal(found.numpy(), winners(volume, own))
        assert (winners(volume, other) != found.numpy()).mean() > 0.05  # the other guide would be seen
        assert np.array_equal(raw.numpy(), volume.argmax(axis=0)) and (raw != found).float().mean() > 0.05


def test_the_sub_pixel_step_moves_consistent_pixels_alone_and_by_half_a_pixel_at_most():
    with torch.no_grad():
        estimate = make_matcher()(a_pair(), -1)
        whole = make_matcher(subpixel=False)(a_pair(), -1)
    moved = estimate.refined - estimate.disparity
    assert moved[estimate.consistent].abs().max() <= 0.5 and moved.abs().max() > 0
    assert moved[~estimate.consistent].eq(0).all()
    assert torch.equal(whole.refined, whole.disparity) and torch.equal(whole.disparity, estimate.disparity)
    assert torch.equal(estimate.sparse.isnan(), ~estimate.consistent)


def test_pixels_without_a_value_are_never_consistent():
    pair = a_pair()
    pair["right"] = pair["left"].roll(-2, dims=1)  # easy to match
    pair["valid"][5:9, 10:20] = False
    with torch.no_grad():
        estimate = make_matcher(similarity="zncc", guided_filter=False)(pair, -1)
    assert estimate.consistent[pair["valid"]].float().mean() > 0.8
    assert not estimate.consistent[~pair["valid"]].any()


def test_the_cosine_trains_the_branch_alone_and_scores_as_it_matches():
    matcher = make_matcher(similarity="cosine")
    assert {name.partition(".")[0] for name, weight in matcher.named_parameters() if weight.requires_grad} == {"branch"}
    left, right = random(2, 6, 3, 3), random(2, 6, 3, 3, seed=1)
    expected = (left * right).sum(1) / left.norm(dim=1) / right.norm(dim=1)
    assert torch.allclose(matcher.score(left, right), expected, atol=1e-6)
    assert torch.allclose(F.normalize(left, dim=1).mul(F.normalize(right, dim=1)).sum(1), expected, atol=1e-6)


def test_both_networks_train_with_the_trained_similarity():
    matcher = make_matcher()
    assert all(weight.requires_grad for weight in matcher.parameters())
    copy = matcher.frozen_copy("cosine")
    assert not any(weight.requires_grad for weight in copy.parameters())
