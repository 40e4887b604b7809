"""Fish toxicity by a tree over target ranges, on one page: bins, a classifier for each cut, a value for each leaf."""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import MeanMetric

from components.refitted_estimator import RefittedEstimator
from lightning_modules.closed_form import ClosedFormModule
from lightning_modules.fish_toxicity_qsar.bins import canonical_order, pieces, weighted_mean_square_difference
from lightning_modules.fish_toxicity_qsar.figures import bins_figure, predicted_figure, tree_figure
from lightning_modules.fish_toxicity_qsar.leaves import (
    Measure,
    linear_regression,
    mean_predictions,
    measure,
    regressor_for,
)
from lightning_modules.fish_toxicity_qsar.node_classifiers import RANKERS, NodeSelection, Ranker, many_classes
from lightning_modules.fish_toxicity_qsar.regressor import predicted_rows, regressor_name
from lightning_modules.fish_toxicity_qsar.scores import LEAKY, MODEL, REFERENCE, Protocol, ToxicityScores, stage_of
from runs.errors import InputError, did_you_mean

LEAST_BINS = 3  # at level 1: with fewer there is nothing to classify
ENSEMBLE_ROWS = 3  # of a leaf that has regressors (Sect. 3)
log = logging.getLogger("reprise")


class BinTreeModule(ClosedFormModule):
    """A tree over ranges of a target y; a chemical goes down it by classifiers and takes its leaf's value.

    The paper's y is -log10(LC50, mol/L), where larger is more toxic.

    One step cuts the bins of one level and chooses the classifiers of what was cut; the last one gives the
    leaves their values. Rows are kept by ascending y, so a node is a range of them. Batches:
    ``features (B, d)``, ``target (B,)``, ``index (B,)``. Bin accuracy is percent.

    Args:
        levels: of cuts; 0: one leaf with all rows.
        gaps: tau of each level (Table 1), in the target's unit.
        gap_decimals: to which a step between targets is rounded before it is compared; None: not at all.
        wmsd: theta of each level (Table 1); None cuts whatever has a gap.
        classifiers: each gives an unfitted classifier; of equally good ones the first is taken.
        classifier: the one to use everywhere, or ``select``.
        ranker: of columns, to use everywhere, or ``select``.
        k: columns to use everywhere, or ``select``.
        ks: columns to try where they are selected; ``all`` are those with a score above 0.
        selection_folds: of the comparison inside a node.
        regressors: each gives an unfitted regressor for a leaf.
        leaf_regressors: those of them that leaves with three rows or more use.
        leaf_measure: what makes one value of the regressors' predictions (Eqs. 3-7).
        leaf: ``constant``: a leaf's one value (the paper's Table 4); ``linear``: its regression at the
            chemical; ``per_sample_ensemble``: the measure of its regressors' predictions for the chemical.
        reference: a regressor on all rows without bins, whose scores stand beside the tree's; None without.
        evaluation: which of the paper's four ways of judging is logged, or ``all``.
        protocol: ``leaky_paper``: the datamodule trains on the judged rows too, and the scores are named so.
        split: kind of split of the data, for Q2.
        folds: of a split by folds.
        seed: of the folds inside nodes and leaves.

    Raises:
        InputError: settings that make no sense.
    """

    rows: Tensor  # (n, d) float64, by ascending target
    targets: Tensor  # (n,) float64, ascending
    parent: Tensor  # (N,) int64, -1 of the root; nodes come level by level, children of one node side by side
    depth: Tensor  # (N,) int64
    start: Tensor  # (N,) int64, a node's rows are start .. stop - 1
    stop: Tensor
    classifier: Tensor  # (N,) int64, place among `classifiers`; -1 of a leaf
    ranker: Tensor  # (N,) int64, place in RANKERS; -1 of a leaf
    cv_f1: Tensor  # (N,) float64, micro-F1 of the choice over its folds, 0..1; NaN of a leaf
    majority: Tensor  # (N,) float64, share of the largest child; NaN of a leaf
    columns: Tensor  # (C, 2) int64, node and column, best first
    tried: Tensor  # (T, 5) float64: node, classifier, ranker, k, micro-F1
    said: Tensor  # (levels, n) int64, the child that a level's classifiers give each row; -1 without one
    leaf_predictions: Tensor  # (N, m) float64, p_1 .. p_m; NaN without regressors
    leaf_value: Tensor  # (N,) float64, NaN of inner nodes
    slopes: Tensor  # (N, d + 1) float64, the regression of each leaf, intercept last; NaN of inner nodes
    estimated: Tensor  # (m, n) float64, what a leaf's regressors say of its rows; for the ensemble alone

    def __init__(
        self,
        levels: int,
        gaps: list[float],
        gap_decimals: int | None,
        wmsd: list[float | None],
        classifiers: dict[str, Callable[[], Any]],
        classifier: str,
        ranker: Ranker | Literal["select"],
        k: int | Literal["select"],
        ks: list[int | Literal["all"]],
        selection_folds: int,
        regressors: dict[str, Callable[[], Any]],
        leaf_regressors: list[str],
        leaf_measure: Measure,
        leaf: Literal["constant", "linear", "per_sample_ensemble"],
        reference: Callable[[], Any] | None,
        evaluation: Literal["all", "bin_accuracy", "leaf_value", "range_interval_oracle", "leaf_regression"],
        protocol: Protocol,
        split: Literal["official", "repeated", "folds"],
        folds: int,
        seed: int,
    ) -> None:
        super().__init__()
        if not 0 <= levels <= min(len(gaps), len(wmsd)):
            raise InputError(
                f"model.levels={levels} must be from 0 to the number of thresholds, and model.gaps has {len(gaps)}, "
                f"model.wmsd {len(wmsd)}"
            )
        unknown = [name for name in leaf_regressors if name not in regressors]
        if unknown or not leaf_regressors:
            raise InputError(
                f"model.leaf_regressors={leaf_regressors} must name one regressor or more for the leaves: "
                f"{did_you_mean((unknown or [''])[0], regressors)}"
            )
        self.levels, self.gaps, self.gap_decimals, self.wmsd = levels, gaps, gap_decimals, wmsd
        self.classifiers = classifiers
        self.regressors = {name: regressors[name] for name in leaf_regressors}
        self.selection = NodeSelection(classifiers, classifier, ranker, k, ks, selection_folds, seed)
        self.leaf_measure, self.leaf, self.evaluation = leaf_measure, leaf, evaluation
        self.protocol, self.split, self.folds, self.seed = protocol, split, folds, seed
        self.reference = None if reference is None else RefittedEstimator(reference)
        for name in ("parent", "depth", "start", "stop", "classifier", "ranker"):
            self.register_variable_buffer(name, torch.int64)
        for name in ("targets", "cv_f1", "majority", "leaf_value"):
            self.register_variable_buffer(name, torch.float64)
        for name in ("rows", "tried", "leaf_predictions", "slopes", "estimated"):
            self.register_variable_buffer(name, torch.float64, axes=2)
        for name in ("columns", "said"):
            self.register_variable_buffer(name, torch.int64, axes=2)
        self.register_buffer("grown", torch.zeros((), dtype=torch.int64))  # levels that are finished
        self._estimators: dict[tuple[str, int], RefittedEstimator] = {}

    # ---- training: a level a step, then the leaves ------------------------------------------

    def fit_closed_form(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """The next level of the tree, or the values of its leaves."""
        if not len(self.targets):
            self.plant(batch)
        if int(self.grown) < self.levels:
            return self.grow(int(self.grown) + 1)
        return self.fit_leaves()

    def is_fitted(self) -> bool:
        return len(self.leaf_value) > 0

    def plant(self, batch: dict[str, Tensor]) -> None:
        """The root, with all training rows sorted by y."""
        if self.protocol == "leaky_paper":
            warnings.warn(LEAKY, stacklevel=2)
        order = canonical_order(batch["features"].numpy(), batch["target"].numpy())
        self.rows, self.targets = batch["features"][order], batch["target"][order]
        self.said = torch.empty((0, len(order)), dtype=torch.int64)
        self.tried, self.columns = self.tried.reshape(0, 5), self.columns.reshape(0, 2)
        self._append(-1, 0, [(0, len(order))])

    def grow(self, level: int) -> dict[str, float]:
        """Cuts the bins of the level above (Eqs. 1 and 2), and chooses a classifier for each that was cut.

        Raises:
            InputError: the first level has fewer than three bins.
        """
        gap, wmsd = self.gaps[level - 1], self.wmsd[level - 1]
        for node in (self.depth == level - 1).nonzero()[:, 0].tolist():
            start, stop = int(self.start[node]), int(self.stop[node])
            cut = pieces(self.targets[start:stop], gap, self.gap_decimals, wmsd, len(self.targets))
            if level == 1 and len(cut) < LEAST_BINS:
                raise InputError(
                    f"level 1 has {len(cut)} bins of the {len(self.targets)} training rows, and {LEAST_BINS} is the "
                    f"least: model.gaps[0]={self.gaps[0]} must be below more of the steps between sorted targets"
                )
            if len(cut) > 1:
                self._append(node, level, [(start + a, start + b) for a, b in cut])
        cut_here = self.inner_nodes(level - 1)
        said = torch.full((1, len(self.targets)), -1, dtype=torch.int64)
        self.said = torch.cat([self.said, said])
        for number, node in enumerate(cut_here, 1):
            self.choose_classifier(node, f"bin {number} of {len(cut_here)}, level {level - 1}")
        self.grown = torch.tensor(level)
        scores = {"level": level, "bins": len(self.leaves()), "cut": len(cut_here)}
        if cut_here:
            scores |= {"cv_f1": float(self.cv_f1[cut_here].mean()), "majority": float(self.majority[cut_here].mean())}
        return scores

    def choose_classifier(self, node: int, place: str) -> None:
        """Which child a chemical belongs to: the best of classifiers, rankers and numbers of columns (Sect. 4.2).

        Args:
            node: that was cut.
            place: of it in the work of its level, in words.
        """
        features, children = self.rows_of(node).numpy(), self.children_of_rows(node).numpy()
        total = self.selection.fits(len(children))
        watch = partial(self.progress, total=total, description=place)
        best, columns, candidates = self.selection.choose(features, children, watch)
        names = list(self.classifiers)
        self.classifier[node], self.ranker[node] = names.index(best.classifier), RANKERS.index(best.ranker)
        self.cv_f1[node] = best.f1
        self.majority[node] = np.bincount(children).max() / len(children)
        places = torch.from_numpy(columns)
        self.columns = torch.cat([self.columns, torch.stack([torch.full_like(places, node), places], dim=1)])
        tried = [[node, names.index(c.classifier), RANKERS.index(c.ranker), c.k, c.f1] for c in candidates]
        self.tried = torch.cat([self.tried, torch.tensor(tried, dtype=torch.float64)])
        fitted = self._fitted("classifier", node)
        with many_classes():
            fitted.fit(self.rows_of(node)[:, columns], torch.from_numpy(children))  # on all rows of the node
        self.said[int(self.depth[node]), self.range_of(node)] = fitted.said.long()
        log.info(
            f"{place} (node {node}): {len(children)} rows in {children.max() + 1} bins by "
            f"{best.classifier}, {best.ranker}, {best.k} columns: F1 {best.f1:.4f}, majority {self.majority[node]:.4f}"
        )

    def fit_leaves(self) -> dict[str, float]:
        """A value for each leaf: its y, the mean of two, or a measure of what regressors predict (Sect. 3)."""
        N, m, d = len(self.parent), len(self.regressors), self.rows.shape[1]
        p = torch.full((N, m), torch.nan, dtype=torch.float64)
        slopes = torch.full((N, d + 1), torch.nan, dtype=torch.float64)
        value = torch.full((N,), torch.nan, dtype=torch.float64)
        self.estimated = torch.full((m, len(self.targets)), torch.nan, dtype=torch.float64)
        for leaf in self.progress(self.leaves(), len(self.leaves()), "leaves"):
            features, targets = self.rows_of(leaf), self.targets[self.range_of(leaf)]
            if len(targets) < ENSEMBLE_ROWS:
                value[leaf] = targets.mean()
                slopes[leaf] = torch.cat([torch.zeros(d, dtype=torch.float64), value[leaf, None]])
                continue
            p[leaf] = torch.tensor(mean_predictions(features.numpy(), targets.numpy(), self.regressors, self.seed))
            value[leaf] = measure(p[leaf], self.leaf_measure)
            slopes[leaf] = torch.from_numpy(linear_regression(features.numpy(), targets.numpy()))
            if self.leaf == "per_sample_ensemble":
                for place, name in enumerate(self.regressors):
                    fitted = self._fitted(name, leaf)
                    fitted.fit(features, targets)
                    self.estimated[place, self.range_of(leaf)] = fitted.said
        self.leaf_predictions, self.slopes, self.leaf_value = p, slopes, value
        if self.reference is not None:
            self.reference.fit(self.rows, self.targets)
        return {"leaves": len(self.leaves())}

    # ---- a chemical in the tree --------------------------------------------------------------

    def walk(self, features: Tensor) -> Tensor:
        """The leaf that each chemical (B, d) reaches, (B,)."""
        node = torch.zeros(len(features), dtype=torch.int64)
        for inner in self.inner_nodes():  # a parent comes before its children
            here = (node == inner).nonzero()[:, 0]
            if len(here):
                chosen = features[here][:, self.columns_of(inner)]
                with many_classes():
                    child = self._fitted("classifier", inner).estimator.predict(chosen.numpy())
                node[here] = self.bins_of(inner)[torch.from_numpy(child)]
        return node

    def forward(self, features: Tensor) -> Tensor:
        """The target of each chemical (B, d), (B,)."""
        return self.estimate(features, self.walk(features), self.leaf)

    def estimate(self, features: Tensor, leaf: Tensor, how: str) -> Tensor:
        """Toxicity of chemicals (B, d) in their leaves (B,): ``constant``, ``linear`` or ``per_sample_ensemble``."""
        if how == "linear":
            return (features * self.slopes[leaf, :-1]).sum(dim=1) + self.slopes[leaf, -1]
        value = self.leaf_value[leaf]
        if how == "per_sample_ensemble":
            for reached in leaf.unique().tolist():
                if len(self.targets[self.range_of(reached)]) >= ENSEMBLE_ROWS:
                    here = (leaf == reached).nonzero()[:, 0]
                    value[here] = measure(self._ensemble(reached, features[here]), self.leaf_measure)
        return value

    def range_interval(self, leaf: Tensor, true: Tensor) -> Tensor:
        """E3: the end of the leaf's range that is closer to the TRUE y: an oracle, never a prediction."""
        low, high = self.ranges(leaf)
        return torch.where((true - low).abs() <= (high - true).abs(), low, high)

    def in_bin(self, leaf: Tensor, true: Tensor) -> Tensor:
        """Eq. 8: whether the true y lies in the leaf's range, both ends included; printed with the signs mixed up."""
        low, high = self.ranges(leaf)
        return (low <= true) & (true <= high)

    # ---- scores ------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        self._check_finished()
        rows = {"leaf_value": MODEL, "leaf_regression": "leaf_regression", "range_interval_oracle": "oracle"}
        judged = [row for way, row in rows.items() if self.evaluation in ("all", way)]
        self.scores = ToxicityScores([*judged, *([REFERENCE] if self.reference is not None else [])])
        self.bin_accuracy, self.bin_floor = (MeanMetric().set_dtype(torch.float64) for _ in range(2))
        if self.protocol == "leaky_paper":
            warnings.warn(LEAKY, stacklevel=2)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Judges by E1 the bin, by E2 the leaf's value, by E3 the oracle, by E4 the regression in the leaf."""
        features, true = batch["features"], batch["target"]
        leaf = self.walk(features)
        predictions = {
            MODEL: self.estimate(features, leaf, self.leaf),
            "leaf_regression": self.estimate(features, leaf, "linear"),
            "oracle": self.range_interval(leaf, true),
        }
        if self.reference is not None:
            predictions[REFERENCE] = torch.from_numpy(self.reference.estimator.predict(features.numpy()))
        self.scores.update(predictions, true, self.targets.mean())
        self.bin_accuracy.update(100.0 * self.in_bin(leaf, true).double())
        self.bin_floor.update(100.0 * self.in_bin(torch.full_like(leaf, self.largest_leaf()), true).double())

    def on_test_epoch_end(self) -> None:
        stage, oracle = stage_of(self.protocol), stage_of(self.protocol, oracle=True)
        names = {
            MODEL: f"{stage}/",
            "leaf_regression": f"{stage}/leaf_regression_",
            "oracle": f"{oracle}/",
            REFERENCE: f"{stage}/reference_",
        }
        logged = self.scores.compute({row: name for row, name in names.items() if row in self.scores.scores})
        if self.evaluation in ("all", "bin_accuracy"):
            logged[f"{stage}/bin_accuracy"] = self.bin_accuracy.compute()
            logged["floor/bin_accuracy"] = self.bin_floor.compute()
        if self.split == "folds":
            logged[f"{stage}/q2"], logged["floor/q2"] = self.scores.q2(self.targets, self.folds)
        if self.levels:
            logged |= {f"{stage}/level1_cv_f1": self.cv_f1[0], "floor/level1_cv_f1": self.majority[0]}
        self.log_dict({**logged, f"{stage}/leaves": float(len(self.leaves()))})

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Each chemical's name, its target (see `predicted_rows`), its leaf and the leaf's range of the target."""
        self._check_finished()
        leaf = self.walk(batch["features"])
        values = self.estimate(batch["features"], leaf, self.leaf)
        low, high = self.ranges(leaf)
        places = zip(leaf.tolist(), low.tolist(), high.tolist(), strict=True)
        rows = zip(predicted_rows(batch, values, self.target_name), places, strict=True)
        return [{**row, "leaf": place, "leaf_from": a, "leaf_to": b} for row, (place, a, b) in rows]

    def figures(self, stage: str) -> dict[str, Figure]:
        """The tree, the bins of each level (Fig. 3), and predicted against true."""
        if stage != "test":
            return {}
        nodes, targets, titles = self.node_table(), self.targets.numpy(), {MODEL: "tree"}
        if self.reference is not None:
            titles[REFERENCE] = f"{regressor_name(self.reference.estimator)}, no bins"
        return {
            "tree": tree_figure(nodes, targets, self.target_name),
            "bins": bins_figure(nodes, targets, self.target_name),
            "predicted": predicted_figure(self.scores.judged(), titles, self.target_name, self.protocol),
        }

    @property
    def target_name(self) -> str:
        """What is predicted, which the datamodule knows."""
        return self.trainer.datamodule.target_name

    # ---- the tree's state --------------------------------------------------------------------

    def inner_nodes(self, level: int | None = None) -> list[int]:
        """Nodes that were cut, parents before their children; those of one level, or all."""
        cut = self.parent[self.parent >= 0].unique()
        return (cut if level is None else cut[self.depth[cut] == level]).tolist()

    def leaves(self) -> list[int]:
        """Nodes that were not cut."""
        return sorted({*range(len(self.parent))} - {*self.inner_nodes()})

    def largest_leaf(self) -> int:
        """The leaf with most training rows."""
        return max(self.leaves(), key=lambda leaf: int(self.stop[leaf] - self.start[leaf]))

    def bins_of(self, node: int) -> Tensor:
        """Nodes that a node was cut into, by ascending range."""
        return (self.parent == node).nonzero()[:, 0]

    def range_of(self, node: int) -> slice:
        """Where a node's training rows stand."""
        return slice(int(self.start[node]), int(self.stop[node]))

    def rows_of(self, node: int) -> Tensor:
        """Features of a node's training rows, (b, d)."""
        return self.rows[self.range_of(node)]

    def children_of_rows(self, node: int) -> Tensor:
        """Which child of a node, from 0, each of its training rows is in, (b,)."""
        children = self.bins_of(node)
        return torch.arange(len(children)).repeat_interleave(self.stop[children] - self.start[children])

    def columns_of(self, node: int) -> Tensor:
        """Columns that a node's classifier looks at, best first."""
        return self.columns[self.columns[:, 0] == node, 1]

    def ranges(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest training target of nodes."""
        return self.targets[self.start[nodes]], self.targets[self.stop[nodes] - 1]

    def node_table(self) -> list[dict[str, Any]]:
        """A line for each node; None where a leaf has no classifier, or an inner node no value."""
        low, high = self.ranges(torch.arange(len(self.parent)))
        names, table = list(self.classifiers), []
        for node in range(len(self.parent)):
            own, inner = self.targets[self.range_of(node)], int(self.classifier[node]) >= 0
            row = {"node": node, "parent": int(self.parent[node]), "level": int(self.depth[node]), "rows": len(own)}
            row |= {"from": float(low[node]), "to": float(high[node])}
            row |= {"wmsd": weighted_mean_square_difference(own, len(self.targets)), "bins": len(self.bins_of(node))}
            row |= {
                "classifier": names[int(self.classifier[node])] if inner else None,
                "ranker": RANKERS[int(self.ranker[node])] if inner else None,
                "k": len(self.columns_of(node)) if inner else None,
                "cv_f1": float(self.cv_f1[node]) if inner else None,
                "majority": float(self.majority[node]) if inner else None,
                "value": float(self.leaf_value[node]) if self.is_fitted() and not inner else None,
            }
            table.append(row)
        return table

    def selection_table(self) -> list[dict[str, Any]]:
        """A line for each candidate of each inner node (Table 2 has the best over k)."""
        names = list(self.classifiers)
        return [
            {"node": int(node), "classifier": names[int(c)], "ranker": RANKERS[int(r)], "k": int(k), "cv_f1": f1}
            for node, c, r, k, f1 in self.tried.tolist()
        ]

    def _append(self, parent: int, depth: int, ranges: list[tuple[int, int]]) -> None:
        starts, stops = zip(*ranges, strict=True)
        of_all = {
            "parent": parent,
            "depth": depth,
            "classifier": -1,
            "ranker": -1,
            "cv_f1": torch.nan,
            "majority": torch.nan,
        }
        new = {name: [value] * len(ranges) for name, value in of_all.items()} | {"start": starts, "stop": stops}
        for name, values in new.items():
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, torch.tensor(values, dtype=old.dtype)]))

    def _fitted(self, kind: str, node: int) -> RefittedEstimator:
        """An estimator of a node, refitted on the tree's rows where only a checkpoint was there."""
        if (kind, node) not in self._estimators:
            here, features = self.range_of(node), self.rows_of(node)
            if kind == "classifier":
                name = list(self.classifiers)[int(self.classifier[node])]
                fitted = RefittedEstimator(partial(self.selection.make, name, len(features)))
                fitted.features, fitted.wanted = (
                    features[:, self.columns_of(node)],
                    self.children_of_rows(node).double(),
                )
                fitted.said = self.said[int(self.depth[node]), here].double()
            else:
                make = self.regressors[kind]
                fitted = RefittedEstimator(partial(regressor_for, make, len(features)))
                fitted.features, fitted.wanted = features, self.targets[here]
                fitted.said = self.estimated[list(self.regressors).index(kind), here]
            self._estimators[kind, node] = fitted
        return self._estimators[kind, node]

    def _ensemble(self, leaf: int, features: Tensor) -> Tensor:
        """What a leaf's regressors predict for chemicals, (b, m)."""
        estimators = [self._fitted(name, leaf).estimator for name in self.regressors]
        return torch.from_numpy(np.stack([e.predict(features.numpy()) for e in estimators], axis=1)).double()

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        self._estimators.clear()
        super()._load_from_state_dict(*arguments, **named)

    def _check_finished(self) -> None:
        if not self.is_fitted():
            raise InputError(
                f"the tree has {int(self.grown)} of {self.levels} levels and no leaf values: go on with its run "
                "(python train.py ckpt_path=<run>), with trainer.max_epochs above model.levels"
            )
