"""Samplers whose every draw is a function of (seed, place in the run), so runs resume anywhere.

Training reads an endless stream of permutations of the data. The stream is cut into epochs of a
fixed number of batches and dealt out to the ranks; nothing is remembered between draws.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from runs.errors import InputError


class Draw(NamedTuple):
    """One training draw: which sample, and the draw's place in the stream.

    ``number`` seeds the sample's augmentation. It counts over all ranks, so a sample is augmented
    alike whichever rank draws it and however many ranks there are.
    """

    index: int
    number: int


def as_draw(item: Draw | int) -> Draw:
    """Accepts the plain ints of torch's own samplers (``trainer.overfit_batches`` sets one)."""
    return item if isinstance(item, Draw) else Draw(int(item), 0)


class EpochPosition(NamedTuple):
    """Where a process stands: epochs done, batches done in this epoch, its rank among how many."""

    epoch: int
    batches_done: int
    rank: int
    world_size: int


def trainer_position(trainer: pl.Trainer | None) -> EpochPosition:
    """Reads from a Lightning trainer where the next training batch stands.

    Lightning asks the loader for its first batch at two moments of a resumed run: worker processes
    prefetch before the loops put their restored counters in order, the main process draws after.
    ``processed`` counts the finished batches at both moments, whichever hook wrote the checkpoint.
    A checkpoint written after an epoch's last batch belongs to the next epoch.

    Without a trainer (a datamodule used alone) the position is the start of the run.
    """
    if trainer is None:
        return EpochPosition(0, 0, 0, 1)
    epochs = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress
    if not batches.is_last_batch:
        epoch, batches_done = epochs.processed, batches.current.processed
    else:
        unfinished = epochs.ready > epochs.processed
        epoch, batches_done = epochs.processed + int(unfinished), 0
    return EpochPosition(epoch, batches_done, trainer.global_rank, trainer.world_size)


def draw_generator(seed: int, number: int) -> np.random.Generator:
    """The private generator of draw ``number``: all randomness of one training sample."""
    return np.random.default_rng([seed, number])


class EpochSampler(Sampler[Draw]):
    """Endless permutations of ``range(size)``, cut into epochs of equally many whole batches.

    The stream is permutation 0, permutation 1, ... one after the other; permutation ``k`` depends
    on ``(seed, k)`` alone. A global batch is the next ``world_size * batch_size`` places of the
    stream; rank ``r`` takes its places ``r, r + world_size, ...``, so the ranks together hold what
    one process with the same global batch would hold.

    An epoch has ``batches_per_epoch`` batches whatever ``size`` is: a set smaller than that runs
    on through further permutations. Two such samplers with the same ``batches_per_epoch`` thus
    realise "an epoch runs over the longer loader and cycles the shorter" without any loader ever
    being restarted, and without a short last batch.

    ``position`` is asked each time iteration begins. In a resumed epoch only the remaining draws
    are yielded, while ``len()`` stays that of the whole epoch, as Lightning's loops expect.

    Args:
        size: number of samples.
        batch_size: draws of one process for one batch.
        batches_per_epoch: batches of one epoch, the same on every rank.
        seed: seed of the permutations, >= 0.
        position: tells where the run stands.

    Raises:
        InputError: ``size`` or ``batch_size`` is below 1.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        batches_per_epoch: int,
        seed: int,
        position: Callable[[], EpochPosition],
    ) -> None:
        if size < 1 or batch_size < 1:
            raise InputError(
                f"sampling needs at least one sample and a batch of at least one,"
                f" found {size} samples and batch size {batch_size}"
            )
        self.size = size
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.seed = seed
        self.position = position

    def __len__(self) -> int:
        return self.batches_per_epoch * self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        # Asked here and not in the generator, whose body would run at the first draw only.
        return self._draws(self.position())

    def _draws(self, at: EpochPosition) -> Iterator[Draw]:
        global_batch = self.batch_size * at.world_size
        start = at.epoch * self.batches_per_epoch
        first = (start + at.batches_done) * global_batch + at.rank
        past_last = (start + self.batches_per_epoch) * global_batch
        permutation_number, permutation = -1, np.empty(0, dtype=np.int64)
        for number in range(first, past_last, at.world_size):
            if number // self.size != permutation_number:
                permutation_number = number // self.size
                generator = np.random.default_rng([self.seed, permutation_number])
                permutation = generator.permutation(self.size)
            yield Draw(int(permutation[number % self.size]), number)


class StridedSampler(Sampler[int]):
    """Every sample exactly once over all ranks, in order: rank ``r`` takes ``r, r + W, ...``.

    For evaluation. Nothing is padded, so the ranks' shares may differ by one: code that runs on
    them must not wait for the other ranks before the end of the epoch.
    """

    def __init__(self, size: int, rank: int, world_size: int) -> None:
        self.places = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)


class EpochLoader(DataLoader):
    """A DataLoader whose sampler resumes by itself: its state only tells whether data changed.

    Having a state is how Lightning knows that a loader resumes inside an epoch.
    """

    def state_dict(self) -> dict[str, Any]:
        return {"size": len(self.dataset)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError where the resumed run would read another number of samples."""
        if state["size"] != len(self.dataset):
            raise InputError(
                f"the checkpoint was trained on {state['size']} samples but the data now hold"
                f" {len(self.dataset)}: resume with the data and the data settings of that run"
            )


def shared_batches(global_batch: int, world_size: int, name: str) -> int:
    """One process's share of a global batch.

    Raises:
        InputError: the batch is empty or cannot be shared out evenly; the message names the config key.
    """
    if global_batch < 1:
        raise InputError(f"{name}={global_batch} must be 1 or more")
    if global_batch % world_size:
        raise InputError(
            f"{name}={global_batch} cannot be shared evenly by {world_size} processes:"
            f" set {name} to a multiple of {world_size}"
        )
    return global_batch // world_size


def training_loader(
    dataset: Dataset,
    sampler: EpochSampler,
    *,
    num_workers: int,
    pin_memory: bool,
) -> EpochLoader:
    """A training loader that keeps its worker processes from epoch to epoch."""
    return EpochLoader(
        dataset,
        batch_size=sampler.batch_size,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )
