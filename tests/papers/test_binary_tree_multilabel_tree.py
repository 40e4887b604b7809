"""BT-MA against its algorithm written again with loops, and each way it may look right and be another method."""

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.svm import LinearSVC

from datamodules.table import as_tensor
from lightning_modules.binary_tree_multilabel import BTMAModule
from lightning_modules.binary_tree_multilabel.prototypes import Prototypes
from lightning_modules.binary_tree_multilabel.svm import SVMs, SVMSettings
from runs.errors import InputError


def module(kernel="linear", class_weight=None, **changes) -> BTMAModule:
    settings = {
        "svm": SVMSettings(kernel, 1.0, class_weight), "depth": "half", "residual_leaf": "prototypes",
        "start_cardinality": "auto", "tree": True, "score": "hard", "ties": "high_index",
    }  # fmt: skip
    return BTMAModule(**{**settings, **changes})


def fit(model: BTMAModule, X, Y) -> BTMAModule:
    X = X if isinstance(X, torch.Tensor) else as_tensor(X)
    batch = {"features": X, "label": torch.as_tensor(Y), "index": torch.arange(len(Y))}
    for _ in range(100):
        model.fit_closed_form(batch)
        if model.is_fitted():
            return model
    raise AssertionError("the tree does not end")


def rows_with(counts, labels=5, words=40, seed=0, each=25):
    """Rows whose numbers of labels are given, each label vector with words of its own, noisy."""
    generator = np.random.default_rng(seed)
    vectors = []
    for count in counts:
        every = list(itertools.combinations(range(labels), count))
        vectors += [every[place] for place in generator.permutation(len(every))[: 3 if count else 1]]
    own = generator.uniform(size=(len(vectors), words)) < 0.2
    which = np.repeat(np.arange(len(vectors)), each)
    Y = np.zeros((len(which), labels), dtype=np.int64)
    for row, vector in enumerate(which):
        Y[row, list(vectors[vector])] = 1
    X = (generator.uniform(size=(len(which), words)) < np.where(own[which], 0.8, 0.05)).astype(float)
    order = generator.permutation(len(which))
    return X[order], Y[order]


def algorithm_again(X, Y, new, depth, start):
    """Algorithm 1 and its testing phase with scikit-learn and loops; the residual leaf as decided."""
    count = Y.sum(axis=1)
    svms, leaves = {}, {}
    for i in range(start, depth + 1):
        here = count >= i
        side = np.where(count[here] > i, 1, -1)
        if len(set(side)) == 2:
            svms[i] = LinearSVC(C=1.0, tol=1e-10, intercept_scaling=1e3, dual=False, max_iter=10**6).fit(X[here], side)
        leaves[i] = count == i
    leaves[depth + 1] = count > depth
    answers = []
    for x in new:
        leaf = depth + 1
        for i in range(start, depth + 1):
            if i in svms:
                right = svms[i].decision_function(x[None])[0] < 0
            else:
                right = not leaves[depth + 1].any() and not any(leaves[j].any() for j in range(i + 1, depth + 1))
            if right:
                leaf = i
                break
        candidates = sorted({tuple(y) for y in Y[leaves[leaf]].tolist()})
        distance = [np.linalg.norm(x - X[(v == Y).all(axis=1)].mean(axis=0)) for v in candidates]
        answers.append(candidates[int(np.argmin(distance))])
    return np.array(answers)


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize(
    ("counts", "depth", "start"),
    [([1, 2, 3, 4], 2, 1), ([0, 1, 2, 3, 4], 2, 0), ([1, 2], 1, 1), ([1], 1, 1), ([1, 4], 2, 1), ([2, 3, 5], 2, 1)],
)
def test_answers_are_those_of_the_algorithm_written_again(counts, depth, start, form):
    X, Y = rows_with(counts)
    new = rows_with(counts, each=6)[0]
    wrap = sparse.csr_array if form == "sparse" else np.asarray
    model = fit(module(), wrap(X), Y)
    assert (int(model.depth), int(model.start)) == (depth, start)
    expected = algorithm_again(X, Y, new, depth, start)
    np.testing.assert_array_equal(model(as_tensor(wrap(new))).numpy(), expected)


def fitted_on(monkeypatch, *arguments, **settings):
    """The rows and sides each SVM was trained on."""
    seen = []
    add = SVMs.add
    monkeypatch.setattr(SVMs, "add", lambda self, X, Z: (seen.append((X, Z[:, 0])), add(self, X, Z))[1])
    return fit(module(**settings), *arguments), seen


def test_the_chain_splits_by_the_number_of_labels_on_shrinking_rows(monkeypatch):
    """Not by the number of different label sets, and not by the sets themselves."""
    X, Y = rows_with([1, 2, 3, 4])
    count = Y.sum(axis=1)
    model, seen = fitted_on(monkeypatch, X, Y)
    assert len(seen) == 2 and int(model.depth) == 2 and int(model.most) == 4
    for i, (rows, side) in enumerate(seen, 1):
        np.testing.assert_array_equal(rows, X[count >= i])
        np.testing.assert_array_equal(side, np.where(count[count >= i] > i, 1, -1))
    kept = zip(model.prototypes.leaf.tolist(), model.prototypes.label.tolist(), strict=True)
    assert {(leaf, tuple(vector)) for leaf, vector in kept} == {
        (min(c, 3), tuple(y)) for c, y in zip(count.tolist(), Y.tolist(), strict=True)
    }


@pytest.mark.parametrize(
    ("most", "half", "ceil", "full"), [(1, 1, 1, 1), (2, 1, 1, 1), (3, 1, 2, 2), (4, 2, 2, 3), (5, 2, 3, 4)]
)
def test_depth(monkeypatch, most, half, ceil, full):
    """L_m = 2 must give one SVM, neither none nor two."""
    X, Y = rows_with(range(1, most + 1))
    for rule, depth in (("half", half), ("ceil", ceil), ("full", full)):
        with monkeypatch.context() as patch:
            model, seen = fitted_on(patch, X, Y, depth=rule)
        assert int(model.depth) == depth and len(model.sides) == depth
        assert len(seen) == (depth if most > 1 else 0)  # of rows with one label each there is nothing to part


def test_a_single_row_with_more_labels_makes_the_tree_deeper():
    X, Y = rows_with([1, 2])
    assert int(fit(module(), X, Y).depth) == 1
    Y[7, :4] = 1
    model = fit(module(), X, Y)
    assert int(model.most) == Y.sum(axis=1).max() >= 4 and int(model.depth) == 2


def test_below_the_cut_rows_of_more_labels_keep_their_own_answers():
    """Forgetting the residual leaf: no row of more than D labels could be right."""
    X, Y = rows_with([1, 2, 3, 4])
    many = Y.sum(axis=1) > 2
    right = (fit(module(), X, Y)(as_tensor(X)).numpy() == Y).all(axis=1)
    assert right[many].mean() > 0.8
    forgetful = fit(module(residual_leaf="none"), X, Y)
    said = forgetful(as_tensor(X)).numpy()
    assert said.sum(axis=1).max() == 2 and (forgetful.leaves(as_tensor(X)) == 3).any()
    assert not (said == Y).all(axis=1)[many].any()


def test_rows_without_labels_have_a_level_of_their_own_unless_it_is_switched_off(monkeypatch):
    X, Y = rows_with([0, 1, 2])
    model, seen = fitted_on(monkeypatch, X, Y)
    assert int(model.start) == 0 and len(seen) == 2 and len(seen[0][0]) == len(Y)
    assert (model(as_tensor(X)).sum(dim=1) == 0).any()
    without, seen = fitted_on(monkeypatch, X, Y, start_cardinality=1)
    assert len(seen) == 1 and len(seen[0][0]) == (Y.sum(axis=1) > 0).sum()
    assert (without(as_tensor(X)).sum(dim=1) > 0).all()
    X, Y = rows_with([1, 2])
    forced = fit(module(start_cardinality=0), X, Y)  # no such row: all go on, without an SVM
    assert forced.sides.tolist() == [1, 0]
    torch.testing.assert_close(forced(as_tensor(X)), fit(module(), X, Y)(as_tensor(X)))


def test_every_answer_is_a_label_set_of_the_training_rows():
    X, Y = rows_with([0, 1, 2, 3])
    known = set(map(tuple, Y.tolist()))
    noise = (np.random.default_rng(4).uniform(size=(200, X.shape[1])) < 0.3).astype(float)
    for settings in ({}, {"tree": False}, {"depth": "full"}, {"kernel": "rbf"}, {"residual_leaf": "none"}):
        assert set(map(tuple, fit(module(**settings), X, Y)(as_tensor(noise)).tolist())) <= known


def test_the_order_of_rows_changes_nothing_and_that_of_labels_only_their_order():
    X, Y = rows_with([1, 2, 3, 4])
    new = as_tensor(rows_with([1, 2, 3, 4], each=7)[0])
    generator = np.random.default_rng(2)
    answer = fit(module(), X, Y)(new)
    order = generator.permutation(len(X))
    torch.testing.assert_close(fit(module(), X[order], Y[order])(new), answer)
    columns = generator.permutation(Y.shape[1])
    torch.testing.assert_close(fit(module(), X, Y[:, columns])(new), answer[:, columns])


def test_equal_distances_go_to_the_first_label_vector_in_lexicographic_order():
    X = np.array([[0.1, 0.7], [0.1, 0.7], [0.3, 0.3], [0.7, 0.1]])
    Y = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]])
    leaf = Prototypes()
    leaf.add(1, as_tensor(X[:3]), torch.from_numpy(Y[:3]))
    label, distance, _ = leaf.nearest(1, as_tensor(np.array([[0.1, 0.7], [0.2, 0.5], [0.31, 0.3]])))
    # 001 < 010 < 100; the middle point is as far from all three, but for rounding.
    assert label.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(distance, [0, np.hypot(0.1, 0.2), 0.01], atol=1e-7)


def test_an_empty_leaf_borrows_from_the_left_and_else_from_the_right():
    model = fit(module(), *rows_with([1, 2, 3, 4]))
    for filled, answers in (([1, 3], {1: 1, 2: 3, 3: 3}), ([1, 2], {1: 1, 2: 2, 3: 2}), ([2], {1: 2, 2: 2, 3: 2})):
        model.prototypes.leaf = torch.tensor(filled)
        assert {leaf: model._filled(leaf) for leaf in (1, 2, 3)} == answers


def test_distance_scores_rank_each_label_by_the_nearest_mean_that_holds_it():
    X, Y = rows_with([1, 2, 3, 4], labels=6)
    model = fit(module(score="distance"), X, Y)
    new = rows_with([1, 2, 3, 4], labels=6, each=4)[0]
    scores, leaves = model.answer(as_tensor(new)).scores, model.leaves(as_tensor(new))
    count = np.minimum(Y.sum(axis=1), 3)
    for x, score, leaf in zip(new, scores.tolist(), leaves.tolist(), strict=True):
        vectors = np.unique(Y[count == leaf], axis=0)
        distance = [np.linalg.norm(x - X[(v == Y).all(axis=1)].mean(axis=0)) for v in vectors]
        held = [[d for d, v in zip(distance, vectors, strict=True) if v[j]] for j in range(6)]
        known = [-min(each) for each in held if each]
        expected = [-min(each) if each else min(known) - 1 for each in held]
        np.testing.assert_allclose(score, expected, atol=1e-9)
    torch.testing.assert_close(fit(module(), X, Y).answer(as_tensor(new)).scores.long(), model(as_tensor(new)))


def test_without_the_tree_it_is_the_nearest_mean_of_all():
    X, Y = rows_with([0, 1, 2, 3])
    new = rows_with([0, 1, 2, 3], each=5)[0]
    model = fit(module(tree=False), X, Y)
    vectors = np.unique(Y, axis=0)
    centres = np.array([X[(v == Y).all(axis=1)].mean(axis=0) for v in vectors])
    expected = vectors[((new[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)]
    np.testing.assert_array_equal(model(as_tensor(new)), expected)
    assert not len(model.svms)


@pytest.mark.parametrize(("start", "first"), [("auto", 0), (1, 0), (1, 1)])
def test_the_figures_count_rows_by_leaf_and_those_without_labels_as_such(monkeypatch, start, first):
    X, Y = rows_with([0, 1, 2, 3, 4])
    if first:  # none of the judged rows is without a label
        X, Y = X[Y.any(axis=1)], Y[Y.any(axis=1)]
    model = fit(module(start_cardinality=start), X, Y)
    monkeypatch.setattr("lightning_modules.closed_form.ClosedFormModule.device", torch.device("cpu"))
    drawn, trees = [], []
    page = "lightning_modules.binary_tree_multilabel.module"
    monkeypatch.setattr(f"{page}.confusion_matrix", lambda *given: drawn.append(given))
    monkeypatch.setattr(f"{page}.tree_figure", lambda *given: trees.append(given))
    model.on_test_start()
    for half in (slice(None, 90), slice(90, None)):
        model.note(model.answer(as_tensor(X[half])), torch.from_numpy(Y[half]))
    model.figures("test")
    ((counts, names),) = drawn
    assert names == ["0 labels", "1 label", "2 labels", "more than 2 labels"][first:]
    leaves = model.leaves(as_tensor(X)).numpy()
    truth = np.minimum(Y.sum(axis=1), 3)
    expected = [[((truth == i) & (leaves == j)).sum() for j in range(first, 4)] for i in range(first, 4)]
    np.testing.assert_array_equal(counts, expected)
    right = (model(as_tensor(X)).numpy() == Y).all(axis=1)
    ((shown, sides),) = trees
    assert sides == [0] * (3 - int(model.start))
    for number, leaf in enumerate(shown, int(model.start)):
        assert leaf.name == ("more than 2" if number == 3 else str(number))
        assert (leaf.training_rows, leaf.prototypes) == (
            (truth == number).sum(),
            len(np.unique(Y[truth == number], axis=0)),
        )
        assert (leaf.judged_rows, leaf.right) == ((leaves == number).sum(), right[leaves == number].sum())


def test_switches_reach_the_svms():
    X, Y = rows_with([1, 2, 3, 4])
    plain, balanced, rbf = (fit(module(**s), X, Y) for s in ({}, {"class_weight": "balanced"}, {"kernel": "rbf"}))
    assert not torch.allclose(plain.svms.weights, balanced.svms.weights)
    assert len(rbf.svms.gammas) == 2 and not len(rbf.svms.weights)


def test_many_prototypes_in_small_pieces_answer_alike(monkeypatch):
    X, Y = rows_with([1, 2, 3, 4])
    model = fit(module(score="distance"), X, Y)
    whole = model.answer(as_tensor(X))
    monkeypatch.setattr("lightning_modules.binary_tree_multilabel.rows.CHUNK_BYTES", 8 * 40 * 3)
    pieces = model.answer(as_tensor(X))
    assert torch.equal(whole.label, pieces.label)
    torch.testing.assert_close(whole.scores, pieces.scores)


def test_a_half_grown_tree_goes_on_to_the_bit(tmp_path):
    """From a checkpoint after level 1 of 2."""
    X, Y = rows_with([1, 2, 3, 4])
    batch = {"features": as_tensor(sparse.csr_array(X)), "label": torch.from_numpy(Y), "index": torch.arange(len(Y))}
    first = module()
    first.fit_closed_form(batch)
    assert not first.is_fitted()
    torch.save(first.state_dict(), tmp_path / "half.pt")
    second = module()
    second.load_state_dict(torch.load(tmp_path / "half.pt", weights_only=True))
    second.fit_closed_form(batch)
    whole = fit(module(), sparse.csr_array(X), Y)
    ours, theirs = second.state_dict(), whole.state_dict()
    for name in ours:
        assert name == "fit_seconds" or torch.equal(ours[name], theirs[name]), name
    answers = [model.answer(as_tensor(sparse.csr_array(X))) for model in (second, whole)]
    assert torch.equal(answers[0].label, answers[1].label)


def test_a_fold_without_any_label_and_a_table_without_label_columns_are_refused():
    X, Y = rows_with([1, 2])
    with pytest.raises(InputError, match="none of the 150 training rows of this fold has a label"):
        fit(module(), X, np.zeros_like(Y))
    with pytest.raises(InputError, match=r"no columns of labels: name columns of 0 and 1 by data.reader.labels="):
        fit(module(), X, Y[:, 0])
