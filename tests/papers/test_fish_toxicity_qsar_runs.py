"""Experiments run whole: trained, judged again, predicting, broken, killed, folds, leaky; the acceptance runs."""

import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.model_selection import KFold

from datamodules.lc50 import PARTS
from lightning_modules.fish_toxicity_qsar import BinTreeModule
from runs.command_line import INPUT_ERROR
from runs.composition import compose_config, to_plain
from runs.errors import InputError
from tests.toy.running import judge_here, run_door, start_door, train_here

NAME = "fish_toxicity_qsar"
QUIET = ["trainer=cpu", "trainer.enable_progress_bar=false"]
DEMO = [*QUIET, f"experiment={NAME}_demo", "data.reader.rows=120"]
CHEAP = ["model.leaf_regressors=[ridge]", "model.reference.n_estimators=5"]
UNDRAWN = "callbacks.figures=null"


def train(run_dir: Path, *words: str) -> dict:
    train_here(run_dir, *words)
    return json.loads((run_dir / "result.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def state(run_dir: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    learnt = checkpoint["TableDataModule"]
    return {
        **checkpoint["state_dict"],
        **{f"data.{name}": learnt[name] for name in ("kept", "offset", "size", "median")},
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        one[name].shape == other[name].shape and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


def copy_with(source: Path, folder: Path, part: str, change) -> Path:
    """The generated files with one column of one part changed by ``change(cells)``, cells by rows."""
    shutil.copytree(source, folder)
    path = folder / PARTS[part]
    header, *lines = path.read_text().splitlines()
    cells = change([line.split(",") for line in lines])
    path.write_text("\n".join([header, *(",".join(row) for row in cells)]) + "\n")
    return folder


def on_files(words: list[str], folder: Path) -> list[str]:
    """The demo's command, on a folder in T.E.S.T.'s layout."""
    kept = [word for word in words if not word.startswith("data.")]
    return [*kept, "data=lc50_test_2d", f"data.root={folder}"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("fish")
    words = [*DEMO, *CHEAP, f"paths.data_dir={root}/data"]
    return root, train(root / "run", *words), words


def test_a_run_leaves_its_tree_with_names_its_bins_and_figures(demo):
    root, result, _ = demo
    run = root / "run"
    assert {path.name for path in (run / "figures").iterdir()} == {
        f"test_{n}.png" for n in ("tree", "bins", "predicted")
    }
    bins, tree = rows(run / "bins.csv"), json.loads((run / "tree.json").read_text())
    assert len(bins) == len(tree) and result["metrics"]["test/leaves"] == sum(node["bins"] == 0 for node in tree)
    names = (root / "data" / "lc50_generated" / PARTS["train"]).read_text().partition("\n")[0].split(",")
    assert len(tree[0]["columns"]) == 23 and set(tree[0]["columns"]) <= set(names)
    assert {"x1", "x2"} <= set(tree[0]["columns"])  # what the toxicity depends on
    assert tree[0]["classifier"] == "svc" and float(bins[0]["cv_f1"]) == result["metrics"]["test/level1_cv_f1"]
    for node in tree:
        assert (node["value"] is None) == (node["bins"] > 0)
        if node["bins"]:
            assert node["rows"] == sum(child["rows"] for child in tree if child["parent"] == node["node"])
    assert {row["node"] for row in rows(run / "selection.csv")} == {str(n["node"]) for n in tree if n["bins"]}


def test_every_score_stands_beside_its_floor_and_the_oracle_under_its_own_name(demo):
    _, result, _ = demo
    metrics, floors = result["metrics"], result["floors"]
    for name in metrics:
        if name != "test/leaves":
            assert name.partition("/")[2] in floors, name
    assert {name.partition("/")[0] for name in metrics} == {"test", "oracle"}
    assert {f"oracle/{score}" for score in ("r2", "rmse", "mae", "rpd")} <= set(metrics)
    assert metrics["oracle/rmse"] < metrics["test/rmse"]


def test_scores_are_those_of_scikit_learn_on_the_predicted_table(demo):
    root, result, _ = demo
    source = root / "data" / "lc50_generated"
    checkpoint = root / "run" / "checkpoints" / "last.ckpt"
    words = ["mode=predict", f"data.predict_root={source / PARTS['test']}", f"paths.data_dir={root}/gone"]
    judge_here(checkpoint, root / "predicted", *words)  # the training data need not be there
    found = rows(root / "predicted" / "predictions.csv")
    true = np.array([float(row["Tox"]) for row in rows(source / PARTS["test"])])
    assert [row["name"] for row in found] == [row["CAS"] for row in rows(source / PARTS["test"])]
    predicted = np.array([float(row["minus_log10_lc50_mol_per_l"]) for row in found])
    metrics, floors = result["metrics"], result["floors"]
    assert metrics["test/r2"] == pytest.approx(r2_score(true, predicted), abs=1e-6)
    assert metrics["test/rmse"] == pytest.approx(root_mean_squared_error(true, predicted), abs=1e-6)
    assert metrics["test/mae"] == pytest.approx(mean_absolute_error(true, predicted), abs=1e-6)
    assert metrics["test/rpd"] == pytest.approx(true.std(ddof=1) / root_mean_squared_error(true, predicted), abs=1e-6)
    ends = np.array([[float(row["leaf_from"]), float(row["leaf_to"])] for row in found])
    inside = (ends[:, 0] <= true) & (true <= ends[:, 1])
    assert metrics["test/bin_accuracy"] == pytest.approx(100 * inside.mean(), abs=1e-9)
    nearest = np.where(np.abs(true - ends[:, 0]) <= np.abs(true - ends[:, 1]), ends[:, 0], ends[:, 1])
    assert metrics["oracle/r2"] == pytest.approx(r2_score(true, nearest), abs=1e-6)
    mean = np.mean([float(row["Tox"]) for row in rows(source / PARTS["train"])])
    assert floors["r2"] == pytest.approx(r2_score(true, np.full_like(true, mean)), abs=1e-6)
    assert [float(row["lc50_mol_per_l"]) for row in found] == pytest.approx(10.0**-predicted)


def test_a_users_table_needs_the_columns_alone_in_any_order(demo):
    root, _, _ = demo
    source = rows(root / "data" / "lc50_generated" / PARTS["test"])[:5]
    columns = [*reversed([name for name in source[0] if name not in ("CAS", "Tox")]), "remark"]
    lines = [",".join(str(row.get(name, "new")) for name in columns) for row in source]
    (root / "mine.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
    checkpoint = root / "run" / "checkpoints" / "last.ckpt"
    judge_here(checkpoint, root / "mine", "mode=predict", f"data.predict_root={root}/mine.csv")
    whole = root / "data" / "lc50_generated" / PARTS["test"]
    judge_here(checkpoint, root / "whole", "mode=predict", f"data.predict_root={whole}")
    ours, theirs = (rows(root / name / "predictions.csv") for name in ("mine", "whole"))
    for mine, other in zip(ours, theirs[:5], strict=True):
        assert {**mine, "name": ""} == {**other, "name": ""}
    (root / "bad.csv").write_text((root / "mine.csv").read_text().replace("x7,", "x77,"))
    with pytest.raises(InputError, match=r"lacks 1 of the 40 columns that were trained on: x7 "):
        judge_here(checkpoint, root / "bad", "mode=predict", f"data.predict_root={root}/bad.csv")


def test_a_checkpoint_alone_gives_the_same_numbers(demo):
    root, result, _ = demo
    alone = root / "alone" / "last.ckpt"
    alone.parent.mkdir()
    shutil.copy(root / "run" / "checkpoints" / "last.ckpt", alone)
    assert judge_here(alone, root / "eval", f"paths.data_dir={root}/data")["metrics"] == result["metrics"]
    assert (root / "eval" / "tree.json").read_bytes() == (root / "run" / "tree.json").read_bytes()


def test_judged_targets_change_no_byte_of_what_training_leaves_unless_it_is_leaky(demo, tmp_path):
    """The trap that makes R2 .9: binning, scaling or ranking on the judged rows."""
    root, result, words = demo
    source = root / "data" / "lc50_generated"

    def shuffled(cells):
        order = np.random.default_rng(0).permutation(len(cells))
        return [[row[0], cells[other][1], *row[2:]] for row, other in zip(cells, order, strict=True)]

    folder = copy_with(source, tmp_path / "shuffled", "test", shuffled)
    words = [*on_files(words, folder), UNDRAWN]
    changed = train(tmp_path / "honest", *words)
    assert same(state(tmp_path / "honest"), state(root / "run"))
    assert changed["metrics"]["test/r2"] != result["metrics"]["test/r2"]
    with pytest.warns(UserWarning, match="the judged rows are trained on"):
        train(tmp_path / "leaky", *words, "protocol=leaky_paper")
    assert not same(state(tmp_path / "leaky"), state(root / "run"))


def test_judged_descriptors_change_no_byte_either(demo, tmp_path):
    root, _, words = demo
    folder = copy_with(
        root / "data" / "lc50_generated",
        tmp_path / "moved",
        "test",
        lambda cells: [[*row[:2], *["9"] * 40] for row in cells],
    )
    train(tmp_path / "run", *on_files(words, folder), UNDRAWN)
    assert same(state(tmp_path / "run"), state(root / "run"))


def test_the_leaky_protocol_warns_and_calls_nothing_a_test(demo, tmp_path):
    _, result, words = demo
    with pytest.warns(UserWarning, match="the judged rows are trained on"):
        train(tmp_path / "run", *words, UNDRAWN, f"variant={NAME}_leaky", "model.classifiers.svc.C=1000")
    leaky = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {name.partition("/")[0] for name in leaky["metrics"]} == {"leaky", "leaky_oracle"}
    assert leaky["variant"] == "leaky"
    assert leaky["metrics"]["leaky/r2"] > result["metrics"]["test/r2"] + 0.2
    assert set(leaky["floors"]) == set(result["floors"])


class Broken(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_broken_after_a_level_goes_on_with_the_next_and_ends_with_the_same_tree(demo, tmp_path, after):
    root, result, words = demo
    step = BinTreeModule.fit_closed_form

    def breaking(self, batch):
        if int(self.grown) == after:
            raise Broken
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr(BinTreeModule, "fit_closed_form", breaking)
        train(tmp_path / "run", *words)
    assert int(state(tmp_path / "run")["grown"]) == after
    grown = []

    def counting(self, batch):
        grown.append(int(self.grown))
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BinTreeModule, "fit_closed_form", counting)
        assert train(tmp_path / "run", *words)["metrics"] == result["metrics"]
    assert grown == list(range(after, 4))
    assert same(state(tmp_path / "run"), state(root / "run"))


def test_the_mean_of_the_folds_is_q2_of_all_out_of_fold_predictions(demo, tmp_path):
    root, _, _ = demo
    words = [*DEMO, f"paths.data_dir={root}/data", f"model={NAME}_ridge", "data.split.kind=folds", UNDRAWN]
    parts = [train(tmp_path / str(fold), *words, f"data.fold={fold}")["metrics"]["test/q2"] for fold in range(5)]
    table = rows(root / "data" / "lc50_generated" / PARTS["train"])
    y = np.array([float(row["Tox"]) for row in table])
    X = np.array([[float(row[f"x{j + 1}"]) for j in range(40)] for row in table])
    out_of_fold = np.empty(len(y))
    for fit, held_out in KFold(5, shuffle=True, random_state=1).split(X):
        low, size = X[fit].min(0), np.ptp(X[fit], axis=0)
        a, b = (X[fit] - low) / size, ((X[held_out] - low) / size).clip(0, 1)
        out_of_fold[held_out] = Ridge(10.0).fit(a, y[fit]).predict(b)
    assert np.mean(parts) == pytest.approx(r2_score(y, out_of_fold), abs=1e-6)


@pytest.mark.parametrize("baseline", ["forest", "knn", "svr", "ridge"])
def test_baselines_are_judged_alike_under_their_names(demo, tmp_path, baseline):
    root, result, _ = demo
    words = [*DEMO, f"paths.data_dir={root}/data", f"model={NAME}_{baseline}", UNDRAWN]
    words += ["model.regressor.n_estimators=20"] if baseline == "forest" else []
    ours = train(tmp_path / "run", *words)
    assert ours["variant"] == baseline
    assert {f"test/{score}" for score in ("r2", "rmse", "mae", "rpd")} == set(ours["metrics"])
    assert ours["floors"]["r2"] == pytest.approx(result["floors"]["r2"], abs=1e-12)
    again = judge_here(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "eval", f"paths.data_dir={root}/data")
    assert again["metrics"] == ours["metrics"]


def test_the_reference_beside_the_tree_is_the_forest_of_the_baselines():
    words = [f"experiment={NAME}_demo", "paths.run_dir=unused"]
    tree, forest = (to_plain(compose_config([*words, f"model={name}"]))["model"] for name in (NAME, f"{NAME}_forest"))
    assert tree["reference"] == forest["regressor"]


@pytest.mark.parametrize("variant", ["no_tree", "leaf_ensemble", "level_1_forest", "mid_hinge"])
def test_ablations_run(demo, tmp_path, variant):
    root, _, _ = demo
    words = [*DEMO, f"paths.data_dir={root}/data", f"variant={NAME}_{variant}", UNDRAWN, "model.reference=null"]
    if variant in ("leaf_ensemble", "mid_hinge", "no_tree"):
        words.append("model.regressors.forest.n_estimators=3")
    result = train(tmp_path / "run", *words, "data.reader.rows=60", f"data.root={tmp_path}/data")
    assert result["variant"] == variant
    assert (result["metrics"]["test/leaves"] == 1) == (variant == "no_tree")
    assert "test/reference_r2" not in result["metrics"]


@pytest.mark.parametrize(
    ("way", "metrics"),
    [
        ("bin_accuracy", {"test/bin_accuracy"}),
        ("leaf_value", {"test/r2"}),
        ("range_interval_oracle", {"oracle/r2"}),
        ("leaf_regression", {"test/leaf_regression_r2"}),
    ],
)
def test_one_of_the_four_ways_of_judging_alone(demo, way, metrics):
    root, result, _ = demo
    words = [f"paths.data_dir={root}/data", f"model.evaluation={way}", "callbacks.report=null", UNDRAWN]
    found = judge_here(root / "run" / "checkpoints" / "last.ckpt", root / way, *words)["metrics"]
    every = {"test/bin_accuracy", "test/r2", "oracle/r2", "test/leaf_regression_r2"}
    assert every & set(found) == metrics and all(found[name] == result["metrics"][name] for name in found)


def test_a_mordred_table_of_ones_own(tmp_path):
    generator = np.random.default_rng(0)
    X = generator.uniform(size=(60, 6)).round(4)
    y = (2 + 3 * X[:, 0] + generator.normal(0, 0.1, 60)).round(3)
    lines = [f"C{'C' * i},{t}," + ",".join(map(str, x)) for i, (t, x) in enumerate(zip(y, X, strict=True))]
    lines[7] = lines[7].rpartition(",")[0] + ",invalid value encountered in divide (GRAV)"
    (tmp_path / "t.csv").write_text("\n".join(["SMILES,LC50,ABC,nAcid,Xc-3d,SLogP,AATS0d,GRAV", *lines]) + "\n")
    words = [*QUIET, f"experiment={NAME}_table", *CHEAP, f"data.root={tmp_path}/t.csv", UNDRAWN]
    words.append("data.reader.minus_log10_lc50=true")
    with pytest.warns(UserWarning, match="1 of 60 rows have an unknown value or text .*and are left out"):
        result = train(tmp_path / "run", *words)
    assert result["metrics"]["test/reference_r2"] > 0.5
    (tmp_path / "new.csv").write_text("SMILES,GRAV,ABC,nAcid,Xc-3d,SLogP,AATS0d\nO,1,1,1,1,1,1\n")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    judge_here(checkpoint, tmp_path / "new", "mode=predict", f"data.predict_root={tmp_path}/new.csv")
    found = rows(tmp_path / "new" / "predictions.csv")
    assert [row["name"] for row in found] == ["O"]
    assert float(found[0]["lc50_mol_per_l"]) == pytest.approx(10.0 ** -float(found[0]["minus_log10_lc50_mol_per_l"]))


def own_table(path: Path, target: str) -> Path:
    generator = np.random.default_rng(0)
    X = generator.uniform(size=(60, 4)).round(4)
    y = (2 + 3 * X[:, 0] + generator.normal(0, 0.1, 60)).round(3)
    lines = [f"row {i},{t}," + ",".join(map(str, x)) for i, (t, x) in enumerate(zip(y, X, strict=True))]
    path.write_text("\n".join([f"name,{target},a,b,c,d", *lines]) + "\n")
    return path


TREE, FOREST = ["leaf", "leaf_from", "leaf_to"], "RandomForestRegressor"


@pytest.mark.parametrize(
    ("words", "columns", "titles"),
    [
        (CHEAP, ["name", "price", *TREE], ["tree", f"{FOREST}, no bins"]),
        ([f"model={NAME}_forest", "model.regressor.n_estimators=5"], ["name", "price"], [FOREST]),
        (
            [f"model={NAME}_svr", "data.reader.minus_log10_lc50=true"],
            ["name", "minus_log10_lc50_mol_per_l", "lc50_mol_per_l"],
            ["SVR"],
        ),
    ],
)
def test_any_number_is_predicted_and_drawn_under_its_own_name(tmp_path, monkeypatch, words, columns, titles):
    drawn = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.update({Path(path).stem: figure}))
    table = own_table(tmp_path / "mine.csv", "price")
    data = [f"data.root={table}", "data.identifier=name", "data.reader.target=price"]
    train(tmp_path / "run", *QUIET, f"experiment={NAME}_table", *words, *data)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    judge_here(checkpoint, tmp_path / "new", "mode=predict", f"data.predict_root={table}")
    found = rows(tmp_path / "new" / "predictions.csv")
    assert list(found[0]) == columns and found[7]["name"] == "row 7"
    target = "price" if "price" in columns else "-log10(LC50, mol/L)"
    axes = drawn.pop("test_predicted").axes
    assert [ax.get_title().partition(": RMSE ")[0] for ax in axes] == titles
    assert {ax.get_xlabel() for ax in axes} == {f"true {target}"}
    for figure in drawn.values():  # of the tree
        assert figure.axes[0].get_xlabel() in (target, f"training rows by ascending {target}")


@pytest.mark.parametrize("experiment", ["table", "uci", "lc50", "demo"])
def test_models_are_chosen_node_by_node_only_where_that_is_asked_for(experiment):
    words = [f"experiment={NAME}_{experiment}", "paths.run_dir=unused", "data.root=somewhere"]
    quick, chosen = (to_plain(compose_config([*words, *more]))["model"] for more in ([], [f"model={NAME}_select"]))
    asked = ("classifier", "ranker", "k")
    assert [quick[name] for name in asked] == ["svc", "f_classif", 23]
    assert [chosen[name] for name in asked] == ["select"] * 3


def test_uci_fish_toxicity_runs_by_its_preset(tmp_path):
    generator = np.random.default_rng(0)
    X = generator.uniform(size=(200, 6))
    y = 1 + 5 * X[:, 5] + generator.normal(0, 0.2, 200)
    lines = [";".join(f"{value:.3f}" for value in (*x, t)) for x, t in zip(X, y, strict=True)]
    (tmp_path / "qsar_fish_toxicity.csv").write_text("\n".join(lines) + "\n")
    words = [*QUIET, f"experiment={NAME}_uci", *CHEAP, f"data.root={tmp_path}", UNDRAWN]
    assert train(tmp_path / "run", *words)["metrics"]["test/reference_r2"] > 0.5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.gaps=[9.0,0.03,0.01]"], r"level 1 has 1 bins of the .* training rows"),
        (["data.scale=standard", "data.clip=false", "model.ranker=chi2"], r"set data\.scale=minmax"),
        (["model.leaf_measure=median"], r"leaf_measure='median' has the wrong type or value"),
        (["data.fold=1"], r"data\.fold=1: this split has no folds"),
        (["data.split.kind=folds", "data.fold=5"], r"data\.fold=5 must be from 0 to 4"),
        (["trainer.max_epochs=2"], r"the tree has 2 of 3 levels"),
    ],
)
def test_bad_input_is_one_sentence(demo, tmp_path, words, sentence):
    _, _, demo_words = demo
    with pytest.raises(InputError, match=sentence):
        train(tmp_path / "run", *demo_words, UNDRAWN, *words)


@pytest.mark.slow
def test_a_killed_run_goes_on_through_the_doors_and_bad_input_exits_with_2(tmp_path):
    words = [*DEMO, *CHEAP, f"model={NAME}_select", "model.ks=[3,23]", f"paths.data_dir={tmp_path}/data"]
    words = [word for word in words if word != "trainer.enable_progress_bar=false"]
    code, output = run_door("train.py", *words, f"hydra.run.dir={tmp_path}/unbroken")
    assert code == 0, output
    assert "bin 1 of 1, level 0 (node 0): 106 rows in 40 bins by" in output  # where no terminal shows a bar
    process = start_door("train.py", *words, f"hydra.run.dir={tmp_path}/killed")
    deadline = time.monotonic() + 200
    while not (tmp_path / "killed" / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "killed" / "result.json").exists()
    code, output = run_door("train.py", f"ckpt_path={tmp_path}/killed")
    assert code == 0, output
    numbers = [json.loads((tmp_path / name / "result.json").read_text())["metrics"] for name in ("unbroken", "killed")]
    assert numbers[0] == numbers[1] and same(state(tmp_path / "unbroken"), state(tmp_path / "killed"))
    code, output = run_door("train.py", *words, "data.split.kind=folds", "data.fold=7")
    assert code == INPUT_ERROR and "data.fold=7 must be from 0 to 4" in output and "Traceback" not in output


@pytest.mark.slow
def test_two_processes_have_the_tree_and_the_scores_of_one(demo, tmp_path):
    root, result, words = demo
    words = [word for word in words if word != "trainer=cpu"]
    code, output = run_door("train.py", *words, "trainer=ddp_cpu", f"hydra.run.dir={tmp_path}/run")
    assert code == 0, output
    both = json.loads((tmp_path / "run" / "result.json").read_text())
    assert both["processes"] == 2 and both["metrics"] == pytest.approx(result["metrics"], rel=1e-9)
    assert same(state(tmp_path / "run"), state(root / "run"))


@pytest.mark.slow
def test_the_acceptance_runs(sample_data, tmp_path):
    """Q3 and Q5 at full size."""
    words = [*QUIET, f"data.root={sample_data}/lc50_fathead_minnow", UNDRAWN]
    honest = train(tmp_path / "honest", *words, f"experiment={NAME}_lc50")["metrics"]
    assert 0.40 <= honest["test/r2"] <= 0.60 and honest["test/reference_r2"] >= 0.69
    leaky = train(tmp_path / "leaky", *words, f"experiment={NAME}_lc50_leaky")["metrics"]
    assert leaky["leaky/bin_accuracy"] >= 85 and leaky["leaky/r2"] >= 0.83
