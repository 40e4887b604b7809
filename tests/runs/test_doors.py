"""The doors as a user opens them: processes, signals, kills, sweeps, exit codes."""

import csv
import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from runs.command_line import answer
from runs.errors import InputError
from tests.toy.running import PROJECT_ROOT, QUIET, TOY, door_environment, run_door, start_door

METRIC = "test/loss"  # a real number: equal to the last digit only if every weight is


def result(run_dir) -> dict:
    return json.loads((run_dir / "result.json").read_text())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("doors") / "unbroken"
    code, output = run_door("train.py", *TOY, QUIET, f"hydra.run.dir={run_dir}")
    assert code == 0, output
    return run_dir, output


def test_train_ends_with_the_table_of_run_floor_and_paper(unbroken):
    _, output = unbroken
    assert "this run" in output and "floor" in output and "paper" in output
    assert "0.1000" in output and "0.9500" in output


def test_eval_needs_only_the_checkpoint_and_reproduces_the_number(unbroken, tmp_path):
    run_dir, _ = unbroken
    stage = run_dir / "second"  # its folder stands for its checkpoint
    code, output = run_door("eval.py", f"ckpt_path={stage}", QUIET, f"hydra.run.dir={tmp_path}/eval")
    assert code == 0, output
    assert result(tmp_path / "eval")["metrics"] == result(run_dir)["metrics"]
    assert not (run_dir / "eval").exists()


def test_predict_writes_a_row_for_each_sample(unbroken, tmp_path):
    run_dir, _ = unbroken
    checkpoint = run_dir / "second" / "checkpoints" / "last.ckpt"
    code, output = run_door("eval.py", f"ckpt_path={checkpoint}", "mode=predict", QUIET, f"hydra.run.dir={tmp_path}/p")
    assert code == 0, output
    with (tmp_path / "p" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sample"]) for row in rows] == list(range(599))


def test_a_run_killed_at_any_time_and_resumed_ends_with_the_same_number(unbroken, tmp_path):
    expected = result(unbroken[0])["metrics"]
    clock = random.Random(0)
    broken_inside = 0
    for attempt, after in enumerate(
        ["run.yaml", *2 * ["first/checkpoints/last.ckpt"], *2 * ["second/checkpoints/last.ckpt"]]
    ):
        run_dir = tmp_path / str(attempt)
        process = start_door("train.py", *TOY, QUIET, f"hydra.run.dir={run_dir}", "model.sleep=0.1")
        wait_for(run_dir / after)
        time.sleep(clock.uniform(0, 2))
        process.kill()
        process.communicate()
        broken_inside += any(run_dir.rglob("last.ckpt")) and not (run_dir / "result.json").exists()
        code, output = run_door("train.py", f"ckpt_path={run_dir}", QUIET, "model.sleep=0")
        assert code == 0, output
        assert result(run_dir)["metrics"] == expected
    assert broken_inside >= 3  # or the times chosen prove nothing


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_in_mid_epoch_says_how_to_go_on_and_changes_nothing(unbroken, tmp_path, signum):
    run_dir = tmp_path / "run"
    process = start_door("train.py", *TOY, QUIET, f"hydra.run.dir={run_dir}", "model.sleep=0.3")
    wait_for(run_dir / "first" / "checkpoints" / "last.ckpt")
    time.sleep(0.7)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "stopping after the step at work; once more stops at once" in output
    assert f"to go on: python train.py ckpt_path={run_dir}" in output
    checkpoint = torch.load(run_dir / "first" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] % 11 != 0  # inside an epoch
    code, output = run_door("train.py", f"ckpt_path={run_dir}/first/checkpoints/last.ckpt", QUIET, "model.sleep=0")
    assert code == 0, output
    assert result(run_dir)["metrics"] == result(unbroken[0])["metrics"]


def test_the_metrics_file_of_a_resumed_run_is_that_of_an_unbroken_one(unbroken, tmp_path):
    run_dir = tmp_path / "run"
    process = start_door("train.py", *TOY, QUIET, f"hydra.run.dir={run_dir}", "model.sleep=0.1")
    wait_for(run_dir / "second" / "checkpoints" / "last.ckpt")
    process.kill()
    process.communicate()
    code, output = run_door("train.py", f"ckpt_path={run_dir}", QUIET, "model.sleep=0")
    assert code == 0, output
    for stage in ("first", "second"):
        ours, theirs = ((folder / stage / "metrics.csv").read_text() for folder in (run_dir, unbroken[0]))
        assert ours == theirs


def test_a_sweep_over_two_processes_gives_each_job_its_own_folder_once(tmp_path):
    words = [*TOY, "trainer=ddp_cpu", QUIET, f"hydra.sweep.dir={tmp_path}/sweep", "seed=1,2"]
    code, output = run_door("train.py", "-m", *words)
    assert code == 0, output
    assert sorted(path.parent.name for path in tmp_path.rglob("run.yaml")) == ["0", "1"]
    assert f"python report.py {tmp_path}/sweep" in output
    results = [result(tmp_path / "sweep" / job) for job in ("0", "1")]
    assert [r["seed"] for r in results] == [1, 2]
    assert all(r["processes"] == 2 and r["sweep"] == "sweep" for r in results)
    assert results[0]["metrics"] != results[1]["metrics"]
    # The same command again finds both finished.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.ckpt")}
    code, output = run_door("train.py", "-m", *words)
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.ckpt")} == times


def test_one_and_two_processes_with_the_same_global_batch_have_the_same_losses(tmp_path):
    losses = {}
    for trainer in ("cpu", "ddp_cpu"):
        trace = tmp_path / trainer
        code, output = run_door(
            "train.py",
            *TOY,
            f"trainer={trainer}",
            QUIET,
            f"hydra.run.dir={tmp_path}/run_{trainer}",
            "model.dropout=0",
            "trainer.max_steps=5",
            TOY_TRACE=str(trace),
        )
        assert code == 0, output
        losses[trainer] = [float(line) for line in trace.read_text().split()][:5]
    assert len(losses["cpu"]) == 5
    assert losses["cpu"] == pytest.approx(losses["ddp_cpu"], abs=1e-5)


def test_an_error_in_a_process_is_one_sentence_and_code_2(tmp_path):
    code, output = run_door(
        "train.py", *TOY, "trainer=ddp_cpu", QUIET, f"hydra.run.dir={tmp_path}/run", "data.root=/nowhere"
    )
    assert code == 2
    assert output.count("data.root=/nowhere does not exist") == 1
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()  # nothing half-made is left


@pytest.mark.parametrize(
    ("door", "words", "sentence"),
    [
        ("train.py", ["experiment=sitar_ucf11"], "there is no experiment 'sitar_ucf11'"),
        ("train.py", ["--experiment=sitar_demo"], "write experiment=sitar_demo without dashes"),
        ("train.py", ["hydra.run.dir=/proc/nowhere"], "the run's folder cannot be made: /proc/nowhere"),
        ("train.py", ["ckpt_path=/nowhere/last.ckpt"], "ckpt_path=/nowhere/last.ckpt does not exist"),
        ("eval.py", [], "eval.py needs a checkpoint"),
        ("eval.py", ["ckpt_path=/nowhere/last.ckpt"], "ckpt_path=/nowhere/last.ckpt does not exist"),
        ("report.py", ["/nowhere"], "/nowhere is not a folder"),
    ],
)
def test_wrong_input_is_answered_by_one_sentence_and_code_2(door, words, sentence):
    code, output = run_door(door, *words)
    assert code == 2
    assert output.startswith("error: ") and sentence in output
    assert len(output.strip().splitlines()) == 1


@pytest.mark.slow
def test_an_optuna_study_on_disk_goes_on_where_it_stopped(tmp_path):
    import optuna

    words = [
        *TOY,
        QUIET,
        "sweep=optuna",
        "optimized_metric=test/accuracy",
        f"paths.output_dir={tmp_path}",
        "hydra.sweeper.n_trials=2",
        "trainer.max_epochs=1",
    ]
    for trials in (2, 4):
        code, output = run_door("train.py", "-m", *words, f"hydra.sweep.dir={tmp_path}/sweep_{trials}")
        assert code == 0, output
        study = optuna.load_study(study_name="toy_digits", storage=f"sqlite:///{tmp_path}/studies/toy_digits.db")
        assert len(study.trials) == trials


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "joblib"])
def test_launchers_run_each_job_once(tmp_path, launcher):
    code, output = run_door(
        "train.py", "-m", *TOY, QUIET, f"launcher={launcher}", f"hydra.sweep.dir={tmp_path}", "seed=1,2"
    )
    assert code == 0, output
    assert [result(tmp_path / job)["seed"] for job in ("0", "1")] == [1, 2]


def wait_for(path, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.slow
def test_torchrun_starts_the_processes_of_one_run(tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(PROJECT_ROOT / "train.py")]
    done = subprocess.run(
        [sys.executable, *words, *TOY, "trainer=ddp_cpu", QUIET, f"hydra.run.dir={tmp_path}/run"],
        env=door_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert result(tmp_path / "run")["processes"] == 2
    assert done.stdout.count("this run") == 1  # one table, of rank 0


def test_the_sentence_of_a_loaders_process_comes_without_its_stack_trace(capsys):
    wrapped = (
        'Caught InputError in DataLoader worker process 1.\nTraceback:\n  File "x.py"\nInputError: x.jpg is broken'
    )
    with pytest.raises(SystemExit) as stopped:
        answer(InputError(wrapped))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: x.jpg is broken\n"
