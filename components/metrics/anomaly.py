"""Scores of anomaly detection: of whole images, and of maps by pixel and by region. All in percent."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities.data import dim_zero_cat

VOID = 255  # a pixel of unknown truth
FPR_LIMIT = 0.3  # of AUPRO, as the papers take it
_EIGHT = np.ones((3, 3), dtype=int)


class ImageAnomalyScores(Metric):
    """AUROC and average precision of image scores, exact, beside chance: 50 and the share of defective images.

    Where the set has one class only both are NaN, with a warning.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("scores", "labels"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Takes raw scores (B,), higher where more anomalous, and labels (B,) of 0 and 1."""
        self.scores.append(scores.detach().double())
        self.labels.append(labels.long())

    def compute(self) -> dict[str, Tensor]:
        """``auroc`` and ``ap``, 0-100, each with its ``floor_``."""
        scores, labels = self.pooled()
        prevalence = 100 * labels.double().mean()
        floors = {"floor_auroc": torch.full_like(prevalence, 50.0), "floor_ap": prevalence}
        if one_class(labels, "images"):
            nan = torch.full_like(prevalence, torch.nan)
            return {"auroc": nan, "ap": nan, **floors}
        # Ranks: torchmetrics takes values beyond 0..1 for logits, batch by batch, and a sigmoid may saturate.
        ranks = scores.unique(return_inverse=True)[1].double() / len(scores)
        return {
            "auroc": 100 * binary_auroc(ranks, labels),
            "ap": 100 * binary_average_precision(ranks, labels),
            **floors,
        }

    def pooled(self) -> tuple[Tensor, Tensor]:
        """All scores and labels of this process."""
        return dim_zero_cat(self.scores), dim_zero_cat(self.labels)

    def gathered(self) -> tuple[Tensor, Tensor]:
        """All scores and labels of all processes."""
        with self.sync_context():
            return self.pooled()


class AnomalyMapScores(Metric):
    """Pixel AUROC, pixel average precision and AUPRO of anomaly maps, exact, beside chance.

    All pixels of the set are pooled. Pixels of value 255 in a mask count for nothing. Nothing is
    binned: one sort of all pixels, on the CPU. Maps have one size.

    AUPRO: regions are 8-connected parts of the masks; PRO(t) is the mean over all regions of the share
    that lies at or above t, FPR(t) the share of all normal pixels of the set; the area under PRO(FPR) from 0 to 0.3,
    divided by 0.3. Chance is PRO = FPR: 15.

    Where no pixel is known to be anomalous they are NaN, with a warning; where there are besides pixels of unknown
    truth, which are defects that nobody marked, there are no scores.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    maps: list[Tensor]
    masks: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("maps", "masks"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Takes maps (B, H, W), higher where more anomalous, and masks (B, H, W) of 0, 1 and 255."""
        self.maps.append(maps.detach())
        self.masks.append(masks.to(torch.uint8))

    def compute(self) -> dict[str, Tensor]:
        """``pixel_auroc``, ``pixel_ap`` and ``aupro``, 0-100, each with its ``floor_``; or nothing."""
        maps, masks = (values.cpu().numpy() for values in self.pooled())
        known = masks != VOID
        anomalous = masks[known] == 1
        if not anomalous.any() and not known.all():
            return {}
        prevalence = 100 * float(anomalous.mean()) if len(anomalous) else float("nan")
        found = {"pixel_auroc": np.nan, "pixel_ap": np.nan, "aupro": np.nan}
        if not one_class(torch.from_numpy(anomalous), "pixels"):
            found = map_scores(maps[known], anomalous, region_weights(masks)[known])
        floors = {
            "floor_pixel_auroc": 50.0,
            "floor_pixel_ap": prevalence,
            "floor_aupro": 100 * FPR_LIMIT / 2,
        }
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in {**found, **floors}.items()}

    def pooled(self) -> tuple[Tensor, Tensor]:
        """All maps and masks of this process."""
        return dim_zero_cat(self.maps), dim_zero_cat(self.masks)

    def gathered(self) -> tuple[Tensor, Tensor]:
        """All maps and masks of all processes."""
        with self.sync_context():
            return self.pooled()


def one_class(labels: Tensor, things: str) -> bool:
    """Whether labels are all 0 or all 1; warns of it."""
    if len(labels) and 0 < int(labels.sum()) < len(labels):
        return False
    warnings.warn(
        f"the judged {things} are all {'defective' if len(labels) and bool(labels.all()) else 'normal'}: AUROC, AP and "
        "AUPRO need both kinds and are nan",
        stacklevel=2,
    )
    return True


def region_weights(masks: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What each anomalous pixel adds to PRO: 1 / (pixels of its region * number of regions); 0 elsewhere.

    Args:
        masks: (N, H, W) of 0, 1 and 255.
    """
    weights = np.zeros(masks.shape)
    regions = 0
    for mask, weight in zip(masks, weights, strict=True):
        labels, count = ndimage.label(mask == 1, structure=_EIGHT)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        weight[:] = np.where(labels > 0, 1 / sizes.clip(min=1)[labels], 0)
        regions += count
    return weights / max(regions, 1)


def map_scores(
    scores: NDArray[np.float32],
    anomalous: NDArray[np.bool_],
    weights: NDArray[np.float64],
    fpr_limit: float = FPR_LIMIT,
) -> dict[str, float]:
    """Pixel AUROC, pixel AP and AUPRO of pooled pixels, 0-100, exact.

    Args:
        scores: (n,).
        anomalous: (n,); both kinds occur.
        weights: (n,), see `region_weights`.
        fpr_limit: end of AUPRO's integral.
    """
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of each value: equal scores come together
    true = anomalous[order].cumsum()[last]
    seen = last + 1
    pro = np.concatenate([[0.0], weights[order].cumsum()[last]])
    fpr = np.concatenate([[0.0], (seen - true) / (~anomalous).sum()])
    tpr = np.concatenate([[0.0], true / anomalous.sum()])
    precision = true / seen
    return {
        "pixel_auroc": 100 * float(np.trapezoid(tpr, fpr)),
        "pixel_ap": 100 * float((np.diff(tpr) * precision).sum()),
        "aupro": 100 * area_to(fpr, pro, fpr_limit) / fpr_limit,
    }


def area_to(x: NDArray[np.float64], y: NDArray[np.float64], end: float) -> float:
    """Area under a curve of ascending ``x`` from 0 to ``end``, linear in between."""
    inside = x <= end
    x_cut, y_cut = np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))
    return float(np.trapezoid(y_cut, x_cut))


def best_f1_threshold(scores: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor]:
    """The threshold above which calling things anomalous has the best F1, midway to the next lower score.

    Args:
        scores: (n,).
        anomalous: (n,) of 0 and 1, both of which occur.

    Returns:
        The threshold and its F1, 0-1, both scalars.
    """
    ordered, order = scores.double().sort(descending=True)
    true = anomalous[order].double().cumsum(0)
    f1 = 2 * true / (torch.arange(1, len(ordered) + 1, device=ordered.device) + true[-1])
    ends = torch.cat([ordered[1:] < ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])
    best = int(torch.where(ends, f1, -1.0).argmax())
    below = ordered[best + 1] if best + 1 < len(ordered) else ordered[best] - 1
    return (ordered[best] + below) / 2, f1[best]


def decision_scores(scores: Tensor, labels: Tensor, threshold: Tensor) -> dict[str, Tensor]:
    """What calling things above a threshold defective is worth: ``f1``, ``precision`` and ``recall``, 0-100.

    Each stands beside that of calling everything defective, its ``floor_``. Precision is 0 where nothing is called
    defective. Without any defective thing there is nothing to find, and nothing is returned.

    Args:
        scores: (n,).
        labels: (n,) of 0 and 1.
        threshold: a scalar.
    """
    defective = labels == 1
    if not defective.any():
        return {}

    def of(called: Tensor) -> tuple[Tensor, ...]:
        true = (called & defective).sum().double()
        both = called.sum() + defective.sum()
        return 200 * true / both, 100 * true / called.sum().clamp(min=1), 100 * true / defective.sum()

    names = ("f1", "precision", "recall")
    floors = (f"floor_{name}" for name in names)
    everything = torch.ones_like(defective)
    return dict(zip((*names, *floors), (*of(scores > threshold), *of(everything)), strict=True))


def with_prefix(scores: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Scores of another kind of the same things: ``seg_auroc``, ``floor_seg_auroc``."""
    return {
        f"floor_{prefix}{name.removeprefix('floor_')}" if name.startswith("floor_") else f"{prefix}{name}": value
        for name, value in scores.items()
    }
