"""SITAR's phases: what each step learns from, mixes, logs, saves and gathers over processes."""

import functools
import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as V

from lightning_modules.sitar import SitarModule, SuperImageSwin
from lightning_modules.sitar.losses import group_contrast, nt_xent
from runs.errors import InputError

CLASSES = 6
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def module(optimizer=torch.optim.AdamW, num_classes=CLASSES, drop_path=0.0, **changes) -> SitarModule:
    torch.manual_seed(0)
    network = SuperImageSwin(
        embed_dim=8,
        depths=[2, 2],
        num_heads=[1, 2],
        window=3,
        drop_path=drop_path,
        num_classes=num_classes,
        frames_fast=8,
        frames_slow=4,
        cell_fast=8,
        cell_slow=12,
        frame_pos="per_grid",
        weights=None,
        pretrained=False,
        checkpoint_path=None,
    )
    nn.init.normal_(network.swin.head.fc.weight, std=0.2)  # zero at first: nothing below it learns
    arguments = {
        "phase": "semi",
        "unsup": "contrast",
        "gamma": 0.6,
        "beta": 1.0,
        "temperature": 0.5,
        "contrast_space": "softmax",
        "detach_fast": True,
        "threshold": 0.8,
        "label_smoothing": 0.1,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "switch_prob": 0.5,
        "phase2_mixup": False,
        "order": "normal",
        "init_from": None,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    return SitarModule(
        network=network,
        optimizer=functools.partial(optimizer, lr=0.01, weight_decay=0.05),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
        num_classes=num_classes,
        **{**arguments, **changes},
    )


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def labeled(B: int, seed: int = 0) -> dict[str, torch.Tensor]:
    index = torch.arange(B)
    return {"video": pixels(B, 8, 3, 8, 8, seed=seed), "label": index % CLASSES, "index": index}


def unlabeled(B: int, seed: int = 0) -> dict[str, torch.Tensor]:
    index = torch.arange(B)
    return {
        "video_fast": pixels(B, 8, 3, 8, 8, seed=seed + 1),
        "video_slow": pixels(B, 4, 3, 12, 12, seed=seed + 2),
        "label": index % CLASSES,
        "index": index,
    }


def semi(B: int = 2, mu: int = 4, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    return {"labeled": labeled(B, seed), "unlabeled": unlabeled(mu * B, seed)}


def judged(B: int = 4, K: int = 1) -> dict[str, torch.Tensor | list[str]]:
    names = [f"clip_{i}.avi" for i in range(B)]
    video = pixels(B, K, 8, 3, 8, 8, seed=9)
    index = torch.arange(B)
    return {"video": video, "label": index % CLASSES, "index": index, "name": names}


def loader(*batches) -> DataLoader:
    return DataLoader(list(batches), batch_size=None)


def fit(lightning_module: SitarModule, *batches, **settings) -> pl.Trainer:
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 1, **settings})
    trainer.fit(lightning_module, loader(*batches))
    return trainer


def attached(lightning_module: SitarModule) -> SitarModule:
    """As inside a one-process run whose logging goes nowhere."""
    lightning_module.trainer = pl.Trainer(**QUIET)
    lightning_module.log = lambda *args, **kwargs: None
    return lightning_module


def test_pixels_are_normalised_as_torchvision_does_it():
    video = pixels(2, 8, 3, 8, 8)
    expected = V.normalize(video / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(module().normalise(video), expected, atol=1e-5)


# ---- steps ---------------------------------------------------------------------------------


def test_phase_1_trains_on_smoothed_cross_entropy_of_labelled_clips():
    m = attached(module(phase="supervised")).eval()
    batch = labeled(4)
    logits = m(batch["video"][:, None])
    smoothed = torch.full((4, CLASSES), 0.1 / CLASSES)
    smoothed[torch.arange(4), batch["label"]] += 0.9
    expected = -(smoothed * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert torch.allclose(m.training_step(batch, 0), expected, atol=1e-6)


@pytest.mark.parametrize("detach_fast", [True, False])
def test_phase_2_adds_the_weighted_contrasts_of_eq_5(detach_fast):
    m = attached(module(detach_fast=detach_fast)).eval()
    batch = semi()
    fast, slow = (m.network(m.tile(m.normalise(batch["unlabeled"][f"video_{r}"]))) for r in ("fast", "slow"))
    p, q = fast.softmax(1), slow.softmax(1)
    sup = F.cross_entropy(m(batch["labeled"]["video"][:, None]), batch["labeled"]["label"], label_smoothing=0.1)
    gc, _ = group_contrast(p, q, fast.argmax(1), slow.argmax(1), CLASSES, 0.5)
    expected = sup + 0.6 * nt_xent(p, q, 0.5) + 1.0 * gc
    assert torch.allclose(m.training_step(batch, 0), expected, atol=1e-5)


def test_a_detached_fast_path_teaches_only_through_the_slow_one():
    """With the slow clips' gradient removed nothing but the labelled loss is left."""

    def gradients(**changes):
        m = attached(module(**changes))
        m.training_step(semi(), 0).backward()
        return {name: p.grad.clone() for name, p in m.named_parameters() if p.grad is not None}

    supervised = gradients(gamma=0.0, beta=0.0)
    detached, both = gradients(detach_fast=True), gradients(detach_fast=False)
    fast_table = "network.frame_pos.3"
    assert torch.allclose(detached[fast_table], supervised[fast_table])
    assert not torch.allclose(both[fast_table], supervised[fast_table])
    assert detached["network.frame_pos.2"].abs().sum() > 0


def test_every_weight_learns_under_autocast_although_the_fast_pass_has_no_graph():
    m = attached(module())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = m.training_step(semi(), 0)
    loss.backward()
    without = [name for name, p in m.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert loss.dtype == torch.float32


def test_the_pseudo_label_rival_trains_on_confident_fast_clips_alone():
    m = attached(module())
    logits = torch.tensor([[9.0, 0, 0, 0, 0, 0], [0.1, 0, 0, 0, 0, 0]], requires_grad=True)
    loss = m.pseudo_label_loss(logits)
    expected = F.cross_entropy(logits[:1], torch.tensor([0])) / 2
    assert torch.allclose(loss, expected)
    loss.backward()
    assert not logits.grad[1].any()


def test_the_supervised_only_baseline_ignores_the_unlabelled_clips():
    losses = []
    for seed in (1, 2):
        batch = semi()
        batch["unlabeled"] = unlabeled(8, seed)
        losses.append(attached(module(unsup="none")).training_step(batch, 0))
    assert torch.equal(*losses)


@pytest.mark.parametrize("phase", ["supervised", "semi"])
@pytest.mark.parametrize("unsup", ["contrast", "pseudo_label", "none"])
def test_every_trainable_weight_gets_a_gradient_so_that_ddp_need_not_search(phase, unsup):
    m = attached(module(phase=phase, unsup=unsup))
    batch = labeled(2) if phase == "supervised" else semi()
    m.training_step(batch, 0).backward()
    assert [name for name, p in m.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("space", ["softmax", "logits", "feature"])
def test_the_contrast_compares_what_the_switch_names(space):
    m = module(contrast_space=space)
    features, logits = torch.randn(2, 16), torch.randn(2, CLASSES)
    expected = {"softmax": logits.softmax(dim=1), "logits": logits, "feature": features}[space]
    assert torch.equal(m.represent(features, logits), expected)


# ---- Mixup and CutMix ----------------------------------------------------------------------


def test_mixup_blends_each_cell_with_the_same_cell_of_the_partner():
    torch.manual_seed(3)
    m = module(phase="supervised", mixup_alpha=0.8)
    frames, label = torch.randn(3, 8, 3, 8, 8), torch.tensor([0, 2, 4])
    mixed, target = m.mix(frames, label)
    share = target[0, 0]
    partner = frames.roll(1, 0)
    assert 0 < share < 1
    assert torch.allclose(mixed, share * frames + (1 - share) * partner, atol=1e-6)
    assert torch.allclose(target.sum(dim=1), torch.ones(3))
    assert target[0, 4] == pytest.approx(1 - float(share), abs=1e-6)


def test_cutmix_cuts_one_box_out_of_every_frame_and_weighs_labels_by_its_area():
    torch.manual_seed(5)
    m = module(phase="supervised", cutmix_alpha=1.0)
    frames = torch.zeros(2, 8, 3, 8, 8)
    frames[1] = 1.0
    mixed, target = m.mix(frames, torch.tensor([0, 1]))
    assert 0 < mixed[0].mean() < 1
    assert torch.equal(mixed[0], mixed[0, :1, :1].expand(8, 3, 8, 8))
    assert target[0, 1] == pytest.approx(float(mixed[0].mean()), abs=1e-6)


def test_both_mixers_take_turns_in_phase_1_and_rest_in_phase_2():
    torch.manual_seed(0)
    on = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
    m = module(phase="supervised", **on)
    frames = torch.stack([torch.zeros(8, 3, 8, 8), torch.ones(8, 3, 8, 8)])
    seen = [m.mix(frames, torch.tensor([0, 1]))[0][0] for _ in range(40)]
    cut = sum(set(x.unique().tolist()) <= {0.0, 1.0} for x in seen)
    assert 8 < cut < 32
    assert torch.equal(module(phase="semi", **on).mix(frames, torch.tensor([0, 1]))[0], frames)
    assert len(module(phase="semi", phase2_mixup=True, **on).mixers) == 2


# ---- optimiser, metrics, state -------------------------------------------------------------


def test_weight_decay_spares_norms_biases_and_position_tables():
    m = module()
    trainer = fit(m, semi())
    decayed, plain = trainer.optimizers[0].param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    name_of = {id(p): name for name, p in m.named_parameters()}
    spared = {name_of[id(p)] for p in plain["params"]}
    matrices = {name_of[id(p)] for p in decayed["params"]}
    assert {"network.frame_pos.2", "network.frame_pos.3"} <= spared
    assert all(name.endswith("weight") and "norm" not in name for name in matrices)
    assert all("table" not in name for name in matrices)
    assert spared | matrices == {name for name, p in m.named_parameters() if p.requires_grad}


def test_the_learning_rate_follows_one_cosine_to_zero_over_the_phase():
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = fit(module(), *[semi(seed=i) for i in range(3)], max_epochs=2, callbacks=[Watch()])
    expected = 0.01 * (1 + torch.cos(torch.pi * torch.arange(6) / 6)) / 2
    assert rates == pytest.approx(expected.tolist(), abs=1e-8)
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


def test_test_metrics_are_micro_percent_and_stand_beside_the_majority_floor():
    m = module()
    batch = judged(6)
    batch["label"] = torch.tensor([0, 0, 0, 0, 1, 2])
    predicted = m.eval()(batch["video"]).argmax(dim=1)
    result = pl.Trainer(**QUIET).test(m, loader(batch), verbose=False)[0]
    micro = 100 * (predicted == batch["label"]).float().mean()
    assert result["test/top1"] == pytest.approx(float(micro), abs=1e-4)
    assert result["floor/top1"] == pytest.approx(100 * 4 / 6, abs=1e-4)
    assert result["floor/top5"] == pytest.approx(100.0)
    assert result["test/parameters_m"] == pytest.approx(m.network.parameter_count() / 1e6)


def test_top_5_is_left_out_below_five_classes():
    m = module(num_classes=4)
    batch = judged(4)
    result = pl.Trainer(**QUIET).test(m, loader(batch), verbose=False)[0]
    assert not any("top5" in name for name in result)


def test_temporal_offsets_are_judged_by_their_mean_logits():
    m = module().eval()
    video = pixels(2, 3, 8, 3, 8, 8)
    each = torch.stack([m(video[:, k : k + 1]) for k in range(3)])
    assert torch.allclose(m(video), each.mean(dim=0), atol=1e-6)


def test_phase_2_logs_its_losses_and_pseudo_labels_by_name():
    trainer = fit(module(), semi())
    logged = set(trainer.callback_metrics)
    assert {
        *("train/loss", "train/loss_sup", "train/loss_ic", "train/loss_gc", "train/top1"),
        *("train/pseudo_label_accuracy", "train/pseudo_label_confidence", "train/common_groups"),
    } <= logged
    total = trainer.callback_metrics
    assert float(total["train/loss"]) == pytest.approx(
        float(total["train/loss_sup"] + 0.6 * total["train/loss_ic"] + total["train/loss_gc"]),
        rel=1e-5,
    )


def test_training_never_reads_the_labels_of_unlabelled_clips():
    losses = []
    for shift in (0, 3):
        batch = semi()
        batch["unlabeled"]["label"] = (batch["unlabeled"]["label"] + shift) % CLASSES
        losses.append(attached(module()).training_step(batch, 0))
    batch["unlabeled"].pop("label")
    losses.append(attached(module()).training_step(batch, 0))
    assert losses[0] == losses[1] == losses[2]


def test_predictions_are_rows_of_file_class_probability_and_the_five_best():
    m = module()
    batch = judged(3)
    rows = pl.Trainer(**QUIET).predict(m, loader(batch))[0]
    probability = m.eval()(batch["video"]).softmax(dim=1)
    assert [row["file"] for row in rows] == batch["name"]
    for row, p in zip(rows, probability, strict=True):
        assert row["class"] == str(int(p.argmax()))
        assert row["probability"] == pytest.approx(float(p.max().detach()), abs=1e-6)
        assert len(row["top5"].split("; ")) == 5


def test_random_order_at_test_time_gives_the_same_number_in_any_batching():
    m = module(order="random").eval()
    batch = judged(4, K=2)
    whole = m(batch["video"], batch["index"])
    parts = [m(batch["video"][i : i + 1], batch["index"][i : i + 1]) for i in range(4)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)
    normal = module(order="normal").eval()(batch["video"], batch["index"])
    assert not torch.allclose(whole, normal)


def test_the_figures_show_super_images_confusions_and_the_pseudo_labels_history():
    m = module()
    trainer = fit(m, semi(), max_epochs=2)
    trainer.test(m, loader(judged()), verbose=False)
    figures = m.figures("test")
    assert set(figures) == {"super_images", "confusion_matrix", "pseudo_label_accuracy"}
    line = figures["pseudo_label_accuracy"].axes[0].lines[0]
    assert line.get_xdata().tolist() == [1, 2]
    assert len(figures["super_images"].axes) == 8
    trainer.predict(m, loader(judged(2)))
    assert "confusion_matrix" not in m.figures("predict")


def test_the_history_of_pseudo_labels_survives_a_checkpoint_of_plain_values(tmp_path):
    m = module()
    trainer = fit(m, semi(), max_epochs=2)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    again = module()
    pl.Trainer(**{**QUIET, "max_epochs": 3}).fit(again, loader(semi()), ckpt_path=path, weights_only=True)
    assert len(again.pseudo_label_history) == 3
    assert again.pseudo_label_history[:2] == m.pseudo_label_history


def test_phase_2_starts_from_the_weights_of_phase_1(tmp_path):
    first = module(phase="supervised")
    fit(first, labeled(4)).save_checkpoint(tmp_path / "phase1.ckpt")
    second = module(phase="semi", init_from=str(tmp_path / "phase1.ckpt"))
    with torch.no_grad():
        second.network.swin.norm.weight.fill_(7.0)
    fit(second, semi(), max_steps=0)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_judging_and_resuming_need_no_phase_1_file(tmp_path):
    m = module()
    fit(m, semi()).save_checkpoint(tmp_path / "last.ckpt")
    gone = module(init_from=str(tmp_path / "gone.ckpt"))
    pl.Trainer(**QUIET).test(gone, loader(judged()), verbose=False)
    pl.Trainer(**{**QUIET, "max_epochs": 2}).fit(gone, loader(semi()), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no weights file"),
        (b"not a checkpoint", "cannot be read as weights"),
        ({"state_dict": {"other.weight": torch.zeros(1)}}, "1 unexpected keys: other.weight"),
        ({"epoch": 3}, "holds no weights"),
    ],
    ids=["missing", "broken", "foreign", "empty"],
)
def test_a_wrong_init_from_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "phase1.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=rf"model\.init_from: .*{sentence}"):
        fit(module(init_from=str(path)), semi())


# ---- two processes -------------------------------------------------------------------------


class Sharded(pl.LightningDataModule):
    """Five global batches, dealt in strides as the samplers of the datamodules deal them."""

    def train_dataloader(self) -> DataLoader:
        rank, world = self.trainer.global_rank, self.trainer.world_size

        def shard(batch):
            if isinstance(batch, dict):
                return {name: shard(value) for name, value in batch.items()}
            return batch[rank::world]

        return loader(*[shard(semi(B=4, mu=2, seed=seed)) for seed in range(5)])


class Losses(pl.Callback):
    """Writes the global loss of each step and the last weights."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.losses = folder, []

    def on_train_batch_end(self, trainer, lightning_module, outputs, batch, batch_idx):
        self.losses.append(float(lightning_module.all_gather(outputs["loss"]).mean()))

    def on_train_end(self, trainer, lightning_module):
        if trainer.is_global_zero:
            (self.folder / "losses.json").write_text(json.dumps(self.losses))
            torch.save(lightning_module.state_dict(), self.folder / "weights.pth")


@pytest.mark.parametrize("detach_fast", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns_from_the_same_global_batches(tmp_path, detach_fast):
    """SGD, because Adam would hide a gradient of the wrong scale."""
    losses, weights = {}, {}
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        trainer = pl.Trainer(
            **QUIET,
            max_epochs=1,
            devices=devices,
            strategy="ddp_spawn" if devices == 2 else "auto",
            use_distributed_sampler=False,
            callbacks=[Losses(folder)],
        )
        trainer.fit(module(optimizer=torch.optim.SGD, detach_fast=detach_fast), datamodule=Sharded())
        losses[devices] = json.loads((folder / "losses.json").read_text())
        weights[devices] = torch.load(folder / "weights.pth", weights_only=True)
    assert len(losses[1]) == 5
    assert losses[2] == pytest.approx(losses[1], abs=1e-5)
    for name, value in weights[1].items():
        assert torch.allclose(weights[2][name], value, atol=1e-5), name
