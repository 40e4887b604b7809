"""What BT-MA is compared with: binary relevance, label powerset and ML-kNN."""

from typing import Literal

import torch
from torch import Tensor

from components.metrics.label_sets import Ties
from lightning_modules.binary_tree_multilabel.multilabel import Answer, MultilabelModule
from lightning_modules.binary_tree_multilabel.rows import StoredRows, chunks, squared_distances
from lightning_modules.binary_tree_multilabel.svm import SVMs, SVMSettings
from runs.errors import InputError


def sides(Y: Tensor) -> Tensor:
    """0 and 1 as -1 and 1, float64."""
    return 2.0 * Y.double() - 1.0


class BinaryRelevanceModule(MultilabelModule):
    """Binary relevance: an SVM for each label, which knows nothing of the others (Boutell et al. 2004).

    Args:
        svm: its settings.
        score: what ranks labels: ``hard``, the answer itself, or the SVMs' ``margin``.
        ties: see `MultilabelModule`.
    """

    def __init__(self, svm: SVMSettings, score: Literal["hard", "margin"], ties: Ties) -> None:
        super().__init__(ties)
        self.svms, self.score = SVMs(svm), score

    def learn(self, X: Tensor, Y: Tensor) -> dict[str, float]:
        """All SVMs at once."""
        self.svms.add(X, sides(Y))
        return {"svms": len(self.svms)}

    def is_fitted(self) -> bool:
        """Whether the SVMs are there."""
        return len(self.svms) > 0

    def answer(self, X: Tensor) -> Answer:
        """Each label whose SVM says so."""
        margin = self.svms.decisions(X)
        label = (margin > 0).long()
        return Answer(label, margin if self.score == "margin" else label.double())


class LabelPowersetModule(MultilabelModule):
    """Label powerset: each label set of the training rows is a class, told by one-against-rest SVMs.

    Args:
        svm: their settings.
        score: what ranks labels: ``hard``, the answer itself, or the ``margin`` of the best set that holds a label
            (of a label that no set holds 1 less than the row's least).
        ties: see `MultilabelModule`.
    """

    label_sets: Tensor  # (P, L) int64, in lexicographic order

    def __init__(self, svm: SVMSettings, score: Literal["hard", "margin"], ties: Ties) -> None:
        super().__init__(ties)
        self.svms, self.score = SVMs(svm), score
        self.register_variable_buffer("label_sets", torch.int64, axes=2)

    def learn(self, X: Tensor, Y: Tensor) -> dict[str, float]:
        """All SVMs at once."""
        self.label_sets, which = torch.unique(Y, dim=0, return_inverse=True)
        self.svms.add(X, sides(torch.nn.functional.one_hot(which, len(self.label_sets))))
        return {"svms": len(self.svms)}

    def is_fitted(self) -> bool:
        """Whether the SVMs are there."""
        return len(self.svms) > 0

    def answer(self, X: Tensor) -> Answer:
        """The label set of the greatest margin, the first of equal ones."""
        margin = self.svms.decisions(X)
        label = self.label_sets[margin.argmax(dim=1)]
        if self.score == "hard":
            return Answer(label, label.double())
        scores = margin.min(dim=1, keepdim=True).values.repeat(1, label.shape[1]) - 1
        for place in self.label_sets.any(dim=0).nonzero()[:, 0].tolist():
            scores[:, place] = margin[:, self.label_sets[:, place].bool()].amax(dim=1)
        return Answer(label, scores)


class MLkNNModule(MultilabelModule):
    """ML-kNN (Zhang and Zhou 2007): for each label, how many neighbours have it decides by Bayes' rule.

    Distances are Euclidean; of equally near rows the first ones are neighbours.

    Args:
        k: neighbours.
        smoothing: s, added to each count.
        score: what ranks labels: ``hard``, the answer itself, or the ``posterior`` probability.
        ties: see `MultilabelModule`.
    """

    label: Tensor  # (N, L) int64, of the training rows
    prior: Tensor  # P(H_j), (L,)
    likelihood: Tensor  # P(count | not H_j, H_j), (2, k + 1, L)

    def __init__(self, k: int, smoothing: float, score: Literal["hard", "posterior"], ties: Ties) -> None:
        super().__init__(ties)
        if k < 1 or smoothing <= 0:
            raise InputError(f"model.k={k} must be 1 neighbour or more, and model.smoothing={smoothing:g} above 0")
        self.k, self.smoothing, self.score = k, smoothing, score
        self.rows = StoredRows()
        self.register_variable_buffer("label", torch.int64, axes=2)
        self.register_variable_buffer("prior", torch.float64)
        self.register_variable_buffer("likelihood", torch.float64, axes=3)

    def learn(self, X: Tensor, Y: Tensor) -> dict[str, float]:
        """Priors, and the likelihoods of each number of neighbours with a label.

        Raises:
            InputError: there are not more than k rows.
        """
        N, L = Y.shape
        if self.k >= N:
            raise InputError(f"model.k={self.k} must be below the number of training rows, {N}")
        s = self.smoothing
        self.rows.put(X)
        self.label = Y
        self.prior = (s + Y.sum(dim=0).double()) / (2 * s + N)
        count = self.neighbours_with(X, leave_one_out=True)
        table = torch.zeros(2, self.k + 1, L, dtype=torch.float64, device=Y.device)
        table.index_put_((Y, count, torch.arange(L, device=Y.device).expand_as(Y)), table.new_ones(()), accumulate=True)
        self.likelihood = (s + table) / (s * (self.k + 1) + table.sum(dim=1, keepdim=True))
        return {"neighbours": self.k}

    def neighbours_with(self, X: Tensor, leave_one_out: bool) -> Tensor:
        """How many of the k nearest training rows have each label, (n, L) int64.

        Args:
            X: rows (n, d).
            leave_one_out: whether X are the training rows themselves, none of which is its own neighbour.
        """
        rows, found, done = self.rows.get(), [], 0
        for piece in chunks(X, len(rows)):
            distance = squared_distances(piece, rows)
            if leave_one_out:
                own = torch.arange(len(piece), device=X.device)
                distance[own, own + done] = torch.inf
                done += len(piece)
            limit = distance.kthvalue(self.k, dim=1, keepdim=True).values
            nearer, tied = distance < limit, distance == limit
            room = self.k - nearer.sum(dim=1, keepdim=True)
            chosen = nearer | (tied & (tied.cumsum(dim=1) <= room))
            found.append(chosen.double() @ self.label.double())
        return torch.cat(found).round().long()

    def is_fitted(self) -> bool:
        """Whether the likelihoods are there."""
        return len(self.prior) > 0

    def answer(self, X: Tensor) -> Answer:
        """Each label that is likelier there than not."""
        count = self.neighbours_with(X, leave_one_out=False)
        place = torch.arange(count.shape[1], device=X.device).expand_as(count)
        absent, present = (self.likelihood[side][count, place] for side in (0, 1))
        yes, no = self.prior * present, (1 - self.prior) * absent
        label = (yes > no).long()
        return Answer(label, yes / (yes + no) if self.score == "posterior" else label.double())
