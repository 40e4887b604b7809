"""Splits of multi-label data that keep each label's share: iterative stratification (Sechidis et al., 2011)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runs.errors import InputError

_SAME = 1e-9  # two demands are the same: they are sums of a share and whole numbers


def iterative_stratification(labels: NDArray[np.bool_], shares: Sequence[float], seed: int) -> NDArray[np.int64]:
    """Deals samples out to parts so that each part has its share of every label (their Algorithm 1).

    The rarest label that is left is dealt out first: each of its samples goes to the part that still wants
    most of that label, of those to the part that still wants most samples, of those to one by lot. Samples
    without any label come last. Sizes may miss their shares by a few samples, for the sake of the labels.

    Args:
        labels: (N, C), which sample has which label.
        shares: of the parts, each above 0; their sum is 1.
        seed: of the lots and of the order in which the samples of a label are dealt.

    Returns:
        (N,) the part of each sample, 0..P-1.

    Raises:
        InputError: shares that are not above 0 or do not add up to 1.
    """
    portion = np.asarray(shares, dtype=float)
    if portion.ndim != 1 or not len(portion) or (portion <= 0).any() or abs(portion.sum() - 1) > 1e-6:
        raise InputError(f"the shares {list(shares)} of a split must be above 0 and add up to 1")
    generator = np.random.default_rng(seed)
    samples = len(labels)
    wanted = samples * portion  # c_j: samples that a part still wants
    wanted_of = labels.sum(axis=0)[:, None] * portion  # c_j^i: those of each label, (C, P)
    part = np.full(samples, -1)
    order = generator.permutation(samples)

    def deal(sample: int, demand: NDArray[np.float64]) -> None:
        best = np.flatnonzero(demand >= demand.max() - _SAME)
        if len(best) > 1:
            best = best[wanted[best] >= wanted[best].max() - _SAME]
        chosen = int(best[0]) if len(best) == 1 else int(generator.choice(best))
        part[sample] = chosen
        wanted[chosen] -= 1
        wanted_of[labels[sample], chosen] -= 1

    while True:
        left = labels[part < 0].sum(axis=0)
        if not left.any():
            break
        rarest = int(np.argmin(np.where(left > 0, left, samples + 1)))
        for sample in order[labels[order, rarest] & (part[order] < 0)]:
            deal(int(sample), wanted_of[rarest])
    for sample in order[part[order] < 0]:
        deal(int(sample), wanted)
    return part
