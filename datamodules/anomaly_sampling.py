"""Which images an epoch of defect detection shows: all normal ones, or as many normal as defective ones.

Every draw is a function of the seed and the epoch. The supervised sampler remembers how often it has used
each normal image; this memory is itself a function of the epochs before, so it is computed again, in
milliseconds, instead of being kept in checkpoints.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from datamodules.sampling import EpochPosition

FLIPS = 4  # as it is, upside down, mirrored, both


class View(NamedTuple):
    """One training draw: which image, and which of its flips (0: as it is, 1: vertical, 2: horizontal, 3: both)."""

    index: int
    flip: int


def as_view(item: View | int) -> View:
    """Accepts the plain ints of torch's own samplers (``trainer.overfit_batches`` sets one)."""
    return item if isinstance(item, View) else View(int(item), 0)


class EpochPlan(Protocol):
    """What an epoch shows.

    Attributes:
        size: views of an epoch.
    """

    size: int

    def views(self, epoch: int) -> list[View]:
        """The views of an epoch in their order."""
        ...


class EveryImage:
    """Each image once, in a new order each epoch.

    Args:
        images: how many there are.
        seed: of the orders.
    """

    def __init__(self, images: int, seed: int) -> None:
        self.size, self.seed = images, seed

    def views(self, epoch: int) -> list[View]:
        """A permutation."""
        return [View(int(index), 0) for index in np.random.default_rng([self.seed, epoch]).permutation(self.size)]


class BalancedWithMemory:
    """All defective images, flipped, and as many normal ones, those that were used least (official code).

    With f the times an image was used, q = 1 - f / max f; drawn without replacement with p proportional to
    (q - median q + 1)^(4 ln n) over the n normal images; the first epoch is uniform. Where there are fewer
    normal images than places they are drawn with replacement.

    Args:
        normal: indices of the normal images.
        defective: indices of the defective ones.
        flips: whether each defective image is shown in all its four flips.
        per_batch: whether each batch of even size, not only the epoch, has as many of one kind as of the other.
        seed: of the draws.
    """

    def __init__(self, normal: list[int], defective: list[int], flips: bool, per_batch: bool, seed: int) -> None:
        self.normal, self.defective = np.array(normal), defective
        self.flips, self.per_batch, self.seed = FLIPS if flips else 1, per_batch, seed
        self.half = self.flips * len(defective)
        self.size = 2 * self.half
        self._used = np.zeros(len(normal), dtype=np.int64)  # before epoch number _epoch
        self._epoch = 0

    def views(self, epoch: int) -> list[View]:
        """Defective and normal views in random order; with ``per_batch`` they take turns."""
        drawn = self._draw(epoch)
        generator = np.random.default_rng([self.seed, epoch, 1])
        normal = [View(int(self.normal[place]), 0) for place in drawn]
        defective = [View(index, flip) for index in self.defective for flip in range(self.flips)]
        if not self.per_batch:
            both = [*defective, *normal]
            return [both[place] for place in generator.permutation(self.size)]
        orders = generator.permutation(self.half), generator.permutation(self.half)
        pairs = zip(*orders, strict=True)
        return [view for first, second in pairs for view in (defective[first], normal[second])]

    def used(self, epoch: int) -> NDArray[np.int64]:
        """How often each normal image was used before an epoch."""
        if epoch < self._epoch:
            self._used, self._epoch = np.zeros(len(self.normal), dtype=np.int64), 0
        while self._epoch < epoch:
            drawn = self._choose(self._used, self._epoch)
            self._used = self._used + np.bincount(drawn, minlength=len(self.normal))
            self._epoch += 1
        return self._used

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        return self._choose(self.used(epoch), epoch)

    def _choose(self, used: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        generator = np.random.default_rng([self.seed, epoch, 0])
        return generator.choice(
            len(used), self.half, replace=self.half > len(used), p=draw_probabilities(used, self.half)
        )


def draw_probabilities(used: NDArray[np.int64], wanted: int) -> NDArray[np.float64]:
    """Probability of each image, given how often it was used; see `BalancedWithMemory`.

    Args:
        used: f, (n,).
        wanted: how many are drawn; at least as many get a probability above 0, where there are so many.
    """
    if not used.any():
        return np.full(len(used), 1 / len(used))
    rarity = 1 - used / used.max()
    weights = (rarity - np.median(rarity) + 1) ** (4 * np.log(len(used)))
    if np.count_nonzero(weights) < min(wanted, len(used)):
        weights = weights + 1e-9 * weights.max()
    return weights / weights.sum()


class PlannedSampler(Sampler[View]):
    """Deals the views of each epoch out in batches; the last batch may be smaller.

    A global batch is the next ``world_size * batch_size`` views; rank ``r`` takes the r-th stretch of it. Where
    processes would get unlike numbers, first views of the epoch are repeated at its end.

    ``position`` is asked each time iteration begins. In a resumed epoch only the remaining views are
    yielded, while ``len()`` stays that of the whole epoch, as Lightning's loops expect.

    Args:
        plan: what an epoch shows.
        batch_size: views of one process for one batch.
        world_size: processes.
        position: tells where the run stands.
    """

    def __init__(
        self, plan: EpochPlan, batch_size: int, world_size: int, position: Callable[[], EpochPosition]
    ) -> None:
        self.plan, self.batch_size, self.position = plan, batch_size, position
        self.share = -(-plan.size // world_size)  # views of one process in an epoch

    def __len__(self) -> int:
        return self.share

    def __iter__(self) -> Iterator[View]:
        # Asked here and not in the generator, whose body would run at the first draw only.
        return self._dealt(self.position())

    def _dealt(self, at: EpochPosition) -> Iterator[View]:
        views = self.plan.views(at.epoch)
        missing = self.share * at.world_size - len(views)
        views = views + (views * (1 + missing // len(views)))[:missing]
        whole = self.batch_size * at.world_size
        for first in range(at.batches_done * whole, len(views), whole):
            batch = views[first : first + whole]
            own = len(batch) // at.world_size
            yield from batch[at.rank * own : (at.rank + 1) * own]
