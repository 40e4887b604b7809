"""Which classifier and which columns a node uses: ranked, tried and scored inside the node's own rows."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_selection import chi2, f_classif, mutual_info_classif
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier

from runs.errors import InputError, did_you_mean

Ranker = Literal["chi2", "mutual_info", "f_classif"]
RANKERS: tuple[Ranker, ...] = ("chi2", "mutual_info", "f_classif")  # in the order of Table 2


@dataclass(frozen=True)
class Candidate:
    """One thing that was tried.

    Attributes:
        classifier: its name.
        ranker: what ranked the columns.
        k: columns, the best ones.
        f1: micro-F1 over the folds, 0..1; of single labels that is the accuracy.
    """

    classifier: str
    ranker: Ranker
    k: int
    f1: float


@dataclass(frozen=True)
class NodeSelection:
    """Candidates of a node and how they are compared (Sect. 4.2).

    Attributes:
        classifiers: each gives an unfitted one; of equally good ones the first is taken.
        classifier: the one to use, or ``select``.
        ranker: the one to use, or ``select``.
        k: columns to use, or ``select``.
        ks: columns to try; ``all`` are those with a score above 0.
        folds: of the cross-validation.
        seed: of the folds and of mutual information's noise.

    Raises:
        InputError: there is no such classifier, or a number of columns makes no sense.
    """

    classifiers: Mapping[str, Callable[[], Any]]
    classifier: str
    ranker: Ranker | Literal["select"]
    k: int | Literal["select"]
    ks: list[int | Literal["all"]]
    folds: int
    seed: int

    def __post_init__(self) -> None:
        known = [*self.classifiers, "select"]
        if self.classifier not in known:
            raise InputError(f"model.classifier={self.classifier} is unknown: {did_you_mean(self.classifier, known)}")
        for k in self.ks if self.k == "select" else [self.k]:
            if k != "all" and k < 1:
                raise InputError(f"model.k and model.ks are numbers of columns, 1 or more, not {k}")
        if self.folds < 2:
            raise InputError(f"model.selection_folds={self.folds} must be 2 or more")

    @property
    def tried(self) -> tuple[list[str], list[Ranker], list[int | Literal["all"]]]:
        """Classifiers, rankers and numbers of columns that are compared."""
        classifiers = list(self.classifiers) if self.classifier == "select" else [self.classifier]
        return (
            classifiers,
            list(RANKERS) if self.ranker == "select" else [self.ranker],
            (self.ks if self.k == "select" else [self.k]),
        )

    def fits(self, n: int) -> int:
        """How many results a comparison on n rows has."""
        classifiers, rankers, ks = self.tried
        return len(classifiers) * len(rankers) * len(ks) * min(self.folds, n)

    def make(self, name: str, rows: int) -> Any:
        """An unfitted classifier; one of nearest neighbours asks a single one where rows are few."""
        estimator = self.classifiers[name]()
        if "n_neighbors" in estimator.get_params() and rows <= estimator.n_neighbors:
            estimator.set_params(n_neighbors=1)
        return estimator

    def compare(
        self, features: NDArray[np.float64], children: NDArray[np.int64]
    ) -> Iterator[tuple[str, Ranker, int | Literal["all"], int]]:
        """Tries everything on every fold, whose rows neither rank columns nor fit; one result at a time.

        Children with a single row make stratified folds impossible, so a fold may hold children that its
        classifier has never seen: those rows count as wrong.

        Args:
            features: of the node's rows, (n, d).
            children: the child of each, from 0, (n,).

        Yields:
            Classifier, ranker, number of columns, and the fold's rows that it gets right.
        """
        classifiers, rankers, ks = self.tried
        folds = KFold(min(self.folds, len(children)), shuffle=True, random_state=self.seed)
        for fit, held_out in folds.split(features):
            known: dict[tuple[str, bytes], int] = {}  # equal columns, by another k or ranker, are not fitted again
            for ranker in rankers:
                ranked = rank_columns(ranker, features[fit], children[fit], self.seed)
                for k, name in product(ks, classifiers):
                    columns = ranked if k == "all" else ranked[:k]
                    tried = name, columns.tobytes()
                    if tried not in known:
                        known[tried] = self._hits(name, features, children, columns, fit, held_out)
                    yield name, ranker, k, known[tried]

    def _hits(
        self,
        name: str,
        features: NDArray[np.float64],
        children: NDArray[np.int64],
        columns: NDArray[np.int64],
        fit: NDArray[np.int64],
        held_out: NDArray[np.int64],
    ) -> int:
        """Held-out rows that a classifier, fitted on the others, gets right."""
        if len(np.unique(children[fit])) == 1:  # nothing to tell apart; some classifiers refuse that
            said = np.full(len(held_out), children[fit][0])
        else:
            with many_classes():
                classifier = self.make(name, len(fit)).fit(features[np.ix_(fit, columns)], children[fit])
            said = classifier.predict(features[np.ix_(held_out, columns)])
        return int((said == children[held_out]).sum())

    def choose(
        self, features: NDArray[np.float64], children: NDArray[np.int64], watch: Callable[[Iterator], Iterator]
    ) -> tuple[Candidate, NDArray[np.int64], list[Candidate]]:
        """The best candidate, its columns as all the node's rows rank them, and everything that was tried.

        Args:
            features: of the node's rows, (n, d).
            children: the child of each, from 0, (n,).
            watch: passes the results of `compare` on; shows that work goes on.
        """
        right: dict[tuple[str, Ranker, int | Literal["all"]], int] = {}
        for name, ranker, k, hits in watch(self.compare(features, children)):
            right[name, ranker, k] = right.get((name, ranker, k), 0) + hits
        classifiers, rankers, _ = self.tried
        ranked = {ranker: rank_columns(ranker, features, children, self.seed) for ranker in rankers}
        candidates = [
            Candidate(name, ranker, len(ranked[ranker][: None if k == "all" else k]), hits / len(children))
            for (name, ranker, k), hits in right.items()
        ]
        # Ties: fewer columns, then the classifiers in their order, then the rankers.
        best = min(candidates, key=lambda c: (-c.f1, c.k, classifiers.index(c.classifier), rankers.index(c.ranker)))
        return best, ranked[best.ranker][: best.k], candidates


class NearestNeighbours(KNeighborsClassifier):
    """k nearest neighbours; among equally near ones it takes any, not the first.

    Rows stand by ascending target, and chemicals with equal columns are many: scikit-learn's choice, the
    first of them, would be the least toxic one.

    Args:
        n_neighbors: k.
        seed: of the order in which equally near rows are taken.
    """

    def __init__(self, n_neighbors: int, seed: int) -> None:
        super().__init__(n_neighbors=n_neighbors)
        self.seed = seed

    def fit(self, X: NDArray[np.float64], y: NDArray[np.int64]) -> Self:
        order = np.random.default_rng(self.seed).permutation(len(X))
        return super().fit(X[order], y[order])


@contextmanager
def many_classes() -> Iterator[None]:
    """Lets a node have nearly as many children as rows, which scikit-learn takes for a mistake."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        yield


def rank_columns(
    ranker: Ranker, features: NDArray[np.float64], children: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Columns with a score above 0, best first; all of them in their order where no column has one.

    Raises:
        InputError: chi2 meets a negative value.
    """
    if ranker == "chi2" and features.min() < 0:
        raise InputError(
            "model.ranker=chi2 needs columns of 0 or more, and the training rows have negative ones: "
            "set data.scale=minmax, or take another ranker"
        )
    scores = np.zeros(features.shape[1])
    sizes = np.bincount(children)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of columns that do not vary here, whose score is then no number
        if ranker == "chi2":
            scores = chi2(features, children)[0]
        elif ranker == "mutual_info" and sizes.max() > 1:  # it looks at children with two rows or more
            scores = mutual_info_classif(features, children, random_state=seed)
        elif ranker == "f_classif" and 1 < np.count_nonzero(sizes) < len(children):
            scores = f_classif(features, children)[0]
    scores = np.nan_to_num(scores, nan=0.0, posinf=np.finfo(np.float64).max)
    scores[np.ptp(features, axis=0) == 0] = 0.0  # rounding, or mutual information's noise, may say otherwise
    order = np.argsort(-scores, kind="stable")
    useful = order[scores[order] > 0]
    return useful if len(useful) else order
