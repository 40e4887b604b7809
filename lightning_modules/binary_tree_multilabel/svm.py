"""Support vector machines that tell two sides apart: linear ones by Newton's method, all at once, and RBF ones."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import sparse
from sklearn.svm import SVC
from torch import Tensor, nn

from components.variable_buffers import VariableBuffers
from lightning_modules.binary_tree_multilabel.rows import (
    CHUNK_BYTES,
    StoredRows,
    as_scipy,
    centred_kernel,
    chunks,
    is_sparse,
    products,
    squared_distances,
    squared_norms,
    take_rows,
    transposed,
)
from runs.errors import InputError

TOLERANCE = 1e-6  # of the gradient's norm, relative to 1 + its norm at the start
STEPS_MAX = 200  # of Newton's method; a handful is usual
ACCURACY = 0.1  # of its step: the residual's norm, relative to the gradient's
SOLVER_STEPS_MAX = 2000  # of conjugate gradients within one of them
DIRECT_ROWS_MAX = 600  # with so few rows inside the margin its equations are solved directly
CONDITION_MAX = 1e12  # and if a bound of their condition number is below this
SEARCH_STEPS_MAX = 30  # along one direction


@dataclass(frozen=True)
class SVMSettings:
    """How sides are told apart.

    Attributes:
        kernel: ``linear``: squared hinge, the intercept not penalised; ``rbf``: hinge, exp(-gamma ||x - x'||²) with
            gamma = 1 / (d var(X)) of the rows it is fitted on.
        C: weight of the losses against 1/2 ||w||².
        class_weight: ``balanced`` weighs a side's rows by n / (2 rows of the side); None: all alike.
    """

    kernel: Literal["linear", "rbf"]
    C: float
    class_weight: Literal["balanced"] | None

    def __post_init__(self) -> None:
        if self.C <= 0:
            raise InputError(f"model.svm.C={self.C:g} must be above 0")

    def costs(self, Z: Tensor) -> Tensor:
        """C of each row and SVM, (n, m), for sides Z of -1 and 1."""
        if self.class_weight is None:
            return torch.full_like(Z, self.C)
        sizes = torch.stack([(Z < 0).sum(dim=0), (Z > 0).sum(dim=0)]).clamp(min=1).to(Z.dtype)
        return self.C * len(Z) / (2 * sizes.gather(0, (Z > 0).long()))


def linear_svms(X: Tensor, Z: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """m linear SVMs on the same rows: min 1/2 ||w||² + sum_k cost_k max(0, 1 - z_k (w.x_k + b))² each.

    Newton's method on the piecewise quadratic function, with an exact search along its step. Only the rows inside the
    margin count in a step: where they are few, it is solved for in as many unknowns, otherwise by conjugate
    gradients, preconditioned by the diagonal. X is only ever multiplied, so it may be sparse and wide.

    Args:
        X: rows (n, d) float64.
        Z: (n, m) of -1 and 1.
        cost: (n, m), above 0.

    Returns:
        w (m, d) and b (m,).
    """
    (n, d), m = X.shape, Z.shape[1]
    Xt = transposed(X)
    Xt_squared = Xt.clone()
    (Xt_squared.values() if is_sparse(X) else Xt_squared).square_()
    mean = (Xt @ Z.new_full((n, 1), 1 / n))[:, 0]
    V = Z.new_zeros(d + 1, m)  # w above b
    F = torch.zeros_like(Z)  # w.x + b of each row
    limit = Z.new_zeros(m)
    going = torch.arange(m, device=X.device)  # SVMs not solved yet

    # The intercept is free, so w.x + b may be written w.(x - mean) + b'. Nothing else changes, but the direction in
    # which all rows lie, along which the function is far steeper than along all others, is gone.
    def times(v: Tensor) -> Tensor:
        return X @ v[:-1] + (v[-1] - mean @ v[:-1])

    def times_transposed(rows: Tensor) -> Tensor:
        total = rows.sum(dim=0, keepdim=True)
        return torch.cat([Xt @ rows - mean[:, None] * total, total])

    def without_intercept(v: Tensor) -> Tensor:
        return torch.cat([v[:-1], torch.zeros_like(v[-1:])])

    def conjugate(gradient: Tensor, active: Tensor) -> tuple[Tensor, int]:
        total = active.sum(dim=0, keepdim=True)
        spread = Xt_squared @ active - 2 * mean[:, None] * (Xt @ active) + mean.square()[:, None] * total
        diagonal = torch.cat([1 + 2 * spread.clamp(min=0), (2 * total).clamp(min=1e-12)])

        def hessian(p: Tensor) -> Tensor:
            return without_intercept(p) + 2 * times_transposed(active * times(p))

        return _conjugate_gradients(hessian, -gradient, diagonal, ACCURACY * gradient.norm(dim=0))

    condition = 1 + 2 * float(cost.max()) * float(squared_norms(X).sum() - n * mean.square().sum())
    fits = 8 * n * n <= CHUNK_BYTES and condition <= CONDITION_MAX
    multiplied = 0  # vectors by X or its transpose so far
    kernel: Tensor | None = None  # (x - mean).(x' - mean) of all rows: n vectors, so it comes when as many are paid
    for step in range(STEPS_MAX):
        v, f, z, c = V[:, going], F[:, going], Z[:, going], cost[:, going]
        slack = (1 - z * f).clamp(min=0)
        gradient = without_intercept(v) - 2 * times_transposed(c * z * slack)
        norm = torch.cat([gradient[:-1] + mean[:, None] * gradient[-1:], gradient[-1:]]).norm(dim=0)  # by w and b
        if step == 0:
            limit = TOLERANCE * (1 + norm)
        open_ = norm > limit[going]
        going, v, f, z, c = going[open_], v[:, open_], f[:, open_], z[:, open_], c[:, open_]
        if not len(going):
            break
        gradient, active = gradient[:, open_], (slack[:, open_] > 0) * c

        inside = (active > 0).sum(dim=0)
        few = (inside > 0) & (inside <= DIRECT_ROWS_MAX) & (fits and multiplied >= n)
        direction = torch.empty_like(gradient)
        if few.any():
            if kernel is None:
                kernel = centred_kernel(X)
            pull = times(without_intercept(gradient[:, few]))
            duals, intercepts = _direct_steps(kernel, active[:, few], pull, gradient[-1, few])
            direction[:-1, few] = -gradient[:-1, few] - times_transposed(duals)[:-1]
            direction[-1, few] = intercepts
        if not few.all():
            direction[:, ~few], steps = conjugate(gradient[:, ~few], active[:, ~few])
            multiplied += 2 * steps * int((~few).sum())
        along = times(direction)
        t = _search(without_intercept(v), direction, f, along, z, c)
        V[:, going], F[:, going] = v + t * direction, f + t * along
    else:
        warnings.warn(
            f"{len(going)} of {m} SVMs have not converged in {STEPS_MAX} steps: columns of very different sizes do "
            "that (data.scale=standard)",
            stacklevel=2,
        )
    return V[:-1].t().contiguous(), V[-1] - mean @ V[:-1]


def _direct_steps(kernel: Tensor, active: Tensor, pull: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's step of each column p = (p_w, p_b), exactly, in one unknown for each row inside the margin.

    With A the rows inside, K = A A', and u = 2 cost (A p_w + p_b): p_w = -g_w - A' u, so that
    (K + 1 / (2 cost)) u - p_b = -A g_w, and the free intercept asks for sum u = -g_b.

    Args:
        kernel: K of all rows, (n, n).
        active: the cost of rows inside the margin, 0 of the others, (n, m).
        pull: A g_w of all rows, (n, m).
        wanted: g_b, (m,).

    Returns:
        u (n, m), 0 outside, and p_b (m,).
    """
    duals, intercepts = torch.zeros_like(active), torch.empty_like(wanted)
    for place in range(active.shape[1]):
        rows = active[:, place].nonzero()[:, 0]
        K = kernel[rows[:, None], rows]
        K.diagonal().add_(0.5 / active[rows, place])
        right = torch.stack([-pull[rows, place], K.new_ones(len(rows))], dim=1)
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(K))
        of_pull, of_one = solved.sum(dim=0)
        intercepts[place] = -(wanted[place] + of_pull) / of_one
        duals[rows, place] = solved[:, 0] + intercepts[place] * solved[:, 1]
    return duals, intercepts


def _conjugate_gradients(
    hessian: Callable[[Tensor], Tensor], wanted: Tensor, diagonal: Tensor, accuracy: Tensor
) -> tuple[Tensor, int]:
    """Solves hessian(p) = wanted for each column until the residual's norm is below its accuracy: p, and its steps."""
    p, residual = torch.zeros_like(wanted), wanted.clone()
    scaled = residual / diagonal
    search, rho = scaled.clone(), (residual * scaled).sum(dim=0)
    steps = 0
    while steps < SOLVER_STEPS_MAX:
        open_ = residual.norm(dim=0) > accuracy
        if not open_.any():
            break
        image = hessian(search)
        length = torch.where(open_, rho / (search * image).sum(dim=0).clamp(min=1e-300), 0.0)
        p, residual = p + length * search, residual - length * image
        scaled = residual / diagonal
        rho, before = (residual * scaled).sum(dim=0), rho
        search = scaled + rho / before.clamp(min=1e-300) * search
        steps += 1
    return p, steps


def _search(w: Tensor, direction: Tensor, f: Tensor, along: Tensor, z: Tensor, cost: Tensor) -> Tensor:
    """Where each column's function is least along its direction: the root of its rising, piecewise linear slope."""
    step = torch.cat([direction[:-1], torch.zeros_like(direction[-1:])])
    constant, linear = (w * step).sum(dim=0), step.square().sum(dim=0)
    t = torch.ones_like(linear)
    low, high = torch.zeros_like(t), torch.full_like(t, torch.inf)
    first = (constant - 2 * (cost * z * along * (1 - z * f).clamp(min=0)).sum(dim=0)).abs()
    for _ in range(SEARCH_STEPS_MAX):
        slack = (1 - z * (f + t * along)).clamp(min=0)
        slope = constant + t * linear - 2 * (cost * z * along * slack).sum(dim=0)
        if (slope.abs() <= 1e-3 * first).all():
            break
        low, high = torch.where(slope < 0, t, low), torch.where(slope > 0, t, high)
        curvature = linear + 2 * (cost * along.square() * (slack > 0)).sum(dim=0)
        newton = t - slope / curvature
        inside = (newton > low) & (newton < high)
        t = torch.where(inside, newton, torch.where(high.isinf(), 2 * t, (low + high) / 2))
    return t


class SVMs(VariableBuffers, nn.Module):
    """SVMs that were fitted together or one after the other, in a checkpoint as numbers."""

    weights: Tensor  # (m, d), linear
    intercepts: Tensor  # (m,)
    coefficients: Tensor  # (S, m), of the support rows, RBF
    gammas: Tensor  # (m,), RBF

    def __init__(self, settings: SVMSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_variable_buffer("weights", torch.float64, axes=2)
        self.register_variable_buffer("intercepts", torch.float64)
        self.register_variable_buffer("coefficients", torch.float64, axes=2)
        self.register_variable_buffer("gammas", torch.float64)
        self.support = StoredRows()

    def __len__(self) -> int:
        return len(self.intercepts)

    def add(self, X: Tensor, Z: Tensor) -> None:
        """Fits m more on rows X (n, d) and sides Z (n, m) of -1 and 1; a side may be empty."""
        if self.settings.kernel == "linear":
            w, b = linear_svms(X, Z, self.settings.costs(Z))
            self.weights = torch.cat([self.weights, w]) if len(self) else w
        else:
            b = self._add_rbf(X, Z)
        self.intercepts = torch.cat([self.intercepts, b])

    def _add_rbf(self, X: Tensor, Z: Tensor) -> Tensor:
        entries = X.values() if is_sparse(X) else X
        size = len(X) * X.shape[1]
        variance = float(entries.square().sum() / size - (entries.sum() / size) ** 2)
        gamma = 1 / (X.shape[1] * variance) if variance > 0 else 1.0
        rows, costs = as_scipy(X), self.settings.costs(Z).cpu().numpy()
        coefficients, b = torch.zeros_like(Z), Z[0].clone()  # an SVM whose other side is empty says its own sign
        for place, z in enumerate(Z.t().contiguous().cpu().numpy()):
            if (z != z[0]).any():
                svc = SVC(C=1.0, gamma=gamma).fit(rows, z, sample_weight=costs[:, place].copy())
                dual = svc.dual_coef_.toarray() if sparse.issparse(svc.dual_coef_) else svc.dual_coef_
                coefficients[svc.support_.tolist(), place] = Z.new_tensor(dual[0])
                b[place] = float(svc.intercept_[0])
        used = coefficients.any(dim=1).nonzero()[:, 0]
        before = nn.functional.pad(self.coefficients, (0, Z.shape[1])) if len(self) else Z.new_zeros(0, Z.shape[1])
        self.coefficients = torch.cat([before, nn.functional.pad(coefficients[used], (len(self), 0))])
        self.gammas = torch.cat([self.gammas, Z.new_full((Z.shape[1],), gamma)])
        if len(used):
            self.support.append(take_rows(X, used))
        return b

    def decisions(self, X: Tensor, which: slice = slice(None)) -> Tensor:
        """Signed decisions of some of them, (n, m), for rows X (n, d)."""
        if self.settings.kernel == "linear":
            return products(X, self.weights[which]) + self.intercepts[which]
        coefficients, gammas, b = self.coefficients[:, which], self.gammas[which], self.intercepts[which]
        if not len(self.support):
            return b.expand(len(X), -1)
        rows, found = self.support.get(), []
        for piece in chunks(X, len(rows)):
            distance = squared_distances(piece, rows)
            each = [torch.exp(-gamma * distance) @ coefficients[:, [place]] for place, gamma in enumerate(gammas)]
            found.append(torch.cat(each, dim=1))
        return torch.cat(found) + b
