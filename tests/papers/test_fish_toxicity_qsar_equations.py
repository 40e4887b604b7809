"""Bins, measures and the choice at a node against loops written from the equations; the traps of the method."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import chi2, f_classif, mutual_info_classif
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import f1_score
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.svm import SVC

from lightning_modules.fish_toxicity_qsar.bins import (
    canonical_order,
    cut_at_gaps,
    pieces,
    weighted_mean_square_difference,
)
from lightning_modules.fish_toxicity_qsar.leaves import linear_regression, mean_predictions, measure
from lightning_modules.fish_toxicity_qsar.node_classifiers import NearestNeighbours, NodeSelection, rank_columns
from runs.errors import InputError

MEASURES = ("mean", "cut_points", "mid_range", "interquartile_mean", "mid_hinge")


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def thousandths(n=400, seed=0, most=2000):
    """Ascending whole numbers; divided by 1000 they have gaps that equal the thresholds."""
    return np.sort(np.random.default_rng(seed).integers(0, most, n))


class TestBins:
    @pytest.mark.parametrize("gap", [10, 30, 50])
    def test_equation_1_in_whole_thousandths(self, gap):
        whole = thousandths(most=20000)
        bins = [0]
        for i in range(1, len(whole)):
            bins.append(bins[-1] + int(whole[i] - whole[i - 1] > gap))
        assert gap in np.diff(whole)  # the case that > and >= tell apart, and that raw float64 gets wrong
        assert cut_at_gaps(torch.tensor(whole / 1000), gap / 1000, 6).tolist() == bins

    def test_float64_alone_would_cut_at_a_gap_that_equals_the_threshold(self):
        values = tensor(2.3, 2.35)
        assert float(values[1] - values[0]) > 0.05
        assert cut_at_gaps(values, 0.05, None).tolist() == [0, 1]
        assert cut_at_gaps(values, 0.05, 6).tolist() == [0, 0]

    def test_the_first_target_opens_a_bin_and_equal_ones_share_it(self):
        assert cut_at_gaps(tensor(9.0), 0.05, 6).tolist() == [0]
        assert cut_at_gaps(tensor(0.0, 0.0, 1.0, 1.0), 0.05, 6).tolist() == [0, 0, 1, 1]

    def test_wmsd_divides_by_all_training_rows(self):
        assert weighted_mean_square_difference(tensor(1.0, 1.5, 3.0), n=30) == pytest.approx(3 * 4 / 30)
        assert weighted_mean_square_difference(tensor(2.0), n=30) == 0

    def test_a_bin_is_cut_only_above_its_threshold_and_where_it_has_a_gap(self):
        bin_ = tensor(1.0, 1.01, 1.05, 1.06)
        wmsd = 4 * 0.06**2 / 100
        assert pieces(bin_, 0.03, 6, wmsd * 0.99, 100) == [(0, 2), (2, 4)]
        assert pieces(bin_, 0.03, 6, wmsd * 1.01, 100) == [(0, 4)]
        assert pieces(bin_, 0.03, 6, wmsd * 0.99, 101) == [(0, 2), (2, 4)]
        assert pieces(bin_, 0.03, 6, wmsd * 0.99, 104) == [(0, 4)]  # more rows elsewhere: it weighs less
        assert pieces(bin_, 0.05, 6, None, 100) == [(0, 4)]
        assert pieces(tensor(0.0, 1.0), 0.5, 6, 0.25, 8) == [(0, 2)]  # its WMSD, 2 / 8, equals the threshold

    def test_equal_targets_are_ordered_by_their_features_whatever_the_order_of_rows(self):
        generator = np.random.default_rng(1)
        features, targets = generator.integers(0, 3, (50, 4)).astype(float), generator.integers(0, 5, 50) / 1.0
        shuffled = generator.permutation(50)
        once = canonical_order(features, targets)
        again = shuffled[canonical_order(features[shuffled], targets[shuffled])]
        assert np.array_equal(features[once], features[again]) and np.array_equal(targets[once], np.sort(targets))


class TestMeasures:
    @pytest.mark.parametrize(("name", "value"), list(zip(MEASURES, (4.8, 4, 5, 14 / 3, 5), strict=True)))
    def test_the_acceptance_values(self, name, value):
        """Q6."""
        p = tensor(8, 1, 9, 2, 4)  # in no order
        assert float(measure(p, name)) == pytest.approx(value, abs=1e-12)

    @pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 7])
    @pytest.mark.parametrize("name", MEASURES)
    def test_each_is_its_equation_in_a_loop_over_many_at_once(self, name, m):
        rows = np.random.default_rng(m).normal(3, 1, (40, m))
        rows[0] = 2.0  # all equal
        rows[1] = np.linspace(0, 1, m)  # all gaps equal
        expected = [self.loop(sorted(row), name) for row in rows.tolist()]
        np.testing.assert_allclose(measure(torch.tensor(rows), name).numpy(), expected, atol=1e-12)

    def loop(self, p, name):
        m = len(p)
        low, high = np.percentile(p, 25), np.percentile(p, 75)
        if name == "mid_range":
            return (max(p) + min(p)) / 2
        if name == "mid_hinge":
            return (low + high) / 2
        if name == "interquartile_mean":
            inside = [x for x in p if low - 1e-12 <= x <= high + 1e-12]
            return sum(inside) / len(inside) if inside else np.median(p)
        gaps = [p[i + 1] - p[i] for i in range(m - 1)]
        if name == "mean" or m < 3 or np.ptp(gaps) < 1e-12:
            return sum(p) / m
        a, b = sorted(sorted(range(m - 1), key=lambda i: -gaps[i])[:2])
        between = [p[i] for i in range(m) if a < i <= b]
        return sum(between) / len(between)

    @pytest.mark.parametrize("name", MEASURES)
    def test_a_measure_lies_among_the_predictions_and_moves_with_them(self, name):
        """As printed, mid range and mid hinge are differences: near 0, wherever the predictions are."""
        p = torch.tensor(np.random.default_rng(0).normal(4, 0.02, (50, 4)))
        value = measure(p, name)
        assert ((p.amin(1) <= value) & (value <= p.amax(1))).all()
        np.testing.assert_allclose(measure(p + 10, name), value + 10, atol=1e-9)


class TestLeaves:
    X = np.random.default_rng(0).uniform(size=(12, 5))
    Y = X @ [1.0, 2.0, 0.0, -1.0, 0.5] + 3

    @pytest.mark.parametrize("n", [3, 10, 12])
    def test_predictions_are_of_rows_left_out(self, n):
        X, y = self.X[:n], self.Y[:n]
        made = {"knn": lambda: KNeighborsRegressor(3), "ridge": lambda: Ridge(1.0)}
        found = mean_predictions(X, y, made, seed=7)
        folds = [([j for j in range(n) if j != i], [i]) for i in range(n)]
        if n > 10:
            folds = list(KFold(5, shuffle=True, random_state=7).split(X))
        for value, name in zip(found, made, strict=True):
            predicted = np.empty(n)
            for fit, held_out in folds:
                if name == "knn":  # three neighbours, or all other rows of the leaf
                    k = min(3, n - 1)
                    for i in held_out:
                        distance = np.linalg.norm(X[fit] - X[i], axis=1)
                        predicted[i] = y[np.array(fit)[np.argsort(distance)[:k]]].mean()
                else:
                    predicted[held_out] = Ridge(1.0).fit(X[fit], y[fit]).predict(X[held_out])
            assert value == pytest.approx(predicted.mean(), abs=1e-10)

    def test_the_regression_of_a_leaf_has_a_little_ridge_where_rows_do_not_exceed_columns(self):
        few = linear_regression(self.X[:4], self.Y[:4])
        centre, mean = self.X[:4].mean(axis=0), self.Y[:4].mean()
        A = self.X[:4] - centre
        w = np.linalg.solve(A.T @ A + 1e-3 * np.eye(5), A.T @ (self.Y[:4] - mean))
        np.testing.assert_allclose(few, [*w, mean - centre @ w], atol=1e-8)
        many = linear_regression(self.X, self.Y)
        reference = LinearRegression().fit(self.X, self.Y)
        np.testing.assert_allclose(many, [*reference.coef_, reference.intercept_], atol=1e-10)
        np.testing.assert_allclose(many, [1, 2, 0, -1, 0.5, 3], atol=1e-9)


def clusters(n=60, d=12, classes=4, seed=0):
    """Columns 0 to 2 tell the classes apart, the others are noise, one never varies."""
    generator = np.random.default_rng(seed)
    labels = np.sort(generator.integers(0, classes, n))
    X = generator.uniform(size=(n, d))
    X[:, :3] = 0.6 * X[:, :3] + 0.4 * (labels[:, None] == [0, 1, 2])
    X[:, 5] = 0.5
    return X, labels


def selection(**changes):
    classifiers = {"svc": lambda: SVC(C=1.0), "knn": lambda: KNeighborsClassifier(5)}
    settings = {
        "classifiers": classifiers, "classifier": "select", "ranker": "select", "k": "select",
        "ks": [1, 3, "all"], "folds": 5, "seed": 1,
    }  # fmt: skip
    return NodeSelection(**{**settings, **changes})


class TestSelection:
    def test_rankers_are_scikit_learns_and_drop_columns_without_a_score(self):
        X, labels = clusters()
        scores = {
            "chi2": chi2(X, labels)[0],
            "f_classif": f_classif(np.delete(X, 5, axis=1), labels)[0],
            "mutual_info": mutual_info_classif(X, labels, random_state=3),
        }
        scores["f_classif"] = np.insert(scores["f_classif"], 5, 0.0)
        for ranker, score in scores.items():
            ranked = rank_columns(ranker, X, labels, seed=3)
            assert ranked.tolist() == [j for j in np.argsort(-score, kind="stable") if score[j] > 0 and j != 5]

    def test_f_is_that_of_one_way_analysis_of_variance(self):
        X, labels = clusters()
        F = [stats.f_oneway(*(X[labels == c, j] for c in range(4))).statistic for j in (0, 1, 2, 3)]
        ranked = [j for j in rank_columns("f_classif", X, labels, 0) if j < 4]
        assert ranked == np.argsort(F)[::-1].tolist()

    @pytest.mark.parametrize("ranker", ["chi2", "mutual_info", "f_classif"])
    @pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 1, 1]])
    def test_tiny_nodes_are_ranked_too(self, ranker, labels):
        """As many children as rows, a fold with a single child: scikit-learn divides by zero or refuses."""
        X = np.random.default_rng(0).uniform(size=(4, 6))
        ranked = rank_columns(ranker, X, np.array(labels), 0)
        assert len(ranked) > 0 and len(set(ranked.tolist())) == len(ranked)

    def test_chi2_on_negative_columns_is_one_sentence_and_no_other_ranker_minds(self):
        X, labels = clusters()
        with pytest.raises(InputError, match=r"model\.ranker=chi2 needs columns of 0 or more.*set data\.scale=minmax"):
            rank_columns("chi2", X - 0.5, labels, 0)
        for ranker in ("f_classif", "mutual_info"):
            assert len(rank_columns(ranker, X - 0.5, labels, 0))

    def test_every_candidate_is_scored_on_folds_that_neither_ranked_nor_fitted_it(self):
        X, labels = clusters()
        best, columns, candidates = selection().choose(X, labels, iter)
        found = {(c.classifier, c.ranker, c.k): c.f1 for c in candidates}
        assert len(candidates) == 2 * 3 * 3
        expected = {}
        for ranker in ("chi2", "mutual_info", "f_classif"):
            everything = rank_columns(ranker, X, labels, 1)
            for k in (1, 3, len(everything)):
                for name, make in selection().classifiers.items():
                    said = np.empty_like(labels)
                    for fit, held_out in KFold(5, shuffle=True, random_state=1).split(X):
                        ranked = rank_columns(ranker, X[fit], labels[fit], 1)
                        ranked = ranked if k == len(everything) else ranked[:k]
                        model = make().fit(X[fit][:, ranked], labels[fit])
                        said[held_out] = model.predict(X[held_out][:, ranked])
                    expected[name, ranker, k] = f1_score(labels, said, average="micro")
        assert found == pytest.approx(expected)
        assert best.f1 == max(expected.values())
        assert columns.tolist() == rank_columns(best.ranker, X, labels, 1)[: best.k].tolist()

    def test_columns_that_were_tried_are_not_fitted_again_and_no_answer_changes(self):
        X, labels = clusters(n=40, d=6)
        made = []
        makers = {
            "svc": lambda: made.append("svc") or SVC(C=1.0),
            "forest": lambda: made.append("forest") or RandomForestClassifier(5, random_state=1),
            "knn": lambda: made.append("knn") or NearestNeighbours(5, 1),
        }
        chosen = selection(classifiers=makers, ks=[1, 2, 3, 5, 8, 12, "all"])
        found = list(chosen.compare(X, labels))
        fitted = len(made)
        expected, tried = [], set()
        for fold, (fit, held_out) in enumerate(KFold(5, shuffle=True, random_state=1).split(X)):
            for ranker in ("chi2", "mutual_info", "f_classif"):
                ranked = rank_columns(ranker, X[fit], labels[fit], 1)
                for k in (1, 2, 3, 5, 8, 12, "all"):
                    columns = ranked[: len(ranked) if k == "all" else k]
                    for name, make in makers.items():
                        said = make().fit(X[fit][:, columns], labels[fit]).predict(X[held_out][:, columns])
                        expected.append((name, ranker, k, int((said == labels[held_out]).sum())))
                        tried.add((fold, name, *columns))
        assert found == expected
        assert fitted == len(tried) < chosen.fits(40) / 2

    def test_noise_is_not_scored_as_if_it_told_the_children_apart(self):
        """Ranking on the rows that are then judged makes 5000 columns of noise look useful."""
        generator = np.random.default_rng(0)
        X, labels = generator.uniform(size=(60, 5000)), np.repeat([0, 1], 30)
        honest = selection(classifier="svc", ranker="f_classif", k=10).choose(X, labels, iter)[0].f1
        ranked = rank_columns("f_classif", X, labels, 0)[:10]
        said = np.empty_like(labels)
        for fit, held_out in KFold(5, shuffle=True, random_state=1).split(X):
            said[held_out] = SVC().fit(X[fit][:, ranked], labels[fit]).predict(X[held_out][:, ranked])
        assert (said == labels).mean() > 0.8 > 0.65 > honest

    def test_ties_go_to_fewer_columns_then_to_the_first_classifier(self):
        X = np.repeat(np.eye(2), 20, axis=0)
        X = np.hstack([X, X])  # one column tells all, and all four tell the same
        best, columns, _ = selection().choose(X, np.repeat([0, 1], 20), iter)
        assert (best.classifier, best.ranker, best.k, best.f1) == ("svc", "chi2", 1, 1.0) and columns.tolist() == [0]

    def test_children_that_a_fold_never_saw_count_as_wrong_and_keep_their_numbers(self):
        """A class with a single row is missing from its own fold's training rows; classes must not be renumbered."""
        X = np.repeat(np.arange(5.0)[:, None], 1, axis=1) / 5
        X = np.vstack([X[[0]], np.repeat(X[[1]], 6, axis=0), np.repeat(X[[4]], 6, axis=0)])
        labels = np.array([0] + [1] * 6 + [2] * 6)
        best, _, _ = selection(classifier="knn", ranker="f_classif", k=1, folds=4).choose(X, labels, iter)
        assert best.f1 == pytest.approx(12 / 13)

    def test_among_equally_near_rows_the_least_toxic_is_not_preferred(self):
        """Rows are sorted by target, and scikit-learn takes the first of equally near ones."""
        X, labels = np.zeros((200, 2)), np.repeat([0, 1], [10, 190])
        assert KNeighborsClassifier(5).fit(X, labels).predict(X[:1]).tolist() == [0]
        assert [NearestNeighbours(5, seed).fit(X, labels).predict(X[:1])[0] for seed in range(20)] == [1] * 20

    def test_without_ties_neighbours_are_scikit_learns(self):
        X, labels = clusters()
        ours, theirs = NearestNeighbours(5, 0).fit(X, labels), KNeighborsClassifier(5).fit(X, labels)
        new = np.random.default_rng(1).uniform(size=(50, 12))
        assert np.array_equal(ours.predict(new), theirs.predict(new)) and ours.get_params()["n_neighbors"] == 5

    def test_two_rows_in_two_children_leave_folds_with_one_class(self):
        best, _, _ = selection().choose(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]), iter)
        assert best.f1 == 0.0

    @pytest.mark.parametrize("changes", [{}, {"classifier": "svc", "k": 2}, {"ranker": "chi2", "folds": 7}])
    def test_the_bar_knows_how_long_a_comparison_is(self, changes):
        for n in (5, 30):
            X, labels = clusters(n)
            chosen = selection(**changes)
            assert chosen.fits(n) == len(list(chosen.compare(X, labels)))

    def test_nearest_neighbours_ask_one_where_rows_are_few(self):
        assert [selection().make("knn", n).n_neighbors for n in (5, 6)] == [1, 5]

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"classifier": "svm"}, r"model\.classifier=svm is unknown: did you mean svc"),
            ({"k": 0}, r"numbers of columns, 1 or more, not 0"),
            ({"ks": ["all", -1]}, r"not -1"),
            ({"folds": 1}, r"model\.selection_folds=1 must be 2 or more"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(self, changes, sentence):
        with pytest.raises(InputError, match=sentence):
            selection(**changes)
