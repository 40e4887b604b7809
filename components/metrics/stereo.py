"""Scores of disparity maps (k-PE, completion) and of digital surface models."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def disparity_error_counts(
    dense: Tensor,
    refined: Tensor,
    consistent: Tensor,
    valid: Tensor,
    truth: Tensor | None,
    thresholds: Sequence[int],
) -> Tensor:
    """What is counted for the scores of one pair; counts of several pairs add up.

    Args:
        dense: a disparity for every pixel, (H, W).
        refined: what counts where ``consistent``, (H, W).
        consistent: bool (H, W), passed the left-right check.
        valid: bool (H, W), has a grey value.
        truth: true disparities (H, W), NaN where unknown; None without truth.
        thresholds: k of the k-PE.

    Returns:
        (4 + 2 * len(thresholds),) int64: valid pixels, those of them that failed the check, pixels with
        truth, consistent ones among them, the wrong ones of each k, the wrong consistent ones of each k.
    """
    counts = [valid.sum(), (valid & ~consistent).sum()]
    if truth is None:
        return torch.stack([*counts, *[torch.zeros_like(counts[0])] * (2 + 2 * len(thresholds))])
    known = truth.isfinite()
    both = known & consistent
    # Where truth is NaN the comparison is false.
    wrong = [(known & ((dense - truth).abs() >= k)).sum() for k in thresholds]
    wrong_consistent = [(both & ((refined - truth).abs() >= k)).sum() for k in thresholds]
    return torch.stack([*counts, known.sum(), both.sum(), *wrong, *wrong_consistent])


def disparity_scores(counts: Tensor, thresholds: Sequence[int]) -> dict[str, Tensor]:
    """The scores of `DisparityErrors` from summed counts, 0-100."""
    valid, removed, known, both = counts[:4].double()
    wrong, wrong_consistent = counts[4:].double().chunk(2)
    scores = {"inconsistent": 100 * removed / valid}
    if known > 0:
        for k, of_all, of_consistent in zip(thresholds, wrong, wrong_consistent, strict=True):
            scores[f"{k}pe_all"] = 100 * of_all / known
            scores[f"{k}pe_cons"] = 100 * of_consistent / both
        scores["completion"] = 100 * both / known
    return scores


class DisparityErrors(Metric):
    """Share of wrong disparities: on every pixel with truth, and on those that passed a left-right check.

    All in percent:

    - ``<k>pe_all``: pixels with |D - D_true| >= k among those with truth, on the dense map (Eq. 4, whose
      print lacks the counting);
    - ``<k>pe_cons``: the same among consistent pixels with truth, on the map with holes;
    - ``completion``: consistent pixels among those with truth;
    - ``inconsistent``: pixels that failed the check among all that have a grey value.

    An error on consistent pixels says nothing without its completion. The thresholds are pixels of the
    judged maps: at half size, 2 is 4 pixels of the full one. Without any truth there is ``inconsistent``
    alone.

    Args:
        thresholds: k.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    counts: Tensor

    def __init__(self, thresholds: Sequence[int]) -> None:
        super().__init__()
        self.thresholds = list(thresholds)
        self.add_state("counts", torch.zeros(4 + 2 * len(self.thresholds), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, dense: Tensor, refined: Tensor, consistent: Tensor, valid: Tensor, truth: Tensor | None) -> None:
        """Counts one pair; see `disparity_error_counts`."""
        self.counts += disparity_error_counts(dense, refined, consistent, valid, truth, self.thresholds)

    def compute(self) -> dict[str, Tensor]:
        """The scores by name; NaN where nothing could be judged."""
        return disparity_scores(self.counts, self.thresholds)


def surface_scores(height: Tensor, true_height: Tensor, tolerance: float) -> dict[str, float]:
    """Scores of a digital surface model against a LiDAR one on the same raster (Bosch et al. 2017; Tables 1, 2).

    A cell is right where both have a height and differ by ``tolerance`` at most. A wrong height counts
    twice: as a false one and as a true one that was not found.

    Args:
        height: metres, (H, W), NaN without a height.
        true_height: the same of the truth.
        tolerance: metres; paper: 1.

    Returns:
        ``recall`` (completeness), ``precision`` (correctness), ``jaccard`` and ``f``, 0..1; NaN where a
        raster is empty.

    Raises:
        ValueError: rasters of different shapes.
    """
    if height.shape != true_height.shape:
        raise ValueError(f"rasters of {tuple(height.shape)} and {tuple(true_height.shape)} cells are not aligned")
    given, known = height.isfinite().sum().double(), true_height.isfinite().sum().double()
    right = ((height - true_height).abs() <= tolerance).sum().double()
    recall, precision = right / known, right / given
    return {
        "recall": float(recall),
        "precision": float(precision),
        "jaccard": float(right / (given + known - right)),
        "f": float(2 * right / (given + known)),
    }
