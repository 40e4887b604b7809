"""SuperSimpleNet's network, anomalies and losses against what the paper and the official code say of them."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.supersimplenet import (
    AnomalyGenerator,
    DefectLoss,
    FrozenFeatureExtractor,
    SuperSimpleNet,
)
from lightning_modules.supersimplenet.anomalies import perlin_noise
from lightning_modules.supersimplenet.losses import focal, truncated_l1
from lightning_modules.supersimplenet.network import AnomalyMapSmoother, ClassificationHead
from runs.errors import InputError


def extractor(**changes) -> FrozenFeatureExtractor:
    settings = {"backbone": "resnet18", "layers": [1, 2], "pretrained": False, "checkpoint_path": None, "upscale": 1}
    return FrozenFeatureExtractor(**{**settings, **changes})


def network(**changes) -> SuperSimpleNet:
    settings = {
        "extractor": extractor(),
        "seg_channels": 16,
        "cls_channels": 8,
        "cls_kernel": 5,
        "cls_head": True,
        "adapt_cls_features": True,
    }
    return SuperSimpleNet(**{**settings, **changes})


def generator(**changes) -> AnomalyGenerator:
    settings = {
        "strategy": "perlin",
        "threshold": 0.2,
        "probability": 0.5,
        "noise_std": 0.015,
        "noise_rel": None,
        "overlap": False,
        "rescale_empty": False,
    }
    return AnomalyGenerator(**{**settings, **changes})


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- network ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper_network() -> SuperSimpleNet:
    backbone = extractor(backbone="wide_resnet50_2.tv_in1k", layers=[2, 3], upscale=2)
    return network(extractor=backbone, seg_channels=1024, cls_channels=128)


def test_the_papers_network_has_exactly_its_parameters(paper_network):
    assert count(paper_network.adaptor) == 2_360_832
    assert count(paper_network.segmentation_head) == 1_576_960
    assert count(paper_network.classification_head) == 4_919_043
    assert sum(p.numel() for p in paper_network.parameters() if p.requires_grad) == 8_856_835
    assert count(paper_network.extractor) == 24_862_528
    names = {name.split(".")[1] for name, _ in paper_network.extractor.named_parameters()}
    assert names == {"conv1", "bn1", "layer1", "layer2", "layer3"}  # no layer4, no fc


@pytest.mark.parametrize(
    ("size", "expected"),
    [((256, 256), (64, 64)), ((640, 232), (160, 58)), ((320, 192), (80, 48)), ((144, 144), (36, 36))],
)
def test_feature_maps_have_the_papers_sizes_height_first(size, expected):
    """With ResNet-18, whose stages have the strides of the paper's backbone."""
    maps = extractor(layers=[2, 3], upscale=2)(torch.zeros(1, 3, *size))
    assert maps.shape == (1, 128 + 256, *expected)
    without = extractor(layers=[2, 3], upscale=1)(torch.zeros(1, 3, *size))
    assert tuple(without.shape[-2:]) == tuple(math.ceil(side / 8) for side in size)


def test_the_papers_backbone_joins_512_and_1024_channels(paper_network):
    assert paper_network.extractor.channels == 1536
    assert paper_network.extractor(torch.zeros(1, 3, 64, 64)).shape == (1, 1536, 16, 16)


def test_features_are_stages_resized_with_aligned_corners_and_averaged_over_three_by_three():
    backbone = extractor(layers=[1, 2], upscale=2)
    image = torch.rand(1, 3, 32, 32)
    found = backbone(image)
    first, second = backbone.body(image)
    side = 16
    joined = np.zeros((192, side, side))
    for channel in (0, 63, 64, 191):
        source = (first[0, channel] if channel < 64 else second[0, channel - 64]).numpy()
        for row in range(side):
            for column in range(side):
                # Corners stay corners: place p of 16 is place p (n - 1) / 15 of n.
                y, x = row * (source.shape[0] - 1) / (side - 1), column * (source.shape[1] - 1) / (side - 1)
                y0, x0 = min(int(y), source.shape[0] - 2), min(int(x), source.shape[1] - 2)
                dy, dx = y - y0, x - x0
                joined[channel, row, column] = (
                    source[y0, x0] * (1 - dy) * (1 - dx)
                    + source[y0, x0 + 1] * (1 - dy) * dx
                    + source[y0 + 1, x0] * dy * (1 - dx)
                    + source[y0 + 1, x0 + 1] * dy * dx
                )
        padded = np.pad(joined[channel], 1)  # the border's zeros count in the mean
        for row, column in ((0, 0), (0, 7), (15, 15), (8, 3)):
            mean = padded[row : row + 3, column : column + 3].sum() / 9
            assert float(found[0, channel, row, column]) == pytest.approx(mean, abs=1e-4)


def test_the_backbone_never_leaves_eval_mode_and_takes_no_gradient():
    whole = network().train()
    before = {name: value.clone() for name, value in whole.extractor.state_dict().items()}
    features = whole.extractor(torch.randn(4, 3, 64, 64) * 3 + 2)
    assert not features.requires_grad and not any(p.requires_grad for p in whole.extractor.parameters())
    assert not any(layer.training for layer in whole.extractor.modules())
    assert whole.segmentation_head.training
    assert all(torch.equal(value, before[name]) for name, value in whole.extractor.state_dict().items())


def test_calibration_sets_statistics_to_those_of_the_images_and_freezes_them():
    backbone = extractor()
    images = torch.randn(8, 3, 64, 64) * 2 + 1
    backbone.calibrate(images.split(4))
    first = backbone.body.conv1(images)
    assert torch.allclose(backbone.body.bn1.running_mean, first.mean(dim=(0, 2, 3)), atol=1e-4)
    assert not any(layer.training for layer in backbone.modules())
    after = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(images)
    assert all(torch.equal(value, after[name]) for name, value in backbone.state_dict().items())


def test_the_adaptor_is_a_linear_layer_on_each_vector():
    whole = network()
    features = torch.randn(2, 192, 3, 4)
    linear = nn.Linear(192, 192)
    linear.weight.data, linear.bias.data = whole.adaptor.weight.data[:, :, 0, 0], whole.adaptor.bias.data
    expected = linear(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(whole.adaptor(features), expected, atol=1e-5)


def test_the_classification_head_pools_maxima_and_means_in_the_order_of_the_official_code():
    head = ClassificationHead(6, 4, 5).eval()
    features, map_ = torch.randn(2, 6, 7, 9), torch.randn(2, 1, 7, 9)
    seen = head.block(torch.cat([features, map_], dim=1))
    assert seen.shape == (2, 4, 7, 9)
    for image in range(2):
        row = [float(seen[image, c].max()) for c in range(4)] + [float(seen[image, c].mean()) for c in range(4)]
        row += [float(map_[image].max()), float(map_[image].mean())]
        expected = float(head.linear.weight[0] @ torch.tensor(row) + head.linear.bias)
        assert float(head(features, map_)[image]) == pytest.approx(expected, abs=1e-5)


def test_weights_start_xavier_normal_and_norms_at_one():
    torch.manual_seed(0)
    whole = network(seg_channels=512, cls_channels=64)
    for layer in (whole.adaptor, whole.segmentation_head[0], whole.classification_head.block[0]):
        area = layer.kernel_size[0] * layer.kernel_size[1]
        expected = math.sqrt(2 / (area * (layer.in_channels + layer.out_channels)))
        assert float(layer.weight.std()) == pytest.approx(expected, rel=0.02)
    assert (whole.segmentation_head[1].weight == 1).all()
    assert whole.segmentation_head[3].bias is None


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_of_one_keeps_its_axis(batch):
    map_, score = network().eval()(torch.randn(batch, 3, 64, 64))
    assert map_.shape == (batch, 1, 16, 16) and score.shape == (batch,)


@pytest.mark.parametrize("stop", [True, False])
def test_a_stopped_gradient_of_the_score_leaves_the_segmentation_head_exactly_alone(stop):
    whole = network()
    features = torch.randn(2, 192, 8, 8)
    _, score = whole.judge(features, features, stop_gradient=stop)
    score.sum().backward()
    taught = [p.grad is not None and bool(p.grad.any()) for p in whole.segmentation_head.parameters()]
    assert any(taught) != stop
    assert all(bool(p.grad.any()) for p in whole.classification_head.linear.parameters())


def test_the_smoother_is_a_gaussian_of_25_pixels_with_reflected_borders():
    smoother = AnomalyMapSmoother(4.0)
    assert len(smoother.kernel) == 25
    map_ = torch.randn(1, 1, 10, 12)
    found = smoother(map_, (40, 48))[0].numpy()
    full = F.interpolate(map_, (40, 48), mode="bilinear")[0, 0].numpy()
    padded = np.pad(full, 12, mode="reflect")
    places = np.arange(-12, 13)
    kernel = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 4.0**2))
    kernel /= kernel.sum()
    for row, column in ((0, 0), (20, 30), (39, 47), (3, 40)):
        expected = (padded[row : row + 25, column : column + 25] * kernel).sum()
        assert found[row, column] == pytest.approx(expected, abs=1e-5)


# ---- anomalies ----------------------------------------------------------------------------------------


def perlin_by_loops(gradients: np.ndarray, cells: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Perlin's noise pixel by pixel from the gradients (2, nodes, nodes) at the corners of its cells."""

    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    out = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = row * cells[0] / size[0], column * cells[1] / size[1]
            y0, x0 = int(y), int(x)
            dots = {
                (i, j): gradients[0, y0 + i, x0 + j] * (y - y0 - i) + gradients[1, y0 + i, x0 + j] * (x - x0 - j)
                for i in (0, 1)
                for j in (0, 1)
            }
            u, v = fade(y - y0), fade(x - x0)
            upper = dots[0, 0] + v * (dots[0, 1] - dots[0, 0])
            lower = dots[1, 0] + v * (dots[1, 1] - dots[1, 0])
            out[row, column] = math.sqrt(2) * (upper + u * (lower - upper))
    return out


def test_perlin_noise_is_what_its_definition_says_on_every_grid():
    torch.manual_seed(3)
    found = perlin_noise(12, 16, 32, torch.device("cpu")).numpy()
    torch.manual_seed(3)
    angles = (2 * math.pi * torch.rand(12, 33, 33)).numpy()
    cells = []
    for most in (4, 5):  # of 16 rows and 32 columns
        cells.append((2 ** torch.randint(0, most + 1, (12, 1))).flatten().tolist())
    grids = set(zip(*cells, strict=True))
    assert len(grids) > 5
    for sample in range(12):
        gradients = np.stack([np.sin(angles[sample]), np.cos(angles[sample])])
        expected = perlin_by_loops(gradients, (cells[0][sample], cells[1][sample]), (16, 32))
        assert np.allclose(found[sample], expected, atol=1e-4)


@pytest.mark.parametrize(("threshold", "area", "empty"), [(0.2, 0.26, 0.003), (0.6, 0.025, 0.10)])
def test_blobs_are_as_large_and_as_often_empty_as_those_of_the_official_code(threshold, area, empty):
    torch.manual_seed(0)
    whole = generator(threshold=threshold, probability=1.0)
    masks = torch.cat([whole.synthetic_mask(500, 64, 64, torch.zeros(1)) for _ in range(4)]).flatten(1)
    assert float(masks.mean()) == pytest.approx(area, rel=0.1)
    assert float((masks.amax(dim=1) == 0).float().mean()) == pytest.approx(empty, abs=0.015)


def drawn(batch: int = 64, **changes):
    torch.manual_seed(1)
    features = torch.randn(batch, 6, 32, 24)
    real = torch.zeros(batch, 1, 32, 24)
    label = torch.zeros(batch, dtype=torch.int64)
    real[: batch // 4, :, 4:20, 2:14] = 1
    label[: batch // 4] = 1
    whole = generator(**changes)
    return features, torch.cat([real, real]), torch.cat([label, label]), whole(features, real, label)


def test_noise_lies_where_the_mask_is_and_never_on_real_defects():
    _, real, _, found = drawn()
    noised = (found.noise != 0).any(dim=1, keepdim=True)
    assert not (noised & (real > 0)).any()
    assert torch.equal((noised | (real > 0)).float(), found.mask)  # M is the union
    assert (found.noise[~noised.expand_as(found.noise)] == 0).all()  # A is unchanged elsewhere
    values = found.noise[noised.expand_as(found.noise)]
    assert float(values.std()) == pytest.approx(0.015, rel=0.02)
    assert abs(float(values.mean())) < 2e-4


def test_with_overlap_noise_falls_on_real_defects_too():
    _, real, _, found = drawn(overlap=True)
    noised = (found.noise != 0).any(dim=1, keepdim=True)
    assert (noised & (real > 0)).any()


def test_both_halves_are_spoilt_by_blobs_and_noise_of_their_own():
    features, _, _, found = drawn()
    half = len(features)
    normal = slice(half // 4, half)
    first, second = found.mask[:half][normal], found.mask[half:][normal]
    for part in (first, second):
        share = float(part.flatten(1).amax(dim=1).mean())
        assert 0.3 < share < 0.7  # half of the samples, in both copies
    both = (first.flatten(1).amax(1) > 0) & (second.flatten(1).amax(1) > 0)
    assert both.any() and not any(torch.equal(a, b) for a, b in zip(first[both], second[both], strict=True))
    assert not torch.equal(found.noise[:half], found.noise[half:])


def test_labels_are_those_of_masks_and_of_defects_too_small_for_the_map():
    _, _, label, found = drawn()
    assert torch.equal(found.label, torch.maximum(label.float(), found.mask.flatten(1).amax(dim=1)))
    torch.manual_seed(0)
    vanished = generator(probability=0.0)(torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32), torch.tensor([1, 0]))
    assert vanished.mask.sum() == 0
    assert vanished.label.tolist() == [1, 0, 1, 0]


def test_at_06_fewer_than_half_of_the_samples_are_anomalous():
    torch.manual_seed(0)
    masks = generator(threshold=0.6).synthetic_mask(2000, 64, 64, torch.zeros(1)).flatten(1).amax(dim=1)
    assert float(masks.mean()) == pytest.approx(0.45, abs=0.03)
    torch.manual_seed(0)
    rescaled = generator(threshold=0.6, rescale_empty=True).synthetic_mask(2000, 64, 64, torch.zeros(1))
    assert float(rescaled.flatten(1).amax(dim=1).mean()) == pytest.approx(0.5, abs=0.03)


def test_simplenets_anomalies_are_a_clean_half_and_a_half_noised_everywhere():
    features, real, _, found = drawn(strategy="simplenet")
    half = len(features)
    assert not found.noise[:half].any() and torch.equal(found.mask[:half], real[:half])
    assert (found.mask[half:] == 1).all() and (found.label[half:] == 1).all()
    assert (found.noise[half:] != 0).any(dim=1, keepdim=True).float().equal(1 - real[half:])


def test_without_synthetic_anomalies_only_real_ones_are_left():
    _, real, label, found = drawn(strategy="none")
    assert not found.noise.any()
    assert torch.equal(found.mask, real) and torch.equal(found.label, label.float())


def test_relative_noise_follows_the_scale_of_the_features():
    whole = generator(noise_std=None, noise_rel=0.3)
    adapted = 7 * torch.randn(4, 5, 16, 16)
    whole.fit_noise(adapted)
    assert float(whole.sigma) == pytest.approx(0.3 * float(adapted.std()))
    fixed = generator()
    fixed.fit_noise(adapted)
    assert float(fixed.sigma) == pytest.approx(0.015)


# ---- losses -------------------------------------------------------------------------------------------


def test_the_losses_of_a_hand_made_map():
    """Two normal pixels at -1 and 0.2, two anomalous ones at 0.1 and 2; th = 0.5."""
    map_ = torch.tensor([[[[-1.0, 0.2], [0.1, 2.0]]]])
    mask = torch.tensor([[[[0.0, 0.0], [1.0, 1.0]]]])
    # Eq. 1: max(0, 0.5 + D) where normal, max(0, 0.5 - D) where anomalous.
    assert float(truncated_l1(map_, mask, 0.5, "per_class")) == pytest.approx((0 + 0.7) / 2 + (0.4 + 0) / 2)
    assert float(truncated_l1(map_, mask, 0.5, "all")) == pytest.approx((0.7 + 0.4) / 4)
    expected = 0.0
    for value, target in ((-1.0, 0), (0.2, 0), (0.1, 1), (2.0, 1)):
        p = 1 / (1 + math.exp(-value))
        p_t = p if target else 1 - p
        expected += -((1 - p_t) ** 4) * math.log(p_t) / 4
    assert float(focal(map_, mask, 4.0)) == pytest.approx(expected)
    loss = DefectLoss(0.5, "per_class", 4.0, True)
    score, label = torch.tensor([0.7]), torch.tensor([1.0])
    terms = loss(map_, mask, score, label)
    p = 1 / (1 + math.exp(-0.7))
    assert float(terms["loss_focal_score"]) == pytest.approx(-((1 - p) ** 4) * math.log(p))
    assert float(terms["loss_focal_map"]) == pytest.approx(expected)
    assert set(terms) == {"loss_l1t", "loss_focal_map", "loss_focal_score"}
    assert set(DefectLoss(0.5, "per_class", 4.0, False)(map_, mask, None, label)) == {"loss_l1t"}


def test_a_class_without_pixels_costs_nothing():
    map_ = torch.full((1, 1, 2, 2), 0.25)
    assert float(truncated_l1(map_, torch.zeros(1, 1, 2, 2), 0.5, "per_class")) == pytest.approx(0.75)
    assert float(truncated_l1(map_, torch.ones(1, 1, 2, 2), 0.5, "per_class")) == pytest.approx(0.25)


def test_a_thin_anomaly_weighs_as_much_as_all_normal_pixels():
    """The trap of the mean over all pixels: 2 % of them would have 2 % of the say."""
    map_ = torch.zeros(1, 1, 10, 10, requires_grad=True)
    mask = torch.zeros(1, 1, 10, 10)
    mask[..., 0, :2] = 1
    truncated_l1(map_, mask, 0.5, "per_class").backward()
    assert float(map_.grad[mask > 0].sum()) == pytest.approx(-1)
    assert float(map_.grad[mask == 0].sum()) == pytest.approx(1)


def test_raw_map_values_and_not_probabilities_enter_the_truncated_loss():
    mask = torch.ones(1, 1, 2, 2)
    assert float(truncated_l1(torch.full((1, 1, 2, 2), -3.0), mask, 0.5, "per_class")) == pytest.approx(3.5)


def test_the_focal_loss_stays_finite_far_out_and_keeps_its_gradient():
    logits = torch.tensor([-80.0, 80.0, -200.0, 200.0], requires_grad=True)
    target = torch.tensor([1.0, 0.0, 0.0, 1.0])
    loss = focal(logits, target, 4.0)
    loss.backward()
    assert float(loss) == pytest.approx((80 + 80) / 4, rel=1e-5)
    assert torch.isfinite(logits.grad).all() and logits.grad[0] < 0 < logits.grad[1]


# ---- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: extractor(backbone="resnet81"), r"resnet81 is no model of timm: did you mean"),
        (lambda: extractor(layers=[3, 2]), r"layers=\[3, 2\] must list stages in rising order"),
        (lambda: extractor(layers=[2, 9]), r"has no maps of the stages \[2, 9\]"),
        (lambda: extractor(upscale=0), r"upscale=0 must be 1 or more"),
        (lambda: generator(noise_rel=0.3), r"give exactly one"),
        (lambda: generator(noise_std=None), r"give exactly one"),
        (lambda: generator(noise_std=0.0), r"must be above 0"),
        (lambda: generator(probability=1.5), r"probability=1.5 must be 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_answered(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_a_weights_file_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"extractor\.checkpoint_path: .*other\.pth does not fit.*missing keys"):
        extractor(checkpoint_path=str(path)).load_initial_weights()


def test_a_classifiers_weights_file_fits_with_its_deeper_layers_left_out(tmp_path):
    import timm

    whole = timm.create_model("resnet18")
    path = tmp_path / "resnet18.pth"
    torch.save(whole.state_dict(), path)
    backbone = extractor(checkpoint_path=str(path))
    backbone.load_initial_weights()
    assert torch.equal(backbone.body.conv1.weight, whole.conv1.weight)
    assert not backbone.is_random


def test_the_backbone_of_the_config_has_the_first_imagenet_weights_of_torchvision():
    """IMAGENET1K_V2 has features of another scale: the noise would be wrong."""
    from timm.models import get_pretrained_cfg
    from torchvision.models import Wide_ResNet50_2_Weights

    from runs.composition import compose_config

    config = compose_config(["experiment=supersimplenet_mvtec", "data.root=x", "paths.run_dir=x"])
    url = get_pretrained_cfg(config.model.network.extractor.backbone).url
    assert url == Wide_ResNet50_2_Weights.IMAGENET1K_V1.url
    assert config.model.loss.gamma == 4.0 and config.model.anomaly.noise_std == 0.015
