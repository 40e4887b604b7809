"""Runs whole: trained, judged again, predicting, broken, killed, on two processes; every bad input one sentence."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.symmetry_outlier import AutoEncoderOutlierModule, SymmetryOutlierModule
from lightning_modules.symmetry_outlier.figures import plane_figure
from runs.command_line import INPUT_ERROR
from runs.errors import InputError
from tests.toy.running import judge_here, run_door, start_door
from tests.toy.whole_runs import broken_after, paper_number, rows, state_of, train

NAME = "symmetry_outlier"
QUIET = ["trainer=cpu", "trainer.enable_progress_bar=false"]
DEMO = [*QUIET, f"experiment={NAME}_demo"]


def write_table(path: Path, cells: dict[int, str] | None = None) -> Path:
    """60 named rows of three columns in two clusters, the last one far from both; some cells of column b replaced."""
    x = np.random.default_rng(0).normal(size=(60, 3)) + np.repeat([[0, 0, 0], [9, 9, 9]], 30, axis=0)
    x[-1] = 40
    lines = []
    for i, (a, b, c) in enumerate(x.tolist()):
        lines.append(f"r{i},{a!r},{(cells or {}).get(i, repr(b))},{c!r},{'low' if i < 30 else 'high'}")
    path.write_text("\n".join(["name,a,b,c,kind", *lines]) + "\n")
    return path


def on_table(path: Path, *words: str) -> list[str]:
    return [
        *QUIET, "callbacks.figures=null", f"experiment={NAME}_table", f"data.root={path}", "data.reader.label=kind",
        "data.identifier=name", "model.clustering.clusters=classes", *words,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    words = [*DEMO, f"paths.data_dir={root}/data"]
    return root, train(root / "run", *words), words


def test_a_run_leaves_its_data_figures_table_and_numbers_beside_their_floors(demo):
    root, result, _ = demo
    (points,) = (root / "data" / "bridge").iterdir()
    assert len((points / "points.csv").read_text().splitlines()) == 1371
    names = {path.name for path in (root / "run" / "figures").iterdir()}
    assert names == {f"test_{name}.png" for name in ("outliers", "degrees", "ratios")}
    metrics, floors = result["metrics"], result["floors"]
    flags = ("auc", "average_precision", "precision", "recall", "f1")
    judged = {"f1", "precision", "recall", *(f"outlier_{name}" for name in flags)}
    assert set(floors) == judged
    assert all(metrics[f"test/{name}"] > floors[name] for name in judged)
    table = rows(root / "run" / "outliers.csv")
    assert list(table[0]) == ["row", "outlier", "outlier_degree", "symmetry_ratio", "distance_ratio", "cluster"]
    flagged = [row["outlier"] == "yes" for row in table]
    assert np.mean(flagged) == pytest.approx(metrics["test/flagged_share"])
    degree = np.array([float(row["outlier_degree"]) for row in table])
    assert (degree.min(), degree.max()) == (0, 1) and degree[flagged].min() > degree[~np.array(flagged)].max()
    assert {row["cluster"] for row in table} == {"0", "1", "2", "3"}  # noise is no class to be found


def test_a_checkpoint_alone_gives_the_same_flags_and_numbers(demo):
    root, result, _ = demo
    judged = judge_here(root / "run" / "checkpoints" / "last.ckpt", root / "eval", f"paths.data_dir={root}/data")
    assert judged["metrics"] == result["metrics"]
    assert (root / "eval" / "outliers.csv").read_bytes() == (root / "run" / "outliers.csv").read_bytes()


@pytest.mark.parametrize("at_step", [1, 2, 3, 4, 6])
def test_a_run_broken_after_any_stage_ends_with_the_same_flags(tmp_path, at_step):
    words = [*on_table(write_table(tmp_path / "mine.csv")), "model.rounds=2", "model.k=5"]
    train(tmp_path / "whole", *words)
    with broken_after(at_step, SymmetryOutlierModule):
        train(tmp_path / "run", *words)
    assert int(state_of(tmp_path / "run")["stage"]) == at_step % 4
    train(tmp_path / "run", *words)
    ours, theirs = state_of(tmp_path / "run"), state_of(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_predicting_the_training_rows_without_themselves_gives_their_degrees(tmp_path):
    """And with themselves other ones: each would be its own nearest neighbour."""
    table = write_table(tmp_path / "mine.csv")
    train(tmp_path / "run", *on_table(table))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    words = ["mode=predict", f"data.predict_root={table}", f"data.root={tmp_path}/gone"]
    trained = rows(tmp_path / "run" / "outliers.csv")
    for exclude in ("true", "false"):
        judge_here(checkpoint, tmp_path / exclude, *words, f"model.exclude_self={exclude}")
    found = rows(tmp_path / "true" / "predictions.csv")
    assert list(found[0]) == ["name", "outlier", "outlier_degree", "symmetry_ratio", "distance_ratio", "cluster"]
    for ours, theirs in zip(found, trained, strict=True):
        assert ours["outlier"] == theirs["outlier"]
        assert float(ours["outlier_degree"]) == pytest.approx(float(theirs["outlier_degree"]), abs=1e-12)
    other = [float(row["outlier_degree"]) for row in rows(tmp_path / "false" / "predictions.csv")]
    assert not np.allclose(other, [float(row["outlier_degree"]) for row in trained], atol=1e-3)


@pytest.mark.parametrize("invalid", ["drop", "impute"])
@pytest.mark.filterwarnings("ignore:.*2 of 60 rows have an unknown value")
def test_the_training_file_is_known_by_its_numbers_where_rows_of_it_were_left_out(tmp_path, invalid):
    """The rows after one that was left out stand elsewhere in the file than in training, and so do shuffled ones."""
    table = write_table(tmp_path / "mine.csv", {4: "", 17: "?"})
    train(tmp_path / "run", *on_table(table), f"data.invalid={invalid}")
    trained = rows(tmp_path / "run" / "outliers.csv")
    head, *lines = table.read_text().splitlines()
    if invalid == "drop":
        del lines[17], lines[4]
    order = np.random.default_rng(0).permutation(len(lines))
    (tmp_path / "shuffled.csv").write_text("\n".join([head, *(lines[place] for place in order)]) + "\n")
    files = {"file": table, "shuffled": tmp_path / "shuffled.csv"}
    for name, path in files.items():
        judge_here(
            tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / name, "mode=predict",
            f"data.predict_root={path}", "data.invalid=impute", "model.exclude_self=true",
        )  # fmt: skip
    found = {name: rows(tmp_path / name / "predictions.csv") for name in files}
    in_file = [row for row in found["file"] if invalid == "impute" or row["name"] not in ("r4", "r17")]
    for predicted, known in ((in_file, trained), (found["shuffled"], [trained[place] for place in order])):
        for ours, theirs in zip(predicted, known, strict=True):
            assert (ours["outlier"], ours["cluster"]) == (theirs["outlier"], theirs["cluster"])
            assert float(ours["outlier_degree"]) == pytest.approx(float(theirs["outlier_degree"]), abs=1e-12)


def test_equal_rows_are_known_by_their_numbers_too(tmp_path):
    """Which of them is left out of the neighbours makes no difference; more of them than neighbours are no outliers."""
    table = write_table(tmp_path / "mine.csv")
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, *[lines[3]] * 2, *[lines[8]] * 12]) + "\n")
    train(tmp_path / "run", *on_table(table), "model.clustering.method=single")
    judge_here(
        tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "new", "mode=predict", f"data.predict_root={table}",
        "model.exclude_self=true",
    )  # fmt: skip
    found, trained = rows(tmp_path / "new" / "predictions.csv"), rows(tmp_path / "run" / "outliers.csv")
    degrees = [[float(row["outlier_degree"]) for row in each] for each in (found, trained)]
    assert len(found) == 74 and degrees[0] == pytest.approx(degrees[1], abs=1e-12)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_row_between_two_clusters_goes_to_that_of_the_lower_row(tmp_path, mirrored):
    """Where training hands an outlier out, and where a new row gets its cluster."""
    near = (8 * np.random.default_rng(0).normal(size=(12, 2))).round() / 8  # exact, and so is its mirror image
    halves = [near, [100.0, 0.0] + near * [-1, 1]]
    x = np.concatenate([*(halves[::-1] if mirrored else halves), [[50.0, 0.0]]])
    lines = [f"r{i},{a!r},{b!r},{'low' if a < 60 else 'high'}" for i, (a, b) in enumerate(x.tolist())]
    table = tmp_path / "mine.csv"
    table.write_text("\n".join(["name,a,b,kind", *lines]) + "\n")
    # It lies in the middle of all points, so the symmetry ratio alone would keep it.
    words = ["model.score=distance", "model.k=3", "data.scale=none", "model.clustering.method=single"]
    train(tmp_path / "run", *on_table(table), *words)
    found = rows(tmp_path / "run" / "outliers.csv")
    assert found[24]["outlier"] == "yes" and found[24]["cluster"] == found[0]["cluster"] != found[12]["cluster"]
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    judge_here(checkpoint, tmp_path / "new", "mode=predict", f"data.predict_root={table}")
    assert rows(tmp_path / "new" / "predictions.csv")[24]["cluster"] == found[0]["cluster"]


def test_rows_have_their_names_in_training_and_prediction_and_else_their_numbers(tmp_path):
    table = write_table(tmp_path / "mine.csv", {4: ""})
    with pytest.warns(UserWarning, match="1 of 60 rows"):
        named = train(tmp_path / "named", *on_table(table), "data.invalid=drop")
    found = rows(tmp_path / "named" / "outliers.csv")
    assert [row["name"] for row in found] == [f"r{i}" for i in range(60) if i != 4] and next(iter(found[0])) == "name"
    bound = float(state_of(tmp_path / "named")["bound"])
    assert named["metrics"]["test/bound"] == pytest.approx(bound)
    assert [row["outlier"] == "yes" for row in found] == [float(row["outlier_degree"]) > bound for row in found]
    # Judged on other rows the table is still that of the training rows.
    other = write_table(tmp_path / "other.csv", {7: "0.25"})
    judge_here(tmp_path / "named" / "checkpoints" / "last.ckpt", tmp_path / "judged", f"data.root={other}")
    assert (tmp_path / "judged" / "outliers.csv").read_bytes() == (tmp_path / "named" / "outliers.csv").read_bytes()
    whole = write_table(tmp_path / "whole.csv")
    train(tmp_path / "plain", *on_table(whole), "data.identifier=null", "data.reader.left_out=[name]")
    judge_here(
        tmp_path / "plain" / "checkpoints" / "last.ckpt", tmp_path / "new", "mode=predict", f"data.predict_root={whole}"
    )
    for path in (tmp_path / "plain" / "outliers.csv", tmp_path / "new" / "predictions.csv"):
        assert [row["row"] for row in rows(path)] == [str(place) for place in range(60)]


def test_the_axes_of_a_plane_are_its_columns():
    points = np.random.default_rng(0).normal(size=(9, 3))
    kept = np.arange(9) > 0
    for d, wanted in ((2, ("width", "height")), (3, ("principal axes, ", ""))):
        figure = plane_figure(points[:, :d], points[:, 0], kept, kept.astype(int), ["width", "height", "age"][:d])
        for ax in figure.axes[:2]:
            assert ax.get_xlabel().startswith(wanted[0]) and ax.get_ylabel() == wanted[1]


def test_new_rows_are_judged_by_the_training_rows_alone(tmp_path):
    """A crowd of new rows far off makes none of them less of an outlier, and degrees may leave 0..1."""
    train(tmp_path / "run", *on_table(write_table(tmp_path / "mine.csv")))
    crowd = "".join(f"c{i},-500,-500,-500\n" for i in range(20))
    (tmp_path / "new.csv").write_text(f"name,c,b,a\ninside,0.1,0.1,0.1\n{crowd}")
    judge_here(
        tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "new", "mode=predict",
        f"data.predict_root={tmp_path}/new.csv",
    )  # fmt: skip
    found = rows(tmp_path / "new" / "predictions.csv")
    assert [row["outlier"] for row in found] == ["no"] + ["yes"] * 20
    assert len({row["outlier_degree"] for row in found[1:]}) == 1
    assert all(float(row["symmetry_ratio"]) <= 1 + 1e-12 for row in found)


@pytest.mark.parametrize("baseline", ["not_denoised", "lof", "iforest", "autoencoder"])
def test_baselines_name_their_rows_and_travel_in_checkpoints(tmp_path, baseline):
    table = write_table(tmp_path / "mine.csv")
    words = [*on_table(table), f"model={NAME}_{baseline}"]
    result = train(tmp_path / "run", *words)
    assert result["variant"] == baseline and "f1" in result["floors"]
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert judge_here(checkpoint, tmp_path / "eval")["metrics"] == result["metrics"]
    judge_here(checkpoint, tmp_path / "new", "mode=predict", f"data.predict_root={table}")
    flags = [row["outlier"] for row in rows(tmp_path / "new" / "predictions.csv")]
    assert flags[-1] == ("no" if baseline == "not_denoised" else "yes")
    if baseline == "not_denoised":
        assert "yes" not in flags and result["metrics"]["test/flagged_share"] == 0


def test_own_cuts_of_the_library_are_those_of_its_predictions(tmp_path):
    from sklearn.neighbors import LocalOutlierFactor

    table = write_table(tmp_path / "mine.csv")
    train(tmp_path / "run", *on_table(table), f"model={NAME}_lof")
    x = state_of(tmp_path / "run")["points"].numpy()
    theirs = LocalOutlierFactor(n_neighbors=20).fit_predict(x) == -1
    assert [row["outlier"] == "yes" for row in rows(tmp_path / "run" / "outliers.csv")] == theirs.tolist()
    train(tmp_path / "iqr", *on_table(table), f"model={NAME}_lof", "model.threshold=iqr")
    state = state_of(tmp_path / "iqr")
    ordered = np.sort(state["degree"].numpy())
    assert float(state["bound"]) == pytest.approx(ordered[44] + 0.5 * (ordered[44] - ordered[14]))


def test_the_autoencoder_goes_on_where_it_was_broken(tmp_path):
    words = [*on_table(write_table(tmp_path / "mine.csv")), f"model={NAME}_autoencoder", "model.epochs=30",
             "model.epochs_per_step=10"]  # fmt: skip
    train(tmp_path / "whole", *words)
    with broken_after(2, AutoEncoderOutlierModule):
        train(tmp_path / "run", *words)
    train(tmp_path / "run", *words)
    ours, theirs = state_of(tmp_path / "run"), state_of(tmp_path / "whole")
    assert int(ours["epoch"]) == 30 and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [float(row["train/loss"]) for row in rows(tmp_path / "whole" / "metrics.csv") if row.get("train/loss")]
    assert losses[-1] < losses[0]


def test_a_second_round_looks_among_the_rows_that_the_first_has_kept(tmp_path):
    table = write_table(tmp_path / "mine.csv")
    one = train(tmp_path / "one", *on_table(table))
    two = train(tmp_path / "two", *on_table(table), f"variant={NAME}_two_rounds")
    first, second = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert two["metrics"]["test/flagged_share"] >= one["metrics"]["test/flagged_share"]
    assert torch.equal(second["flagged_in"] == 1, ~first["kept"])
    assert torch.equal(second["rows"], torch.nonzero(first["kept"])[:, 0])


def test_the_papers_number_is_that_of_the_detector_and_of_dpc():
    for words, f1 in (
        (["experiment=symmetry_outlier_wdbc"], 0.45),
        (["experiment=symmetry_outlier_wdbc", f"model={NAME}_not_denoised"], 0.37),
        (["experiment=symmetry_outlier_wine", f"model={NAME}_lof"], 0.82),
        (["experiment=symmetry_outlier_wine", "model.clustering.method=average"], None),
    ):
        assert paper_number("test/f1", *words) == f1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data.root=gone.csv"], r"data\.root=gone\.csv does not exist"),
        (["data.reader.label=sort"], "has no column 'sort'"),
        (["data.reader.label=null", "data.reader.left_out=[kind,name]"], r"clusters=classes needs rows with one class"),
        (["model.k=60"], r"60 rows cannot have 60 neighbours each: give 61 or more, or lower model\.k"),
        (["model.k=0"], r"model\.k=0 must be 1 or more"),
        (["model.r=-1"], r"model\.r=-1(\.0)? must be 0 or more"),
        (["model.clustering.clusters=60"], r"points that are no outliers cannot make 60 clusters: lower"),
        (["model.clustering.clusters=-2"], r"model\.clustering\.clusters=-2 must be 1 or more"),
        (["model.clustering.pct=0"], r"model\.clustering\.pct=0(\.0)? must be above 0"),
        (["model.outlier_classes=[hgih]"], r"there is no class 'hgih': did you mean high"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, words, sentence):
    table = write_table(tmp_path / "mine.csv")
    with pytest.raises(InputError, match=sentence):
        train(tmp_path / "run", *on_table(table), *words)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("cell", ["", "inf", "many"])
def test_a_cell_that_is_no_number_is_named_or_its_row_left_out_with_a_warning(tmp_path, cell):
    table = write_table(tmp_path / "mine.csv", {4: cell})
    with pytest.raises(InputError, match=r"mine\.csv: 1 of 60 rows .*row 5, counted from 1; most in b"):
        train(tmp_path / "refused", *on_table(table))
    with pytest.warns(UserWarning, match="1 of 60 rows .* are left out"):
        train(tmp_path / "run", *on_table(table), "data.invalid=drop")
    assert len(rows(tmp_path / "run" / "outliers.csv")) == 59


@pytest.mark.parametrize("invalid", ["drop", "impute"])
def test_a_column_without_a_number_is_one_sentence(tmp_path, invalid):
    table = write_table(tmp_path / "mine.csv", dict.fromkeys(range(60), "?"))
    with pytest.raises(InputError, match=r"no number in any of the 60 rows of b \(no value\): set .*left_out=\[b\]"):
        train(tmp_path / "run", *on_table(table), f"data.invalid={invalid}")


@pytest.mark.slow
def test_two_processes_have_the_flags_of_one(demo, tmp_path):
    root, result, words = demo
    words = [*(word for word in words if word != "trainer=cpu"), "trainer=ddp_cpu", f"hydra.run.dir={tmp_path}/run"]
    code, output = run_door("train.py", *words)
    assert code == 0, output
    both = json.loads((tmp_path / "run" / "result.json").read_text())
    assert both["processes"] == 2 and both["metrics"] == pytest.approx(result["metrics"])
    assert torch.equal(state_of(tmp_path / "run")["degree"], state_of(root / "run")["degree"])


@pytest.mark.slow
def test_a_run_killed_between_stages_and_resumed_ends_with_the_same_answer(tmp_path):
    words = [*QUIET, f"experiment={NAME}_demo", f"model={NAME}_autoencoder", "model.epochs_per_step=2",
             "callbacks.figures=null", f"paths.data_dir={tmp_path}/data"]  # fmt: skip
    code, output = run_door("train.py", *words, f"hydra.run.dir={tmp_path}/whole")
    assert code == 0, output
    run_dir = tmp_path / "killed"
    process = start_door("train.py", *words, f"hydra.run.dir={run_dir}")
    while not (run_dir / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (run_dir / "result.json").exists()
    code, output = run_door("train.py", f"ckpt_path={run_dir}", "trainer.enable_progress_bar=false")
    assert code == 0, output
    ours, theirs = state_of(run_dir), state_of(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_bad_input_ends_with_its_sentence_and_exit_code_2(tmp_path):
    code, output = run_door(
        "train.py", f"experiment={NAME}_wdbc", *QUIET, f"data.root={tmp_path}", f"hydra.run.dir={tmp_path}/run"
    )
    assert code == INPUT_ERROR
    assert "holds no wdbc.arff" in output and "Traceback" not in output
