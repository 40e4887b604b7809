"""Renews the maps of consistent disparities that SAda-Net trains on (paper 4.2, Fig. 6)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure

from callbacks.iterative_step import IterativeStep, Schedule
from components.metrics.stereo import disparity_error_counts, disparity_scores
from runs.errors import InputError

AUTO = 0  # the sign of pairs whose geometry is to be found
JUDGED = "2pe_all"  # the error that is set beside the inconsistent points


class Estimate(Protocol):
    """Maps (H, W): disparities of every pixel, and which passed the left-right check."""

    disparity: torch.Tensor
    refined: torch.Tensor
    consistent: torch.Tensor


class MatchesPairs(Protocol):
    """The module."""

    device: torch.device

    def match(self, pair: Mapping[str, Any], which: str, sign: int) -> Estimate: ...
    def count_consistent(self, pair: Mapping[str, Any], sign: int) -> int: ...
    def keep_best(self) -> None: ...
    def use_sign(self, sign: int) -> None: ...
    def sign_of(self, pair: Mapping[str, Any]) -> int: ...


class HasTrainingPairs(Protocol):
    """The datamodule."""

    def training_pairs(self) -> Sequence[Mapping[str, Any]]:
        """Whole pairs in the order of their index: ``index``, ``name``, ``sign`` and what `match` takes."""
        ...


class ConsistencyMapUpdate(IterativeStep):
    """Matches all training pairs and keeps what passes the check, as field ``disparity`` (H, W) float16.

    NaN where a pixel was removed. The first round, before any step, matches with the cosine of the
    untrained features; the others with the network. A round whose maps are not accepted leaves the
    ones before. Whatever is accepted, the module keeps the weights of the round with the fewest
    inconsistent points.

    Logs ``inconsistent_points`` (N_inc: removed pixels of all pairs), their share ``inconsistent``
    (percent), ``accepted``, the ``sign`` of the geometry and, where there is truth, its errors (see
    `DisparityErrors`; nothing trains on them) and ``correlation``: of N_inc with the 2-PE over the rounds
    with the trained network (Fig. 9).

    Args:
        schedule: as for every step; the first round must be before any training.
        seed: of the run.
        folder: of the maps.
        accept: ``improve`` (maps of fewer inconsistent points than ever; official code), ``always``
            (paper 4.2) or ``never`` (the first maps stay).
        patience: rounds without fewer inconsistent points after which training ends.
        thresholds: k of the k-PE that is logged.

    Raises:
        InputError: a first round that comes too late, or that leaves no pixel to train on.
    """

    after_last_epoch = True

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        folder: str,
        accept: Literal["improve", "always", "never"],
        patience: int,
        thresholds: list[int],
    ) -> None:
        super().__init__(schedule, seed, folder)
        if schedule.rounds_due(0) == 0:
            raise InputError(
                "callbacks.consistency_map_update.schedule: the first maps must be there before any training: "
                "set first_at=0"
            )
        if patience < 1:
            raise InputError(f"callbacks.consistency_map_update.patience={patience} must be 1 round or more")
        self.accept, self.patience, self.thresholds = accept, patience, thresholds
        self._shown: tuple[str, np.ndarray, np.ndarray] | None = None

    def settings(self) -> dict[str, Any]:
        return {"accept": self.accept}

    def run(self, trainer: Any, module: MatchesPairs, datamodule: HasTrainingPairs) -> dict[str, float]:
        pairs = datamodule.training_pairs()
        first = not self.history
        if first:
            module.use_sign(self._find_sign(module, pairs))
        which = "untrained" if first else "current"
        mine = self.shard(len(pairs))
        own = []
        with self.new_generation() as generation:
            for place in self.progress(mine, len(mine), "matching"):
                pair = pairs[place]
                estimate = module.match(pair, which, module.sign_of(pair))
                valid, truth = (pair[key].to(module.device) if key in pair else None for key in ("valid", "truth"))
                counts = disparity_error_counts(
                    estimate.disparity, estimate.refined, estimate.consistent, valid, truth, self.thresholds
                )
                own.append(counts.tolist())
                sparse = torch.where(estimate.consistent, estimate.disparity, torch.nan)
                generation.put("disparity", int(pair["index"]), sparse.half())
                if place == 0:
                    self._shown = (pair["name"], estimate.disparity.cpu().numpy(), sparse.cpu().numpy())
            sign = module.sign_of(pairs[0])
            generation.note(matcher=which, sign=sign)
            counts = torch.tensor(self.gather(own)).sum(dim=0)
            metrics = {name: float(value) for name, value in disparity_scores(counts, self.thresholds).items()}
            metrics["inconsistent_points"] = float(counts[1])
            if first and counts[0] == counts[1]:
                raise InputError("initial check left 0 pixels; check rectification, sign, range")
            best = min((record["inconsistent_points"] for record in self.history), default=np.inf)
            better = metrics["inconsistent_points"] < best
            accepted = first or self.accept == "always" or (self.accept == "improve" and better)
            if not accepted:
                generation.discard()
        if better and not first:
            module.keep_best()
        return {**metrics, "accepted": accepted, "sign": sign, **self._correlation(metrics)}

    def should_stop(self, history: Sequence[Mapping[str, Any]]) -> bool:
        points = [record["inconsistent_points"] for record in history]
        return len(points) - 1 - int(np.argmin(points)) >= self.patience

    def figures(self) -> dict[str, Figure]:
        """The maps of the first pair, and inconsistent points beside the error over the rounds (Fig. 6, 9)."""
        if self._shown is None:
            return {}
        name, dense, sparse = self._shown
        maps = Figure(figsize=(9.0, 3.2), layout="constrained")
        for ax, title, map_ in zip(maps.subplots(1, 2), ("disparity", "consistent"), (dense, sparse), strict=True):
            ax.imshow(np.ma.masked_invalid(map_), cmap="turbo", vmin=dense.min(), vmax=dense.max())
            ax.set_title(f"{name}, round {len(self.history)}: {title}", fontsize=8)
            ax.set_facecolor("black")
            ax.set(xticks=[], yticks=[])
        curves = Figure(figsize=(6.0, 3.4), layout="constrained")
        ax = curves.subplots()
        steps = [record["step"] for record in self.history]
        ax.plot(steps, [record["inconsistent_points"] for record in self.history], "b.-")
        ax.set_xlabel("steps")
        ax.set_ylabel("inconsistent points", color="b")
        if JUDGED in self.history[-1]:
            right = ax.twinx()
            right.plot(steps, [record[JUDGED] for record in self.history], "r.-")
            right.set_ylabel("2-PE, all pixels (%)", color="r")
        return {"maps": maps, "convergence": curves}

    def _find_sign(self, module: MatchesPairs, pairs: Sequence[Mapping[str, Any]]) -> int:
        """The sign that the data name; for ``auto`` the one that leaves more consistent pixels."""
        named = int(pairs[0]["sign"])
        if named != AUTO:
            return named
        own = [[module.count_consistent(pairs[place], sign) for sign in (-1, 1)] for place in self.shard(len(pairs))]
        minus, plus = np.sum(self.gather(own), axis=0)
        return -1 if minus > plus else 1

    def _correlation(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Pearson's, over the rounds with the trained network; from the third of them on."""
        rounds = [*self.history[1:], metrics] if self.history else []
        if len(rounds) < 3 or JUDGED not in metrics:
            return {}
        points, errors = ([record[name] for record in rounds] for name in ("inconsistent_points", JUDGED))
        if np.ptp(points) == 0 or np.ptp(errors) == 0:
            return {}
        return {"correlation": float(np.corrcoef(points, errors)[0, 1])}
