"""Outliers by symmetry and distance ratio (Zhai, Fei, Ma; ICPR 2024), and the detectors it is compared with."""

from lightning_modules.symmetry_outlier.baselines import (
    AutoEncoderOutlierModule,
    LibraryOutlierModule,
    NotDenoisedModule,
)
from lightning_modules.symmetry_outlier.module import SymmetryOutlierModule

__all__ = ["AutoEncoderOutlierModule", "LibraryOutlierModule", "NotDenoisedModule", "SymmetryOutlierModule"]
