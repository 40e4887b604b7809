"""DIC, deep image clustering for unsupervised image segmentation (Zhou and Wei, 2020)."""

from lightning_modules.dic.module import DICModule

__all__ = ["DICModule"]
