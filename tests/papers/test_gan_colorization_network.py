"""The colouriser's networks: sizes, receptive fields, where BatchNorm and dropout take what they use from."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.gan_colorization import Classifier, Generator, PatchDiscriminator, Segmenter
from lightning_modules.gan_colorization.network import BatchNorm
from runs.errors import InputError

NOISE = {"dropout": 0.5, "dropout_in_evaluation": True}


def small_generator(norm_eval: str = "batch", dropout_in_evaluation: bool = True) -> Generator:
    torch.manual_seed(0)
    return Generator(4, 6, 0.5, dropout_in_evaluation, norm_eval)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_parameter_counts_are_those_of_the_public_networks():
    with torch.device("meta"):
        assert parameters(Generator(width=64, depth=8, norm_eval="batch", **NOISE)) == 54_415_362
        assert parameters(Segmenter(num_classes=20, width=64, depth=8, norm_eval="batch", **NOISE)) == 54_454_293
        assert parameters(Classifier(20, width=64, depth=8, hidden=4096, dropout=0.5, norm_eval="batch")) == 38_503_124
        # Keras counts running statistics too, and twice as many numbers as channels.
        statistics = sum(
            buffer.numel()
            for name, buffer in Generator(width=64, depth=8, norm_eval="batch", **NOISE).named_buffers()
            if "running" in name
        )
        assert 54_415_362 + statistics == 54_425_218


def test_the_networks_have_the_layers_of_the_table():
    with torch.device("meta"):
        generator = Generator(width=64, depth=8, norm_eval="batch", **NOISE)
        wide = torch.zeros(1, 1, 256, 256)
        code, skips = generator.encode(wide)
        assert [tuple(skip.shape[1:]) for skip in skips] == [
            (64, 128, 128), (128, 64, 64), (256, 32, 32), (512, 16, 16), (512, 8, 8), (512, 4, 4), (512, 2, 2),
        ]  # fmt: skip
        assert tuple(code.shape) == (1, 512, 1, 1)
        assert tuple(generator(wide).shape) == (1, 2, 256, 256)
    children = dict(generator.named_children())
    assert list(children) == [*(f"e{n}" for n in range(1, 8)), "b", *(f"d{n}" for n in range(1, 8)), "out"]
    with_norm = {name for name, child in children.items() if isinstance(getattr(child, "norm", None), BatchNorm)}
    assert with_norm == {*(f"e{n}" for n in range(2, 8)), *(f"d{n}" for n in range(1, 8))}
    with_dropout = {n for n, child in children.items() if isinstance(getattr(child, "dropout", None), nn.Dropout)}
    assert with_dropout == {"d1", "d2", "d3"}


def test_the_generator_computes_what_the_table_says():
    """Layer by layer from the weights alone, with torch's functions: orders, slopes, where ReLU hits the skip."""
    generator = small_generator(dropout_in_evaluation=False).double().eval()
    for name, weight in generator.named_parameters():
        if "norm" in name:
            nn.init.normal_(weight, 1.0, 0.3)
    w = generator.state_dict()
    x = torch.randn(3, 1, 64, 64, dtype=torch.float64)

    def norm(name, z):
        mean, var = z.mean(dim=(0, 2, 3), keepdim=True), z.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (w[f"{name}.norm.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias"))
        return (z - mean) / (var + 1e-3).sqrt() * scale + shift

    maps, z = [], x
    for level in range(1, 6):
        z = F.conv2d(z, w[f"e{level}.conv.weight"], w[f"e{level}.conv.bias"], stride=2, padding=1)
        if level > 1:
            z = norm(f"e{level}", z)
        z = torch.where(z > 0, z, 0.2 * z)
        maps.append(z)
    z = F.conv2d(z, w["b.weight"], w["b.bias"], stride=2, padding=1).clamp(min=0)
    for level in range(1, 6):
        up = F.conv_transpose2d(z, w[f"d{level}.conv.weight"], w[f"d{level}.conv.bias"], stride=2, padding=1)
        z = torch.cat([norm(f"d{level}", up), maps.pop()], dim=1).clamp(min=0)
    expected = torch.tanh(F.conv_transpose2d(z, w["out.weight"], w["out.bias"], stride=2, padding=1))
    torch.testing.assert_close(generator(x), expected, rtol=1e-9, atol=1e-12)


def test_weights_start_as_in_the_public_code():
    generator = Generator(width=16, depth=6, norm_eval="batch", **NOISE)
    assert generator.e5.conv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert generator.d2.conv.weight.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert all(not p.any() for name, p in generator.named_parameters() if name.endswith("bias"))
    assert generator.e2.norm.eps == 1e-3
    head = Classifier(5, width=4, depth=6, hidden=256, dropout=0.5, norm_eval="batch").head
    assert head[0].weight.abs().max().item() == pytest.approx(1 / 32**0.5, rel=0.02)  # PyTorch's own for FC layers


def field(discriminator: PatchDiscriminator, side: int = 256) -> tuple[int, tuple[int, int]]:
    """Rows of the input that one patch in the middle depends on, by its gradient; and the map's size."""
    for module in discriminator.modules():
        if isinstance(module, BatchNorm):
            module.norm_eval = "running"  # batch statistics would let every patch see the whole image
    discriminator.double().eval()
    image = torch.randn(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    patches = discriminator(image[:, :1], image[:, 1:])
    middle = patches.shape[-1] // 2
    patches[0, 0, middle, middle].backward()
    rows = image.grad[0].abs().sum(dim=(0, 2)).nonzero().flatten()
    return int(rows.max() - rows.min()) + 1, tuple(patches.shape[-2:])


def test_receptive_fields_of_the_discriminators():
    assert field(PatchDiscriminator(4, "patch70")) == (70, (30, 30))
    assert field(PatchDiscriminator(4, "patch142")) == (142, (16, 16))  # the map of the public code


def test_the_discriminator_sees_lightness_and_colour():
    discriminator = PatchDiscriminator(4, "patch70")
    x, y = torch.randn(2, 1, 64, 64), torch.randn(2, 2, 64, 64)
    logits = discriminator(x, y)
    assert not torch.equal(logits, discriminator(x.flip(0), y))
    assert not torch.equal(logits, discriminator(x, y.flip(0)))
    assert logits.min() < 0  # logits, not probabilities


def test_batch_statistics_are_used_in_evaluation_too_unless_running_ones_are_asked_for():
    x = torch.randn(4, 1, 64, 64)
    batch = small_generator(dropout_in_evaluation=False)
    batch.train()
    batch.keep_dropout(False)
    for module in batch.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        trained = batch(x)
        before = {name: value.clone() for name, value in batch.named_buffers()}
        torch.testing.assert_close(batch.eval()(x), trained)
        assert all(torch.equal(value, before[name]) for name, value in batch.named_buffers())  # no trace
        alone = batch(x[:1])
        assert not torch.allclose(alone, trained[:1], atol=1e-6)  # what a photograph becomes depends on its batch
        running = small_generator("running", dropout_in_evaluation=False)
        running.load_state_dict(batch.state_dict())
        together = running.eval()(x)
        torch.testing.assert_close(running(x[:1]), together[:1])
        assert not torch.allclose(together, trained, atol=1e-6)
        running.use_statistics("batch")
        torch.testing.assert_close(running(x), trained)


def test_dropout_stays_on_in_evaluation_until_it_is_switched_off():
    generator = small_generator().eval()
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert not torch.equal(generator(x), generator(x))
        torch.manual_seed(3)
        first = generator(x)
        torch.manual_seed(3)
        assert torch.equal(first, generator(x))
        generator.keep_dropout(False)
        assert torch.equal(generator(x), generator(x))


def test_sides_that_cannot_be_halved_are_refused_in_words():
    with pytest.raises(InputError, match="72 x 64 pixels cannot be halved 6 times: make their sides multiples of 64"):
        small_generator()(torch.zeros(1, 1, 64, 72))
    with pytest.raises(InputError, match="classifier of depth 6 takes images of 64 x 64 pixels, not 128 x 128"):
        Classifier(5, 4, 6, 8, 0.5, "batch")(torch.zeros(2, 1, 128, 128))
    with pytest.raises(InputError, match="width 4 and depth 2"):
        Generator(4, 2, 0.5, True, "batch")


def test_segmenter_and_classifier_share_the_names_and_shapes_of_what_they_take_over():
    shapes = {name: value.shape for name, value in small_generator().state_dict().items()}
    segmenter = {n: v.shape for n, v in Segmenter(5, 4, 6, 0.5, True, "batch").state_dict().items()}
    assert {n: s for n, s in segmenter.items() if not n.startswith("out.")} == {
        n: s for n, s in shapes.items() if not n.startswith("out.")
    }
    classifier = {n: v.shape for n, v in Classifier(5, 4, 6, 8, 0.5, "batch").state_dict().items()}
    encoder = {n: s for n, s in shapes.items() if n[0] in "eb"}
    assert {n: s for n, s in classifier.items() if not n.startswith("head.")} == encoder
