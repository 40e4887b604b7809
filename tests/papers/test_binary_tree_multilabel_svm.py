"""The native SVMs against scikit-learn's and against the objective as it is written."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import check_grad, minimize
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from datamodules.mulan import MulanReader
from datamodules.table import as_tensor
from lightning_modules.binary_tree_multilabel import svm
from lightning_modules.binary_tree_multilabel.rows import (
    StoredRows,
    centred_kernel,
    chunks,
    means,
    squared_distances,
    stacked,
    take_rows,
)
from lightning_modules.binary_tree_multilabel.svm import SVMs, SVMSettings, linear_svms
from runs.errors import InputError

LINEAR = SVMSettings(kernel="linear", C=1.0, class_weight=None)


def sides(n=120, d=8, m=3, seed=0):
    """Rows and sides that overlap, the second column of sides rare."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, d)) * generator.uniform(0.1, 3, d) * (generator.uniform(size=(n, d)) < 0.6)
    scores = X @ generator.normal(size=(d, m)) + generator.normal(size=(n, m)) - np.array([0, 5, -1])[:m]
    return X, np.where(scores > 0, 1.0, -1.0)


def objective(v, X, z, cost):
    """1/2 ||w||² + sum_k cost_k max(0, 1 - z_k (w.x_k + b))², and its gradient."""
    w, b = v[:-1], v[-1]
    slack = np.maximum(0, 1 - z * (X @ w + b))
    pull = -2 * cost * z * slack
    return 0.5 * w @ w + (cost * slack**2).sum(), np.append(w + X.T @ pull, pull.sum())


@pytest.mark.parametrize("way", ["conjugate gradients alone", "direct where it pays"])
@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_each_of_many_svms_is_the_minimum_of_its_objective(way, form, C, monkeypatch):
    X, Z = sides()
    direct, calls = svm._direct_steps, []
    monkeypatch.setattr(svm, "_direct_steps", lambda *given: (calls.append(len(given)), direct(*given))[1])
    if way == "conjugate gradients alone":
        monkeypatch.setattr(svm, "DIRECT_ROWS_MAX", 0)
    cost = C * np.random.default_rng(1).uniform(0.5, 2, Z.shape)
    rows = as_tensor(sparse.csr_array(X) if form == "sparse" else X)
    W, b = linear_svms(rows, torch.from_numpy(Z), torch.from_numpy(cost))
    for place in range(Z.shape[1]):
        arguments = (X, Z[:, place], cost[:, place])
        assert check_grad(lambda v, a: objective(v, *a)[0], lambda v, a: objective(v, *a)[1], np.ones(9), arguments) < 1
        best = minimize(
            objective, np.zeros(9), arguments, jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 0}
        )
        ours = np.append(W[place].numpy(), float(b[place]))
        value, gradient = objective(ours, *arguments)
        start = np.linalg.norm(objective(np.zeros(9), *arguments)[1])
        assert np.linalg.norm(gradient) <= 1e-6 * (1 + start)
        assert value <= best.fun * (1 + 1e-9)
        np.testing.assert_allclose(ours, best.x, atol=2e-4)
    assert way != "conjugate gradients alone" or not calls
    assert C < 1 or bool(calls) == (way == "direct where it pays")


def test_a_direct_step_solves_newtons_equations():
    """The Hessian of the objective written out, and solved in as many unknowns as columns."""
    X, Z = sides()
    generator = np.random.default_rng(3)
    active = np.where(generator.uniform(size=Z.shape) < 0.2, generator.uniform(0.5, 2, Z.shape), 0)
    gradient = generator.normal(size=(9, Z.shape[1]))
    A = X - X.mean(axis=0)
    kernel = centred_kernel(torch.from_numpy(X))
    np.testing.assert_allclose(kernel, A @ A.T, atol=1e-12)
    duals, intercepts = svm._direct_steps(kernel, *map(torch.from_numpy, (active, A @ gradient[:-1], gradient[-1])))
    for place in range(Z.shape[1]):
        rows = np.column_stack([A, np.ones(len(A))])
        hessian = np.diag([1.0] * 8 + [0.0]) + 2 * rows.T @ (active[:, [place]] * rows)
        expected = np.linalg.solve(hessian, -gradient[:, place])
        np.testing.assert_allclose(-gradient[:-1, place] - A.T @ duals[:, place].numpy(), expected[:-1], atol=1e-10)
        assert float(intercepts[place]) == pytest.approx(expected[-1], abs=1e-10)


def test_the_intercept_is_not_penalised_as_in_liblinear_with_a_large_scale():
    X, Z = sides()
    W, b = linear_svms(torch.from_numpy(X), torch.from_numpy(Z), torch.ones(Z.shape, dtype=torch.float64))
    for place in range(Z.shape[1]):
        theirs = LinearSVC(C=1.0, tol=1e-10, intercept_scaling=1e3, dual=False, max_iter=10**5).fit(X, Z[:, place])
        np.testing.assert_allclose(W[place], theirs.coef_[0], atol=1e-4)
        assert float(b[place]) == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_balanced_sides_weigh_the_same_as_in_scikit_learn():
    X, Z = sides()
    svms = SVMs(SVMSettings("linear", 0.5, "balanced"))
    svms.add(torch.from_numpy(X), torch.from_numpy(Z))
    for place in range(Z.shape[1]):
        theirs = LinearSVC(C=0.5, tol=1e-10, intercept_scaling=1e3, class_weight="balanced", dual=False).fit(
            X, Z[:, place]
        )
        np.testing.assert_allclose(svms.weights[place], theirs.coef_[0], atol=1e-3)


def test_svms_fitted_at_once_or_one_by_one_on_sparse_or_dense_rows_are_the_same():
    X, Z = sides()
    together, apart = SVMs(LINEAR), SVMs(LINEAR)
    together.add(torch.from_numpy(X), torch.from_numpy(Z))
    for place in range(Z.shape[1]):
        apart.add(as_tensor(sparse.csr_array(X)), torch.from_numpy(Z[:, [place]]))
    # The curvature in w is 1 or more, so each is as near to the minimum as its gradient is small: 3e-4 here.
    torch.testing.assert_close(together.weights, apart.weights, atol=3e-4, rtol=0)
    torch.testing.assert_close(together.intercepts, apart.intercepts, atol=3e-4, rtol=0)
    rows = torch.from_numpy(X)
    torch.testing.assert_close(apart.decisions(rows, slice(1, 2)), apart.decisions(rows)[:, 1:2])


def test_an_svm_without_another_side_says_its_own():
    for kernel in ("linear", "rbf"):
        svms = SVMs(SVMSettings(kernel, 1.0, None))
        Z = torch.ones(30, 2, dtype=torch.float64)
        Z[:, 1] = -1
        svms.add(torch.from_numpy(sides(30)[0]), Z)
        said = svms.decisions(torch.from_numpy(sides(50, seed=3)[0]))
        assert bool((said[:, 0] > 0).all()) and bool((said[:, 1] < 0).all())


def test_raw_columns_of_very_different_sizes_are_solved_too():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(200, 6)) * np.array([1e-3, 1, 10, 1e3, 1e4, 1]) + np.array([0, 0, 50, 1e3, 0, 0])
    z = np.where(X[:, 1] + X[:, 5] + 1e-3 * X[:, 3] > 1, 1.0, -1.0)
    W, b = linear_svms(torch.from_numpy(X), torch.from_numpy(z)[:, None], torch.ones(200, 1, dtype=torch.float64))
    _, gradient = objective(np.append(W[0].numpy(), float(b[0])), X, z, 1.0)
    _, start = objective(np.zeros(7), X, z, 1.0)
    assert np.linalg.norm(gradient) <= 1e-6 * (1 + np.linalg.norm(start))


@pytest.mark.parametrize("size", [1, 1e3, 1e8])
def test_where_direct_equations_would_lose_their_digits_conjugate_gradients_go_on_alone(size):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(200, 40))
    Z = np.where(X @ generator.normal(size=(40, 4)) + generator.normal(size=(200, 4)) > 0, 1.0, -1.0)
    X[:, :5] *= size
    W, b = linear_svms(torch.from_numpy(X), torch.from_numpy(Z), torch.ones(Z.shape, dtype=torch.float64))
    for place, z in enumerate(Z.T):
        _, gradient = objective(np.append(W[place].numpy(), float(b[place])), X, z, 1.0)
        _, start = objective(np.zeros(41), X, z, 1.0)
        assert np.linalg.norm(gradient) <= 1e-6 * (1 + np.linalg.norm(start))


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_rbf_svms_decide_as_scikit_learns_from_their_numbers_alone(form):
    X, Z = sides()
    as_form = (lambda x: as_tensor(sparse.csr_array(x))) if form == "sparse" else torch.from_numpy
    svms = SVMs(SVMSettings("rbf", 1.0, None))
    svms.add(as_form(X), torch.from_numpy(Z[:, :2]))
    svms.add(as_form(X[:70]), torch.from_numpy(Z[:70, 2:]))
    fresh = SVMs(SVMSettings("rbf", 1.0, None))
    fresh.load_state_dict(svms.state_dict())
    new = sides(40, seed=5)[0]
    for place, rows in enumerate((X, X, X[:70])):
        theirs = SVC(gamma="scale").fit(rows, Z[: len(rows), place])
        for said in (svms, fresh):
            np.testing.assert_allclose(said.decisions(as_form(new))[:, place], theirs.decision_function(new), atol=1e-6)


def test_c_must_be_positive():
    with pytest.raises(InputError, match=r"model.svm.C=0 must be above 0"):
        SVMSettings("linear", 0.0, None)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_rows_are_chosen_stacked_averaged_and_compared_alike_in_both_forms(form, monkeypatch):
    X, _ = sides(50)
    X[7] = 0
    rows = torch.from_numpy(X) if form == "dense" else as_tensor(sparse.csr_array(X))
    chosen = torch.tensor([7, 3, 49, 3, 0])

    def dense(t):
        return (t if form == "dense" else t.to_dense()).numpy()

    np.testing.assert_array_equal(dense(take_rows(rows, chosen)), X[chosen])
    np.testing.assert_array_equal(dense(take_rows(rows, chosen[:0])), X[:0])
    np.testing.assert_array_equal(dense(stacked(take_rows(rows, chosen), rows)), np.vstack([X[chosen], X]))
    group = np.random.default_rng(0).permutation(50) % 4
    centres = means(rows, torch.from_numpy(group), 4)
    np.testing.assert_allclose(dense(centres), [X[group == g].mean(axis=0) for g in range(4)], atol=1e-14)
    expected = ((X[:, None] - dense(centres)[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared_distances(rows, centres), expected, atol=1e-10)
    monkeypatch.setattr("lightning_modules.binary_tree_multilabel.rows.CHUNK_BYTES", 8 * 8 * 7)
    pieces = list(chunks(rows, 4))
    assert [len(piece) for piece in pieces] == [7] * 7 + [1]
    np.testing.assert_array_equal(np.vstack([dense(piece) for piece in pieces]), X)
    stored, fresh = StoredRows(), StoredRows()
    stored.put(rows)
    stored.append(take_rows(rows, chosen))
    fresh.load_state_dict(stored.state_dict())
    assert len(fresh) == 55 and fresh.get().layout == rows.layout
    np.testing.assert_array_equal(dense(fresh.get()), np.vstack([X, X[chosen]]))


def test_decisions_on_real_rows_agree_with_linear_svc(sample_data):
    """On 99 % of the test rows or more; LinearSVC penalises its intercept, ours does not."""
    table = MulanReader("GnegativeGO", "one_hot", False, None, 0).read(sample_data / "mulan_multilabel")
    X, count = table.features, table.label.sum(axis=1)
    test = np.arange(len(count)) % 5 == 0
    z = np.where(count > 1, 1.0, -1.0)
    svms = SVMs(LINEAR)
    svms.add(as_tensor(X[~test]), torch.from_numpy(z[~test])[:, None])
    said = svms.decisions(as_tensor(X[test]))[:, 0].numpy() > 0
    theirs = LinearSVC(C=1.0, tol=1e-8, max_iter=10**6).fit(X[~test], z[~test])
    assert (said == (theirs.predict(X[test]) > 0)).mean() >= 0.99
    exact = LinearSVC(C=1.0, tol=1e-8, intercept_scaling=100, max_iter=10**6).fit(X[~test], z[~test])
    np.testing.assert_allclose(svms.weights[0], exact.coef_[0], atol=1e-2)


def test_a_hundred_svms_on_real_dense_rows_are_all_solved(sample_data):
    """One against rest for the label sets of Birds: every gradient is below its limit."""
    table = MulanReader("Birds", "one_hot", False, None, 0).read(sample_data / "mulan_multilabel")
    X = StandardScaler().fit_transform(table.features)
    sets, which = np.unique(table.label, axis=0, return_inverse=True)
    Z = 2.0 * np.eye(len(sets))[which.ravel()] - 1
    W, b = linear_svms(torch.from_numpy(X), torch.from_numpy(Z), torch.ones(Z.shape, dtype=torch.float64))
    assert len(W) > 100
    for place, z in enumerate(Z.T):
        _, gradient = objective(np.append(W[place], b[place]), X, z, 1.0)
        _, start = objective(np.zeros(X.shape[1] + 1), X, z, 1.0)
        assert np.linalg.norm(gradient) <= 1.001e-6 * (1 + np.linalg.norm(start))
