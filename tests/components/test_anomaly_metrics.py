"""Anomaly metrics against the double loops of their definitions, scikit-learn, and the reference of two maps."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
)

from components.metrics.anomaly import (
    AnomalyMapScores,
    ImageAnomalyScores,
    area_to,
    best_f1_threshold,
    decision_scores,
    map_scores,
    region_weights,
    with_prefix,
)


def reference_pair() -> tuple[np.ndarray, np.ndarray]:
    """Two maps and masks of 64 x 64 pixels whose scores are known from an independent implementation."""
    y, x = np.mgrid[:64, :64]
    masks = np.zeros((2, 64, 64), dtype=np.uint8)
    masks[0, 10:20, 12:30] = masks[0, 40:44, 50:54] = masks[1, 30:50, 5:11] = 1
    maps = np.stack(
        [
            np.exp(-((y - 15) ** 2 + (x - 22) ** 2) / 128) + 0.5 * np.exp(-((y - 42) ** 2 + (x - 50) ** 2) / 32),
            0.8 * np.exp(-((y - 38) ** 2 + (x - 9) ** 2) / 200) + 0.3 * np.exp(-((y - 8) ** 2 + (x - 50) ** 2) / 50),
        ]
    )
    return maps, masks


def aupro_by_thresholds(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """The definition: for every threshold the mean share of each region, and the share of normal pixels."""
    labels = [ndimage.label(mask == 1, structure=np.ones((3, 3)))[0] for mask in masks]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        shares = [
            (maps[i][label == region] >= threshold).mean()
            for i, label in enumerate(labels)
            for region in range(1, label.max() + 1)
        ]
        curve.append(((maps[masks == 0] >= threshold).mean(), np.mean(shares)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        end = min(x1, limit)
        if end > x0:
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return 100 * area / limit


def scores_of(maps, masks) -> dict[str, float]:
    metric = AnomalyMapScores()
    for one_map, mask in zip(maps, masks, strict=True):
        metric.update(torch.tensor(one_map)[None], torch.tensor(mask)[None])
    return {name: float(value) for name, value in metric.compute().items()}


def test_the_reference_pair_has_its_known_scores():
    maps, masks = reference_pair()
    scores = scores_of(maps, masks)
    assert scores["aupro"] == pytest.approx(91.193, abs=1e-3)
    assert scores["pixel_auroc"] == pytest.approx(98.655, abs=1e-3)
    assert scores["pixel_ap"] == pytest.approx(77.270, abs=1e-3)
    whole = map_scores(maps.ravel(), masks.ravel() == 1, region_weights(masks).ravel(), fpr_limit=1.0)
    assert whole["aupro"] == pytest.approx(97.358, abs=1e-3)


def test_scores_of_random_maps_with_ties_follow_their_definitions():
    generator = np.random.default_rng(0)
    masks = (ndimage.gaussian_filter(generator.normal(size=(3, 24, 20)), (0, 2, 2)) > 0.15).astype(np.uint8)
    maps = np.round(generator.normal(size=masks.shape) + 0.8 * masks, 1)  # many equal values
    scores = scores_of(maps, masks)
    truth, values = masks.ravel(), maps.astype(np.float32).ravel()
    assert scores["pixel_auroc"] == pytest.approx(100 * roc_auc_score(truth, values), abs=1e-9)
    assert scores["pixel_ap"] == pytest.approx(100 * average_precision_score(truth, values), abs=1e-9)
    assert scores["aupro"] == pytest.approx(aupro_by_thresholds(maps.astype(np.float32), masks, 0.3), abs=1e-9)


def test_regions_touch_at_corners_and_weigh_the_same_whatever_their_size():
    mask = np.zeros((1, 8, 8), dtype=np.uint8)
    mask[0, 0, 0] = mask[0, 1, 1] = 1  # one region of two pixels
    mask[0, 4:8, 4:8] = 1  # one of sixteen
    weights = region_weights(mask)[0]
    assert weights[0, 0] == weights[1, 1] == pytest.approx(0.25)
    assert weights[5, 5] == pytest.approx(1 / 32)
    assert weights.sum() == pytest.approx(1)


def test_aupro_is_taken_to_03_and_not_over_the_whole_curve():
    maps, masks = reference_pair()
    assert scores_of(maps, masks)["aupro"] < 95 < 97.3  # the whole curve would give 97.358


def test_chance_is_what_random_maps_score():
    generator = np.random.default_rng(1)
    masks = np.zeros((4, 64, 64), dtype=np.uint8)
    masks[:, 8:24, 8:40] = masks[:, 40:60, 40:60] = 1
    scores = scores_of(generator.normal(size=masks.shape), masks)
    for name in ("pixel_auroc", "pixel_ap", "aupro"):
        assert scores[name] == pytest.approx(scores[f"floor_{name}"], abs=2)
    assert scores["floor_aupro"] == 15


def test_unknown_pixels_count_for_nothing():
    maps, masks = reference_pair()
    unknown = masks.copy()
    unknown[1, 55:60] = 255
    spoilt = maps.copy()
    spoilt[1, 55:60] = 1e6
    assert scores_of(spoilt, unknown) == scores_of(maps, unknown)
    assert scores_of(spoilt, unknown) != scores_of(spoilt, masks)


def test_maps_whose_defects_nobody_marked_have_no_scores_and_need_no_warning():
    masks = np.zeros((3, 4, 4), dtype=np.uint8)
    masks[1:] = 255
    maps = np.random.default_rng(0).normal(size=masks.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores_of(maps, masks) == {}
        masks[2, :2], masks[2, 2:] = 0, 1  # one of them has a mask
        assert np.isfinite(scores_of(maps, masks)["aupro"])


def test_scores_do_not_depend_on_how_images_are_batched():
    maps, masks = reference_pair()
    whole = AnomalyMapScores()
    whole.update(torch.tensor(maps), torch.tensor(masks))
    assert {name: float(value) for name, value in whole.compute().items()} == scores_of(maps, masks)


def image_scores(scores, labels, batches: int = 1) -> dict[str, float]:
    metric = ImageAnomalyScores()
    for part in zip(torch.tensor(scores).chunk(batches), torch.tensor(labels).chunk(batches), strict=True):
        metric.update(*part)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("batches", [1, 4])
def test_image_scores_are_those_of_scikit_learn_whatever_the_scale_of_a_batch(batches):
    """Raw scores of one batch may all lie in 0..1, those of another far beyond: no sigmoid may part them."""
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 40)
    scores = np.sort(generator.normal(size=40) * 30)
    scores[20:30] = np.linspace(0.05, 0.95, 10)
    scores = np.sort(scores)
    found = image_scores(scores, labels, batches)
    assert found["auroc"] == pytest.approx(100 * roc_auc_score(labels, scores))
    assert found["ap"] == pytest.approx(100 * average_precision_score(labels, scores))
    assert found["floor_auroc"] == 50
    assert found["floor_ap"] == pytest.approx(100 * labels.mean())


@pytest.mark.parametrize("value", [0, 1])
def test_a_set_of_one_class_gives_nan_and_says_so(value):
    with pytest.warns(UserWarning, match=f"images are all {'defective' if value else 'normal'}.*nan"):
        found = image_scores([0.1, 0.2, 0.9], [value] * 3)
    assert np.isnan(found["auroc"]) and np.isnan(found["ap"])
    with pytest.warns(UserWarning, match="pixels are all"):
        pixels = scores_of(np.zeros((1, 4, 4)), np.full((1, 4, 4), value, dtype=np.uint8))
    assert all(np.isnan(pixels[name]) for name in ("pixel_auroc", "pixel_ap", "aupro"))


def test_the_area_ends_in_the_middle_of_a_segment():
    assert area_to(np.array([0.0, 0.2, 0.6]), np.array([0.0, 1.0, 0.0]), 0.4) == pytest.approx(0.1 + 0.15)


def test_the_best_threshold_is_that_of_every_threshold_tried():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 60)
    scores = np.round(generator.normal(size=60) + labels, 1)
    threshold, f1 = best_f1_threshold(torch.tensor(scores), torch.tensor(labels))
    precision, recall, _ = precision_recall_curve(labels, scores)
    every = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert float(f1) == pytest.approx(every.max())
    called = scores > float(threshold)
    assert 2 * (called & (labels == 1)).sum() / (called.sum() + labels.sum()) == pytest.approx(float(f1))
    assert float(threshold) not in scores  # midway, so that rounding turns nothing over


def decisions(scores, labels, threshold: float) -> dict[str, float]:
    found = decision_scores(torch.tensor(scores), torch.tensor(labels), torch.tensor(threshold))
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("threshold", [-0.3, 0.4, 1.1])
def test_decisions_are_worth_what_scikit_learn_says_beside_calling_everything_defective(threshold):
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 2, 50)
    scores = generator.normal(size=50) + labels
    expected = {}
    for prefix, called in (("", scores > threshold), ("floor_", np.ones(50, dtype=bool))):
        values = precision_recall_fscore_support(labels, called, average="binary")
        expected |= {f"{prefix}{name}": 100 * values[i] for i, name in enumerate(("precision", "recall", "f1"))}
    assert decisions(scores, labels, threshold) == pytest.approx(expected)


def test_decisions_that_find_nothing_are_worth_nothing_and_without_defects_there_is_nothing_to_find():
    found = decisions([0.1, 0.2, 0.3], [0, 1, 0], 0.5)
    assert (found["f1"], found["precision"], found["recall"]) == (0, 0, 0)
    assert found["floor_f1"] == pytest.approx(50)
    assert decisions([0.1, 0.9], [0, 0], 0.5) == {}


def test_a_prefix_keeps_floors_beside_their_scores():
    one = torch.tensor(1.0)
    assert with_prefix({"ap": one, "floor_ap": one}, "seg_") == {"seg_ap": one, "floor_seg_ap": one}
