"""IHLSVM on one page: kernel, Laplacians of graph and hypergraph, the primal problem and its solution (Algorithm 1)."""

import warnings
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.closed_form import Batch
from lightning_modules.hypergraph_svm.figures import hypergraph_figure, solver_figure, surface_figure
from lightning_modules.hypergraph_svm.judging import TableClassifier
from lightning_modules.hypergraph_svm.operators import (
    Kernel,
    Laplacian,
    as_tensor,
    graph_laplacian,
    hypergraph_laplacian,
    kernel_matrix,
    neighbours,
)
from lightning_modules.hypergraph_svm.selection import HyperParameters, Selection, Trial, inner_trials, share_right
from lightning_modules.hypergraph_svm.solvers import (
    PCGState,
    PrimalProblem,
    gradient_norm,
    newton_step,
    objective_from_products,
    pcg_start,
    pcg_step,
)
from runs.errors import InputError

_WORKING = [field.name for field in fields(PCGState) if field.name not in ("alpha", "b")]


@dataclass(frozen=True)
class Manifold:
    """The matrices L and H of the intrinsic norm.

    Attributes:
        laplacian: form of L; H is always the normalised one (Eq. 8).
        k_graph: neighbours of each row in the graph.
        k_hyper: others in the hyperedge of each row.
        mu: width of the similarity in hyperedge weights, of squared distances; ``mean``: their mean over all pairs.
        bias: whether b is part of the intrinsic norm, as in Eq. 11.
    """

    laplacian: Laplacian
    k_graph: int
    k_hyper: int
    mu: float | Literal["mean"]
    bias: bool

    def __post_init__(self) -> None:
        if self.mu != "mean" and self.mu <= 0:
            raise InputError(f"model.manifold.mu={self.mu} must be above 0, or mean")

    def matrices(self, points: NDArray[np.float64], lam: Tensor, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """L and H with their weights in IHL = lambda L + (1 - lambda) H (Eq. 10); what has no weight is not built."""
        found = []
        if bool((lam > 0).any()):
            found.append((as_tensor(graph_laplacian(points, self.k_graph, self.laplacian), device), lam))
        if bool((lam < 1).any()):
            found.append((as_tensor(hypergraph_laplacian(points, self.k_hyper, self.mu), device), 1 - lam))
        return found


@dataclass(frozen=True)
class Solver:
    """How Eq. 11 is minimised.

    Attributes:
        method: ``pcg``: preconditioned conjugate gradients, O(m²) an iteration; ``newton``: O(m³) an iteration.
        tol: a column is solved where its preconditioned gradient norm is this share of the first one.
        iterations: bound.
        iterations_per_step: of training; a checkpoint is written after each step.
    """

    method: Literal["pcg", "newton"]
    tol: float
    iterations: int
    iterations_per_step: int

    def __post_init__(self) -> None:
        if not 0 < self.tol < 1:
            raise InputError(f"model.solver.tol={self.tol} must be above 0 and below 1")
        for name in ("iterations", "iterations_per_step"):
            if getattr(self, name) < 1:
                raise InputError(f"model.solver.{name}={getattr(self, name)} must be 1 or more")


class HypergraphSVMModule(TableClassifier):
    """f(x) = Σ alpha_i k(x_i, x) + b of labelled and unlabelled rows; several classes or labels as columns.

    LapSVM, HGSVM and IHLSVM are lambda 1, 0 and between; delta_I = 0 is a kernel SVM with squared hinge loss.
    Batches: ``features`` (m, d) float64, ``label`` (-1 where hidden), ``labelled`` (m,) bool. All state is float64.

    Args:
        kernel: ``rbf`` or ``linear``.
        gamma: k(x, z) = exp(-gamma ||x - z||²), above 0; ``auto`` is 1/d.
        delta_a: weight of the ambient norm, above 0.
        delta_i: weight of the intrinsic norm, 0 or more.
        lam: lambda of Eq. 10, from 0 to 1.
        manifold: how L and H are built.
        solver: how the problem is solved.
        selection: whether gamma, delta_A, delta_I and lambda are those above, or chosen from a grid.
        most_rows: training rows beyond which the kernel is refused.
    """

    support: Tensor  # (m, d) training rows
    y: Tensor  # (m, C), 0 where unlabelled
    alpha: Tensor  # (m, C)
    b: Tensor  # (C,)
    chosen: Tensor  # (4,) gamma, delta_A, delta_I, lambda
    grid: Tensor  # (P, 5), those of each point that was tried, and its share of right answers
    trace: Tensor  # (T, 4): iteration, summed J, largest gradient norm of a column as a share of the first, |E|

    def __init__(
        self,
        kernel: Kernel,
        gamma: float | Literal["auto"],
        delta_a: float,
        delta_i: float,
        lam: float,
        manifold: Manifold,
        solver: Solver,
        selection: Selection,
        most_rows: int,
    ) -> None:
        super().__init__()
        for name, values, fits, words in (
            ("gamma", [] if gamma == "auto" else [gamma], lambda value: value > 0, "above 0, or auto"),
            ("selection.gamma", selection.gamma, lambda value: value > 0, "above 0"),
            ("delta_a", [delta_a], lambda value: value > 0, "above 0"),
            ("selection.delta_a", selection.delta_a, lambda value: value > 0, "above 0"),
            ("delta_i", [delta_i], lambda value: value >= 0, "0 or more"),
            ("selection.delta_i", selection.delta_i, lambda value: value >= 0, "0 or more"),
            ("lam", [lam], lambda value: 0 <= value <= 1, "from 0 to 1"),
            ("selection.lam", selection.lam, lambda value: 0 <= value <= 1, "from 0 to 1"),
        ):
            wrong = [value for value in values if not fits(value)]
            if wrong:
                raise InputError(f"model.{name}={wrong[0]} must be {words}")
        self.kernel, self.gamma, self.most_rows = kernel, gamma, most_rows
        self.delta_a, self.delta_i, self.lam = delta_a, delta_i, lam
        self.manifold, self.solver, self.selection = manifold, solver, selection
        for name, axes in {"support": 2, "y": 2, "alpha": 2, "b": 1, "chosen": 1, "grid": 2, "trace": 2}.items():
            self.register_variable_buffer(name, torch.float64, axes)
        for name in _WORKING:
            kind = torch.bool if name == "done" else torch.float64
            axes = 1 if name in ("d_b", "z_b", "norm", "first_norm", "done") else 2
            self.register_variable_buffer(f"pcg_{name}", kind, axes)
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.register_buffer("solved", torch.zeros((), dtype=torch.bool))
        self._problem: PrimalProblem | None = None

    # ---- the algorithm ---------------------------------------------------------------------

    def fit_closed_form(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """Chooses the hyper-parameters, one gamma of the grid a step, then solves, some iterations a step."""
        if not len(self.support):
            self.take(batch)
        if not len(self.chosen):
            if self.selection.rule != "fixed":
                return self.try_next_gamma(batch)
            d = self.support.shape[1]
            gamma = 1 / d if self.gamma == "auto" else self.gamma
            self.choose(HyperParameters(gamma, self.delta_a, self.delta_i, self.lam))
        return self.solve()

    def take(self, batch: Batch) -> None:
        """The training set: rows, and signs where they are labelled.

        Raises:
            InputError: no row is labelled, or there are more rows than the kernel may have.
        """
        features, labelled = batch["features"], batch["labelled"]
        m = len(features)
        if m > self.most_rows:
            raise InputError(
                f"{m} training rows: their kernel matrix takes {8 * m * m / 1e9:.2f} GB, and model.most_rows is "
                f"{self.most_rows}: train on fewer by data.max_train={self.most_rows}, or raise model.most_rows"
            )
        if not labelled.any():
            raise InputError(f"none of the {m} training rows is labelled: lower data.unlabelled")
        self.support = (features.to_dense() if features.layout != torch.strided else features).double()
        self.y = self.take_labels(batch["label"], labelled)

    def problem(self, x: Tensor, y: Tensor, gamma: float, weights: Tensor) -> PrimalProblem:
        """Eq. 11 for rows x (m, d), signs y (m, C) and P times (delta_A, delta_I, lambda): P·C columns, C a point."""
        points, C = len(weights), y.shape[1]
        delta_a, delta_i, lam = (weights[:, place].repeat_interleave(C) for place in range(3))
        intrinsic = bool((delta_i > 0).any())
        return PrimalProblem(
            K=kernel_matrix(x, x, self.kernel, gamma),
            manifold=self.manifold.matrices(x.cpu().numpy(), lam, x.device) if intrinsic else [],
            y=y.repeat(1, points),
            labelled=(y != 0).any(dim=1, keepdim=True),
            delta_a=delta_a,
            delta_i=delta_i,
            bias_in_manifold=self.manifold.bias,
        )

    def solve(self) -> dict[str, float]:
        """The next iterations on Eq. 11."""
        problem = self.training_problem()
        for _ in range(self.solver.iterations_per_step):
            self.iterate(problem)
            if self.solved:
                self._drop_working_state()
                break
        return dict(zip(("iteration", "objective", "gradient", "errors"), self.trace[-1].tolist(), strict=True))

    def iterate(self, problem: PrimalProblem) -> None:
        """One iteration; ends with all columns solved, or at the bound."""
        if self.solver.method == "newton":
            alpha, b = (self.alpha, self.b) if len(self.alpha) else (0 * problem.y, 0 * problem.delta_a)
            self.alpha, self.b, done = newton_step(problem, alpha, b, self.solver.tol)
            gradient = gradient_norm(problem, self.alpha, self.b) / gradient_norm(problem, 0 * alpha, 0 * b)
            K_alpha = problem.K @ self.alpha
            rough = problem.rough(problem.g(K_alpha, self.b))
        else:
            state = self._working_state() if len(self.alpha) else pcg_start(problem)
            state = pcg_step(problem, state, self.solver.tol)
            self._keep(state)
            gradient, done = state.norm / state.first_norm, state.done
            K_alpha, rough = state.K_alpha, state.rough
        self.iteration += 1
        J = objective_from_products(problem, self.alpha, self.b, K_alpha, rough).sum()
        errors = problem.errors(K_alpha + self.b).sum()
        row = torch.stack([self.iteration.double(), J, gradient.nan_to_num().max().sqrt(), errors.double()])
        self.trace = torch.cat([self.trace.reshape(-1, 4), row[None]])
        if not done.all() and self.iteration >= self.solver.iterations:
            warnings.warn(
                f"{int((~done).sum())} of {len(done)} columns are not solved to model.solver.tol={self.solver.tol:g} "
                f"after {self.solver.iterations} iterations (model.solver.iterations)",
                stacklevel=2,
            )
            done = torch.ones_like(done)
        self.solved.fill_(done.all())

    def forward(self, features: Tensor) -> Tensor:
        """f(x) of rows (n, d), (n, C); Eq. 5 with the bias."""
        if not self.is_fitted():
            raise InputError(
                "the checkpoint holds no solution yet: go on with its run, python train.py ckpt_path=<run>, with a "
                "trainer.max_epochs that does not end it before model.solver.iterations"
            )
        features = features.to_dense() if features.layout != torch.strided else features
        return kernel_matrix(features.double(), self.support, self.kernel, float(self.chosen[0])) @ self.alpha + self.b

    # ---- hyper-parameters ------------------------------------------------------------------

    def try_next_gamma(self, batch: Batch) -> dict[str, float]:
        """Scores all points of the grid that have the next gamma; after the last, the best point is chosen."""
        d, points = self.support.shape[1], self.selection.weights()
        gamma = self.selection.gamma[len(self.grid) // len(points)] / d
        weights = torch.tensor(points, dtype=torch.float64, device=self.support.device)
        scores = torch.stack([self.score(trial, gamma, weights) for trial in self.trials(batch)]).mean(dim=0)
        tried = torch.cat([torch.full_like(scores, gamma)[:, None], weights, scores[:, None]], dim=1)
        self.grid = torch.cat([self.grid.reshape(-1, 5), tried])
        best = self.grid[self.grid[:, 4].argmax()]  # the first of equals
        if len(self.grid) == len(points) * len(self.selection.gamma):
            self.choose(HyperParameters(*best[:4].tolist()))
        return {"tried": float(len(self.grid)), "best_share_right": float(best[4])}

    def trials(self, batch: Batch) -> list[Trial]:
        """Inner folds of the labelled rows; for ``oracle`` the judged rows themselves.

        Raises:
            InputError: the judged rows are to choose, and the datamodule does not reveal them.
        """
        if self.selection.rule == "nested":
            one_class = self.task != "multilabel"
            return inner_trials(self.support, self.y, (self.y != 0).any(dim=1), self.selection, one_class)
        if "judged_features" not in batch:
            raise InputError(
                "model.selection.rule=oracle chooses by the judged rows, which the data do not reveal: take "
                "variant=hypergraph_svm_oracle_leaky"
            )
        if not len(self.grid):
            warnings.warn(
                "the hyper-parameters are chosen on the judged rows: the test metrics are biased", stacklevel=2
            )
        return [Trial(self.support, self.y, batch["judged_features"].double(), self.signs(batch["judged_label"]))]

    def score(self, trial: Trial, gamma: float, weights: Tensor) -> Tensor:
        """Share of right answers of P points (delta_A, delta_I, lambda) on a trial's judged rows, (P,)."""
        problem = self.problem(trial.features, trial.y, gamma, weights)
        state = pcg_start(problem)
        for _ in range(self.solver.iterations):
            state = pcg_step(problem, state, self.selection.tol)
            if state.done.all():
                break
        f = kernel_matrix(trial.judged, trial.features, self.kernel, gamma) @ state.alpha + state.b
        return share_right(f.unflatten(1, (len(weights), -1)), trial.wanted, self.task != "multilabel")

    def choose(self, chosen: HyperParameters) -> None:
        """Fixes what Eq. 11 is solved with."""
        self.chosen = torch.tensor(astuple(chosen), dtype=torch.float64, device=self.support.device)

    # ---- state -----------------------------------------------------------------------------

    def is_fitted(self) -> bool:
        return bool(self.solved)

    def training_problem(self) -> PrimalProblem:
        """K, L and H of the training rows, built when first needed: they are not part of a checkpoint."""
        if self._problem is None:
            self._problem = self.problem(self.support, self.y, float(self.chosen[0]), self.chosen[None, 1:])
        return self._problem

    def _working_state(self) -> PCGState:
        return PCGState(alpha=self.alpha, b=self.b, **{name: getattr(self, f"pcg_{name}") for name in _WORKING})

    def _keep(self, state: PCGState) -> None:
        self.alpha, self.b = state.alpha, state.b
        for name in _WORKING:
            setattr(self, f"pcg_{name}", getattr(state, name))

    def _drop_working_state(self) -> None:
        """What only a further iteration would need leaves the checkpoint."""
        self._problem = None
        for name in _WORKING:
            working = getattr(self, f"pcg_{name}")
            setattr(self, f"pcg_{name}", working.new_empty((0,) * working.ndim))

    # ---- to look at ------------------------------------------------------------------------

    def on_test_epoch_end(self) -> None:
        """Logs the scores, and how the solver and the choice of hyper-parameters ended."""
        super().on_test_epoch_end()
        if len(self.grid):
            names = ("gamma", "delta_a", "delta_i", "lambda")
            self.log_dict(
                {f"test/chosen_{name}": value for name, value in zip(names, self.chosen.float(), strict=True)}
            )
        self.log("test/iterations", float(self.iteration))

    def figures(self, stage: str) -> dict[str, Figure]:
        """Decision values in the plane of the training rows, some hyperedges, and the solver's way down."""
        found = super().figures(stage)
        if stage not in ("test", "predict") or not len(self.alpha):
            return found
        points, y = self.support.cpu().numpy(), self.y.cpu().numpy()
        axes, classes = self.trainer.datamodule.axis_names, [] if self.task == "multilabel" else self.class_names
        if points.shape[1] == 2 and self.task != "multilabel":
            found["surface"] = surface_figure(
                points, y, lambda rows: self(torch.from_numpy(rows).to(self.device)).cpu().numpy(), axes, classes
            )
        if stage == "test":
            if self.chosen[2] > 0 and self.chosen[3] < 1:  # the hypergraph has a part in it
                members = neighbours(points, self.manifold.k_hyper, "model.manifold.k_hyper")[0]
                found["hypergraph"] = hypergraph_figure(points, y, members, axes, classes)
            found["solver"] = solver_figure(self.trace.cpu().numpy())
        return found
