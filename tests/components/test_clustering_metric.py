"""Clustering accuracy against all namings of clusters."""

from itertools import permutations

import numpy as np
import pytest
import torch

from components.metrics.clustering import ClusteringAccuracy


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
