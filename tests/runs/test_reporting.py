"""The table over many runs."""

import csv
import io
import json
import statistics

import pytest

from runs.errors import InputError
from runs.reporting import main


def write(folder, seed, top1, overrides=(), variant=None):
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("{}")
    result = {
        "name": "paper_data",
        "variant": variant,
        "metrics": {"test/top1": top1, "test/top5": 99.0},
        "floors": {"top1": 20.0},
        "paper": {"metrics": {"test/top1": 60.6}},
        "seed": seed,
        "overrides": [f"seed={seed}", "trainer=gpu", *overrides],
    }
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def folder(tmp_path):
    for seed, top1 in ((1, 50.0), (2, 55.0), (3, 57.0)):
        write(tmp_path / "a" / str(seed), seed, top1)
    write(tmp_path / "b", 1, 40.0, ["model.lr=1", "model.lr=2"])
    write(tmp_path / "c", 1, 30.0, variant="control")
    stage = tmp_path / "c" / "stage"
    stage.mkdir()
    (stage / "result.json").write_text("{}")  # a stage is no run of its own
    return tmp_path


def test_runs_that_differ_in_their_seed_alone_are_one_row(folder, capsys):
    main([str(folder), "--format", "csv", "--metric", "test/top1"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["variant"], row["runs"], row["floor"], row["paper"]) for row in rows] == [
        ("-", "3", "20.00", "60.60"),
        ("model.lr=2", "1", "20.00", "60.60"),
        ("control", "1", "20.00", "60.60"),
    ]
    values = [50.0, 55.0, 57.0]
    assert rows[0]["mean ± std"] == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.4f}"


def test_runs_on_different_data_are_rows_of_their_own(tmp_path, capsys):
    for root, top1 in (("one", 50.0), ("other", 70.0)):
        for seed in (1, 2):
            write(tmp_path / root / str(seed), seed, top1, [f"data.root={root}"])
    main([str(tmp_path), "--format", "csv", "--metric", "test/top1"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["variant"], row["runs"]) for row in rows] == [("data.root=one", "2"), ("data.root=other", "2")]


def test_callbacks_that_only_watch_are_no_choice_and_those_of_rounds_are(tmp_path, capsys):
    write(tmp_path / "a", 1, 50.0, ["callbacks.figures=null"])
    write(tmp_path / "b", 2, 60.0, ["callbacks.checkpoint.every_n_epochs=5"])
    write(tmp_path / "c", 1, 70.0, ["callbacks.figures=null", "callbacks.rounds.accept=always"])
    main([str(tmp_path), "--format", "csv", "--metric", "test/top1"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["variant"], row["runs"]) for row in rows] == [("-", "2"), ("callbacks.rounds.accept=always", "1")]


def wide(capsys, *arguments):
    main([*map(str, arguments), "--wide", "--format", "csv"])
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))


def test_a_wide_table_has_a_column_a_metric_and_rows_for_runs_paper_and_floor(folder, capsys):
    head, *rows = wide(capsys, folder)
    assert head == ["experiment", "variant", "runs", "test/top1", "test/top5"]
    deviation = statistics.stdev([50.0, 55.0, 57.0])
    assert rows[:2] == [
        ["paper_data", "-", "3", f"54.00 ± {deviation:.4f}", "99.00 ± 0.0000"],
        ["paper_data", "-", "paper", "60.60", "-"],
    ]
    assert [row[1:3] for row in rows] == [
        ["-", "3"], ["-", "paper"], ["model.lr=2", "1"], ["model.lr=2", "paper"], ["control", "1"],
        ["control", "paper"], ["-", "floor"],
    ]  # fmt: skip
    assert rows[-1] == ["paper_data", "-", "floor", "20.00", "-"]


def test_a_wide_table_has_the_metrics_asked_for_in_their_order(folder, capsys):
    head, first, *_ = wide(capsys, folder, "--metric", "test/top5", "--metric", "test/top1")
    assert head[3:] == ["test/top5", "test/top1"] and first[3] == "99.00 ± 0.0000"


def test_floors_that_differ_between_variants_have_rows_of_their_own(tmp_path, capsys):
    write(tmp_path / "a", 1, 50.0)
    write(tmp_path / "b", 1, 40.0, variant="control")
    path = tmp_path / "b" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "floors": {"top1": 30.0}}))
    rows = [row for row in wide(capsys, tmp_path) if row[2] == "floor"]
    assert [row[1:4] for row in rows] == [["-", "floor", "20.00"], ["control", "floor", "30.00"]]


def test_a_baseline_whose_model_file_names_its_row_has_that_name_alone(tmp_path, capsys):
    write(tmp_path / "a", 1, 50.0, ["model=paper_knn", "model.k=3"], variant="knn")
    assert wide(capsys, tmp_path)[1][1] == "knn model.k=3"


def test_unknown_metric_names_the_known_ones(folder):
    with pytest.raises(InputError, match=r"no run has the metric top1: known are test/top1, test/top5"):
        main([str(folder), "--metric", "top1"])


def test_a_folder_without_finished_runs_is_said(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        main([str(tmp_path)])


def test_a_stage_can_be_reported_instead_of_the_last_one(tmp_path, capsys):
    for seed, top1 in ((1, 20.0), (2, 30.0)):
        write(tmp_path / str(seed), seed, 99.0)
        path = tmp_path / str(seed) / "result.json"
        whole = json.loads(path.read_text())
        early = {**whole, "metrics": {"test/top1": top1}, "paper": {"metrics": {"test/top1": 7.0}}}
        path.write_text(json.dumps({**whole, "stages": {"early": early, "late": whole}}))
    write(tmp_path / "without", 3, 50.0)
    main([str(tmp_path), "--stage", "early", "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["runs"], row["mean ± std"].split()[0], row["paper"]) for row in rows] == [("2", "25.00", "7.0000")]
    with pytest.raises(InputError, match="no run has a stage 'erly': did you mean early"):
        main([str(tmp_path), "--stage", "erly"])


def write_categories(folder, paper):
    """Two seeds, two folds of each of two categories; category b of the third seed was not run."""
    for seed in (1, 2, 3):
        for category, level in (("a", 10.0), ("b", 40.0)):
            if (seed, category) == (3, "b"):
                continue
            for fold in (0, 1):
                place = folder / f"{seed}{category}{fold}"
                write(place, seed, level + 4 * seed + fold, [f"data.category={category}", f"data.fold={fold}"])
                path = place / "result.json"
                numbers = {"paper": {"metrics": {"test/top1": paper[category]}}, "floors": {"top1": level}}
                path.write_text(json.dumps({**json.loads(path.read_text()), **numbers}))


def test_the_mean_over_categories_is_one_number_a_seed(tmp_path, capsys):
    write_categories(tmp_path, {"a": 20.0, "b": 50.0})
    main([str(tmp_path), "--mean-over", "data.category", "--metric", "test/top1", "--format", "csv"])
    printed = capsys.readouterr()
    (row,) = csv.DictReader(io.StringIO(printed.out))
    seeds = [25.0 + 4 + 0.5, 25.0 + 8 + 0.5]
    assert row == {
        "experiment": "paper_data",
        "variant": "mean of 2 data.category",
        "metric": "test/top1",
        "runs": "2",
        "mean ± std": f"{statistics.mean(seeds):.2f} ± {statistics.stdev(seeds):.4f}",
        "floor": "25.00",
        "paper": "35.00",
    }
    assert "seed 3 is left out: no run with data.category=b data.fold=0, data.category=b data.fold=1" in printed.err


def test_a_mean_over_categories_has_no_papers_number_where_one_category_has_none(tmp_path, capsys):
    write_categories(tmp_path, {"a": 20.0, "b": None})
    main([str(tmp_path), "--mean-over", "data.category", "--metric", "test/top1", "--format", "csv"])
    assert next(csv.DictReader(io.StringIO(capsys.readouterr().out)))["paper"] == "-"


def test_a_mean_over_what_no_run_was_given_or_no_seed_has_whole_is_refused(tmp_path):
    write_categories(tmp_path, {"a": 20.0, "b": 50.0})
    with pytest.raises(InputError, match=r"no run was given data\.categry=<value>: did you mean data\.category"):
        main([str(tmp_path), "--mean-over", "data.categry"])
    for place in tmp_path.glob("[12]a0"):
        (place / "result.json").unlink()
    with pytest.raises(InputError, match=r"seed 1 is left out: no run with data\.category=a data\.fold=0"):
        main([str(tmp_path), "--mean-over", "data.category"])


def test_a_list_that_was_chosen_stands_in_the_printed_table(tmp_path, capsys):
    write(tmp_path / "a", 1, 50.0, ["data.reader.labels=[sport,politics]"])
    main([str(tmp_path), "--metric", "test/top1"])
    assert "data.reader.labels=[sport,politics]" in capsys.readouterr().out.replace("\n", "")
