"""Trains a run: each stage a fit and a test, picked up wherever an earlier process left it."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runs.errors import InputError
from runs.folders import RESULT_FILE, RUN_FILE, RunRecord, last_checkpoint, read_run, write_run
from runs.processes import global_rank, is_external_rank, processes_to_start, run_ranks
from runs.run_log import log_to, say
from runs.stages import Stage, fill_stage_checkpoints, let_command_line_win, resolve_stage, stages_of


@dataclass(frozen=True)
class Command:
    """What the user typed, as far as the config does not say it.

    Attributes:
        overrides: the words that changed the config, in order.
        sweep: name of the sweep that the job is part of.
        names_folder: whether the run's folder was given.
    """

    overrides: list[str]
    sweep: str | None = None
    names_folder: bool = True

    @classmethod
    def from_hydra(cls) -> Self:
        """The command line of the job that Hydra is running.

        Raises:
            InputError: if it names a sweep but does not ask for many jobs.
        """
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.RUN and hydra.runtime.choices.get("sweep"):
            raise InputError(f"sweep={hydra.runtime.choices['sweep']} runs many jobs: add -m to the command")
        return cls(
            overrides=list(hydra.overrides.task),
            sweep=Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None,
            names_folder=any(word.startswith("hydra.run.dir=") for word in hydra.overrides.hydra),
        )


def train_all_stages(config: DictConfig, command: Command) -> float | None:
    """The job of train.py: makes or finds the run's folder, runs it, returns the metric to optimise."""
    from runs.building import check_config
    from runs.results import read_result

    record = _record(config, command)
    run_dir = Path(record.config["paths"]["run_dir"])
    for stage in stages_of(record.config, run_dir):  # all of them, before the first one starts
        check_config(resolve_stage(record.config, stage))
    if "TORCHELASTIC_RUN_ID" in os.environ and not command.names_folder and config.ckpt_path is None:
        raise InputError(
            "torchrun starts several processes that must share one folder: add hydra.run.dir=<folder> to the command"
        )
    if global_rank() == 0:
        _claim(run_dir, record, resuming=config.ckpt_path is not None)
    else:
        _wait_for(run_dir / RUN_FILE)
    count = processes_to_start(OmegaConf.to_container(config.trainer, resolve=True))
    if count:
        run_ranks(run_dir, count)
    else:
        train_run(run_dir)
    metric = config.optimized_metric
    if metric is None or global_rank() != 0:
        return None
    metrics = read_result(run_dir)["metrics"]
    if metric not in metrics:
        raise InputError(f"optimized_metric={metric} is not a metric of this run: known are {', '.join(metrics)}")
    return metrics[metric]


def train_run(run_dir: Path) -> None:
    """Runs every unfinished stage of a run folder and writes the run's result."""
    from runs.results import print_result, read_result, write_result

    log_to(run_dir)
    record = read_run(run_dir)
    config = {**record.config, "paths": {**record.config["paths"], "run_dir": str(run_dir)}}
    stages = stages_of(config, run_dir)
    say(f"run folder: {run_dir}")
    for stage in stages:
        if stage.is_finished:
            say(
                f"{stage.name or config['name']}: finished already ({stage.folder / RESULT_FILE}); "
                "for other settings start a new run"
            )
        else:
            _fit_and_test(config, stage, run_dir, record)
    if global_rank() != 0:
        return
    results = {stage.name: read_result(stage.folder) for stage in stages}
    if len(stages) > 1 or stages[0].name:
        last = results[stages[-1].name]
        fit_seconds = sum(result["fit_seconds"] for result in results.values())
        write_result(run_dir, {**last, "stage": None, "fit_seconds": round(fit_seconds, 3), "stages": results})
    for result in results.values():
        print_result(result)
    say(f"results, figures and checkpoints are in {run_dir}")


def _fit_and_test(config: Mapping[str, Any], stage: Stage, run_dir: Path, record: RunRecord) -> None:
    import torch
    from lightning_fabric.utilities.seed import seed_everything

    from runs import results
    from runs.building import build_pieces, build_trainer
    from runs.checkpoints import AtomicCheckpointIO, ConfigInCheckpoint, without_initial_weights
    from runs.interruption import StopOnSignal
    from runs.loggers import close_loggers, log_final_table
    from runs.seeding import ReseedEachStep

    checkpoint = last_checkpoint(stage.folder)
    if checkpoint is not None:
        # The weights are in the checkpoint; where they came from at first may be gone.
        config = {**config, "model": without_initial_weights(config["model"])}
        config["stages"] = without_initial_weights(config.get("stages") or {})
    resolved = resolve_stage(config, stage)
    prefix = f"stages.{stage.name}." if stage.name else ""
    for part in ("model", "data", "callbacks"):  # a node that is only there to be referred to stays as it is
        resolved[part] = fill_stage_checkpoints(resolved.get(part), run_dir, f"{prefix}{part}")
    say(f"{stage.name or config['name']}: {'goes on from ' + str(checkpoint) if checkpoint else 'starts'}")
    seed_everything(resolved["seed"], workers=True, verbose=False)
    pieces = build_pieces(resolved)
    stopwatch = results.Stopwatch()
    signals = StopOnSignal(stage.folder / "checkpoints" / "last.ckpt", run_dir)
    callbacks = [
        ReseedEachStep(resolved["seed"], stage.name),
        ConfigInCheckpoint(record.config, stage.name),
        stopwatch,
        *pieces.callbacks,
        signals,  # after every other callback has seen the batch; Lightning puts checkpoints last
    ]
    trainer = build_trainer(resolved, pieces, callbacks, plugins=[AtomicCheckpointIO()])
    for logger in trainer.loggers:
        logger.log_hyperparams(_flat(resolved))
    started = time.perf_counter()
    with signals.listening():
        trainer.fit(pieces.module, datamodule=pieces.datamodule, ckpt_path=checkpoint, weights_only=True)
        tested = trainer.test(pieces.module, datamodule=pieces.datamodule, verbose=False)
    metrics, floors = results.split_floors({k: v for part in tested for k, v in part.items()})
    if trainer.is_global_zero:
        result = {
            "name": config["name"],
            "variant": config.get("variant_name"),
            "stage": stage.name or None,
            "metrics": metrics,
            "floors": floors,
            "paper": results.paper_row(resolved),
            "seed": resolved["seed"],
            "overrides": record.overrides,
            "sweep": record.sweep,
            **stopwatch.summary(),
            "process_seconds": round(time.perf_counter() - started, 3),
            "processes": trainer.world_size,
            **results.describe_software(),
        }
        log_final_table(trainer.loggers, result)
        results.write_result(stage.folder, result)
    trainer.strategy.barrier()
    close_loggers(trainer.loggers)
    if torch.distributed.is_initialized() and not is_external_rank():
        torch.distributed.destroy_process_group()


def _record(config: DictConfig, command: Command) -> RunRecord:
    """What `run.yaml` will say. Interpolations stay, so that `data.num_classes=…` on eval.py reaches the network."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    for key in ("hydra", "ckpt_path"):
        plain.pop(key, None)
    run_dir = Path(config.paths.run_dir).absolute()
    overrides, sweep = command.overrides, command.sweep
    if config.ckpt_path is not None:  # the overrides that made the run come first
        before = read_run(run_dir)
        overrides, sweep = [*before.overrides, *overrides], before.sweep
    plain["paths"] = {**plain["paths"], "run_dir": str(run_dir)}
    plain["group"] = plain.get("group") or sweep
    return RunRecord(let_command_line_win(plain, command.overrides), overrides, sweep)


def _claim(run_dir: Path, record: RunRecord, resuming: bool) -> None:
    """Writes `run.yaml`, unless another run has this folder.

    The same command with the same folder goes on with the run in it: that is how a killed sweep
    continues (its finished jobs are skipped, the broken one is resumed).
    """
    if not resuming and (run_dir / RUN_FILE).is_file():
        there = read_run(run_dir)
        if there.config != record.config:
            raise InputError(
                f"{run_dir} holds another run (overrides {' '.join(there.overrides) or 'none'}): "
                "choose another folder with hydra.run.dir=… or hydra.sweep.dir=…"
            )
    write_run(run_dir, record)


def _wait_for(path: Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > deadline:
            raise InputError(
                f"{path} did not appear within {seconds:.0f} s: all processes of a run need the same folder, "
                "give it with hydra.run.dir=<folder on a shared disk>"
            )
        time.sleep(0.2)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys, as hyper-parameter tables show them."""
    if isinstance(node, Mapping):
        return {k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): node}
