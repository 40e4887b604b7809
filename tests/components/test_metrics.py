"""Shared metrics against counts made by hand."""

import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.metrics import top_k_accuracy_score

from components.metrics.accuracy import TopKAccuracy
from components.metrics.floors import MajorityFloor, beside_floors

LABELS = torch.tensor([0] * 8 + [1] * 2 + [2] * 3)


def test_accuracy_counts_samples_alike_and_not_classes():
    metric = TopKAccuracy(num_classes=3)
    metric.update(torch.zeros(13, dtype=torch.long), LABELS)
    assert float(metric.compute()) == pytest.approx(100 * 8 / 13)  # macro would say 33.3


@pytest.mark.parametrize("k", [1, 5])
def test_top_k_accuracy_is_scikit_learns_in_percent(k):
    scores = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 7
    metric = TopKAccuracy(num_classes=7, top_k=k)
    metric.update(scores[:20], labels[:20])
    metric.update(scores[20:], labels[20:])
    expected = 100 * top_k_accuracy_score(labels, scores, k=k, labels=range(7))
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-4)


def test_samples_of_unknown_label_do_not_count():
    metric = TopKAccuracy(num_classes=3, ignore_index=-1)
    metric.update(torch.eye(3), torch.tensor([0, -1, 1]))
    assert float(metric.compute()) == pytest.approx(50.0)


def test_majority_floor_is_scikit_learns_constant_classifier():
    metric = MajorityFloor(num_classes=3)
    metric.update(LABELS[:5])
    metric.update(LABELS[5:])
    constant = DummyClassifier(strategy="most_frequent").fit(LABELS[:, None], LABELS)
    assert float(metric.compute()) == pytest.approx(100 * constant.score(LABELS[:, None], LABELS))


def test_majority_floor_of_top_k_names_the_k_most_frequent_classes():
    for k, right in ((2, 11), (3, 13), (5, 13)):
        metric = MajorityFloor(num_classes=3, top_k=k)
        metric.update(LABELS)
        assert float(metric.compute()) == pytest.approx(100 * right / 13)


def test_scores_are_logged_each_beside_its_floor():
    scores = {name: torch.tensor(value) for name, value in (("a", 1.0), ("b", 2.0), ("floor_b", 3.0), ("floor_a", 4.0))}
    logged = {name: float(value) for name, value in beside_floors(scores, "train_").items()}
    assert logged == {"test/train_a": 1.0, "floor/train_a": 4.0, "test/train_b": 2.0, "floor/train_b": 3.0}
    assert set(beside_floors(scores)) == {"test/a", "floor/a", "test/b", "floor/b"}
