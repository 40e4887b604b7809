"""SITAR's experiments run whole: both phases, judged again, predicting, resumed."""

import csv
import json
from pathlib import Path

import pytest
import torch

from runs.command_line import INPUT_ERROR
from runs.composition import PROJECT_ROOT, compose_config
from tests.toy.running import judge_here, run_door, train_here

SMALL = [
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "callbacks.figures.every_n_epochs=1",
    "trainer.check_val_every_n_epoch=1",
    "data.eval_batch_size=6",
]
SMALL_DEMO = [
    *SMALL,
    "experiment=sitar_demo",
    "data.reader.train_per_class=5",
    "data.reader.test_per_class=2",
    "data.labeled_per_class=3",
    "trainer.max_epochs=1",
]


def train(run_dir: Path, *words: str) -> dict:
    train_here(run_dir, *words)
    return json.loads((run_dir / "result.json").read_text())


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("sitar")
    result = train(root / "run", *SMALL_DEMO, f"paths.data_dir={root}/data")
    return root, result


def test_both_phases_of_the_demo_train_on_real_files_and_show_their_pictures(demo):
    root, result = demo
    assert list((root / "data" / "shapes_video" / "UCF-101").rglob("*.avi"))
    assert set(result["stages"]) == {"supervised", "semi"}
    assert result["floors"]["top1"] == pytest.approx(100 / 6)
    figures = {path.name for path in (root / "run" / "semi" / "figures").iterdir()}
    names = ("super_images", "confusion_matrix")
    assert {f"{stage}_{name}.png" for stage in ("val", "test") for name in names} <= figures
    assert "test_pseudo_label_accuracy.png" in figures
    with (root / "run" / "semi" / "metrics.csv").open() as file:
        logged = set(csv.DictReader(file).fieldnames)
    losses = {f"train/loss{kind}" for kind in ("", "_sup", "_ic", "_gc")}
    assert losses | {"train/common_groups", "train/pseudo_label_confidence", "train/pseudo_label_accuracy"} <= logged


def test_the_second_phase_starts_from_the_first_with_a_fresh_optimiser(demo):
    root, result = demo
    states = {
        stage: torch.load(root / "run" / stage / "checkpoints" / "last.ckpt", weights_only=True)
        for stage in ("supervised", "semi")
    }
    steps = result["stages"]["semi"]["steps"]
    assert states["semi"]["global_step"] == steps  # counted from the start of the phase
    assert states["semi"]["reprise"]["stage"] == "semi"


def test_a_checkpoint_alone_gives_the_same_test_numbers(demo):
    root, result = demo
    judge_here(root / "run" / "semi" / "checkpoints" / "last.ckpt", root / "eval")
    assert json.loads((root / "eval" / "result.json").read_text())["metrics"] == result["metrics"]


def test_predicting_on_a_folder_of_videos_writes_file_class_and_probabilities(demo):
    root, _ = demo
    clips = root / "data" / "shapes_video" / "UCF-101" / "Left"
    judge_here(
        root / "run" / "semi" / "checkpoints" / "last.ckpt",
        root / "predicted",
        "mode=predict",
        f"data.predict_root={clips}",
        f"data.root={root}/gone",  # the training data need not be there
    )
    with (root / "predicted" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["file"] for row in rows) == sorted(path.name for path in clips.iterdir())
    assert all(row["class"] in ("Left", "Right", "Up", "Down", "Grow", "Shrink") for row in rows)
    assert all(row["top5"].startswith(f"{row['class']} {float(row['probability']):.4f}") for row in rows)
    assert not (root / "gone").exists()
    assert (root / "predicted" / "figures" / "predict_super_images.png").is_file()


def test_a_run_broken_in_the_second_phase_goes_on_there_and_ends_alike(demo, tmp_path):
    root, result = demo

    class Broken(Exception):
        pass

    from lightning_modules.sitar import SitarModule

    step = SitarModule.training_step

    def break_in_phase_2(self, batch, batch_idx):
        if self.phase == "semi" and batch_idx == 1:
            raise Broken
        return step(self, batch, batch_idx)

    words = [*SMALL_DEMO, f"paths.data_dir={root}/data"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr(SitarModule, "training_step", break_in_phase_2)
        train(tmp_path / "run", *words)
    before = (tmp_path / "run" / "supervised" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert train(tmp_path / "run", *words)["metrics"] == result["metrics"]
    assert (tmp_path / "run" / "supervised" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_the_second_phase_runs_alone_from_a_given_checkpoint(demo, tmp_path):
    root, result = demo
    checkpoint = root / "run" / "supervised" / "checkpoints" / "last.ckpt"
    words = [*SMALL_DEMO, f"paths.data_dir={root}/data", "only_stages=[semi]", f"model.init_from={checkpoint}"]
    assert train(tmp_path / "run", *words)["metrics"] == result["metrics"]
    assert not (tmp_path / "run" / "supervised").exists()


def test_the_real_sample_trains_both_phases_and_is_judged_alike(sample_data, tmp_path):
    words = [*SMALL, "experiment=sitar_ucf101_mini", f"data.root={sample_data}/ucf101", "trainer.max_epochs=1"]
    result = train(tmp_path / "run", *words, "trainer.limit_train_batches=2")
    assert result["floors"]["top1"] == pytest.approx(100 * 3 / 14)  # Diving
    assert result["paper"]["metrics"] == {"test/top1": 37.9}
    judge_here(tmp_path / "run" / "semi" / "checkpoints" / "last.ckpt", tmp_path / "eval")
    assert json.loads((tmp_path / "eval" / "result.json").read_text())["metrics"] == result["metrics"]


@pytest.mark.slow
def test_one_batch_of_the_real_sample_is_learnt_by_heart(sample_data, tmp_path):
    words = [*SMALL, "experiment=sitar_ucf101_mini", f"data.root={sample_data}/ucf101", "data.lists=official"]
    words += ["debug=overfit", "data.batch_size=8", "only_stages=[supervised]", "trainer.max_epochs=100"]
    words += ["trainer.limit_val_batches=0", "model.mixup_alpha=0", "model.cutmix_alpha=0"]
    train(tmp_path / "run", *words)
    with (tmp_path / "run" / "supervised" / "metrics.csv").open() as file:
        accuracies = [float(row["train/top1"]) for row in csv.DictReader(file) if row["train/top1"]]
    assert accuracies[-1] == 100


def test_a_missing_folder_is_answered_with_where_to_get_the_data(tmp_path):
    code, output = run_door("train.py", "experiment=sitar_ucf101", "trainer=cpu", f"data.root={tmp_path}/gone")
    assert code == INPUT_ERROR
    assert f"{tmp_path}/gone" in output and "UCF-101" in output
    assert "Traceback" not in output


def test_the_sweep_of_wandb_agents_names_keys_that_exist():
    import yaml

    for path in (PROJECT_ROOT / "conf" / "wandb").glob("*.yaml"):
        sweep = yaml.safe_load(path.read_text())
        words = [word for word in sweep["command"] if "=" in word]
        for key, values in sweep["parameters"].items():
            words.append(f"{key}={values['values'][0] if 'values' in values else values['min']}")
        compose_config(words)
