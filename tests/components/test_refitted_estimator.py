"""Estimators of a library travel as rows: the same answers from a checkpoint, and no silent change."""

from functools import partial

import pytest
import torch
from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.neighbors import LocalOutlierFactor

from components.refitted_estimator import RefittedEstimator
from runs.errors import InputError

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (partial(RandomForestClassifier, 5, random_state=1), (X[:, 0] > 0).long()),
        (partial(RandomForestRegressor, 5, random_state=1), X[:, 0]),
        (partial(IsolationForest, n_estimators=5, random_state=1), None),
        (partial(LocalOutlierFactor, novelty=True), None),
    ],
)
def test_a_loaded_state_answers_as_the_fitted_one(make, wanted, tmp_path):
    fitted, loaded = RefittedEstimator(make), RefittedEstimator(make)
    fitted.fit(X, wanted)
    torch.save(fitted.state_dict(), tmp_path / "state.pt")
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    new = torch.randn(10, 3, generator=torch.Generator().manual_seed(1)).double().numpy()
    assert loaded.estimator.predict(new).tolist() == fitted.estimator.predict(new).tolist()
    if wanted is not None:
        kind = "i" if wanted.dtype == torch.int64 else "f"
        assert loaded.estimator.predict(new).dtype.kind == kind


def test_an_estimator_that_fits_otherwise_is_found_out():
    fitted = RefittedEstimator(partial(RandomForestRegressor, 5, random_state=1))
    fitted.fit(X, X[:, 0])
    other = RefittedEstimator(partial(RandomForestRegressor, 5, random_state=2))
    other.load_state_dict(fitted.state_dict())
    with pytest.raises(InputError, match="predicts otherwise"):
        other.estimator.predict(X.numpy())


def test_a_checkpoint_of_an_unfinished_fit_says_so():
    with pytest.raises(InputError, match="go on with it"):
        RefittedEstimator(partial(RandomForestRegressor, 5)).estimator.predict(X.numpy())
