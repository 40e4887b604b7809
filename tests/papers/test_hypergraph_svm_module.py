"""The module on small tables: what it may see, what it answers, how it chooses, and what it refuses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons
from sklearn.metrics import hamming_loss, label_ranking_average_precision_score, label_ranking_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC

from lightning_modules.hypergraph_svm import HypergraphSVMModule, LibraryClassifier
from lightning_modules.hypergraph_svm.judging import ranks
from lightning_modules.hypergraph_svm.module import Manifold, Solver
from lightning_modules.hypergraph_svm.operators import graph_laplacian, hypergraph_laplacian
from lightning_modules.hypergraph_svm.selection import Selection, inner_trials
from runs.errors import InputError

MANIFOLD = {"laplacian": "normalized", "k_graph": 6, "k_hyper": 6, "mu": "mean", "bias": True}
SOLVER = {"method": "pcg", "tol": 1e-6, "iterations": 2000, "iterations_per_step": 50}
GRID = {"gamma": [1.0, 4.0], "delta_a": [0.01, 1.0], "delta_i": [0.1], "lam": [0.0, 0.5, 1.0]}


def make_module(classes=2, names=None, solver=None, manifold=None, selection=None, **changes) -> HypergraphSVMModule:
    settings = {"kernel": "rbf", "gamma": "auto", "delta_a": 0.01, "delta_i": 0.1, "lam": 0.5, "most_rows": 1000}
    module = HypergraphSVMModule(
        **{**settings, **changes},
        manifold=Manifold(**{**MANIFOLD, **(manifold or {})}),
        solver=Solver(**{**SOLVER, **(solver or {})}),
        selection=Selection(**{"rule": "fixed", "folds": 3, "tol": 1e-4, "seed": 0, **GRID, **(selection or {})}),
    )  # fmt: skip
    return known_to(module, names or [f"c{c}" for c in range(classes)])


def known_to(module, names):
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(class_names=names), global_rank=0)
    return module


def moons(labels_per_moon=5, seed=0, n=120):
    x, moon = make_moons(n, noise=0.1, random_state=seed)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    labelled = np.zeros(n, dtype=bool)
    generator = np.random.default_rng(seed)
    for c in (0, 1):
        labelled[generator.choice(np.flatnonzero(moon == c), labels_per_moon, replace=False)] = True
    return batch_of(x, moon, labelled), moon


def batch_of(x, label, labelled):
    shown = np.where(labelled[:, None] if label.ndim == 2 else labelled, label, -1)
    return {
        "features": torch.tensor(x), "label": torch.tensor(shown), "labelled": torch.tensor(labelled),
        "index": torch.arange(len(x)),
    }  # fmt: skip


def fit(module, batch):
    for _ in range(200):
        logged = module.fit_closed_form(batch)
        assert all(np.isfinite(float(value)) for value in logged.values())
        if module.is_fitted():
            return module
    raise AssertionError("the module did not end")


# ---- what it may see ----------------------------------------------------------------------------


def test_hidden_labels_change_nothing():
    """Section 9: garbled labels of unlabelled rows must leave the answer as it is."""
    batch, moon = moons()
    module = fit(make_module(), batch)
    garbled = {**batch, "label": torch.where(batch["labelled"], batch["label"], 1 - torch.tensor(moon))}
    again = fit(make_module(), garbled)
    assert torch.equal(module.alpha, again.alpha) and torch.equal(module.b, again.b)
    assert torch.equal(module.share, again.share)


def test_hidden_rows_are_in_kernel_graph_and_hypergraph():
    batch, _ = moons()
    module = fit(make_module(), batch)
    unlabelled = ~batch["labelled"]
    assert module.support.shape == batch["features"].shape
    assert float(module.alpha[unlabelled].abs().max()) > 1e-3  # they carry the decision function
    assert [tuple(matrix.shape) for matrix, _ in module.training_problem().manifold] == [(120, 120)] * 2


def test_laplacians_are_those_of_the_training_rows_alone():
    """A graph over training and judged rows together would be another one."""
    batch, _ = moons()
    x = batch["features"].numpy()
    module = make_module(lam=0.25)
    module.take(batch)
    module.fit_closed_form(batch)
    for (matrix, weight), expected, share in zip(
        module.training_problem().manifold,
        (graph_laplacian(x, 6, "normalized"), hypergraph_laplacian(x, 6, "mean")),
        (0.25, 0.75),
        strict=True,
    ):
        assert np.allclose(matrix.to_dense().numpy(), expected.toarray()) and float(weight[0]) == share


def test_few_labels_on_two_moons_gain_by_the_manifold_and_do_not_lose_with_more_hidden_rows():
    """With unlabelled rows among the errors accuracy would fall as more labels are hidden."""
    scores = {}
    for name, delta_i in (("manifold", 0.1), ("none", 0.0)):
        right = []
        for seed in range(5):
            batch, moon = moons(2, seed, n=240)
            module = fit(make_module(gamma=4.0, delta_i=delta_i), batch)
            right.append(float((module.classes_of(module(batch["features"])).numpy() == moon).mean()))
        scores[name] = np.mean(right)
    assert scores["manifold"] > 0.85 and scores["manifold"] > scores["none"] + 0.1


# ---- what it answers ----------------------------------------------------------------------------


def test_a_decision_value_of_zero_counts_as_the_second_class():
    batch, _ = moons()
    module = fit(make_module(), batch)
    assert module.task == "binary" and module.alpha.shape == (120, 1)
    assert module.classes_of(torch.tensor([[0.0], [-1e-9], [2.0]])).tolist() == [1, 0, 1]


def test_several_classes_are_columns_each_as_its_own_binary_problem_has_it():
    generator = np.random.default_rng(0)
    label = np.arange(90) % 3
    x = generator.normal(size=(90, 4)) + 1.5 * np.eye(4)[label]
    labelled = generator.uniform(size=90) < 0.6
    module = fit(make_module(3), batch_of(x, label, labelled))
    assert module.task == "multiclass" and module.alpha.shape == (90, 3)
    f = module(torch.tensor(x))
    for c in range(3):
        alone = fit(make_module(2), batch_of(x, (label == c).astype(np.int64), labelled))
        assert torch.allclose(alone(torch.tensor(x))[:, 0], f[:, c], atol=1e-4)
    assert torch.equal(module.classes_of(f), f.argmax(dim=1))
    assert float((module.classes_of(f).numpy() == label).mean()) > 0.8


def test_labels_of_a_row_are_columns_with_the_threshold_0():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(80, 3))
    label = (x @ generator.normal(size=(3, 4)) > 0.5).astype(np.int64)
    label[:, 3] = 0  # a label that no training row has
    module = fit(make_module(4), batch_of(x, label, generator.uniform(size=80) < 0.8))
    assert module.task == "multilabel"
    said = module.classes_of(module(torch.tensor(x)))
    assert said.shape == (80, 4) and (said[:, 3] == 0).all()
    assert float((said.numpy() == label).mean()) > 0.9


@pytest.mark.parametrize("bias", [True, False])
def test_newton_and_conjugate_gradients_give_the_same_classifier(bias):
    batch, _ = moons()
    pcg = fit(make_module(manifold={"bias": bias}), batch)
    newton = fit(make_module(manifold={"bias": bias}, solver={"method": "newton", "iterations_per_step": 1}), batch)
    assert torch.allclose(pcg(batch["features"]), newton(batch["features"]), atol=1e-3)
    assert pcg.trace[-1, 1] == pytest.approx(float(newton.trace[-1, 1]), rel=1e-6)


def test_a_linear_kernel_gives_a_linear_decision_function():
    batch, _ = moons(20)
    module = fit(make_module(kernel="linear"), batch)
    x = batch["features"][:3]
    middle = module((x[:1] + x[1:2]) / 2)
    assert float(middle) == pytest.approx(float(module(x[:2]).mean()), abs=1e-9)


def test_all_state_is_double_and_small_once_the_problem_is_solved():
    batch, _ = moons()
    state = fit(make_module(), batch).state_dict()
    for name, value in state.items():
        if value.is_floating_point() and name != "unused":
            assert value.dtype == torch.float64, name
    assert max(value.numel() for name, value in state.items() if name.startswith("pcg_")) == 0
    assert not any(value.numel() == 120 * 120 for value in state.values())  # no kernel, no Laplacian


@pytest.mark.parametrize("stop", [1, 3])
def test_a_solve_goes_on_from_its_state_to_the_last_digit(stop):
    batch, _ = moons()
    solver = {"iterations_per_step": 4}
    whole = fit(make_module(solver=solver), batch)
    broken = make_module(solver=solver)
    for _ in range(stop):
        broken.fit_closed_form(batch)
    assert not broken.is_fitted()
    resumed = make_module(solver=solver)
    resumed.load_state_dict(broken.state_dict())
    fit(resumed, batch)
    assert torch.equal(resumed.alpha, whole.alpha) and torch.equal(resumed.trace, whole.trace)


def test_a_bound_on_the_iterations_ends_with_a_warning():
    batch, _ = moons()
    with pytest.warns(UserWarning, match=r"1 of 1 columns are not solved .* after 7 iterations"):
        module = fit(make_module(solver={"iterations": 7, "iterations_per_step": 5}), batch)
    assert int(module.iteration) == 7


# ---- how it chooses -----------------------------------------------------------------------------


def test_inner_folds_judge_labelled_rows_alone_and_fit_on_the_unlabelled_ones():
    batch, moon = moons(9)
    y = torch.zeros(120, 1, dtype=torch.float64)
    y[batch["labelled"], 0] = 2.0 * torch.tensor(moon)[batch["labelled"]].double() - 1
    selection = make_module(selection={"rule": "nested"}).selection
    trials = inner_trials(batch["features"], y, batch["labelled"], selection, one_class=True)
    assert len(trials) == 3 and sum(len(trial.judged) for trial in trials) == 18
    for trial in trials:
        assert len(trial.features) == 120 - 6 and int((trial.y != 0).sum()) == 12
        assert int((trial.wanted > 0).sum()) == 3
        both = torch.cat([trial.features, trial.judged])
        assert len(torch.unique(both, dim=0)) == 120  # the judged rows are in no graph of their trial


def test_the_nested_choice_is_the_best_of_a_loop_over_the_grid():
    batch, moon = moons(9, n=60)
    module = make_module(selection={"rule": "nested", "tol": 1e-6, "lam": [0.0, 0.75]})
    assert set(module.fit_closed_form(batch)) == {"tried", "best_share_right"} and len(module.grid) == 4
    fit(module, batch)
    places = torch.nonzero(batch["labelled"])[:, 0].numpy()
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(places, moon[places]))
    scores = {}
    for gamma in (0.5, 2.0):  # 1/d and 4/d
        for delta_a in GRID["delta_a"]:
            for lam in (0.0, 0.75):
                right = []
                for _, out in folds:
                    kept = np.setdiff1d(np.arange(60), places[out])
                    inner = {name: batch[name][kept] for name in batch}
                    alone = fit(make_module(gamma=gamma, delta_a=delta_a, lam=lam), inner)
                    said = alone.classes_of(alone(batch["features"][places[out]])).numpy()
                    right.append((said == moon[places[out]]).mean())
                scores[gamma, delta_a, 0.1, lam] = np.mean(right)
    found = {tuple(row[:4]): row[4] for row in module.grid.tolist()}
    assert found == pytest.approx(scores)
    assert scores[tuple(module.chosen.tolist())] == max(scores.values())
    best = make_module(gamma=float(module.chosen[0]), delta_a=float(module.chosen[1]), lam=float(module.chosen[3]))
    assert torch.equal(fit(best, batch).alpha, module.alpha)


def test_a_choice_goes_on_after_the_gamma_it_stopped_at():
    batch, _ = moons(9)
    selection = {"rule": "nested"}
    whole = fit(make_module(selection=selection), batch)
    broken = make_module(selection=selection)
    broken.fit_closed_form(batch)
    resumed = make_module(selection=selection)
    resumed.load_state_dict(broken.state_dict())
    fit(resumed, batch)
    assert torch.equal(resumed.grid, whole.grid) and torch.equal(resumed.alpha, whole.alpha)


def test_choosing_by_the_judged_rows_cannot_lose_to_a_part_of_the_grid():
    """Why IHLSVM is 'better on all sets': its grid has LapSVM's lambda and HGSVM's."""
    batch, _ = moons(3)
    x, moon = make_moons(60, noise=0.3, random_state=7)
    revealed = {**batch, "judged_features": torch.tensor(x), "judged_label": torch.tensor(moon)}
    best = {}
    for name, lam in (("ihlsvm", [0.0, 0.5, 1.0]), ("lapsvm", [1.0]), ("hgsvm", [0.0])):
        with pytest.warns(UserWarning, match="chosen on the judged rows: the test metrics are biased"):
            module = fit(make_module(selection={"rule": "oracle", "lam": lam}), revealed)
        best[name] = float(module.grid[:, 4].max())
    assert best["ihlsvm"] == max(best.values())


def test_the_oracle_needs_rows_that_the_data_do_not_show_by_themselves():
    batch, _ = moons()
    with pytest.raises(InputError, match=r"variant=hypergraph_svm_oracle_leaky"):
        make_module(selection={"rule": "oracle"}).fit_closed_form(batch)


# ---- scores and baselines -----------------------------------------------------------------------


def test_multi_label_scores_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    scores, label = generator.normal(size=(50, 6)), (generator.uniform(size=(50, 6)) < 0.3).astype(np.int64)
    label[:, 5] = 0  # a label with one kind of rows is left out of the areas
    label[:, 4] = scores[:, 4] > 0
    module, logged = make_module(6), {}
    module.task_place.fill_(2)
    module.share = torch.tensor(label.mean(axis=0))
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    module.log_dict = lambda values, **_: logged.update(values)
    module.forward = lambda features: features
    module.on_test_start()
    for part in (slice(0, 30), slice(30, 50)):
        module.test_step({"features": torch.tensor(scores[part]), "label": torch.tensor(label[part])}, 0)
    module.on_test_epoch_end()
    said = (scores >= 0).astype(np.int64)
    both, sizes = (said & label).sum(axis=1), said.sum(axis=1) + label.sum(axis=1)
    f1 = np.mean([1.0 if size == 0 else 2 * common / size for common, size in zip(both, sizes, strict=True)])
    expected = {
        "hamming_loss": hamming_loss(label, said),
        "f1": f1,
        "auc_hard": np.mean([roc_auc_score(label[:, c], said[:, c]) for c in range(5)]),
        "auc": np.mean([roc_auc_score(label[:, c], scores[:, c]) for c in range(5)]),
        "ranking_loss": label_ranking_loss(label, scores),
        "average_precision": label_ranking_average_precision_score(label, scores),
    }
    for name, value in expected.items():
        assert logged[f"test/{name}"] == pytest.approx(value, abs=1e-5), name
    assert logged["floor/hamming_loss"] == pytest.approx(label.mean(), abs=0.2)
    assert logged["floor/auc"] == logged["floor/auc_hard"] == pytest.approx(0.5)
    frequency = np.broadcast_to(label.mean(axis=0), label.shape)
    assert logged["floor/ranking_loss"] == pytest.approx(label_ranking_loss(label, frequency), abs=0.05)


def test_two_processes_count_the_rows_of_both_for_the_areas():
    """A label with one kind of rows in one process and the other kind in the other is a label like any."""
    generator = np.random.default_rng(0)
    scores, label = generator.normal(size=(40, 3)), (generator.uniform(size=(40, 3)) < 0.4).astype(np.int64)
    label[:20, 2], label[20:, 2] = 0, 1
    (first, logged), (second, _) = (judged_rows(scores[part], label[part]) for part in (slice(20), slice(20, 40)))
    for name in ("hard", "ranked", "floor_of_hard", "floor_of_ranked"):
        for metric, other in zip(getattr(first, name).values(), getattr(second, name).values(), strict=True):
            gather_with(metric, other)
    first.on_test_epoch_end()
    for name, said in (("auc", scores), ("auc_hard", scores >= 0)):
        assert logged[f"test/{name}"] == pytest.approx(
            np.mean([roc_auc_score(label[:, c], said[:, c]) for c in range(3)])
        )
    assert logged["test/ranking_loss"] == pytest.approx(label_ranking_loss(label, scores))


def judged_rows(scores, label):
    """A module that has seen these rows in a test, and the dictionary that its numbers are logged to."""
    module, logged = make_module(label.shape[1]), {}
    module.task_place.fill_(2)
    module.share = torch.full((label.shape[1],), 0.4, dtype=torch.float64)
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    module.forward = lambda features: features
    module.on_test_start()
    module.test_step({"features": torch.tensor(scores), "label": torch.tensor(label)}, 0)
    return module, logged


def gather_with(metric, other):
    """What gathering over two processes gives: each state of this metric beside the other's."""
    states = [getattr(other, name) for name in other._reductions]
    theirs = iter([state[0] if isinstance(state, list) else state for state in states])
    metric.distributed_available_fn = lambda: True
    metric.dist_sync_fn = lambda mine, group: [mine, next(theirs)]


def test_accuracy_counts_rows_and_not_classes():
    """The library's default is the mean over classes."""
    module, logged = make_module(3), {}
    module.task_place.fill_(1)
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    module.log_dict = lambda values, **_: None
    module.forward = lambda features: features
    module.on_test_start()
    label = torch.tensor([0] * 8 + [1, 2])
    module.test_step({"features": torch.eye(3)[[0] * 10], "label": label}, 0)
    module.on_test_epoch_end()
    assert logged["test/accuracy"] == pytest.approx(80.0) and logged["floor/accuracy"] == pytest.approx(80.0)


def test_ranks_keep_the_order_of_far_scores():
    values = torch.tensor([-1e6, -40.0, -39.9, 0.0, 1e-9, 39.9, 40.0, 1e6], dtype=torch.float64)
    found = ranks(values)
    assert (found.diff() > 0).all() and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize(
    ("make", "uses_unlabelled"), [(lambda: SVC(gamma=0.5), False), (lambda: LabelSpreading(kernel="knn"), True)]
)
def test_baselines_say_what_the_library_says_on_the_same_rows(make, uses_unlabelled):
    batch, _ = moons(8)
    module = known_to(LibraryClassifier(make, uses_unlabelled), ["c0", "c1"])
    fit(module, batch)
    rows = np.ones(120, dtype=bool) if uses_unlabelled else batch["labelled"].numpy()
    alone = make().fit(batch["features"].numpy()[rows], batch["label"].numpy()[rows])
    x = make_moons(40, noise=0.1, random_state=3)[0]
    assert module.classes_of(module(torch.tensor(x))).tolist() == alone.predict(x).tolist()


def test_baselines_refuse_label_sets():
    generator = np.random.default_rng(0)
    batch = batch_of(generator.normal(size=(20, 2)), np.ones((20, 3), dtype=np.int64), np.ones(20, dtype=bool))
    with pytest.raises(InputError, match="take one class a row"):
        known_to(LibraryClassifier(SVC, False), ["a", "b", "c"]).fit_closed_form(batch)


# ---- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gamma": 0.0}, r"model\.gamma=0\.0 must be above 0, or auto"),
        ({"delta_a": 0.0}, r"model\.delta_a=0\.0 must be above 0"),
        ({"delta_i": -1.0}, r"model\.delta_i=-1\.0 must be 0 or more"),
        ({"lam": 1.5}, r"model\.lam=1\.5 must be from 0 to 1"),
        ({"manifold": {"mu": 0.0}}, r"model\.manifold\.mu=0\.0 must be above 0, or mean"),
        ({"solver": {"tol": 0.0}}, r"model\.solver\.tol=0\.0 must be above 0 and below 1"),
        ({"solver": {"iterations": 0}}, r"model\.solver\.iterations=0 must be 1 or more"),
        ({"selection": {"folds": 1}}, r"model\.selection\.folds=1 must be 2 or more"),
        ({"selection": {"lam": []}}, r"model\.selection\.lam is empty"),
        ({"selection": {"lam": [2.0]}}, r"model\.selection\.lam=2\.0 must be from 0 to 1"),
        ({"selection": {"gamma": [0.0]}}, r"model\.selection\.gamma=0\.0 must be above 0"),
        ({"selection": {"delta_a": [-1.0]}}, r"model\.selection\.delta_a=-1\.0 must be above 0"),
        ({"selection": {"delta_i": [-1.0]}}, r"model\.selection\.delta_i=-1\.0 must be 0 or more"),
        ({"selection": {"tol": 2.0}}, r"model\.selection\.tol=2\.0 must be above 0 and below 1"),
    ],
)
def test_settings_that_make_no_sense(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        make_module(**changes)


def test_too_many_rows_name_the_memory_and_the_remedy():
    batch, _ = moons()
    with pytest.raises(InputError, match=r"120 training rows: .* data\.max_train=100"):
        make_module(most_rows=100).fit_closed_form(batch)
    many = {
        "features": torch.zeros(12001, 1),
        "labelled": torch.ones(12001, dtype=torch.bool),
        "label": torch.zeros(12001),
    }
    with pytest.raises(InputError, match=r"takes 1\.15 GB"):
        make_module(most_rows=12000).fit_closed_form(many)


def test_rows_without_any_label():
    batch, _ = moons()
    with pytest.raises(InputError, match=r"none of the 120 training rows is labelled: lower data\.unlabelled"):
        make_module().fit_closed_form({**batch, "labelled": torch.zeros(120, dtype=torch.bool)})


def test_too_few_labels_for_inner_folds():
    batch, _ = moons(2)
    with pytest.raises(InputError, match=r"model\.selection\.folds=3 is more than the 2 labelled rows"):
        make_module(selection={"rule": "nested"}).fit_closed_form(batch)


def test_a_checkpoint_without_a_solution_says_so():
    with pytest.raises(InputError, match="holds no solution yet"):
        make_module()(torch.zeros(1, 2))
