"""DIC's equations and its algorithm, each against a computation that shares no line with it."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.dic.losses import refinement_loss, superpixel_vote
from lightning_modules.dic.network import DeepClustering, FeatureTransform
from tests.papers.dic_samples import dic_module, sample


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / sum(weights) for weight in weights]


def soft_clustering(Y: list, centres: list, gamma: int, unit_length: bool) -> tuple[list, list]:
    """Eq. 2 and 3 by loops over pixels, centres and channels."""
    for _ in range(gamma):
        H = [softmax([sum(y * o for y, o in zip(row, centre, strict=True)) for centre in centres]) for row in Y]
        new = []
        for m in range(len(centres)):
            weight = sum(H[n][m] for n in range(len(Y))) + 1e-6
            centre = [sum(H[n][m] * Y[n][c] for n in range(len(Y))) / weight for c in range(len(Y[0]))]
            if unit_length:
                length = math.sqrt(sum(value * value for value in centre))
                centre = [value / length for value in centre]
            new.append(centre)
        centres = new
    return H, centres


def aggregated(H: list, centres: list) -> list:
    return [[sum(row[m] * centres[m][c] for m in range(len(centres))) for c in range(len(centres[0]))] for row in H]


def test_paper_clustering_is_equations_2_to_4():
    torch.manual_seed(0)
    dcs, Y = DeepClustering(channels=4, centres=3, variant="paper", gamma=3), torch.randn(11, 4)
    expected = aggregated(*soft_clustering(Y.tolist(), dcs.start.tolist(), 3, unit_length=False))
    torch.testing.assert_close(dcs(Y), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert not list(dcs.parameters())


def test_official_clustering_is_the_ema_unit():
    torch.manual_seed(1)
    dcs, Y = DeepClustering(channels=4, centres=3, variant="official", gamma=3), torch.randn(11, 4)
    before, bias, after = dcs.before.weight.tolist(), dcs.before.bias.tolist(), dcs.after.weight.tolist()
    inner = [[sum(before[c][d] * row[d] for d in range(4)) + bias[c] for c in range(4)] for row in Y.tolist()]
    mixed = [
        [max(value, 0.0) for value in row] for row in aggregated(*soft_clustering(inner, dcs.start.tolist(), 3, True))
    ]
    expected = [
        [max(sum(after[c][d] * mixed[n][d] for d in range(4)) + Y[n, c].item(), 0.0) for c in range(4)]
        for n in range(11)
    ]
    torch.testing.assert_close(dcs(Y), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_without_clustering_the_features_are_the_answer():
    Y = torch.randn(7, 5)
    assert torch.equal(DeepClustering(5, 3, "none", 3)(Y), Y)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_gradient_of_the_clustering(variant):
    """The official rounds pass none, so Y learns by the residual alone; the paper's pass it through all rounds."""
    torch.manual_seed(2)
    dcs, Y = DeepClustering(4, 3, variant, 3).double(), torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    # forward() works in float32 on purpose; the numerical gradient needs the float64 rounds themselves.
    if variant == "paper":
        assert torch.autograd.gradcheck(lambda y: torch.matmul(*dcs.rounds(y, unit_length=False)), Y)
        return
    dcs = dcs.float()
    out = dcs(Y.float())
    out.sum().backward()
    torch.testing.assert_close(Y.grad, (out > 0).double())
    assert dcs.before.weight.grad is None and dcs.after.weight.grad is not None


def test_first_centres_are_drawn_once_of_unit_length_and_never_learnt():
    """Trap 9."""
    torch.manual_seed(3)
    dcs = DeepClustering(6, 4, "official", 3)
    start, Y = dcs.start.clone(), torch.randn(20, 6)
    torch.testing.assert_close(start.norm(dim=1), torch.ones(4))
    assert "start" not in dict(dcs.named_parameters())
    torch.manual_seed(99)
    first, second = dcs(Y), dcs(Y)
    assert torch.equal(first, second) and torch.equal(dcs.start, start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["official", "paper", "none"])
def test_clustering_is_float32_under_mixed_precision(variant, dtype):
    """Trap 10: sums over all pixels leave half precision's range."""
    torch.manual_seed(4)
    dcs, Y = DeepClustering(5, 4, variant, 3), (100 * torch.rand(3000, 5)).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        mixed = dcs(Y)
    assert mixed.dtype == torch.float32 and mixed.isfinite().all()
    assert torch.equal(mixed, dcs(Y.float()))


def test_vote_is_the_mode_of_each_superpixel_and_ties_go_to_the_smallest_label():
    random = np.random.default_rng(0)
    guide, labels = random.integers(0, 9, 400), random.integers(0, 5, 400)
    guide[:9] = range(9)
    labels[guide == 4], labels[np.flatnonzero(guide == 4)[::2]] = 3, 1
    if (labels[guide == 4] == 3).sum() != (labels[guide == 4] == 1).sum():  # make it a tie
        guide[np.flatnonzero(guide == 4)[0]] = 5
    expected = np.empty_like(labels)
    for k in range(9):
        counts = [0] * 5
        for n in range(400):
            if guide[n] == k:
                counts[labels[n]] += 1
        expected[guide == k] = counts.index(max(counts))
    assert (expected[guide == 4] == 1).all()
    voted = superpixel_vote(torch.tensor(labels), torch.tensor(guide), 9, 5)
    assert torch.equal(voted, torch.tensor(expected))


def test_loss_is_the_mean_cross_entropy_with_the_voted_labels():
    torch.manual_seed(5)
    features, refined = torch.randn(13, 4, requires_grad=True), torch.randint(4, (13,))
    total = sum(-math.log(softmax(features[n].tolist())[refined[n]]) for n in range(13))
    loss = refinement_loss(features, refined)
    assert loss.item() == pytest.approx(total / 13, rel=1e-5)


@pytest.mark.parametrize(("upsample", "extra"), [("bilinear", 0), ("deconv", 128 * 128 * 4 + 128)])
@pytest.mark.parametrize("out_bn", [True, False])
def test_feature_network_has_the_layers_of_figure_2(upsample, extra, out_bn):
    C = 100
    blocks = [(3, 64), (64, 64), (64, 128), (128, 128), (192, 128), (128, 128)]
    weights = sum(9 * i * o + o + 2 * o for i, o in blocks) + 128 * C + C + extra + (2 * C if out_bn else 0)
    network = FeatureTransform(C, 1.0, upsample, out_bn)
    assert sum(p.numel() for p in network.parameters()) == weights


@pytest.mark.parametrize("upsample", ["bilinear", "deconv"])
@pytest.mark.parametrize("size", [(9, 13), (8, 12), (9, 12), (4, 5)])
def test_any_image_size_keeps_its_size(upsample, size):
    assert FeatureTransform(7, 0.1, upsample, True)(torch.rand(1, 3, *size)).shape == (1, 7, *size)


def test_feature_network_is_figure_2_layer_by_layer():
    """The same weights in a plain transcript of the figure; 9 x 13 has an odd row and column, which become zero."""
    torch.manual_seed(6)
    network, image = FeatureTransform(5, 0.1, "bilinear", True), torch.rand(1, 3, 9, 13)
    layers = [block for part in (network.top, network.bottom, network.merge) for block in part]

    def block(number: int, value: torch.Tensor) -> torch.Tensor:
        convolution, norm = layers[number][0], layers[number][1]
        value = F.conv2d(value, convolution.weight, convolution.bias, padding=1)
        mean, var = value.mean(dim=(0, 2, 3)), value.var(dim=(0, 2, 3), unbiased=False)
        value = (value - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
        return (value * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)

    skip = block(1, block(0, image))
    low = block(3, block(2, F.max_pool2d(skip, 2)))
    wide = torch.zeros(1, low.shape[1], 9, 13)
    for y in range(8):
        for x in range(12):
            fy, fx = y * 3 / 7, x * 5 / 11  # aligned corners: 4 rows become 8, 6 columns 12
            y0, x0 = min(int(fy), 2), min(int(fx), 4)
            dy, dx = fy - y0, fx - x0
            wide[0, :, y, x] = (
                low[0, :, y0, x0] * (1 - dy) * (1 - dx) + low[0, :, y0, x0 + 1] * (1 - dy) * dx
                + low[0, :, y0 + 1, x0] * dy * (1 - dx) + low[0, :, y0 + 1, x0 + 1] * dy * dx
            )  # fmt: skip
    last = F.conv2d(block(5, block(4, torch.cat([skip, wide], dim=1))), network.out.weight, network.out.bias)
    mean, var = last.mean(dim=(0, 2, 3), keepdim=True), last.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    torch.testing.assert_close(network(image), (last - mean) / (var + 1e-5).sqrt(), rtol=1e-3, atol=1e-4)


def test_batch_statistics_are_used_in_eval_mode_too():
    """Trap 4: after training, running statistics would give other labels."""
    torch.manual_seed(7)
    network, image = FeatureTransform(6, 0.1, "bilinear", True), torch.rand(1, 3, 16, 16)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        network(image).square().sum().div(256).backward()
        optimizer.step()
    before = network(image)
    network.eval()
    assert all(layer.training for layer in network.modules())
    assert torch.equal(network(image), before)
    for layer in network.modules():
        layer.training = False
    assert not torch.equal(network(image).argmax(1), before.argmax(1))


def test_the_steps_are_algorithm_1():
    """Trap 6: a plain loop with the vote by counting, current labels, and the unvoted loss' gradient by hand-over."""
    module, batch = dic_module(T=6, min_labels=0), sample()
    torch.manual_seed(8)
    made = module.segment(batch, [5, 4])

    torch.manual_seed(8)
    fts, dcs = module.fts(channels=5, width=module.width), module.dcs(channels=5, centres=4)
    weights = [p for p in [*fts.parameters(), *dcs.parameters()] if p.requires_grad]
    velocity = [torch.zeros_like(p) for p in weights]
    image, guide = batch["image"][None] / 255.0, batch["guide"].flatten().tolist()
    losses, live = [], []
    for _ in range(6):
        Y = fts(image)
        U = dcs(torch.stack([Y[0, :, i // 17, i % 17] for i in range(15 * 17)]))
        labels = [row.index(max(row)) for row in U.tolist()]
        voted = []
        for n in range(len(guide)):
            inside = [labels[i] for i in range(len(guide)) if guide[i] == guide[n]]
            voted.append(min(set(inside), key=lambda label: (-inside.count(label), label)))
        probability = torch.softmax(U, dim=1)
        loss = -sum(torch.log(probability[n, voted[n]]) for n in range(len(guide))) / len(guide)
        for p, v, g in zip(weights, velocity, torch.autograd.grad(loss, weights), strict=True):
            v.mul_(0.9).add_(g)
            p.data.sub_(0.05 * v)
        losses.append(loss.item())
        live.append(len(set(voted)))
    assert made.labels.flatten().tolist() == voted
    assert made.curves["labels"].tolist() == live
    np.testing.assert_allclose(made.curves["loss"], losses, rtol=1e-3)


def test_the_answer_is_constant_inside_every_superpixel():
    made, batch = dic_module(T=2).segment(sample(), [5, 4]), sample()
    for k in batch["guide"].unique():
        assert len(made.labels[batch["guide"] == k].unique()) == 1


def test_channels_and_not_superpixels_bound_the_number_of_labels():
    """Trap 1: the tables' SPN is C; K is the guide's own."""
    batch = sample()
    few, many = (dic_module(T=1, min_labels=0).segment(batch, [C, 4]).labels for C in (2, 12))
    assert int(few.max()) < 2 and len(many.unique()) > 2
    assert int(batch["guide"].max()) + 1 > 12


def test_fewer_labels_than_the_least_end_the_steps_and_the_last_vote_is_the_answer():
    """Trap 8: a plain picture collapses. The steps go on without the rule, and end at its first case with it."""
    plain = sample()
    plain["image"] = torch.where(torch.arange(17) < 8, 90, 10).to(torch.uint8).repeat(3, 15, 1)
    torch.manual_seed(0)
    free = dic_module(T=25, min_labels=0).segment(plain, [8, 4]).curves["labels"].tolist()
    least = min(free) + 1
    stop = free.index(min(free))
    torch.manual_seed(0)
    made = dic_module(T=25, min_labels=least).segment(plain, [8, 4])
    assert len(free) == 25 and stop + 1 < 25
    assert made.curves["labels"].tolist() == free[: stop + 1]
    assert len(made.curves["loss"]) == stop + 1
    assert len(made.labels.unique()) == min(free)


def test_the_loss_falls_and_labels_merge():
    torch.manual_seed(0)
    made = dic_module(T=25, min_labels=0).segment(sample(), [12, 8])
    loss, live = made.curves["loss"], made.curves["labels"]
    assert loss[-1] < loss[0] / 2 and live[-1] <= live[0]


def test_no_network_stays_in_the_module():
    """Trap 5: what is learnt of one image must not reach the next."""
    module = dic_module(T=2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.segment(sample(), [5, 4])
    assert module.state_dict().keys() == before.keys() and not any(
        isinstance(part, nn.Conv2d) for part in module.modules()
    )
