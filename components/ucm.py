"""Regions of a hierarchy of boundaries (ucm2 files, Arbelaez et al. 2011)."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from runs.errors import InputError


def ucm_regions(ucm2: NDArray[np.floating], threshold: float) -> NDArray[np.int64]:
    """Regions (H, W), numbered from 0, that no boundary stronger than the threshold parts.

    They are the 8-connected components of ``ucm2 <= threshold`` at the places of pixels, the odd rows and columns
    of (2H+1, 2W+1): the benchmark's own rule.

    Raises:
        InputError: a threshold below 0, or pixels that lie on a boundary themselves: this is no ucm2.
    """
    if threshold < 0:
        raise InputError(f"a threshold of {threshold} leaves no region: boundary strengths begin at 0")
    regions = label(ucm2 <= threshold, structure=np.ones((3, 3)))[0][1::2, 1::2].astype(np.int64)
    if not regions.all():
        raise InputError(
            f"{int((regions == 0).sum())} pixels of a ucm2 lie on boundaries stronger than {threshold}: boundaries "
            "are between pixels, on even rows and columns"
        )
    return regions - 1
