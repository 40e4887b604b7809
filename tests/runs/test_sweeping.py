"""What a sweep says around its jobs."""

from hydra.types import RunMode
from omegaconf import OmegaConf

from runs.sweeping import SweepLines


def config(mode, words):
    node = {"mode": mode, "job": {"num": 3}, "overrides": {"task": words}, "sweep": {"dir": "outputs/sweep"}}
    return OmegaConf.create({"hydra": node})


def test_each_job_is_named_and_the_end_says_how_to_see_the_table(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines, given = SweepLines(), config(RunMode.MULTIRUN, ["data.fold=1", "seed=2"])
    lines.on_multirun_start(given)
    lines.on_job_start(given)
    lines.on_multirun_end(given)
    assert capsys.readouterr().err.splitlines() == [
        f"sweep folder: {tmp_path}/outputs/sweep",
        "job 3: data.fold=1 seed=2",
        f"the table of all jobs: python report.py {tmp_path}/outputs/sweep",
    ]


def test_a_single_run_is_no_job(capsys):
    SweepLines().on_job_start(config(RunMode.RUN, []))
    assert not capsys.readouterr().err
