"""Regression scores against numpy and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.model_selection import KFold

from components.metrics.regression import fold_q2, regression_scores

GENERATOR = np.random.default_rng(0)
TRUE = GENERATOR.normal(4, 1.5, 101)
PREDICTED = TRUE + GENERATOR.normal(0.2, 0.7, 101)


def test_scores_are_those_of_scikit_learn_batch_by_batch():
    scores = regression_scores()
    for part in np.array_split(np.arange(101), 4):
        scores.update(torch.tensor(PREDICTED[part]), torch.tensor(TRUE[part]))
    error = root_mean_squared_error(TRUE, PREDICTED)
    expected = {
        "r2": r2_score(TRUE, PREDICTED),
        "rmse": error,
        "mae": mean_absolute_error(TRUE, PREDICTED),
        "rpd": np.std(TRUE, ddof=1) / error,
    }
    found = scores.compute()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-12), name


def test_the_mean_over_folds_of_any_sizes_is_q2_of_all_out_of_fold_predictions():
    parts = [
        fold_q2(torch.tensor(PREDICTED[test]), torch.tensor(TRUE[test]), torch.tensor(TRUE[train]), 4)
        for train, test in KFold(4, shuffle=True, random_state=1).split(TRUE)
    ]
    assert len({len(test) for _, test in KFold(4).split(TRUE)}) == 2  # unequal folds
    assert float(torch.stack(parts).mean()) == pytest.approx(r2_score(TRUE, PREDICTED), abs=1e-12)
