"""Encoders: output stride, dilation, frozen BatchNorm, weights."""

import pytest
import torch
from torch import nn

from components.encoders import SmallEncoder, TimmEncoder
from runs.errors import InputError


def encoder(**changes) -> TimmEncoder:
    settings = {
        "backbone": "resnet18",
        "pretrained": False,
        "checkpoint_path": None,
        "last_stride": 1,
        "last_dilation": 2,
        "freeze_batch_norm": False,
    }
    torch.manual_seed(0)
    return TimmEncoder(**{**settings, **changes})


@pytest.mark.parametrize("backbone", ["resnet50", "resnest50d"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (2, 1)])
def test_320_pixels_become_a_map_of_20_with_stride_1_and_of_10_with_stride_2(backbone, stride, dilation):
    net = encoder(backbone=backbone, last_stride=stride, last_dilation=dilation).eval()
    assert net.channels == [64, 256, 512, 1024, 2048]
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 320, 320))
    assert [m.shape[1] for m in maps] == net.channels
    assert [320 // m.shape[-1] for m in maps] == net.strides == [2, 4, 8, 16, 16 * stride]
    dilations = {layer.dilation for layer in net.modules() if isinstance(layer, nn.Conv2d)}
    assert dilations == ({(1, 1), (2, 2)} if dilation == 2 else {(1, 1)})


@pytest.mark.parametrize(
    "backbone", ["resnet101.tv_in1k", "resnet152.tv_in1k", "resnest101e.in1k", "resnest200e.in1k", "resnest269e.in1k"]
)
def test_the_larger_backbones_of_the_paper_are_known(backbone):
    with torch.device("meta"):
        net = encoder(backbone=backbone)
    assert net.channels[-1] == 2048
    assert net.strides[-1] == 16


def test_dilation_changes_no_weight_and_only_the_last_map():
    plain, dilated = encoder(last_dilation=1).eval(), encoder(last_dilation=2).eval()
    for layer in dilated.batch_norms():  # timm starts residual branches at 0, which would hide the dilation
        nn.init.ones_(layer.weight)
    plain.load_state_dict(dilated.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pairs = list(zip(plain(image), dilated(image), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs[:-1])
    assert not torch.allclose(*pairs[-1])


def test_frozen_batch_norms_keep_statistics_scale_and_shift_in_training():
    net = encoder(freeze_batch_norm=True).train()
    before = {name: value.clone() for name, value in net.state_dict().items() if "bn" in name or "downsample.1" in name}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        net(torch.randn(2, 3, 32, 32) + 5)[-1].square().mean().backward()
        optimizer.step()
    assert before
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value), name
    assert net.training and not any(layer.training for layer in net.batch_norms())


def test_batch_norms_learn_where_they_are_not_frozen():
    net = encoder(freeze_batch_norm=False).train()
    before = net.body.bn1.running_mean.clone()
    net(torch.randn(2, 3, 32, 32) + 5)
    assert not torch.equal(net.body.bn1.running_mean, before)


def test_a_file_of_classifier_weights_is_loaded_whole_but_for_its_classifier(tmp_path):
    import timm

    classifier = timm.create_model("resnet18")
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    net = encoder(checkpoint_path=str(tmp_path / "weights.pth"), freeze_batch_norm=True)
    net.load_initial_weights()
    for name, value in net.body.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": "resnet5O"}, "encoder.backbone=resnet5O is no model of timm: did you mean .*resnet50"),
        ({"last_stride": 2, "last_dilation": 2}, "the last stage has stride 1 with dilation 1 or 2, or stride 2"),
        ({"last_stride": 4}, "the last stage has stride 1"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        encoder(**changes)


def test_offline_pre_trained_weights_are_answered_with_what_to_do(monkeypatch):
    net = encoder(backbone="resnet50.tv_in1k", pretrained=True)

    def offline(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("components.encoders.timm.create_model", offline)
    with pytest.raises(InputError, match=r"resnet50\.tv_in1k could not be loaded \(ConnectionError\): go online once"):
        net.load_initial_weights()


def test_a_wrong_file_of_weights_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="checkpoint_path: there is no weights file"):
        encoder(checkpoint_path=str(tmp_path / "gone.pth")).load_initial_weights()
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"checkpoint_path: .* 1 unexpected keys: other"):
        encoder(checkpoint_path=str(tmp_path / "other.pth")).load_initial_weights()


def test_batch_norms_without_weights_are_not_frozen_in_silence():
    with pytest.raises(InputError, match=r"freeze_batch_norm=true keeps the statistics of pre-trained weights"):
        encoder(freeze_batch_norm=True).load_initial_weights()


def test_the_small_encoder_has_the_strides_it_says():
    net = SmallEncoder([16, 32, 64, 128], [2, 2, 2, 1])
    maps = net(torch.zeros(2, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 8, 8)]
    assert net.strides == [2, 4, 8, 8] and net.channels == [16, 32, 64, 128]
    with pytest.raises(InputError, match="differ in length"):
        SmallEncoder([16], [2, 2])
