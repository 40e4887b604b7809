"""The base of methods without gradients: each training step gets the whole training set and computes with it."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from components.progress import Item, track
from components.variable_buffers import VariableBuffers

Batch = dict[str, Any]


class ClosedFormModule(VariableBuffers, pl.LightningModule):
    """A method that solves instead of descending: a formula, a tree grown by levels, a solver's iterations.

    The datamodule gives one batch an epoch, the whole training set, to every process alike; so all
    processes compute the same and nothing has to be gathered. What `fit_closed_form` finds goes into
    buffers (`register_variable_buffer` for shapes that only the data know), which makes it part of
    the checkpoint: `eval.py` needs nothing else, and a run that was killed goes on after its last
    epoch. Estimators of a library are not kept; what a checkpoint holds is their numbers.

    A method that is done in one go finishes in the first epoch; one with levels, stages or iterations
    does one in each step, and `trainer.max_epochs` is only a bound.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.unused = torch.nn.Parameter(torch.zeros(()))  # DistributedDataParallel refuses a module without any

    @abstractmethod
    def fit_closed_form(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """The next step of the method on the whole training set.

        Args:
            batch: fields of `datamodules`, one row a training sample, in the order of ``index``.

        Returns:
            Numbers to log as ``train/<name>``.
        """

    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether the state in the buffers is the method's answer, with no step to follow."""

    def progress(self, items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
        """Shows a progress bar while ``items`` of a long step are used, where a trainer shows one."""
        bar = self._trainer.progress_bar_callback if self._trainer is not None else None
        return track(items, total, description, bar is not None and bar.is_enabled and self.trainer.is_global_zero)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of the method; training ends with the one that completes it."""
        self.optimizers().step()  # of no weights: it counts the steps for the loggers
        for name, value in self.fit_closed_form(batch).items():
            self.log(f"train/{name}", float(value), on_step=False, on_epoch=True, batch_size=len(batch["index"]))
        if self.is_fitted():
            self.trainer.should_stop = True

    def configure_optimizers(self) -> None:
        """There is nothing to optimise."""
