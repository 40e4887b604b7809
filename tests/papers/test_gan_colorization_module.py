"""The training step against a plain loop written from the losses, and what the steps may touch."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from components.colour import split
from lightning_modules.gan_colorization import GanColorizationModule, Generator, PatchDiscriminator
from lightning_modules.gan_colorization.module import adversarial_loss, coloured

SIDE, BATCH, STEPS = 32, 3, 3


def batches() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (STEPS * BATCH, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return [{"image": image, "index": index, "name": f"{index}.png"} for index, image in enumerate(images)]


def optimizer_of(parameters) -> torch.optim.Optimizer:
    # Not Adam: it turns the rounding noise of biases before a BatchNorm, whose gradient is 0, into whole steps.
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.5)


def module(gan: bool = True, dropout: float = 0.0, **settings: object) -> GanColorizationModule:
    torch.manual_seed(1)
    values = {"predict_dropout": True, "predict_norm_eval": "batch", **settings}
    values |= {"gan": gan, "l1_weight": 100.0, "ssim_sigma": 1.5, "seed": 0, **settings}
    return GanColorizationModule(
        Generator(4, 5, dropout, True, "batch"),
        PatchDiscriminator(4, "patch70"),
        optimizer_of,
        optimizer_of,
        **values,
    )


def fit(
    learner: GanColorizationModule, folder: Path, precision: str = "32-true", data: list | None = None
) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(learner, DataLoader(data or batches(), batch_size=BATCH))
    return trainer


def plain_loop(learner: GanColorizationModule, gan: bool) -> None:
    """Spec 2.4 with torch alone: D on true colours, D on predicted ones, step; then G, with D held still."""
    g, d = learner.generator, learner.discriminator
    optimizer_g = optimizer_of(g.parameters())
    optimizer_d = optimizer_of(d.parameters()) if gan else None
    for batch in DataLoader(batches(), batch_size=BATCH):
        x, y = split(batch["image"])
        if gan:
            with torch.no_grad():
                fake = g(x)
            # Probabilities and logarithms, as the paper writes them.
            d_real = -torch.log(torch.sigmoid(d(x, y))).mean()
            d_fake = -torch.log(1 - torch.sigmoid(d(x, fake))).mean()
            optimizer_d.zero_grad()
            (0.5 * (d_real + d_fake)).backward()
            optimizer_d.step()
        predicted = g(x)
        g_l1 = (y - predicted).abs().mean()
        loss = 100 * g_l1
        if gan:
            g_adv = -torch.log(torch.sigmoid(d(x, predicted))).mean()
            loss = loss + g_adv
        optimizer_g.zero_grad()
        loss.backward()
        optimizer_g.step()


@pytest.mark.parametrize("gan", [True, False])
def test_training_is_that_of_a_plain_loop(tmp_path, gan):
    ours, plain = module(gan), module(gan)
    fit(ours, tmp_path)
    plain.train()
    plain_loop(plain, gan)
    # The running statistics differ by the loop's second pass through G; no training step uses them.
    compared = [name for name, _ in plain.named_parameters()]
    assert any(name.startswith("discriminator.") for name in compared) == gan
    state, expected = ours.state_dict(), plain.state_dict()
    for name in compared:
        torch.testing.assert_close(state[name], expected[name], rtol=1e-4, atol=2e-6, msg=name)


def test_losses_are_named_and_logged(tmp_path):
    data = batches()[:BATCH]
    learner, plain = module(), module()
    trainer = fit(learner, tmp_path, data=data)
    x, y = split(torch.stack([sample["image"] for sample in data]))
    logged = trainer.callback_metrics
    assert set(logged) == {f"train/{name}" for name in ("d_real", "d_fake", "g_adv", "g_l1")}
    plain.train()
    with torch.no_grad():
        predicted = plain.generator(x)
        assert float(logged["train/g_l1"]) == pytest.approx(float((predicted - y).abs().mean()), rel=1e-5)
        real = F.softplus(-plain.discriminator(x, y)).mean()
        fake = F.softplus(plain.discriminator(x, predicted)).mean()
    assert float(logged["train/d_real"]) == pytest.approx(float(real), rel=1e-5)
    assert float(logged["train/d_fake"]) == pytest.approx(float(fake), rel=1e-5)


def test_the_discriminator_judges_true_and_predicted_colours_apart_beside_the_same_lightness(tmp_path):
    """Trap 4: in one batch of both, BatchNorm would tell them apart by itself; and Eq. 1 must condition on L."""
    learner, seen = module(), []
    learner.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    data = batches()[:BATCH]
    fit(learner, tmp_path, data=data)
    x, y = split(torch.stack([sample["image"] for sample in data]))
    (x1, real), (x2, fake), (x3, answer) = seen
    for given in (x1, x2, x3):
        torch.testing.assert_close(given, x)
    torch.testing.assert_close(real, y)
    torch.testing.assert_close(fake, answer.detach())
    assert not fake.requires_grad and answer.requires_grad


def test_nothing_of_the_discriminator_learns_from_the_generators_loss(tmp_path):
    """Trap 5, and the public code's quirk: neither gradients nor BatchNorm's scale and shift."""
    learner, during = module(), []
    steps = []
    original = GanColorizationModule.step

    def spy(self, optimizer, loss):
        during.append([p.requires_grad for p in self.discriminator.parameters()])
        original(self, optimizer, loss)
        steps.append(
            (
                {n: p.detach().clone() for n, p in self.discriminator.named_parameters()},
                {n: p.grad.clone() for n, p in self.discriminator.named_parameters()},
            )
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GanColorizationModule, "step", spy)
        fit(learner, tmp_path)
    assert len(steps) == 2 * STEPS
    for after_d, after_g in zip(steps[::2], steps[1::2], strict=True):
        for before, after in zip(after_d, after_g, strict=True):  # weights, then gradients
            assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(all(flags) for flags in during[::2]) and not any(any(flags) for flags in during[1::2])
    assert all(p.requires_grad for p in learner.parameters())


def test_without_adversary_there_is_no_discriminator(tmp_path):
    learner = module(gan=False)
    trainer = fit(learner, tmp_path)
    assert not [name for name in learner.state_dict() if name.startswith("discriminator")]
    assert len(trainer.optimizers) == 1 and set(trainer.callback_metrics) == {"train/g_l1"}


def test_both_optimizers_count_and_hold_their_own_network(tmp_path):
    learner = module()
    trainer = fit(learner, tmp_path)
    assert trainer.global_step == 2 * STEPS
    held = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in trainer.optimizers]
    assert held == [{id(p) for p in net.parameters()} for net in (learner.generator, learner.discriminator)]


def test_losses_are_computed_in_float32_under_half_precision(tmp_path):
    logits = torch.randn(4, 1, 3, 3).bfloat16()
    for real in (True, False):
        loss = adversarial_loss(logits, real)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, F.softplus(-logits.float() if real else logits.float()).mean())
    half, whole = module(), module()
    data = batches()[:BATCH]
    logged = fit(half, tmp_path, "bf16-mixed", data).callback_metrics
    expected = fit(whole, tmp_path, data=data).callback_metrics
    for name, value in expected.items():
        assert logged[name].dtype == torch.float32
        assert float(logged[name]) == pytest.approx(float(value), rel=0.02)


def test_a_score_does_not_depend_on_what_was_judged_before(tmp_path):
    """Dropout is on in evaluation, and drawn from seed and photograph."""
    learner = module(dropout=0.5).eval()
    images = torch.stack([sample["image"] for sample in batches()[:2]])
    answers = []
    for order in ([0, 1], [1, 0]):
        for index in order:
            batch = {"image": images[index : index + 1], "index": torch.tensor([index])}
            learner.val_scores.reset()
            with torch.no_grad():
                learner.judge(batch, 0, learner.val_scores)
            answers.append((index, float(learner.val_scores.compute()["ab_error"])))
    assert answers[0] == answers[3] and answers[1] == answers[2] and answers[0][1] != answers[1][1]
    other = module(dropout=0.5, seed=5).eval()
    with torch.no_grad():
        other.judge({"image": images[:1], "index": torch.tensor([0])}, 0, other.val_scores)
    assert float(other.val_scores.compute()["ab_error"]) != answers[0][1]


def test_a_coloured_picture_keeps_the_lightness_of_the_photograph():
    pixels = batches()[0]["image"][None]
    x, y = split(pixels)
    picture = coloured(pixels, 0.2 * y)
    assert picture.dtype == torch.uint8 and picture.shape == pixels.shape
    assert (split(picture)[0] - x).abs().max() * 50 < 0.6  # rounding to 8 bits
    assert (coloured(pixels, y).int() - pixels.int()).abs().max() <= 1
    grey = coloured(pixels, torch.zeros_like(y))
    assert (grey.int().amax(1) - grey.int().amin(1)).max() <= 1


class KnownColour(nn.Module):
    """A generator whose answer is one colour everywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.25, -0.1]).view(1, 2, 1, 1).expand(len(x), 2, *x.shape[-2:])


def test_predicted_colours_are_joined_with_the_photographs_own_lightness_at_its_own_size():
    learner = module()
    learner.generator = KnownColour()
    whole = torch.randint(90, 130, (1, 3, 45, 70), dtype=torch.uint8)
    batch = {"image": torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), "whole": whole, "name": ["a/b.jpg"]}
    (row,) = learner.predict_step(batch, 0)
    assert row["name"] == "a/b.jpg" and row["coloured"].size == (70, 45)
    x, y = split(torch.tensor(np.asarray(row["coloured"]).transpose(2, 0, 1)[None]))
    assert (x - split(whole)[0]).abs().max() * 50 < 0.6
    assert (y - torch.tensor([0.25, -0.1]).view(1, 2, 1, 1)).abs().max() * 128 < 1.5
