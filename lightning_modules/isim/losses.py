"""The losses of ISIM, Eq. 1 to 3."""

import torch
from torch import Tensor
from torch.nn import functional as F

from components.global_mean import global_mean

IGNORED = 255  # mask value of borders that belong to no image


def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """L_cls, Eq. 1: the mean over images and classes of the multi-label soft-margin loss.

    Args:
        logits: (B, C).
        label: z, multi-hot (B, C).
    """
    return F.multilabel_soft_margin_loss(logits, label)


def has_foreground(mask: Tensor) -> Tensor:
    """r of Eq. 2: whether a mask (B, H, W) holds any foreground pixel, ignored ones left out; (B,) bool."""
    return ((mask != 0) & (mask != IGNORED)).flatten(1).any(dim=1)


def segmentation_loss(logits: Tensor, mask: Tensor, mask_empty: bool) -> tuple[Tensor, Tensor, Tensor]:
    """L_seg, Eq. 2: the cross-entropy of r_b * logits_b, mean over all pixels of the global batch that count.

    An image with an empty mask adds log(C + 1) for each pixel and no gradient, but stays in the mean.

    Args:
        logits: (B, C + 1, H, W).
        mask: y, (B, H, W) int64: 0 background, 1..C, 255 ignored.
        mask_empty: false takes r = 1 for all images (ablation).

    Returns:
        L_seg; for logging, the same mean over the images with foreground alone, 0 where there is
        none; and how many images these are.
    """
    r = has_foreground(mask)
    # Not a product: 0 times an infinite half-precision logit is no number.
    weighted = torch.where(r.view(-1, 1, 1, 1), logits, 0.0) if mask_empty else logits
    each = F.cross_entropy(weighted.float(), mask, ignore_index=IGNORED, reduction="none")
    counted = mask != IGNORED
    loss = global_mean(each.sum(), counted.sum())
    kept = counted & r.view(-1, 1, 1)
    shown = (each.detach() * kept).sum() / kept.sum().clamp(min=1)
    return loss, shown, torch.count_nonzero(r)
