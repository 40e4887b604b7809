"""Stereo scores against counts made pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from components.metrics.stereo import DisparityErrors, surface_scores

THRESHOLDS = [1, 2, 4]


def some_pair(seed: int, height: int = 6, width: int = 9):
    random = torch.Generator().manual_seed(seed)
    truth = 10 * torch.rand(height, width, generator=random)
    dense = (truth + torch.randn(height, width, generator=random) * 2).round()
    refined = dense + 0.3
    consistent = torch.rand(height, width, generator=random) > 0.3
    valid = torch.rand(height, width, generator=random) > 0.1
    truth[torch.rand(height, width, generator=random) > 0.7] = torch.nan
    return dense, refined, consistent & valid, valid, truth


def counted(pairs) -> dict[str, float]:
    """The scores by a loop over pixels."""
    known = passed = valid_pixels = removed = 0
    wrong, wrong_passed = dict.fromkeys(THRESHOLDS, 0), dict.fromkeys(THRESHOLDS, 0)
    for dense, refined, consistent, valid, truth in pairs:
        for y in range(truth.shape[0]):
            for x in range(truth.shape[1]):
                valid_pixels += bool(valid[y, x])
                removed += bool(valid[y, x]) and not consistent[y, x]
                if math.isnan(truth[y, x]):
                    continue
                known += 1
                passed += bool(consistent[y, x])
                for k in THRESHOLDS:
                    wrong[k] += abs(float(truth[y, x]) - float(dense[y, x])) >= k
                    if consistent[y, x]:
                        wrong_passed[k] += abs(float(truth[y, x]) - float(refined[y, x])) >= k
    return {
        "inconsistent": 100 * removed / valid_pixels,
        "completion": 100 * passed / known,
        **{f"{k}pe_all": 100 * wrong[k] / known for k in THRESHOLDS},
        **{f"{k}pe_cons": 100 * wrong_passed[k] / passed for k in THRESHOLDS},
    }


def test_point_errors_of_several_pairs_are_those_of_all_their_pixels():
    pairs = [some_pair(0), some_pair(1, 4, 5)]
    metric = DisparityErrors(THRESHOLDS)
    for pair in pairs:
        metric.update(*pair)
    assert {k: float(v) for k, v in metric.compute().items()} == pytest.approx(counted(pairs))


def test_an_error_of_exactly_k_counts():
    truth = torch.tensor([[5.0, 5.0]])
    metric, there = DisparityErrors([2]), torch.ones(1, 2, dtype=torch.bool)
    metric.update(torch.tensor([[7.0, 6.9]]), truth, there, there, truth)
    assert float(metric.compute()["2pe_all"]) == 50


def test_pixels_without_truth_count_nowhere_and_not_as_disparity_zero():
    truth = torch.tensor([[torch.nan, torch.nan, 5.0]])
    dense, there = torch.tensor([[0.0, 9.0, 5.0]]), torch.ones(1, 3, dtype=torch.bool)
    metric = DisparityErrors([1])
    metric.update(dense, dense, there, there, truth)
    scores = metric.compute()
    assert float(scores["1pe_all"]) == 0 and float(scores["completion"]) == 100


def test_without_truth_only_consistency_is_scored():
    there = torch.tensor([[True, True, True, False]])
    metric = DisparityErrors([1])
    metric.update(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([[True, False, True, False]]), there, None)
    assert {k: float(v) for k, v in metric.compute().items()} == pytest.approx({"inconsistent": 100 / 3})


def test_surface_scores_are_those_of_a_count_of_cells():
    random = np.random.default_rng(0)
    truth, height = random.normal(0, 2, (8, 9)), random.normal(0, 2, (8, 9))
    truth[random.random((8, 9)) < 0.2] = np.nan
    height[random.random((8, 9)) < 0.2] = np.nan
    true_positive = false_positive = false_negative = 0
    for t, h in zip(truth.ravel(), height.ravel(), strict=True):
        hit = abs(t - h) <= 1
        true_positive += hit
        false_positive += not np.isnan(h) and not hit
        false_negative += not np.isnan(t) and not hit
    recall = true_positive / (true_positive + false_negative)
    precision = true_positive / (true_positive + false_positive)
    assert surface_scores(torch.tensor(height), torch.tensor(truth), 1.0) == pytest.approx(
        {
            "recall": recall,
            "precision": precision,
            "jaccard": true_positive / (true_positive + false_positive + false_negative),
            "f": 2 * precision * recall / (precision + recall),
        }
    )


def test_the_papers_own_four_scores_fit_these_definitions():
    recall, precision = 0.906, 0.836  # Table 1
    cells = 100_000
    truth = torch.zeros(2 * cells)
    height = torch.full((2 * cells,), torch.nan)
    truth[cells:] = torch.nan
    right = round(recall * cells)
    height[:right] = 0.5
    height[cells : cells + round(right / precision) - right] = 0.0
    scores = surface_scores(height, truth, 1.0)
    assert scores["jaccard"] == pytest.approx(0.769, abs=1e-3)
    assert scores["f"] == pytest.approx(0.870, abs=1e-3)


def test_rasters_that_are_not_aligned_are_refused():
    with pytest.raises(ValueError, match="not aligned"):
        surface_scores(torch.zeros(2, 3), torch.zeros(3, 2), 1.0)
