"""What a sweep needs before its first job: a place for the study's database."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

SQLITE = "sqlite:///"


class StudyFolder(Callback):
    """Makes the folder of an Optuna study on disk, which Optuna itself does not."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        storage = OmegaConf.select(config, "hydra.sweeper.storage")
        if storage and str(storage).startswith(SQLITE):
            Path(str(storage).removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
