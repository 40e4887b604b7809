"""Ctrl-C and SIGTERM: write a checkpoint at the next exact place, stop, and say how to go on."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

STDERR = 2  # its file descriptor
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal stopped the run; `exit_code` is what the shell expects for it (128 + signal)."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class StopOnSignal(pl.Callback):
    """Ends a fit cleanly on SIGINT or SIGTERM.

    A checkpoint is exact after a training batch and at the start of an epoch, so a signal is
    answered there: after the batch at work, or after the validation at work. While nothing would
    be lost (before the first batch, during a round between epochs, in the test) it is answered at
    once, and a second signal always is.
    """

    def __init__(self, checkpoint: Path, run_dir: Path) -> None:
        self.checkpoint, self.run_dir = checkpoint, run_dir
        self._received: int | None = None
        self._nothing_to_lose = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answers the signals while a stage is at work (only the main thread can)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {signum: signal.signal(signum, self._receive) for signum in _SIGNALS}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Lightning has put its own handler for SIGTERM in front since, which talks to other ranks.
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                signal.signal(signum, self._receive)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._nothing_to_lose = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        # The last batch of an epoch is followed by its validation and its own checkpoint.
        if not trainer.is_last_batch and self._any_rank_was_told(trainer):
            trainer.save_checkpoint(self.checkpoint)
            self._stop()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._nothing_to_lose = True
        if self._any_rank_was_told(trainer):
            self._stop()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._nothing_to_lose = True

    def _any_rank_was_told(self, trainer: pl.Trainer) -> bool:
        told = self._received is not None
        if trainer.world_size > 1:
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
        return told

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        again = self._received is not None
        self._received = signum
        if again or self._nothing_to_lose:
            self._stop()
        # Not by print: the signal may have come while something else was being printed.
        os.write(STDERR, b"\nstopping after the step at work; once more stops at once, and loses the step\n")

    def _stop(self) -> None:
        signum = self._received or signal.SIGTERM
        raise Interrupted(f"stopped; to go on: python train.py ckpt_path={self.run_dir}", signum)
