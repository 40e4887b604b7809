"""The base of every paper's outer loop: rounds between epochs or steps, resumable and distributed.

A complete step, its dataset and its config::

    class PseudoLabelRefresh(IterativeStep):
        def run(self, trainer, module, datamodule):
            images = datamodule.unlabelled_images()
            mine = self.shard(len(images))
            loader = DataLoader(Subset(images, mine), batch_size=64)
            confidences = []
            with self.new_generation() as generation:
                for batch in self.progress(loader, len(loader), "labels"):
                    confidence, label = module(batch["image"].to(module.device)).softmax(1).max(1)
                    generation.put("label", batch["index"], label)
                    confidences += confidence.tolist()
            return {"confidence": mean(self.gather(confidences))}

        def should_stop(self, history):
            return history[-1]["confidence"] > 0.99

    # in the datamodule: def use_rounds(self, step, rounds): self.train_set.rounds = rounds
    # in __getitem__:    generation = self.rounds.generation   # None before the first round

    refresh:
      _target_: callbacks.pseudo_label_refresh.PseudoLabelRefresh
      schedule: {_target_: callbacks.iterative_step.Schedule, first_at: 5, every_n_epochs: 10}
      seed: ${seed}
      folder: ${stage_dir}/rounds
"""

import json
import re
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.utilities import CombinedLoader
from pytorch_lightning.utilities.seed import isolate_rng

from callbacks.figures import FigureWriter
from components.progress import track
from components.seeding import seed_streams
from runs.errors import InputError, first_few
from runs.round_store import GenerationWriter, OtherRankError, Ranks, RoundReader, RoundStore

Item = TypeVar("Item")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
RESERVED = ("round", "at", "step", "seconds", "generation")


@runtime_checkable
class ReadsRounds(Protocol):
    """A datamodule (or module) that reads what rounds leave."""

    def use_rounds(self, step: str, rounds: RoundReader) -> None:
        """Called once, before training loaders exist: keep ``rounds``, or give it to the datasets.

        ``rounds.generation`` always is the whole generation that holds, in worker processes too;
        None before the first round.
        """
        ...


@dataclass(frozen=True)
class Schedule:
    """When rounds run: every so many epochs, or optimiser steps, or after listed epochs.

    Attributes:
        every_n_epochs: a round after each so many finished epochs.
        every_n_steps: a round after each so many optimiser steps.
        at: a round after each of these numbers of finished epochs, ascending.
        first_at: finished epochs (or steps) before the first round; 0 is before any training. One
            interval when not given.
        rounds_max: rounds in all.

    Raises:
        InputError: not exactly one of the first three, or a number that makes no sense.
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    at: list[int] | None = None
    first_at: int | None = None
    rounds_max: int | None = None

    def __post_init__(self) -> None:
        given = [key for key in ("every_n_epochs", "every_n_steps", "at") if getattr(self, key)]
        if len(given) != 1:
            raise InputError(
                "a round schedule needs exactly one of every_n_epochs, every_n_steps and at, "
                f"found {' and '.join(given) or 'none'}"
            )
        if self.interval is not None and self.interval < 1:
            raise InputError(f"a round schedule needs {given[0]} of 1 or more, not {self.interval}")
        if self.first_at is not None and (self.first_at < 0 or self.at):
            raise InputError(f"first_at={self.first_at}: give 0 or more, and none beside at=[…]")
        if self.at and (self.at[0] < 0 or sorted(set(self.at)) != list(self.at)):
            raise InputError(f"at={self.at} must list numbers of finished epochs in rising order")
        if self.rounds_max is not None and self.rounds_max < 1:
            raise InputError(f"rounds_max={self.rounds_max} must be 1 or more, or null")

    @property
    def interval(self) -> int | None:
        return self.every_n_steps if self.every_n_steps is not None else self.every_n_epochs

    def rounds_due(self, now: int) -> int:
        """How many rounds are scheduled up to and including ``now`` finished epochs or steps."""
        if self.at:
            due = bisect_right(self.at, now)
        else:
            first = self.interval if self.first_at is None else self.first_at
            due = 0 if now < first else 1 + (now - first) // self.interval
        return due if self.rounds_max is None else min(due, self.rounds_max)


class IterativeStep(pl.Callback, ABC):
    """Runs rounds on schedule; a subclass says what a round does.

    A round after `e` finished epochs runs before the loaders of the next epoch read anything and
    after the checkpoint of epoch `e` was written: at the start of the next epoch, or at fit start
    (`e = 0`, or a run resumed at that very place). A kill during a round thus costs the round only.
    A round on steps runs after the batch whose optimiser step is due.

    During `run` the module is in eval mode, gradients are off, and all global random streams are
    seeded by (seed, step, round), alike on every process; afterwards everything is as before. For
    randomness that does not depend on the number of processes, seed a private generator by
    ``[self.seed, self.round, index]``.

    Results are logged as ``<name>/<metric>`` with ``<name>/seconds``, can be monitored under these
    names, and make the history; a round that returns no metrics is not logged. The history and the
    generation that holds are in the checkpoint; a resumed run reads that very generation.

    Attributes:
        name: of the step, in its folder, logs and checkpoint entry; the class name in snake case
            by default.
        after_last_epoch: whether a round that is due at the end of training runs (before the last
            checkpoint, so that it is part of it). Otherwise a round runs only if training goes on.
        history_length: how many of the last rounds the history remembers.

    Args:
        schedule: when rounds run.
        seed: seed of the run.
        folder: folder of all round results, ``<stage_dir>/rounds``; null for a step without any.
        keep: generations that stay on disk; that of the last checkpoint stays besides.
    """

    name: str = ""
    after_last_epoch: bool = False
    history_length: int = 1000

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = _WORD_START.sub("_", cls.__name__).lower()

    def __init__(self, schedule: Schedule, seed: int, folder: str | None = None, keep: int = 2) -> None:
        self.schedule, self.seed = schedule, seed
        self.history: list[dict[str, Any]] = []
        self.round = 0
        self.rounds: RoundReader | None = None
        self._store: RoundStore | None = None
        if folder is not None:
            self._store = RoundStore(Path(folder) / self.name, keep)
            self.rounds = RoundReader(self._store.folder)
        self._writer: GenerationWriter | None = None
        self._ranks = Ranks()
        self._stopped = False
        self._restored: dict[str, Any] | None = None
        self._resumed_epochs, self._resumed_steps = 0, 0

    # --- what a subclass says

    @abstractmethod
    def run(self, trainer: pl.Trainer, module: pl.LightningModule, datamodule: Any) -> Mapping[str, float]:
        """The round. What it returns is logged; process 0's values count."""

    def should_stop(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether training ends after this round.

        Args:
            history: for each round so far its metrics, ``round`` (from 1), ``at`` (epochs or steps
                done), ``step``, ``seconds`` and ``generation`` (the number that held after it).
        """
        return False

    def figures(self) -> dict[str, Figure]:
        """What the round that just ended has to show, by name; asked on the first process only.

        Written as ``<step>_<name>.png`` by the run's `FigureWriter`. The time is not the round's.
        """
        return {}

    def settings(self) -> dict[str, Any]:
        """Plain values that decide what a round produces: a resumed run must have the same."""
        return {}

    # --- what a subclass uses

    @property
    def store(self) -> RoundStore:
        """The generations of this step.

        Raises:
            InputError: the step was given no folder.
        """
        if self._store is None:
            raise InputError(f"{self.name} keeps results: set its folder to ${{stage_dir}}/rounds")
        return self._store

    def new_generation(self) -> AbstractContextManager[GenerationWriter]:
        """Opens this round's generation, at most one; it holds from the end of the round on."""
        manager = self.store.write(self.round, self.settings(), type(self).__qualname__)

        @contextmanager
        def remembered() -> Iterator[GenerationWriter]:
            with manager as self._writer:
                yield self._writer

        return remembered()

    def shard(self, count: int) -> range:
        """The share of this process in ``range(count)``: every world_size-th."""
        return range(self._ranks.rank, count, self._ranks.world_size)

    def gather(self, own: Sequence[Item]) -> list[Item]:
        """Takes a value for each place of this process's `shard`; returns those of all, in order."""
        parts = [list(part) for part in self._ranks.gather(list(own))]
        total = sum(len(part) for part in parts)
        return [parts[place % len(parts)][place // len(parts)] for place in range(total)]

    def progress(self, items: Iterable[Item], total: int | None = None, description: str = "") -> Iterator[Item]:
        """Shows a progress bar while ``items`` are used, where the trainer shows one."""
        bar = self._trainer.progress_bar_callback
        label = f"{self.name} {self.round}: {description}".rstrip(": ")
        return track(items, total, label, bar is not None and bar.is_enabled and self._trainer.is_global_zero)

    # --- hooks

    @property
    def state_key(self) -> str:
        return f"IterativeStep[{self.name}]"

    def state_dict(self) -> dict[str, Any]:
        held = None
        holding = None if self.rounds is None else self.rounds.generation
        if holding is not None:
            self.store.protected = {holding.number}
            held = {"number": holding.number, "digest": holding.digest}
        return {
            "round": self.round,
            "history": self.history,
            "stopped": self._stopped,
            "generation": held,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.round = state_dict["round"]
        self.history = list(state_dict["history"])
        self._stopped = state_dict["stopped"]
        self._restored = state_dict["generation"]

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        # The loops are restored only after fit start, where a round may be due.
        self._resumed_epochs = _finished_epochs(checkpoint["loops"]["fit_loop"])
        self._resumed_steps = checkpoint["global_step"]

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._trainer = trainer
        if trainer.world_size > 1:
            self._ranks = Ranks(trainer.global_rank, trainer.world_size, _all_gather)
        if self._store is not None:
            self._store.ranks = self._ranks

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.rounds is not None:
            with self._together():
                self._show_restored()
            for reader in (trainer.datamodule, module):
                if isinstance(reader, ReadsRounds):
                    reader.use_rounds(self.name, self.rounds)
        if self.history:
            self._publish(trainer, self.history[-1])
        if self._stopped:
            trainer.should_stop = True
        elif not self._training_is_over(trainer, self._resumed_epochs, self._resumed_steps):
            self._run_if_due(trainer, self._resumed_epochs, self._resumed_steps)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not self.schedule.every_n_steps or self.rounds is None:
            return
        loaders = trainer.train_dataloader
        if not isinstance(loaders, CombinedLoader):
            loaders = CombinedLoader(loaders)
        if any(getattr(loader, "num_workers", 0) > 0 for loader in loaders.flattened):
            raise InputError(
                f"{self.name}: rounds within an epoch do not go with worker processes, which read "
                "ahead of them: use every_n_epochs, or data.num_workers=0"
            )
        if trainer.num_training_batches == float("inf"):
            raise InputError(
                f"{self.name}: rounds within an epoch need a training loader of known length, "
                "because one of unknown length is read ahead: give its dataset or sampler a length"
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not self.schedule.every_n_steps:
            self._run_if_due(trainer, trainer.current_epoch, trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.schedule.every_n_steps:
            self._run_if_due(trainer, trainer.current_epoch, trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epochs, steps = trainer.current_epoch + 1, trainer.global_step
        if self.after_last_epoch and self._training_is_over(trainer, epochs, steps):
            self._run_if_due(trainer, epochs, steps)

    # --- one round

    def _run_if_due(self, trainer: pl.Trainer, epochs: int, steps: int) -> None:
        now = steps if self.schedule.every_n_steps else epochs
        last = self.history[-1]["at"] if self.history else -1
        # A stop at the start of an epoch lets it end without a batch: there is nothing new to look at.
        if self._stopped or self.schedule.rounds_due(now) <= self.schedule.rounds_due(last):
            return
        module = trainer.lightning_module
        self.round += 1
        self._writer = None
        started = time.perf_counter()
        try:
            with self._together(), evaluation_mode(module), torch.no_grad(), _streams_kept(module):
                seed_streams(self.seed, self.name, self.round)
                metrics = {key: float(value) for key, value in self.run(trainer, module, trainer.datamodule).items()}
                if taken := set(metrics) & set(RESERVED):
                    raise ValueError(f"{self.name}: {first_few(sorted(taken))} names no metric")
        except BaseException:
            self.round -= 1  # a checkpoint that is written on the way out does not count it
            raise
        if self._writer is not None and self._writer.committed is not None:
            self.rounds.show(self._writer.committed)
        holding = None if self.rounds is None else self.rounds.generation
        record = {
            "round": self.round,
            "at": now,
            "step": steps,
            "seconds": time.perf_counter() - started,
            "generation": None if holding is None else holding.number,
            **metrics,
        }
        record = self._ranks.gather(record)[0]
        self.history = [*self.history, record][-self.history_length :]
        if self._ranks.gather(bool(self.should_stop(self.history)))[0]:
            self._stopped = trainer.should_stop = True
        self._publish(trainer, record)
        if metrics:
            self._log(trainer, record)
        self._draw(trainer, module)

    def _metrics(self, record: Mapping[str, Any]) -> dict[str, float]:
        metrics = {key: value for key, value in record.items() if key not in RESERVED}
        return {f"{self.name}/{key}": value for key, value in metrics.items()}

    def _publish(self, trainer: pl.Trainer, record: Mapping[str, Any]) -> None:
        """Where ModelCheckpoint and EarlyStopping look for what they monitor."""
        for key, value in self._metrics(record).items():
            trainer.callback_metrics[key] = torch.tensor(value)

    def _log(self, trainer: pl.Trainer, record: Mapping[str, Any]) -> None:
        logged = {**self._metrics(record), f"{self.name}/seconds": record["seconds"]}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=record["step"])
            logger.save()

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        writers = [callback for callback in trainer.callbacks if isinstance(callback, FigureWriter)]
        if not writers or not trainer.is_global_zero:
            return
        with _streams_kept(module):
            for name, figure in self.figures().items():
                writers[0].save(trainer, f"{self.name}_{name}", figure)

    def _training_is_over(self, trainer: pl.Trainer, epochs: int, steps: int) -> bool:
        limits = ((epochs, trainer.max_epochs), (steps, trainer.max_steps))
        reached = any(limit not in (None, -1) and done >= limit for done, limit in limits)
        return reached or trainer.should_stop

    @contextmanager
    def _together(self) -> Iterator[None]:
        """A process that fails tells the others, which would wait for it for ever."""
        try:
            yield
            self._ranks.gather(None)
        except OtherRankError:
            raise
        except Exception as error:
            self._ranks.report_failure(error)
            raise

    # --- the generation that a checkpoint names

    def _show_restored(self) -> None:
        if self._restored is None:
            self.rounds.show(None)
            return
        generation = self.store.read(self._restored["number"], self._restored["digest"])
        if self._ranks.rank == 0:
            generation.verify()
        before, now = generation.settings, json.loads(json.dumps(self.settings()))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            raise InputError(
                f"{self.name}: {first_few(changed)} changed since round {generation.number} was "
                "made: resume with the settings of that run, or start a new run"
            )
        self.store.protected = {generation.number}
        self.rounds.show(generation)


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every submodule is back in the mode it had, frozen ones included."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training


def _finished_epochs(fit_loop: Mapping[str, Any]) -> int:
    """Epochs that a checkpoint's fit loop has finished.

    A checkpoint written after an epoch's last batch, but not at the epoch's end, is resumed by
    Lightning as if that epoch were finished.
    """
    epochs = fit_loop["epoch_progress"]["current"]
    batches = fit_loop["epoch_loop.batch_progress"]
    unfinished = epochs["ready"] > epochs["processed"]
    after_batch = batches["total"]["completed"] == batches["total"]["processed"] - 1
    return epochs["processed"] + int(unfinished and after_batch and batches["is_last_batch"])


def _streams_kept(module: pl.LightningModule) -> AbstractContextManager[None]:
    return isolate_rng(include_cuda=module.device.type == "cuda")


def _all_gather(value: Any) -> list[Any]:
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
