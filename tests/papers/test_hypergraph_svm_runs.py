"""Runs whole: trained, judged again, predicting, broken, killed, on two processes; every bad input one sentence."""

import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.hypergraph_svm import HypergraphSVMModule
from lightning_modules.hypergraph_svm.figures import hypergraph_figure, surface_figure
from runs.command_line import INPUT_ERROR
from runs.composition import compose_config
from runs.errors import InputError
from tests.toy.running import judge_here, run_door, start_door
from tests.toy.whole_runs import broken_after, paper_number, rows, state_of, train

NAME = "hypergraph_svm"
QUIET = ["trainer=cpu", "trainer.enable_progress_bar=false"]
DEMO = [*QUIET, f"experiment={NAME}_demo", "data.reader.n=120", "model.solver.iterations_per_step=5"]


def write_table(path: Path, classes: int = 3, n: int = 60) -> Path:
    generator = np.random.default_rng(0)
    kind = np.arange(n) % classes
    x = generator.normal(size=(n, 4)) + 2 * np.eye(max(classes, 4))[kind][:, :4]
    lines = [
        ",".join([f"r{i}", *map(repr, row), f"kind{k}"])
        for i, (row, k) in enumerate(zip(x.tolist(), kind, strict=True))
    ]
    path.write_text("\n".join(["name,a,b,c,d,kind", *lines]) + "\n")
    return path


def on_table(path: Path, *words: str) -> list[str]:
    return [
        *QUIET, "callbacks.figures=null", f"experiment={NAME}_table", f"data.root={path}", "data.reader.label=kind",
        "data.identifier=name", "data.split.folds=3", *words,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    words = [*DEMO, f"paths.data_dir={root}/data"]
    return root, train(root / "run", *words), words


def test_a_run_leaves_its_data_figures_and_numbers_beside_their_floor(demo):
    root, result, _ = demo
    (moons,) = (root / "data" / "two_moons_table").iterdir()
    assert len((moons / "moons.csv").read_text().splitlines()) == 121
    names = {path.name for path in (root / "run" / "figures").iterdir()}
    assert names == {f"test_{name}.png" for name in ("confusion", "surface", "hypergraph", "solver")}
    assert result["metrics"]["test/accuracy"] > result["floors"]["accuracy"] == 50.0
    assert result["variant"] is None
    trace = rows(root / "run" / "metrics.csv")
    J = [float(row["train/objective"]) for row in trace if row.get("train/objective")]
    assert len(J) >= 3 and all(later <= earlier for earlier, later in pairwise(J))


def test_a_checkpoint_alone_gives_the_same_numbers(demo):
    root, result, _ = demo
    judged = judge_here(root / "run" / "checkpoints" / "last.ckpt", root / "eval", f"paths.data_dir={root}/data")
    assert judged["metrics"] == result["metrics"]


@pytest.mark.parametrize("at_step", [1, 3])
def test_a_run_broken_in_the_solve_ends_with_the_same_solution_to_the_last_digit(demo, tmp_path, at_step):
    root, result, words = demo
    with broken_after(at_step, HypergraphSVMModule):
        train(tmp_path / "run", *words)
    assert (
        not bool(state_of(tmp_path / "run")["solved"]) and int(state_of(tmp_path / "run")["iteration"]) == 5 * at_step
    )
    assert train(tmp_path / "run", *words)["metrics"] == result["metrics"]
    ours, theirs = state_of(tmp_path / "run"), state_of(root / "run")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_prediction_needs_the_checkpoint_and_a_table_with_the_columns(tmp_path):
    train(tmp_path / "run", *on_table(write_table(tmp_path / "mine.csv"), "data.unlabelled=0.3"))
    (tmp_path / "new.csv").write_text("d,name,b,a,c,extra\n0,first,0,4,0,x\n0,second,4,0,0,y\n")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    judge_here(
        checkpoint,
        tmp_path / "predicted",
        "mode=predict",
        f"data.predict_root={tmp_path}/new.csv",
        f"data.root={tmp_path}/gone",
    )
    found = rows(tmp_path / "predicted" / "predictions.csv")
    assert list(found[0]) == ["name", "class", "score:kind0", "score:kind1", "score:kind2"]
    assert [(row["name"], row["class"]) for row in found] == [("first", "kind0"), ("second", "kind1")]
    for row in found:
        scores = {name.removeprefix("score:"): float(value) for name, value in row.items() if name.startswith("score")}
        assert max(scores, key=scores.get) == row["class"]


def test_a_binary_prediction_has_the_score_of_the_second_class(tmp_path):
    train(tmp_path / "run", *on_table(write_table(tmp_path / "mine.csv", classes=2)))
    judge_here(
        tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "predicted", "mode=predict",
        f"data.predict_root={tmp_path}/mine.csv",
    )  # fmt: skip
    found = rows(tmp_path / "predicted" / "predictions.csv")
    assert list(found[0]) == ["name", "class", "score:kind1"] and len(found) == 60
    assert all((float(row["score:kind1"]) >= 0) == (row["class"] == "kind1") for row in found)


@pytest.mark.parametrize("model", ["", "_svc", "_label_spreading"])
def test_rows_without_a_class_are_unlabelled_ones(tmp_path, model):
    """They train the methods that learn from them, and no score; what is said of them is mostly their true class."""
    table = write_table(tmp_path / "whole.csv", n=90)
    head, *lines = table.read_text().splitlines()
    half = [line.rpartition(",")[0] + "," if i % 2 else line for i, line in enumerate(lines)]
    (tmp_path / "half.csv").write_text("\n".join([head, *half]) + "\n")
    result = train(tmp_path / "run", *on_table(tmp_path / "half.csv"), f"model={NAME}{model}")
    state = state_of(tmp_path / "run")
    assert result["floors"]["accuracy"] == pytest.approx(100 / 3)  # 5 of 15 judged rows
    assert result["metrics"]["test/accuracy"] > 60
    if model:
        assert len(state["fitted.features"]) == (30 if model == "_svc" else 75)
        return
    assert len(state["support"]) == 75 and int((state["y"] != 0).any(dim=1).sum()) == 30
    assert state["share"].tolist() == pytest.approx([1 / 3] * 3)
    (tmp_path / "gone.csv").write_text("\n".join([head, *half[1::2]]) + "\n")
    judge_here(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "new", "mode=predict",
               f"data.predict_root={tmp_path}/gone.csv")  # fmt: skip
    found = {row["name"]: row["class"] for row in rows(tmp_path / "new" / "predictions.csv")}
    assert np.mean([found[line.split(",")[0]] == line.rpartition(",")[2] for line in lines[1::2]]) > 0.6  # chance: 0.33


def test_figures_name_classes_columns_and_what_is_unlabelled():
    generator = np.random.default_rng(0)
    y = np.full((40, 3), -1.0)
    y[np.arange(40), np.arange(40) % 3] = 1
    members = np.tile(np.arange(6), (40, 1))
    for d, hidden in ((2, 0), (2, 7), (5, 7)):
        signs = y * (np.arange(40) >= hidden)[:, None]
        points = generator.normal(size=(40, d))
        columns, classes = [f"column {i}" for i in range(d)], ["ash", "elm", "oak"]
        shown = [hypergraph_figure(points, signs, members, columns, classes)]
        if d == 2:
            shown.append(surface_figure(points, signs, lambda rows: rows @ np.ones((2, 3)), columns, classes))
        for figure in shown:
            (legend,) = figure.legends
            listed = [text.get_text() for text in legend.get_texts()]
            assert listed == [*(["unlabelled"] if hidden else []), *classes]
            axes = (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel())
            assert axes == (("column 0", "column 1") if d == 2 else tuple(
                f"{which} principal component" for which in ("first", "second")
            ))  # fmt: skip
        edges = {patch.get_facecolor()[:3] for patch in shown[0].axes[0].patches}
        drawn = {tuple(dots.get_facecolor()[0][:3]) for dots in shown[0].axes[0].collections}
        assert all(r == g == b for r, g, b in edges) and not edges & drawn and len(drawn) == len(listed)
    label_sets = hypergraph_figure(points, signs, members, columns, [])
    assert [text.get_text() for text in label_sets.legends[0].get_texts()] == ["unlabelled", "labelled"]


def test_label_sets_of_a_table_of_ones_own(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 3))
    label = (x[:, :2] > 0).astype(int)
    lines = [",".join(map(str, [*row, *pair])) for row, pair in zip(x.tolist(), label.tolist(), strict=True)]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,c,warm,wet", *lines]) + "\n")
    words = [
        word
        for word in on_table(tmp_path / "mine.csv")
        if not word.startswith(("data.reader.label", "data.identifier"))
    ]
    result = train(tmp_path / "run", *words, "data.reader.labels=[warm,wet]", "data.split.stratified=false")
    assert set(result["floors"]) == {"hamming_loss", "f1", "auc_hard", "auc", "ranking_loss", "average_precision"}
    assert result["metrics"]["test/hamming_loss"] < result["floors"]["hamming_loss"] - 0.1
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    judge_here(checkpoint, tmp_path / "predicted", "mode=predict", f"data.predict_root={tmp_path}/mine.csv")
    found = rows(tmp_path / "predicted" / "predictions.csv")
    assert list(found[0]) == ["row", "labels", "score:warm", "score:wet"]
    for row in found:
        said = [name for name in ("warm", "wet") if float(row[f"score:{name}"]) >= 0]
        assert row["labels"] == "; ".join(said)


@pytest.mark.parametrize("words", [[], [f"variant={NAME}_newton"]])
def test_no_bound_on_the_epochs_ends_a_run_before_the_solver_does(words):
    """An epoch is a step of the solver: where it has one iteration, 2,000 iterations are 2,000 epochs."""
    config = compose_config([f"experiment={NAME}_demo", "model.solver.iterations_per_step=1", *words])
    grid, solver = config.model.selection.gamma, config.model.solver
    assert config.trainer.max_epochs > len(grid) + solver.iterations / solver.iterations_per_step


def test_a_run_that_is_ended_before_its_solution_says_so(tmp_path):
    words = [*DEMO, "callbacks.figures=null", f"paths.data_dir={tmp_path}/data", "trainer.max_epochs=1"]
    with pytest.raises(InputError, match=r"holds no solution yet: .* trainer\.max_epochs"):
        train(tmp_path / "run", *words)


@pytest.mark.parametrize("baseline", ["lapsvm", "hgsvm", "kernel_svm", "svc", "label_spreading"])
def test_baselines_name_their_rows_and_keep_what_makes_them(tmp_path, baseline):
    words = [*DEMO[:-1], "callbacks.figures=null", f"paths.data_dir={tmp_path}/data", f"model={NAME}_{baseline}"]
    result = train(tmp_path / "run", *words)
    assert result["variant"] == baseline and result["metrics"]["test/accuracy"] >= 50
    state = state_of(tmp_path / "run")
    if baseline in ("lapsvm", "hgsvm", "kernel_svm"):
        lam, delta_i = float(state["chosen"][3]), float(state["chosen"][2])
        assert {"lapsvm": lam == 1, "hgsvm": lam == 0, "kernel_svm": delta_i == 0}[baseline]
        assert float(state["chosen"][0]) == 4.0  # the experiment's gamma
    else:
        assert len(state["fitted.features"]) == (96 if baseline == "label_spreading" else 4)
        judged = judge_here(
            tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "eval", f"paths.data_dir={tmp_path}/data"
        )
        assert judged["metrics"] == result["metrics"]


def paper_accuracy(experiment: str, *words: str) -> float | None:
    return paper_number("test/accuracy", f"experiment={NAME}_{experiment}", *words)


def test_the_papers_number_is_that_of_the_method_and_the_share():
    assert paper_accuracy("heart") == 77.41 and paper_accuracy("heart", "data.unlabelled=0.5") == 81.48
    assert paper_accuracy("heart", "data.unlabelled=0.5", f"model={NAME}_hgsvm") == 80.37
    assert paper_accuracy("heart", "data.unlabelled=0.4") is None
    assert paper_accuracy("heart", f"model={NAME}_svc") is None
    assert paper_accuracy("wdbc") == 96.32 and paper_accuracy("wdbc", f"sweep={NAME}_few_labels") is None


@pytest.mark.parametrize(
    ("experiment", "share", "rival"), [("iono", 0.1, "lapsvm"), ("fashion", 0.1, "lapsvm"), ("fashion", 0.3, "hgsvm")]
)
def test_the_papers_own_tables_have_cells_where_ihlsvm_is_not_the_best(experiment, share, rival):
    hidden = f"data.unlabelled={share}"
    assert paper_accuracy(experiment, hidden) < paper_accuracy(experiment, hidden, f"model={NAME}_{rival}")


@pytest.mark.slow
def test_two_processes_have_the_solution_of_one(demo, tmp_path):
    root, result, words = demo
    words = [*(word for word in words if word != "trainer=cpu"), "trainer=ddp_cpu", f"hydra.run.dir={tmp_path}/run"]
    code, output = run_door("train.py", *words)
    assert code == 0, output
    both = json.loads((tmp_path / "run" / "result.json").read_text())
    assert both["processes"] == 2 and both["metrics"] == pytest.approx(result["metrics"])
    assert torch.equal(state_of(tmp_path / "run")["alpha"], state_of(root / "run")["alpha"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data.root=gone.csv"], r"data\.root=gone\.csv does not exist"),
        (["data.reader.label=sort"], "has no column 'sort'"),
        (["data.identifier=null"], r"rows of name \('r0'\): set data\.identifier=name \("),
        (["data.reader.separator=semicolon"], r"separated by commas .*: set data\.reader\.separator=comma"),
        (["data.reader.label=null", "data.reader.labels=[kind]"], "line 2: kind is 'kind0' instead of 0 or 1"),
        (["data.reader.label=null", "data.reader.left_out=[kind]"], "no column of classes is named"),
        (["data.unlabelled=1.0"], r"data\.unlabelled=1\.0 must be 0 or more and below 1"),
        (["model.lam=-0.5"], r"model\.lam=-0\.5 must be from 0 to 1"),
        (["model.gamma=-1"], r"model\.gamma=-1 must be above 0"),
        (["svm.delta_a=0"], r"model\.delta_a=0 must be above 0"),
        (["model.manifold.k_hyper=100"], r"model\.manifold\.k_hyper=100 must be from 1 to 39"),
        (["model.most_rows=30"], r"40 training rows: .* data\.max_train=30"),
        (["model.selection.rule=oracle"], "oracle_leaky"),
        (["data.fold=3"], r"data\.fold=3 must be from 0 to 2"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, words, sentence):
    table = write_table(tmp_path / "mine.csv")
    with pytest.raises(InputError, match=sentence):
        train(tmp_path / "run", *on_table(table), *words)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_bad_input_ends_with_its_sentence_and_exit_code_2(tmp_path):
    code, output = run_door(
        "train.py", f"experiment={NAME}_wdbc", *QUIET, f"data.root={tmp_path}", f"hydra.run.dir={tmp_path}/run"
    )
    assert code == INPUT_ERROR
    assert "holds no wdbc.arff" in output and "Traceback" not in output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are not solved to.*")
def test_a_run_killed_in_the_solve_and_resumed_ends_with_the_same_solution(tmp_path):
    """The run that is killed has no end of its own, so no machine is too fast or too slow for the signal."""
    words = [
        *QUIET, f"experiment={NAME}_demo", "data.reader.n=120", "model.solver.iterations_per_step=1",
        "model.solver.tol=1e-15", "callbacks.figures=null", f"paths.data_dir={tmp_path}/data",
    ]  # fmt: skip
    run_dir = tmp_path / "killed"
    process = start_door("train.py", *words, "model.solver.iterations=1000000", f"hydra.run.dir={run_dir}")
    while not (run_dir / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    reached = int(state_of(run_dir)["iteration"])
    assert reached > 0 and not (run_dir / "result.json").exists()
    bound = f"model.solver.iterations={reached + 5}"
    code, output = run_door("train.py", f"ckpt_path={run_dir}", bound, "trainer.enable_progress_bar=false")
    assert code == 0, output
    train(tmp_path / "whole", *words, bound)
    ours, theirs = state_of(run_dir), state_of(tmp_path / "whole")
    assert int(ours["iteration"]) == reached + 5
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
