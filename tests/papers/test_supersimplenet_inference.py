"""Inference in another order of operations is the same function: on every variant, on odd sizes, exported."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.supersimplenet.inference import FoldedConvolution, FoldedSuperSimpleNet, resizing
from lightning_modules.supersimplenet.network import Detector, SuperSimpleNet
from runs.exporting import export_onnx
from tests.papers.test_supersimplenet_equations import extractor, network
from tests.papers.test_supersimplenet_module import images, load, module, prepared, save

VARIANTS = {
    "the paper's stages and upscaling": {"extractor": {"layers": [2, 3], "upscale": 2}},
    "the demo": {},
    "one map": {"extractor": {"layers": [3], "upscale": 2}},
    "three maps": {"extractor": {"layers": [1, 2, 4]}},
    "features not adapted for the score": {"adapt_cls_features": False},
    "no classification head": {"cls_head": False},
    "an even kernel": {"cls_kernel": 4},
}
SIZES = [(72, 72), (40, 104)]  # 9 x 9 and 5 x 13 places at a stride of 8
CASES = [(name, size) for name in VARIANTS for size in SIZES]
CASES += [
    pytest.param(name, size, marks=pytest.mark.slow)
    for name in ("the paper's stages and upscaling", "the demo")
    for size in ((144, 144), (232, 640))
]


def trained(extractor_changes: dict | None = None, **changes) -> SuperSimpleNet:
    """Every weight and statistic is something, as after training."""
    torch.manual_seed(3)
    built = network(extractor=extractor(**(extractor_changes or {})), **changes)
    for layer in built.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
    nn.init.normal_(built.adaptor.bias)  # large: seen through the border of the 5 x 5 convolution
    return built.eval()


def of_variant(name: str) -> SuperSimpleNet:
    changes = dict(VARIANTS[name])
    return trained(changes.pop("extractor", None), **changes)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("name", "size"), CASES)
def test_the_folded_network_answers_as_the_plain_one(name, size):
    plain = of_variant(name)
    for dtype, allowed in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        plain.to(dtype)
        image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)
        with torch.no_grad():
            maps, scores = plain(image)
            folded_maps, folded_scores = FoldedSuperSimpleNet(plain)(image)
        assert maps.shape == folded_maps.shape and relative(folded_maps, maps) < allowed
        if scores is None:
            assert folded_scores is None
        else:
            assert scores.shape == folded_scores.shape and relative(folded_scores, scores) < allowed


def test_the_folded_network_of_the_papers_size_answers_as_the_plain_one():
    backbone = {"backbone": "wide_resnet50_2.tv_in1k", "layers": [2, 3], "upscale": 2}
    plain = trained(backbone, seg_channels=1024, cls_channels=128)
    with torch.no_grad():
        image = torch.randn(1, 3, 80, 64, generator=torch.Generator().manual_seed(1))
        for found, expected in zip(FoldedSuperSimpleNet(plain)(image), plain(image), strict=True):
            assert relative(found, expected) < 1e-5


def test_resizing_an_axis_is_what_the_extractor_does_to_it():
    """From the definitions: corners stay corners, then three places are averaged and a border's zeros count."""
    matrix = resizing(5, 8, torch.zeros((), dtype=torch.float64))
    line = np.random.default_rng(0).normal(size=5)
    resized = np.interp(np.arange(8) * 4 / 7, np.arange(5), line)
    expected = np.convolve(np.pad(resized, 1), np.ones(3) / 3, mode="valid")
    assert np.allclose(line @ matrix.numpy(), expected, atol=1e-12)


def test_taps_beyond_the_border_see_nothing_not_even_the_adaptors_bias():
    """Maps of zeros: what is left is the bias, counted tap by tap."""
    plain = trained().double()
    convolution, norm, _ = plain.classification_head.block
    folded = FoldedConvolution(plain, convolution, norm, adapted=True)
    maps = [torch.zeros(1, 64, 6, 6, dtype=torch.float64), torch.zeros(1, 128, 3, 3, dtype=torch.float64)]
    with torch.no_grad():
        found = folded(maps, (6, 6))[0]
        for row, column in ((0, 0), (0, 3), (5, 1), (3, 3)):
            total = convolution.bias.clone()
            for y in range(5):
                for x in range(5):
                    if 0 <= row + y - 2 < 6 and 0 <= column + x - 2 < 6:
                        total += convolution.weight[:, :-1, y, x] @ plain.adaptor.bias
            answer = F.batch_norm(total[None], norm.running_mean, norm.running_var, norm.weight, norm.bias)[0]
            assert torch.allclose(found[:, row, column], answer, atol=1e-10)


def test_it_needs_a_quarter_of_the_operations():
    from torch.utils.flop_counter import FlopCounterMode

    plain = trained({"layers": [2, 3], "upscale": 2}, seg_channels=256, cls_channels=32)
    counts = []
    for way in (plain, FoldedSuperSimpleNet(plain)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            way(torch.zeros(1, 3, 128, 128))
        counts.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain.extractor.body(torch.zeros(1, 3, 128, 128))
    backbone = counter.get_total_flops()
    assert counts[1] - backbone < (counts[0] - backbone) / 4


# ---- in the module ------------------------------------------------------------------------------------


def test_an_evaluation_answers_as_a_call_of_the_module_by_itself():
    built = prepared().eval()
    with torch.no_grad():
        alone = built(images())
        built.prepare_to_judge()
        for found, expected in zip(built(images()), alone, strict=True):
            assert relative(found, expected) < 1e-5


def test_only_an_evaluation_folds_once_and_no_answer_is_older_than_the_weights(monkeypatch):
    built, folded = prepared().eval(), []
    made = SuperSimpleNetCounter(folded)
    monkeypatch.setattr("lightning_modules.supersimplenet.module.FoldedSuperSimpleNet", made)
    names = set(built.state_dict())
    with torch.no_grad():
        for start, end in (
            (built.on_validation_start, built.on_validation_end),
            (built.on_test_start, built.on_test_end),
        ):
            start()
            first = built(images())[0]
            assert torch.equal(built(images())[0], first)
            assert set(built.state_dict()) == names  # a checkpoint written meanwhile holds nothing twice
            end()
            built.network.segmentation_head[0].weight.mul_(1.5)  # training goes on
            built.prepare_to_judge()
            assert not torch.allclose(built(images())[0], first)
            built.stop_judging()
    assert len(folded) == 4
    with torch.no_grad():
        before = built(images())[0]
        built.network.segmentation_head[0].weight.mul_(1.5)
        assert not torch.allclose(built(images())[0], before)
    assert len(folded) == 4


class SuperSimpleNetCounter:
    def __init__(self, made: list) -> None:
        self.made = made

    def __call__(self, plain: SuperSimpleNet) -> FoldedSuperSimpleNet:
        self.made.append(plain)
        return FoldedSuperSimpleNet(plain)


@pytest.mark.slow  # that a trained one does, in the paper's stages and upscaling, is a test of the runs
@pytest.mark.parametrize("name", ["the paper's stages and upscaling", "no classification head"])
def test_the_exported_network_answers_as_the_plain_one(name, tmp_path):
    plain = of_variant(name)
    without = plain.classification_head is None
    built = prepared(network=plain, score="map_max" if without else "cls").eval()
    built.image_size.copy_(torch.tensor([72, 104]))
    export_onnx(built, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    detector = Detector(built.normalise, plain, built.smoother, map_max_score=without)
    for count in (1, 3):
        image = torch.randint(0, 256, (count, 3, 72, 104), dtype=torch.uint8)
        answers = session.run(["anomaly_map", "score"], {"image": image.numpy()})
        with torch.no_grad():
            for answer, expected in zip(answers, detector(image), strict=True):
                assert np.abs(answer - expected.numpy()).max() < 1e-4 * max(1, float(expected.abs().max()))


# ---- thresholds that nobody calibrated ----------------------------------------------------------------


def test_predicting_and_exporting_without_calibration_says_so_and_decides_by_0():
    built = prepared().eval()
    sentence = "no threshold of image score and anomaly map was calibrated in training.*data.reader.val_split=0.2"
    with pytest.warns(UserWarning, match=sentence):
        built.on_predict_start()
    with pytest.warns(UserWarning, match=sentence):
        assert built.export_model()[-1] == {"score_threshold": "0.0", "map_threshold": "0.0", "calibrated": "no"}
    photograph = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    with torch.no_grad():
        (row,) = built.predict_step({"image": images()[:1], "whole": photograph, "name": ["a.png"]}, 0)
        _, scores = built(images()[:1])
    assert row["defective"] == bool(scores[0] > 0)
    assert np.array_equal(np.asarray(row["mask"]) > 0, row["map"] > 0)


def test_the_checkpoint_knows_what_was_calibrated(recwarn):
    built = prepared()
    built.thresholds[0] = 0.25  # images of both kinds were kept back, but no masks
    again = load(module(), save(built))
    with pytest.warns(UserWarning, match="no threshold of anomaly map was calibrated"):
        again.on_predict_start()
    assert again.decision_thresholds() == (0.25, 0.0)
    built.thresholds[1] = 0.0  # calibrated, and 0
    again = load(module(), save(built))
    recwarn.clear()
    again.on_predict_start()
    assert again.export_model()[-1]["calibrated"] == "yes" and not recwarn.list
