"""Rounds run when due, change nothing else, and survive kills, resumes and more processes."""

import csv
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import nn

from callbacks.figures import FigureWriter
from callbacks.iterative_step import IterativeStep, Schedule, evaluation_mode
from runs.errors import InputError
from runs.round_store import RoundStore
from tests.callbacks.digits_pseudo_labels import DigitsNet, PseudoLabelRefresh, fit

BATCHES = 10  # steps of one epoch
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recorder(IterativeStep):
    """Does nothing but remember when it ran, and draw random numbers."""

    def __init__(self, schedule: Schedule, folder: str | None = None, stop_at: float = 2.0) -> None:
        super().__init__(schedule, seed=5, folder=folder)
        self.ran_at: list[tuple[int, int]] = []
        self.draws: list[list[float]] = []
        self.stop_at = stop_at

    def run(self, trainer: pl.Trainer, module: pl.LightningModule, datamodule: Any) -> dict:
        self.ran_at.append((trainer.current_epoch, trainer.global_step))
        self.draws.append([random.random(), np.random.rand(), torch.rand(1).item()])
        assert not torch.is_grad_enabled()
        assert not any(submodule.training for submodule in module.modules())
        return {"number": self.round}

    def should_stop(self, history: Any) -> bool:
        return history[-1]["number"] >= self.stop_at


class KillAt(pl.Callback):
    """Breaks off when so many optimiser steps are done, like a kill before the next batch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    different = [name for (name, value), other in pairs if not torch.equal(value, other)]
    assert different == []


def test_no_round_follows_the_one_that_ended_training(tmp_path: Path) -> None:
    class RunsLast(Recorder):
        after_last_epoch = True

    step = RunsLast(Schedule(every_n_epochs=1), stop_at=2)
    fit(tmp_path, step=step, max_epochs=6)
    assert step.ran_at == [(1, 10), (2, 20)]


# --- what a round shows


class Drawer(Recorder):
    def figures(self) -> dict:
        np.random.rand()  # drawing may use random numbers
        figure = Figure()
        figure.subplots().plot(range(self.round))
        return {"rounds": figure}


def test_what_a_round_draws_lies_among_the_figures_and_changes_no_other_draw(tmp_path: Path) -> None:
    writer = FigureWriter(str(tmp_path / "figures"), every_n_epochs=1)
    drawn, _, _ = fit(tmp_path, step=Drawer(Schedule(every_n_epochs=1), stop_at=9), callbacks=[writer], reseed=False)
    plain, _, _ = fit(tmp_path, step=Recorder(Schedule(every_n_epochs=1), stop_at=9), reseed=False)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["drawer_rounds.png"]
    assert_same_weights(drawn, plain)


# --- when


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"every_n_epochs": 10, "first_at": 5}, [5, 15, 25, 35, 45]),
        ({"at": [5, 15, 25, 35, 45]}, [5, 15, 25, 35, 45]),
        ({"every_n_epochs": 20}, [20, 40]),
        ({"every_n_epochs": 20, "first_at": 0}, [0, 20, 40]),
        ({"every_n_epochs": 1, "first_at": 0, "rounds_max": 3}, [0, 1, 2]),
        ({"at": [0, 7], "rounds_max": 1}, [0]),
    ],
)
def test_a_schedule_is_due_at_exactly_its_epochs(schedule: dict, expected: list[int]) -> None:
    due = [Schedule(**schedule).rounds_due(epoch) for epoch in range(50)]
    assert [epoch for epoch in range(50) if due[epoch] > (due[epoch - 1] if epoch else 0)] == expected
    assert due[-1] == len(expected)


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"every_n_epochs": 1, "every_n_steps": 1},
        {"every_n_epochs": -1},
        {"every_n_epochs": 2, "first_at": -1},
        {"at": [5, 3]},
        {"at": [5, 5]},
        {"at": [5], "first_at": 1},
        {"every_n_steps": 5, "rounds_max": 0},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(schedule: dict) -> None:
    with pytest.raises(InputError):
        Schedule(**schedule)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"every_n_epochs": 2}, [(2, 20), (4, 40)]),
        ({"every_n_epochs": 2, "first_at": 0}, [(0, 0), (2, 20), (4, 40)]),
        ({"at": [1, 5, 6]}, [(1, 10), (5, 50)]),
        ({"every_n_steps": 25}, [(2, 25), (4, 50)]),
        ({"every_n_steps": 30, "first_at": 0}, [(0, 0), (2, 30), (5, 60)]),
    ],
)
def test_rounds_run_at_the_start_of_the_scheduled_epochs_or_after_the_steps(
    tmp_path: Path, schedule: dict, expected: list
) -> None:
    step = Recorder(Schedule(**schedule), stop_at=99)
    fit(tmp_path, step=step, max_epochs=6)
    assert step.ran_at == expected
    assert [record["round"] for record in step.history] == list(range(1, len(expected) + 1))


def test_a_round_follows_the_checkpoint_of_its_epoch_and_precedes_the_next_loaders(
    tmp_path: Path,
) -> None:
    epochs_of_checkpoint = []

    class Looks(Recorder):
        def run(self, trainer: pl.Trainer, module: pl.LightningModule, datamodule: Any) -> dict:
            checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
            epochs_of_checkpoint.append(checkpoint["epoch"] + 1)
            return {"number": self.round}

    fit(tmp_path, step=Looks(Schedule(every_n_epochs=2), stop_at=99), max_epochs=6)
    assert epochs_of_checkpoint == [2, 4]


def test_only_a_step_that_says_so_runs_after_the_last_epoch_and_is_in_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    class AlsoLast(Recorder):
        after_last_epoch = True

    for kind, rounds in ((Recorder, [2]), (AlsoLast, [2, 4])):
        folder = tmp_path / kind.__name__
        fit(folder, step=kind(Schedule(every_n_epochs=2), stop_at=99), max_epochs=4)
        checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        state = next(v for k, v in checkpoint["callbacks"].items() if "IterativeStep" in k)
        assert [record["at"] for record in state["history"]] == rounds


# --- what a round leaves untouched


def test_rounds_that_draw_random_numbers_change_no_draw_of_training(tmp_path: Path) -> None:
    # Dropout draws from the running stream here: nothing reseeds it between batches.
    without, _, _ = fit(tmp_path / "without", reseed=False)
    step = Recorder(Schedule(every_n_epochs=1, first_at=0), stop_at=99)
    with_rounds, _, _ = fit(tmp_path / "with", step=step, reseed=False)
    assert len(step.ran_at) == 6
    assert_same_weights(without, with_rounds)


def test_each_round_has_its_own_draws_and_a_repeated_one_the_same(tmp_path: Path) -> None:
    draws = []
    for name in ("first", "again"):
        step = Recorder(Schedule(every_n_epochs=1), stop_at=99)
        fit(tmp_path / name, step=step, max_epochs=4, reseed=name == "first")
        draws.append(step.draws)
    assert draws[0] == draws[1]
    assert len({value for round_draws in draws[0] for value in round_draws}) == 9


def test_every_submodule_is_back_in_the_mode_it_had(tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path, step=Recorder(Schedule(every_n_epochs=1)), max_epochs=3)
    modes = [layer.training for layer in module.net]
    assert modes == [True, False, True, True, True]  # the normalisation layer was frozen


def test_modes_are_restored_after_an_error_too() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    net[1].eval()
    with pytest.raises(ZeroDivisionError), evaluation_mode(net):
        assert not net[0].training
        _ = 1 / 0
    assert [net.training, net[0].training, net[1].training] == [True, True, False]


# --- what readers see


@pytest.mark.parametrize(
    ("persistent", "start_method"),
    [(True, "fork"), (False, "fork"), pytest.param(True, "spawn", marks=pytest.mark.slow)],
)
def test_workers_read_exactly_one_generation_in_an_epoch(tmp_path: Path, persistent: bool, start_method: str) -> None:
    module, _, _ = fit(
        tmp_path,
        schedule={"every_n_epochs": 2, "first_at": 1},
        max_epochs=5,
        num_workers=2 if start_method == "fork" else 1,
        start_method=start_method,
        persistent=persistent,
    )
    assert module.seen == {0: {0}, 1: {1}, 2: {1}, 3: {2}, 4: {2}}


def test_an_epoch_that_was_cut_short_leaves_no_stale_batch_behind(tmp_path: Path) -> None:
    module, _, _ = fit(
        tmp_path,
        schedule={"every_n_epochs": 1},
        max_epochs=4,
        num_workers=2,
        limit_train_batches=3,
    )
    assert module.seen == {0: {0}, 1: {1}, 2: {2}, 3: {3}}


def test_the_batch_after_a_round_on_steps_reads_its_generation(tmp_path: Path) -> None:
    step = PseudoLabelRefresh(Schedule(every_n_steps=10, first_at=5), seed=5, folder=str(tmp_path / "rounds"))
    generations = []

    class Looks(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, _: int) -> None:
            generations.extend(set(batch["generation"].tolist()))

    fit(tmp_path, step=step, callbacks=[Looks()], max_epochs=3)
    assert generations == [0] * 5 + [1] * 10 + [2] * 10 + [3] * 5


def test_rounds_on_steps_refuse_worker_processes_that_would_read_ahead(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.num_workers=0"):
        fit(tmp_path, schedule={"every_n_steps": 5}, num_workers=1)


def test_a_step_that_stores_nothing_needs_no_folder_and_may_go_on_every_step(
    tmp_path: Path,
) -> None:
    class RoleSwap(IterativeStep):
        def run(self, trainer: pl.Trainer, module: DigitsNet, datamodule: Any) -> dict:
            module.student = 1 - getattr(module, "student", 0)
            return {}

    step = RoleSwap(Schedule(every_n_steps=1), seed=1)
    step.history_length = 8
    module, _, _ = fit(tmp_path, step=step, max_epochs=3, num_workers=1)
    assert (step.name, step.round, module.student) == ("role_swap", 30, 0)
    assert [record["at"] for record in step.history] == list(range(23, 31))
    with pytest.raises(InputError, match="stage_dir"):
        _ = step.store


def test_a_discarded_generation_leaves_the_one_before_in_force(tmp_path: Path) -> None:
    class OnlyOdd(PseudoLabelRefresh):
        def run(self, trainer: pl.Trainer, module: DigitsNet, datamodule: Any) -> dict:
            with self.new_generation() as generation:
                for index in range(48, 240):
                    generation.put("label", index, self.round)
                    generation.put("candidates", index, np.ones(1))
                if self.round % 2 == 0:
                    generation.discard()
            return {}

    step = OnlyOdd(Schedule(every_n_epochs=1), seed=5, folder=str(tmp_path / "rounds"))
    module, _, _ = fit(tmp_path, step=step, max_epochs=5)
    assert module.seen == {0: {0}, 1: {1}, 2: {1}, 3: {3}, 4: {3}}
    assert [record["generation"] for record in step.history] == [1, 1, 3, 3]


# --- what is logged, and stopping


def test_metrics_are_logged_can_be_monitored_and_come_back_after_a_resume(tmp_path: Path) -> None:
    monitor = {"monitor": "recorder/number", "mode": "max", "filename": "best"}
    step = Recorder(Schedule(every_n_epochs=2, first_at=0), stop_at=99)
    _, _, trainer = fit(tmp_path, step=step, max_epochs=3, checkpoint=monitor)
    with open(tmp_path / "csv" / "metrics.csv") as file:
        rows = [(int(row["step"]), float(row["recorder/number"])) for row in csv.DictReader(file)]
    assert rows == [(0, 1.0), (20, 2.0)]
    assert trainer.checkpoint_callback.best_model_score == 2
    resumed = Recorder(Schedule(every_n_epochs=2, first_at=0), stop_at=99)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    _, _, trainer = fit(tmp_path, step=resumed, max_epochs=4, ckpt_path=last, checkpoint=monitor)
    assert (resumed.ran_at, resumed.round) == ([], 2)
    assert trainer.callback_metrics["recorder/number"] == 2


@pytest.mark.parametrize(
    ("schedule", "trained"),
    [({"every_n_epochs": 1}, 2 * BATCHES), ({"every_n_steps": 6}, 12)],
)
def test_a_step_can_end_the_training_and_a_resumed_run_stays_ended(
    tmp_path: Path, schedule: dict, trained: int
) -> None:
    step = Recorder(Schedule(**schedule), stop_at=2)
    module, _, _ = fit(tmp_path, step=step, max_epochs=6)
    assert len(module.losses) == trained
    resumed = Recorder(Schedule(**schedule), stop_at=2)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    module, _, _ = fit(tmp_path, step=resumed, max_epochs=6, ckpt_path=last)
    assert len(module.losses) == 0
    assert [record["at"] for record in resumed.history] == [r["at"] for r in step.history]


def test_a_progress_bar_runs_beside_the_trainers_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    schedule = {"every_n_epochs": 1, "first_at": 0}
    fit(tmp_path / "on", schedule=schedule, max_epochs=2, enable_progress_bar=True)
    capsys.readouterr()
    fit(tmp_path / "off", schedule=schedule, max_epochs=2, enable_progress_bar=False)
    assert "pseudo_label_refresh" not in capsys.readouterr().out


# --- kills and resumes


UNBROKEN = {"schedule": {"every_n_epochs": 2, "first_at": 1}, "max_epochs": 6}  # rounds at 1, 3, 5


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[DigitsNet, IterativeStep]:
    torch.set_num_threads(1)
    module, step, _ = fit(tmp_path_factory.mktemp("unbroken"), **UNBROKEN)
    return module, step


def assert_ends_like(unbroken: tuple[DigitsNet, IterativeStep], module: DigitsNet, step: IterativeStep) -> None:
    assert_same_weights(unbroken[0], module)
    assert module.losses == unbroken[0].losses[-len(module.losses) :]
    for generation in (step.store.read(), step.rounds.generation):
        assert generation.digest == unbroken[1].rounds.generation.digest
    keys = ("round", "at", "step", "generation", "confidence", "accuracy")
    histories = [[[r[key] for key in keys] for r in s.history] for s in (unbroken[1], step)]
    assert histories[0] == histories[1]


EVERY_5_STEPS, EVERY_7_STEPS, EVERY_10_STEPS = (
    {"every_n_train_steps": steps, "save_on_train_epoch_end": False} for steps in (5, 7, 10)
)


@pytest.mark.parametrize(
    ("checkpoint", "killed_at", "num_workers"),
    [
        ({}, 25, 0),  # between rounds: back to the end of epoch 2
        ({}, 30, 2),  # right after the round of epoch 3, which no checkpoint knows yet
        ({}, 50, 0),
        (EVERY_7_STEPS, 25, 2),  # in mid-epoch
        (EVERY_10_STEPS, 15, 0),  # last batch of epoch 1
        (EVERY_10_STEPS, 32, 2),  # last batch of epoch 3
        (EVERY_5_STEPS, 12, 2),
    ],
)
def test_a_run_killed_between_rounds_and_resumed_ends_like_an_unbroken_one(
    tmp_path: Path, unbroken: Any, checkpoint: dict, killed_at: int, num_workers: int
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, **UNBROKEN, callbacks=[KillAt(killed_at)], checkpoint=checkpoint)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    module, step, _ = fit(tmp_path, **UNBROKEN, ckpt_path=last, checkpoint=checkpoint, num_workers=num_workers)
    assert_ends_like(unbroken, module, step)
    for epoch, generations in module.seen.items():
        assert generations == {(epoch + 1) // 2}


def run_program(environment: dict[str, str] | None = None, **arguments: Any) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.callbacks.digits_pseudo_labels", json.dumps(arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_process_killed_in_mid_round_costs_that_round_only(tmp_path: Path, unbroken: Any) -> None:
    process = run_program(folder=str(tmp_path), crash=[2, "exit"], num_workers=2, **UNBROKEN)
    assert process.wait(timeout=120) == 9, process.stdout.read()
    step_folder = tmp_path / "rounds" / "pseudo_label_refresh"
    assert sorted(entry.name for entry in step_folder.iterdir()) == ["000001", "000002.partial"]
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 3 * BATCHES
    module, step, _ = fit(tmp_path, **UNBROKEN, ckpt_path=last, num_workers=2)
    assert len(module.losses) == 3 * BATCHES
    assert_ends_like(unbroken, module, step)
    assert sorted(entry.name for entry in step_folder.iterdir()) == ["000002", "000003"]


class SaveOnTheWayOut(pl.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("broken_round", [1, 2])
def test_an_interrupted_round_does_not_count_and_is_made_again(
    tmp_path: Path, unbroken: Any, broken_round: int
) -> None:
    saved, last = tmp_path / "interrupted.ckpt", tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(BaseException):  # noqa: B017 - Lightning turns it into an exit
        fit(
            tmp_path,
            **UNBROKEN,
            crash=(broken_round, "raise"),
            callbacks=[SaveOnTheWayOut(saved)],
        )
    states = [
        torch.load(path, weights_only=True)["callbacks"]["IterativeStep[pseudo_label_refresh]"]
        for path in (saved, last)
    ]
    assert states[0] == states[1]
    assert states[0]["round"] == len(states[0]["history"]) == broken_round - 1
    module, step, _ = fit(tmp_path, **UNBROKEN, ckpt_path=str(last))
    assert len(module.losses) == (6 - (2 * broken_round - 1)) * BATCHES
    assert_ends_like(unbroken, module, step)


def test_a_round_before_any_training_is_not_repeated_by_a_resume(tmp_path: Path) -> None:
    schedule = {"every_n_epochs": 4, "first_at": 0}
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, schedule=schedule, callbacks=[KillAt(12)])
    first = (tmp_path / "rounds/pseudo_label_refresh/000001/manifest.json").stat().st_mtime_ns
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    _, step, _ = fit(tmp_path, schedule=schedule, ckpt_path=last)
    assert [record["at"] for record in step.history] == [0, 4]
    again = (tmp_path / "rounds/pseudo_label_refresh/000001/manifest.json").stat().st_mtime_ns
    assert again == first


def test_rounds_on_steps_survive_a_kill_and_keep_what_the_checkpoint_names(tmp_path: Path) -> None:
    schedule = {"every_n_steps": 3, "first_at": 0}
    whole, whole_step, _ = fit(tmp_path / "whole", schedule=schedule, max_epochs=3)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    for from_checkpoint in (None, last):  # the second run is killed before its first checkpoint
        with pytest.raises(RuntimeError, match="killed"):
            fit(
                tmp_path,
                schedule=schedule,
                max_epochs=3,
                callbacks=[KillAt(29)],
                ckpt_path=from_checkpoint,
            )
        # The checkpoint of step 20 names generation 7 (of step 18); 8, 9 and 10 came after it.
        assert RoundStore(tmp_path / "rounds" / "pseudo_label_refresh").numbers() == [7, 9, 10]
    module, step, _ = fit(tmp_path, schedule=schedule, max_epochs=3, ckpt_path=last)
    assert_ends_like((whole, whole_step), module, step)


def test_a_checkpoint_holds_plain_values_and_names_the_generation_it_was_trained_with(
    tmp_path: Path,
) -> None:
    _, step, _ = fit(tmp_path, **UNBROKEN)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["IterativeStep[pseudo_label_refresh]"]
    digest = step.store.read(3).digest
    assert state["generation"] == {"number": 3, "digest": digest}
    assert [record["at"] for record in state["history"]] == [1, 3, 5]


@pytest.mark.parametrize("harm", ["altered", "missing", "other settings"])
def test_a_resume_with_other_round_results_is_refused(
    tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, **UNBROKEN, callbacks=[KillAt(25)])
    generation = tmp_path / "rounds" / "pseudo_label_refresh" / "000001"
    if harm == "altered":
        content = bytearray((generation / "label.npy").read_bytes())
        content[-8] ^= 1
        (generation / "label.npy").write_bytes(content)
    if harm == "missing":
        shutil.rmtree(generation)
    if harm == "other settings":
        monkeypatch.setattr(PseudoLabelRefresh, "settings", lambda self: {"threshold": 0.4})
    named = {"altered": "label.npy changed", "missing": "it is missing"}.get(harm, "threshold chan")
    with pytest.raises(InputError, match=named):
        fit(tmp_path, **UNBROKEN, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_full_disk_in_a_round_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, unbroken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fills_up(writer: Any, name: str, rank: int) -> Path:
        full = writer._folder.name.startswith("000002") and name == "confidence"
        return Path("/dev/full") if full else writer._folder / f"{name}.rank{rank}"

    with monkeypatch.context() as patch, pytest.raises(InputError, match="the disk is full"):
        patch.setattr("runs.round_store.GenerationWriter._part_path", fills_up)
        fit(tmp_path, **UNBROKEN)
    store = RoundStore(tmp_path / "rounds" / "pseudo_label_refresh")
    assert [entry.name for entry in store.folder.iterdir()] == ["000001"]
    store.read().verify()
    module, step, _ = fit(tmp_path, **UNBROKEN, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert_ends_like(unbroken, module, step)


# --- several processes


def test_two_processes_make_the_round_results_of_one(tmp_path: Path) -> None:
    schedule = {"every_n_epochs": 2, "first_at": 0}
    run = {"schedule": schedule, "max_epochs": 4, "num_workers": 1, "dropout": 0.0}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environments = [
        {
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for rank in range(2)
    ]
    two = tmp_path / "two"
    arguments = {**run, "folder": str(two), "devices": 2, "out": str(tmp_path / "result")}
    processes = [run_program(environment, **arguments) for environment in environments]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)

    module, step, _ = fit(tmp_path / "one", **run)
    results = [torch.load(f"{tmp_path}/result.{rank}", weights_only=True) for rank in range(2)]
    assert results[0]["history"] == results[1]["history"]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["history"][0]["confidence"] == step.history[0]["confidence"]
    store = RoundStore(two / "rounds" / "pseudo_label_refresh")
    # Before training the weights are the same to the last digit, later up to the order of sums.
    assert store.read(1).digest == step.store.read(1).digest
    later, reference = store.read(2), step.store.read(2)
    assert np.array_equal(later["label"].stacked, reference["label"].stacked)
    assert np.array_equal(later.indices("candidates"), reference.indices("candidates"))
    confidences = (later["confidence"].stacked, reference["confidence"].stacked)
    np.testing.assert_allclose(*confidences, rtol=1e-4)
    for rank in range(2):
        for name, value in module.state_dict().items():
            torch.testing.assert_close(results[rank]["weights"][name], value, rtol=1e-3, atol=1e-5)
