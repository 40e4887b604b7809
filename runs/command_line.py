"""What happens between the shell and a door: Hydra, resuming, exit codes."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runs import composition, help_text
from runs.errors import InputError
from runs.folders import RUN_FILE, find_run, read_run

INPUT_ERROR = 2  # exit code: the user's input is wrong, and has been told so
Task = Callable[[DictConfig], Any]


def open_train_door(task: Task) -> None:
    """Runs `task` on the config of the command line, or, with `ckpt_path=`, of the run to go on with."""
    answer_errors(lambda: _train(task))


def open_eval_door(task: Task) -> None:
    """Runs `task` on the config that `ckpt_path=` carries, with the command line's changes."""
    answer_errors(lambda: _evaluate(task))


def open_plain_door(task: Callable[[Sequence[str]], int]) -> None:
    """Runs a door that has no config: it parses its own arguments."""
    answer_errors(lambda: sys.exit(task(sys.argv[1:])))


def _train(task: Task) -> None:
    checkpoint = _take_override("ckpt_path")
    if checkpoint is None:
        _hydra_main("train", task)
        return
    run_dir = find_run(Path(checkpoint))
    if Path(checkpoint).is_file() and Path(checkpoint).name != "last.ckpt":
        raise InputError(
            f"a run goes on from its last.ckpt, not from {checkpoint}: give the run's folder, "
            "or start a new run from these weights with model.init_from="
        )
    config = read_run(run_dir).config
    # A logger chosen anew replaces the old one; hardware chosen anew is merged over the old.
    if any(word.startswith("logger=") for word in sys.argv[1:]):
        config.pop("logger", None)
    config["ckpt_path"] = checkpoint
    config["hydra"] = {
        "run": {"dir": str(run_dir)},
        "output_subdir": ".hydra/resumed",
        "job": {"chdir": False},
    }
    composition.register_base_config(
        "resumed_run", config, ["_self_", {"trainer": None}, {"logger": None}, *_QUIET_HYDRA]
    )
    _hydra_main("resumed_run", task)


def _evaluate(task: Task) -> None:
    if any(word in ("--help", "-h", "--hydra-help", "--version") for word in sys.argv[1:]):
        _hydra_main("eval", task)
        return
    given = _take_override("ckpt_path")
    if given is None:
        raise InputError("eval.py needs a checkpoint: python eval.py ckpt_path=<run>/<stage>/checkpoints/last.ckpt")
    from runs.checkpoints import evaluation_config
    from runs.folders import last_checkpoint

    checkpoint = last_checkpoint(Path(given)) or Path(given)  # of the folder of a stage, or of a run of one stage
    content = evaluation_config(checkpoint)
    content["ckpt_path"] = str(checkpoint)
    composition.register_base_config("checkpoint", content, ["_self_", "eval"])
    _hydra_main("checkpoint", task)


_HYDRA_FLAGS_WITH_VALUES = (
    "--cfg",
    "--config-dir",
    "--config-name",
    "--config-path",
    "--experimental-rerun",
    "--info",
    "--package",
)
# Hydra's own logging is off: a run writes run.log itself.
_QUIET_HYDRA = [{"override hydra/job_logging": "disabled"}, {"override hydra/hydra_logging": "disabled"}]


def _hydra_main(config_name: str, task: Task) -> None:
    composition.register_resolvers()
    OmegaConf.register_new_resolver("choices", lambda: help_text.listing(sys.argv[1:]), replace=True)
    logging.captureWarnings(True)
    for word in sys.argv[1:]:
        # Hydra would take --experiment=x for an abbreviation of a flag of its own.
        if word.startswith("--") and "=" in word and word.partition("=")[0] not in _HYDRA_FLAGS_WITH_VALUES:
            raise InputError(f"write {word.lstrip('-')} without dashes: this program takes key=value")
    # Without this Hydra prints its own version of an error and exits with 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    started: list[bool] = []
    try:
        hydra.main(version_base="1.3", config_path=str(composition.CONFIG_DIR), config_name=config_name)(
            _quiet_in_this_process(task, started)
        )()
    except Exception as error:
        if isinstance(error, OSError) and error.filename and not started:
            raise InputError(f"the run's folder cannot be made: {error.filename} ({error.strerror})") from error
        words = [word for word in sys.argv[1:] if "=" in word]
        raise composition.explain(error, words, config_name) from error


def _quiet_in_this_process(task: Task, started: list[bool]) -> Task:
    """Answers the task's own errors before Hydra wraps them in its report.

    A job that a launcher runs elsewhere must raise instead, so that the launcher sees it fail.
    """

    def job(config: DictConfig) -> Any:
        started.append(True)
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN and "basic" not in str(hydra_config.launcher.get("_target_")):
            return task(config)
        folder = Path(hydra_config.runtime.output_dir)
        try:
            return task(config)
        except SystemExit as stop:  # a process of the run has answered already
            if stop.code == INPUT_ERROR:
                _remove_if_nothing_ran(folder)
            raise
        except Exception as error:
            if isinstance(error, InputError):
                _remove_if_nothing_ran(folder)
            answer(error)
            raise

    return job


def _remove_if_nothing_ran(folder: Path) -> None:
    """Removes the folder of a job that was refused before it did anything: nothing half-made stays."""
    if folder.is_dir() and all(path.name in (".hydra", RUN_FILE) or path.suffix == ".log" for path in folder.iterdir()):
        shutil.rmtree(folder)


def _take_override(key: str) -> str | None:
    """Takes `key=value` out of the command line: it chooses the config, so Hydra must not see it."""
    for word in sys.argv[1:]:
        if word.startswith(f"{key}=") and word != f"{key}=null":
            sys.argv.remove(word)
            return word.partition("=")[2].strip("'\"")
    return None


def answer_errors(action: Callable[[], None]) -> None:
    """Runs a door: a user's error becomes its sentence and exit code 2, an interruption its signal's code."""
    try:
        action()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        answer(error)
        raise


def answer(error: Exception) -> None:
    """Prints the sentence of an error that has one and exits; comes back for any other."""
    exit_code = INPUT_ERROR if isinstance(error, InputError) else getattr(error, "exit_code", None)
    if exit_code is None:
        return
    sentence = str(error)
    if sentence.startswith("Caught "):  # a loader's process wraps it in its own stack trace
        sentence = sentence.strip().splitlines()[-1].partition("InputError: ")[2]
    print(f"error: {sentence}" if exit_code == INPUT_ERROR else f"\n{sentence}", file=sys.stderr)
    sys.exit(exit_code)
