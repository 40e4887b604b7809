"""What BT-MA is compared with, against scikit-learn and loops."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC, LinearSVC

from datamodules.table import as_tensor
from lightning_modules.binary_tree_multilabel import BinaryRelevanceModule, LabelPowersetModule, MLkNNModule
from lightning_modules.binary_tree_multilabel.svm import SVMSettings
from runs.errors import InputError


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    X = (generator.uniform(size=(150, 30)) < 0.25).astype(float)
    Y = (X @ generator.normal(size=(30, 5)) + generator.normal(size=(150, 5)) > 0.7).astype(np.int64)
    Y[:, 4] = 0
    Y[3, 4] = 1
    return X[:110], Y[:110], X[110:]


def fit(model, X, Y):
    model.fit_closed_form({"features": as_tensor(X), "label": torch.from_numpy(Y), "index": torch.arange(len(Y))})
    assert model.is_fitted()
    return model


def linear_svc():
    return LinearSVC(C=1.0, tol=1e-10, intercept_scaling=1e3, dual=False, max_iter=10**6)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("wrap", [np.asarray, sparse.csr_array])
def test_binary_relevance_is_scikit_learns_one_against_rest(rows, kernel, wrap):
    X, Y, new = rows
    model = fit(BinaryRelevanceModule(SVMSettings(kernel, 1.0, None), "margin", "high_index"), wrap(X), Y)
    theirs = OneVsRestClassifier(linear_svc() if kernel == "linear" else SVC(gamma="scale")).fit(X, Y)
    answer = model.answer(as_tensor(wrap(new)))
    np.testing.assert_array_equal(answer.label, theirs.predict(new))
    np.testing.assert_allclose(answer.scores, theirs.decision_function(new), atol=1e-3)


def test_a_label_that_no_training_row_has_is_never_said(rows):
    X, Y, new = rows
    Y = Y.copy()
    Y[:, 2] = 0
    model = fit(BinaryRelevanceModule(SVMSettings("linear", 1.0, None), "hard", "high_index"), X, Y)
    assert not model(as_tensor(new))[:, 2].any() and model(as_tensor(new)).any()


def test_label_powerset_is_scikit_learns_classifier_of_label_sets(rows):
    X, Y, new = rows
    model = fit(LabelPowersetModule(SVMSettings("linear", 1.0, None), "margin", "high_index"), X, Y)
    sets, which = np.unique(Y, axis=0, return_inverse=True)
    theirs = linear_svc().fit(X, which)
    answer = model.answer(as_tensor(new))
    np.testing.assert_array_equal(answer.label, sets[theirs.predict(new)])
    margin = theirs.decision_function(new)
    for j in range(5):
        np.testing.assert_allclose(answer.scores[:, j], margin[:, sets[:, j] == 1].max(axis=1), atol=1e-3)


def ml_knn_again(X, Y, new, k, s):
    """Zhang and Zhou 2007, Eq. 2-5, a row and a label at a time."""

    def neighbours(x, without=None):
        distance = [(float(((x - other) ** 2).sum()), place) for place, other in enumerate(X) if place != without]
        return [place for _, place in sorted(distance)[:k]]

    N, L = Y.shape
    near = [neighbours(X[i], i) for i in range(N)]
    posterior = np.zeros((len(new), L))
    for j in range(L):
        prior = (s + Y[:, j].sum()) / (2 * s + N)
        table = np.zeros((2, k + 1))
        for i in range(N):
            table[Y[i, j], sum(Y[n, j] for n in near[i])] += 1
        likelihood = [(s + row) / (s * (k + 1) + row.sum()) for row in table]
        for row, x in enumerate(new):
            count = sum(Y[n, j] for n in neighbours(x))
            yes, no = prior * likelihood[1][count], (1 - prior) * likelihood[0][count]
            posterior[row, j] = yes / (yes + no)
    return posterior


@pytest.mark.parametrize("wrap", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize(("k", "s"), [(10, 1.0), (3, 0.5)])
def test_ml_knn_is_its_equations_with_equal_distances_to_the_first_rows(rows, wrap, k, s, monkeypatch):
    X, Y, new = rows  # rows of 0 and 1: most distances are there many times
    monkeypatch.setattr("lightning_modules.binary_tree_multilabel.rows.CHUNK_BYTES", 8 * 110 * 20)
    model = fit(MLkNNModule(k, s, "posterior", "high_index"), wrap(X), Y)
    answer = model.answer(as_tensor(wrap(new)))
    expected = ml_knn_again(X, Y, new, k, s)
    np.testing.assert_allclose(answer.scores, expected, rtol=1e-12)
    np.testing.assert_array_equal(answer.label, expected > 0.5)


def test_hard_scores_are_the_answer(rows):
    X, Y, new = rows
    settings = SVMSettings("linear", 1.0, None)
    for model in (
        BinaryRelevanceModule(settings, "hard", "high_index"),
        LabelPowersetModule(settings, "hard", "high_index"),
        MLkNNModule(5, 1.0, "hard", "high_index"),
    ):
        answer = fit(model, X, Y).answer(as_tensor(new))
        assert torch.equal(answer.scores, answer.label.double())


def test_too_many_neighbours_are_refused(rows):
    X, Y, _ = rows
    with pytest.raises(InputError, match=r"model.k=110 must be below the number of training rows, 110"):
        fit(MLkNNModule(110, 1.0, "hard", "high_index"), X, Y)
    with pytest.raises(InputError, match=r"model.k=0 must be 1 neighbour or more"):
        MLkNNModule(0, 1.0, "hard", "high_index")
