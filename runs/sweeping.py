"""What a sweep does around its jobs: a place for the study's database, and a word on each job and the end."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

SQLITE = "sqlite:///"


class StudyFolder(Callback):
    """Makes the folder of an Optuna study on disk, which Optuna itself does not."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        storage = OmegaConf.select(config, "hydra.sweeper.storage")
        if storage and str(storage).startswith(SQLITE):
            Path(str(storage).removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)


class SweepLines(Callback):
    """Says which job of a sweep starts, and at the end where its table is to be had."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        print(f"sweep folder: {Path(config.hydra.sweep.dir).absolute()}", file=sys.stderr)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            print(f"job {config.hydra.job.num}: {' '.join(config.hydra.overrides.task)}", file=sys.stderr)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        print(f"the table of all jobs: python report.py {Path(config.hydra.sweep.dir).absolute()}", file=sys.stderr)
