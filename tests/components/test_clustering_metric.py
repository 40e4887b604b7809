"""Clustering accuracy against all namings of clusters."""

from itertools import permutations

import numpy as np
import pytest
import torch

from components.metrics.clustering import ClusteringAccuracy, MatchedPrecisionRecall


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (3, 5), (5, 3), (1, 3)])
def test_accuracy_is_the_best_over_all_one_to_one_namings(clusters, classes):
    generator = np.random.default_rng(clusters * 10 + classes)
    found, true = generator.integers(clusters, size=80), generator.integers(classes, size=80)
    size = max(clusters, classes)
    best = max(np.mean(np.array(naming)[found] == true) for naming in permutations(range(size)))
    metric = ClusteringAccuracy(clusters, classes)
    for part in np.array_split(np.arange(80), 3):
        metric.update(torch.tensor(found[part]), torch.tensor(true[part]))
    assert float(metric.compute()) == pytest.approx(100 * best, abs=1e-4)


def test_names_of_clusters_do_not_matter_and_one_cluster_scores_the_majority():
    true = torch.tensor([0, 0, 0, 1, 1, 2])
    assert float(ClusteringAccuracy(3, 3)(torch.tensor([2, 2, 2, 0, 0, 1]), true)) == 100.0
    assert float(ClusteringAccuracy(1, 3)(torch.zeros(6, dtype=torch.long), true)) == 50.0


def contingency(table: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clusters (rows) and classes (columns) of each point."""
    counts = torch.tensor(table)
    cells = torch.nonzero(counts).repeat_interleave(counts[counts > 0], dim=0)
    return cells[:, 0], cells[:, 1]


def matched(table: list[list[int]]) -> dict[str, float]:
    metric = MatchedPrecisionRecall(len(table), len(table[0]))
    clusters, classes = contingency(table)
    for part in torch.arange(len(clusters)).chunk(3):
        metric.update(clusters[part], classes[part])
    return {name: float(value) for name, value in metric.compute().items()}


def test_f_is_the_harmonic_mean_of_the_means_not_the_mean_of_each_class():
    found = matched([[8, 1], [2, 9]])
    precision, recall = (8 / 9 + 9 / 11) / 2, (8 / 10 + 9 / 10) / 2
    of_each = np.mean([2 * 8 / (9 + 10), 2 * 9 / (11 + 10)])
    assert found["precision"] == pytest.approx(precision) and found["recall"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["f1"] != pytest.approx(of_each, abs=1e-4)


def test_a_class_names_one_cluster_alone_and_the_most_points_decide():
    """By purity both clusters would be class 0, and the recall of class 1 would be nothing or all."""
    found = matched([[6, 4], [5, 0]])  # naming 0-1, 1-0 has 9 points, 0-0, 1-1 has 6
    assert found["precision"] == pytest.approx((5 / 5 + 4 / 10) / 2)
    assert found["recall"] == pytest.approx((5 / 11 + 4 / 4) / 2)


def test_a_class_without_a_cluster_counts_0_and_one_without_points_not_at_all():
    found = matched([[5, 5, 0]])
    assert found["precision"] == pytest.approx(0.5 / 2) and found["recall"] == pytest.approx(1 / 2)


def test_perfect_clusters_score_1_under_any_names():
    assert matched([[0, 7, 0], [0, 0, 2], [4, 0, 0]]) == pytest.approx({"precision": 1, "recall": 1, "f1": 1})
