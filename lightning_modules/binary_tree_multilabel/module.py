"""BT-MA on one page: a chain of SVMs tells how many labels a row has, the nearest mean which (Algorithm 1)."""

import math
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric

from components.figures import confusion_matrix
from components.metrics.label_sets import Ties
from lightning_modules.binary_tree_multilabel.figures import Leaf, tree_figure
from lightning_modules.binary_tree_multilabel.multilabel import Answer, MultilabelModule
from lightning_modules.binary_tree_multilabel.prototypes import Prototypes
from lightning_modules.binary_tree_multilabel.rows import take_rows
from lightning_modules.binary_tree_multilabel.svm import SVMs, SVMSettings

LEFT, SPLIT, RIGHT = 1, 0, -1  # a level without one side has no SVM: all its rows go to the other
WHOLE = -1  # the one leaf of a method without a tree


class BTMAModule(MultilabelModule):
    """Binary tree by the NUMBER of labels of a row; its leaves copy the label vector of the nearest mean.

    Each training step grows one level of the tree. A checkpoint after level i goes on with level i + 1.

    Args:
        svm: how the two sides of a level are told apart.
        depth: D: ``half`` floor(L_m / 2), at least 1; ``ceil`` rounds up; ``full`` L_m - 1.
        residual_leaf: for rows of more than D labels: ``prototypes`` of all label vectors with more; ``none``:
            they get the answer of the last leaf, as if the cut tree had nothing below.
        start_cardinality: of the first level: 0, 1, or ``auto``: 0 where training rows without labels are.
        tree: False: no SVM, the nearest of all means (a baseline).
        score: what ranks labels: ``hard``, the answer itself; ``distance``, see `Prototypes.nearest`.
        ties: see `MultilabelModule`.
    """

    # All (…,) int64; `sides` and `leaf_rows` grow by levels.
    start: Tensor  # i of the first level
    depth: Tensor  # D, i of the last
    most: Tensor  # L_m
    sides: Tensor  # LEFT, SPLIT or RIGHT of each level that is grown
    leaf_rows: Tensor  # training rows of each leaf, the residual one at the end
    finished: Tensor

    def __init__(
        self,
        svm: SVMSettings,
        depth: Literal["half", "ceil", "full"],
        residual_leaf: Literal["prototypes", "none"],
        start_cardinality: Literal["auto", 0, 1],
        tree: bool,
        score: Literal["hard", "distance"],
        ties: Ties,
    ) -> None:
        super().__init__(ties)
        self.depth_rule, self.residual_leaf, self.start_rule = depth, residual_leaf, start_cardinality
        self.tree, self.score = tree, score
        for name in ("start", "depth", "most", "finished"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_variable_buffer("sides", torch.int64)
        self.register_variable_buffer("leaf_rows", torch.int64)
        self.svms = SVMs(svm)
        self.prototypes = Prototypes()

    # -- training, Algorithm 1 ----------------------------------------------------------------------

    def learn(self, X: Tensor, Y: Tensor) -> dict[str, float]:
        """One level of the tree, and with the last one the leaf below it."""
        c = Y.sum(dim=1)  # number of labels of each row
        if not len(self.sides):
            self._plan(c)
        if not self.tree:
            kept = c >= self.start
            self.prototypes.add(WHOLE, take_rows(X, kept.nonzero()[:, 0]), Y[kept])
            self.finished.fill_(1)
            return {"prototypes": len(self.prototypes.leaf)}

        i = int(self.start) + len(self.sides)
        here, right, left = c >= i, c == i, c > i  # P_i, R_i, Lf_i
        side = SPLIT if right.any() and left.any() else (LEFT if left.any() else RIGHT)
        if side == SPLIT:
            P = here.nonzero()[:, 0]
            z = torch.where(left[P], 1.0, -1.0).to(X.dtype)
            self.svms.add(take_rows(X, P), z[:, None])  # lines 6 and 7
        self.sides = torch.cat([self.sides, self.sides.new_tensor([side])])
        self._leaf(i, X, Y, right)  # lines 8 and 9
        if i == int(self.depth):  # line 11: half the depth is cut off
            self._leaf(i + 1, X, Y, left)
            self.finished.fill_(1)
        return {"level": i, "rows": int(here.sum()), "right": int(right.sum()), "prototypes": len(self.prototypes.leaf)}

    def _plan(self, c: Tensor) -> None:
        """L_m, D and where the chain starts, of the training rows alone."""
        most = int(c.max())
        depth = {"half": most // 2, "ceil": math.ceil(most / 2), "full": most - 1}[self.depth_rule]
        start = self.start_rule if self.start_rule != "auto" else int(c.min() > 0)
        for name, value in (("most", most), ("depth", max(1, depth)), ("start", start)):
            getattr(self, name).fill_(value)

    def _leaf(self, leaf: int, X: Tensor, Y: Tensor, rows: Tensor) -> None:
        """The mean row of each different label vector among some rows."""
        self.leaf_rows = torch.cat([self.leaf_rows, rows.sum()[None]])
        residual = leaf > int(self.depth)
        if rows.any() and not (residual and self.residual_leaf == "none"):
            self.prototypes.add(leaf, take_rows(X, rows.nonzero()[:, 0]), Y[rows])

    def is_fitted(self) -> bool:
        """Whether the last level and what is below it are there."""
        return bool(self.finished)

    # -- inference ----------------------------------------------------------------------------------

    def leaves(self, X: Tensor) -> Tensor:
        """The leaf that each row ends in, (n,): a number of labels, D + 1 for more than D."""
        if not self.tree:
            return torch.full((len(X),), WHOLE, device=X.device)
        leaf = torch.full((len(X),), int(self.depth) + 1, device=X.device)
        walking = torch.arange(len(X), device=X.device)
        svm = 0
        for i, side in enumerate(self.sides.tolist(), int(self.start)):
            if side == SPLIT:
                right = self.svms.decisions(take_rows(X, walking), slice(svm, svm + 1))[:, 0] < 0
                svm += 1
            else:
                right = torch.full_like(walking, side == RIGHT, dtype=torch.bool)
            leaf[walking[right]] = i
            walking = walking[~right]
        return leaf

    def answer(self, X: Tensor) -> Answer:
        """Walks down the chain, then takes the nearest mean's label vector."""
        leaf = self.leaves(X)
        label = torch.empty(len(X), len(self.common_set), dtype=torch.int64, device=X.device)
        scores = torch.empty(label.shape, dtype=torch.float64, device=X.device)
        distance = torch.empty(len(X), dtype=torch.float64, device=X.device)
        for number in leaf.unique().tolist():
            rows = (leaf == number).nonzero()[:, 0]
            label[rows], distance[rows], scores[rows] = self.prototypes.nearest(
                self._filled(number), take_rows(X, rows)
            )
        if self.score == "hard":
            scores = label.double()
        columns = (
            {"leaf": leaf.tolist(), "distance": distance.tolist()} if self.tree else {"distance": distance.tolist()}
        )
        return Answer(label, scores, columns)

    def _filled(self, leaf: int) -> int:
        """The leaf itself, or where it has no prototype the next on the left, else the previous on the right."""
        filled = self.prototypes.leaf.unique().tolist()
        return min((other for other in filled if other >= leaf), default=max(filled))

    # -- figures ------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Counts for the figures, besides the metrics."""
        super().on_test_start()
        self.walked = WalkCounts(int(self.depth)).to(self.device)

    def note(self, answer: Answer, label: Tensor) -> None:
        """Where the judged rows ended."""
        if self.tree:
            leaf = torch.tensor(answer.columns["leaf"], device=label.device)
            self.walked.update(leaf, label.sum(dim=1), (answer.label == label).all(dim=1))

    def figures(self, stage: str) -> dict[str, Figure]:
        """The tree with its leaves, and how well the chain counts labels."""
        if stage != "test" or not self.tree:
            return {}
        ended, right = self.walked.compute()
        start, D = int(self.start), int(self.depth)
        names = [*map(str, range(D + 1)), f"more than {D}"]
        leaves = [
            Leaf(
                name=names[number],
                training_rows=int(self.leaf_rows[number - start]),
                prototypes=int((self.prototypes.leaf == number).sum()),
                judged_rows=int(ended[:, number].sum()),
                right=int(right[number]),
            )
            for number in range(start, D + 2)
        ]
        shown = slice(0 if ended[0].any() else start, None)  # judged rows without labels may have no leaf
        return {
            "tree": tree_figure(leaves, self.sides.tolist()),
            "label_counts": confusion_matrix(
                ended[shown, shown].cpu().numpy(),
                [f"{name} label{'' if name == '1' else 's'}" for name in names[shown]],
            ),
        }


class WalkCounts(Metric):
    """How many judged rows ended in each leaf, by their true number of labels, and how many were answered right.

    Args:
        depth: D; places are numbers of labels from 0 to D, and D + 1 for more.
    """

    full_state_update = False
    ended: Tensor  # (D + 2, D + 2): by the true number of labels, and by the leaf
    right: Tensor  # (D + 2,), by the leaf

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.add_state("ended", torch.zeros(depth + 2, depth + 2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("right", torch.zeros(depth + 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, leaf: Tensor, count: Tensor, right: Tensor) -> None:
        """Adds rows: leaves, numbers of labels and whether the whole answer is right, all (n,)."""
        self.ended.index_put_((count.clamp(max=len(self.right) - 1), leaf), torch.ones_like(leaf), accumulate=True)
        self.right.index_add_(0, leaf, right.long())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Both counts."""
        return self.ended, self.right
