"""ISIM's module: what it learns from, how fast, what it logs and shows."""

import functools

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from sklearn.metrics import jaccard_score, label_ranking_average_precision_score
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as V

from components.cam import multi_scale_cam
from components.deeplab import DeepLabV3PlusHead
from components.dense_crf import CRFSettings, refine_labels
from components.encoders import SmallEncoder, TimmEncoder
from components.voc import PALETTE
from lightning_modules.isim import CAMSegmenter, IsimModule
from lightning_modules.isim.losses import segmentation_loss
from runs.composition import compose_config
from runs.errors import InputError

CLASSES = 3
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def head(channels, strides, num_classes):
    return DeepLabV3PlusHead(channels, strides, num_classes, 8, 4, 4, [1, 2], 0.0)


def module(encoder=None, momentum: float = 0.0, **changes) -> IsimModule:
    torch.manual_seed(0)
    settings = {
        "seg_loss": "pseudo_mask",
        "mask_empty": True,
        "lr_encoder": 0.1,
        "lr_classifier": 1.0,
        "lr_decoder": 0.01,
        "poly_power": 0.9,
        "poly_epochs": None,
        "cam_scales": [1.0, 0.5],
        "cam_threshold": 0.3,
        "swept_thresholds": [0.1, 0.3, 0.6],
        "crf": CRFSettings(3.0, 3.0, 50.0, 5.0, 10.0, 2, 0.7),
        "predict_cams": False,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    network = CAMSegmenter(encoder or SmallEncoder([4, 6, 8, 10], [2, 2, 2, 1]), head, CLASSES)
    optimizer = functools.partial(torch.optim.SGD, momentum=momentum, weight_decay=1e-4)
    return IsimModule(network, optimizer, CLASSES, **{**settings, **changes})


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def training_batch(B: int = 4, foreground: bool = True, seed: int = 0) -> dict:
    mask = torch.zeros(B, 24, 24, dtype=torch.int64)
    if foreground:
        mask[0, 4:12, 5:15], mask[1, :4] = 2, 255
    label = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 0]], dtype=torch.float32)[:B]
    return {"image": pixels(B, 3, 24, 24, seed=seed), "label": label, "pseudo_mask": mask, "index": torch.arange(B)}


def judged(number: int, label: list[int] | None = None) -> dict:
    """One image as its loader gives it."""
    mask = torch.from_numpy(np.random.default_rng(number).integers(0, 4, (1, 20 + number, 25)))
    mask[:, 0] = 255
    label = label or [[0, 1, 0], [1, 1, 0], [0, 0, 0]][number % 3]
    return {
        "image": pixels(1, 3, 20 + number, 25, seed=number),
        "label": torch.tensor([label], dtype=torch.float32),
        "score_mask": mask,
        "index": torch.tensor([number]),
        "name": [f"folder/image_{number}.jpg"],
    }


class Data(pl.LightningDataModule):
    class_names = ("bird", "cat", "dog")

    def test_dataloader(self):
        return [DataLoader([judged(n) for n in numbers], batch_size=None) for numbers in ((0, 1, 2), (3, 4))]


def attached(m: IsimModule) -> tuple[IsimModule, dict]:
    """As inside a run; what it logs lands in the dictionary."""
    logged: dict = {}
    m.trainer = pl.Trainer(**QUIET)
    m.log = lambda name, value, **_: logged.update({name: value})
    return m, logged


def fit(m: IsimModule, epochs: int = 1, batches: int = 2, callbacks: tuple = (), **settings) -> pl.Trainer:
    trainer = pl.Trainer(**QUIET, max_epochs=epochs, callbacks=list(callbacks), **settings)
    trainer.fit(m, DataLoader([training_batch(seed=n) for n in range(batches)], batch_size=None))
    return trainer


# ---- training ------------------------------------------------------------------------------------


def test_pixels_are_normalised_as_torchvision_does_it():
    image = pixels(2, 3, 8, 8)
    expected = V.normalize(image / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(module().normalise(image), expected, atol=1e-5)


def test_the_loss_is_the_sum_of_both_and_both_are_logged():
    m, logged = attached(module())
    m.eval()
    batch = training_batch()
    logits, pixel_logits = m(batch["image"])
    loss_cls = torch.nn.MultiLabelSoftMarginLoss()(logits, batch["label"])
    loss_seg, _, _ = segmentation_loss(pixel_logits, batch["pseudo_mask"], True)
    loss = m.training_step(batch, 0)
    assert torch.allclose(loss, loss_cls + loss_seg)
    assert torch.allclose(logged["train/loss_cls"], loss_cls) and torch.allclose(logged["train/loss_seg"], loss_seg)
    m.on_train_epoch_end()
    _, nonempty, _ = segmentation_loss(pixel_logits, batch["pseudo_mask"], True)
    assert torch.allclose(logged["train/loss_seg_nonempty"], nonempty)


def test_the_mean_without_empty_images_weighs_images_alike_and_is_not_logged_without_any():
    m, logged = attached(module())
    m.eval()
    m.training_step(training_batch(foreground=False), 0)
    m.on_train_epoch_end()
    assert "train/loss_seg_nonempty" not in logged


def test_the_mean_without_empty_images_weighs_steps_by_their_images_with_foreground():
    m, logged = attached(module())
    m.eval()
    many, few = training_batch(seed=1), training_batch(seed=2)
    many["pseudo_mask"][1:, 3:20, 3:20] = 1
    found = []
    for batch in (many, few):
        m.training_step(batch, 0)
        found.append(segmentation_loss(m(batch["image"])[1], batch["pseudo_mask"], True)[1:])
    m.on_train_epoch_end()
    (one, images), (other, image) = found
    assert (int(images), int(image)) == (4, 1)
    assert float(one) != pytest.approx(float(other), rel=1e-2)
    assert float(logged["train/loss_seg_nonempty"]) == pytest.approx(float(4 * one + other) / 5, rel=1e-5)


def test_before_the_first_masks_only_the_classifier_learns():
    m, _ = attached(module())
    m.training_step(training_batch(foreground=False), 0).backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in m.network.decoder.parameters())
    assert any(p.grad.ne(0).any() for p in m.network.encoder.parameters())


def test_the_cam_baseline_never_touches_the_decoder_and_ignores_masks():
    def gradients(foreground: bool) -> dict:
        m, _ = attached(module(seg_loss="none"))
        m.training_step(training_batch(foreground=foreground), 0).backward()
        return {name: p.grad for name, p in m.named_parameters()}

    with_masks, without = gradients(True), gradients(False)
    for name, grad in with_masks.items():
        assert (grad is None) == ("decoder" in name)
        if grad is not None:
            assert torch.equal(grad, without[name])


def test_the_baseline_differs_from_the_method_in_its_loss_alone():
    """Trap 12."""

    def flat(node, prefix="") -> dict:
        if not isinstance(node, dict):
            return {prefix: node}
        return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}.{key}").items()}

    from omegaconf import OmegaConf

    for experiment in ("isim_voc12", "isim_voc12_unet", "isim_shapes"):
        words = [f"experiment={experiment}", "data.root=x", "paths.run_dir=unused"]
        ours, theirs = (
            flat(OmegaConf.to_container(compose_config([*words, f"variant={v}"]), resolve=False))
            for v in ("none", "isim_cam")
        )
        changed = {key for key in {**ours, **theirs} if ours.get(key, "-") != theirs.get(key, "-")}
        changed = {key for key in changed if not key.startswith(".callbacks.pseudo_label_refresh")}
        assert changed == {".model.seg_loss", ".variant_name"}


# ---- rates ---------------------------------------------------------------------------------------


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_start(self, trainer, *_) -> None:
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def test_rates_decay_for_five_epochs_worth_of_steps_and_then_stay():
    """Trap 8: lr0 (1 - t / T5)^0.9, floor at t = T5 - 1."""
    rates = Rates()
    fit(module(poly_epochs=5), epochs=8, batches=3, callbacks=(rates,))
    assert len(rates.seen) == 24
    for t, (encoder, classifier, decoder) in enumerate(rates.seen):
        factor = (1 - min(t, 14) / 15) ** 0.9
        assert (encoder, classifier, decoder) == pytest.approx((0.1 * factor, 1.0 * factor, 0.01 * factor))
    assert rates.seen[-1][0] == pytest.approx(0.1 * (1 / 15) ** 0.9)


def test_without_an_end_the_decay_spans_the_run():
    rates = Rates()
    fit(module(poly_epochs=None), epochs=4, batches=3, callbacks=(rates,))
    assert [row[0] for row in rates.seen] == pytest.approx([0.1 * (1 - t / 12) ** 0.9 for t in range(12)])


def test_the_decay_is_five_epochs_long_in_a_shorter_run_too():
    """And the last step of an epoch counts, though fewer batches are accumulated for it: 3 batches are 2 steps."""
    m = module(poly_epochs=5)
    fit(m, epochs=3, batches=3, accumulate_grad_batches=2)
    assert m.trainer.global_step == 6
    assert m.optimizers().param_groups[0]["lr"] == pytest.approx(0.1 * (1 - 6 / 10) ** 0.9)


def test_accumulated_batches_count_as_one_step_of_the_decay():
    m = module(poly_epochs=5)
    fit(m, epochs=6, batches=4, accumulate_grad_batches=2)
    group = m.optimizers().param_groups[0]
    assert group["lr"] == pytest.approx(0.1 * (1 / 10) ** 0.9)


def test_every_weight_has_the_rate_of_its_part():
    m = module(momentum=0.9)
    trainer = fit(m, epochs=1)
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert {name: group["initial_lr"] for name, group in groups.items()} == {
        "encoder": 0.1,
        "classifier": 1.0,
        "decoder": 0.01,
    }
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in m.parameters())


def test_the_presets_are_those_of_the_code_and_of_the_paper():
    words = ["experiment=isim_voc12", "data.root=x", "paths.run_dir=unused"]
    keys = ("lr_encoder", "lr_classifier", "lr_decoder", "poly_power", "poly_epochs")
    values = []
    for variant in ("none", "isim_optim_paper"):
        model = compose_config([*words, f"variant={variant}"]).model
        values.append([*(model[key] for key in keys), model.optimizer.momentum, model.optimizer.weight_decay])
    assert values == [[0.1, 1.0, 0.1, 0.9, 5, 0.0, 1e-4], [0.1, 1.0, 0.01, 0.9, None, 0.9, 1e-4]]


# ---- frozen BatchNorm ----------------------------------------------------------------------------


def resnet(frozen: bool) -> TimmEncoder:
    return TimmEncoder("resnet10t", False, None, 1, 2, frozen)


def test_training_leaves_frozen_batch_norms_as_they_were(monkeypatch):
    """Trap 9."""
    monkeypatch.setattr(TimmEncoder, "load_initial_weights", lambda self: None)
    for frozen in (True, False):
        m = module(encoder=resnet(frozen), lr_encoder=0.01, lr_classifier=0.01)
        layers = m.network.encoder.batch_norms()
        before = [(bn.running_mean.clone(), bn.running_var.clone(), bn.weight.detach().clone()) for bn in layers]
        fit(m, epochs=1, num_sanity_val_steps=0)
        same = [
            torch.equal(bn.running_mean, mean) and torch.equal(bn.running_var, var) and torch.equal(bn.weight, weight)
            for bn, (mean, var, weight) in zip(layers, before, strict=True)
        ]
        assert all(same) if frozen else not any(same)


def test_a_fresh_fit_without_weights_for_frozen_norms_is_refused_and_a_resumed_one_is_not(tmp_path):
    with pytest.raises(InputError, match="freeze_batch_norm=true keeps the statistics of pre-trained weights"):
        fit(module(encoder=resnet(True)))
    m = module(encoder=resnet(False), lr_encoder=0.01, lr_classifier=0.01)
    fit(m).save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    again = module(encoder=resnet(False))
    again.network.encoder.pretrained = True  # would look for a download
    trainer = pl.Trainer(**QUIET, max_epochs=2)
    trainer.fit(again, DataLoader([training_batch()], batch_size=None), ckpt_path=tmp_path / "last.ckpt")


# ---- evaluation ----------------------------------------------------------------------------------


def test_class_maps_come_from_whole_normalised_images():
    m = module().eval()
    image = pixels(3, 21, 30)
    with torch.no_grad():
        expected = multi_scale_cam(m.network.class_maps, m.normalise(image), [1.0, 0.5])
        assert torch.equal(m.activation_maps(image), expected)


@pytest.fixture(scope="module")
def tested():
    m = module()
    with torch.no_grad():  # so that class maps are not all of one sign
        m.network.classifier.weight.normal_(std=0.5)
    trainer = pl.Trainer(**QUIET)
    (*results,) = trainer.test(m, datamodule=Data(), verbose=False)
    return m.eval(), {k: v for part in results for k, v in part.items()}


def test_the_decoder_is_judged_by_its_argmax_over_the_data_set(tested):
    m, results = tested
    truth, predicted = [], []
    for n in range(3):
        batch = judged(n)
        with torch.no_grad():
            labels = m(batch["image"])[1].argmax(dim=1)
        kept = batch["score_mask"] != 255
        truth += batch["score_mask"][kept].tolist()
        predicted += labels[kept].tolist()
    each = jaccard_score(truth, predicted, average=None, labels=range(4))
    assert results["test/mean_iou"] == pytest.approx(100 * each.mean(), rel=1e-4)
    assert results["test/mean_iou_foreground"] == pytest.approx(100 * each[1:].mean(), rel=1e-4)
    assert results["floor/mean_iou"] == pytest.approx(100 * np.mean(np.array(truth) == 0) / 4, rel=1e-4)


def test_ranking_precision_is_the_mean_over_images(tested):
    m, results = tested
    batches = [judged(n) for n in range(3)]
    with torch.no_grad():
        scores = torch.cat([m(b["image"])[0] for b in batches])
    expected = label_ranking_average_precision_score(torch.cat([b["label"] for b in batches]).numpy(), scores.numpy())
    assert results["test/ranking_ap"] == pytest.approx(100 * expected, rel=1e-5)
    assert 0 < results["floor/ranking_ap"] <= 100


@pytest.mark.parametrize(
    ("metric", "numbers", "threshold", "crf"),
    [
        ("cam_mean_iou", (3, 4), 0.3, False),
        ("cam_crf_mean_iou", (3, 4), 0.3, True),
        ("val_cam_mean_iou", (0, 1, 2), 0.3, False),
        ("val_cam_crf_mean_iou", (0, 1, 2), 0.3, True),
    ],
)
def test_class_maps_of_the_true_labels_are_judged_as_labels(tested, metric, numbers, threshold, crf):
    m, results = tested
    assert results[f"test/{metric}"] == pytest.approx(cam_score(m, numbers, threshold, crf), rel=1e-4)


def cam_score(m: IsimModule, numbers, threshold: float, crf: bool) -> float:
    truth, predicted = [], []
    for n in numbers:
        batch = judged(n)
        with torch.no_grad():
            maps = m.activation_maps(batch["image"][0]).numpy()
        classes = [c for c in range(CLASSES) if batch["label"][0, c]]
        planes = [np.full(maps.shape[1:], threshold), *(maps[c] / (maps[c].max() + 1e-5) for c in classes)]
        seeds = np.argmax(planes, axis=0)
        if crf:
            image = batch["image"][0].permute(1, 2, 0).contiguous()
            seeds = refine_labels(image, torch.from_numpy(seeds), len(planes), m.crf).numpy()
        labels = np.array([0, *(c + 1 for c in classes)])[seeds]
        kept = (batch["score_mask"][0] != 255).numpy()
        truth += batch["score_mask"][0].numpy()[kept].tolist()
        predicted += labels[kept].tolist()
    return 100 * jaccard_score(truth, predicted, average="macro")


def test_the_best_threshold_is_an_extra_beside_the_headline(tested):
    m, results = tested
    swept = {t: cam_score(m, (3, 4), t, False) for t in (0.1, 0.3, 0.6)}
    assert results["test/cam_mean_iou_best_threshold"] == pytest.approx(max(swept.values()), rel=1e-4)
    assert results["test/best_threshold"] == pytest.approx(max(swept, key=swept.get))
    assert results["test/cam_mean_iou"] == pytest.approx(swept[0.3], rel=1e-4)


@pytest.mark.parametrize("best", [0.1, 0.3, 0.6])
def test_the_best_threshold_is_that_of_the_highest_score(best):
    m, _ = attached(module())
    logged = {}
    m.log_dict = logged.update
    m.log = lambda name, value: logged.update({name: value})
    truth = torch.tensor([[0, 1, 2, 3]])
    m.test_ranking.update(torch.eye(3), torch.eye(3).int())
    m.ranking_floor.update(torch.eye(3))
    for threshold in (0.1, 0.3, 0.6):
        wrong = torch.tensor([[0, 1, 2, 2 if threshold == 0.3 else 0]])
        m.test_scores[f"cam_{round(100 * threshold)}"].update(truth if threshold == best else wrong, truth)
    m.on_test_epoch_end()
    assert logged["test/best_threshold"] == best and logged["test/cam_mean_iou_best_threshold"] == 100


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cam_scales": []}, r"cam\.scales=\[\] must be one positive factor or more"),
        ({"cam_scales": [1.0, 0.0]}, r"cam\.scales=\[1\.0, 0\.0\] must be one positive"),
        ({"cam_threshold": 1.5}, r"cam\.threshold=1\.5 must be 0 or more and below 1"),
        ({"cam_threshold": -0.1}, r"cam\.threshold=-0\.1 must be 0 or more and below 1"),
    ],
)
def test_class_maps_that_cannot_be_made_are_one_sentence(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        module(**changes)


def test_every_score_has_its_floor(tested):
    _, results = tested
    scores = {name.removeprefix("test/") for name in results if name.startswith("test/")}
    floors = {name.removeprefix("floor/") for name in results if name.startswith("floor/")}
    assert scores - floors == {"best_threshold"}


def test_image_labels_change_class_maps_but_never_the_decoders_output():
    """Trap 3."""

    class Relabelled(Data):
        def test_dataloader(self):
            return [DataLoader([judged(n, [1, 1, 1]) for n in (0, 1, 2)], batch_size=None)]

    class Plain(Data):
        def test_dataloader(self):
            return [DataLoader([judged(n) for n in (0, 1, 2)], batch_size=None)]

    ours, theirs = (
        pl.Trainer(**QUIET).test(module(), datamodule=data(), verbose=False)[0] for data in (Plain, Relabelled)
    )
    assert ours["test/mean_iou"] == theirs["test/mean_iou"]
    assert ours["test/val_cam_mean_iou"] != theirs["test/val_cam_mean_iou"]


def test_a_test_in_mixed_precision_gives_the_same_names(tested):
    """The CRF inside it has no bfloat16 form."""
    (*results,) = pl.Trainer(**QUIET, precision="bf16-mixed").test(module(), datamodule=Data(), verbose=False)
    assert {name for part in results for name in part} == set(tested[1])


def test_the_baselines_untrained_decoder_is_not_judged():
    (*results,) = pl.Trainer(**QUIET).test(module(seg_loss="none"), datamodule=Data(), verbose=False)
    names = {name for part in results for name in part}
    assert "test/mean_iou" not in names and {"test/cam_mean_iou", "test/ranking_ap"} <= names


def test_data_without_any_true_mask_give_the_ranking_alone():
    class Unscored(Data):
        def test_dataloader(self):
            return [DataLoader([{k: v for k, v in judged(0).items() if k != "score_mask"}], batch_size=None)]

    (results,) = pl.Trainer(**QUIET).test(module(), datamodule=Unscored(), verbose=False)
    assert set(results) == {"test/ranking_ap", "floor/ranking_ap"}


def test_the_figure_shows_image_class_maps_decoder_and_truth(tested):
    m, _ = tested
    axes = m.figures("test")["segmentations"].axes
    captions = [ax.get_title() for ax in axes[:4]]
    assert captions == ["folder/image_0.jpg", "class maps", "decoder", "truth"] and len(axes) == 12


# ---- prediction ----------------------------------------------------------------------------------


def test_prediction_gives_palette_masks_overlays_and_class_names():
    m = module(predict_cams=True).eval()
    m.trainer = pl.Trainer(**QUIET)
    m.trainer.datamodule = Data()
    batch = {key: judged(1)[key] for key in ("image", "index", "name")}
    with torch.no_grad():
        (row,) = m.predict_step(batch, 0)
        mask = m(batch["image"])[1][0].argmax(dim=0).numpy()
    assert row["name"] == "folder/image_1.jpg"
    assert row["mask"].mode == "P" and np.array_equal(np.array(row["mask"]), mask)
    assert np.array_equal(np.array(row["mask"].convert("RGB")), PALETTE[mask])
    names = [Data.class_names[v - 1] for v in np.unique(mask) if v > 0]
    assert row["classes"] == "; ".join(names)
    assert all(isinstance(row[key], Image.Image) and row[key].size == (25, 21) for key in ("overlay", "cam"))


# ---- the networks of the experiments -------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "side", "decoder"),
    [
        (["experiment=isim_voc12"], 20, "DeepLabV3PlusHead"),
        (["experiment=isim_voc12", "model=isim_deeplabv3"], 20, "DeepLabV3Head"),
        (["experiment=isim_voc12", "variant=isim_resnest50"], 20, "DeepLabV3PlusHead"),
        (["experiment=isim_voc12_unet"], 10, "UNetDecoder"),
        (["experiment=isim_voc12_unet_transposed"], 10, "UNetDecoder"),
    ],
)
def test_320_pixels_give_class_maps_of_20_for_deeplab_and_10_for_u_net(words, side, decoder):
    from runs.building import build
    from runs.composition import to_plain

    config = to_plain(compose_config([*words, "data.root=x", "paths.run_dir=unused", "trainer.max_epochs=1"]))
    assert config["model"]["network"] == config["cam_network"]
    network = build(config["cam_network"]).train()
    assert type(network.decoder).__name__ == decoder
    frozen = not any(bn.training for bn in network.encoder.batch_norms())
    assert frozen == ("variant=isim_resnest50" not in words)
    with torch.no_grad():
        assert network.class_maps(torch.zeros(2, 3, 320, 320)).shape == (2, 20, side, side)
        assert network.eval()(torch.zeros(1, 3, 75, 61))[1].shape == (1, 21, 75, 61)
