"""The region benchmark of Berkeley's segmentation data: PRI, VoI, GCE, BDE and covering of a label map.

A segmentation A is compared with each human one B of the same image through the contingency table of the
two: ``n_uv`` pixels lie in region u of A and in region v of B. Only which pixels share a label counts, never
the label's number; 0 is a label like any other.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torchmetrics import Metric

from runs.errors import InputError

SCORES = ("pri", "voi", "gce", "bde", "sc")
HIGHER_IS_BETTER = {"pri": True, "voi": False, "gce": False, "bde": False, "sc": True}
_CELLS_FOR_EACH_PIXEL = 16  # of a table that is counted in one array; a larger one is sorted instead

LabelMap = NDArray[np.integer] | Tensor


@dataclass(frozen=True)
class RegionScores:
    """How one segmentation agrees with all human ones of its image.

    Attributes:
        pri: probabilistic Rand index, 0..1, mean over the human maps; higher is better.
        voi: variation of information, bits, mean; lower is better.
        gce: global consistency error, 0..1, mean; lower is better. 0 for one region and for single pixels.
        bde: boundary displacement error, pixels, mean; lower is better.
        covered: best IoU of each human region times its area, summed over all human regions.
        area: pixels of all human regions. A covering over several images is a sum of ``covered`` over a sum of
            ``area``, not a mean of coverings.
    """

    pri: float
    voi: float
    gce: float
    bde: float
    covered: float
    area: float

    @property
    def sc(self) -> float:
        """Segmentation covering of this image alone, 0..1; higher is better."""
        return self.covered / self.area

    def as_dict(self) -> dict[str, float]:
        """The five scores by name."""
        values = asdict(self) | {"sc": self.sc}
        return {name: values[name] for name in SCORES}


class HumanMaps:
    """The human segmentations of one image, prepared to judge any number of machine segmentations.

    Args:
        human: label maps (H, W) of one size; arrays or tensors on any device.

    Raises:
        InputError: there is none, one has not two axes, not whole numbers or fewer than two pixels, or the
            sizes differ.
    """

    def __init__(self, human: Sequence[LabelMap]) -> None:
        if not len(human):
            raise InputError("a segmentation is judged by human maps: give at least one")
        maps = [_as_labels(labels, f"human map {place}") for place, labels in enumerate(human)]
        self.shape = maps[0].shape
        for place, labels in enumerate(maps):
            if labels.shape != self.shape:
                raise InputError(
                    f"human map {place} has the size {_in_words(labels.shape)} and the first one "
                    f"{_in_words(self.shape)}: the maps of an image must have one size"
                )
        if maps[0].size < 2:
            raise InputError("maps of one pixel have no pairs of pixels to judge: give larger ones")
        self.maps = [_from_zero(labels) for labels in maps]
        self._pixels = float(maps[0].size)  # N
        self.regions = np.array([int(labels.max()) + 1 for labels in self.maps])
        # Regions of all maps in one row, each map's after those of the map before.
        self.first_region = np.cumsum(self.regions) - self.regions
        # (maps, pixels)
        self._region = np.stack([m.ravel() + first for m, first in zip(self.maps, self.first_region, strict=True)])
        self.sizes = np.bincount(self._region.ravel()).astype(np.float64)  # n_v

    @cached_property
    def _boundaries(self) -> list[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
        """Boundary and distance to it, (H, W) each, of every map with two regions or more."""
        boundaries = [boundary(labels) for labels in self.maps]
        return [(b, distance_transform_edt(~b)) for b in boundaries if b.any()]

    def score(self, predicted: LabelMap) -> RegionScores:
        """All five scores of a machine segmentation (H, W); see `RegionScores`.

        Raises:
            InputError: it has another size than the human maps, or does not hold whole numbers.
        """
        labels = self._fitting(predicted)
        table = self._contingency(labels)
        return RegionScores(
            pri=float(self._rand_index(table).mean()),
            voi=float(self._variation_of_information(table).mean()),
            gce=float(self._consistency_error(table).mean()),
            bde=self._boundary_displacement(labels),
            covered=self._covered(table),
            area=float(self._region.size),
        )

    def pri(self, predicted: LabelMap) -> float:
        """Probabilistic Rand index alone."""
        return float(self._rand_index(self._contingency(self._fitting(predicted))).mean())

    def voi(self, predicted: LabelMap) -> float:
        """Variation of information alone, bits."""
        return float(self._variation_of_information(self._contingency(self._fitting(predicted))).mean())

    def gce(self, predicted: LabelMap) -> float:
        """Global consistency error alone."""
        return float(self._consistency_error(self._contingency(self._fitting(predicted))).mean())

    def bde(self, predicted: LabelMap) -> float:
        """Boundary displacement error alone, pixels."""
        return self._boundary_displacement(self._fitting(predicted))

    def covered(self, predicted: LabelMap) -> tuple[float, float]:
        """Covered area and area of the human regions, pixels."""
        return self._covered(self._contingency(self._fitting(predicted))), float(self._region.size)

    def _fitting(self, predicted: LabelMap) -> NDArray[np.int64]:
        labels = _as_labels(predicted, "the segmentation")
        if labels.shape != self.shape:
            raise InputError(
                f"the segmentation has the size {_in_words(labels.shape)} and the human maps "
                f"{_in_words(self.shape)}: enlarge it to theirs by nearest pixels"
            )
        return _from_zero(labels)

    def _contingency(self, labels: NDArray[np.int64]) -> "_Table":
        """All non-empty cells of the tables with every human map, those of a human region next to each other."""
        regions = int(labels.max()) + 1
        cells = (self._region * regions + labels.ravel()).ravel()
        if regions * len(self.sizes) <= _CELLS_FOR_EACH_PIXEL * cells.size:
            counts = np.bincount(cells, minlength=regions * len(self.sizes))
            cell = np.flatnonzero(counts)
            n = counts[cell]
        else:
            cell, n = np.unique(cells, return_counts=True)
        v, u = np.divmod(cell, regions)
        first_of_v = np.searchsorted(v, np.arange(len(self.sizes)))
        return _Table(
            n=n.astype(np.float64),
            n_u=np.bincount(labels.ravel()).astype(np.float64),
            u=u,
            v=v,
            first_of_v=first_of_v,
            first_of_map=first_of_v[self.first_region],
        )

    def _rand_index(self, table: "_Table") -> NDArray[np.float64]:
        """1 - [(sum n_u^2 + sum n_v^2) / 2 - sum n_uv^2] / (N (N - 1) / 2) with each map; all sums are exact."""
        together = np.add.reduceat(table.n**2, table.first_of_map)
        human = np.add.reduceat(self.sizes**2, self.first_region)
        disagreeing = ((table.n_u**2).sum() + human) / 2 - together
        return 1 - disagreeing / (self._pixels * (self._pixels - 1) / 2)

    def _variation_of_information(self, table: "_Table") -> NDArray[np.float64]:
        """H(A) + H(B) - 2 I(A, B) = 2 H(A, B) - H(A) - H(B) in bits, with each map."""
        # H = log2 N - sum n log2 n / N, so that the three logarithms of N cancel.
        joint = np.add.reduceat(table.n * np.log2(table.n), table.first_of_map)
        human = np.add.reduceat(self.sizes * np.log2(self.sizes), self.first_region)
        machine = (table.n_u * np.log2(table.n_u)).sum()
        return np.maximum((machine + human - 2 * joint) / self._pixels, 0)  # equal maps: no -1e-16

    def _consistency_error(self, table: "_Table") -> NDArray[np.float64]:
        """min(sum n_uv (n_u - n_uv) / n_u, sum n_uv (n_v - n_uv) / n_v) / N with each map."""
        into_machine = table.n * (table.n_u[table.u] - table.n) / table.n_u[table.u]
        into_human = table.n * (self.sizes[table.v] - table.n) / self.sizes[table.v]
        errors = [np.add.reduceat(error, table.first_of_map) for error in (into_machine, into_human)]
        return np.minimum(*errors) / self._pixels

    def _covered(self, table: "_Table") -> float:
        """Sum over the human regions v of n_v max_u n_uv / (n_u + n_v - n_uv)."""
        overlap = table.n / (table.n_u[table.u] + self.sizes[table.v] - table.n)
        return float((self.sizes * np.maximum.reduceat(overlap, table.first_of_v)).sum())

    def _boundary_displacement(self, labels: NDArray[np.int64]) -> float:
        """Mean distance from A's boundary to B's and back, averaged over the maps that have a boundary.

        A map of one region has none: such a human map is left out, and the image's diagonal stands where
        nothing is left (decision). The published code takes the image's frame for the boundary of such a map.
        """
        own = boundary(labels)
        if not own.any() or not self._boundaries:
            return float(np.hypot(*self.shape))
        to_own = distance_transform_edt(~own)
        return float(np.mean([(to_human[own].mean() + to_own[b].mean()) / 2 for b, to_human in self._boundaries]))


@dataclass(frozen=True)
class _Table:
    """Non-empty cells of the contingency tables, sorted by human region v, then by machine region u.

    Attributes:
        n: n_uv of each cell.
        n_u: pixels of each machine region.
        u: machine region of each cell.
        v: human region of each cell.
        first_of_v: place of the first cell of each human region.
        first_of_map: place of the first cell of each human map.
    """

    n: NDArray[np.float64]
    n_u: NDArray[np.float64]
    u: NDArray[np.int64]
    v: NDArray[np.int64]
    first_of_v: NDArray[np.int64]
    first_of_map: NDArray[np.int64]


def region_scores(predicted: LabelMap, human: Sequence[LabelMap]) -> RegionScores:
    """All five scores of one segmentation.

    Args:
        predicted: (H, W) whole numbers.
        human: label maps of the same size.

    Raises:
        InputError: as for `HumanMaps` and its `score`.
    """
    return HumanMaps(human).score(predicted)


def region_scores_of_all(predicted: Sequence[LabelMap], human: Sequence[LabelMap]) -> list[RegionScores]:
    """All five scores of each of several segmentations of one image; see `region_scores`."""
    judges = HumanMaps(human)
    return [judges.score(labels) for labels in predicted]


def boundary(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels (H, W) where the central difference of a label map is not zero along x or y.

    At the border the difference is one-sided. A map has a boundary exactly if it has two regions.
    """
    found = np.zeros(labels.shape, dtype=bool)
    for axis, length in enumerate(labels.shape):
        place = np.arange(length)
        ahead, behind = (np.take(labels, np.clip(place + s, 0, length - 1), axis=axis) for s in (1, -1))
        found |= ahead != behind
    return found


def resize_labels(labels: LabelMap, size: tuple[int, int]) -> LabelMap:
    """A label map in another size (H, W): each pixel takes the label under its centre; labels never mix.

    Row i of the result is row floor((i + 1/2) h / H) of the map, columns alike.
    """
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(np.int64)
        for new, old in zip(size, labels.shape, strict=True)
    )
    if isinstance(labels, Tensor):
        rows, columns = (torch.from_numpy(place).to(labels.device) for place in (rows, columns))
    return labels[rows[:, None], columns]


def _as_labels(labels: LabelMap, what: str) -> NDArray[np.integer]:
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim != 2:
        raise InputError(f"{what} has {values.ndim} axes: a label map has two, rows and columns")
    if values.dtype.kind not in "iub":
        raise InputError(f"{what} holds {values.dtype} values: labels are whole numbers")
    return values


def _from_zero(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """The same regions, numbered 0..R-1 without a gap."""
    values = labels.astype(np.int64)
    least = values.min()
    if int(values.max()) - int(least) > 4 * values.size:
        return np.unique(values, return_inverse=True)[1].reshape(values.shape)
    values -= least
    there = np.bincount(values.ravel()) > 0
    return values if there.all() else (np.cumsum(there) - 1)[values]


def _in_words(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} (rows x columns)"


class _MeanOverImages(Metric, ABC):
    """A score of each image, averaged over all images of all processes."""

    full_state_update = False
    is_differentiable = False
    total: Tensor
    images: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: LabelMap, human: Sequence[LabelMap]) -> None:
        """Judges the segmentation (H, W) of one image by its human maps of the same size, whole numbers all.

        Raises:
            InputError: no human map, another size, or no whole numbers.
        """
        self.total += self._score(HumanMaps(human), predicted)
        self.images += 1

    def compute(self) -> Tensor:
        """The mean over the images; NaN without any."""
        return self.total / self.images

    @abstractmethod
    def _score(self, human: HumanMaps, predicted: LabelMap) -> float: ...


class ProbabilisticRandIndex(_MeanOverImages):
    """PRI (Unnikrishnan et al. 2007): share of pixel pairs on which A and a human map agree, 0..1."""

    higher_is_better = True

    def _score(self, human: HumanMaps, predicted: LabelMap) -> float:
        return human.pri(predicted)


class VariationOfInformation(_MeanOverImages):
    """VoI (Meila 2005) in bits: what each of two segmentations does not say about the other."""

    higher_is_better = False

    def _score(self, human: HumanMaps, predicted: LabelMap) -> float:
        return human.voi(predicted)


class GlobalConsistencyError(_MeanOverImages):
    """GCE (Martin et al. 2001), 0..1; 0 too for one region and for single pixels: never alone."""

    higher_is_better = False

    def _score(self, human: HumanMaps, predicted: LabelMap) -> float:
        return human.gce(predicted)


class BoundaryDisplacementError(_MeanOverImages):
    """BDE (Freixenet et al. 2002) in pixels: how far boundaries lie from each other, both ways."""

    higher_is_better = False

    def _score(self, human: HumanMaps, predicted: LabelMap) -> float:
        return human.bde(predicted)


class SegmentationCovering(Metric):
    """SC (Arbelaez et al. 2011), 0..1: how well regions cover the human ones, pooled over all images.

    That is the covered area of all human regions of all images over their area, not a mean over images.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    covered: Tensor
    area: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("covered", "area"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: LabelMap, human: Sequence[LabelMap]) -> None:
        """Judges the segmentation (H, W) of one image by its human maps of the same size, whole numbers all.

        Raises:
            InputError: no human map, another size, or no whole numbers.
        """
        covered, area = HumanMaps(human).covered(predicted)
        self.covered += covered
        self.area += area

    def compute(self) -> Tensor:
        """The pooled covering; NaN without any image."""
        return self.covered / self.area


class RegionBenchmark(Metric):
    """All five scores of several settings over a data set, by the benchmark's rules.

    - ``setting_<i>/<score>``: setting i on every image.
    - ``ods/<score>``: the one setting that is best over the set, by each score on its own, and
      ``ods_setting/<score>``, its position ("optimal data-set scale").
    - ``ois/<score>``: the best setting of each image, by each score on its own ("optimal image scale").
    - ``ois_by_pri/<score>``: one setting of each image, that of its best PRI, for all scores.

    SC is pooled everywhere: the best covering of each image is averaged with its area as weight. Of equally
    good settings the first counts.

    Args:
        num_settings: S.
    """

    full_state_update = False
    is_differentiable = False
    COLUMNS: ClassVar[tuple[str, ...]] = ("pri", "voi", "gce", "bde", "covered", "area")
    fixed: Tensor
    best: Tensor
    best_by_pri: Tensor
    images: Tensor

    def __init__(self, num_settings: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_settings < 1:
            raise InputError(f"a benchmark of {num_settings} settings judges nothing: give 1 or more")
        self.num_settings = num_settings
        columns = len(self.COLUMNS)
        for name, shape in (("fixed", (num_settings, columns)), ("best", (columns,)), ("best_by_pri", (columns,))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Sequence[RegionScores]) -> None:
        """Takes the scores of one image, one for each setting, in order.

        Raises:
            ValueError: not S of them.
        """
        if len(scores) != self.num_settings:
            raise ValueError(f"{len(scores)} scores of an image for {self.num_settings} settings")
        rows = torch.tensor([[getattr(s, column) for column in self.COLUMNS] for s in scores], dtype=torch.float64).to(
            self.fixed.device
        )
        self.fixed += rows
        means = _means(rows, torch.ones_like(self.images))
        chosen = {name: _best(means[name], name) for name in SCORES}
        self.best_by_pri += rows[chosen["pri"]]
        for name in SCORES:
            for place in self._columns_of(name):
                self.best[place] += rows[chosen[name], place]
        self.images += 1

    def compute(self) -> dict[str, Tensor]:
        """The scores by name, as above; NaN without any image."""
        fixed = _means(self.fixed, self.images)
        found = {}
        for name in SCORES:
            position = _best(fixed[name], name)
            found[f"ods/{name}"], found[f"ods_setting/{name}"] = fixed[name][position], position
            found |= {f"setting_{s}/{name}": fixed[name][s] for s in range(self.num_settings)}
        for rule, state in (("ois", self.best), ("ois_by_pri", self.best_by_pri)):
            found |= {f"{rule}/{name}": value[0] for name, value in _means(state[None], self.images).items()}
        return found

    def _columns_of(self, name: str) -> tuple[int, ...]:
        columns = ("covered", "area") if name == "sc" else (name,)
        return tuple(self.COLUMNS.index(column) for column in columns)


def _means(sums: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Scores (S,) of summed rows (S, columns): means over the images, the covering pooled."""
    pri, voi, gce, bde, covered, area = sums.unbind(dim=1)
    return {"pri": pri / images, "voi": voi / images, "gce": gce / images, "bde": bde / images, "sc": covered / area}


def _best(values: Tensor, name: str) -> Tensor:
    """Position of the best of (S,); the first of several."""
    ordered = values if HIGHER_IS_BETTER[name] else -values
    return (ordered == ordered.max()).to(torch.int8).argmax()
