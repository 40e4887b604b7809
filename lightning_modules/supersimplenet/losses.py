"""The losses of SuperSimpleNet: truncated L1 and focal on the map, focal on the score (3.5)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from components.global_mean import global_mean


class DefectLoss:
    """L = L_1t + L_foc(map) + L_foc(score), Eq. 2 to 4.

    Args:
        margin: th of Eq. 1.
        l1_reduction: ``per_class``: the mean over normal pixels plus the mean over anomalous ones (official
            code, and SimpleNet); ``all``: the mean over all pixels, as the text says, in which thin
            anomalies hardly count.
        gamma: of the focal loss.
        focal_seg: whether the map has a focal loss.
    """

    def __init__(self, margin: float, l1_reduction: Literal["per_class", "all"], gamma: float, focal_seg: bool) -> None:
        self.margin, self.l1_reduction, self.gamma, self.focal_seg = margin, l1_reduction, gamma, focal_seg

    def __call__(self, map_: Tensor, mask: Tensor, score: Tensor | None, label: Tensor) -> dict[str, Tensor]:
        """The terms by name; their sum is the loss.

        Args:
            map_: raw map M_o, (B, 1, h, w), any real value.
            mask: M, of the same shape, 0 and 1.
            score: s as a logit, (B,); None without classification head.
            label: y, (B,) of 0 and 1.
        """
        terms = {"loss_l1t": truncated_l1(map_, mask, self.margin, self.l1_reduction)}
        if self.focal_seg:
            terms["loss_focal_map"] = focal(map_, mask, self.gamma)  # Eq. 2
        if score is not None:
            terms["loss_focal_score"] = focal(score, label, self.gamma)  # Eq. 3
        return terms


def truncated_l1(map_: Tensor, mask: Tensor, margin: float, reduction: Literal["per_class", "all"]) -> Tensor:
    """Eq. 1: anomalous values below ``margin`` and normal ones above ``-margin`` cost their distance to it.

    Args:
        map_: raw values, no sigmoid.
        mask: of the same shape, 0 and 1.
        margin: th.
        reduction: see `DefectLoss`; a class without pixels costs nothing.
    """
    each = (margin + torch.where(mask > 0, -map_, map_)).clamp(min=0)
    if reduction == "all":
        return each.mean()
    anomalous = (mask > 0).to(each.dtype)
    return sum(global_mean((each * part).sum(), part.sum()) for part in (anomalous, 1 - anomalous))


def focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Mean of -(1 - p_t)^gamma log p_t over all elements, without a class weight (Lin et al. 2017).

    Args:
        logits: p is their sigmoid.
        target: of the same shape, 0 and 1.
        gamma: 0 is the cross-entropy.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")  # -log p_t
    wrong = torch.sigmoid(torch.where(target > 0, -logits, logits))  # 1 - p_t, exact where p_t is nearly 1
    return (wrong**gamma * cross_entropy).mean()
