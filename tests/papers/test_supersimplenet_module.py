"""The module in small: regimes, the step, thresholds, rates, checkpoints without the frozen backbone."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

from lightning_modules.supersimplenet import DefectLoss, SuperSimpleNetModule
from lightning_modules.supersimplenet.module import BACKBONE, shrink_mask
from runs.errors import InputError
from tests.papers.test_supersimplenet_equations import extractor, generator, network


def module(**changes) -> SuperSimpleNetModule:
    settings = {
        "regime": "unsupervised",
        "network": network(),
        "anomaly": generator(noise_std=None, noise_rel=0.3),
        "loss": DefectLoss(0.5, "per_class", 4.0, True),
        "optimizer": torch.optim.AdamW,
        "score": "cls",
        "stop_grad": None,
        "supervised_clip_norm": 1.0,
        "lr_adaptor": 1e-4,
        "weight_decay_adaptor": 0.01,
        "lr_heads": 2e-4,
        "weight_decay_heads": 1e-5,
        "milestones": [0.8, 0.9],
        "decay": 0.4,
        "smoothing_sigma": 4.0,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    built = SuperSimpleNetModule(**{**settings, **changes})
    built.log = lambda *words, **settings: None
    return built


def images(count: int = 4, side: int = 64) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def prepared(**changes) -> SuperSimpleNetModule:
    built = module(**changes)
    with torch.no_grad():
        built.prepare(lambda: iter(images().split(2)))
    return built


def batch(defective: int = 2) -> dict:
    mask = torch.zeros(4, 64, 64, dtype=torch.int64)
    mask[:defective, 10:40, 10:40] = 1
    label = (torch.arange(4) < defective).long()
    return {"image": images(), "mask": mask, "label": label, "index": torch.arange(4), "name": list("abcd")}


# ---- regimes and the step ---------------------------------------------------------------------------


def test_a_regime_sets_the_stop_and_the_clipping_and_each_can_be_overridden():
    assert module().stop_grad and module().clip_norm is None
    supervised = module(regime="supervised")
    assert not supervised.stop_grad and supervised.clip_norm == 1.0
    assert module(regime="supervised", stop_grad=True).stop_grad
    assert module(regime="supervised", supervised_clip_norm=None).clip_norm is None


@pytest.mark.parametrize(
    ("regime", "of_trainer", "expected"),
    [
        ("unsupervised", None, None),
        ("supervised", None, 1.0),
        ("supervised", 5.0, 5.0),
        ("supervised", 0, None),
        ("unsupervised", 2.0, 2.0),
    ],
)
def test_gradients_are_clipped_as_regime_or_trainer_say(regime, of_trainer, expected):
    built, clipped = module(regime=regime), []
    built.clip_gradients = lambda optimizer, limit, algorithm: clipped.append((limit, algorithm))
    built.configure_gradient_clipping(None, of_trainer, None)
    assert clipped == ([] if expected is None else [(expected, "norm")])


def test_a_step_is_the_loss_of_adapted_duplicated_spoilt_features():
    """Written out from the pieces, with the same draws."""
    built = prepared(regime="supervised").train()
    torch.manual_seed(9)
    loss = built.training_step(batch(), 0)
    again = built.network
    for layer in again.modules():  # the step has moved the running statistics, which training does not read
        assert not isinstance(layer, torch.nn.Dropout)
    torch.manual_seed(9)
    adapted = again.adaptor(built.features(images()))
    real = shrink_mask(batch()["mask"], adapted.shape[-2:])
    found = built.anomaly(adapted, real, batch()["label"])
    spoilt = torch.cat([adapted, adapted]) + found.noise
    map_ = again.segmentation_head(spoilt)
    score = again.classification_head(spoilt, map_)
    expected = sum(built.loss(map_, found.mask, score, found.label).values())
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert len(found.label) == 8  # twice the batch


def test_a_last_batch_of_one_image_trains_because_it_is_duplicated():
    built = prepared().train()
    one = {name: value[:1] for name, value in batch(0).items()}
    built.training_step(one, 0).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in built.network.adaptor.parameters())


def test_cached_features_give_the_same_loss():
    built = prepared().train()
    with torch.no_grad():
        features = built.features(images())
    given = {**batch(0), "feature_map": features}
    del given["image"]
    losses = []
    for one in (batch(0), given):
        torch.manual_seed(2)
        losses.append(float(built.training_step(one, 0).detach()))
    assert losses[0] == losses[1]


def test_the_journals_head_sees_unadapted_features_with_the_same_noise():
    built = prepared(network=network(adapt_cls_features=False)).train()
    seen = {}
    built.network.classification_head.register_forward_pre_hook(lambda _, inputs: seen.update(cls=inputs[0]))
    built.network.segmentation_head.register_forward_pre_hook(lambda _, inputs: seen.update(seg=inputs[0]))
    built.training_step(batch(), 0)
    features = built.features(images())
    adapted = built.network.adaptor(features)
    noise = seen["seg"] - torch.cat([adapted, adapted])
    assert torch.allclose(seen["cls"] - torch.cat([features, features]), noise, atol=1e-5) and noise.abs().max() > 0.01


def test_masks_shrink_bilinearly_and_count_from_one_half():
    mask = torch.zeros(1, 8, 8, dtype=torch.int64)
    mask[0, :4, :2] = 1
    mask[0, 6, 6] = 1  # too small
    mask[0, :, 7] = 255  # unknown is no defect
    small = shrink_mask(mask, torch.Size([2, 4]))
    assert small.shape == (1, 1, 2, 4) and small[0, 0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


def test_training_without_a_prepared_backbone_is_refused():
    with pytest.raises(InputError, match=r"callbacks\.frozen_features is off"):
        module().on_train_start()
    prepared().on_train_start()


def test_the_scale_of_the_noise_is_logged_beside_that_of_the_features():
    built = module()
    with torch.no_grad():
        facts = built.prepare(lambda: iter(images().split(2)))
        adapted = built.network.adaptor(built.features(images()[:2]))
    assert facts["noise_ratio"] == pytest.approx(0.3)
    assert facts["feature_std"] == pytest.approx(float(adapted.std()), rel=1e-5)
    assert float(built.anomaly.sigma) == pytest.approx(facts["noise_std"])


def test_only_adaptor_and_heads_learn_each_at_its_rate():
    built = module()
    built.trainer = SimpleNamespace(max_epochs=300)
    answer = built.configure_optimizers()
    groups = {group["name"]: group for group in answer["optimizer"].param_groups}
    assert (groups["adaptor"]["lr"], groups["adaptor"]["weight_decay"]) == (1e-4, 0.01)
    assert (groups["heads"]["lr"], groups["heads"]["weight_decay"]) == (2e-4, 1e-5)
    learning = sum(p.numel() for group in groups.values() for p in group["params"])
    assert learning == sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert sorted(answer["lr_scheduler"].milestones) == [240, 270]  # of 300 epochs
    rates = []
    for _ in range(300):
        rates.append(answer["optimizer"].param_groups[1]["lr"])
        answer["optimizer"].step()
        answer["lr_scheduler"].step()
    assert rates[239] == 2e-4 and rates[240] == pytest.approx(0.8e-4) and rates[270] == pytest.approx(0.32e-4)


def test_without_milestones_there_is_no_schedule():
    built = module(milestones=[])
    built.trainer = SimpleNamespace(max_epochs=300)
    assert isinstance(built.configure_optimizers(), torch.optim.AdamW)
    endless = module()
    endless.trainer = SimpleNamespace(max_epochs=-1)
    with pytest.raises(InputError, match=r"shares of trainer\.max_epochs"):
        endless.configure_optimizers()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": network(cls_head=False)}, r"model\.score=cls needs the classification head"),
        ({"anomaly": generator(strategy="none")}, r"strategy=none leaves nothing anomalous .*regime=supervised"),
        ({"milestones": [240]}, r"milestones=\[240\] must be shares"),
    ],
)
def test_switches_that_exclude_each_other_are_answered(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        module(**changes)


# ---- inference --------------------------------------------------------------------------------------


def test_inference_adds_no_noise_and_takes_a_batch_of_one():
    built = prepared().eval()
    with torch.no_grad():
        maps, scores = built(images()[:1])
        again = built(images()[:1])
        pair = built(images()[:2])
    assert maps.shape == (1, 64, 64) and scores.shape == (1,)
    assert torch.equal(maps, again[0])
    assert torch.allclose(pair[0][:1], maps, atol=1e-5) and torch.allclose(pair[1][:1], scores, atol=1e-5)


def test_without_the_head_the_score_is_the_highest_value_of_the_map():
    built = prepared(network=network(cls_head=False), score="map_max").eval()
    with torch.no_grad():
        maps, scores = built(images())
    assert torch.equal(scores, maps.amax(dim=(1, 2)))


def test_thresholds_come_from_the_validation_split_and_stay_without_one():
    built = prepared()
    scores, labels = torch.tensor([-2.0, -1.0, 1.0, 3.0]), torch.tensor([0, 0, 1, 1])
    built.val_images.update(scores, labels)
    maps = torch.stack([torch.full((64, 64), value) for value in (-2.0, -1.5, 0.5, 0.6)])
    built.val_maps.update(maps, labels[:, None, None].expand(4, 64, 64))
    built.on_validation_epoch_end()
    assert built.thresholds.tolist() == pytest.approx([0.0, -0.5])
    built.val_images.update(scores[:2], labels[:2])  # normal images alone say nothing about F1
    built.val_maps.update(maps[:2], torch.full((2, 64, 64), 255))
    built.on_validation_epoch_end()
    assert built.thresholds.tolist() == pytest.approx([0.0, -0.5])


def test_a_prediction_has_score_decision_map_mask_and_heat_map_at_the_pictures_own_size():
    built = prepared().eval()
    with torch.no_grad():
        _, scores = built(images()[:1])
        built.thresholds.copy_(torch.tensor([float(scores[0]) - 1, 0.0]))
        photograph = torch.randint(0, 256, (1, 3, 50, 90), dtype=torch.uint8)
        (row,) = built.predict_step({"image": images()[:1], "whole": photograph, "name": ["a.png"]}, 0)
    assert row["score"] == pytest.approx(1 / (1 + math.exp(-float(scores[0]))), rel=1e-5)
    assert row["defective"] is True
    assert row["score_threshold"] == pytest.approx(1 / (1 + math.exp(1 - float(scores[0]))), rel=1e-5)
    assert row["map"].shape == (50, 90)
    assert np.array_equal(np.asarray(row["mask"]) > 0, row["map"] > 0)
    assert row["heat_map"].size == (90, 50) and row["heat_map"].mode == "RGB"


def test_prediction_begins_with_the_thresholds_on_the_scales_of_scores_and_maps(caplog):
    built = prepared().eval()
    built.thresholds.copy_(torch.tensor([-0.4, 0.3]))
    with caplog.at_level("INFO", logger="reprise"):
        built.on_predict_start()
    assert len(caplog.messages) == 1
    assert "score (0 to 1) is above 0.4013" in caplog.text and "the map is above 0.3000" in caplog.text


@pytest.mark.parametrize("calibrated", [True, False])
def test_with_a_threshold_the_test_says_what_its_decisions_are_worth(calibrated):
    built, logged = prepared(), {}
    built.log_dict = logged.update
    if calibrated:
        built.thresholds[0] = 0.5
    built.test_scores.update(torch.tensor([0.1, 0.7, 0.4, 2.0]), torch.tensor([0, 0, 1, 1]))
    built.test_highest.update(torch.tensor([0.1, 0.7, 0.4, 2.0]), torch.tensor([0, 0, 1, 1]))
    built.test_maps.update(torch.rand(4, 8, 8), torch.eye(8, dtype=torch.int64).expand(4, 8, 8))
    built.on_test_epoch_end()
    found = {name: float(logged[name]) for name in logged if name.partition("/")[2] in ("f1", "precision", "recall")}
    expected = {"test/f1": 50, "test/precision": 50, "test/recall": 50}  # one of two is found, one of two is right
    expected |= {"floor/f1": 200 / 3, "floor/precision": 50, "floor/recall": 100}
    assert found == (pytest.approx(expected) if calibrated else {})


def test_colours_of_a_map_do_not_depend_on_other_images():
    """The official evaluation scales maps over the whole test set; no picture or decision may."""
    from lightning_modules.supersimplenet.figures import coloured

    image = np.full((4, 4, 3), 100, dtype=np.uint8)
    flat = coloured(image, np.zeros((4, 4)), 0.0)
    spot = np.zeros((4, 4))
    spot[0, 0] = 50
    assert np.array_equal(coloured(image, spot, 0.0)[1:], flat[1:])


# ---- checkpoints --------------------------------------------------------------------------------------


def save(built: SuperSimpleNetModule) -> dict:
    checkpoint = {"state_dict": dict(built.state_dict())}
    built.on_save_checkpoint(checkpoint)
    return checkpoint


def load(built: SuperSimpleNetModule, checkpoint: dict) -> SuperSimpleNetModule:
    checkpoint = {**checkpoint, "state_dict": dict(checkpoint["state_dict"])}
    built.on_load_checkpoint(checkpoint)
    built.load_state_dict(checkpoint["state_dict"])
    return built


@pytest.fixture
def weights_file(tmp_path):
    torch.manual_seed(77)
    path = tmp_path / "resnet18.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    return path


def from_file(path, **changes) -> SuperSimpleNetModule:
    backbone = extractor(checkpoint_path=None if path is None else str(path))
    return module(network=network(extractor=backbone), anomaly=generator(), **changes)


def test_a_checkpoint_leaves_out_a_backbone_that_can_be_had_again(weights_file):
    built = from_file(weights_file)
    with torch.no_grad():
        built.prepare(lambda: iter(images().split(2)))
    checkpoint = save(built)
    assert not any(name.startswith(BACKBONE) for name in checkpoint["state_dict"])
    assert checkpoint["backbone"]["backbone"] == "resnet18" and len(checkpoint["backbone"]["digest"]) == 32
    # As eval.py builds it: nothing about weights in the config.
    again = load(from_file(None), checkpoint).eval()
    built.eval()
    with torch.no_grad():
        assert torch.equal(again(images())[0], built(images())[0])
    assert not again.network.extractor.is_random  # and a run that goes on leaves it out again
    assert not any(name.startswith(BACKBONE) for name in save(again)["state_dict"])


def test_random_backbone_weights_are_kept_because_nothing_else_has_them():
    built = prepared().eval()
    checkpoint = save(built)
    assert any(name.startswith(BACKBONE) for name in checkpoint["state_dict"])
    torch.manual_seed(123)
    again = load(module(), checkpoint).eval()
    with torch.no_grad():
        assert torch.equal(again(images())[0], built(images())[0])


def test_another_backbone_is_refused_in_words():
    checkpoint = save(prepared())
    other = module(network=network(extractor=extractor(backbone="resnet34")))
    with pytest.raises(InputError, match=r"trained on features of resnet18, not of .*backbone=resnet34"):
        load(other, checkpoint)


def test_other_weights_of_the_same_backbone_are_refused_in_words(weights_file, tmp_path):
    built = from_file(weights_file)
    with torch.no_grad():
        built.prepare(lambda: iter(images().split(2)))
    checkpoint = save(built)
    torch.manual_seed(78)
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("resnet18").state_dict(), other)
    with pytest.raises(InputError, match=r"other\.pth holds other weights than the checkpoint was trained with"):
        load(from_file(other), checkpoint)
    moved = tmp_path / "moved.pth"
    weights_file.rename(moved)
    with pytest.raises(InputError, match=r"its weights are not to be had: .*no weights file.*checkpoint_path=<file>"):
        load(from_file(None), checkpoint)
    load(from_file(moved), checkpoint)  # where the file lies now


def test_a_file_of_weights_beside_a_checkpoint_that_holds_its_own_is_refused(weights_file):
    with pytest.raises(InputError, match="the checkpoint holds the backbone that it was trained with"):
        load(from_file(weights_file), save(prepared()))


def test_pretrained_weights_that_cannot_be_fetched_are_answered(monkeypatch):
    backbone = extractor(pretrained=True)

    def offline(pretrained):
        raise OSError("no network")

    monkeypatch.setattr(backbone, "_build", offline)
    with pytest.raises(
        InputError, match=r"resnet18 could not be loaded \(OSError\): go online once, .*model=supersimplenet_small"
    ):
        backbone.load_initial_weights()


def test_thresholds_and_noise_travel_in_the_checkpoint():
    built = prepared()
    built.thresholds.copy_(torch.tensor([0.3, -0.2]))
    again = load(module(), save(built))
    assert again.thresholds.tolist() == pytest.approx([0.3, -0.2])
    assert float(again.anomaly.sigma) == pytest.approx(float(built.anomaly.sigma))
    assert again.image_size.tolist() == [64, 64]


def test_a_checkpoint_from_before_training_is_not_exported():
    with pytest.raises(InputError, match="written before training began"):
        module().export_model()
