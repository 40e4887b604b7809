"""The tree on small tables and on the real targets: its bins, its walk, its leaves, its state; acceptance numbers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_selection import f_classif
from sklearn.metrics import r2_score
from sklearn.svm import SVC, SVR

from datamodules.lc50 import TARGET, TESTReader
from lightning_modules.fish_toxicity_qsar import BinTreeModule
from lightning_modules.fish_toxicity_qsar.regressor import predicted_rows
from lightning_modules.fish_toxicity_qsar.scores import stage_of
from runs.building import build, check_config
from runs.composition import compose_config, to_plain
from runs.errors import InputError

GAPS, WMSD = (50, 30, 10), (None, 1e-4, 1e-3)  # gaps in thousandths
QUICK = ["model.reference=null", "model.leaf_regressors=[ridge]"]


def config(*words, model="fish_toxicity_qsar"):
    base = ["experiment=fish_toxicity_qsar_demo", f"model={model}", "paths.run_dir=unused"]
    return to_plain(compose_config([*base, *words]))


def make(*words):
    return build(config(*QUICK, *words)["model"])


def table(n=160, d=30, seed=0):
    """Targets in thousandths, in some places crowded, which columns 0 and 1 nearly tell."""
    generator = np.random.default_rng(seed)
    whole = np.concatenate([generator.integers(0, 3000, n // 2), generator.normal(1500, 200, n - n // 2)]).round()
    X = generator.uniform(size=(n, d))
    X[:, 0] = (whole - whole.min()) / np.ptp(whole)
    X[:, 1] = (X[:, 0] + generator.normal(0, 0.05, n)).clip(0, 1)
    return X, whole.astype(int)


def fit(module, X, whole):
    batch = {
        "features": torch.tensor(X),
        "target": torch.tensor(whole / 1000),
        "index": torch.arange(len(X)),
    }
    while not module.is_fitted():
        module.fit_closed_form(batch)
    return module


def plain_tree(whole, levels=3):
    """Sizes of the nodes of each level by Eqs. 1 and 2 in loops over whole thousandths."""
    n, sizes = len(whole), []
    bins = [sorted(whole)]
    for gap, theta in list(zip(GAPS, WMSD, strict=True))[:levels]:
        made = []
        for members in bins:
            if theta is not None and not len(members) * ((members[-1] - members[0]) / 1000) ** 2 / n > theta:
                continue
            parts = [[members[0]]]
            for before, this in pairwise(members):
                if this - before > gap:
                    parts.append([])
                parts[-1].append(this)
            if len(parts) > 1:
                made += parts
        sizes.append([len(part) for part in made])
        bins = made
    return sizes


@pytest.fixture(scope="module")
def small():
    X, whole = table()
    return fit(make(), X, whole), X, whole


def sizes_by_level(module):
    rows = module.node_table()
    return [[row["rows"] for row in rows if row["level"] == level] for level in (1, 2, 3)]


@pytest.mark.parametrize("seed", range(4))
def test_levels_are_those_of_a_tree_grown_in_loops(seed):
    X, whole = table(seed=seed)
    assert sizes_by_level(fit(make("model.k=2"), X, whole)) == plain_tree(whole)
    assert len(plain_tree(whole)[2]) > 0


def test_leaves_partition_the_rows_and_siblings_do_not_overlap(small):
    """Q7."""
    module, _, whole = small
    covered = np.zeros(len(whole), dtype=int)
    for leaf in module.leaves():
        covered[module.range_of(leaf)] += 1
    assert (covered == 1).all()
    assert module.targets.tolist() == (np.sort(whole) / 1000).tolist()
    for node in module.inner_nodes():
        low, high = module.ranges(module.bins_of(node))
        assert (low[1:] > high[:-1]).all()
    for bin_ in module.bins_of(0).tolist():
        inside = np.diff(np.sort(whole)[module.range_of(bin_)])
        assert (inside <= 50).all()


def test_the_order_of_the_rows_changes_nothing(small):
    """Q7."""
    module, X, whole = small
    whole = whole.copy()
    order = np.random.default_rng(5).permutation(len(X))
    again = fit(make(), X[order], whole[order])
    for name, value in module.state_dict().items():
        assert torch.equal(value.nan_to_num(-1), again.state_dict()[name].nan_to_num(-1)), name


def test_the_walk_is_a_chemicals_own_way_down_by_classifiers_fitted_anew(small):
    module, _, _ = small
    new = table(seed=9)[0][:40]
    reached = module.walk(torch.tensor(new)).tolist()
    rows, levels = {row["node"]: row for row in module.node_table()}, set()
    for place, x in enumerate(new):
        node = 0
        while rows[node]["bins"]:
            here = module.range_of(node)
            X = module.rows[here].numpy()
            children = [row for row in rows.values() if row["parent"] == node]
            child = np.concatenate([[c["node"]] * c["rows"] for c in children])
            F = np.nan_to_num(f_classif(X, child)[0])
            columns = np.argsort(-F, kind="stable")[:23]
            columns = columns[F[columns] > 0] if (F > 0).any() else columns
            node = int(SVC().fit(X[:, columns], child).predict(x[None, columns])[0])
        levels.add(rows[node]["level"])
        assert reached[place] == node
    assert len(levels) > 1


def test_a_batch_goes_down_as_its_rows_do_one_by_one(small):
    module, X, _ = small
    together = module.walk(torch.tensor(X[:30]))
    assert together.tolist() == [int(module.walk(torch.tensor(X[i : i + 1]))) for i in range(30)]


def test_each_cut_has_the_majority_rate_of_its_own_rows(small):
    rows = small[0].node_table()
    inner = [row for row in rows if row["bins"]]
    assert {row["level"] for row in inner} == {0, 1, 2}
    for row in inner:
        largest = max(child["rows"] for child in rows if child["parent"] == row["node"])
        assert row["majority"] == pytest.approx(largest / row["rows"], abs=1e-12)


def test_leaf_values_by_the_number_of_rows(small):
    module, _, whole = small
    y = np.sort(whole) / 1000
    kinds = set()
    for leaf in module.leaves():
        own, value = y[module.range_of(leaf)], float(module.leaf_value[leaf])
        kinds.add(min(len(own), 3))
        if len(own) < 3:
            assert value == pytest.approx(own.mean(), abs=1e-12)
            assert torch.isnan(module.leaf_predictions[leaf]).all()
        else:
            assert value == pytest.approx(float(module.leaf_predictions[leaf].mean()), abs=1e-12)
            assert abs(value - own.mean()) < np.ptp(own) + 0.01
    assert kinds == {1, 2, 3}
    assert torch.isnan(module.leaf_value[module.inner_nodes()]).all()


def test_a_greater_target_is_more_toxic_all_the_way(small, monkeypatch):
    module, X, whole = small
    monkeypatch.setattr(BinTreeModule, "target_name", TARGET)
    order = np.argsort(whole)
    values = module(torch.tensor(X[order]))
    assert values[-20:].mean() > values[:20].mean() + 1
    rows = module.predict_step({"features": torch.tensor(X[:4]), "index": torch.arange(4)}, 0)
    for row, value in zip(rows, module(torch.tensor(X[:4])).tolist(), strict=True):
        assert row["minus_log10_lc50_mol_per_l"] == value
        assert row["lc50_mol_per_l"] == pytest.approx(10**-value)
        assert row["leaf_from"] <= row["leaf_to"]


def test_other_targets_are_predicted_under_their_own_name():
    batch, values = {"index": torch.arange(2)}, torch.tensor([-1.5, 4.0])
    assert predicted_rows(batch, values, "price") == [{"name": 0, "price": -1.5}, {"name": 1, "price": 4.0}]
    assert list(predicted_rows(batch, values, "leaf")[0]) == ["name", "predicted_leaf"]  # the tree has such a column


def test_work_on_a_level_says_how_many_of_its_bins_are_done(monkeypatch, caplog):
    X, whole = table()
    shown = []

    def progress(self, items, total, description):
        shown.append(description)
        return iter(items)

    monkeypatch.setattr(BinTreeModule, "progress", progress)
    with caplog.at_level("INFO", logger="reprise"):
        module = fit(make("model.k=2"), X, whole)
    cut = [module.inner_nodes(level) for level in range(3)]
    words = [f"bin {i + 1} of {len(cut[level])}, level {level}" for level in range(3) for i in range(len(cut[level]))]
    assert len(words) > 5 and shown[:-1] == words
    rows = module.node_table()
    lines = [
        f"{place} (node {n}): {rows[n]['rows']} rows in" for place, n in zip(words, module.inner_nodes(), strict=True)
    ]
    assert all(line in message for line, message in zip(lines, caplog.messages, strict=True))


def test_bin_accuracy_and_the_oracle_of_the_range(small):
    module, X, _ = small
    leaf = module.walk(torch.tensor(X))
    low, high = (part.numpy() for part in module.ranges(leaf))
    for true in (low, high, (low + high) / 2, low - 0.001, high + 0.001, np.full(len(X), 1.234)):
        inside = [a <= y <= b for a, b, y in zip(low, high, true, strict=True)]  # Eq. 8, both ends included
        assert module.in_bin(leaf, torch.tensor(true)).tolist() == inside
        nearest = [a if abs(a - y) <= abs(b - y) else b for a, b, y in zip(low, high, true, strict=True)]
        assert module.range_interval(leaf, torch.tensor(true)).tolist() == nearest


def test_the_floor_of_bin_accuracy_is_the_largest_leaf_for_every_chemical(small):
    module, X, whole = small
    module.on_test_start()
    module.test_step({"features": torch.tensor(X), "target": torch.tensor(whole / 1000)}, 0)
    largest = max((row for row in module.node_table() if not row["bins"]), key=lambda row: row["rows"])
    assert largest["rows"] > 1
    assert float(module.bin_floor.compute()) == pytest.approx(100 * largest["rows"] / len(whole))


def test_the_oracle_never_has_the_name_of_a_test():
    names = {stage_of(protocol, oracle) for protocol in ("honest", "leaky_paper") for oracle in (False, True)}
    assert len(names) == 4
    assert [n for n in names if n.startswith("test")] == [stage_of("honest")]


def test_the_linear_leaf_is_its_regression_at_the_chemical():
    X, whole = table()
    module = fit(make("model.leaf=linear"), X, whole)
    new = torch.tensor(table(seed=4)[0][:25])
    leaf = module.walk(new)
    for place, reached in enumerate(leaf.tolist()):
        own = module.targets[module.range_of(reached)]
        if len(own) < 3:
            expected = float(own.mean())
        else:
            A, y = module.rows_of(reached).numpy(), own.numpy()
            K = (A - A.mean(0)) @ (A - A.mean(0)).T
            weights = np.linalg.solve(K + 1e-3 * np.eye(len(y)), y - y.mean())  # ridge by its dual: fewer rows
            expected = y.mean() + (new[place].numpy() - A.mean(0)) @ (A - A.mean(0)).T @ weights
        assert float(module(new)[place]) == pytest.approx(expected, abs=1e-6)


def test_the_ensemble_asks_the_leafs_regressors_about_the_chemical_itself():
    X, whole = table()
    words = ["model.leaf=per_sample_ensemble", "model.leaf_regressors=[svr,ridge]", "model.leaf_measure=mid_range"]
    module = fit(make(*words, "model.levels=1"), X, whole)
    new = torch.tensor(table(seed=4)[0][:25])
    leaf = module.walk(new)
    ensembles = 0
    for place, reached in enumerate(leaf.tolist()):
        own = module.targets[module.range_of(reached)].numpy()
        expected = own.mean()
        if len(own) > 2:
            A, x = module.rows_of(reached).numpy(), new[place : place + 1].numpy()
            svr = SVR(C=1.0).fit(A, own).predict(x)[0]
            w = np.linalg.solve(
                (A - A.mean(0)).T @ (A - A.mean(0)) + np.eye(A.shape[1]), (A - A.mean(0)).T @ (own - own.mean())
            )
            expected = (svr + own.mean() + (x[0] - A.mean(0)) @ w) / 2
            ensembles += 1
        assert float(module(new)[place]) == pytest.approx(expected, abs=1e-8)
    assert ensembles > 5


def test_without_levels_there_is_one_leaf_with_all_rows():
    X, whole = table()
    module = fit(make("model.levels=0"), X, whole)
    assert module.leaves() == [0] and len(set(module(torch.tensor(X)).tolist())) == 1


@pytest.mark.parametrize("leaf", ["constant", "linear", "per_sample_ensemble"])
def test_a_loaded_state_predicts_the_same_to_the_bit(tmp_path, leaf):
    X, whole = table(n=60)
    words = [f"model.leaf={leaf}", "model.leaf_regressors=[knn,svr]"]
    module = fit(make(*words), X, whole)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    loaded = make(*words)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    new = torch.tensor(table(seed=3)[0])
    assert torch.equal(loaded(new), module(new))


def test_a_classifier_that_fits_otherwise_than_the_checkpoints_is_found_out():
    X, whole = table(n=60)
    module = fit(make(), X, whole)
    other = make("model.classifiers.svc.C=0.001")
    other.load_state_dict(module.state_dict())
    with pytest.raises(InputError, match="predicts otherwise than it did"):
        other.walk(torch.tensor(X))


def test_each_level_can_be_the_last_before_a_checkpoint():
    X, whole = table()
    unbroken = fit(make(), X, whole)
    batch = {"features": torch.tensor(X), "target": torch.tensor(whole / 1000), "index": torch.arange(len(X))}
    for levels in (1, 2, 3):
        broken = make()
        for _ in range(levels):
            broken.fit_closed_form(batch)
        resumed = make()
        resumed.load_state_dict(broken.state_dict())
        fit(resumed, X, whole)
        for name, value in unbroken.state_dict().items():
            assert torch.equal(value.nan_to_num(-1), resumed.state_dict()[name].nan_to_num(-1)), name


def test_selection_leaves_every_candidate_and_takes_the_best_of_them():
    X, whole = table(n=80, d=8)
    words = ["model.classifier=select", "model.ranker=select", "model.k=select", "model.ks=[1,all]", "model.levels=1"]
    module = fit(make(*words, "model.classifiers.forest.n_estimators=5"), X, whole)
    rows = module.selection_table()
    assert {(row["classifier"], row["ranker"]) for row in rows} == {
        (c, r) for c in ("svc", "forest", "knn") for r in ("chi2", "mutual_info", "f_classif")
    }
    root = module.node_table()[0]
    assert root["cv_f1"] == max(row["cv_f1"] for row in rows)
    chosen = [row for row in rows if row["cv_f1"] == root["cv_f1"]]
    assert root["k"] == min(row["k"] for row in chosen)
    biggest = max(plain_tree(whole, levels=1)[0])
    assert root["majority"] == pytest.approx(biggest / len(whole))


def test_too_few_bins_are_one_sentence():
    X, _ = table()
    with pytest.raises(
        InputError, match=r"level 1 has 2 bins of the 160 training rows, and 3 is the least: .*gaps\[0\]"
    ):
        fit(make(), X, np.repeat([1000, 2000], 80))


def test_negative_columns_under_chi2_are_one_sentence():
    X, whole = table()
    with pytest.raises(InputError, match=r"set data\.scale=minmax"):
        fit(make("model.ranker=chi2"), X - 0.5, whole)


def test_an_unfinished_tree_is_not_judged():
    X, whole = table(n=60)
    module = make()
    module.fit_closed_form({"features": torch.tensor(X), "target": torch.tensor(whole / 1000)})
    with pytest.raises(InputError, match=r"the tree has 1 of 3 levels and no leaf values: go on with its run"):
        module.on_test_start()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.levels=4"], r"model\.levels=4 must be from 0 to the number of thresholds"),
        (["model.leaf_regressors=[svm]"], r"model\.leaf_regressors=\['svm'\] must name .*did you mean svr"),
        (["model.leaf_regressors=[]"], r"must name one regressor or more"),
        (["model.classifier=svm"], r"model\.classifier=svm is unknown"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words, sentence):
    with pytest.raises(InputError, match=sentence):
        build(config(*words)["model"])


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("model.leaf_measure=median", "mid_hinge"),
        ("protocol=leaky", "leaky_paper"),
        ("model.ranker=anova", "f_classif"),
    ],
)
def test_an_unknown_choice_names_the_known_ones(word, names):
    with pytest.raises(
        InputError, match=f"{word.partition('=')[0].rpartition('.')[2]}.*wrong type or value: .*{names}"
    ):
        check_config(config(word))


# ---- on the real targets and descriptors ---------------------------------------------------------

LEVEL_1 = "2 1 2 1 1 1 1 4 10 2 2 1 1 8 1 7 5 4 515 10 7 30 17 6 2 1 1 3 1 1 2 4 1 2 1 1"


@pytest.fixture(scope="module")
def lc50(sample_data):
    return TESTReader().read(sample_data / "lc50_fathead_minnow")


def bins_alone(targets, *words):
    """The tree with one column for all classifiers: its bins do not depend on them."""
    X = np.linspace(0, 1, len(targets))[:, None] @ np.ones((1, 2))
    return fit(make("model.k=1", *words), X, (targets * 1000).round())


def test_the_bins_of_the_training_targets_are_exact(lc50):
    """Q2."""
    module = bins_alone(lc50.target[lc50.parts == "train"])
    first = [row for row in module.node_table() if row["level"] == 1]
    assert [row["rows"] for row in first] == [int(word) for word in LEVEL_1.split()]
    assert [place for place, row in enumerate(first) if row["bins"]] == [13, 18, 19, 21, 22]
    large = [row["rows"] for row in module.node_table() if row["parent"] == first[18]["node"]]
    assert large == [14, 6, 1, 17, 88, 17, 224, 126, 13, 9]
    assert len(module.leaves()) == 138
    unrounded = bins_alone(lc50.target[lc50.parts == "train"], "model.gap_decimals=null")
    large = [row["rows"] for row in unrounded.node_table() if row["parent"] == first[18]["node"]]
    assert large == [14, 6, 1, 17, 88, 17, 198, 26, 126, 11, 2, 9]  # two gaps of 0.03 are above it in float64
    assert len(unrounded.leaves()) == 138


def test_the_bins_of_all_targets_are_exact(lc50):
    """Q2."""
    module = bins_alone(lc50.target)
    rows = module.node_table()
    first, second = ([row for row in rows if row["level"] == level] for level in (1, 2))
    assert (len(first), max(row["rows"] for row in first)) == (31, 667)
    assert [sum(row["bins"] > 0 for row in part) for part in (first, second)] == [3, 2]
    assert len(module.leaves()) == 127
    assert len(bins_alone(lc50.target, "model.gap_decimals=null").leaves()) == 131


def scaled(lc50, train):
    X = lc50.features
    low, high = X[train].min(0), X[train].max(0)
    keep = high > low
    return ((X[:, keep] - low[keep]) / (high - low)[keep]).clip(0, 1)


def test_level_1_is_the_majority_rate_for_each_classifier(lc50):
    """Q4: 23 columns by f_classif, 5 folds of 823 rows; Table 2 has .7815, .8147 and .8127."""
    X = scaled(lc50, np.ones(823, dtype=bool))
    for classifier in ("knn", "svc", "forest"):
        root = fit(make(f"model.classifier={classifier}", "model.levels=1"), X, (lc50.target * 1000).round())
        row = root.node_table()[0]
        assert row["majority"] == pytest.approx(667 / 823)
        assert abs(row["cv_f1"] - row["majority"]) <= 0.02
        assert abs(row["cv_f1"] - {"knn": 0.7815, "svc": 0.8147, "forest": 0.8127}[classifier]) <= 0.04


def ranges_by_recursion(X, whole, new):
    """The range, in whole thousandths, of the leaf that each new row reaches in a tree of scikit-learn's parts."""
    ends = np.empty((len(new), 2))

    def go(rows, level, here):
        y = whole[rows]
        large = level < 3 and (level == 0 or len(y) * (np.ptp(y) / 1000) ** 2 / len(whole) > WMSD[level])
        child = np.r_[0, np.cumsum(np.diff(y) > GAPS[level])] if large else np.zeros(len(y), dtype=int)
        if child[-1] == 0:
            ends[here] = y[0], y[-1]
            return
        F = np.nan_to_num(f_classif(X[rows], child)[0]) if child[-1] < len(y) - 1 else np.zeros(X.shape[1])
        order = np.argsort(-F, kind="stable")
        columns = (order[F[order] > 0] if F.any() else order)[:23]
        classifier = SVC().fit(X[np.ix_(rows, columns)], child)
        said = classifier.predict(new[np.ix_(here, columns)]) if len(here) else here
        for number in range(child[-1] + 1):
            go(rows[child == number], level + 1, here[said == number])

    go(np.argsort(whole, kind="stable"), 0, np.arange(len(new)))
    return ends


def test_the_honest_tree_is_worse_than_a_forest_and_the_leaky_one_looks_better(lc50):
    """Q3 and Q5, without what the leaf values and the full forest cost; the full runs are tests of their own."""
    train, test = lc50.parts == "train", lc50.parts == "test"
    whole, y = (lc50.target * 1000).round(), lc50.target
    X = scaled(lc50, train)
    honest = fit(make(), X[train], whole[train])
    low, high = honest.ranges(honest.walk(torch.tensor(X[test])))
    np.testing.assert_allclose(1000 * np.stack([low, high], 1), ranges_by_recursion(X[train], whole[train], X[test]))
    r2 = r2_score(y[test], honest(torch.tensor(X[test])))
    forest = RandomForestRegressor(30, max_features=0.333, random_state=1).fit(X[train], y[train])
    assert 0.40 <= r2 <= 0.60 and r2_score(y[test], forest.predict(X[test])) >= 0.69
    X = torch.tensor(scaled(lc50, np.ones(823, dtype=bool)))
    leaky = build(config(*QUICK, model="fish_toxicity_qsar_leaky")["model"])
    with pytest.warns(UserWarning, match="the judged rows are trained on"):
        fit(leaky, X.numpy(), whole)
    leaf = leaky.walk(X[test])
    assert float(leaky.in_bin(leaf, torch.tensor(y[test])).double().mean()) >= 0.85
    assert r2_score(y[test], leaky(X[test])) >= 0.83
