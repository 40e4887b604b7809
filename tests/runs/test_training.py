"""Whole runs of the toy experiment in this process: stages, results, checkpoints, skipping, errors."""

import errno
import json

import pytest
import pytorch_lightning as pl
import torch

from callbacks.last_checkpoint import LastCheckpoint
from runs.checkpoints import CONFIG_KEY, AtomicCheckpointIO, evaluation_config
from runs.composition import compose_config, register_base_config
from runs.errors import InputError
from runs.evaluating import evaluate_checkpoint
from runs.folders import read_run
from tests.toy.digits import DigitsModule
from tests.toy.running import train_here, train_toy


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "toy"
    metric = train_toy(run_dir, "optimized_metric=test/accuracy", "seed=3")
    return run_dir, metric


def test_a_run_writes_its_stages_and_its_result(finished_run):
    run_dir, metric = finished_run
    result = json.loads((run_dir / "result.json").read_text())
    assert set(result["stages"]) == {"first", "second"}
    assert result["metrics"] == result["stages"]["second"]["metrics"]
    assert metric == result["metrics"]["test/accuracy"] > 0.8
    assert result["floors"] == {"accuracy": pytest.approx(0.1)}
    assert result["paper"]["metrics"] == {"test/accuracy": 0.95}
    assert result["seed"] == 3
    first = result["stages"]["first"]
    assert first["steps"] == 3 * 11  # 3 epochs of 11 batches of 100 of 1198 digits
    assert first["samples_per_second"] > 0
    assert first["peak_memory_mib"] > 0
    for stage in ("first", "second"):
        assert (run_dir / stage / "metrics.csv").is_file()
        assert (run_dir / stage / "figures" / "test_weights.png").is_file()
        assert (run_dir / stage / "checkpoints" / "last.ckpt").is_file()


def test_the_second_stage_starts_from_the_weights_of_the_first(tmp_path):
    train_toy(tmp_path / "run", "stages.second.trainer.max_epochs=1", "stages.second.model.optimizer.lr=0")
    first, second = (
        torch.load(tmp_path / "run" / stage / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for stage in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_checkpoint_loads_without_pickles_and_carries_its_config(finished_run):
    run_dir, _ = finished_run
    for path in run_dir.rglob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint[CONFIG_KEY]["config"] == read_run(run_dir).config
        assert checkpoint[CONFIG_KEY]["stage"] == path.parent.parent.name


def test_a_checkpoint_is_judged_with_its_own_stage_and_without_initial_weights(finished_run):
    run_dir, _ = finished_run
    config = evaluation_config(run_dir / "second" / "checkpoints" / "last.ckpt")
    assert config["model"]["optimizer"]["lr"] == 0.001
    assert config["model"]["init_from"] is None
    assert "stages" not in config


def test_a_finished_run_is_not_run_again(finished_run):
    run_dir, metric = finished_run
    before = (run_dir / "second" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert train_toy(run_dir, "optimized_metric=test/accuracy", "seed=3") == metric
    assert (run_dir / "second" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_the_folder_of_another_run_is_refused(finished_run):
    run_dir, _ = finished_run
    with pytest.raises(InputError, match="holds another run"):
        train_toy(run_dir, "seed=4")


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(finished_run, tmp_path):
    losses = []
    for name, seed in (("same", 3), ("other", 4)):
        train_toy(tmp_path / name, f"seed={seed}")
        losses.append(json.loads((tmp_path / name / "result.json").read_text())["metrics"]["test/loss"])
    assert losses[0] == json.loads((finished_run[0] / "result.json").read_text())["metrics"]["test/loss"]
    assert losses[0] != losses[1]


def test_judging_in_several_processes_is_refused(finished_run):
    checkpoint = finished_run[0] / "second" / "checkpoints" / "last.ckpt"
    register_base_config("checkpoint", evaluation_config(checkpoint), ["_self_", "eval"])
    config = compose_config([f"ckpt_path={checkpoint}", "trainer=ddp_cpu", "paths.run_dir=unused"], "checkpoint")
    with pytest.raises(InputError, match=r"eval\.py judges in one process"):
        evaluate_checkpoint(config)


def test_worker_processes_change_no_number(finished_run, tmp_path):
    train_toy(tmp_path / "run", "seed=3", "data.num_workers=2")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"] == json.loads((finished_run[0] / "result.json").read_text())["metrics"]


@pytest.mark.parametrize("setting", ["gradient_clip_val=1.0", "accumulate_grad_batches=2"])
def test_what_the_trainer_cannot_do_for_a_module_that_steps_by_itself_is_refused(tmp_path, setting):
    words = ["experiment=modularity_graph_refinement_demo", f"trainer.{setting}", f"paths.data_dir={tmp_path}"]
    with pytest.raises(InputError, match=rf"trainer\.{setting} has no effect on a module that steps by itself"):
        train_here(tmp_path / "run", *words)


def test_nan_loss_stops_the_run_and_names_step_and_files(tmp_path):
    with pytest.raises(InputError, match=r"loss is nan at batch 2 of epoch 1 \(files digit_\d+\.png, .* and 95 more\)"):
        train_toy(tmp_path / "run", "model.nan_at_step=13")
    checkpoint = torch.load(tmp_path / "run" / "first" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0  # of the epoch before
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def write_half(checkpoint, stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(InputError, match=r"the disk is full: .*last\.ckpt was not written"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_an_optimised_metric_that_does_not_exist_names_those_that_do(tmp_path):
    with pytest.raises(InputError, match=r"optimized_metric=test/acc is not a metric .* test/accuracy"):
        train_toy(tmp_path / "run", "optimized_metric=test/acc", "debug=fast")


def test_a_run_broken_between_two_saves_inside_an_epoch_ends_as_an_unbroken_one(finished_run, tmp_path, monkeypatch):
    class Broken(Exception):
        pass

    step = DigitsModule.training_step

    def break_at_step_18(self, batch, batch_idx):
        if self.global_step == 18:
            raise Broken
        return step(self, batch, batch_idx)

    words = ["seed=3", "callbacks.checkpoint.every_n_steps=4"]
    with monkeypatch.context() as patch, pytest.raises(Broken):
        patch.setattr(DigitsModule, "training_step", break_at_step_18)
        train_toy(tmp_path / "run", *words)
    checkpoint = torch.load(tmp_path / "run" / "first" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 16  # the sixth batch of the second epoch comes next
    train_toy(tmp_path / "run", *words)
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics == json.loads((finished_run[0] / "result.json").read_text())["metrics"]


def test_an_epoch_without_an_optimiser_step_is_saved_too(tmp_path):
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False)
    saved = []
    trainer.save_checkpoint = saved.append
    LastCheckpoint(str(tmp_path), every_n_epochs=1, every_n_steps=None).on_train_epoch_end(trainer, None)
    assert trainer.global_step == 0
    assert saved == [tmp_path / "last.ckpt"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("seed=-1", r"seed=-1 must be a whole number from 0"),
        ("seed=abc", r"seed=abc must be a whole number"),
        ("trainer.max_epochs=0", r"trainer\.max_epochs=0 must be 1 or more"),
        ("model.optimizer.lr=-1", r"model\.optimizer: Invalid learning rate: -1"),
        ("only_stages=[thrd]", r"no stage 'thrd'"),
    ],
)
def test_values_that_no_run_can_use_are_refused_before_anything_is_written(tmp_path, word, sentence):
    with pytest.raises(InputError, match=sentence):
        train_toy(tmp_path / "run", word)
    assert not (tmp_path / "run").exists()
