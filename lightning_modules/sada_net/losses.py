"""The hinge between a matching and a non-matching patch (Eq. 1)."""

from torch import Tensor
from torch.nn import functional as F


def hinge(s_plus: Tensor, s_minus: Tensor, margin: float) -> Tensor:
    """Mean of max(0, margin + s_minus - s_plus) over patches and positions.

    Eq. 2 of the paper has the sign the other way round, which would reward s_minus above s_plus.

    Args:
        s_plus: similarities of matching patches, (B, h, w).
        s_minus: of non-matching ones, (B, h, w).
        margin: paper: 0.2.
    """
    return F.relu(margin + s_minus - s_plus).mean()
