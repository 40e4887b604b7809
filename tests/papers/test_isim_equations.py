"""ISIM's losses and network against their equations."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from components.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from components.encoders import SmallEncoder
from lightning_modules.isim import CAMSegmenter, UNetDecoder
from lightning_modules.isim.losses import classification_loss, has_foreground, segmentation_loss
from runs.errors import InputError

CLASSES = 3


def small_encoder(strides: tuple[int, ...] = (2, 2, 2, 1)) -> SmallEncoder:
    return SmallEncoder([4, 6, 8, 10], list(strides))


def plus_head(channels, strides, num_classes) -> nn.Module:
    return DeepLabV3PlusHead(channels, strides, num_classes, 8, 4, 4, [1, 2], 0.1)


def v3_head(channels, strides, num_classes) -> nn.Module:
    return DeepLabV3Head(channels, strides, num_classes, 8, [1, 2], 0.1)


def unet(upsampling: str):
    return lambda channels, strides, num_classes: UNetDecoder(channels, strides, num_classes, [8, 6, 4, 3], upsampling)


def network(decoder=plus_head, strides: tuple[int, ...] = (2, 2, 2, 1)) -> CAMSegmenter:
    torch.manual_seed(0)
    return CAMSegmenter(small_encoder(strides), decoder, CLASSES)


def masks() -> torch.Tensor:
    """Foreground; empty; empty but for ignored pixels; foreground and ignored pixels."""
    y = torch.zeros(4, 5, 6, dtype=torch.int64)
    y[0, 1:3, 2:5] = 2
    y[2, :2] = 255
    y[3, 0], y[3, 4, 4] = 255, 1
    return y


# ---- Eq. 1 ---------------------------------------------------------------------------------------


def test_the_classification_loss_is_the_double_loop_of_eq_1():
    logits, z = torch.randn(4, CLASSES, dtype=torch.float64), torch.randint(0, 2, (4, CLASSES)).double()
    total = 0.0
    for b in range(4):
        for c in range(CLASSES):
            p = 1 / (1 + math.exp(-float(logits[b, c])))
            total -= float(z[b, c]) * math.log(p) + (1 - float(z[b, c])) * math.log(1 - p)
    assert float(classification_loss(logits, z)) == pytest.approx(total / (4 * CLASSES))


# ---- Eq. 2 ---------------------------------------------------------------------------------------


def test_r_asks_for_any_foreground_pixel_not_counting_ignored_ones():
    assert has_foreground(masks()).tolist() == [True, False, False, True]


@pytest.mark.parametrize("mask_empty", [True, False])
def test_the_segmentation_loss_is_the_loop_of_eq_2(mask_empty):
    logits, y = torch.randn(4, CLASSES + 1, 5, 6), masks()
    r = [1.0, 0.0, 0.0, 1.0] if mask_empty else [1.0] * 4
    total, pixels, shown, shown_pixels = 0.0, 0, 0.0, 0
    for b in range(4):
        for i in range(5):
            for j in range(6):
                if int(y[b, i, j]) == 255:
                    continue
                scores = [r[b] * float(v) for v in logits[b, :, i, j]]
                loss = math.log(sum(math.exp(s) for s in scores)) - scores[int(y[b, i, j])]
                total, pixels = total + loss, pixels + 1
                if b in (0, 3):
                    shown, shown_pixels = shown + loss, shown_pixels + 1
    loss, nonempty, count = segmentation_loss(logits, y, mask_empty)
    assert float(loss) == pytest.approx(total / pixels, rel=1e-5)
    assert float(nonempty) == pytest.approx(shown / shown_pixels, rel=1e-5)
    assert int(count) == 2


def test_an_empty_image_adds_a_constant_and_no_gradient_but_stays_in_the_mean():
    logits = torch.randn(2, CLASSES + 1, 5, 6, requires_grad=True)
    y = masks()[:2]
    loss, _, _ = segmentation_loss(logits, y, True)
    loss.backward()
    assert logits.grad[1].eq(0).all() and logits.grad[0].ne(0).any()
    alone = torch.tensor(logits.detach()[:1].numpy(), requires_grad=True)
    lone, _, _ = segmentation_loss(alone, y[:1], True)
    lone.backward()
    assert float(loss.detach()) == pytest.approx((float(lone.detach()) + math.log(CLASSES + 1)) / 2, rel=1e-5)
    assert torch.allclose(logits.grad[:1], alone.grad / 2, atol=1e-7)  # dropped from the mean it would be alone.grad


def test_infinite_logits_of_an_empty_image_cost_the_constant():
    """Half precision overflows; 0 times infinity would be no number."""
    logits = torch.randn(2, CLASSES + 1, 5, 6)
    expected, _, _ = segmentation_loss(logits, masks()[:2], True)
    logits[1, 0] = torch.inf
    logits.requires_grad_()
    loss, _, _ = segmentation_loss(logits, masks()[:2], True)
    loss.backward()
    assert torch.equal(loss, expected) and logits.grad.isfinite().all()


def test_a_batch_without_any_mask_has_the_constant_loss_of_the_warm_up():
    logits = torch.randn(2, CLASSES + 1, 4, 4)
    loss, nonempty, count = segmentation_loss(logits, torch.zeros(2, 4, 4, dtype=torch.int64), True)
    assert float(loss) == pytest.approx(math.log(CLASSES + 1), rel=1e-6)
    assert float(nonempty) == 0 and int(count) == 0


def test_ignored_pixels_reach_no_gradient():
    logits = torch.randn(1, CLASSES + 1, 5, 6, requires_grad=True)
    segmentation_loss(logits, masks()[3:], True)[0].backward()
    ignored = masks()[3] == 255
    assert logits.grad[0][:, ignored].eq(0).all()
    assert logits.grad[0][:, ~ignored].ne(0).all()


# ---- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [plus_head, v3_head])
def test_the_mean_of_a_class_map_is_the_class_logit(decoder):
    net, image = network(decoder).eval(), torch.randn(2, 3, 40, 48)
    with torch.no_grad():
        logits, pixel_logits = net(image)
        maps = net.class_maps(image)
    assert net.classifier.bias is None
    assert maps.shape == (2, CLASSES, 5, 6)
    assert torch.allclose(maps.mean(dim=(2, 3)), logits, atol=1e-5)
    assert maps.min() < 0  # before any ReLU
    assert pixel_logits.shape == (2, CLASSES + 1, 40, 48)


def test_the_class_logit_is_the_weighted_mean_of_the_deepest_map():
    net, image = network().eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        deepest = net.encoder(image)[-1][0].numpy()
        expected = net.classifier.weight[:, :, 0, 0].numpy() @ deepest.mean(axis=(1, 2))
        assert np.allclose(net(image, with_decoder=False)[0][0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("upsampling", ["bilinear", "transposed"])
@pytest.mark.parametrize("size", [(64, 64), (45, 61)])
def test_the_u_net_decoder_gives_the_image_size_whatever_it_is(upsampling, size):
    net = network(unet(upsampling), strides=(2, 2, 2, 2)).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, *size))[1].shape == (1, CLASSES + 1, *size)


def test_only_the_transposed_form_learns_to_upsample():
    learnt = {
        form: sum(isinstance(layer, nn.ConvTranspose2d) for layer in network(unet(form)).modules())
        for form in ("bilinear", "transposed")
    }
    assert learnt == {"bilinear": 0, "transposed": 4}


def test_the_u_net_decoder_uses_every_encoder_map():
    net = network(unet("bilinear"), strides=(2, 2, 2, 2)).eval()
    features = [m.detach().requires_grad_() for m in net.encoder(torch.randn(1, 3, 64, 64))]
    net.decoder(features, (64, 64)).square().sum().backward()
    assert all(m.grad.ne(0).any() for m in features)


def test_a_u_net_with_another_number_of_widths_is_one_sentence():
    with pytest.raises(InputError, match="give one width for each of the encoder's 4 maps"):
        UNetDecoder([4, 6, 8, 10], [2, 4, 8, 8], 4, [8, 4], "bilinear")


def test_cross_entropy_and_classifier_gradients_both_reach_the_encoder():
    net, image = network(), torch.randn(2, 3, 32, 32)
    y = torch.zeros(2, 32, 32, dtype=torch.int64)
    y[0, 4:9, 4:9] = 1
    logits, pixel_logits = net(image)
    for loss in (segmentation_loss(pixel_logits, y, True)[0], F.multilabel_soft_margin_loss(logits, torch.ones(2, 3))):
        net.zero_grad()
        loss.backward(retain_graph=True)
        assert next(net.encoder.parameters()).grad.ne(0).any()
