"""Refinements run whole: trained, judged again, predicting, broken, killed, on two processes; the paper's row."""

import csv
import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import normalized_mutual_info_score

from lightning_modules.modularity_graph_refinement import ModularityRefinementModule
from runs.command_line import INPUT_ERROR
from runs.round_store import RoundStore
from tests.toy.running import judge_here, run_door, start_door, train_here

NAME = "modularity_graph_refinement"
QUIET = ["trainer=cpu", "trainer.enable_progress_bar=false"]
# ARPACK on the whole graph leaves many rounds to break, where the components one by one soon converge.
MANY_ROUNDS = ["model.cluster.least_component=null", "trainer.max_epochs=5"]
SMALL_DEMO = [*QUIET, f"experiment={NAME}_demo", "data.reader.n=400", *MANY_ROUNDS]
SECONDS = ("test/construction_seconds", "test/clustering_seconds")


def train(run_dir: Path, *words: str) -> dict:
    train_here(run_dir, *words)
    return json.loads((run_dir / "result.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def graphs(run_dir: Path) -> list[dict[str, np.ndarray]]:
    """What each round left, by its files."""
    store = RoundStore(run_dir / "rounds" / "graph_pruning")
    arrays = ("indptr", "indices", "weights")
    return [
        {name: generation.array(name) for name in arrays} | {"cluster": generation["cluster"].stacked}
        for generation in map(store.read, store.numbers())
    ]


def assert_same_rounds(one: Path, other: Path) -> None:
    ours, theirs = graphs(one), graphs(other)
    assert len(ours) == len(theirs) > 0
    for mine, their in zip(ours, theirs, strict=True):
        assert all(np.array_equal(mine[name], their[name]) for name in mine)


def scores(result: dict) -> dict:
    return {name: value for name, value in result["metrics"].items() if name not in SECONDS}


def write_table(path: Path, shuffled: bool) -> Path:
    """Five groups on a circle; the labels right, or dealt out anew."""
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 5
    angle = 2 * np.pi * labels / 5
    points = np.column_stack([np.cos(angle), np.sin(angle)]) + generator.normal(0, 0.32, (300, 2))
    labels = generator.permutation(labels) if shuffled else labels
    lines = [f"{x!r},{y!r},{label}" for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True)]
    path.write_text("\n".join(["x,y,kind", *lines]) + "\n")
    return path


def on_table(path: Path, label: str = "kind") -> list[str]:
    return [
        *QUIET,
        f"experiment={NAME}_points",
        f"data.root={path}",
        f"data.reader.label={label}",
        "data.num_classes=5",
    ]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("refinement")
    words = [*SMALL_DEMO, f"paths.data_dir={root}/data"]
    return root, train(root / "run", *words), words


def test_a_run_leaves_its_rounds_their_table_and_figures(demo):
    root, result, _ = demo
    run_dir = root / "run"
    assert (root / "data" / "point_chains" / "points.csv").is_file()
    table = rows(run_dir / "rounds.csv")
    assert list(table[0]) == ["round", "accuracy", "nmi", "modularity", "edges", "removed", "components", "seconds"]
    assert len(table) == len(graphs(run_dir)) == result["metrics"]["test/rounds"] >= 3
    assert all(value != "" for row in table for value in row.values())
    assert {path.name for path in (run_dir / "figures").iterdir()} == {"test_rounds.png", "test_graph.png"}
    for row, left in zip(table, graphs(run_dir), strict=True):
        assert int(row["edges"]) == len(left["indices"]) / 2
    best = max(table, key=lambda row: float(row["modularity"]))
    metrics = result["metrics"]
    assert metrics["test/best_round"] == int(best["round"])
    for name in ("accuracy", "nmi", "modularity"):
        assert metrics[f"test/{name}"] == pytest.approx(float(best[name]), rel=1e-5)
    assert metrics["test/baseline_accuracy"] == pytest.approx(float(table[0]["accuracy"]), rel=1e-5)
    removed = sum(int(row["removed"]) for row in table[: int(best["round"]) + 1])
    assert metrics["test/removed_edges"] == removed
    pairs = np.array([[float(row["accuracy"]), float(row["modularity"])] for row in table])
    assert metrics["test/correlation"] == pytest.approx(pearsonr(*pairs.T).statistic, abs=1e-6)


def test_metrics_are_those_of_scikit_learn_on_the_predicted_table_beside_their_floors(demo):
    root, result, _ = demo
    checkpoint = root / "run" / "checkpoints" / "last.ckpt"
    judge_here(checkpoint, root / "predicted", "mode=predict", f"data.root={root}/gone")  # no data needed
    predicted = rows(root / "predicted" / "predictions.csv")
    assert [int(row["point"]) for row in predicted] == list(range(400))
    true = [row["label"] for row in rows(root / "data" / "point_chains" / "points.csv")]
    for column, prefix in (("cluster", ""), ("reclustered", "reclustered_")):
        found = [row[column] for row in predicted]
        geometric = normalized_mutual_info_score(true, found, average_method="geometric")
        assert result["metrics"][f"test/{prefix}nmi"] == pytest.approx(geometric, abs=1e-5)
    assert result["floors"]["accuracy"] == pytest.approx(20.0)
    assert result["floors"]["nmi"] == result["floors"]["modularity"] == 0.0
    assert {f"{row}accuracy" for row in ("", "baseline_", "reclustered_")} <= set(result["floors"])


def test_a_checkpoint_alone_gives_the_same_numbers_and_loads_without_pickles(demo):
    root, result, _ = demo
    alone = root / "alone" / "last.ckpt"
    alone.parent.mkdir()
    shutil.copy(root / "run" / "checkpoints" / "last.ckpt", alone)
    assert "first_indptr" in torch.load(alone, weights_only=True)["state_dict"]
    assert judge_here(alone, root / "eval", f"paths.data_dir={root}/data")["metrics"] == result["metrics"]


def test_the_true_labels_change_no_graph_no_cluster_and_no_choice(tmp_path):
    """Choosing the round by accuracy would be label leakage."""
    results = {}
    for name in ("right", "shuffled"):
        table = write_table(tmp_path / f"{name}.csv", shuffled=name == "shuffled")
        results[name] = train(tmp_path / name, *on_table(table), *MANY_ROUNDS)["metrics"]
    assert_same_rounds(tmp_path / "right", tmp_path / "shuffled")
    for metric in ("best_round", "rounds", "removed_edges", "modularity"):
        assert results["right"][f"test/{metric}"] == results["shuffled"][f"test/{metric}"]
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for name in results
    ]
    assert torch.equal(states[0]["best_labels"], states[1]["best_labels"])
    assert results["right"]["test/accuracy"] > results["shuffled"]["test/accuracy"] + 30


def test_without_labels_there_are_rounds_and_clusters_but_no_accuracy(tmp_path):
    points = np.random.default_rng(0).normal(size=(200, 3))
    np.save(tmp_path / "mine.npy", points)
    words = [*QUIET, f"experiment={NAME}_points", f"data.root={tmp_path}/mine.npy", "data.num_classes=4"]
    metrics = train(tmp_path / "run", *words)["metrics"]
    assert not [name for name in metrics if "accuracy" in name or "nmi" in name]
    assert np.isfinite(metrics["test/modularity"]) and metrics["test/clusters"] == 4
    assert rows(tmp_path / "run" / "rounds.csv")[0]["accuracy"] == ""


def test_seconds_are_those_of_building_a_graph_without_the_clustering_that_a_round_may_be_alone(tmp_path):
    for variant in ("none", f"{NAME}_knn"):
        words = [*QUIET, f"experiment={NAME}_demo", "data.reader.n=300", f"paths.data_dir={tmp_path}/data"]
        metrics = train(tmp_path / variant, *words, f"variant={variant}")["metrics"]
        built = torch.load(tmp_path / variant / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        rounds = sum(float(row["seconds"]) for row in rows(tmp_path / variant / "rounds.csv"))
        expected = float(built["builder_seconds"]) + (rounds if variant == "none" else 0.0)
        assert rounds > 0 and metrics["test/construction_seconds"] == pytest.approx(expected, rel=1e-6)


def test_a_run_stays_on_the_cpu_whatever_the_trainer(tmp_path):
    words = [f"experiment={NAME}_demo", "data.reader.n=300", f"paths.data_dir={tmp_path}/data", QUIET[1]]
    assert train(tmp_path / "run", *words, "trainer=gpu", "trainer.max_epochs=1")["metrics"]["test/rounds"] == 1


class Broken(Exception):
    pass


@pytest.mark.parametrize("where", ["refine", "training_step"])
@pytest.mark.parametrize("at_round", [1, 3])
def test_a_run_broken_in_or_after_a_round_ends_with_the_same_graphs_to_the_bit(demo, tmp_path, where, at_round):
    root, result, words = demo
    whole = getattr(ModularityRefinementModule, where)

    def breaking(self, *arguments, **named):
        value = whole(self, *arguments, **named)
        if len(self.rounds) == at_round + (where == "training_step"):
            raise Broken
        return value

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr(ModularityRefinementModule, where, breaking)
        train(tmp_path / "run", *words)
    assert len(graphs(tmp_path / "run")) == at_round + (where == "training_step")
    assert scores(train(tmp_path / "run", *words)) == scores(result)
    assert_same_rounds(tmp_path / "run", root / "run")
    table = [{**row, "seconds": ""} for row in rows(tmp_path / "run" / "rounds.csv")]
    assert table == [{**row, "seconds": ""} for row in rows(root / "run" / "rounds.csv")]


def test_a_run_that_goes_on_with_other_settings_is_refused(demo, tmp_path):
    _, _, words = demo
    step = ModularityRefinementModule.training_step

    def breaking(self, batch, batch_idx):
        if len(self.rounds) == 3:
            raise Broken
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr(ModularityRefinementModule, "training_step", breaking)
        train(tmp_path / "run", *words)
    from runs.errors import InputError

    (tmp_path / "run" / "run.yaml").unlink()  # the folder as it is, the settings anew
    with pytest.raises(InputError, match=r"graph_pruning: graph\.k changed since round 2 was made"):
        train(tmp_path / "run", *words, "model.graph.k=7")


def test_two_processes_have_the_graphs_of_one(demo, tmp_path):
    root, result, words = demo
    words = [*(word for word in words if word != "trainer=cpu"), "trainer=ddp_cpu", f"hydra.run.dir={tmp_path}/run"]
    code, output = run_door("train.py", *words)
    assert code == 0, output
    both = json.loads((tmp_path / "run" / "result.json").read_text())
    assert both["processes"] == 2
    assert_same_rounds(tmp_path / "run", root / "run")
    assert scores(both) == pytest.approx(scores(result), rel=1e-6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.graph.k=400"], "model.graph.k=400 must be from 1 to 399"),
        (["data.root=gone", "data=pendigits"], "data.root=gone is no folder"),
    ],
)
def test_bad_input_is_one_sentence_in_process(tmp_path, words, sentence):
    from runs.errors import InputError

    base = [word for word in SMALL_DEMO if word != "data.reader.n=400" or "data=pendigits" not in words]
    with pytest.raises(InputError, match=sentence.replace(".", r"\.")):
        train(tmp_path / "run", *base, *words, f"paths.data_dir={tmp_path}/data")
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_bad_input_ends_with_its_sentence_and_exit_code_2(tmp_path):
    code, output = run_door(
        "train.py", f"experiment={NAME}_pendigits", *QUIET, f"data.root={tmp_path}", f"hydra.run.dir={tmp_path}/run"
    )
    assert code == INPUT_ERROR
    assert "pendigits.tra is missing" in output and "Traceback" not in output


@pytest.mark.slow
def test_a_run_killed_at_any_time_and_resumed_ends_with_the_same_graphs(tmp_path):
    words = [word for word in SMALL_DEMO if not word.startswith("data.reader.n=")]
    words += ["data.reader.n=20000", f"paths.data_dir={tmp_path}/data"]
    code, output = run_door("train.py", *words, f"hydra.run.dir={tmp_path}/whole")
    assert code == 0, output
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    clock = random.Random(0)
    broken = 0
    for attempt, after in enumerate(["run.yaml", *4 * ["rounds/graph_pruning/000002/manifest.json"]]):
        run_dir = tmp_path / str(attempt)
        process = start_door("train.py", *words, f"hydra.run.dir={run_dir}")
        while not (run_dir / after).exists():
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(clock.uniform(0, 1.5))  # within a round, or in the epoch between two
        process.kill()
        process.communicate()
        broken += (run_dir / "checkpoints" / "last.ckpt").exists() and not (run_dir / "result.json").exists()
        code, output = run_door("train.py", f"ckpt_path={run_dir}", "trainer.enable_progress_bar=false")
        assert code == 0, output
        assert scores(json.loads((run_dir / "result.json").read_text())) == scores(whole)
        assert_same_rounds(run_dir, tmp_path / "whole")
    assert broken >= 3  # or the times chosen prove nothing


# --- the paper's row, on the real digits


def test_the_papers_row_pendigits(sample_data, tmp_path):
    """Section 10, checks 1 and 5; the baseline and the method as the specification measured them."""
    words = [*QUIET, f"experiment={NAME}_pendigits", f"data.root={sample_data}/pendigits", "seed=0"]
    result = train(tmp_path / "run", *words)
    metrics = result["metrics"]
    assert metrics["test/baseline_accuracy"] == pytest.approx(79.8, abs=1.0)
    assert metrics["test/accuracy"] >= 85.0 and metrics["test/nmi"] >= 0.82
    assert metrics["test/best_round"] > 0 and 40 <= metrics["test/removed_edges"] <= 200
    assert metrics["test/correlation"] >= 0.8
    assert result["paper"]["metrics"]["test/accuracy"] == 86.42
    assert result["paper"]["metrics"]["test/baseline_accuracy"] == 74.36
    alone = train(tmp_path / "knn", *words, f"variant={NAME}_knn")
    assert alone["metrics"]["test/accuracy"] == metrics["test/baseline_accuracy"]
    assert alone["paper"]["metrics"]["test/accuracy"] == 74.36


def test_accuracy_and_modularity_rise_together_over_ten_rounds_of_pendigits(sample_data, tmp_path):
    """Section 10, check 5, asks for 7 rounds or more."""
    words = [*QUIET, f"experiment={NAME}_pendigits", f"data.root={sample_data}/pendigits", "seed=0"]
    metrics = train(tmp_path / "run", *words, "model.cluster.least_component=0.7")["metrics"]
    assert metrics["test/rounds"] >= 7 and metrics["test/correlation"] >= 0.8


def test_in_feature_space_pendigits_loses_next_to_no_edge(sample_data, tmp_path):
    """Section 10, check 4: two equal tables would be the symptom."""
    words = [*QUIET, f"experiment={NAME}_pendigits", f"data.root={sample_data}/pendigits", "seed=0"]
    metrics = train(tmp_path / "run", *words, f"variant={NAME}_feature_space")["metrics"]
    assert metrics["test/removed_edges"] <= 5
    assert metrics["test/accuracy"] == pytest.approx(metrics["test/baseline_accuracy"], abs=0.5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_gain_by_the_random_walk_embedding_without_any_file(tmp_path, seed):
    """Section 10, check 6."""
    metrics = train(tmp_path / "run", *QUIET, f"experiment={NAME}_digits", f"seed={seed}")["metrics"]
    assert metrics["test/gain"] >= 5
