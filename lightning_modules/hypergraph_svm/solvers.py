"""Solvers of the primal problem (Eq. 11): preconditioned conjugate gradients, and Newton's steps for reference.

Columns are problems of their own that share the training rows: the classes of one against the rest, the labels
of a multi-label set, the points of a grid. ``m`` rows, ``C`` columns, all float64.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrimalProblem:
    """J(alpha, b) = ½ [ Σ_labelled max(0, 1 - y f)² + delta_A alpha' K alpha + delta_I g' IHL g ] for each column.

    f = K alpha + b 1; g = f, or K alpha where the bias stays out of the manifold term.

    Attributes:
        K: (m, m) kernel of the training rows.
        manifold: sparse (m, m) matrices with the weights (C,) that they have in IHL (Eq. 10).
        y: (m, C), -1 or 1; what stands in unlabelled rows is never looked at.
        labelled: (m, 1) bool.
        delta_a: (C,).
        delta_i: (C,).
        bias_in_manifold: whether g holds the bias.
    """

    K: Tensor
    manifold: list[tuple[Tensor, Tensor]]
    y: Tensor
    labelled: Tensor
    delta_a: Tensor
    delta_i: Tensor
    bias_in_manifold: bool

    def rough(self, g: Tensor) -> Tensor:
        """IHL g, (m, C)."""
        found = torch.zeros_like(g)
        for matrix, weight in self.manifold:
            found += torch.sparse.mm(matrix, g) * weight
        return found

    def g(self, K_alpha: Tensor, b: Tensor) -> Tensor:
        """What the manifold term is of, (m, C); of directions too."""
        return K_alpha + b if self.bias_in_manifold else K_alpha

    def errors(self, f: Tensor) -> Tensor:
        """I_E, (m, C) bool: labelled rows inside the margin; rows without a label are in no error set."""
        return self.labelled & (self.y * f < 1)

    def of_columns(self, which: Tensor) -> "PrimalProblem":
        """The problem of some columns, given by their places."""
        return replace(
            self,
            manifold=[(matrix, weight[which]) for matrix, weight in self.manifold],
            y=self.y[:, which],
            delta_a=self.delta_a[which],
            delta_i=self.delta_i[which],
        )


def primal_objective(problem: PrimalProblem, alpha: Tensor, b: Tensor) -> Tensor:
    """J of each column, (C,)."""
    K_alpha = problem.K @ alpha
    return objective_from_products(problem, alpha, b, K_alpha, problem.rough(problem.g(K_alpha, b)))


def objective_from_products(problem: PrimalProblem, alpha: Tensor, b: Tensor, K_alpha: Tensor, rough: Tensor) -> Tensor:
    """J where K alpha and IHL g are known."""
    f = K_alpha + b
    loss = (problem.errors(f) * (f - problem.y)).square().sum(dim=0)
    ambient, intrinsic = (alpha * K_alpha).sum(dim=0), (problem.g(K_alpha, b) * rough).sum(dim=0)
    return 0.5 * (loss + problem.delta_a * ambient + problem.delta_i * intrinsic)


def line_search(f: Tensor, fd: Tensor, problem: PrimalProblem, q1: Tensor, q2: Tensor) -> Tensor:
    """The exact minimum of phi(s) = J(alpha + s d, b + s d_b) over s >= 0, (C,).

    phi is quadratic between the steps at which a row enters or leaves the error set. The slope phi' rises
    from piece to piece, so the piece that holds its root is found by sorting these steps.

    Args:
        f: (m, C) decision values at s = 0.
        fd: their change with s.
        problem: whose error set is looked at.
        q1: the part of phi'(0) that is not of the loss, (C,).
        q2: the same of phi''.
    """
    y, labelled = problem.y, problem.labelled
    crossing = torch.where(labelled & (fd != 0), (y - f) / fd, torch.inf)
    crossing = torch.where(crossing > 0, crossing, torch.inf)
    inside = labelled & ((y * f < 1) | ((y * f == 1) & (y * fd < 0)))
    slope, bend = fd * (f - y), fd * fd  # what a row in the error set adds to phi'(s) = A + s B
    sign = torch.where(inside, -1.0, 1.0)  # at its crossing it leaves, or enters
    crossing, order = crossing.sort(dim=0)
    A = (q1 + (inside * slope).sum(dim=0)) + _before((sign * slope).gather(0, order))
    B = (q2 + (inside * bend).sum(dim=0)) + _before((sign * bend).gather(0, order))
    rising = torch.isfinite(crossing) & (A[:-1] + crossing.nan_to_num(posinf=0.0) * B[:-1] >= 0)
    piece = torch.where(rising.any(dim=0), rising.int().argmax(dim=0), torch.isfinite(crossing).sum(dim=0))
    s = _root(A.gather(0, piece[None])[0], B.gather(0, piece[None])[0])
    # Once more from the error set itself: the sums above have rounded over all pieces before.
    inside = problem.errors(f + s * fd)
    return _root(q1 + (inside * slope).sum(dim=0), q2 + (inside * bend).sum(dim=0))


def _before(changes: Tensor) -> Tensor:
    """Sums of the rows before each of m + 1 places, (m + 1, C)."""
    return torch.cat([torch.zeros_like(changes[:1]), changes.cumsum(dim=0)])


def _root(A: Tensor, B: Tensor) -> Tensor:
    return torch.where(B > 0, -A / B, 0.0).clamp(min=0.0)


# ---- preconditioned conjugate gradients -------------------------------------------------------


@dataclass(frozen=True)
class PCGState:
    """Where the iterations stand; all that a later one needs.

    Attributes:
        alpha: (m, C).
        b: (C,).
        d: (m, C) direction, with d_b (C,).
        d_b: of the bias.
        z: (m, C) preconditioned gradient, with z_b (C,).
        z_b: of the bias.
        K_alpha: (m, C).
        K_d: (m, C).
        rough: IHL g, (m, C).
        norm: <z, K z> + z_b², (C,).
        first_norm: the same at the start.
        done: (C,) bool, columns that are solved and move no more.
    """

    alpha: Tensor
    b: Tensor
    d: Tensor
    d_b: Tensor
    z: Tensor
    z_b: Tensor
    K_alpha: Tensor
    K_d: Tensor
    rough: Tensor
    norm: Tensor
    first_norm: Tensor
    done: Tensor

    def of_columns(self, which: Tensor) -> "PCGState":
        """The state of some columns, given by their places."""
        return PCGState(*(getattr(self, field.name)[..., which] for field in fields(self)))

    def with_columns(self, which: Tensor, part: "PCGState") -> "PCGState":
        """This state with some columns replaced."""
        return PCGState(
            *(getattr(self, field.name).index_copy(-1, which, getattr(part, field.name)) for field in fields(self))
        )


def pcg_start(problem: PrimalProblem) -> PCGState:
    """alpha = 0, b = 0, and the steepest descent from there."""
    alpha = torch.zeros_like(problem.y)
    b = torch.zeros_like(problem.delta_a)
    z, z_b = _gradient(problem, alpha, alpha, b, alpha)
    K_z = problem.K @ z
    norm = (z * K_z).sum(dim=0) + z_b.square()
    return PCGState(
        alpha=alpha, b=b, d=-z, d_b=-z_b, z=z, z_b=z_b, K_alpha=torch.zeros_like(alpha), K_d=-K_z,
        rough=torch.zeros_like(alpha), norm=norm, first_norm=norm, done=norm == 0,
    )  # fmt: skip


def pcg_step(problem: PrimalProblem, state: PCGState, tol: float) -> PCGState:
    """One iteration of the columns that are not done: one product with K and one with IHL each.

    Args:
        problem: see there.
        state: of `pcg_start` or of the last iteration.
        tol: a column is done where the root of ``norm`` is this share of its first value.
    """
    moving = torch.nonzero(~state.done)[:, 0]
    if len(moving) == len(state.done):
        return _pcg_step(problem, state, tol)
    if not len(moving):
        return state
    part = _pcg_step(problem.of_columns(moving), state.of_columns(moving), tol)
    return state.with_columns(moving, part)


def _pcg_step(problem: PrimalProblem, at: PCGState, tol: float) -> PCGState:
    f = at.K_alpha + at.b
    fd = at.K_d + at.d_b
    gd = problem.g(at.K_d, at.d_b)
    rough_d = problem.rough(gd)
    q1 = problem.delta_a * (at.d * at.K_alpha).sum(dim=0) + problem.delta_i * (gd * at.rough).sum(dim=0)
    q2 = problem.delta_a * (at.d * at.K_d).sum(dim=0) + problem.delta_i * (gd * rough_d).sum(dim=0)
    s = line_search(f, fd, problem, q1, q2)

    alpha, b = at.alpha + s * at.d, at.b + s * at.d_b
    K_alpha, rough = at.K_alpha + s * at.K_d, at.rough + s * rough_d
    z, z_b = _gradient(problem, alpha, K_alpha, b, rough)
    K_z = problem.K @ z
    norm = (z * K_z).sum(dim=0) + z_b.square()
    kept = (at.z * K_z).sum(dim=0) + at.z_b * z_b
    # Polak-Ribière between 0 and Fletcher-Reeves: above, where error sets change, it can zigzag for a thousand steps.
    beta = (torch.minimum(norm - kept, norm) / at.norm).clamp(min=0.0)
    return PCGState(
        alpha=alpha, b=b, d=beta * at.d - z, d_b=beta * at.d_b - z_b, z=z, z_b=z_b, K_alpha=K_alpha,
        K_d=beta * at.K_d - K_z, rough=rough, norm=norm, first_norm=at.first_norm,
        done=norm <= tol**2 * at.first_norm,
    )  # fmt: skip


def _gradient(
    problem: PrimalProblem, alpha: Tensor, K_alpha: Tensor, b: Tensor, rough: Tensor
) -> tuple[Tensor, Tensor]:
    """z = r + delta_A alpha and z_b: the gradient of J is (K z, z_b)."""
    f = K_alpha + b
    residual = problem.errors(f) * (f - problem.y)
    r = residual + problem.delta_i * rough
    return r + problem.delta_a * alpha, (r if problem.bias_in_manifold else residual).sum(dim=0)


# ---- Newton's method --------------------------------------------------------------------------


def newton_step(problem: PrimalProblem, alpha: Tensor, b: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Goes from (alpha, b) to the optimum of the present error sets, as far as J falls; O(C m³).

    Returns:
        alpha, b, and which columns are solved (C,) bool: their error sets did not change, or their gradient
        is as small as `pcg_step` asks.
    """
    solved = gradient_norm(problem, alpha, b) <= tol**2 * gradient_norm(problem, 0 * alpha, 0 * b)
    moving = torch.nonzero(~solved)[:, 0]
    for place in moving[:, None]:
        column = problem.of_columns(place)
        alpha_c, b_c, solved_c = _newton_step(column, alpha[:, place], b[place])
        alpha, b = alpha.index_copy(1, place, alpha_c), b.index_copy(0, place, b_c)
        solved = solved.index_copy(0, place, solved_c)
    return alpha, b, solved


def gradient_norm(problem: PrimalProblem, alpha: Tensor, b: Tensor) -> Tensor:
    """<z, K z> + z_b², (C,)."""
    K_alpha = problem.K @ alpha
    rough = problem.rough(problem.g(K_alpha, b))
    z, z_b = _gradient(problem, alpha, K_alpha, b, rough)
    return (z * (problem.K @ z)).sum(dim=0) + z_b.square()


def _newton_step(problem: PrimalProblem, alpha: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    K_alpha = problem.K @ alpha
    before = problem.errors(K_alpha + b)
    alpha_there, b_there = _newton_target(problem, before[:, 0])
    d, d_b = alpha_there - alpha, b_there - b
    K_d = problem.K @ d
    solved = (before == problem.errors(K_alpha + K_d + b_there)).all(dim=0)
    g, gd = problem.g(K_alpha, b), problem.g(K_d, d_b)
    rough_d = problem.rough(gd)
    q1 = problem.delta_a * (d * K_alpha).sum(dim=0) + problem.delta_i * (g * rough_d).sum(dim=0)
    q2 = problem.delta_a * (d * K_d).sum(dim=0) + problem.delta_i * (gd * rough_d).sum(dim=0)
    s = torch.where(solved, 1.0, line_search(K_alpha + b, K_d + d_b, problem, q1, q2))
    return alpha + s * d, b + s * d_b, solved


def _newton_target(problem: PrimalProblem, errors: Tensor) -> tuple[Tensor, Tensor]:
    """The optimum (m, 1) and (1,) of one column, were its error set (m,) bool to stay as it is."""
    m = len(errors)
    E = errors.double()
    one = torch.ones(m, 1, dtype=torch.float64, device=E.device)
    delta_a, delta_i = problem.delta_a[0], problem.delta_i[0]
    IHL_K = torch.zeros_like(problem.K)
    IHL_1 = torch.zeros_like(one)
    for matrix, weight in problem.manifold:
        IHL_K += torch.sparse.mm(matrix, problem.K) * weight[0]
        IHL_1 += torch.sparse.mm(matrix, one) * weight[0]
    system = torch.empty(m + 1, m + 1, dtype=torch.float64, device=E.device)
    data, manifold = E[:, None] * problem.K, delta_i * IHL_K
    bias = delta_i * IHL_1[:, 0] if problem.bias_in_manifold else torch.zeros_like(E)
    system[1:, 1:] = delta_a * torch.eye(m, dtype=torch.float64, device=E.device) + data + manifold
    system[1:, 0] = E + bias
    system[0, 0] = E.sum() + bias.sum()
    system[0, 1:] = data.sum(dim=0) + (manifold.sum(dim=0) if problem.bias_in_manifold else 0.0)
    wanted = torch.cat([(E * problem.y[:, 0]).sum()[None], E * problem.y[:, 0]])
    solution = torch.linalg.solve(system, wanted)
    return solution[1:, None], solution[:1]
