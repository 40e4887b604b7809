"""The scores of segmentation and ranking against sklearn and torchmetrics."""

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score, label_ranking_average_precision_score
from torchmetrics.classification import MulticlassJaccardIndex

from components.metrics.segmentation import SegmentationScores
from lightning_modules.isim.scores import ConstantRanking


def maps(classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, classes, (3, 8, 9), generator=generator)
    target = torch.where(torch.rand(3, 8, 9, generator=generator) < 0.5, predicted, predicted.roll(1))
    target[:, 0] = 255
    return predicted, target


def test_mean_iou_is_over_the_data_set_not_over_images_and_leaves_void_out():
    predicted, target = maps()
    scores = SegmentationScores(5)
    for p, t in zip(predicted, target, strict=True):
        scores.update(p, t)
    kept = target != 255
    each = jaccard_score(target[kept], predicted[kept], average=None)
    values = scores.compute()
    assert float(values["mean_iou"]) == pytest.approx(100 * each.mean(), rel=1e-5)
    assert float(values["mean_iou_foreground"]) == pytest.approx(100 * each[1:].mean(), rel=1e-5)
    reference = MulticlassJaccardIndex(5, average="macro", ignore_index=255)(predicted, target)
    assert float(values["mean_iou"]) == pytest.approx(100 * float(reference), rel=1e-5)


def test_the_floor_is_the_score_of_all_background():
    predicted, target = maps()
    scores, nothing = SegmentationScores(5), SegmentationScores(5)
    scores.update(predicted, target)
    nothing.update(torch.zeros_like(predicted), target)
    for part in ("mean_iou", "mean_iou_foreground"):
        assert float(scores.compute()[f"floor_{part}"]) == pytest.approx(float(nothing.compute()[part]))
    kept = target[target != 255]
    assert float(scores.compute()["floor_mean_iou"]) == pytest.approx(100 * float((kept == 0).float().mean()) / 5)


def test_void_is_never_class_20():
    predicted, target = torch.full((4, 4), 20), torch.full((4, 4), 255)
    scores = SegmentationScores(21)
    scores.update(predicted, target)
    assert int(scores.counts.sum()) == 0


def test_the_ranking_floor_ranks_by_frequency():
    labels = (np.random.default_rng(0).random((30, 4)) < [0.7, 0.4, 0.1, 0.2]).astype(int)
    floor = ConstantRanking(4)
    for part in np.array_split(labels, 7):
        floor.update(torch.from_numpy(part).float())
    expected = label_ranking_average_precision_score(labels, np.tile(labels.mean(0), (30, 1)))
    assert float(floor.compute()) == pytest.approx(100 * expected, rel=1e-5)
