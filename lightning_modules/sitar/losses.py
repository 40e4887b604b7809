"""The contrasts between the fast and the slow view: Eq. 2 (clips), Eq. 3 and 4 (groups)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(u: Tensor, v: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """Instance contrast of two views, Eq. 2, averaged over both directions and all items.

    The positive of u_i is v_i; its negatives are all u_k and all v_k with k != i. No item is
    compared with itself and the positive stands once in the denominator.

    Args:
        u: one view, (B, D).
        v: the other view, (B, D), row i from the same item as row i of ``u``.
        temperature: tau, dimensionless.
        valid: (B,) bool; items left out are neither anchors nor negatives. None keeps all.

    Returns:
        A float32 scalar; exactly 0, with its graph, where fewer than two items are valid.
    """
    with torch.autocast(u.device.type, enabled=False):
        B = u.shape[0]
        both = F.normalize(torch.cat([u, v]).float(), dim=1)
        similarity = both @ both.T / temperature  # (2B, 2B), log h
        positive = torch.arange(2 * B, device=u.device).roll(B)
        barred = torch.eye(2 * B, dtype=torch.bool, device=u.device)
        if valid is None:
            return F.cross_entropy(similarity.masked_fill(barred, -torch.inf), positive)
        valid = valid.repeat(2)
        # A left-out row keeps its positive: a row of nothing but -inf would turn 0 * loss into NaN.
        barred |= ~valid & (torch.arange(2 * B, device=u.device) != positive[:, None])
        each = F.cross_entropy(similarity.masked_fill(barred, -torch.inf), positive, reduction="none")
        return (each * valid).sum() / valid.sum().clamp(min=1)


def group_means(p: Tensor, pseudo_labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean representation of the clips that share a pseudo-label, Eq. 3.

    Args:
        p: representations of one view, (B, D).
        pseudo_labels: (B,) int64 in 0..num_classes-1.
        num_classes: C.

    Returns:
        The means R, (C, D) float32, zero rows for absent classes; and which classes are present,
        (C,) bool.
    """
    with torch.autocast(p.device.type, enabled=False):
        members = pseudo_labels == torch.arange(num_classes, device=p.device)[:, None]  # (C, B)
        size = members.sum(dim=1)
        means = members.float() @ p.float() / size.clamp(min=1)[:, None]
        return means, size > 0


def group_contrast(
    u: Tensor,
    v: Tensor,
    pseudo_labels_u: Tensor,
    pseudo_labels_v: Tensor,
    num_classes: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Group contrast, Eq. 4: Eq. 2 with the pseudo-label groups of the two views as items.

    Only classes present in both views form pairs.

    Args:
        u: fast representations, (B, D).
        v: slow representations, (B, D).
        pseudo_labels_u: pseudo-labels of the fast view, (B,) int64.
        pseudo_labels_v: pseudo-labels of the slow view, (B,) int64.
        num_classes: C.
        temperature: tau, dimensionless.

    Returns:
        The loss, a float32 scalar, exactly 0 with its graph for fewer than two common classes; and
        the share of common groups among the classes present in either view, in 0..1.
    """
    means_u, present_u = group_means(u, pseudo_labels_u, num_classes)
    means_v, present_v = group_means(v, pseudo_labels_v, num_classes)
    common = present_u & present_v
    loss = nt_xent(means_u, means_v, temperature, valid=common)
    return loss, common.sum() / (present_u | present_v).sum()
