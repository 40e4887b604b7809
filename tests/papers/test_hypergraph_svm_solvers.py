"""Conjugate gradients, Newton's steps and the line search against autograd, scipy and scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from lightning_modules.hypergraph_svm.operators import (
    as_tensor,
    graph_laplacian,
    hypergraph_laplacian,
    kernel_matrix,
)
from lightning_modules.hypergraph_svm.solvers import (
    PrimalProblem,
    gradient_norm,
    line_search,
    newton_step,
    pcg_start,
    pcg_step,
    primal_objective,
)

CPU = torch.device("cpu")


def make_problem(
    m=200, d=5, labelled=0.5, columns=1, delta_a=0.1, delta_i=1e-3, lam=0.5, gamma=None, bias=True, seed=0, k_graph=6,
    k_hyper=6, kernel="rbf",
) -> PrimalProblem:  # fmt: skip
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(m, d))
    f = np.stack(
        [np.sin(x @ generator.normal(size=d)) + 0.4 * generator.normal(size=m) for _ in range(columns)], axis=1
    )
    known = torch.tensor(generator.uniform(size=m) < labelled)[:, None]
    X, one = torch.tensor(x), torch.ones(columns, dtype=torch.float64)
    L = as_tensor(graph_laplacian(x, k_graph, "normalized"), CPU)
    H = as_tensor(hypergraph_laplacian(x, k_hyper, "mean"), CPU)
    return PrimalProblem(
        K=kernel_matrix(X, X, kernel, 1 / d if gamma is None else gamma),
        manifold=[(L, lam * one), (H, (1 - lam) * one)],
        y=torch.tensor(np.where(f > 0, 1.0, -1.0)) * known,
        labelled=known,
        delta_a=delta_a * one,
        delta_i=delta_i * one,
        bias_in_manifold=bias,
    )


def by_pcg(problem, tol=1e-6, most=3000):
    state, iterations = pcg_start(problem), 0
    while not state.done.all() and iterations < most:
        state, iterations = pcg_step(problem, state, tol), iterations + 1
    assert state.done.all()
    return state, iterations


def by_newton(problem):
    alpha, b = torch.zeros_like(problem.y), torch.zeros_like(problem.delta_a)
    for _ in range(100):
        alpha, b, solved = newton_step(problem, alpha, b, 1e-12)
        if solved.all():
            return alpha, b
    raise AssertionError("Newton's method did not end")


def slow_objective(problem, alpha, b):
    """Eq. 11 of one column, term by term, with dense matrices."""
    K, y, known = problem.K.numpy(), problem.y[:, 0].numpy(), problem.labelled[:, 0].numpy()
    IHL = sum(matrix.to_dense().numpy() * float(weight[0]) for matrix, weight in problem.manifold)
    f = K @ alpha + b
    loss = sum(max(0.0, 1 - y[i] * f[i]) ** 2 for i in range(len(y)) if known[i])
    g = f if problem.bias_in_manifold else K @ alpha
    ambient, intrinsic = alpha @ K @ alpha, g @ IHL @ g
    return 0.5 * (loss + float(problem.delta_a[0]) * ambient + float(problem.delta_i[0]) * intrinsic)


# ---- H1 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_conjugate_gradients_and_newton_agree(seed, bias):
    problem = make_problem(seed=seed, bias=bias)
    state, _ = by_pcg(problem)
    alpha, b = by_newton(problem)
    ours, reference = primal_objective(problem, state.alpha, state.b), primal_objective(problem, alpha, b)
    assert float((ours / reference - 1).abs()) <= 1e-6
    same = torch.sign(problem.K @ state.alpha + state.b) == torch.sign(problem.K @ alpha + b)
    assert float(same.double().mean()) >= 0.999


@pytest.mark.parametrize("bias", [True, False])
def test_the_objective_is_that_of_the_equation_and_its_gradient_that_of_autograd(bias):
    problem = make_problem(m=50, bias=bias, delta_i=0.3)
    generator = torch.Generator().manual_seed(0)
    alpha = torch.randn(50, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(1, generator=generator, dtype=torch.float64, requires_grad=True)
    J = primal_objective(problem, alpha, b)
    assert float(J.detach()) == pytest.approx(
        slow_objective(problem, alpha.detach().numpy()[:, 0], float(b.detach())), rel=1e-12
    )
    by_alpha, by_b = torch.autograd.grad(J.sum(), (alpha, b))
    z = torch.linalg.solve(problem.K, by_alpha)  # the preconditioned gradient
    norm = (z * by_alpha).sum(dim=0) + by_b.square()
    assert float(gradient_norm(problem, alpha.detach(), b.detach()) / norm - 1) == pytest.approx(0, abs=1e-6)


def test_the_optimum_is_that_of_a_general_optimiser():
    problem = make_problem(m=40, delta_a=1.0, delta_i=0.1)
    state, _ = by_pcg(problem, tol=1e-9)

    def objective(v):
        return slow_objective(problem, v[:-1], v[-1])

    found = minimize(objective, np.zeros(41), method="BFGS", options={"maxiter": 2000, "gtol": 1e-8})
    J = float(primal_objective(problem, state.alpha, state.b))
    assert abs(J / found.fun - 1) <= 1e-6


def test_gradient_descent_is_not_as_good():
    """What training by Adam would give: ten times as many iterations end a thousand times farther from the optimum."""
    problem = make_problem(m=60, delta_a=1e-2)
    state, iterations = by_pcg(problem)
    alpha = torch.zeros(60, 1, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([alpha, b], lr=1e-2)
    for _ in range(10 * iterations):
        adam.zero_grad()
        primal_objective(problem, alpha, b).sum().backward()
        adam.step()
    best = float(primal_objective(problem, *by_newton(problem)))
    ours, reached = (
        float(primal_objective(problem, a, c)) / best - 1
        for a, c in ((state.alpha, state.b), (alpha.detach(), b.detach()))
    )
    assert abs(ours) <= 1e-6 and reached > 1e-3


# ---- H8 ---------------------------------------------------------------------------------------


def test_without_manifold_term_it_is_a_squared_hinge_svm():
    """With a linear kernel the weights w = X' alpha can be found by a general optimiser instead."""
    m, d, delta_a = 120, 4, 0.5
    problem = make_problem(m=m, d=d, labelled=1.0, delta_a=delta_a, delta_i=0.0, kernel="linear", gamma=1.0)
    x, y = np.random.default_rng(0).normal(size=(m, d)), problem.y[:, 0].numpy()
    assert np.allclose(x @ x.T, problem.K.numpy())  # the rows of make_problem

    def primal(v):
        slack = np.maximum(0.0, 1 - y * (x @ v[:-1] + v[-1]))
        return 0.5 * (slack @ slack + delta_a * v[:-1] @ v[:-1])

    found = minimize(primal, np.zeros(d + 1), method="BFGS", options={"gtol": 1e-9}).x
    state, _ = by_pcg(problem, tol=1e-9)
    assert np.allclose(x.T @ state.alpha[:, 0].numpy(), found[:-1], atol=1e-5)
    assert float(state.b) == pytest.approx(found[-1], abs=1e-5)


@pytest.mark.parametrize(("lam", "other"), [(1.0, {"k_hyper": 9}), (0.0, {"k_graph": 9})])
def test_at_its_ends_lambda_leaves_one_of_the_two_out(lam, other):
    at = by_newton(make_problem(lam=lam, delta_i=1.0))
    same = by_newton(make_problem(lam=lam, delta_i=1.0, **other))
    middle = [by_newton(make_problem(lam=0.5, delta_i=1.0, **change)) for change in ({}, other)]
    assert torch.equal(at[0], same[0])
    assert float((middle[0][0] - middle[1][0]).abs().max()) > 1e-4


# ---- the parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_line_search_finds_the_minimum_that_scipy_finds(seed):
    generator = np.random.default_rng(seed)
    m = 30
    problem = make_problem(m=m, labelled=0.7, seed=seed)
    f, fd = (torch.tensor(generator.normal(size=(m, 1)) * size) for size in (1.5, 2.0))
    q2 = torch.tensor([generator.uniform(0.01, 2.0)])
    inside = problem.errors(f)
    q1 = -torch.tensor([generator.uniform(0.1, 3.0)]) - (inside * fd * (f - problem.y)).sum(dim=0)  # phi'(0) < 0

    def phi(s):
        at = f + s * fd
        return float(0.5 * (problem.errors(at) * (at - problem.y)).square().sum() + q1 * s + 0.5 * q2 * s**2)

    s = float(line_search(f, fd, problem, q1, q2))
    found = minimize_scalar(phi, bounds=(0, 1e4), method="bounded", options={"xatol": 1e-10, "maxiter": 2000})
    assert s > 0 and phi(s) <= found.fun + 1e-9 and s == pytest.approx(found.x, rel=1e-4, abs=1e-5)


def test_the_error_sets_do_not_make_it_zigzag():
    """With Polak-Ribière unbounded these clouds take 1,366 iterations, most of them at a gradient of 1e-2."""
    _, iterations = by_pcg(overlapping_clouds(2000))
    assert iterations <= 200


def overlapping_clouds(m):
    """Two classes of three clouds each in 20 columns, half of the rows labelled."""
    generator, centres = np.random.default_rng(2), 1.2 * np.random.default_rng(0).normal(size=(6, 20))
    cloud = generator.integers(6, size=m)
    x = centres[cloud] + 1.5 * generator.normal(size=(m, 20))
    known = torch.tensor(np.random.default_rng(3).uniform(size=m) < 0.5)[:, None]
    X, one = torch.tensor(x), torch.ones(1, dtype=torch.float64)
    laplacian = 0.5 * (graph_laplacian(x, 6, "normalized") + hypergraph_laplacian(x, 6, "mean"))
    return PrimalProblem(
        K=kernel_matrix(X, X, "rbf", 1 / 20), manifold=[(as_tensor(laplacian, CPU), one)],
        y=torch.tensor(2.0 * (cloud % 2) - 1)[:, None] * known, labelled=known, delta_a=0.1 * one,
        delta_i=1e-3 * one, bias_in_manifold=True,
    )  # fmt: skip


def test_columns_are_problems_of_their_own():
    """Batched, each column goes the way that it goes alone, also after others have ended."""
    problem = make_problem(columns=4)
    problem = replace(problem, delta_a=torch.tensor([1.0, 0.1, 0.01, 0.1], dtype=torch.float64))
    state, _ = by_pcg(problem)
    ends = set()
    for column in range(4):
        alone, iterations = by_pcg(problem.of_columns(torch.tensor([column])))
        ends.add(iterations)
        assert torch.allclose(alone.alpha[:, 0], state.alpha[:, column], atol=1e-5)
    assert len(ends) > 1


def test_a_solved_column_moves_no_more():
    problem = make_problem(columns=2)
    problem = replace(problem, delta_a=torch.tensor([10.0, 1e-3], dtype=torch.float64))
    state, frozen = pcg_start(problem), None
    while not state.done.all():
        state = pcg_step(problem, state, 1e-6)
        if state.done[0] and frozen is None:
            frozen = state.alpha[:, 0].clone()
            assert not state.done[1]
    assert torch.equal(frozen, state.alpha[:, 0])
    assert torch.equal(pcg_step(problem, state, 1e-6).alpha, state.alpha)


def test_unlabelled_rows_are_in_no_error_set_whatever_stands_in_their_y():
    """Rows with y = 0 have y f < 1: with them among the errors they would pull f to 0."""
    problem = make_problem(labelled=0.3)
    garbled = replace(problem, y=torch.where(problem.labelled, problem.y, torch.randn_like(problem.y)))
    for solve in (lambda p: by_pcg(p)[0].alpha, lambda p: by_newton(p)[0]):
        assert torch.equal(solve(problem), solve(garbled))
    assert not problem.errors(torch.zeros_like(problem.y))[~problem.labelled].any()


def test_a_column_without_one_of_its_signs_is_constant():
    problem = make_problem(columns=2, delta_i=0.0)
    y = problem.y.clone()
    y[:, 1] = -1.0 * problem.labelled[:, 0]
    problem = replace(problem, y=y)
    for alpha, b in ((lambda s: (s.alpha, s.b))(by_pcg(problem, tol=1e-8)[0]), by_newton(problem)):
        f = (problem.K @ alpha + b)[:, 1]
        assert float(f.max()) < -1 + 1e-4 and float(f.max() - f.min()) < 1e-4  # beyond the margin nothing is lost


def test_single_precision_would_not_do():
    """The reason why all is float64: in single precision the iterations say 1e-6 more than ten times too far away."""
    problem = make_problem(m=150, delta_a=1e-3, delta_i=1e-3)
    single = replace(
        problem, K=problem.K.float(), y=problem.y.float(), delta_a=problem.delta_a.float(),
        delta_i=problem.delta_i.float(),
        manifold=[(matrix.float(), weight.float()) for matrix, weight in problem.manifold],
    )  # fmt: skip
    true = {}
    for name, version in (("double", problem), ("single", single)):
        state, _ = by_pcg(version)
        alpha, b = state.alpha.double(), state.b.double()
        share = gradient_norm(problem, alpha, b) / gradient_norm(problem, 0 * alpha, 0 * b)
        true[name] = float(share.sqrt())
    assert true["double"] <= 1.01e-6 and true["single"] > 1e-5


def test_the_state_after_each_iteration_is_consistent():
    """K alpha and IHL f are kept by increments, z is the gradient without a solve: both must be what they stand for."""
    problem = make_problem()
    state = pcg_start(problem)
    before = torch.inf
    for _ in range(40):
        state = pcg_step(problem, state, 1e-12)
        assert torch.allclose(state.K_alpha, problem.K @ state.alpha, atol=1e-10)
        assert torch.allclose(state.rough, problem.rough(state.K_alpha + state.b), atol=1e-10)
        reached = float(primal_objective(problem, state.alpha, state.b))
        assert reached <= before + 1e-12
        at = (state.alpha.clone().requires_grad_(), state.b.clone().requires_grad_())
        by_alpha, by_b = torch.autograd.grad(primal_objective(problem, *at).sum(), at)
        assert torch.allclose(problem.K @ state.z, by_alpha, atol=1e-9) and torch.allclose(state.z_b, by_b, atol=1e-9)
        before = reached
