"""What DIC is compared with, on the same images and superpixels: classical segmenters and boundary hierarchies."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh

from components.ucm import ucm_regions
from lightning_modules.dic.per_image import PerImageSegmenter, Segmentation
from runs.errors import InputError


class OneNumberSegmenter(PerImageSegmenter):
    """A segmenter whose settings are one number each.

    Args: as for `PerImageSegmenter`.
    """

    least: ClassVar[float]  # of the number

    def __init__(
        self, settings: Sequence[Sequence[float]], ois_select: Literal["per_metric", "pri"], seed: int
    ) -> None:
        super().__init__(settings, ois_select, seed)
        for (number,) in settings:
            if number < self.least:
                raise InputError(f"model.settings: {self.setting_names[0]}={number} must be {self.least} or more")


class KMeansColours(OneNumberSegmenter):
    """k-means of the pixels' RGB values; a cluster may have many regions. Setting: k.

    Args:
        n_init: starts of which the best counts.
        settings, ois_select, seed: as for `PerImageSegmenter`.

    Raises:
        InputError: as for `OneNumberSegmenter`; in `segment` more clusters than pixels.
    """

    setting_names: ClassVar[tuple[str, ...]] = ("k",)
    least = 2

    def __init__(
        self, n_init: int, settings: list[list[int]], ois_select: Literal["per_metric", "pri"], seed: int
    ) -> None:
        super().__init__(settings, ois_select, seed)
        if n_init < 1:
            raise InputError(f"model.n_init={n_init} must be 1 start or more")
        self.n_init = n_init

    def recipe(self) -> dict[str, Any]:
        return {"n_init": self.n_init}

    def segment(self, sample: Mapping[str, Any], setting: Sequence[float]) -> Segmentation:
        from sklearn.cluster import KMeans

        pixels, k = _rgb(sample), int(setting[0])
        if k > (most := pixels.shape[0] * pixels.shape[1]):
            raise InputError(f"model.settings: k={k} must be at most {most}, the pixels of {sample['name']}")
        # Without a random_state scikit-learn draws from NumPy's global stream, which is seeded for each label map.
        clusters = KMeans(k, n_init=self.n_init).fit_predict(pixels.reshape(-1, 3).astype(np.float64))
        return _segmentation(clusters.reshape(pixels.shape[:2]))


class FelzenszwalbRegions(OneNumberSegmenter):
    """Felzenszwalb and Huttenlocher 2004, FH of the paper's Table 1. Setting: scale.

    Args:
        sigma: of the smoothing before, pixels.
        min_size: of a region, pixels.
        settings, ois_select, seed: as for `PerImageSegmenter`.
    """

    setting_names: ClassVar[tuple[str, ...]] = ("scale",)
    least = 0

    def __init__(
        self,
        sigma: float,
        min_size: int,
        settings: list[list[float]],
        ois_select: Literal["per_metric", "pri"],
        seed: int,
    ) -> None:
        super().__init__(settings, ois_select, seed)
        if sigma < 0 or min_size < 1:
            raise InputError(f"model.sigma={sigma} must be 0 or more and model.min_size={min_size} 1 or more")
        self.sigma, self.min_size = sigma, min_size

    def recipe(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "min_size": self.min_size}

    def segment(self, sample: Mapping[str, Any], setting: Sequence[float]) -> Segmentation:
        from skimage.segmentation import felzenszwalb

        return _segmentation(felzenszwalb(_rgb(sample), setting[0], self.sigma, self.min_size))


class SLICRegions(OneNumberSegmenter):
    """SLIC superpixels (Achanta et al. 2012), so few that they are segments. Setting: their number.

    Args:
        compactness: weight of place against colour.
        settings, ois_select, seed: as for `PerImageSegmenter`.
    """

    setting_names: ClassVar[tuple[str, ...]] = ("segments",)
    least = 2

    def __init__(
        self, compactness: float, settings: list[list[int]], ois_select: Literal["per_metric", "pri"], seed: int
    ) -> None:
        super().__init__(settings, ois_select, seed)
        if compactness <= 0:
            raise InputError(f"model.compactness={compactness} must be above 0")
        self.compactness = compactness

    def recipe(self) -> dict[str, Any]:
        return {"compactness": self.compactness}

    def segment(self, sample: Mapping[str, Any], setting: Sequence[float]) -> Segmentation:
        from skimage.segmentation import slic

        return _segmentation(slic(_rgb(sample), int(setting[0]), self.compactness, start_label=0))


class NormalizedCut(OneNumberSegmenter):
    """Normalised cuts (Shi and Malik 2000) of the graph of neighbouring guide superpixels. Setting: threshold.

    Two superpixels are as similar as exp(-|difference of mean RGB|^2 / sigma). A part is cut again while the
    cost of its best cut stays below the threshold.

    Args:
        sigma: of the similarity, squared grey levels.
        num_cuts: places that are tried for each cut.
        settings, ois_select, seed: as for `PerImageSegmenter`.
    """

    setting_names: ClassVar[tuple[str, ...]] = ("threshold",)
    least = 0

    def __init__(
        self,
        sigma: float,
        num_cuts: int,
        settings: list[list[float]],
        ois_select: Literal["per_metric", "pri"],
        seed: int,
    ) -> None:
        super().__init__(settings, ois_select, seed)
        if sigma <= 0 or num_cuts < 1:
            raise InputError(f"model.sigma={sigma} must be above 0 and model.num_cuts={num_cuts} 1 or more")
        self.sigma, self.num_cuts = sigma, num_cuts

    def recipe(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "num_cuts": self.num_cuts}

    def segment(self, sample: Mapping[str, Any], setting: Sequence[float]) -> Segmentation:
        import networkx
        from skimage.graph import rag_mean_color

        guide = sample["guide"].cpu().numpy()
        if not guide.any():  # scikit-image makes no graph of one superpixel
            return Segmentation(sample["guide"])
        graph = rag_mean_color(_rgb(sample), guide, mode="similarity", sigma=self.sigma)
        weights = networkx.to_numpy_array(graph, nodelist=range(int(guide.max()) + 1))
        np.fill_diagonal(weights, 1.0)  # a superpixel is like itself
        return _segmentation(normalized_cuts(weights, setting[0], self.num_cuts)[guide])


def normalized_cuts(weights: NDArray[np.float64], threshold: float, num_cuts: int) -> NDArray[np.int64]:
    """Cuts a graph in two, and its parts again, while a cut's cost stays below the threshold (Shi and Malik 2000, 3).

    scikit-image's ``cut_normalized`` does the same with a sparse solver for 100 eigenvectors, which fails on some
    photographs (ARPACK error 3); one eigenvector of a dense matrix is all that a cut needs.

    Args:
        weights: W (n, n), symmetric, with a diagonal above 0.
        threshold: of Ncut(A, B) = cut(A, B) / assoc(A, V) + cut(A, B) / assoc(B, V), 0..2.
        num_cuts: evenly spaced places on the eigenvector that are tried for each cut.

    Returns:
        The part of each node, (n,), from 0.
    """
    parts, labels, found = [np.arange(len(weights))], np.empty(len(weights), np.int64), 0
    while parts:
        part = parts.pop()
        side, cost = _best_cut(weights[np.ix_(part, part)], num_cuts)
        if cost < threshold:
            parts += [part[side], part[~side]]
        else:
            labels[part], found = found, found + 1
    return labels


def _best_cut(W: NDArray[np.float64], num_cuts: int) -> tuple[NDArray[np.bool_], float]:
    """One side of the best cut along the second eigenvector of (D - W) y = lambda D y, and its cost."""
    d = W.sum(axis=1)
    if len(W) < 2:
        return np.ones(len(W), dtype=bool), np.inf
    root = np.sqrt(d)
    normalised = np.eye(len(W)) - W / np.outer(root, root)
    y = eigh(normalised, subset_by_index=[1, 1])[1][:, 0] / root
    y *= np.sign(y[np.abs(y).argmax()])  # an eigenvector has no sign of its own
    sides = y > np.linspace(y.min(), y.max(), num_cuts, endpoint=False)[:, None]  # (cuts, n)
    within, whole = sides @ d, d.sum()
    cut = within - np.einsum("cn,cn->c", sides @ W, sides)
    with np.errstate(divide="ignore", invalid="ignore"):
        costs = np.nan_to_num(cut / within + cut / (whole - within), nan=np.inf)
    best = int(costs.argmin())
    return sides[best], float(costs[best])


class GuideRegions(PerImageSegmenter):
    """The guide superpixels as they are: what DIC starts from. One setting without numbers.

    Args:
        settings, ois_select, seed: as for `PerImageSegmenter`.
    """

    setting_names: ClassVar[tuple[str, ...]] = ()

    def setting_name(self, setting: Sequence[float]) -> str:
        return "guide"

    def recipe(self) -> dict[str, Any]:
        return {}

    def segment(self, sample: Mapping[str, Any], setting: Sequence[float]) -> Segmentation:
        return Segmentation(sample["guide"])


class BoundaryHierarchy(OneNumberSegmenter):
    """gPb-owt-ucm (Arbelaez et al. 2011) from the ucm2 files beside the photographs. Setting: threshold.

    The files are for whole photographs, so the label maps are, whatever ``data.scale`` is.

    Args:
        settings, ois_select, seed: as for `PerImageSegmenter`.
    """

    setting_names: ClassVar[tuple[str, ...]] = ("threshold",)
    least = 0
    reads_ucm2 = True

    def recipe(self) -> dict[str, Any]:
        return {}

    def segment(self, sample: Mapping[str, Any], setting: Sequence[float]) -> Segmentation:
        return _segmentation(ucm_regions(sample["ucm2"].cpu().numpy(), setting[0]))


def _rgb(sample: Mapping[str, Any]) -> NDArray[np.uint8]:
    """(h, w, 3)."""
    return sample["image"].permute(1, 2, 0).cpu().numpy()


def _segmentation(labels: NDArray[np.integer]) -> Segmentation:
    return Segmentation(torch.from_numpy(labels.astype(np.int64)))
