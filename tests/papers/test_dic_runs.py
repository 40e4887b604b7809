"""DIC through the doors: a killed run loses one label map, processes share the work, checkpoints judge and predict."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from lightning_modules.dic import DICModule
from runs.interruption import Interrupted
from tests.toy.running import QUIET, judge_here, run_door, start_door, train_here

SETTINGS = ["C6_M4", "C9_M4"]


class Killed(BaseException):
    """What no handler answers, as SIGKILL."""


def words(folder: Path, *more: str) -> list[str]:
    small = ["data.reader.images=3", "data.reader.height=24", "data.reader.width=32", "data.reader.periods=[4.0]"]
    model = ["model.width=0.1", "model.T=4", "model.min_labels=2", "model.settings=[[6,4],[9,4]]"]
    return ["experiment=dic_demo", "trainer=cpu", QUIET, f"paths.data_dir={folder / 'data'}", *small, *model, *more]


def numbers(run: Path) -> dict[str, float]:
    """All metrics but times."""
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    return {name: value for name, value in metrics.items() if not name.endswith("seconds")}


def label_maps(run: Path) -> dict[str, bytes]:
    folder = run / "results"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Names of the label maps that are made, and a place to set `limit`."""

    class Made(list):
        limit: int | None = None

    made, segment = Made(), DICModule.segment

    def count(self, sample, setting):
        if made.limit is not None and len(made) >= made.limit:
            raise Killed
        made.append(f"{sample['name']} {self.setting_name(setting)}")
        return segment(self, sample, setting)

    monkeypatch.setattr(DICModule, "segment", count)
    return made


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    train_here(folder / "run", *words(folder))
    return folder


def test_a_run_leaves_results_scores_figures_and_a_table(unbroken):
    run = unbroken / "run"
    assert list(label_maps(run)) == [f"{image}/{setting}.png" for image in (1, 2, 3) for setting in SETTINGS]
    about = json.loads((run / "results" / "2" / "C9_M4.json").read_text())
    assert len(about["curves"]["loss"]) == len(about["curves"]["labels"]) <= 4
    labels = np.array(Image.open(run / "results" / "2" / "C9_M4.png"))
    assert labels.shape == (24, 32) and len(np.unique(labels)) == about["labels"] <= 9
    rows = list(csv.DictReader((run / "scores.csv").open()))
    assert [(row["image"], row["setting"]) for row in rows] == [(i, s) for i in "123" for s in SETTINGS]
    metrics = numbers(run)
    assert metrics["test/C9_M4_voi"] == pytest.approx(
        np.mean([float(r["voi"]) for r in rows if r["setting"] == "C9_M4"])
    )
    best = [max(float(r["pri"]) for r in rows if r["image"] == i) for i in "123"]
    assert metrics["test/pri"] == pytest.approx(np.mean(best))
    assert {path.name for path in (run / "figures").iterdir()} == {"test_segmentations.png", "test_inner_steps.png"}
    logged = list(csv.DictReader((run / "metrics.csv").open()))
    assert sum(bool(row.get("train/pri")) for row in logged) == 6
    assert "paper" in json.loads((run / "result.json").read_text())


@pytest.mark.parametrize("limit", [1, 4])
def test_a_run_that_died_between_two_label_maps_goes_on_and_ends_as_the_unbroken_one(
    unbroken, tmp_path, counted, limit
):
    """Nothing wrote a checkpoint: the results alone carry it over."""
    run = tmp_path / "run"
    counted.limit = limit
    with pytest.raises(Killed):
        train_here(run, *words(unbroken))
    assert len(label_maps(run)) == limit and not (run / "result.json").exists()
    counted.limit, before = None, len(counted)
    train_here(run, *words(unbroken))
    assert len(counted) - before == 6 - limit
    assert len(set(counted)) == 6, "none twice"
    assert label_maps(run) == label_maps(unbroken / "run") and numbers(run) == numbers(unbroken / "run")


def test_a_run_stopped_by_sigterm_goes_on_inside_the_epoch(unbroken, tmp_path, counted, monkeypatch):
    """Its checkpoint says how many batches are done; only the others are visited again."""
    run, segment = tmp_path / "run", DICModule.segment

    def told(self, sample, setting):
        made = segment(self, sample, setting)
        if len(counted) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return made

    monkeypatch.setattr(DICModule, "segment", told)
    with pytest.raises(Interrupted):
        train_here(run, *words(unbroken))
    assert len(label_maps(run)) == 3 and (run / "checkpoints" / "last.ckpt").is_file()
    monkeypatch.setattr(DICModule, "segment", segment)
    train_here(run, *words(unbroken))
    assert len(counted) == 6 and len(set(counted)) == 6
    logged = [int(row["step"]) for row in csv.DictReader((run / "metrics.csv").open()) if row["train/pri"]]
    assert logged[-3:] == [3, 4, 5] and len(set(logged)) == len(logged), "no batch was visited twice"
    assert label_maps(run) == label_maps(unbroken / "run") and numbers(run) == numbers(unbroken / "run")


def test_a_run_whose_pixels_changed_makes_those_again_and_keeps_the_others(unbroken, tmp_path, counted):
    run = tmp_path / "run"
    counted.limit = 4
    with pytest.raises(Killed):
        train_here(run, *words(unbroken))
    counted.limit = None
    train_here(run, *words(unbroken))
    (run / "result.json").unlink()
    (run / "checkpoints" / "last.ckpt").unlink()
    stale = run / "results" / "2" / "C6_M4.json"
    about = json.loads(stale.read_text())
    stale.write_text(json.dumps({**about, "fingerprint": "of other pixels"}))
    (run / "results" / "3" / "C9_M4.png").write_bytes(b"half a fi")
    counted.clear()
    train_here(run, *words(unbroken))
    assert sorted(counted) == ["2 C6_M4", "3 C9_M4"]
    assert label_maps(run) == label_maps(unbroken / "run") and numbers(run) == numbers(unbroken / "run")


def test_another_order_of_images_and_settings_gives_the_same_maps(unbroken, tmp_path):
    """Trap 5, the whole run."""
    other = words(unbroken, "data.images=[3,1,2]", "model.settings=[[9,4],[6,4]]")
    train_here(tmp_path / "run", *other)
    assert label_maps(tmp_path / "run") == label_maps(unbroken / "run")


def test_a_checkpoint_is_judged_from_the_results_of_its_run(unbroken, tmp_path, counted):
    checkpoint = unbroken / "run" / "checkpoints" / "last.ckpt"
    judged = judge_here(checkpoint, tmp_path / "eval")
    assert counted == []
    same = {name: value for name, value in judged["metrics"].items() if not name.endswith("seconds")}
    assert same == numbers(unbroken / "run")
    more = judge_here(checkpoint, tmp_path / "more", "data.limit=1", "model.settings=[[6,4],[7,4]]")
    assert counted == ["1 C7_M4"] and more["metrics"]["test/judged_images"] == 1


def test_a_folder_of_photographs_is_predicted_without_the_training_data(unbroken, tmp_path, counted):
    photographs = tmp_path / "photographs" / "trip"
    photographs.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    pixels[:, 15:] //= 4
    Image.fromarray(pixels).save(photographs / "a.png")
    checkpoint = unbroken / "run" / "checkpoints" / "last.ckpt"
    where = f"data.predict_root={tmp_path / 'photographs'}"
    for _attempt in range(2):  # the second finds what the first made
        judge_here(checkpoint, tmp_path / "predict", "mode=predict", where, "data.root=nowhere")
    assert sorted(counted) == sorted(set(counted)) and len(counted) == 2
    folder = tmp_path / "predict" / "predictions"
    (row,) = csv.DictReader((tmp_path / "predict" / "predictions.csv").open())
    labels = np.array(Image.open(tmp_path / "predict" / row["C6_M4_labels"]))
    assert labels.shape == (20, 30) and len(np.unique(labels)) == int(row["C6_M4_count"])
    assert np.array_equal(loadmat(folder / "C6_M4_labels" / "trip" / "a.mat")["seg_lab"], labels.astype(int) + 1)
    assert Image.open(folder / "C6_M4_boundaries" / "trip" / "a.png").size == (30, 20)


def test_photographs_without_human_maps_train_and_are_not_judged_and_a_plain_one_stops_nothing(tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (30, 20), (90, 120, 200)).save(photographs / "b.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(photographs / "a.png")
    small = ["model.width=0.1", "model.T=2", f"data.root={photographs}"]
    with pytest.warns(UserWarning, match=r"b\.png has one superpixel"):
        train_here(tmp_path / "run", "experiment=dic_folder", "trainer=cpu", QUIET, *small)
    metrics = numbers(tmp_path / "run")
    assert metrics["test/judged_images"] == 0 and metrics["test/labels"] >= 1 and "test/pri" not in metrics
    assert "none was judged" in (tmp_path / "run" / "run.log").read_text()
    assert not np.array(Image.open(tmp_path / "run" / "results" / "b.png" / "C50_M32.png")).any()


@pytest.mark.parametrize("variant", ["dic_no_dcs", "dic_deconv"])
def test_switches_of_the_method_run(unbroken, tmp_path, variant):
    small = words(unbroken, f"variant={variant}", "data.limit=1", "model.settings=[[6,4]]", "model.T=2")
    train_here(tmp_path, *small)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["variant"] == variant.removeprefix("dic_")
    assert 0 <= result["metrics"]["test/pri"] <= 1


def test_bfloat16_runs(unbroken, tmp_path):
    train_here(tmp_path, *words(unbroken, "data.limit=1", "model.settings=[[6,4]]"), "trainer.precision=bf16-mixed")
    assert numbers(tmp_path)["test/labels"] >= 1


def test_the_demo_merges_labels_and_finds_the_cells(tmp_path):
    train_here(tmp_path / "run", "experiment=dic_demo", "trainer=cpu", QUIET, f"paths.data_dir={tmp_path / 'data'}")
    metrics = numbers(tmp_path / "run")
    assert metrics["test/pri"] >= 0.90
    assert metrics["test/first_labels"] > 10 > metrics["test/labels"]


def test_two_processes_make_the_maps_of_one(unbroken, tmp_path):
    """Three images of two settings and one more: the shares differ in number."""
    small = words(unbroken, "model.settings=[[6,4]]")
    small[small.index("trainer=cpu")] = "trainer=ddp_cpu"
    code, output = run_door("train.py", *small, f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 0, output
    expected = {name: content for name, content in label_maps(unbroken / "run").items() if "C6_M4" in name}
    assert label_maps(tmp_path / "run") == expected
    alone, two = numbers(unbroken / "run"), numbers(tmp_path / "run")
    for name in ("pri", "voi", "gce", "bde", "sc"):
        assert two[f"test/{name}"] == pytest.approx(alone[f"test/C6_M4_{name}"], rel=1e-9)
        assert two[f"test/guide_{name}"] == pytest.approx(alone[f"test/guide_{name}"], rel=1e-9)
    assert len(list(csv.DictReader((tmp_path / "run" / "scores.csv").open()))) == 3


@pytest.mark.slow
def test_a_run_killed_by_the_system_ends_with_the_numbers_of_the_unbroken_one(tmp_path):
    long = words(tmp_path, "model.T=40", "model.min_labels=0")
    code, output = run_door("train.py", *long, f"hydra.run.dir={tmp_path / 'whole'}")
    assert code == 0, output
    process = start_door("train.py", *long, f"hydra.run.dir={tmp_path / 'run'}")
    deadline = time.monotonic() + 120
    while len(label_maps(tmp_path / "run")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "results").rglob("*.json")}
    assert 1 <= len(there) < 6 and not (tmp_path / "run" / "result.json").exists()
    code, output = run_door("train.py", f"ckpt_path={tmp_path / 'run'}")
    assert code == 0, output
    assert all(path.stat().st_mtime_ns == written for path, written in there.items()), "what was there was not touched"
    assert label_maps(tmp_path / "run") == label_maps(tmp_path / "whole")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
